"""Affine quantisation: values to whole steps between a channel's least and greatest, and back.

Ranges are pairs (lo, hi) of float32. Ordinary ranges are worked in float32; those so wide or so narrow
that float32 would overflow or lose the step are worked in float64. Both sides choose by the same
numbers.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt

from splitedge.errors import CodecError

F32 = npt.NDArray[np.float32]
F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]

_BLOCK = 1 << 16  # values worked on at once: their temporaries stay in the cache and out of the peak
_WIDEST, _NARROWEST = 1e37, 1e-30


class Affine:
    """Codes 0..steps for values of groups that each have a range.

    Args:
        lo, hi: least and greatest value of each group, float32 of shape (groups,), finite, lo <= hi.
        steps: the greatest code.
    """

    def __init__(self, lo: F32, hi: F32, steps: int) -> None:
        span = hi.astype(np.float64) - lo
        step = span / steps
        ordinary = (span == 0.0) | ((span < _WIDEST) & (span > _NARROWEST))
        kind = np.float32 if bool(ordinary.all()) else np.float64
        # A constant group has no steps: every value gets code 0 and comes back as `lo`.
        inverse = np.divide(1.0, step, out=np.zeros_like(step), where=step > 0.0)
        self._lo = lo.astype(kind)[:, None]
        self._hi = hi.astype(kind)[:, None]
        self._step = step.astype(kind)[:, None]
        self._inverse = inverse.astype(kind)[:, None]
        self._steps = steps

    def codes(self, values: F32) -> U8:
        """Codes of values of shape (groups, n). Values outside their range get the nearest end's code."""
        out = np.empty(values.shape, np.uint8)
        for g, i in _blocks(*values.shape):
            work = np.subtract(values[g, i], self._lo[g])
            work *= self._inverse[g]
            np.rint(work, out=work)
            np.clip(work, 0, self._steps, out=work)
            out[g, i] = work
        return out

    def values(self, codes: U8, out: npt.NDArray[np.floating]) -> None:
        """Write the values of codes of shape (groups, n) into `out` of the same shape."""
        for g, i in _blocks(*codes.shape):
            work = np.multiply(codes[g, i], self._step[g], dtype=self._step.dtype)
            work += self._lo[g]
            np.minimum(work, self._hi[g], out=work)
            out[g, i] = work


def _blocks(groups: int, n: int) -> Iterator[tuple[slice, slice]]:
    if groups * n <= _BLOCK:
        yield slice(None), slice(None)
        return
    high = max(_BLOCK // n, 1)
    for g in range(0, groups, high):
        for i in range(0, n, _BLOCK):
            yield slice(g, g + high), slice(i, i + _BLOCK)


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
