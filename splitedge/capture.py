"""Model to a flat graph of functional ATen calls, through `torch.export`.

What comes out (`Captured`) is normalised (`lower.py`), so that the rest of the partition need not know how
export writes things.
"""

from __future__ import annotations

import traceback
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import sympy
import torch
from torch import fx, nn

from splitedge.errors import PartitionError
from splitedge.lower import WAY_OUT, lower, needs_functionalising
from splitedge.structure import Tree, as_call, describe, restore

Dynamic = bool | Literal["auto"]
_TORCH = str(Path(torch.__file__).parent)
_OURS = str(Path(__file__).parent)


@dataclass(slots=True)
class Captured:
    """A model as one graph.

    Attributes:
        graph: placeholders for the input tensors, `get_attr` for weights (target: the module path of the
            tensor), calls, and one output tuple. Every node has `meta["val"]`.
        weights: by target, the model's own tensors (not copies).
        parameters: which of them are parameters.
        inputs, outputs: how the flat tensors nest.
        batch: the symbol of the batch size, None when the graph is fixed to the example's.
        rows: rows of the example.
        reason: why the batch size is fixed; empty when it is not.
    """

    graph: fx.Graph
    weights: dict[str, torch.Tensor]
    parameters: frozenset[str]
    inputs: Tree
    outputs: Tree
    batch: sympy.Symbol | None
    rows: int
    reason: str


class _Flat(nn.Module):
    """The model on flat tensors; remembers how its output nests."""

    def __init__(self, model: nn.Module, tree: Tree, seen: list[Tree]) -> None:
        super().__init__()
        self.model = model
        self._tree = tree
        self._seen = seen

    def forward(self, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
        args, kwargs = as_call(restore(self._tree, tensors))
        tree, flat = describe(self.model(*args, **kwargs), "the model's output")
        self._seen.append(tree)
        return tuple(flat)


def capture_graph(model: nn.Module, example_inputs: Any, dynamic_batch: Dynamic) -> Captured:
    """Export `model` and normalise its graph, for every batch size unless `dynamic_batch` is False.

    Raises:
        FixedBatch: the model works for one batch size only.
        PartitionError: the model fails on the example, can not be exported, or is not a fixed function
            of its inputs; the message names the construct and the way out.
    """
    tree, tensors = describe(example_inputs, "example_inputs")
    if not tensors:
        raise PartitionError("example_inputs hold no tensor; a model that is cut takes at least one")
    rows, batched = _batch(tensors)
    if dynamic_batch is False:
        return _capture(model, tree, tensors, batched, rows, dynamic=False, reason="dynamic_batch=False")
    if not any(batched):
        raise PartitionError("no example input has a batch dimension (dimension 0); pass dynamic_batch=False")
    return _capture(model, tree, tensors, batched, rows, dynamic=True, reason="")


class FixedBatch(PartitionError):
    """The model works for one batch size only."""


def _batch(tensors: Sequence[torch.Tensor]) -> tuple[int, list[bool]]:
    """The batch size that most inputs agree on in dimension 0 (the first one's on a tie), and who has it."""
    sizes = [t.shape[0] if t.dim() else None for t in tensors]
    counts = Counter(n for n in sizes if n is not None)
    rows = counts.most_common(1)[0][0] if counts else 1
    return rows, [n == rows for n in sizes]


def repeated(
    tensors: Sequence[torch.Tensor], batched: Sequence[bool], rows: int, to: int
) -> list[torch.Tensor]:
    """The example with `to` rows, rows repeated in turn."""
    if rows == to:
        return list(tensors)
    index = torch.arange(to) % rows
    return [t[index.to(t.device)] if b else t for t, b in zip(tensors, batched, strict=True)]


def _capture(
    model: nn.Module,
    tree: Tree,
    tensors: Sequence[torch.Tensor],
    batched: Sequence[bool],
    rows: int,
    *,
    dynamic: bool,
    reason: str,
) -> Captured:
    example = repeated(tensors, batched, rows, 2) if dynamic and rows == 1 else list(tensors)
    with evaluating(model):
        args, kwargs = as_call(restore(tree, example))
        try:
            model(*args, **kwargs)
        except Exception as error:
            raise PartitionError(f"the model fails on the example inputs: {_first_line(error)}") from error
        seen: list[Tree] = []
        flat = _Flat(model, tree, seen)
        program = _export(flat, example, batched, dynamic)
    lowered = lower(program)
    batch = _symbol(lowered, batched) if dynamic else None
    return Captured(*lowered, inputs=tree, outputs=seen[-1], batch=batch, rows=rows, reason=reason)


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode without gradients; its training flags as they were afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), warnings.catch_warnings():
            # export warns about its own ways with modules (an LSTM's flat weights, say); errors still raise
            warnings.simplefilter("ignore")
            yield
    finally:
        for module, mode in modes:
            module.training = mode


# Exporting and explaining why it failed -----------------------------------------------------------


def _export(
    flat: _Flat, example: Sequence[torch.Tensor], batched: Sequence[bool], dynamic: bool
) -> torch.export.ExportedProgram:
    dim = torch.export.Dim("batch")
    shapes = {"tensors": tuple({0: dim} if b else None for b in batched)} if dynamic else None
    try:
        program = torch.export.export(flat, tuple(example), dynamic_shapes=shapes, strict=False)
        if needs_functionalising(program.graph_module):
            program = program.run_decompositions({})
    except PartitionError:
        raise
    except Exception as error:
        raise _explained(error, dynamic) from error
    return program


def _explained(error: Exception, dynamic: bool) -> PartitionError:
    text = str(error)
    kind = type(error).__name__
    where = _user_line(error)
    if "data-dependent" in text or "DataDependent" in kind or "unbacked" in text:
        what = "a branch, a loop or a shape that depends on the values of a tensor"
    elif "Constraints violated" in text or "ConstraintViolation" in kind or "specialized" in text:
        what = f"a batch size that the model fixes ({_first_line(error, 'specialized', 'constant', 'batch')})"
        return FixedBatch(
            f"the model can not be captured for every batch size: {what}{where}; {WAY_OUT}, or pass "
            "dynamic_batch=False to keep the example's"
        )
    else:
        what = f"{kind}: {_first_line(error)}"
    return PartitionError(f"the model can not be captured: {what}{where}; {WAY_OUT}")


def _first_line(error: BaseException, *wanted: str) -> str:
    """The first line of a message, or the first with one of the words wanted."""
    lines = [line.strip(" -\t") for line in str(error).splitlines() if line.strip()]
    for word in wanted:
        for line in lines:
            if word in line:
                return line[:300]
    return lines[0][:300] if lines else type(error).__name__


def _user_line(error: BaseException) -> str:
    """Where in the user's code it happened: the deepest frame that is neither torch's nor ours."""
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((_TORCH, _OURS, "<")) and "contextlib" not in frame.filename:
            code = f" in `{frame.line}`" if frame.line else ""
            return f"{code} ({Path(frame.filename).name}:{frame.lineno})"
    return ""


def _symbol(lowered: tuple[fx.Graph, Any, Any], batched: Sequence[bool]) -> sympy.Symbol:
    places = [n for n in lowered[0].nodes if n.op == "placeholder"]
    for node, is_batched in zip(places, batched, strict=True):
        if is_batched:
            size = node.meta["val"].shape[0]
            if isinstance(size, torch.SymInt) and isinstance(size.node.expr, sympy.Symbol):
                return size.node.expr
            raise FixedBatch(f"the model fixes its batch size to {size}; {WAY_OUT}")
    raise PartitionError("no example input has a batch dimension")
