"""Networks of learned codecs, sized from the tensors they stand between: encoder on the edge, decoder in
the cloud.

An encoder replaces layers of the head with a few strided convolutions (BottleFit, WoWMoM 2022, section
III). Nothing limits the cloud, so that the decoder is deeper. Rows of features (2-D tensors) get linear
layers in place of convolutions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.fusion import fuse_conv_bn_eval

from splitedge.codec import TensorSpec
from splitedge.errors import CodecError

#: What a decoder for several levels is told beside the latent, for its norms (`level_nets`).
Level = int | torch.Tensor

WIDTHS = (96, 64, 48, 32, 24, 16, 8)
DECODER_WIDTH = 96


@dataclass(frozen=True, slots=True)
class Latent:
    """Shape of a latent at batch 1.

    Attributes:
        channels: coded one after the other, each with a table of its own.
        grid: positions of a channel; empty for a row of features.
    """

    channels: int
    grid: tuple[int, ...]

    @property
    def positions(self) -> int:
        """Values of a channel."""
        return math.prod(self.grid)

    @property
    def spec(self) -> TensorSpec:
        """As a tensor."""
        return TensorSpec((1, self.channels, *self.grid), "float32", 0)


def read_spec(specs: Sequence[TensorSpec]) -> TensorSpec:
    """The only tensor that an encoder reads: float feature maps or rows, or images of uint8.

    Raises:
        CodecError: there are several, or it is something else.
    """
    kinds = ("float32", "float16", "uint8") if len(specs) == 1 and len(specs[0].shape) == 4 else ("float32",)
    return _the_one(specs, "what the encoder reads", kinds)


def cut_spec(specs: Sequence[TensorSpec]) -> TensorSpec:
    """The only tensor of a cut that a decoder gives: float32 feature maps or rows.

    Raises:
        CodecError: there are several, or it is something else.
    """
    return _the_one(specs, "the cut", ("float32",))


def _the_one(specs: Sequence[TensorSpec], where: str, kinds: Sequence[str]) -> TensorSpec:
    crossing = ", ".join(map(str, specs))
    if len(specs) != 1:
        raise CodecError(f"a bottleneck takes one tensor, {where} has {crossing}; pick another cut")
    spec = specs[0]
    if spec.batch_dim != 0 or spec.dtype not in kinds or len(spec.shape) not in (2, 4):
        raise CodecError(
            f"a bottleneck takes {' or '.join(kinds)} tensors of shape (N, channels, height, width) or "
            f"(N, features), {where} has {crossing}; pick another cut"
        )
    return spec


def default_stride(spec: TensorSpec) -> int:
    """How much smaller the latent's grid is than what the encoder reads: 2 to 16, by its size."""
    if len(spec.shape) == 2:
        return 1
    side = min(spec.shape[2:])
    return 1 if side < 8 else 2 if side <= 16 else 4 if side <= 48 else 8 if side <= 512 else 16


