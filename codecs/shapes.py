"""Sizes of a learned codec: what a user may say of them, and what they become for given tensors."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Self, TypeVar

from splitedge.codec import TensorSpec
from splitedge.codecs.macs import macs
from splitedge.codecs.nets import (
    WIDTHS,
    Latent,
    cut_spec,
    decoder_for,
    decoder_widths,
    default_stride,
    encoder_for,
    latent_of,
    read_spec,
)
from splitedge.errors import CodecError
from splitedge.learning import Task

STRIDES = (1, 2, 4, 8, 16)
#: The encoder takes at most this part of the whole model's multiply-accumulates where nobody names a width.
SHARE = 0.05
#: Below so many multiply-accumulates there is little left to save: a Raspberry Pi does them in a millisecond.
FEW = 1_000_000
#: The decoder takes at most as many as the whole model, or so many.
FEW_IN_CLOUD = 5_000_000

Options = TypeVar("Options")


def read_options(kind: type[Options], options: Mapping[str, Any]) -> Options:
    """A dataclass of options from what a user said.

    Raises:
        CodecError: no such option, or a value out of range.
    """
    known = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f" Did you mean '{near[0]}'?" if near else ""
            raise CodecError(f"no option '{name}'.{hint} (there are {', '.join(known)})")
    return kind(**options)


@dataclass(frozen=True, slots=True)
class Sizes:
    """Options that all latent codecs share.

    Attributes:
        channels: of the latent; None for about 256 values in all, at most half as many as are read.
        stride: how much smaller the latent's grid is than what is read, a power of two; None by its size.
        width: channels of the encoder's last convolutions; None for the widest whose encoder takes at most
            5% of the model's multiply-accumulates (or a million, if that is more; extra tails left out), and
            never more than the layers it replaces.
        blocks, decoder_blocks: residual blocks on the latent's grid, in encoder and decoder.
        decoder_width: channels of the decoder's convolutions; None for 96, or the cut's up to 256, or
            less for a small model.
    """

    channels: int | None = None
    stride: int | None = None
    width: int | None = None
    blocks: int = 1
    decoder_blocks: int = 3
    decoder_width: int | None = None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> Self:
        """From a user's options.

        Raises:
            CodecError: no such option, or a value out of range.
        """
        return read_options(cls, options)

    def __post_init__(self) -> None:
        limits = {"channels": (1, 1024), "width": (8, 1024), "blocks": (0, 16), "decoder_blocks": (0, 64)}
        limits["decoder_width"] = (8, 1024)
        for name, (least, most) in limits.items():
            value = getattr(self, name)
            if value is None and name in ("channels", "width", "decoder_width"):
                continue
            if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
                raise CodecError(f"{name} is a whole number from {least} to {most}, got {value}")
        if self.stride is not None and self.stride not in STRIDES:
            raise CodecError(f"stride is 1, 2, 4, 8 or 16, got {self.stride}")

    def latent(self, reads: Sequence[TensorSpec], cut: Sequence[TensorSpec]) -> tuple[Latent, int]:
        """The latent for these tensors, and the stride to it.

        Raises:
            CodecError: no bottleneck can stand there.
        """
        source = read_spec(reads)
        cut_spec(cut)
        stride = default_stride(source) if self.stride is None else self.stride
        return latent_of(source, stride, self.channels), stride

    def width_for(self, task: Task) -> int:
        """The encoder's width, as asked for or by the model's size."""
        if self.width is not None:
            return self.width
        latent, stride = self.latent(task.reads, task.cut)
        head = macs(task.head, task.reads)
        limit = max(SHARE * (head + macs(task.tail_of(), task.cut)), min(head, FEW))
        for width in WIDTHS:
            encoder = encoder_for(task.reads[0], latent, stride, width, self.blocks).eval()
            if macs([encoder], task.reads) <= limit:
                return width
        return WIDTHS[-1]

    def decoder_width_for(self, task: Task) -> int:
        """As asked for; else what `decoder_for` takes, or less for a small model, so that what
        is saved on the edge is not spent many times over in the cloud.
        """
        if self.decoder_width is not None:
            return self.decoder_width
        latent, _ = self.latent(task.reads, task.cut)
        limit = max(macs(task.head, task.reads) + macs(task.tail_of(), task.cut), FEW_IN_CLOUD)
        widths = decoder_widths(latent, task.cut[0])
        for width in widths:
            decoder = decoder_for(latent, task.cut[0], self.decoder_blocks, width).eval()
            if macs([decoder], (latent.spec,)) <= limit:
                return width
        return widths[-1]
