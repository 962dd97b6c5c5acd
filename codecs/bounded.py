"""`bounded`: every value within a stated absolute bound, after the model of SZ (Tao et al., IPDPS 2017).

A value becomes a whole number of steps of twice the bound; where neighbours are alike, the difference to
the one before it in its channel is kept instead; zstd codes these integers, their bytes in planes.

Body, behind the flag byte of `lossless`: the tensors one after the other. A float tensor is a byte of
mode (bits 0-1: bytes of an integer as a power of two; bit 2: differences; 255: the values as they are)
and its integers, signed and little-endian, plane by plane; any other tensor is its bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch

from splitedge.codec import Codec, CodecState, Tensors, TensorSpec
from splitedge.codecs.layout import Layout, Reader, read_bytes, write_bytes
from splitedge.codecs.lossless import Zstd
from splitedge.codecs.states import check_config, config_of
from splitedge.errors import CodecError

F64 = npt.NDArray[np.float64]
I32 = npt.NDArray[np.int32]
Whole = npt.NDArray[np.signedinteger[Any]]

BOUNDS = (1 / 16, 1 / 64, 1 / 256, 1 / 1024)
_EXACT, _DIFFERENCES = 255, 4
_MOST = 2**31 - 1
_BLOCK = 1 << 11  # values worked on at once: their float64 stays out of the peak


class Bounded(Codec):
    """Float tensors with every value within an absolute bound; levels are bounds, the coarsest first.

    Error bound of a level: its part of the tensor's range over the calibration batches, an absolute
    number for each tensor (`bound`), exact to the last bit, the tensor's own rounding included. Before
    `calibrate` ranges count as 1. A tensor for which integers do not hold it (a value of 2**31 steps, a
    dtype too coarse for the bound, a constant) is sent as it is. Integers and bools come back exactly.

    Args:
        bounds: parts of the range, each above 0 and at most 1, descending.

    Raises (encode, calibrate):
        CodecError: a float tensor holds NaN or infinite values.
    """

    name: ClassVar[str] = "bounded"
    version: ClassVar[int] = 1

    def __init__(
        self,
        reads: Sequence[TensorSpec],
        gives: Sequence[TensorSpec] | None = None,
        *,
        bounds: Sequence[float] = BOUNDS,
    ) -> None:
        super().__init__(reads, gives)
        if self.give_specs != self.read_specs:
            raise CodecError("codec 'bounded' gives what it reads; the two lists of specs differ")
        self.bounds = tuple(map(float, bounds))
        falling = all(a > b for a, b in zip(self.bounds, self.bounds[1:], strict=False))
        if not self.bounds or not falling or not all(0.0 < b <= 1.0 for b in self.bounds):
            raise CodecError(f"bounds are parts of the range from 1 down to above 0, got {self.bounds}")
        self._layouts = tuple(map(Layout, self.read_specs))
        self._lossy = tuple(lay.dtype.is_floating_point and lay.values(1) > 0 for lay in self._layouts)
        self._spans: dict[int, float] = {}
        self._zstd = Zstd(level=3)

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(f"{bound:.3g}" for bound in self.bounds)

    def bound(self, level: int, tensor: int = 0) -> float:
        """The greatest error of a value of one tensor, in its own unit."""
        self._check_level(level)
        return self.bounds[level] * self._spans.get(tensor, 1.0)

    # State ----------------------------------------------------------------------------------------

    def calibrate(self, batches: Iterable[Tensors]) -> None:
        """Take each tensor's range, greatest less least value, over sample batches.

        Raises:
            CodecError: no batches, or one that does not fit the specs or holds NaN or infinity.
        """
        ends: dict[int, tuple[float, float]] = {}
        seen = False
        for batch in batches:
            self.rows_of(batch)
            seen = True
            for k, tensor in enumerate(batch):
                if self._lossy[k]:
                    values = self._values(k, tensor)
                    lo, hi = ends.get(k, (math.inf, -math.inf))
                    ends[k] = min(lo, float(values.min())), max(hi, float(values.max()))
        if not seen:
            raise CodecError("codec 'bounded': no batches to calibrate on")
        self._spans = {k: min(hi - lo, np.finfo(np.float64).max) for k, (lo, hi) in ends.items()}
        self._id = None

    def state(self) -> CodecState:
        config = config_of(self.name, self.version, self.read_specs)
        more = {"bounds": list(self.bounds), "calibrated": bool(self._spans)}
        spans = {f"span{k}": torch.tensor([s], dtype=torch.float64) for k, s in self._spans.items()}
        return CodecState(config | more, spans)

    @classmethod
    def from_state(
        cls, state: CodecState, reads: Sequence[TensorSpec], gives: Sequence[TensorSpec] | None = None
    ) -> Self:
        check_config(state, cls.name, cls.version, reads)
        bounds = state.config.get("bounds")
        if not isinstance(bounds, list) or not all(isinstance(b, float | int) for b in bounds):
            raise CodecError(f"codec 'bounded': saved bounds are not numbers: {bounds!r}")
        codec = cls(reads, gives, bounds=bounds)
        lossy = [k for k, is_lossy in enumerate(codec._lossy) if is_lossy]
        wanted = {f"span{k}" for k in lossy} if state.config.get("calibrated") else set()
        if set(state.tensors) != wanted:
            raise CodecError(
                f"codec 'bounded': the state holds {sorted(state.tensors)}, not {sorted(wanted)}"
            )
        for k in lossy if wanted else ():
            span = state.tensors[f"span{k}"]
            if span.dtype is not torch.float64 or span.numel() != 1 or not 0.0 <= span.item() < math.inf:
                raise CodecError(f"codec 'bounded': the saved range of tensor {k} is not a finite number")
            codec._spans[k] = float(span.item())
        return codec

    # Encode ---------------------------------------------------------------------------------------

    def max_body(self, level: int, rows: int) -> int:
        return 1 + self._max_content(rows)

    def _max_content(self, rows: int) -> int:
        return sum(
            lay.spec.nbytes(rows) + lossy for lay, lossy in zip(self._layouts, self._lossy, strict=True)
        )

    def _values(self, k: int, tensor: torch.Tensor) -> F64:
        """The tensor in float64, of shape (entries, channels, inner).

        Raises:
            CodecError: a value is NaN or infinite.
        """
        layout = self._layouts[k]
        values: F64 = layout.front(tensor).double().numpy().reshape(-1, layout.channels, layout.inner)
        if not np.isfinite(values).all():
            raise CodecError(f"codec 'bounded': tensor {k} holds NaN or infinity; no bound can be kept")
        return values

    def _encode(self, tensors: Tensors, level: int, rows: int) -> bytes:
        parts: list[bytes | memoryview] = []
        for k, tensor in enumerate(tensors):
            if self._lossy[k]:
                found = self._integers(k, self._values(k, tensor), level, rows)
                if found is not None:
                    parts += _packed(*found)
                    continue
                parts.append(bytes((_EXACT,)))
            parts.append(write_bytes(self._layouts[k], tensor).data)
        return self._zstd.pack(b"".join(parts))

    def _integers(self, k: int, values: F64, level: int, rows: int) -> tuple[I32, int] | None:
        """The integers to send and their mode; None where they would not do."""
        bound = self.bound(level, k)
        if not 0.0 < 2.0 * bound < math.inf:
            return None
        with np.errstate(over="ignore"):
            steps = np.rint(values / (2.0 * bound))
        if not np.abs(steps).max() <= _MOST:
            return None
        whole = steps.astype(np.int32)
        back = self._layouts[k].new(rows)
        _write(whole, 2.0 * bound, back)
        if (np.abs(back.double().numpy().reshape(values.shape) - values) > bound).any():
            return None
        steps[..., 1:] -= steps[..., :-1].copy()
        differ = bool(np.abs(steps).sum() < np.abs(whole.astype(np.float64)).sum())
        if differ and np.abs(steps).max() <= _MOST:
            whole = steps.astype(np.int32)
        else:
            differ = False
        power = _power(whole)
        if 1 << power > self._layouts[k].dtype.itemsize:
            return None
        return whole, power | (_DIFFERENCES if differ else 0)

    # Decode ---------------------------------------------------------------------------------------

    def _decode(self, body: memoryview, level: int, rows: int) -> Tensors:
        content, flags = self._zstd.unpack(body, self._max_content(rows))
        if flags:
            raise CodecError(f"codec 'bounded': unknown flags {flags:#x}")
        reader = Reader(content)
        out = []
        for k, layout in enumerate(self._layouts):
            mode = reader.take(1, "mode")[0] if self._lossy[k] else _EXACT
            if mode == _EXACT:
                out.append(read_bytes(layout, reader.take(layout.spec.nbytes(rows), str(layout.spec)), rows))
            else:
                out.append(self._decode_tensor(k, mode, reader, level, rows))
        reader.close()
        return tuple(out)

    def _decode_tensor(self, k: int, mode: int, reader: Reader, level: int, rows: int) -> torch.Tensor:
        layout, n, power = self._layouts[k], self._layouts[k].values(rows), mode & 3
        if mode & ~(_DIFFERENCES | 3) or power == 3:
            raise CodecError(f"codec 'bounded': unknown mode {mode:#x}")
        planes = np.frombuffer(reader.take(n << power, f"integers of {layout.spec}"), np.uint8)
        planes = planes.reshape(1 << power, n)
        tensor = layout.new(rows)
        flat, step = tensor.view(-1), 2.0 * self.bound(level, k)
        carried = np.zeros(1, np.int32)
        for start, end, length, first in _runs(n, layout.inner):
            whole = _unpacked(planes[:, start:end]).reshape(-1, length)
            if mode & _DIFFERENCES:
                whole = np.cumsum(whole, axis=-1, dtype=np.int32)
                if not first:
                    whole += carried
                carried = whole[-1, -1:].copy()
            _write(whole, step, flat[start:end])
        return layout.back(tensor)


def _runs(n: int, inner: int) -> Iterator[tuple[int, int, int, bool]]:
    """Runs of about `_BLOCK` of `n` values: start, end, values of a channel in it, at a channel's first?"""
    if inner <= _BLOCK:
        size = _BLOCK // inner * inner
        for start in range(0, n, size):
            yield start, min(start + size, n), inner, True
        return
    for channel in range(0, n, inner):
        for start in range(channel, channel + inner, _BLOCK):
            end = min(start + _BLOCK, channel + inner)
            yield start, end, end - start, start == channel


