"""The bench's offline subject: scikit-learn's digits (1,797 real scans) in larger frames, and a small CNN."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

from splitedge.codecs.bench_subject import Subject
from splitedge.codecs.contenders import Place
from splitedge.rows import LabelledRows

SIDE = 32
TEST, VAL = 500, 200

#: Rows to train, to validate and to test.
Parts = tuple[LabelledRows, LabelledRows, LabelledRows]


class DigitNet(nn.Module):
    """float32 (N, 1, 32, 32), 0 to 1, to logits (N, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(conv(1, 16, 2), conv(16, 16, 1))
        self.middle = nn.Sequential(conv(16, 32, 2), conv(32, 32, 1))
        self.late = nn.Sequential(conv(32, 64, 2), conv(64, 64, 1))
        self.classifier = nn.Linear(64, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Classify."""
        x = self.late(self.middle(self.early(images * 2 - 1)))
        logits: torch.Tensor = self.classifier(x.mean(dim=(2, 3)))
        return logits


def conv(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    """A 3x3 convolution, batch norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
    )


def digits(*, seed: int = 0, epochs: int = 15) -> Subject:
    """The data, and the model trained on it (5 s)."""
    parts = digit_rows(seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = trained(DigitNet(), parts[0], epochs, 8e-3)
    cuts: Mapping[Place, str] = {"early": "early", "middle": "middle", "late": "late", "learned": "middle"}
    return subject_of("digits", model, parts, cuts)


def digit_rows(seed: int) -> Parts:
    """1,097 rows to train, 200 to validate and 500 to test."""
    bunch, rng = load_digits(), np.random.default_rng(seed)
    scans = torch.from_numpy(bunch.images).float()[:, None] / 16
    x = _framed(scans, rng)
    y = torch.from_numpy(np.asarray(bunch.target, dtype=np.int64))
    order = torch.from_numpy(rng.permutation(len(y)))
    test, val, train = order[:TEST], order[TEST : TEST + VAL], order[TEST + VAL :]
    found = [LabelledRows((x[rows],), y[rows], (0,)) for rows in (train, val, test)]
    return found[0], found[1], found[2]


def subject_of(name: str, model: nn.Module, parts: Parts, cuts: Mapping[Place, str]) -> Subject:
    """A model of these rows as a subject."""
    train, val, test = parts
    return Subject(name, model, train, val, test, cuts, SIDE * SIDE, (0.0, 1.0))


def _framed(scans: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """Scans enlarged to 24x24 somewhere in a frame of 32x32 with a sensor's noise, in 256 grey levels."""
    enlarged = F.interpolate(scans, size=(24, 24), mode="bicubic")
    frames = torch.from_numpy(rng.normal(0.06, 0.03, (len(scans), 1, SIDE, SIDE))).float()
    for frame, scan in zip(frames, enlarged, strict=True):
        top, left = rng.integers(0, SIDE - 24 + 1, 2).tolist()
        frame[:, top : top + 24, left : left + 24] += scan
    return (frames.clamp(0, 1) * 255).round() / 255


def trained(model: nn.Module, rows: LabelledRows, epochs: int, rate: float) -> nn.Module:
    """A classifier trained on rows that are shifted by up to two pixels, its highest learning rate given."""
    (x,), y = rows.inputs, rows.labels
    optimiser = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, rate, total_steps=epochs * -(-len(y) // 64))
    for _ in range(epochs):
        for chosen in torch.split(torch.randperm(len(y)), 64):
            shift = torch.randint(-2, 3, (2,)).tolist()
            loss = F.cross_entropy(model(x[chosen].roll(shift, (2, 3))), y[chosen])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
            optimiser.step()
            schedule.step()
    return model.eval()
