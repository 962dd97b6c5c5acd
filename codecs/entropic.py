"""`entropic`: the latent's code length is part of the loss, so that training decides what each value costs.

The stochastic bottleneck of Entropic Student (Matsubara et al., WACV 2022, sections 3.2 and 3.3): noise in
place of rounding, a learned prior, distillation with the rate in it, then the tail. The encoder is that of
`bottleneck`; integers in place of b-bit codes, a range of its own for every channel, none for one that
training has made constant.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import nn

from splitedge.codec import HEADER, TensorSpec
from splitedge.codecs.latent_codec import BATCH, TABLE_ROWS, LatentCodec
from splitedge.codecs.nets import decoder_for, encoder_for
from splitedge.codecs.prior import Prior
from splitedge.codecs.shapes import Sizes
from splitedge.codecs.stages import Stage, entropic_student, rate_then_tune
from splitedge.codecs.student import Coding, Student, Teacher, chain_of
from splitedge.codecs.training import train
from splitedge.codecs.uniform import MAX_STEPS, Uniform
from splitedge.errors import CodecError
from splitedge.learning import Schedule, Task

#: How much faster than a weight the logarithm of a gain is trained: it has far to go, and often few steps.
PACE = 5.0
MOST = 1e6
#: How a target length is steered to, each step: by the error so far, and by the error now.
INTEGRAL, PROPORTIONAL = 0.003, 1.0


@dataclass(frozen=True, slots=True)
class EntropicOptions(Sizes):
    """Options of `entropic`.

    Attributes:
        rate: what a kB (1024 bytes) of payload adds to the loss of a row, in nats of cross-entropy; more
            gives fewer bytes. None for 1.
        nbytes: mean payload to aim at, header included, in place of `rate`: the weight is then steered.
        recipe: how it is trained: ours, or as Entropic Student is (`student`), to be compared with.
        beta: the published recipe's weight of the code length, with `recipe="student"` alone; None for 1.
            Published values, 0.08 to 20, weigh bits against sums of squared differences and so depend on
            the model. Here the differences are parts of the teacher's energy.
    """

    rate: float | None = None
    nbytes: float | None = None
    recipe: Literal["splitedge", "student"] = "splitedge"
    beta: float | None = None

    def __post_init__(self) -> None:
        super(EntropicOptions, self).__post_init__()
        if self.recipe not in ("splitedge", "student"):
            raise CodecError(f"recipe is splitedge or student, got '{self.recipe}'")
        taken = ("beta",) if self.recipe == "student" else ("rate", "nbytes")
        for name, least in (("rate", 0), ("nbytes", HEADER.size), ("beta", 0)):
            value = getattr(self, name)
            if value is None:
                continue
            if name not in taken:
                raise CodecError(f"recipe '{self.recipe}' takes {' or '.join(taken)}, not {name}")
            if isinstance(value, bool) or not isinstance(value, int | float) or not least < value <= MOST:
                raise CodecError(f"{name} is a number above {least}, at most {MOST:g}, got {value!r}")
        if self.rate is not None and self.nbytes is not None:
            raise CodecError("nbytes stands in place of rate; name one of them")

    @property
    def target(self) -> float | None:
        """Bits of a body to aim at."""
        return None if self.nbytes is None else 8 * (self.nbytes - HEADER.size)

    @property
    def stages(self) -> tuple[Stage, ...]:
        """How it is trained."""
        if self.recipe == "student":
            return entropic_student(1.0 if self.beta is None else self.beta)
        return rate_then_tune(1.0 if self.rate is None else self.rate)


class PriorCoding(Coding):
    """Rounding to integers, each channel scaled by a gain that is trained, beside a prior of those integers.

    In training the prior sees noise in place of rounding at all times, the decoder while not `quantised`.

    Args:
        channels: of the latent.
        seed: of the noise; the n-th noise is the same wherever training runs or was cut off.
        target: bits of a row to steer to; None for the stage's own weight of the rate.
    """

    drawn: torch.Tensor
    log_weight: torch.Tensor

    def __init__(self, channels: int, seed: int, target: float | None = None) -> None:
        super().__init__()
        self.seed, self.target = seed, target
        self.register_buffer("log_weight", torch.zeros(()))
        self.prior = Prior(channels)
        self.slow_log_gain = nn.Parameter(torch.zeros(channels))
        self.register_buffer("drawn", torch.zeros((), dtype=torch.int64))

    def extra_repr(self) -> str:
        """What a checkpoint is told apart by."""
        return f"target={self.target}"

    @property
    def gain(self) -> torch.Tensor:
        """Integers that a standard deviation of each channel spans, float32 (channels,); 1 at first."""
        return (PACE * self.slow_log_gain).exp()

    def forward(self, z: torch.Tensor, level: int) -> tuple[torch.Tensor, torch.Tensor]:
        """The latent as it arrives, integers, and its code length; see `Coding`."""
        gain = self.gain
        wide = gain.view(1, -1, *(1 for _ in z.shape[2:]))
        y = z * wide
        rounded = y + (y.round() - y).detach()
        noisy = y + self._noise(y) if self.training else rounded
        bits = self.prior.bits(noisy / wide, gain.reciprocal())
        if self.training and self.target is not None:
            bits = bits * self._steered(bits.detach().mean())
        return rounded if self.quantised else noisy, bits

    def _steered(self, bits: torch.Tensor) -> torch.Tensor:
        """What the rate weighs now: more while rows are too long, less while they are short."""
        assert self.target is not None
        off = (bits / self.target).log().clamp(-1, 1)
        self.log_weight += INTEGRAL * off
        return (self.log_weight + PROPORTIONAL * off).exp()

    def _noise(self, y: torch.Tensor) -> torch.Tensor:
        """Uniform from -1/2 to 1/2, drawn on the CPU: alike on every device."""
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + int(self.drawn))
        self.drawn += 1
        return (torch.rand(y.shape, generator=generator) - 0.5).to(y.device)


class Scaled(nn.Module):
    """An encoder with the gains of its latent's channels behind it: what is deployed."""

    gain: torch.Tensor

    def __init__(self, encoder: nn.Module, gain: torch.Tensor) -> None:
        super().__init__()
        self.encoder = encoder
        self.register_buffer("gain", gain)

    def forward(self, reads: torch.Tensor) -> torch.Tensor:
        """What the encoder reads to float32 (N, channels, *grid), to be rounded."""
        z: torch.Tensor = self.encoder(reads)
        gain = self.gain.view(1, -1, *(1 for _ in z.shape[2:]))
        return z * gain


