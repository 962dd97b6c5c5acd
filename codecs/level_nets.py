"""A decoder for several levels: one set of weights, and batch norms of its own for each level.

Where a level sends fewer channels, the features behind them have other means and variances. Norms that all
levels share fit none of them (Yu et al., "Slimmable neural networks", ICLR 2019, section 3.3); norms of
their own cost a few numbers a level. In training a batch is of one level; as it runs, every row has its own.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from splitedge.codecs.nets import ConvNorm, LinearDecoder


class LevelNorm(nn.Module):
    """Batch norm with statistics and weights for each level.

    Args:
        features: dimension 1 of what is normalised.
        levels: how many.
        grid: whether (N, features, H, W) is normalised, or (N, features).
    """

    def __init__(self, features: int, levels: int, *, grid: bool = True) -> None:
        super().__init__()
        kind = nn.BatchNorm2d if grid else nn.BatchNorm1d
        self.norms = nn.ModuleList(kind(features) for _ in range(levels))

    def forward(self, x: torch.Tensor, level: int) -> torch.Tensor:
        """Normalise a batch of one level."""
        y: torch.Tensor = self.norms[level](x)
        return y


class RowScale(nn.Module):
    """What a trained `LevelNorm` does, with a level for every row.

    Args:
        norm: its running statistics and weights.
    """

    scale: torch.Tensor
    shift: torch.Tensor

    def __init__(self, norm: LevelNorm) -> None:
        super().__init__()
        scales, shifts = [], []
        for one in norm.norms:
            assert isinstance(one, nn.BatchNorm1d | nn.BatchNorm2d)
            assert one.running_mean is not None and one.running_var is not None
            scale = one.weight.detach() / torch.sqrt(one.running_var + one.eps)
            scales.append(scale)
            shifts.append(one.bias.detach() - one.running_mean * scale)
        shape = len(scales), -1, *((1, 1) if isinstance(norm.norms[0], nn.BatchNorm2d) else ())
        self.register_buffer("scale", torch.stack(scales).view(shape))
        self.register_buffer("shift", torch.stack(shifts).view(shape))

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        """Normalise rows, each of the level that int64 (N,) says."""
        return torch.addcmul(self.shift.index_select(0, level), x, self.scale.index_select(0, level))


def with_levels(decoder: nn.Module, levels: int) -> nn.Module:
    """The decoder, taking a latent and its level (int), with norms for each level in place of its own."""
    for module in decoder.modules():
        if isinstance(module, ConvNorm):
            module.norm = LevelNorm(module.conv.out_channels, levels)
        elif isinstance(module, LinearDecoder):
            module.norm = LevelNorm(module.first.out_features, levels, grid=False)
    return decoder


def by_row(decoder: nn.Module) -> nn.Module:
    """A copy of a trained decoder of `with_levels` that takes latents and the level of each, int64 (N,)."""
    decoder = copy.deepcopy(decoder).eval()
    for module in decoder.modules():
        if isinstance(module, ConvNorm | LinearDecoder) and isinstance(module.norm, LevelNorm):
            module.norm = RowScale(module.norm)
    return decoder
