"""Several tails on one cut: what is sent once is answered by all of them, in one reply (Ladon, WACV 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from splitedge.codec import Tensors
from splitedge.errors import ConfigError, PartitionError
from splitedge.partition import capture
from splitedge.pieces import Pieces
from splitedge.segments import Segment
from splitedge.structure import Structure

#: What the model's own answer is called beside those of the extra tails.
MAIN = "main"


class Tails(nn.Module):
    """Every tail on the same tensors; a dict of their outputs by name."""

    def __init__(self, tails: Mapping[str, nn.Module]) -> None:
        super().__init__()
        self.names = tuple(tails)
        self.tails = nn.ModuleList(tails.values())

    def forward(self, *tensors: torch.Tensor) -> dict[str, Any]:
        """The cut's tensors to an output of every tail."""
        return {name: tail(*tensors) for name, tail in zip(self.names, self.tails, strict=True)}


class _Chain(nn.Module):
    """The model's own tail: its segments one after the other, then the output's structure."""

    def __init__(self, segments: Sequence[Segment], outputs: Structure) -> None:
        super().__init__()
        self.segments = nn.ModuleList(segment for segment in segments if isinstance(segment, nn.Module))
        self.outputs = outputs

    def forward(self, *tensors: torch.Tensor) -> Any:
        flat: Tensors = tensors
        for segment in self.segments:
            flat = segment(*flat)
        return self.outputs.unflatten(flat)


def check_tails(tails: Mapping[str, nn.Module]) -> None:
    """Whether the names can be told apart.

    Raises:
        ConfigError: no tails, or names that are no identifiers.
    """
    wrong = [name for name in tails if not isinstance(name, str) or not name.isidentifier()]
    if not tails or wrong:
        raise ConfigError(f"tails= names one module or more by identifiers, got {wrong or 'none'}")


def with_tails(pieces: Pieces, cut: int, tails: Mapping[str, nn.Module], flat: Tensors) -> Pieces:
    """Pieces whose last segment, from `cut` on, answers with the model's own tail and all the others.

    Args:
        pieces: of the model.
        cut: the boundary all tails start from, behind which nothing else may stand.
        tails: by name, each takes the cut's tensors as its arguments.
        flat: example inputs.

    Raises:
        ConfigError: a name that is taken, or exits behind the cut.
        PartitionError: a tail can not be captured, or does not run on the cut's tensors.
    """
    check_tails(tails)
    if MAIN in tails:
        raise ConfigError(f"'{MAIN}' is what the model's own answer is called; name the tail otherwise")
    if cut != len(pieces.boundaries) - 1:
        raise ConfigError("with tails= there is one cut, and exits stand before it")
    crossing: Tensors = flat
    with torch.inference_mode():
        for i in range(cut):
            crossing = tuple(pieces.segments[i](*crossing))
    crossing = tuple(tensor.clone() for tensor in crossing)
    everything = Tails({MAIN: _Chain([pieces.segments[cut]], pieces.outputs), **tails}).eval()
    try:
        graph = capture(everything, crossing, dynamic_batch="auto")
    except PartitionError as error:
        raise PartitionError(f"tails={', '.join(tails)}: {error}") from error
    notes = list(pieces.notes)
    if not graph.dynamic_batch:
        notes.append(f"tails: one batch size only: {graph.fixed_batch_reason}")
    (program,) = graph.segments([])
    return replace(
        pieces,
        outputs=graph.output_structure,
        segments={**{i: pieces.segments[i] for i in range(cut)}, cut: program},
        batchable=pieces.batchable and graph.dynamic_batch,
        independent=pieces.independent and graph.rows_independent,
        notes=notes,
        main=MAIN,
    )
