"""`bottleneck`: a few strided convolutions in place of the head, b-bit codes, a range coder.

Channel reduction as in BottleFit (WoWMoM 2022, section III), a static per-channel quantiser trained
through (LSQ, Esser et al., ICLR 2020), frozen integer tables made from real latents. Encoder and decoder
(with the fine-tuned tail behind it) are programs of their own: the edge has one, the cloud the other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import nn

from splitedge.codec import TensorSpec
from splitedge.codecs.latent_codec import BATCH, TABLE_ROWS, LatentCodec
from splitedge.codecs.nets import decoder_for, encoder_for
from splitedge.codecs.shapes import Sizes
from splitedge.codecs.stages import BOTTLEFIT, CR_BQ, DISTIL_THEN_TUNE, Stage
from splitedge.codecs.student import Coding, Student, Teacher, chain_of
from splitedge.codecs.training import train
from splitedge.codecs.uniform import Uniform, fake_quantise
from splitedge.errors import CodecError
from splitedge.learning import Schedule, Task

#: Half range of the quantiser in standard deviations of the latent, by bits: about what loses least for a
#: normal variable (Max, IRE Trans. Inf. Theory 1960), a little wider where steps are fine.
HALF_RANGE = {8: 4.0, 6: 3.5, 4: 2.8, 3: 2.2, 2: 1.6}
#: Ends of the range that is put in after training in float.
PERCENTILES = (0.05, 99.95)

Way = Literal["splitedge", "cr-bq", "bottlefit"]
WAYS: dict[str, tuple[Stage, ...]] = {
    "splitedge": DISTIL_THEN_TUNE,
    "cr-bq": CR_BQ,
    "bottlefit": BOTTLEFIT,
}


@dataclass(frozen=True, slots=True)
class BottleneckOptions(Sizes):
    """Options of `bottleneck`.

    Attributes:
        bits: of a code: 8, 6, 4, 3 or 2; None for 4, and for 8 with a published recipe.
        recipe: how it is trained: ours, or as CR+BQ (SC2) or BottleFit do, to be compared with.
    """

    bits: int | None = None
    recipe: Way = "splitedge"

    def __post_init__(self) -> None:
        super(BottleneckOptions, self).__post_init__()
        if self.bits is not None and self.bits not in HALF_RANGE:
            raise CodecError(f"bits is one of {', '.join(map(str, HALF_RANGE))}, got {self.bits}")
        if self.recipe not in WAYS:
            raise CodecError(f"recipe is one of {', '.join(WAYS)}, got '{self.recipe}'")

    @property
    def code_bits(self) -> int:
        """Bits of a code."""
        return self.bits or (4 if self.recipe == "splitedge" else 8)


class UniformCoding(Coding):
    """The deployed quantiser with ranges that are trained.

    Args:
        channels: of the latent.
        bits: of a code.
    """

    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        half = HALF_RANGE[bits]
        self.steps = (1 << bits) - 1
        self.lo = nn.Parameter(torch.full((channels,), -half))
        self.log_step = nn.Parameter(torch.full((channels,), 2 * half / self.steps).log())

    def extra_repr(self) -> str:
        """What a checkpoint is told apart by."""
        return f"steps={self.steps}"

    def forward(self, z: torch.Tensor, level: int) -> tuple[torch.Tensor, None]:
        """The latent as it arrives; see `Coding`."""
        if not self.quantised:
            return z, None
        return fake_quantise(z, self.lo, self.log_step.exp(), self.steps), None

    def uniform(self) -> Uniform:
        """What is deployed."""
        lo, step = (t.detach().float().numpy().copy() for t in (self.lo, self.log_step.exp()))
        return Uniform(lo, step, self.steps)


class Bottleneck(LatentCodec):
    """One level: what the latent's channels and bits make."""

    name: ClassVar[str] = "bottleneck"
    options: ClassVar[type | None] = BottleneckOptions

    @classmethod
    def check(cls, reads: Sequence[TensorSpec], cut: Sequence[TensorSpec], **options: Any) -> None:
        """See `LearnedCodec.check`. Options: `BottleneckOptions`."""
        BottleneckOptions.of(options).latent(reads, cut)

    @classmethod
    def train(
        cls, task: Task, schedule: Schedule, **options: Any
    ) -> tuple[Self, tuple[float, ...], tuple[float, ...], int]:
        """Train one; see `LearnedCodec.train`. Options: `BottleneckOptions`."""
        asked = BottleneckOptions.of(options)
        latent, stride = asked.latent(task.reads, task.cut)
        torch.manual_seed(schedule.seed)
        student = Student(
            encoder_for(task.reads[0], latent, stride, asked.width_for(task), asked.blocks),
            coding := UniformCoding(latent.channels, asked.code_bits),
            decoder_for(latent, task.cut[0], asked.decoder_blocks, asked.decoder_width_for(task)),
            chain_of(task),
        )
        teacher = Teacher(task)
        epochs = train(student, teacher, task, schedule, WAYS[asked.recipe])
        uniform = coding.uniform() if coding.quantised else fitted(student, teacher, task, coding.steps)
        codec = cls.made(task, teacher, student, latent, uniform)
        return codec, *codec.measured(teacher, task), epochs


@torch.inference_mode()
def fitted(student: Student, teacher: Teacher, task: Task, steps: int) -> Uniform:
    """A quantiser for a student that was trained without one, its ranges percentiles of real latents."""
    rows = task.train.first(TABLE_ROWS).batches(BATCH)
    z = torch.cat([student.encoder(teacher.reads(batch.inputs)) for batch in rows]).transpose(0, 1).flatten(1)
    lo, hi = np.percentile(z.numpy(), PERCENTILES, axis=1).astype(np.float32)
    return Uniform(lo, np.maximum((hi - lo) / np.float32(steps), np.float32(1e-6)), steps)
