"""The student of a learned codec: encoder, coding of the latent, decoder and a copy of the tail, beside its
teacher.

The teacher is the user's model from the cut on. Both give their outputs and the values at their taps, so
that one can be told how far it is from the other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import NamedTuple, Self

import torch
from torch import nn

from splitedge.codec import DTYPES, Tensors, TensorSpec
from splitedge.learning import Task
from splitedge.program import Program
from splitedge.segments import spec_of
from splitedge.taps import Tapped


class Answer(NamedTuple):
    """What a student or a teacher made of a batch.

    Attributes:
        cut: the cut's tensor.
        outputs: the flat output of the main task.
        taps: values inside the tail.
        bits: code length of every row, float32 (N,); None where it is fixed.
    """

    cut: torch.Tensor
    outputs: Tensors
    taps: Tensors
    bits: torch.Tensor | None = None


class Coding(nn.Module):
    """What lies between encoder and decoder: the latent as it will arrive, differentiable.

    Attributes:
        quantised: whether the deployed quantiser runs; a stage says so.
        target: bits of a row that training aims at; None where nothing is aimed at.
    """

    quantised: bool = True
    target: float | None = None

    def forward(self, z: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor | None]:
        """float32 latent (N, channels, *grid) to the same as it arrives, and bits of every row or None."""
        raise NotImplementedError


class Chain(nn.Module):
    """Programs one after the other, with the values at their taps; every tap alike in student and teacher."""

    def __init__(self, programs: Sequence[nn.Module], example: Tensors) -> None:
        super().__init__()
        parts = []
        for program in programs:
            assert isinstance(program, Program)
            parts.append(Tapped(program, [spec_of(t[:1]) for t in example]))
            with torch.no_grad():
                example = program(*example)
        self.parts = nn.ModuleList(parts)

    def forward(self, *tensors: torch.Tensor) -> tuple[Tensors, Tensors]:
        """The last program's flat outputs, and all taps in order."""
        taps: list[torch.Tensor] = []
        for part in self.parts:
            tensors, found = part(*tensors)
            taps.extend(found)
        return tensors, tuple(taps)


def chain_of(task: Task, outputs: Sequence[int] | None = None) -> Chain:
    """The tail of a task with its taps, its weights a copy.

    Args:
        task: of one tail or several.
        outputs: flat outputs that it gives; None for those of the main task.
    """
    return Chain(task.tail_of(outputs), zeros(task.cut))


def zeros(specs: Sequence[TensorSpec]) -> Tensors:
    """One row of tensors as the specs say."""
    return tuple(torch.zeros(spec.shape_at(1), dtype=DTYPES[spec.dtype]) for spec in specs)


class Student(nn.Module):
    """Encoder, coding and decoder before a tail of its own.

    Attributes:
        levels: how many rates it is trained for at once.
    """

    levels: int = 1

    def __init__(self, encoder: nn.Module, coding: Coding, decoder: nn.Module, tail: Chain) -> None:
        super().__init__()
        self.encoder, self.coding, self.decoder, self.tail = encoder, coding, decoder, tail

    def before(self, tail: Chain) -> Self:
        """A copy that stands before another tail."""
        other = copy.deepcopy(self)
        other.tail = tail
        return other

    def draw(self, generator: torch.Generator) -> Sequence[int]:
        """Levels that one step trains."""
        return (0,)

    def decoded(self, values: torch.Tensor, level: int) -> torch.Tensor:
        """The cut's tensor from a latent as it arrives."""
        cut: torch.Tensor = self.decoder(values)
        return cut

    def forward(self, reads: torch.Tensor, level: int = 0) -> Answer:
        """All of it, at one level."""
        values, bits = self.coding(self.encoder(reads).float(), level)
        cut = self.decoded(values, level)
        outputs, taps = self.tail(cut)
        return Answer(cut, outputs, taps, bits)


class Teacher(nn.Module):
    """The user's model from its input on, frozen; gives what a student is held against."""

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.before, self.head = nn.ModuleList(task.before), nn.ModuleList(task.head)
        self.tail = chain_of(task)
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def reads(self, inputs: Tensors) -> torch.Tensor:
        """What the encoder reads."""
        (reads,) = through(self.before, inputs)
        return reads

    @torch.no_grad()
    def forward(self, reads: torch.Tensor) -> Answer:
        """What the model makes of that."""
        (cut,) = through(self.head, (reads,))
        outputs, taps = self.tail(cut)
        return Answer(cut, outputs, taps)


def through(programs: nn.ModuleList, tensors: Tensors) -> Tensors:
    """The tensors behind a chain of programs."""
    for program in programs:
        tensors = tuple(program(*tensors))
    return tensors
