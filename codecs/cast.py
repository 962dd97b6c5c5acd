"""Codecs that change at most the number format: `raw` and `fp16`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
import torch

from splitedge.codec import Codec, CodecState, Tensors, TensorSpec
from splitedge.codecs.layout import Layout, Reader, bytes_of, read_bytes, write_bytes
from splitedge.codecs.lossless import Zstd
from splitedge.codecs.states import check_config, config_of
from splitedge.errors import CodecError


class Raw(Codec):
    """The tensors' bytes, one after the other, little-endian, nothing else.

    Error bound: 0; every bit comes back, NaN payloads included.
    """

    name: ClassVar[str] = "raw"
    version: ClassVar[int] = 1

    def __init__(self, reads: Sequence[TensorSpec], gives: Sequence[TensorSpec] | None = None) -> None:
        super().__init__(reads, gives)
        _same_specs(self)
        self._layouts = tuple(map(Layout, self.read_specs))

    @property
    def levels(self) -> tuple[str, ...]:
        return (self.name,)

    def state(self) -> CodecState:
        return CodecState(config_of(self.name, self.version, self.read_specs))

    @classmethod
    def from_state(
        cls, state: CodecState, reads: Sequence[TensorSpec], gives: Sequence[TensorSpec] | None = None
    ) -> Self:
        check_config(state, cls.name, cls.version, reads)
        return cls(reads, gives)

    def max_body(self, level: int, rows: int) -> int:
        return sum(spec.nbytes(rows) for spec in self.read_specs)

    def _encode(self, tensors: Tensors, level: int, rows: int) -> bytes:
        return b"".join(write_bytes(lay, t).data for lay, t in zip(self._layouts, tensors, strict=True))

    def _decode(self, body: memoryview, level: int, rows: int) -> Tensors:
        reader = Reader(body)
        out = tuple(
            read_bytes(lay, reader.take(lay.spec.nbytes(rows), str(lay.spec)), rows) for lay in self._layouts
        )
        reader.close()
        return out


_WIDE = 2  # flag bit: the floats are bfloat16, for lack of range in float16
_BLOCK = 1 << 16


class Fp16(Raw):
    """Floats wider than 16 bits as IEEE half precision, zstd behind them where it helps.

    Error bound: 2**-11 of the value or 2**-25, whichever is more. When a finite value of the payload
    is beyond the range of float16 (65504), all its floats are sent as bfloat16 instead: 2**-8 of the
    value. Infinities and NaN stay what they are. Integers, bools and 16-bit floats come back exactly.

    Raises (encode):
        CodecError: a finite value is beyond bfloat16 too.
    """

    name: ClassVar[str] = "fp16"

    def __init__(self, reads: Sequence[TensorSpec], gives: Sequence[TensorSpec] | None = None) -> None:
        super().__init__(reads, gives)
        self._zstd = Zstd()
        self._narrow = tuple(lay.dtype in (torch.float32, torch.float64) for lay in self._layouts)

    def max_body(self, level: int, rows: int) -> int:
        return 1 + self._content(rows)

    def _content(self, rows: int) -> int:
        return sum(map(self._section, self._layouts, self._narrow, [rows] * len(self._layouts)))

    @staticmethod
    def _section(layout: Layout, narrow: bool, rows: int) -> int:
        return layout.values(rows) * 2 if narrow else layout.spec.nbytes(rows)

    def _encode(self, tensors: Tensors, level: int, rows: int) -> bytes:
        front = [lay.front(t) for lay, t in zip(self._layouts, tensors, strict=True)]
        flags, sent = 0, self._cast(front, torch.float16)
        if sent is None:
            flags, sent = _WIDE, self._cast(front, torch.bfloat16)
        if sent is None:
            raise CodecError("codec 'fp16': a finite value is too large even for bfloat16; use 'raw'")
        return self._zstd.pack(b"".join(bytes_of(t).data for t in sent), flags)

    def _cast(self, tensors: list[torch.Tensor], dtype: torch.dtype) -> list[torch.Tensor] | None:
        """The tensors with the wide ones cast; None when a finite value became infinite."""
        out = []
        for tensor, narrow in zip(tensors, self._narrow, strict=True):
            cast = tensor.to(dtype) if narrow else tensor
            if narrow:
                over = cast.isinf()
                if over.any() and not torch.equal(over, tensor.isinf()):
                    return None
            out.append(cast)
        return out

    def _decode(self, body: memoryview, level: int, rows: int) -> Tensors:
        content, flags = self._zstd.unpack(body, self._content(rows))
        if flags & ~_WIDE:
            raise CodecError(f"codec 'fp16': unknown flags {flags:#x}")
        wire = torch.bfloat16 if flags & _WIDE else torch.float16
        reader = Reader(content)
        out = []
        for layout, narrow in zip(self._layouts, self._narrow, strict=True):
            raw = reader.take(self._section(layout, narrow, rows), str(layout.spec))
            out.append(_widen(layout, raw, rows, wire) if narrow else read_bytes(layout, raw, rows))
        reader.close()
        return tuple(out)


def _widen(layout: Layout, raw: memoryview, rows: int, wire: torch.dtype) -> torch.Tensor:
    tensor, halves = layout.new(rows), np.frombuffer(raw, np.int16)
    flat = tensor.view(-1)
    for i in range(0, halves.size, _BLOCK):
        # A copy because torch takes no read-only memory; block by block to keep the peak low.
        flat[i : i + _BLOCK] = torch.from_numpy(halves[i : i + _BLOCK].copy()).view(wire)
    return layout.back(tensor)


def _same_specs(codec: Codec) -> None:
    if codec.give_specs != codec.read_specs:
        raise CodecError(f"codec '{codec.name}' gives what it reads; the two lists of specs differ")