class Entropic(LatentCodec):
    """One level: what the weight of the code length makes of the latent."""

    name: ClassVar[str] = "entropic"
    options: ClassVar[type | None] = EntropicOptions

    @property
    def levels(self) -> tuple[str, ...]:
        """One, named by its channels."""
        return (f"{self._latent.channels} channels",)

    @classmethod
    def check(cls, reads: Sequence[TensorSpec], cut: Sequence[TensorSpec], **options: Any) -> None:
        """See `LearnedCodec.check`. Options: `EntropicOptions`."""
        EntropicOptions.of(options).latent(reads, cut)

    @classmethod
    def train(
        cls, task: Task, schedule: Schedule, **options: Any
    ) -> tuple[Self, tuple[float, ...], tuple[float, ...], int]:
        """Train one; see `LearnedCodec.train`. Options: `EntropicOptions`."""
        asked = EntropicOptions.of(options)
        latent, stride = asked.latent(task.reads, task.cut)
        torch.manual_seed(schedule.seed)
        student = Student(
            encoder_for(task.reads[0], latent, stride, asked.width_for(task), asked.blocks),
            coding := PriorCoding(latent.channels, schedule.seed, asked.target),
            decoder_for(latent, task.cut[0], asked.decoder_blocks, asked.decoder_width_for(task)),
            chain_of(task),
        )
        teacher = Teacher(task)
        epochs = train(student, teacher, task, schedule, asked.stages)
        student.encoder = Scaled(student.encoder, coding.gain.detach())
        codec = cls.made(task, teacher, student, latent, integers(student, teacher, task))
        return codec, *codec.measured(teacher, task), epochs


@torch.inference_mode()
def integers(student: Student, teacher: Teacher, task: Task) -> Uniform:
    """Rounding to the integers that a trained encoder's latents of training rows reach, channel by channel.

    What other rows have beyond them gets the nearer end. Of more than 256, those next to 0 are kept.
    """
    rows = task.train.first(TABLE_ROWS).batches(BATCH)
    z = [student.encoder(teacher.reads(batch.inputs)).transpose(0, 1).flatten(1) for batch in rows]
    least = torch.stack([part.amin(1) for part in z]).amin(0).round().numpy()
    most = torch.stack([part.amax(1) for part in z]).amax(0).round().numpy()
    lo = np.minimum(np.maximum(least, -MAX_STEPS // 2), np.maximum(most - MAX_STEPS, least))
    steps = np.minimum(most - lo, MAX_STEPS).astype(np.int64)
    return Uniform(lo.astype(np.float32), np.ones_like(lo, dtype=np.float32), steps.tolist())
