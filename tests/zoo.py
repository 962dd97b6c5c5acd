"""Small models of unlike shapes, for tests. The CIFAR networks are those of examples/models.py."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

import torch
import torch.nn.functional as F
from torch import nn

ROOT = Path(__file__).resolve().parents[1]


def data_dir() -> Path | None:
    """Where the shared data lies (SPLITEDGE_DATA overrides), None where it is absent."""
    place = Path(os.environ.get("SPLITEDGE_DATA") or ROOT / ".." / "shared" / "data")
    return place.resolve() if place.is_dir() else None


def weights_dir() -> Path | None:
    """The published weights, None where absent."""
    data = data_dir()
    return data / "weights" if data is not None and (data / "weights").is_dir() else None


def _examples() -> ModuleType:
    """examples/models.py, whether or not examples/ is on the path."""
    found = sys.modules.get("models")
    if found is not None and getattr(found, "__file__", None) == str(ROOT / "examples" / "models.py"):
        return found
    spec = importlib.util.spec_from_file_location("models", ROOT / "examples" / "models.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["models"] = module
    spec.loader.exec_module(module)
    return module


_models = _examples()
normalise = _models.normalise
resnet_cifar = _models.resnet_cifar
load_resnet_cifar = _models.load_resnet_cifar


def resnet8_keras(weights: Path | None = None) -> nn.Module:
    """MLPerf Tiny's ResNet-8; with its published weights where a weights directory is given."""
    return _models.resnet8() if weights is None else _models.load_resnet8(weights)


def resnet(depth: int) -> nn.Module:
    """A CIFAR ResNet, with its published weights where they are there and random ones where not."""
    weights = weights_dir()
    return resnet_cifar(depth) if weights is None else load_resnet_cifar(depth, weights)


