"""Training rows under a few random orders and changes, so that what a teacher says can be kept."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch

from splitedge.codec import Tensors
from splitedge.codecs.augment import augment_of
from splitedge.learning import Schedule
from splitedge.rows import LabelledRows

VIEWS = 8
#: Bytes that the kept outputs of a teacher may take; beyond that it answers anew every time.
MOST_KEPT = 256 << 20


class Views:
    """Epoch e runs through view e % VIEWS: one order of the rows and one random change of each.

    A teacher's answer to a batch of a view is asked for once and kept, so that after VIEWS epochs a step
    costs what the student costs. An epoch depends on its number alone: training that goes on from a
    checkpoint sees what it would have seen.

    Args:
        rows: to train on.
        schedule: batch size, seed and augmentation.
    """

    def __init__(self, rows: LabelledRows, schedule: Schedule) -> None:
        self._rows, self._schedule = rows, schedule
        self._kept: dict[tuple[int, int], Tensors] = {}
        self._bytes = 0

    @property
    def steps(self) -> int:
        """Batches of an epoch."""
        return sum(1 for _ in self._starts())

    def _starts(self) -> Iterator[int]:
        """A last batch of one row is left out: batch norm needs two."""
        size, rows = self._schedule.batch_size, len(self._rows)
        return (start for start in range(0, rows, size) if rows == 1 or rows - start > 1)

    def epoch(self, number: int) -> Iterator[tuple[tuple[int, int], Tensors, torch.Tensor]]:
        """Batches of an epoch: a key that `answers` takes, flat inputs, labels."""
        view, schedule = number % VIEWS, self._schedule
        generator = torch.Generator().manual_seed(schedule.seed * 7919 + view)
        order = torch.randperm(len(self._rows), generator=generator)
        for start in self._starts():
            rows = self._rows.take(order[start : start + schedule.batch_size])
            inputs = augment_of(schedule.augment, rows.inputs)(rows.inputs, generator)
            yield (view, start), inputs, rows.labels

    def answers(self, key: tuple[int, int], ask: Callable[[], Tensors]) -> Tensors:
        """The teacher's flat outputs for the batch of this key, asked for once where there is room."""
        if key in self._kept:
            return self._kept[key]
        found = ask()
        size = sum(t.numel() * t.element_size() for t in found)
        if self._bytes + size <= MOST_KEPT:
            self._bytes += size
            self._kept[key] = tuple(t.detach().clone() for t in found)
        return found
