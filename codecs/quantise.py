"""`int8` and `int4`: per-channel affine quantisation, static ranges once calibrated, zstd where it helps.

Body, behind the flag byte of `lossless`: the tensors one after the other. A float tensor is, when
calibrated, one bit an entry (does it bring its own ranges), the ranges of those that do (float32 lo,
then hi), then all codes; when not, every entry brings its own and there are no bits. Any other tensor
is its bytes. All lengths follow from specs, rows and bits.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from splitedge.codec import Codec, CodecState, Tensors, TensorSpec
from splitedge.codecs.affine import F32, U8, Affine, pack4, ranges_of, unpack4
from splitedge.codecs.layout import Layout, Reader, read_bytes, write_bytes
from splitedge.codecs.lossless import Zstd
from splitedge.codecs.states import check_config, config_of
from splitedge.errors import CodecError

Bools = npt.NDArray[np.bool_]

# An entry that leaves the calibrated ranges by more than this part of the widest brings its own.
CLIP_LIMIT = 1.0 / 16.0


class _Table:
    """Static ranges of one tensor, float32 of shape (channels,), and how far a value may be clipped."""

    def __init__(self, lo: F32, hi: F32, steps: int) -> None:
        self.lo, self.hi = lo, hi
        self.affine = Affine(lo[None], hi[None], steps)
        slack = CLIP_LIMIT * float((hi.astype(np.float64) - lo).max())
        self.least = lo.astype(np.float64) - slack
        self.most = hi.astype(np.float64) + slack


class Int8(Codec):
    """Float tensors as 8-bit codes between the least and greatest value of each channel.

    The channel is the first dimension behind the batch. Not calibrated, each row carries the ranges it
    needs (one for the row where channels have fewer than 32 values). After `calibrate` ranges are part
    of the codec; a row that leaves them by more than 1/16 of the tensor's widest range carries its own.

    Error bound: half a step, (hi - lo) / 255 / 2 of the value's range, plus at most 1/16 of the widest
    calibrated range for a value outside its own; the rounding of the tensor's dtype comes on top.
    Constant channels, integers and bools come back exactly.

    Raises (encode, calibrate):
        CodecError: a float tensor holds NaN or infinite values.
    """

    name: ClassVar[str] = "int8"
    version: ClassVar[int] = 1
    bits: ClassVar[int] = 8

    def __init__(self, reads: Sequence[TensorSpec], gives: Sequence[TensorSpec] | None = None) -> None:
        super().__init__(reads, gives)
        if self.give_specs != self.read_specs:
            raise CodecError(f"codec '{self.name}' gives what it reads; the two lists of specs differ")
        self._layouts = tuple(map(Layout, self.read_specs))
        self._lossy = tuple(lay.dtype.is_floating_point and lay.values(1) > 0 for lay in self._layouts)
        self._tables: dict[int, _Table] = {}
        self._zstd = Zstd()
        self._steps = (1 << self.bits) - 1

    @property
    def levels(self) -> tuple[str, ...]:
        return (self.name,)

    # State ----------------------------------------------------------------------------------------

    def calibrate(self, batches: Iterable[Tensors]) -> None:
        """Take each channel's least and greatest value over sample batches as its static range.

        Raises:
            CodecError: no batches, or one that does not fit the specs or holds NaN or infinity.
        """
        found: dict[int, tuple[F32, F32]] = {}
        seen = False
        for batch in batches:
            rows = self.rows_of(batch)
            seen = True
            for k, tensor in enumerate(batch):
                if not self._lossy[k]:
                    continue
                lo, hi = ranges_of(self._values(k, tensor, rows), f"codec '{self.name}': tensor {k}")
                lo, hi = lo.min(axis=0), hi.max(axis=0)
                old = found.get(k)
                found[k] = (lo, hi) if old is None else (np.minimum(lo, old[0]), np.maximum(hi, old[1]))
        if not seen:
            raise CodecError(f"codec '{self.name}': no batches to calibrate on")
        self._tables = {k: _Table(lo, hi, self._steps) for k, (lo, hi) in found.items()}
        self._id = None

    def state(self) -> CodecState:
        config = config_of(self.name, self.version, self.read_specs)
        tensors = {}
        for k, table in self._tables.items():
            tensors[f"lo{k}"] = torch.from_numpy(table.lo.copy())
            tensors[f"hi{k}"] = torch.from_numpy(table.hi.copy())
        return CodecState(config | {"calibrated": bool(tensors)}, tensors)

    @classmethod
    def from_state(
        cls, state: CodecState, reads: Sequence[TensorSpec], gives: Sequence[TensorSpec] | None = None
    ) -> Self:
        check_config(state, cls.name, cls.version, reads)
        codec = cls(reads, gives)
        if not state.config.get("calibrated"):
            return codec
        wanted = {f"{end}{k}" for k, lossy in enumerate(codec._lossy) if lossy for end in ("lo", "hi")}
        if set(state.tensors) != wanted:
            raise CodecError(
                f"codec '{cls.name}': the state holds {sorted(state.tensors)}, not {sorted(wanted)}"
            )
        for k, layout in enumerate(codec._layouts):
            if codec._lossy[k]:
                codec._tables[k] = _table_from(state, k, layout.channels, codec)
        return codec

    # Encode ---------------------------------------------------------------------------------------

    def max_body(self, level: int, rows: int) -> int:
        return 1 + self._max_content(rows)

    def _max_content(self, rows: int) -> int:
        return sum(self._max_section(k, rows) for k in range(len(self._layouts)))

    def _max_section(self, k: int, rows: int) -> int:
        layout = self._layouts[k]
        if not self._lossy[k]:
            return layout.spec.nbytes(rows)
        entries = layout.entries_at(rows)
        bits = _bitmap_bytes(entries) if k in self._tables else 0
        return bits + entries * layout.ranges * 8 + self._code_bytes(layout.values(rows))

    def _code_bytes(self, n: int) -> int:
        return (n * self.bits + 7) // 8

    def _values(self, k: int, tensor: torch.Tensor, rows: int) -> F32:
        """The tensor as float32 of shape (entries, channels, inner)."""
        layout = self._layouts[k]
        front = layout.front(tensor)
        if front.dtype is not torch.float32:
            front = front.float()
        values: F32 = front.numpy().reshape(layout.entries_at(rows), layout.channels, layout.inner)
        return values

    def _encode(self, tensors: Tensors, level: int, rows: int) -> bytes:
        parts: list[bytes | memoryview] = []
        for k, tensor in enumerate(tensors):
            if self._lossy[k]:
                parts += self._encode_tensor(k, self._values(k, tensor, rows))
            else:
                parts.append(write_bytes(self._layouts[k], tensor).data)
        return self._zstd.pack(b"".join(parts))

    def _encode_tensor(self, k: int, values: F32) -> list[bytes | memoryview]:
        layout, table = self._layouts[k], self._tables.get(k)
        lo, hi = ranges_of(values, f"codec '{self.name}': tensor {k}")
        parts: list[bytes | memoryview] = []
        if table is None:
            own = np.ones(len(values), bool)
        else:
            own = np.any((lo < table.least) | (hi > table.most), axis=1)
            parts.append(np.packbits(own, bitorder="little").tobytes())
        if own.any():
            if layout.ranges == 1:
                lo, hi = lo.min(axis=1, keepdims=True), hi.max(axis=1, keepdims=True)
            lo, hi = lo[own], hi[own]
            parts += [lo.tobytes(), hi.tobytes()]
        codes = np.empty(values.shape, np.uint8)
        for at, affine in self._runs(k, own, lo, hi):
            affine.codes(values[at], codes[at])
        parts.append((pack4(codes) if self.bits == 4 else codes.reshape(-1)).data)
        return parts

    def _runs(self, k: int, own: Bools, lo: F32, hi: F32) -> Iterator[tuple[slice, Affine]]:
        """Runs of neighbouring entries that all use the table, or all their own ranges (lo, hi)."""
        table = self._tables.get(k)
        if table is not None and not own.any():
            yield slice(None), table.affine
            return
        ends = [*(np.flatnonzero(own[1:] != own[:-1]) + 1).tolist(), own.size]
        start = used = 0
        for end in ends:
            if table is not None and not own[start]:
                yield slice(start, end), table.affine
            else:
                next_ = used + end - start
                yield slice(start, end), Affine(lo[used:next_], hi[used:next_], self._steps)
                used = next_
            start = end

    # Decode ---------------------------------------------------------------------------------------

    def _decode(self, body: memoryview, level: int, rows: int) -> Tensors:
        content, flags = self._zstd.unpack(body, self._max_content(rows))
        if flags:
            raise CodecError(f"codec '{self.name}': unknown flags {flags:#x}")
        reader = Reader(content)
        out = []
        for k, layout in enumerate(self._layouts):
            if self._lossy[k]:
                out.append(self._decode_tensor(k, reader, rows))
            else:
                out.append(read_bytes(layout, reader.take(layout.spec.nbytes(rows), str(layout.spec)), rows))
        reader.close()
        return tuple(out)

    def _decode_tensor(self, k: int, reader: Reader, rows: int) -> torch.Tensor:
        layout = self._layouts[k]
        entries, n = layout.entries_at(rows), layout.values(rows)
        own = np.ones(entries, bool)
        if k in self._tables:
            own = _read_bitmap(reader.take(_bitmap_bytes(entries), "range bits"), entries)
        lo, hi = _read_ranges(reader, int(own.sum()), layout.ranges)
        packed = np.frombuffer(reader.take(self._code_bytes(n), f"codes of {layout.spec}"), np.uint8)
        codes: U8 = unpack4(packed, n) if self.bits == 4 else packed
        tensor = layout.new(rows)
        shape = (entries, layout.channels, layout.inner)
        grouped, values = codes.reshape(shape), tensor.view(shape)
        for at, affine in self._runs(k, own, lo, hi):
            affine.values(grouped[at], values[at])
        return layout.back(tensor)


class Int4(Int8):
    """As `int8` with 4-bit codes, two to a byte.

    Error bound: half a step, (hi - lo) / 15 / 2 of the value's range, and the rest as `int8` says.
    """

    name: ClassVar[str] = "int4"
    bits: ClassVar[int] = 4


def _bitmap_bytes(entries: int) -> int:
    return (entries + 7) // 8


def _read_bitmap(raw: memoryview, entries: int) -> Bools:
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little")
    if bits[entries:].any():
        raise CodecError("range bits are set for rows that are not there")
    return bits[:entries].astype(bool)


def _read_ranges(reader: Reader, entries: int, ranges: int) -> tuple[F32, F32]:
    size = entries * ranges * 4
    lo = np.frombuffer(reader.take(size, "ranges"), "<f4").reshape(entries, ranges)
    hi = np.frombuffer(reader.take(size, "ranges"), "<f4").reshape(entries, ranges)
    if not (np.isfinite(lo).all() and np.isfinite(hi).all() and (lo <= hi).all()):
        raise CodecError("a row's own range is not finite or upside down")
    return lo, hi


def _table_from(state: CodecState, k: int, channels: int, codec: Int8) -> _Table:
    lo, hi = state.tensors[f"lo{k}"], state.tensors[f"hi{k}"]
    for end in (lo, hi):
        if end.dtype is not torch.float32 or tuple(end.shape) != (channels,) or not end.isfinite().all():
            raise CodecError(f"'{codec.name}': saved ranges of tensor {k} are not {channels} finite floats")
    if not (lo <= hi).all():
        raise CodecError(f"'{codec.name}': a saved range of tensor {k} is upside down")
    return _Table(lo.cpu().numpy().copy(), hi.cpu().numpy().copy(), codec._steps)