class InvertedResidual(nn.Module):
    """Expand, depthwise, project (MobileNetV2, Sandler et al. 2018), in-place activations as published."""

    def __init__(self, inputs: int, outputs: int, stride: int, expand: int) -> None:
        super().__init__()
        hidden = inputs * expand
        self.layers = nn.Sequential(
            nn.Conv2d(inputs, hidden, 1, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.BatchNorm2d(hidden),
            nn.ReLU6(inplace=True),
            nn.Conv2d(hidden, outputs, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.residual = stride == 1 and inputs == outputs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.layers(x) if self.residual else self.layers(x)


class MobileNet(nn.Module):
    """Input (N, 3, 32, 32)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6(inplace=True)
        )
        shapes = [(8, 8, 1), (8, 12, 2), (12, 12, 1), (12, 16, 2), (16, 16, 1)]
        self.blocks = nn.Sequential(*(InvertedResidual(a, b, s, 3) for a, b, s in shapes))
        self.classifier = nn.Sequential(nn.Dropout(0.2), nn.Linear(16, 10))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.blocks(self.stem(x))
        return self.classifier(F.adaptive_avg_pool2d(x, (1, 1)).flatten(1))


class DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(inputs)
        self.conv = nn.Conv2d(inputs, growth, 3, padding=1, bias=False)

    def forward(self, features: list[torch.Tensor]) -> torch.Tensor:
        return self.conv(F.relu(self.norm(torch.cat(features, 1))))


class DenseNet(nn.Module):
    """Two dense blocks (Huang et al. 2017). Input (N, 3, 16, 16)."""

    def __init__(self, layers: int = 3, growth: int = 4) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.one = nn.ModuleList(DenseLayer(8 + i * growth, growth) for i in range(layers))
        width = 8 + layers * growth
        self.transition = nn.Sequential(nn.BatchNorm2d(width), nn.ReLU(inplace=True), nn.Conv2d(width, 8, 1))
        self.two = nn.ModuleList(DenseLayer(8 + i * growth, growth) for i in range(layers))
        self.head = nn.Linear(width, 10)

    @staticmethod
    def block(layers: nn.ModuleList, x: torch.Tensor) -> torch.Tensor:
        features = [x]
        for layer in layers:
            features.append(layer(features))
        return torch.cat(features, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.block(self.one, self.stem(x))
        x = F.avg_pool2d(self.transition(x), 2)
        x = self.block(self.two, x)
        return self.head(F.relu(x).mean((2, 3)))


class UNet(nn.Module):
    """Three levels with long skips (Ronneberger et al. 2015). Input (N, 1, 16, 16), output (N, 2, 16, 16)."""

    def __init__(self, width: int = 4) -> None:
        super().__init__()
        self.down1 = self.double(1, width)
        self.down2 = self.double(width, 2 * width)
        self.bottom = self.double(2 * width, 4 * width)
        self.up2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, 2)
        self.merge2 = self.double(4 * width, 2 * width)
        self.up1 = nn.ConvTranspose2d(2 * width, width, 2, 2)
        self.merge1 = self.double(2 * width, width)
        self.out = nn.Conv2d(width, 2, 1)

    @staticmethod
    def double(inputs: int, outputs: int) -> nn.Sequential:
        return nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, padding=1),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, padding=1),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        one = self.down1(x)
        two = self.down2(F.max_pool2d(one, 2))
        x = self.bottom(F.max_pool2d(two, 2))
        x = self.merge2(torch.cat([self.up2(x), two], 1))
        x = self.merge1(torch.cat([self.up1(x), one], 1))
        return self.out(x)


class InceptionBlock(nn.Module):
    def __init__(self, inputs: int, width: int) -> None:
        super().__init__()
        self.point = nn.Conv2d(inputs, width, 1)
        self.three = nn.Sequential(
            nn.Conv2d(inputs, width, 1), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1)
        )
        self.five = nn.Sequential(
            nn.Conv2d(inputs, width, 1), nn.ReLU(), nn.Conv2d(width, width, 5, padding=2)
        )
        self.pool = nn.Conv2d(inputs, width, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pooled = self.pool(F.max_pool2d(x, 3, 1, 1))
        return F.relu(torch.cat([self.point(x), self.three(x), self.five(x), pooled], 1))


class Inception(nn.Module):
    """Parallel branches (Szegedy et al. 2015). Input (N, 3, 16, 16)."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, 2, 1)
        self.mixed = nn.Sequential(InceptionBlock(8, 4), InceptionBlock(16, 4))
        self.fc = nn.Linear(16, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(self.mixed(F.relu(self.stem(x))).mean((2, 3)))


class LstmClassifier(nn.Module):
    """Input int64 (N, 12) of tokens under 50."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(50, 8)
        self.lstm = nn.LSTM(8, 12, num_layers=2, batch_first=True, bidirectional=True)
        self.fc = nn.Linear(24, 5)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states, _ = self.lstm(self.embed(tokens))
        return self.fc(states[:, -1])


class TwoInTwoOut(nn.Module):
    """Inputs (N, 6) and (N, 4); a dict of a score (N, 3) and a pair of (N, 8) and (N, 1)."""

    def __init__(self) -> None:
        super().__init__()
        self.left = nn.Linear(6, 8)
        self.right = nn.Linear(4, 8)
        self.score = nn.Linear(8, 3)
        self.value = nn.Linear(8, 1)

    def forward(self, a: torch.Tensor, b: torch.Tensor) -> dict[str, object]:
        left = torch.relu(self.left(a))
        both = left * torch.sigmoid(self.right(b))
        return {"score": self.score(both), "rest": (left, self.value(both))}


def small_cnn(channels: int = 8) -> nn.Module:
    """A chain: input (N, 1, 8, 8), output (N, 10)."""
    return nn.Sequential(
        nn.Conv2d(1, channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Conv2d(channels, 2 * channels, 3, padding=1),
        nn.ReLU(),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(8 * channels, 10),
    ).eval()
