"""Exit heads: small classifiers on the features at a cut, trained on cached features."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from splitedge.codec import DTYPES, TensorSpec
from splitedge.errors import ConfigError
from splitedge.pooling import Pooling

Batches = torch.Tensor | Iterable[torch.Tensor]


class ExitHead(nn.Module):
    """A classifier on one feature tensor (BranchyNet; Teerapittayanon et al., ICPR 2016).

    What it looks at is pooled (`pooling.Pooling`) and standardised, then comes one hidden layer. There is no
    dropout and there are no batch statistics: it answers the same in training and evaluation and at
    any batch, and it can be exported.

    Args:
        spec: the feature tensor, batch first, a float dtype.
        n_classes: 2 or more.
        hidden: width of the hidden layer; None for one that suits the features, 0 for none.

    Raises:
        ConfigError: no exit can stand on such a tensor.
    """

    def __init__(self, spec: TensorSpec, n_classes: int, hidden: int | None = None) -> None:
        super().__init__()
        _check_spec(spec, n_classes)
        self.spec = spec
        self.n_classes = n_classes
        self.pool = Pooling(spec)
        width = self.pool.width
        self.shift: torch.Tensor
        self.scale: torch.Tensor
        self.register_buffer("shift", torch.zeros(width))
        self.register_buffer("scale", torch.ones(width))
        if hidden is None:
            hidden = min(256, max(32, 2 * n_classes, width // 2))
        if hidden:
            self.classifier = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, n_classes))
        else:
            self.classifier = nn.Sequential(nn.Linear(width, n_classes))

    def look(self, features: torch.Tensor) -> torch.Tensor:
        """What the classifier sees: pooled and standardised, float32 (N, width). Nothing here is trained."""
        pooled: torch.Tensor = self.pool(features)
        return (pooled - self.shift) * self.scale

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        """Logits (N, n_classes), float32."""
        logits: torch.Tensor = self.classifier(self.look(features))
        return logits

    @torch.no_grad()
    def standardise(self, features: torch.Tensor, batch_size: int = 256) -> None:
        """Take mean and deviation of the pooled features of training rows; `train_exit` calls it."""
        device = self.shift.device
        parts = [features[i : i + batch_size] for i in range(0, len(features), batch_size)]
        pooled = torch.cat([self.pool(part.to(device)).cpu() for part in parts]).double()
        mean, deviation = pooled.mean(0), pooled.std(0, correction=0)
        # A feature that never varies says nothing; a unit scale keeps it from becoming noise.
        steady = deviation <= 1e-6 * (1.0 + mean.abs())
        self.shift.copy_(mean)
        self.scale.copy_(torch.where(steady, torch.ones_like(deviation), 1.0 / deviation))


def build_exit(spec: TensorSpec, n_classes: int, *, hidden: int | None = None, seed: int = 0) -> ExitHead:
    """An exit head for a feature tensor, its weights drawn from `seed` alone.

    Raises:
        ConfigError: no exit can stand on such a tensor; the message says why.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ExitHead(spec, n_classes, hidden)


@dataclass(frozen=True, slots=True)
class TrainReport:
    """How a training went.

    Attributes:
        epochs: epochs run.
        best_epoch: the one whose weights were kept, from 1.
        train_loss: mean loss of that epoch.
        val_loss: cross-entropy on the validation rows with those weights, nats.
        val_accuracy: part of the validation rows answered right.
        train_rows, val_rows: rows of each kind.
        seconds: wall time.
    """

    epochs: int
    best_epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    train_rows: int
    val_rows: int
    seconds: float


def train_exit(
    head: ExitHead,
    features: Batches,
    targets: Batches,
    *,
    teacher_logits: Batches | None = None,
    val: float | tuple[Batches, Batches] = 0.2,
    epochs: int = 40,
    seed: int = 0,
    progress: bool = True,
    batch_size: int | None = None,
    lr: float = 3e-3,
    weight_decay: float = 1e-2,
    patience: int = 8,
    kd_weight: float = 0.5,
    kd_temperature: float = 2.0,
    device: str | torch.device | None = None,
) -> TrainReport:
    """Train an exit head on cached features, keep the weights of the best validation loss.

    The loss is cross-entropy on the labels, mixed with the distillation of the full model's logits
    where given: (1 - w) CE + w T^2 KL(teacher/T, exit/T) (Hinton et al., "Distilling the Knowledge in
    a Neural Network", 2015, section 2). The backbone is not touched, as in BranchyNet's exits trained
    apart. The same seed, data and device give the same weights.

    Args:
        head: from `build_exit`; trained in place and left in evaluation mode on its own device.
        features: the tensor at the cut for the training rows, or an iterable of batches of it.
        targets: right classes, shape (rows,), or an iterable of batches.
        teacher_logits: the full model's logits (rows, n_classes), or an iterable of batches.
        val: (features, targets) of validation rows, or the part of the rows to hold out.
        epochs: at most this many passes.
        seed: of the hold-out and the order of the batches.
        progress: show a bar on standard error when it takes over 2 s.
        batch_size: rows a step; None for a 32nd of the rows, at least 32 and at most 256.
        lr, weight_decay: of AdamW with a cosine schedule.
        patience: epochs without a better validation loss before it stops.
        kd_weight, kd_temperature: w and T above; no effect without `teacher_logits`.
        device: where to train; None for where the head is.

    Raises:
        ConfigError: rows, shapes or numbers that do not fit, or a loss that is not finite.
    """
    from splitedge.training import Distil, Rows, fit_head

    started = time.monotonic()
    rows = Rows.gather(head, features, targets, teacher_logits)
    if isinstance(val, tuple):
        held = Rows.gather(head, val[0], val[1], None)
    else:
        rows, held = rows.hold_out(val, seed)
    if batch_size is None:
        batch_size = min(max(len(rows) // 32, 32), 256)
    if epochs < 1 or batch_size < 1 or not 0.0 <= kd_weight <= 1.0 or kd_temperature <= 0.0:
        raise ConfigError("epochs and batch_size are 1 or more, kd_weight 0 to 1, kd_temperature above 0")
    home = head.shift.device
    head.to(device or home)
    try:
        best = fit_head(
            head,
            rows,
            held,
            epochs=epochs,
            seed=seed,
            progress=progress,
            batch_size=batch_size,
            lr=lr,
            weight_decay=weight_decay,
            patience=patience,
            distil=Distil(kd_weight, kd_temperature),
        )
    finally:
        head.to(home).eval()
    return TrainReport(
        epochs=best.epochs,
        best_epoch=best.epoch,
        train_loss=best.train_loss,
        val_loss=best.val_loss,
        val_accuracy=best.val_accuracy,
        train_rows=len(rows),
        val_rows=len(held),
        seconds=time.monotonic() - started,
    )


def _check_spec(spec: TensorSpec, n_classes: int) -> None:
    dims = len(spec.shape)
    if n_classes < 2:
        raise ConfigError(f"an exit needs 2 classes or more, got {n_classes}")
    if spec.batch_dim != 0 or spec.shape[0] != 1:
        raise ConfigError(
            f"no exit can stand on {spec}: its first dimension is not the batch; pick another cut"
        )
    if dims < 2 or math.prod(spec.shape) < 1:
        raise ConfigError(f"no exit can stand on {spec}: it has no features; pick another cut")
    if not DTYPES[spec.dtype].is_floating_point:
        raise ConfigError(f"no exit can stand on {spec}: features are floats; pick another cut")
