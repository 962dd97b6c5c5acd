"""The static per-channel quantiser of a latent: trained through, and run as it was trained."""

from __future__ import annotations

import torch
from torch import nn

BITS = (8, 6, 4, 3, 2)
#: Half range in standard deviations that loses least for a normalised latent, by bits: about the optimum
#: for a normal variable (Max, IRE Trans. Inf. Theory 1960), a little wider where steps are fine.
HALF_RANGE = {8: 4.0, 6: 3.5, 4: 2.8, 3: 2.2, 2: 1.6}


class StaticQuantiser(nn.Module):
    """Per-channel affine codes of b bits with frozen ranges; gradients pass straight through the rounding.

    Step and offset are learned with the rest (LSQ, Esser et al., ICLR 2020, section 2): a step's gradient
    is scaled down so that it moves no faster than the weights.

    Args:
        channels: of the latent, in dimension 1.
        bits: of a code.
    """

    def __init__(self, channels: int, bits: int) -> None:
        super().__init__()
        self.codes = 1 << bits
        half = HALF_RANGE[bits]
        self.low = nn.Parameter(torch.full((channels,), -half))
        self.log_step = nn.Parameter(torch.full((channels,), 2 * half / (self.codes - 1)).log())

    @property
    def step(self) -> torch.Tensor:
        """Distance of two codes, (channels,)."""
        return self.log_step.exp()

    def forward(self, z: torch.Tensor, *, noisy: bool = False) -> torch.Tensor:
        """The dequantised latent, of the same shape; `noisy` adds uniform noise instead of rounding."""
        shape = (1, -1, *(1 for _ in z.shape[2:]))
        slow = 1.0 / max(z[:, :1].numel() * (self.codes - 1), 1) ** 0.5
        low, step = (scaled(p, slow).view(shape) for p in (self.low, self.step))
        y = ((z - low) / step).clamp(0, self.codes - 1)
        if noisy:
            return (y + torch.empty_like(y).uniform_(-0.5, 0.5)) * step + low
        return (y + (y.round() - y).detach()) * step + low

    @torch.no_grad()
    def symbols(self, z: torch.Tensor) -> torch.Tensor:
        """The codes that are sent, int32, of the same shape."""
        return quantise(z, self.low, self.step, self.codes)


def scaled(parameter: torch.Tensor, by: float) -> torch.Tensor:
    """The same value, with its gradient multiplied by `by`."""
    return parameter * by + (parameter * (1.0 - by)).detach()


def quantise(
    z: torch.Tensor, low: torch.Tensor, step: torch.Tensor, codes: torch.Tensor | int
) -> torch.Tensor:
    """Codes of a latent: (z - low) / step, rounded, between 0 and codes - 1; int32.

    Args:
        z: float32 (N, channels, ...).
        low, step: float32 (channels,).
        codes: how many there are, for all channels or int64 (channels,).
    """
    shape = (1, -1, *(1 for _ in z.shape[2:]))
    most = codes - 1 if isinstance(codes, int) else (codes - 1).view(shape)
    q = ((z - low.view(shape)) / step.view(shape)).round()
    return torch.minimum(q.clamp_min(0), torch.as_tensor(most, dtype=q.dtype, device=q.device)).int()


def dequantise(q: torch.Tensor, low: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    """The latent of codes, float32."""
    shape = (1, -1, *(1 for _ in q.shape[2:]))
    return q.float() * step.view(shape) + low.view(shape)
