"""The student of a learned codec: encoder, quantiser, decoder and a copy of the tail, beside its teacher.

The teacher is the user's model from the cut on. Both give their outputs and the values at their taps, so
that one can be told how far it is from the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn

from splitedge.codec import Tensors, TensorSpec
from splitedge.codecs.nets import Latent, decoder_for, encoder_for
from splitedge.codecs.uniform import fake_quantise
from splitedge.learning import Task
from splitedge.program import Program
from splitedge.segments import spec_of
from splitedge.taps import Tapped

#: Half range of the quantiser in standard deviations of the latent, by bits: about what loses least for a
#: normal variable (Max, IRE Trans. Inf. Theory 1960), a little wider where steps are fine.
HALF_RANGE = {8: 4.0, 6: 3.5, 4: 2.8, 3: 2.2, 2: 1.6}
EPS = 1e-6


@dataclass(frozen=True, slots=True)
class Shape:
    """Sizes of a student's networks: latent, reduction of the grid, widths and depths, bits of a code."""

    latent: Latent
    stride: int
    width: int
    blocks: int
    decoder_blocks: int
    bits: int


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


class Student(nn.Module):
    """Encoder, quantiser and decoder before a tail of its own."""

    def __init__(self, reads: TensorSpec, cut: TensorSpec, shape: Shape, tail: Chain) -> None:
        super().__init__()
        channels, half = shape.latent.channels, HALF_RANGE[shape.bits]
        self.encoder = encoder_for(reads, shape.latent, shape.stride, shape.width, shape.blocks)
        self.decoder = decoder_for(shape.latent, cut, shape.decoder_blocks)
        self.tail = tail
        self.steps = (1 << shape.bits) - 1
        self.lo = nn.Parameter(torch.full((channels,), -half))
        self.log_step = nn.Parameter(torch.full((channels,), 2 * half / self.steps).log())

    @property
    def step(self) -> torch.Tensor:
        """Distance of two codes, float32 (channels,)."""
        return self.log_step.exp()

    def forward(self, reads: torch.Tensor) -> tuple[torch.Tensor, Tensors, Tensors]:
        """The cut's tensor as decoded, the tail's flat outputs, and its taps."""
        z = fake_quantise(self.encoder(reads), self.lo, self.step, self.steps)
        cut = self.decoder(z)
        outputs, taps = self.tail(cut)
        return cut, outputs, taps


class Teacher(nn.Module):
    """The user's model from its input on, frozen; gives what a student is held against."""

    def __init__(self, task: Task, tail: Chain) -> None:
        super().__init__()
        self.before, self.head, self.tail = nn.ModuleList(task.before), nn.ModuleList(task.head), tail
        self.requires_grad_(False).eval()

    @torch.no_grad()
    def forward(self, inputs: Tensors) -> tuple[torch.Tensor, torch.Tensor, Tensors, Tensors]:
        """What the encoder reads, the cut's tensor, the flat outputs, and the taps."""
        tensors = through(self.before, inputs)
        (reads,) = tensors
        (cut,) = through(self.head, tensors)
        outputs, taps = self.tail(cut)
        return reads, cut, outputs, taps


def through(programs: nn.ModuleList, tensors: Tensors) -> Tensors:
    """The tensors behind a chain of programs."""
    for program in programs:
        tensors = tuple(program(*tensors))
    return tensors


def distortion(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
    """Normalised distortion: the sum over pairs of ||found - wanted||^2 / (||wanted||^2 + eps).

    Generalised head distillation (Matsubara et al., IEEE Access 2020, section IV) with each term divided
    by the teacher's energy, so that no weight depends on the model. Integer tensors are passed over.
    """
    terms = [
        (f.float() - w.float()).square().sum() / (w.float().square().sum() + EPS)
        for f, w in zip(found, wanted, strict=True)
        if w.is_floating_point()
    ]
    return torch.stack(terms).sum()
