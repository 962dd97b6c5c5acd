"""The static quantiser of a latent: uniform steps per channel, frozen; in NumPy to run, in torch to train.

Both work in float32 with the same operations in the same order and round halves to even, so that what
was trained is what is sent.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from splitedge.errors import CodecError

F32 = npt.NDArray[np.float32]
U8 = npt.NDArray[np.uint8]
MAX_STEPS = 255


class Uniform:
    """Codes 0..steps of a latent, `lo + code * step` apart in each channel.

    Args:
        lo: value of code 0, float32 (channels,), finite.
        step: distance of two codes, float32 (channels,), finite and at least 2**-126.
        steps: the greatest code, 1 to 255, for all channels or for each (0: a channel of one code).

    Error bound: half a step, and float32's rounding, for values from `lo` to `lo + steps * step`; beyond
    them a value gets the nearer end.

    Raises:
        CodecError: lo, step or steps are not that.
    """

    def __init__(self, lo: F32, step: F32, steps: int | Sequence[int]) -> None:
        self.lo, self.step = np.array(lo), np.array(step)
        if self.lo.ndim != 1 or self.lo.shape != self.step.shape or not self.lo.size:
            raise CodecError(f"lo and step are (channels,), got {self.lo.shape} and {self.step.shape}")
        if self.lo.dtype != np.float32 or self.step.dtype != np.float32:
            raise CodecError(f"lo and step are float32, got {self.lo.dtype} and {self.step.dtype}")
        if not np.isfinite(self.lo).all() or not ((self.step >= 2.0**-126) & np.isfinite(self.step)).all():
            raise CodecError("lo and step are finite, and a step is positive and no denormal number")
        self.steps = np.broadcast_to(np.asarray(steps, np.int64), self.lo.shape).copy()
        if (self.steps < 0).any() or (self.steps > MAX_STEPS).any():
            raise CodecError(f"steps are 0 to {MAX_STEPS} a channel, got {steps}")
        self._lo, self._step = self.lo[:, None], self.step[:, None]
        self._inverse = np.float32(1.0) / self._step
        self._most = self.steps.astype(np.float32)[:, None]

    def codes(self, z: F32) -> U8:
        """Codes of a latent.

        Args:
            z: float32 (rows, channels, inner); fewer channels than this quantiser has are the first.

        Raises:
            CodecError: a value is NaN or infinite.
        """
        k = z.shape[1]
        if not np.isfinite(z).all():
            raise CodecError("the latent holds NaN or infinity; it can not be quantised")
        with np.errstate(over="ignore"):  # what overflows is clipped like all that is out of range
            work = np.subtract(z, self._lo[:k])
            work *= self._inverse[:k]
        np.rint(work, out=work)
        np.maximum(work, 0.0, out=work)
        np.minimum(work, self._most[:k], out=work)
        return work.astype(np.uint8)

    def values(self, codes: U8) -> F32:
        """The latent of codes, float32 of the same shape (rows, channels, inner)."""
        k = codes.shape[1]
        out: F32 = np.multiply(codes, self._step[:k], dtype=np.float32)
        out += self._lo[:k]
        return out


def fake_quantise(
    z: torch.Tensor, lo: torch.Tensor, step: torch.Tensor, steps: int | torch.Tensor
) -> torch.Tensor:
    """What `Uniform` makes of a latent and gives back, differentiable; the same numbers, bit for bit.

    Gradients pass straight through the rounding to z where it is in range, and to lo and step as in LSQ
    (Esser et al., ICLR 2020, section 2.1): a step's is the rounding error within the range and the code
    beyond it, a lo's is 1 beyond the range and 0 within.

    Args:
        z: float32 (rows, channels, ...).
        lo, step: float32 (channels,), positive steps.
        steps: the greatest code, or one a channel, float32 (channels,).
    """
    shape = (1, -1, *(1 for _ in z.shape[2:]))
    lo, step = lo.view(shape), step.view(shape)
    most = steps.view(shape) if isinstance(steps, torch.Tensor) else torch.full_like(step, float(steps))
    inside = (z - lo) * step.reciprocal()
    clipped = torch.minimum(inside.clamp_min(0.0), most)
    with torch.no_grad():
        codes = torch.minimum(inside.round().clamp_min(0.0), most)
        values = codes * step + lo
    smooth = clipped * step + lo + (codes - clipped).detach() * step
    return smooth + (values - smooth).detach()
