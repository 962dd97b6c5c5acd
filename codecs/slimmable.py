"""`slimmable`: one encoder for several levels, switched per request; a level's payload begins with the lower
ones'.

The channels of the latent are ordered: level i sends the first of them, twice as many as the level below.
Trained by the sandwich rule (Yu and Huang, "Universally slimmable networks", ICCV 2019, section 3.2): every
step trains the lowest level, the highest and one between. The encoder does not know the level; the decoder
has one set of weights, with norms of its own for each level.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import torch
from torch import nn

from splitedge.codec import MAX_ROWS, Payload, Tensors, TensorSpec
from splitedge.codecs.bottleneck import HALF_RANGE, UniformCoding
from splitedge.codecs.channel_groups import ChannelGroups
from splitedge.codecs.latent_codec import LatentCodec
from splitedge.codecs.level_nets import by_row, with_levels
from splitedge.codecs.nets import Latent, decoder_for, encoder_for
from splitedge.codecs.programs import Answering
from splitedge.codecs.shapes import Sizes
from splitedge.codecs.stages import DISTIL_THEN_TUNE
from splitedge.codecs.student import Chain, Student, Teacher, chain_of
from splitedge.codecs.training import train
from splitedge.errors import CodecError
from splitedge.learning import Schedule, Task

MOST_LEVELS = 8
#: Training rows that caps are measured on, and what they have above the longest.
CAPPED_ROWS, SPARE = 1000, 1.25


@dataclass(frozen=True, slots=True)
class SlimmableOptions(Sizes):
    """Options of `slimmable`.

    Attributes:
        channels: of the highest level; None for about 256 values in all, and enough for the levels.
        bits: of a code: 8, 6, 4, 3 or 2.
        levels: how many, 1 to 8; each sends half the channels of the next, rounded up.
        only: train this level alone, a codec of one level, to compare with.
    """

    bits: int = 2
    levels: int = 4
    only: int | None = None

    def __post_init__(self) -> None:
        super(SlimmableOptions, self).__post_init__()
        if self.bits not in HALF_RANGE:
            raise CodecError(f"bits is one of {', '.join(map(str, HALF_RANGE))}, got {self.bits}")
        if not _whole(self.levels, 1, MOST_LEVELS):
            raise CodecError(f"levels is a whole number from 1 to {MOST_LEVELS}, got {self.levels}")
        if self.only is not None and not _whole(self.only, 0, self.levels - 1):
            raise CodecError(f"only is one of the levels 0 to {self.levels - 1}, got {self.only}")

    def latent(self, reads: Sequence[TensorSpec], cut: Sequence[TensorSpec]) -> tuple[Latent, int]:
        """The latent of the highest level for these tensors, and the stride to it.

        Raises:
            CodecError: no bottleneck can stand there, or it has too few channels for the levels.
        """
        latent, stride = super(SlimmableOptions, self).latent(reads, cut)
        if self.channels is None:
            latent = replace(latent, channels=max(latent.channels, 1 << (self.levels - 1)))
        self.prefixes(latent)
        return latent, stride

    def prefixes(self, latent: Latent) -> tuple[int, ...]:
        """Channels of each level.

        Raises:
            CodecError: two levels would be the same.
        """
        found = tuple(-(-latent.channels >> (self.levels - 1 - i)) for i in range(self.levels))
        if len(set(found)) < len(found):
            raise CodecError(
                f"{latent.channels} channels do not make {self.levels} levels; ask for fewer levels, or for "
                f"channels={1 << (self.levels - 1)}"
            )
        return found


def _whole(value: object, least: int, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


class PrefixCoding(UniformCoding):
    """The deployed quantiser; channels that a level does not send arrive as zeros.

    Args:
        prefixes: channels of each level.
        bits: of a code.
    """

    def __init__(self, prefixes: Sequence[int], bits: int) -> None:
        super().__init__(prefixes[-1], bits)
        self.prefixes = tuple(prefixes)

    def extra_repr(self) -> str:
        """What a checkpoint is told apart by."""
        return f"{super().extra_repr()}, prefixes={self.prefixes}"

    def forward(self, z: torch.Tensor, level: int) -> tuple[torch.Tensor, None]:
        """The latent as it arrives; see `Coding`."""
        values, _ = super().forward(z, level)
        sent = torch.arange(values.shape[1], device=z.device) < self.prefixes[level]
        return values * sent.view(-1, *(1 for _ in z.shape[2:])), None


class SlimStudent(Student):
    """A student of several levels, trained by the sandwich rule."""

    def __init__(self, encoder: nn.Module, coding: PrefixCoding, decoder: nn.Module, tail: Chain) -> None:
        super().__init__(encoder, coding, with_levels(decoder, len(coding.prefixes)), tail)
        self.levels = len(coding.prefixes)

    def draw(self, generator: torch.Generator) -> Sequence[int]:
        """The highest level, the lowest, and one between."""
        top = self.levels - 1
        if top < 2:
            return range(top, -1, -1)
        return top, 0, int(torch.randint(1, top, (), generator=generator))

    def decoded(self, values: torch.Tensor, level: int) -> torch.Tensor:
        """See `Student.decoded`."""
        cut: torch.Tensor = self.decoder(values, level)
        return cut


class Slimmable(LatentCodec):
    """Several levels of one latent.

    Args:
        prefixes: channels of each level.
        caps: most bytes a row of each level, measured on training rows; an input that would take more is sent
            at the next level below, so that no unlikely input, nor one made for it, costs what it likes. The
            lowest level has no other cap than its packed size. None for packed sizes alone.
    """

    name: ClassVar[str] = "slimmable"
    options: ClassVar[type | None] = SlimmableOptions

    def __init__(
        self,
        reads: Sequence[TensorSpec],
        gives: Sequence[TensorSpec] | None = None,
        *,
        prefixes: Sequence[int],
        caps: Sequence[int] | None = None,
        **made: Any,
    ) -> None:
        super().__init__(reads, gives, **made)
        self._caps = None if caps is None else tuple(caps)
        self._groups = ChannelGroups(self._tables, self._latent.positions, prefixes)
        self._prefixes = tuple(prefixes)

    @property
    def levels(self) -> tuple[str, ...]:
        """Channels and bits of each."""
        bits = int(self._uniform.steps.max()).bit_length()
        return tuple(f"{channels}x{bits}bit" for channels in self._prefixes)

    @property
    def unpacked_specs(self) -> tuple[TensorSpec, ...]:
        """The latent, zeros in channels that were not sent, and the level of each row."""
        return self.decoder_specs(self._latent)

    @classmethod
    def decoder_specs(cls, latent: Latent) -> tuple[TensorSpec, ...]:
        """The same."""
        return latent.spec, TensorSpec((1,), "int64", 0)

    def max_body(self, level: int, rows: int) -> int:
        """All channels of the level packed, and the lengths of their groups; or the cap of the level."""
        packed = self._groups.max_bytes(level, rows)
        return packed if self._caps is None or not level else min(packed, self._caps[level] * rows)

    def lower(self, payload: Payload, level: int) -> Payload:
        """What `encode` would have made for a lower level, cut off from a payload; no network runs.

        As there, a body over that level's cap is cut down to the next one below.

        Raises:
            CodecError: the payload is damaged or another codec's, or of a lower level than that.
        """
        self._check_level(level)
        now, rows, body = self._opened(payload, MAX_ROWS)
        if level > now:
            raise CodecError(f"a payload of level {now} holds no level {level}; encode the input again")
        found = self._groups.beginning(body, now, rows, level)
        while level and len(found) > self.max_body(level, rows):
            level -= 1
            found = self._groups.beginning(body, now, rows, level)
        return self._sealed(level, rows, bytes(found))

    def _encode(self, tensors: Tensors, level: int, rows: int) -> bytes:
        return self._groups.encode(self.codes(tensors), level)

    def _decode(self, body: memoryview, level: int, rows: int) -> Tensors:
        values = self._uniform.values(self._groups.decode(body, level, rows))
        latent = torch.zeros(rows, self._latent.channels, self._latent.positions)
        latent[:, : values.shape[1]] = torch.from_numpy(values)
        return latent.view(self._latent.spec.shape_at(rows)), torch.full((rows,), level)

    def _settings(self) -> dict[str, Any]:
        caps = {} if self._caps is None else {"caps": list(self._caps)}
        return {"prefixes": list(self._prefixes), **caps}

    @classmethod
    def _read_settings(cls, config: dict[str, Any]) -> dict[str, Any]:
        prefixes = config.get("prefixes")
        if not isinstance(prefixes, list) or not all(_whole(n, 1, 4096) for n in prefixes):
            raise CodecError(f"the saved state of '{cls.name}' lacks the channels of its levels")
        caps = config.get("caps")
        if caps is None:
            return {"prefixes": prefixes}
        if (
            not isinstance(caps, list)
            or len(caps) != len(prefixes)
            or not all(_whole(n, 1, 1 << 24) for n in caps)
        ):
            raise CodecError(f"the saved state of '{cls.name}' has caps that are none")
        return {"prefixes": prefixes, "caps": caps}

    # Out of training ------------------------------------------------------------------------------

    @classmethod
    def answering(cls, student: Student) -> nn.Module:
        """The network of the cloud: latents and the level of each row to the model's flat output."""
        return Answering(by_row(student.decoder), student.tail)

    def _capped(self, task: Task, teacher: Teacher) -> Self:
        """The same with caps: what the longest of some training rows took, and a quarter more."""
        rows = task.train.first(CAPPED_ROWS).batches(1)
        codes = [self.codes((teacher.reads(row.inputs),)) for row in rows]
        longest = [max(len(self._groups.encode(one, i)) for one in codes) for i in range(len(self._prefixes))]
        state = self.state()
        config = state.config | {"caps": [math.ceil(SPARE * n) for n in longest]}
        return self.from_state(replace(state, config=config), self.read_specs, self.give_specs)

    @classmethod
    def check(cls, reads: Sequence[TensorSpec], cut: Sequence[TensorSpec], **options: Any) -> None:
        """See `LearnedCodec.check`. Options: `SlimmableOptions`."""
        SlimmableOptions.of(options).latent(reads, cut)

    @classmethod
    def train(
        cls, task: Task, schedule: Schedule, **options: Any
    ) -> tuple[Self, tuple[float, ...], tuple[float, ...], int]:
        """Train one; see `LearnedCodec.train`. Options: `SlimmableOptions`."""
        asked = SlimmableOptions.of(options)
        latent, stride = asked.latent(task.reads, task.cut)
        prefixes = asked.prefixes(latent)
        if asked.only is not None:
            prefixes = prefixes[asked.only : asked.only + 1]
            latent = replace(latent, channels=prefixes[0])
        torch.manual_seed(schedule.seed)
        student = SlimStudent(
            encoder_for(task.reads[0], latent, stride, asked.width_for(task), asked.blocks),
            coding := PrefixCoding(prefixes, asked.bits),
            decoder_for(latent, task.cut[0], asked.decoder_blocks, asked.decoder_width_for(task)),
            chain_of(task),
        )
        teacher = Teacher(task)
        epochs = train(student, teacher, task, schedule, DISTIL_THEN_TUNE)
        codec = cls.made(task, teacher, student, latent, coding.uniform(), prefixes=prefixes)._capped(
            task, teacher
        )
        return codec, *codec.measured(teacher, task), epochs
