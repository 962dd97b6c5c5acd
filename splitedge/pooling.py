"""Feature tensors of any shape to a few numbers a row: what small classifiers on features look at."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn import functional as F

from splitedge.codec import DTYPES, TensorSpec

# Convolutional maps are averaged over a grid: finer where there are few channels, as early in a network.
_GRID, _FINE_GRID, _FEW_CHANNELS = 2, 4, 32


def feature_among(specs: Sequence[TensorSpec]) -> int | None:
    """Which tensor a classifier can stand on: the last of floats with a row for each of the batch, since it
    was computed latest; None where there is none.
    """
    for which in reversed(range(len(specs))):
        spec = specs[which]
        if spec.batch_dim == 0 and len(spec.shape) >= 2 and DTYPES[spec.dtype].is_floating_point:
            return which
    return None


class Pooling(nn.Module):
    """Nothing of it is trained. What it takes depends on the tensor's dimensions, batch included.

    4 (N, C, H, W): averages over a grid (2 x 2; 4 x 4 up to 32 channels) and the greatest value of each
    channel; 3 (N, T, D): after a LayerNorm, the mean, the first and the last token; 2 (N, D): all; 5 or
    more: mean and greatest value of each channel.

    Args:
        spec: the feature tensor, batch first, a float dtype.
    """

    def __init__(self, spec: TensorSpec) -> None:
        super().__init__()
        dims = len(spec.shape)
        self.grid = _grid(spec)
        per_channel = {2: 1, 3: 3, 4: self.grid**2 + 1}.get(dims, 2)
        self.width = per_channel * spec.shape[2 if dims == 3 else 1]

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """(N, ...) to float32 (N, width)."""
        x = features.float()
        if x.dim() == 2:
            return x
        if x.dim() == 3:
            x = F.layer_norm(x, x.shape[2:])
            return torch.cat([x.mean(1), x[:, 0], x[:, -1]], dim=1)
        if x.dim() == 4:
            cells = F.adaptive_avg_pool2d(x, self.grid).flatten(1)
            return torch.cat([cells, x.amax((2, 3))], dim=1)
        x = x.flatten(2)
        return torch.cat([x.mean(2), x.amax(2)], dim=1)


def _grid(spec: TensorSpec) -> int:
    if len(spec.shape) != 4:
        return 1
    side = min(spec.shape[2:])
    return min(side, _FINE_GRID if spec.shape[1] <= _FEW_CHANNELS else _GRID)
