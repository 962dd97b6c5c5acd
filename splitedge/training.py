"""The training loop behind `exits.train_exit`."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Self

import torch
from torch import nn
from torch.nn import functional as F

from splitedge.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from splitedge.exits import Batches, ExitHead

_SHOW_AFTER_S = 2.0
_MIN_DELTA = 1e-4  # nats; a smaller gain does not count as better


@dataclass(frozen=True, slots=True)
class Rows:
    """Cached features with their targets and, perhaps, the teacher's logits."""

    features: torch.Tensor
    targets: torch.Tensor
    teacher: torch.Tensor | None = None

    def __len__(self) -> int:
        return len(self.targets)

    @classmethod
    def gather(cls, head: ExitHead, features: Batches, targets: Batches, teacher: Batches | None) -> Self:
        """Join batches and check them against the head.

        Raises:
            ConfigError: their rows, shapes or classes do not fit.
        """
        x, y = _join(features, "features"), _join(targets, "targets")
        t = None if teacher is None else _join(teacher, "teacher_logits").float()
        if x.dim() != len(head.spec.shape) or tuple(x.shape[1:]) != head.spec.shape[1:]:
            raise ConfigError(f"the exit stands on {head.spec}, the features are {tuple(x.shape)}")
        if tuple(y.shape) != (len(x),) or y.is_floating_point():
            raise ConfigError(
                f"targets: {len(x)} class numbers expected, got {y.dtype} of shape {tuple(y.shape)}"
            )
        y = y.long()
        if len(y) and (int(y.min()) < 0 or int(y.max()) >= head.n_classes):
            raise ConfigError(f"targets must lie between 0 and {head.n_classes - 1}")
        if t is not None and tuple(t.shape) != (len(x), head.n_classes):
            raise ConfigError(f"teacher_logits: ({len(x)}, {head.n_classes}) expected, got {tuple(t.shape)}")
        if len(x) < 2:
            raise ConfigError(f"{len(x)} rows are too few to train an exit")
        return cls(x, y, t)

    def take(self, index: torch.Tensor) -> Self:
        """Some of the rows."""
        teacher = None if self.teacher is None else self.teacher[index]
        return replace(self, features=self.features[index], targets=self.targets[index], teacher=teacher)

    @torch.no_grad()
    def looked_at(self, head: ExitHead, batch_size: int = 256) -> Self:
        """The rows as the head's classifier sees them, on the head's device."""
        device = head.shift.device
        parts = [self.features[i : i + batch_size] for i in range(0, len(self), batch_size)]
        features = torch.cat([head.look(part.to(device)) for part in parts])
        teacher = None if self.teacher is None else self.teacher.to(device)
        return replace(self, features=features, targets=self.targets.to(device), teacher=teacher)

    def hold_out(self, part: float, seed: int) -> tuple[Self, Self]:
        """Divide at random into training and validation rows.

        Raises:
            ConfigError: nothing would be left on one side.
        """
        count = round(part * len(self))
        if not 0 < count < len(self):
            raise ConfigError(f"val={part} of {len(self)} rows leaves no rows to train or to validate on")
        order = torch.randperm(len(self), generator=torch.Generator().manual_seed(seed))
        return self.take(order[count:]), self.take(order[:count])


@dataclass(frozen=True, slots=True)
class Distil:
    """Weight and temperature of the teacher's part in the loss."""

    weight: float
    temperature: float

    def loss(self, logits: torch.Tensor, targets: torch.Tensor, teacher: torch.Tensor | None) -> torch.Tensor:
        """(1 - w) CE + w T^2 KL(teacher/T, exit/T); CE alone without a teacher."""
        hard = F.cross_entropy(logits, targets)
        if teacher is None or not self.weight:
            return hard
        t = self.temperature
        ours, theirs = F.log_softmax(logits / t, 1), F.log_softmax(teacher / t, 1)
        soft = F.kl_div(ours, theirs, reduction="batchmean", log_target=True)
        return (1.0 - self.weight) * hard + self.weight * t * t * soft


