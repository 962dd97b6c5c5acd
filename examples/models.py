"""The two CIFAR-10 networks of the examples, with their published weights: ResNet-20/32/44/56 and ResNet-8.

Both give logits. `load_resnet_cifar` expects normalised input (`normalise`), `load_resnet8` raw 0..255.
Weights: github.com/akamaster/pytorch_resnet_cifar10 (BSD-2) and github.com/mlcommons/tiny (Apache-2.0),
both converted to safetensors.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import nn

MEAN = torch.tensor((0.485, 0.456, 0.406)).view(3, 1, 1)
STD = torch.tensor((0.229, 0.224, 0.225)).view(3, 1, 1)


def normalise(images: torch.Tensor) -> torch.Tensor:
    """uint8 (N, 3, 32, 32) to the float32 input of `resnet_cifar`."""
    return (images.float() / 255 - MEAN) / STD


# ResNet-20/32/44/56 (He et al. 2015, section 4.2), option-A shortcuts ------------------------------


class BasicBlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without weights: subsample, pad the channels with zeros."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.pad = (outputs - inputs) // 2

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        out = self.bn2(self.conv2(out))
        if self.pad:
            x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
        return F.relu(out + x)


class ResNetCifar(nn.Module):
    """Input float32 (N, 3, 32, 32), normalised; output logits (N, 10)."""

    def __init__(self, blocks: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, blocks, 1)
        self.layer2 = self._stage(16, 32, blocks, 2)
        self.layer3 = self._stage(32, 64, blocks, 2)
        self.linear = nn.Linear(64, 10)

    @staticmethod
    def _stage(inputs: int, outputs: int, blocks: int, stride: int) -> nn.Sequential:
        first = BasicBlock(inputs, outputs, stride)
        return nn.Sequential(first, *(BasicBlock(outputs, outputs, 1) for _ in range(blocks - 1)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet_cifar(depth: int) -> ResNetCifar:
    """ResNet of `depth` 6n + 2 layers (20, 32, 44, 56) with random weights, in eval mode."""
    if (depth - 2) % 6:
        raise ValueError(f"the depth of a CIFAR ResNet is 6n + 2, got {depth}")
    return ResNetCifar((depth - 2) // 6).eval()


def load_resnet_cifar(depth: int, weights_dir: Path) -> ResNetCifar:
    """With the published weights, from `weights_dir/resnet_cifar10/resnet<depth>_cifar10.safetensors`."""
    model = resnet_cifar(depth)
    model.load_state_dict(load_file(weights_dir / "resnet_cifar10" / f"resnet{depth}_cifar10.safetensors"))
    return model


# ResNet-8 of MLPerf Tiny ---------------------------------------------------------------------------


class SameConv(nn.Conv2d):
    """Convolution with TensorFlow's 'same' padding: at stride 2 the odd row and column go below and right."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if self.stride[0] == 2 and self.kernel_size[0] == 3:
            x = F.pad(x, (0, 1, 0, 1))
        return super().forward(x)


def same_conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> SameConv:
    return SameConv(inputs, outputs, kernel, stride, padding=1 if kernel == 3 and stride == 1 else 0)


class KerasBlock(nn.Module):
    """Two 3x3 convolutions; the shortcut is a 1x1 convolution where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = same_conv(inputs, outputs, 3, stride)
        self.bn1 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.conv2 = same_conv(outputs, outputs, 3)
        self.bn2 = nn.BatchNorm2d(outputs, eps=1e-3)
        self.shortcut = same_conv(inputs, outputs, 1, stride) if stride > 1 else nn.Identity()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(out)) + self.shortcut(x))


class ResNet8(nn.Module):
    """Input float32 (N, 3, 32, 32), raw 0..255; output logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = same_conv(3, 16, 3)
        self.bn1 = nn.BatchNorm2d(16, eps=1e-3)
        self.layer1 = KerasBlock(16, 16, 1)
        self.layer2 = KerasBlock(16, 32, 2)
        self.layer3 = KerasBlock(32, 64, 2)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.linear(x.mean((2, 3)))


def resnet8() -> ResNet8:
    """ResNet-8 with random weights, in eval mode."""
    return ResNet8().eval()


def load_resnet8(weights_dir: Path) -> ResNet8:
    """With the published weights (Keras names), `weights_dir/mlperf_tiny/resnet8_cifar10.safetensors`."""
    model = resnet8()
    keras = load_file(weights_dir / "mlperf_tiny" / "resnet8_cifar10.safetensors")
    two, three = model.layer2, model.layer3
    convs = [model.conv1, model.layer1.conv1, model.layer1.conv2]
    convs += [two.conv1, two.conv2, two.shortcut, three.conv1, three.conv2, three.shortcut]
    norms = [model.bn1, model.layer1.bn1, model.layer1.bn2, two.bn1, two.bn2, three.bn1, three.bn2]
    with torch.no_grad():
        for i, conv in enumerate(convs):
            name = f"conv2d_{i}" if i else "conv2d"
            conv.weight.copy_(keras[f"{name}/kernel"].permute(3, 2, 0, 1))  # HWIO to OIHW
            conv.bias.copy_(keras[f"{name}/bias"])
        for i, norm in enumerate(norms):
            name = f"batch_normalization_{i}" if i else "batch_normalization"
            norm.weight.copy_(keras[f"{name}/gamma"])
            norm.bias.copy_(keras[f"{name}/beta"])
            norm.running_mean.copy_(keras[f"{name}/moving_mean"])
            norm.running_var.copy_(keras[f"{name}/moving_variance"])
        model.linear.weight.copy_(keras["dense/kernel"].T)
        model.linear.bias.copy_(keras["dense/bias"])
    return model
