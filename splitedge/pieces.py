"""Models in pieces: from a captured graph at chosen cuts, or from a head and a tail given by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from splitedge.codec import DTYPE_NAMES, Tensors, TensorSpec
from splitedge.errors import ConfigError, PartitionError
from splitedge.partition import Cut, Graph, capture
from splitedge.segments import Boundary, Segment
from splitedge.structure import Structure, as_call, describe


@dataclass(slots=True)
class Pieces:
    """A divided model.

    Attributes:
        inputs, outputs: structures of the whole model.
        boundaries: the input first; segment i starts at boundary i.
        segments: as many as boundaries.
        found: the graph's cut of each boundary but the first; empty for pieces made by hand.
        graph: what they were cut from; None for pieces made by hand.
        batchable: whether any number of rows may run.
        independent: whether a row's answer is the same whatever rows stand beside it; False where that
            could not be tried.
        notes: what a user should know.
        main: the first of several tasks; None where the output is one task's.
    """

    inputs: Structure
    outputs: Structure
    boundaries: tuple[Boundary, ...]
    segments: dict[int, Segment]
    found: tuple[Cut, ...]
    batchable: bool
    independent: bool
    notes: list[str]
    graph: Graph | None = None
    main: str | None = None

    @property
    def index(self) -> dict[str, int]:
        """Boundary by name."""
        return {boundary.name: i for i, boundary in enumerate(self.boundaries)}


def divide(graph: Graph, cuts: Sequence[Cut]) -> Pieces:
    """The pieces between cuts of a graph, in the graph's order, each cut once."""
    unique = {cut.name: cut for cut in sorted(cuts, key=lambda cut: cut.position)}
    ordered = tuple(unique.values())
    programs = graph.segments(ordered)
    boundaries = [Boundary("", graph.input_structure.specs)]
    boundaries += [Boundary(cut.name, cut.specs) for cut in ordered]
    notes = []
    if not graph.dynamic_batch:
        notes.append(f"one batch size only: {graph.fixed_batch_reason}")
    elif not graph.rows_independent:
        notes.append("rows of a batch change each other's answers: requests are never run as one batch")
    return Pieces(
        graph.input_structure,
        graph.output_structure,
        tuple(boundaries),
        dict(enumerate(programs)),
        ordered,
        graph.dynamic_batch,
        graph.rows_independent,
        notes,
        graph,
    )


class ByHand(nn.Module):
    """A module that could not be captured, as a segment: flat tensors in, flat tensors out."""

    def __init__(self, module: nn.Module, inputs: Structure) -> None:
        super().__init__()
        self.module = module.eval()
        self.inputs = inputs

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        """Run the module on its own structure."""
        args, kwargs = as_call(self.inputs.unflatten(tensors))
        return tuple(describe(self.module(*args, **kwargs))[1])


@dataclass(slots=True)
class _Half:
    inputs: Structure
    outputs: Structure
    segment: Segment
    batchable: bool
    independent: bool
    note: str


def join(head: nn.Module, tail: nn.Module, example_inputs: Any, name: str) -> Pieces:
    """The two pieces a user divided by hand: `tail(*head(x))`, or `tail(head(x))` for a single tensor.

    A half that can not be captured still runs, in this process; it can not be saved.

    Raises:
        PartitionError: the halves do not fit together, or do not run on the example.
    """
    first = _half(head, example_inputs, "head")
    with torch.inference_mode():
        args, kwargs = as_call(example_inputs)
        crossing = head.eval()(*args, **kwargs)
    second = _half(tail, crossing, "tail")
    if first.outputs.specs != second.inputs.specs:
        raise PartitionError(
            f"the head gives {', '.join(map(str, first.outputs.specs))} and the tail takes "
            f"{', '.join(map(str, second.inputs.specs))}"
        )
    return Pieces(
        first.inputs,
        second.outputs,
        (Boundary("", first.inputs.specs), Boundary(name, first.outputs.specs)),
        {0: first.segment, 1: second.segment},
        (),
        first.batchable and second.batchable,
        first.independent and second.independent,
        [half.note for half in (first, second) if half.note],
    )


def _half(module: nn.Module, example: Any, what: str) -> _Half:
    try:
        graph = capture(module, example, dynamic_batch="auto")
    except PartitionError as error:
        return _uncaptured(module, example, what, str(error))
    (program,) = graph.segments([])
    note = "" if graph.dynamic_batch else f"{what}: one batch size only: {graph.fixed_batch_reason}"
    return _Half(
        graph.input_structure,
        graph.output_structure,
        program,
        graph.dynamic_batch,
        graph.rows_independent,
        note,
    )


def _uncaptured(module: nn.Module, example: Any, what: str, why: str) -> _Half:
    """Specs by looking at one run: dimension 0 is the batch where it is as long as the input's."""
    tree, tensors = describe(example, "example_inputs")
    rows = tensors[0].shape[0] if tensors and tensors[0].dim() else 1
    inputs = Structure(tree, tuple(_spec(t, rows, what) for t in tensors))
    args, kwargs = as_call(example)
    given = "the example" if what == "head" else "what the head gives"
    try:
        with torch.inference_mode():
            out_tree, out = describe(module.eval()(*args, **kwargs), f"the {what}'s output")
    except PartitionError:
        raise
    except Exception as error:
        raise PartitionError(f"the {what} does not run on {given}: {error}") from error
    outputs = Structure(out_tree, tuple(_spec(t, rows, what) for t in out))
    note = f"the {what} runs in this process only and can not be saved: {why}"
    return _Half(inputs, outputs, ByHand(module, inputs), True, False, note)


def _spec(tensor: torch.Tensor, rows: int, what: str) -> TensorSpec:
    if tensor.dtype not in DTYPE_NAMES:
        raise PartitionError(
            f"the {what} has a tensor of {tensor.dtype}; known: {', '.join(map(str, DTYPE_NAMES))}"
        )
    batched = tensor.dim() > 0 and tensor.shape[0] == rows
    shape = (1, *tensor.shape[1:]) if batched else tuple(tensor.shape)
    return TensorSpec(shape, DTYPE_NAMES[tensor.dtype], 0 if batched else None)


def whole_program(module: nn.Module, example_inputs: Any, like: Pieces, what: str) -> tuple[Segment, bool]:
    """A complete model of its own, with the inputs and outputs of another, and whether any batch may run.

    Raises:
        ConfigError: its inputs or outputs are not the other model's.
        PartitionError: it can not be captured.
    """
    graph = capture(module, example_inputs, dynamic_batch="auto")
    for side, mine, theirs in (
        ("takes", graph.input_structure.specs, like.inputs.specs),
        ("gives", graph.output_structure.specs, like.outputs.specs),
    ):
        if mine != theirs:
            raise ConfigError(
                f"{what} {side} {', '.join(map(str, mine))}, the model {', '.join(map(str, theirs))}; "
                "both must take the same inputs and give the same outputs"
            )
    return graph.segments([])[0], graph.dynamic_batch
