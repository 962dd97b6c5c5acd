"""The demo's task: scikit-learn's digits (1,797 real scans) as a camera would see them, each somewhere in a
64x64 frame with some sensor noise, and a small CNN that learns them in seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_digits
from torch import nn

SIDE = 64


class Digits(NamedTuple):
    """Images uint8 (N, 1, 64, 64) and labels int64 (N,), in three disjoint parts."""

    train: tuple[torch.Tensor, torch.Tensor]
    val: tuple[torch.Tensor, torch.Tensor]
    test: tuple[torch.Tensor, torch.Tensor]


def digits(seed: int = 0) -> Digits:
    """Load, place in frames, shuffle, divide: 900 to train, 397 to validate and calibrate, 500 to test."""
    bunch, rng = load_digits(), np.random.default_rng(seed)
    x = torch.from_numpy(np.stack([_frame(image, rng) for image in bunch.images]))[:, None]
    y = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    order = torch.from_numpy(rng.permutation(len(y)))
    train, val, test = order[:900], order[900:1297], order[1297:]
    return Digits((x[train], y[train]), (x[val], y[val]), (x[test], y[test]))


def _frame(image: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A scan of 8x8 values 0..16, enlarged and put at random into a noisy frame; uint8 (64, 64)."""
    size = int(rng.integers(30, 44))
    scan = Image.fromarray((image * 15.0).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)
    frame = rng.normal(12.0, 4.0, (SIDE, SIDE))
    top, left = rng.integers(0, SIDE - size + 1, 2)
    frame[top : top + size, left : left + size] += np.asarray(scan, dtype=float)
    return np.clip(frame, 0, 255).astype(np.uint8)


class DigitNet(nn.Module):
    """uint8 (N, 1, 64, 64) -> logits float32 (N, 10). `stem` is light, `body` is the work."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(_conv(1, 8, 2), _conv(8, 16, 2))
        self.body = nn.Sequential(_conv(16, 48, 2), _conv(48, 64, 2), _conv(64, 96, 1))
        self.classifier = nn.Linear(96, 10)

    def forward(self, frames: torch.Tensor) -> torch.Tensor:
        """Classify raw frames."""
        x = frames.float() / 127.5 - 1.0
        x = self.body(self.stem(x))
        return self.classifier(x.mean(dim=(2, 3)))  # type: ignore[no-any-return]


def _conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def train(
    data: tuple[torch.Tensor, torch.Tensor],
    *,
    epochs: int = 16,
    seed: int = 0,
    progress: Callable[[float], None] = lambda share: None,
) -> DigitNet:
    """Train on small shifts of the frames; `progress` is told the share done."""
    torch.manual_seed(seed)
    model, (x, y) = DigitNet(), data
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    steps = epochs * -(-len(y) // 64)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, 6e-3, total_steps=steps)
    done = 0
    for _ in range(epochs):
        for rows in torch.split(torch.randperm(len(y)), 64):
            shift = torch.randint(-9, 10, (2,)).tolist()
            loss = nn.functional.cross_entropy(model(x[rows].roll(shift, (2, 3))), y[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            schedule.step()
            done += 1
            progress(done / steps)
    return model.eval()