@dataclass(frozen=True, slots=True)
class Best:
    """The epoch whose weights were kept, and how many were run."""

    epoch: int
    train_loss: float
    val_loss: float
    val_accuracy: float
    epochs: int = 0


def fit_head(
    head: ExitHead,
    rows: Rows,
    held: Rows,
    *,
    epochs: int,
    seed: int,
    progress: bool,
    batch_size: int,
    lr: float,
    weight_decay: float,
    patience: int,
    distil: Distil,
) -> Best:
    """Train with AdamW and a cosine schedule; leave the weights of the best validation loss in `head`.

    Raises:
        ConfigError: the loss is not finite.
    """
    generator = torch.Generator().manual_seed(seed)
    head.standardise(rows.features)
    # Pooling and standardising hold nothing to train: done once, an epoch costs only the classifier.
    rows, held = rows.looked_at(head), held.looked_at(head)
    classifier = head.classifier.train()
    optimiser = torch.optim.AdamW(classifier.parameters(), lr=lr, weight_decay=weight_decay, fused=True)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, epochs)
    best = Best(0, math.inf, math.inf, 0.0)
    kept = _weights(classifier)
    epoch = 0
    with _bar(epochs, progress) as advance:
        for epoch in range(1, epochs + 1):
            train_loss = _epoch(classifier, rows, optimiser, distil, batch_size, generator)
            schedule.step()
            val_loss, val_accuracy = _evaluate(classifier, held)
            if not math.isfinite(train_loss) or not math.isfinite(val_loss):
                raise ConfigError(
                    f"training the exit diverged in epoch {epoch}; are the features finite? lower lr={lr}"
                )
            if val_loss < best.val_loss - _MIN_DELTA:
                best = Best(epoch, train_loss, val_loss, val_accuracy)
                kept = _weights(classifier)
            advance(f"exit: {val_accuracy:.1%} right on validation")
            if epoch - best.epoch >= patience:
                break
    classifier.load_state_dict(kept)
    return replace(best, epochs=epoch)


def _epoch(
    classifier: nn.Module,
    rows: Rows,
    optimiser: torch.optim.Optimizer,
    distil: Distil,
    batch_size: int,
    generator: torch.Generator,
) -> float:
    total = torch.zeros((), device=rows.features.device)
    order = torch.randperm(len(rows), generator=generator).to(rows.features.device)
    for i in range(0, len(rows), batch_size):
        part = rows.take(order[i : i + batch_size])
        loss = distil.loss(classifier(part.features), part.targets, part.teacher)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        total += loss.detach() * len(part)
    return float(total) / len(rows)


@torch.no_grad()
def _evaluate(classifier: nn.Module, rows: Rows) -> tuple[float, float]:
    """Cross-entropy in nats and accuracy."""
    logits = classifier(rows.features)
    right = (logits.argmax(1) == rows.targets).float().mean()
    return float(F.cross_entropy(logits, rows.targets)), float(right)


def _weights(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in module.state_dict().items()}


@contextmanager
def _bar(epochs: int, wanted: bool) -> Iterator[Callable[[str], None]]:
    """A progress bar that appears only once the work has taken a while."""
    from rich.console import Console
    from rich.progress import Progress

    bar = Progress(console=Console(stderr=True), disable=not wanted, transient=True)
    task = bar.add_task("exit", total=epochs)
    began, shown = time.monotonic(), False

    def advance(text: str) -> None:
        nonlocal shown
        if wanted and not shown and time.monotonic() - began > _SHOW_AFTER_S:
            bar.start()
            shown = True
        bar.update(task, advance=1, description=text)

    try:
        yield advance
    finally:
        if shown:
            bar.stop()


def _join(batches: Batches, what: str) -> torch.Tensor:
    if isinstance(batches, torch.Tensor):
        return batches.detach().cpu()
    parts = [part.detach().cpu() for part in batches]
    if not parts:
        raise ConfigError(f"{what}: no batches given")
    return torch.cat(parts)