def default_channels(grid: Sequence[int], read: int) -> int:
    """Latent channels where `read` values are read: about 256 values for small grids, 4 to 16 channels in
    all, but at most half as many values as are read.
    """
    positions = max(math.prod(grid), 1)
    return max(1, min(max(4, min(16, 256 // positions)), read // (2 * positions)))


def latent_of(reads: TensorSpec, stride: int, channels: int | None) -> Latent:
    """The latent of an encoder that reads such a tensor."""
    if len(reads.shape) == 2:
        return Latent(channels or min(16, reads.shape[1]), ())
    grid = tuple(-(-side // stride) for side in reads.shape[2:])
    return Latent(channels or default_channels(grid, reads.numel()), grid)


class ConvNorm(nn.Module):
    """A convolution with batch norm and, perhaps, a ReLU. `fused` folds the norm away."""

    def __init__(self, inputs: int, outputs: int, size: int, stride: int = 1, *, relu: bool = True) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, size, stride, padding=size // 2, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(outputs)
        self.relu = relu

    def forward(self, x: torch.Tensor, *level: Level) -> torch.Tensor:
        """(N, inputs, H, W) to (N, outputs, ceil(H / stride), ceil(W / stride))."""
        y = self.norm(self.conv(x), *level)
        return F.relu(y) if self.relu else y

    def fuse(self) -> None:
        """Fold the norm's running statistics into the convolution; eval mode only."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.conv = fuse_conv_bn_eval(self.conv.eval(), self.norm.eval())
            self.norm = nn.Identity()


class Residual(nn.Module):
    """Two 3x3 convolutions and a shortcut."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.first = ConvNorm(width, width, 3)
        self.second = ConvNorm(width, width, 3, relu=False)

    def forward(self, x: torch.Tensor, *level: Level) -> torch.Tensor:
        """(N, width, H, W) to the same shape."""
        return F.relu(x + self.second(self.first(x, *level), *level))


class ConvEncoder(nn.Module):
    """Strided 3x3 convolutions down to the latent's grid, residual blocks there, and a 1x1 convolution.

    The latent is normalised per channel with running statistics (no weights), so that a quantiser's range
    is known before training begins.
    """

    def __init__(self, inputs: int, latent: Latent, stride: int, width: int, blocks: int) -> None:
        super().__init__()
        halvings = int(math.log2(stride))
        widths = [max(width >> (halvings - 1 - i), 8) for i in range(halvings)] or [width]
        layers: list[nn.Module] = []
        for outputs in widths:
            layers.append(ConvNorm(inputs, outputs, 3, 2 if halvings else 1))
            inputs = outputs
        layers += [Residual(inputs) for _ in range(blocks)]
        self.layers = nn.Sequential(*layers)
        self.last = nn.Conv2d(inputs, latent.channels, 1, bias=False)
        self.norm: nn.Module = nn.BatchNorm2d(latent.channels, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(N, inputs, H, W) of float32, float16 or uint8 to the latent, float32 (N, channels, *grid)."""
        if x.dtype is torch.uint8:
            x = x.float() / 127.5 - 1.0
        z: torch.Tensor = self.norm(self.last(self.layers(x.float())))
        return z

    def fuse(self) -> None:
        """Fold the latent's norm into the convolution before it; eval mode only."""
        if isinstance(self.norm, nn.BatchNorm2d):
            self.last = fuse_conv_bn_eval(self.last.eval(), self.norm.eval())
            self.norm = nn.Identity()


class LinearEncoder(nn.Module):
    """Two linear layers for rows of features."""

    def __init__(self, inputs: int, latent: Latent, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, latent.channels))
        self.norm = nn.BatchNorm1d(latent.channels, affine=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """float32 (N, inputs) to the latent, float32 (N, channels)."""
        z: torch.Tensor = self.norm(self.layers(x))
        return z


class ConvDecoder(nn.Module):
    """The latent to a cut's feature map: residual blocks on the latent's grid, then up to the cut's."""

    def __init__(self, latent: Latent, cut: TensorSpec, width: int, blocks: int) -> None:
        super().__init__()
        _, outputs, *size = cut.shape
        self.size = (size[0], size[1])
        self.first = ConvNorm(latent.channels, width, 3)
        self.blocks = nn.ModuleList(Residual(width) for _ in range(blocks))
        self.up = ConvNorm(width, width, 3)
        self.last = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, z: torch.Tensor, *level: Level) -> torch.Tensor:
        """float32 (N, channels, *grid) to the cut's tensor, float32."""
        x = self.first(z, *level)
        for block in self.blocks:
            x = block(x, *level)
        if tuple(x.shape[2:]) != self.size:
            x = F.interpolate(x, size=self.size, mode="nearest")
        y: torch.Tensor = self.last(self.up(x, *level))
        return y


class LinearDecoder(nn.Module):
    """As `ConvDecoder`, for cuts of any shape from a row of features, and for rows from any latent."""

    def __init__(self, latent: Latent, cut: TensorSpec, width: int) -> None:
        super().__init__()
        self.shape = cut.shape[1:]
        self.first = nn.Linear(latent.channels * latent.positions, width)
        self.norm: nn.Module | None = None
        self.last = nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Linear(width, math.prod(self.shape)))

    def forward(self, z: torch.Tensor, *level: Level) -> torch.Tensor:
        """float32 (N, channels, *grid) to the cut's tensor, float32."""
        x = self.first(z.flatten(1))
        if self.norm is not None:
            x = self.norm(x, *level)
        y: torch.Tensor = self.last(F.relu(x))
        return y.reshape(-1, *self.shape)


def encoder_for(reads: TensorSpec, latent: Latent, stride: int, width: int, blocks: int) -> nn.Module:
    """An encoder from such a tensor to such a latent."""
    if len(reads.shape) == 2:
        return LinearEncoder(reads.shape[1], latent, width)
    return ConvEncoder(reads.shape[1], latent, stride, width, blocks)


def decoder_widths(latent: Latent, cut: TensorSpec) -> tuple[int, ...]:
    """Widths of a decoder, the one that is best where nothing limits it first."""
    if latent.grid and len(cut.shape) == 4:
        most = max(DECODER_WIDTH, min(cut.shape[1], 256))
        return (most, *(width for width in (128, *WIDTHS) if 16 <= width < most))
    return (256, 128, 64)


def decoder_for(latent: Latent, cut: TensorSpec, blocks: int, width: int | None = None) -> nn.Module:
    """A decoder from such a latent to such a cut; None for the first of `decoder_widths`."""
    width = width or decoder_widths(latent, cut)[0]
    if latent.grid and len(cut.shape) == 4:
        return ConvDecoder(latent, cut, width, blocks)
    return LinearDecoder(latent, cut, width)


def fused(module: nn.Module) -> nn.Module:
    """The module in eval mode with every batch norm behind a convolution folded into it."""
    module.eval()
    for child in module.modules():
        if isinstance(child, ConvNorm | ConvEncoder):
            child.fuse()
    return module