def _write(whole: Whole, step: float, into: torch.Tensor) -> None:
    """Values of integers into a contiguous tensor of any float type, a block at a time."""
    flat, numbers = into.view(-1), whole.reshape(-1)
    for at in range(0, numbers.size, _BLOCK):
        with np.errstate(over="ignore"):  # infinite then, and seen by the encoder
            values = np.multiply(numbers[at : at + _BLOCK], step, dtype=np.float64)
        flat[at : at + _BLOCK] = torch.from_numpy(values)


def _power(whole: I32) -> int:
    least, most = int(whole.min()), int(whole.max())
    return next(p for p in range(3) if -(1 << (8 << p) - 1) <= least and most < 1 << ((8 << p) - 1))


def _packed(whole: I32, mode: int) -> list[bytes | memoryview]:
    """The mode, then the integers: all lowest bytes first, then the next."""
    size = 1 << (mode & 3)
    planes = whole.astype(f"<i{size}").reshape(-1).view(np.uint8).reshape(-1, size)
    return [bytes((mode,)), planes.T.tobytes()]


def _unpacked(planes: npt.NDArray[np.uint8]) -> Whole:
    """Integers of their planes, (bytes, n)."""
    whole: Whole = np.ascontiguousarray(planes.T).reshape(-1).view(f"<i{len(planes)}")
    return whole
