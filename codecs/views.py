"""Training rows under a few random orders and changes, so that what a teacher says can be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import psutil
import torch

from splitedge.codec import Tensors
from splitedge.codecs.augment import augment_of
from splitedge.learning import Schedule, Task
from splitedge.rows import LabelledRows

VIEWS = 6
#: Part of the memory that is free at the start that a teacher's answers may take; what finds no room is asked
#: for anew every time.
SHARE = 0.25
#: Values a row beyond which a tensor is kept in 8 bits.
SMALL = 1024

#: Of a batch: view, first row.
Key = tuple[int, int]
#: A tensor as it is kept: itself, or its codes and their step.
_Kept = torch.Tensor | tuple[torch.Tensor, torch.Tensor]


class Views:
    """Epoch e runs through view e % VIEWS: one order of the rows and one random change of each.

    A teacher's answer to a batch of a view is asked for once and kept, so that after VIEWS epochs a step
    costs what the student costs. An epoch depends on its number alone: training that goes on from a
    checkpoint sees what it would have seen.

    Use `views_of`: several trainings on one task then ask its teacher once.

    Args:
        rows: to train on.
        schedule: batch size, seed and augmentation.
    """

    def __init__(self, rows: LabelledRows, schedule: Schedule) -> None:
        self._rows, self._schedule = rows, schedule
        self._kept: dict[tuple[Key, str], tuple[_Kept, ...]] = {}
        self._room = int(SHARE * psutil.virtual_memory().available)

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return sum(1 for _ in self._starts())

    def _starts(self) -> Iterator[int]:
        """A last batch of one row is left out: batch norm needs two."""
        size, rows = self._schedule.batch_size, len(self._rows)
        return (start for start in range(0, rows, size) if rows == 1 or rows - start > 1)

    def epoch(self, number: int) -> Iterator[tuple[Key, Tensors, torch.Tensor]]:
        """Batches of an epoch: a key that `answers` takes, flat inputs, labels."""
        view, schedule = number % VIEWS, self._schedule
        generator = torch.Generator().manual_seed(schedule.seed * 7919 + view)
        order = torch.randperm(len(self._rows), generator=generator)
        for start in self._starts():
            rows = self._rows.take(order[start : start + schedule.batch_size])
            inputs = augment_of(schedule.augment, rows.inputs)(rows.inputs, generator)
            yield (view, start), inputs, rows.labels

    def answers(self, key: Key, what: str, ask: Callable[[], Tensors]) -> Tensors:
        """What the teacher says to the batch of this key, on the CPU where it was kept.

        Large float tensors are kept as 8-bit codes over their range, an error of 0.2% of the extreme, far
        below what a student misses them by.

        Args:
            key: of the batch, as `epoch` gives it.
            what: name of what is asked for.
            ask: asks the teacher.
        """
        found = self._kept.get((key, what))
        if found is not None:
            return tuple(t if isinstance(t, torch.Tensor) else _restored(*t) for t in found)
        said = ask()
        size = sum(t.numel() if _large(t) else t.numel() * t.element_size() for t in said)
        if size <= self._room:
            self._room -= size
            self._kept[key, what] = tuple(_coded(t) if _large(t) else t.detach().cpu() for t in said)
        return said


def views_of(task: Task, schedule: Schedule) -> Views:
    """Views of a task's training rows; those of an earlier training under the same schedule, if any."""
    alike = (schedule.batch_size, schedule.seed, schedule.augment, schedule.precision, schedule.device)
    found = task.memory.get(alike)
    if not isinstance(found, Views):
        found = task.memory[alike] = Views(task.train, schedule)
    return found


def _large(tensor: torch.Tensor) -> bool:
    return tensor.is_floating_point() and tensor.numel() > SMALL * len(tensor)


def _coded(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    lo, hi = tensor.detach().float().aminmax()
    step = ((hi - lo) / 255).clamp_min(1e-12)
    codes = ((tensor.detach().float() - lo) / step).round().to(torch.uint8)
    return codes.cpu(), torch.stack([lo, step]).cpu()


def _restored(codes: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
    return codes.to(torch.float32).mul_(ends[1]).add_(ends[0])
