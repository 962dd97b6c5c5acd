"""Affine quantisation: values to whole steps between a channel's least and greatest, and back.

Ranges are pairs (lo, hi) of float32. Ordinary ranges are worked in float32; those so wide or so narrow
that float32 would overflow or lose the step are worked in float64. Both sides choose by the same
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch

from splitedge.errors import CodecError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
Slices = tuple[slice, slice, slice]

_BLOCK = 1 << 16  # values worked on at once: their temporaries stay in the cache and out of the peak
_WIDEST, _NARROWEST = 1e37, 1e-30
_ALL = slice(None)


class Affine:
    """Codes 0..steps for values of shape (entries, channels, n), a range for each entry and channel.

    Args:
        lo, hi: least and greatest values, float32 of shape (entries or 1, channels or 1), finite,
            lo <= hi; a 1 stands for all.
        steps: the greatest code.
    """

    def __init__(self, lo: F32, hi: F32, steps: int) -> None:
        span = hi.astype(np.float64) - lo
        step = span / steps
        ordinary = (span == 0.0) | ((span < _WIDEST) & (span > _NARROWEST))
        kind = np.float32 if bool(ordinary.all()) else np.float64
        # A constant channel has no steps: every value gets code 0 and comes back as `lo`.
        inverse = np.divide(1.0, step, out=np.zeros_like(step), where=step > 0.0)
        self._lo = lo.astype(kind)[..., None]
        self._hi = hi.astype(kind)[..., None]
        self._step = step.astype(kind)[..., None]
        self._inverse = inverse.astype(kind)[..., None]
        self._steps = steps

    def codes(self, values: F32, out: U8) -> None:
        """Write the codes of `values` into `out`. Beyond its range a value gets the nearer end's code."""
        for at, of in self._blocks(values.shape):
            work = np.subtract(values[at], self._lo[of])
            work *= self._inverse[of]
            np.rint(work, out=work)
            np.clip(work, 0, self._steps, out=work)
            np.copyto(out[at], work, casting="unsafe")

    def values(self, codes: U8, out: torch.Tensor) -> None:
        """Write the values of `codes` into `out`, a float tensor of the same shape."""
        direct = out.numpy() if out.dtype is torch.float32 and self._lo.dtype == np.float32 else None
        for at, of in self._blocks(codes.shape):
            work = np.multiply(
                codes[at], self._step[of], dtype=self._step.dtype, out=None if direct is None else direct[at]
            )
            work += self._lo[of]
            np.minimum(work, self._hi[of], out=work)
            if direct is None:
                out[at].copy_(torch.from_numpy(work))

    def _blocks(self, shape: tuple[int, ...]) -> Iterator[tuple[Slices, Slices]]:
        """Slices of the values and of the ranges they need, `_BLOCK` values at a time."""
        entries, channels, n = shape
        many_entries, many_channels = self._lo.shape[0] > 1, self._lo.shape[1] > 1
        for e, c, i in _blocks(entries, channels, n):
            yield (e, c, i), (e if many_entries else _ALL, c if many_channels else _ALL, _ALL)


def _blocks(entries: int, channels: int, n: int) -> Iterator[Slices]:
    per_entry = channels * n
    if entries * per_entry <= _BLOCK:
        yield _ALL, _ALL, _ALL
        return
    e_step = max(_BLOCK // per_entry, 1)
    c_step = channels if per_entry <= _BLOCK else max(_BLOCK // n, 1)
    for e in range(0, entries, e_step):
        for c in range(0, channels, c_step):
            for i in range(0, n, _BLOCK):
                yield slice(e, e + e_step), slice(c, c + c_step), slice(i, i + _BLOCK)


def ranges_of(values: F32, what: str) -> tuple[F32, F32]:
    """Least and greatest value along the last axis.

    Raises:
        CodecError: a value is NaN or infinite.
    """
    lo, hi = values.min(axis=-1), values.max(axis=-1)
    if not (np.isfinite(lo).all() and np.isfinite(hi).all()):
        raise CodecError(f"{what} holds NaN, infinity or values beyond float32; it can not be quantised")
    return lo, hi


def pack4(codes: U8) -> U8:
    """Codes below 16, two to a byte, the first in the low half; an odd last one alone."""
    flat = codes.reshape(-1)
    packed = flat[0::2].copy()
    high = flat[1::2]
    packed[: high.size] |= high << 4
    return packed


def unpack4(packed: U8, n: int) -> U8:
    """`n` codes from `pack4`.

    Raises:
        CodecError: the unused half of an odd last byte is not zero.
    """
    if n % 2 and packed[-1] >> 4:
        raise CodecError("the padding behind an odd number of 4-bit codes is not zero")
    codes = np.empty(n, np.uint8)
    codes[0::2] = packed & 15
    codes[1::2] = packed[: n // 2] >> 4
    return codes
