"""Staged training of a student against its teacher (`stages` says what a stage is).

The epoch of a stage that did best on the validation rows is kept. Training can be cut off and goes on from
its checkpoint.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn

from splitedge.codec import Tensors
from splitedge.codecs import checkpoint
from splitedge.codecs.judging import by_accuracy, goodness, loss_of
from splitedge.codecs.precision import channels_last, mixed, placed
from splitedge.codecs.stages import Stage
from splitedge.codecs.student import Coding, Student, Teacher
from splitedge.codecs.views import Key, views_of
from splitedge.errors import ConfigError
from splitedge.learning import Schedule, Task
from splitedge.placing import device_named

#: Where nobody says how long: so many epochs, or as many as make so many steps, if that is more.
EPOCHS, STEPS = 30, 600
#: A stage ends early when no epoch was better for so many, and for half of its epochs: while the learning
#: rate is high, scores are noisy and say little.
PATIENCE = 8
WARM_UP = 0.05
#: Validation rows that an epoch is judged by, at most.
JUDGED_ROWS = 2000

#: Says what is being done now.
Advance = Callable[[str], None]


@dataclass(slots=True)
class _Clock:
    """How far a stage is, by epochs and by seconds, whichever is further."""

    steps: int
    seconds: float
    done: int = 0
    began: float = 0.0

    def part(self) -> float:
        """0 at the start, 1 at the end."""
        spent = (time.monotonic() - self.began) / self.seconds if self.seconds < math.inf else 0.0
        return min(max(self.done / self.steps, spent), 1.0)

    def pace(self) -> float:
        """Of the learning rate: up over the warm-up, then down along a cosine."""
        part = self.part()
        if part < WARM_UP:
            return 0.1 + 0.9 * part / WARM_UP
        return 0.5 * (1 + math.cos(math.pi * (part - WARM_UP) / (1 - WARM_UP)))


def train(student: Student, teacher: Teacher, task: Task, schedule: Schedule, stages: Sequence[Stage]) -> int:
    """Train a student; it is left on the CPU, in eval mode, with its best weights.

    Returns:
        Epochs run.

    Raises:
        ConfigError: training diverged, the device is not there, or a checkpoint is of other training.
    """
    return _Training(student, teacher, task, schedule, stages).run()


class _Training:
    """One student's."""

    def __init__(
        self, student: Student, teacher: Teacher, task: Task, schedule: Schedule, stages: Sequence[Stage]
    ) -> None:
        self.student, self.teacher, self.task = student, teacher, task
        self.schedule, self.stages = schedule, stages
        self.device = device_named(schedule.device)
        self.views = views_of(task, schedule)
        by_default = max(EPOCHS, -(-STEPS // max(self.views.steps, 1)))
        self.total = by_default if schedule.epochs is None else max(schedule.epochs, 1)
        self.judged = task.val.first(JUDGED_ROWS)
        for net in (student, teacher):
            placed(net, self.device, torch.channels_last)

    def run(self) -> int:
        """All stages, from where a checkpoint stands."""
        of = self._name()
        where = self.schedule.checkpoint
        found = None if where is None else checkpoint.load(where, of)
        names = [stage.name for stage in self.stages]
        behind = names.index(found[0].stage) if found is not None else 0
        epochs = 0
        with _bar(self.schedule.progress, self.total) as advance:
            for i, (stage, count) in enumerate(zip(self.stages, self._counts(), strict=True)):
                if i < behind or not count:
                    continue  # the weights come with the stage that the checkpoint is of
                here = found if i == behind else None
                at = here[0] if here is not None else checkpoint.Progress(of, stage.name)
                epochs += self._stage(stage, at, here[1] if here is not None else None, count, advance)
        for net in (self.student, self.teacher):
            placed(net, torch.device("cpu"), torch.contiguous_format)
        self.student.eval()
        return epochs

    def _counts(self) -> list[int]:
        """Epochs of each stage; what rounding leaves goes to the last."""
        counts = [round(stage.share * self.total) for stage in self.stages[:-1]]
        if self.total >= len(self.stages):
            counts = [max(count, 1) for count in counts]
        return [*counts, max(self.total - sum(counts), 0)]

    def _name(self) -> str:
        """What a checkpoint is of: all that changes what training does, the seconds it may take left out."""
        task, schedule = self.task, self.schedule
        shapes = [(name, tuple(value.shape)) for name, value in self.student.state_dict().items()]
        rows = [len(task.train), int(task.train.labels.sum()), len(task.val)]
        augment = schedule.augment if isinstance(schedule.augment, str) else "function"
        how = [schedule.seed, schedule.batch_size, augment, schedule.precision, self.total]
        told = [shapes, rows, how, repr(self.student.coding), [asdict(stage) for stage in self.stages]]
        return hashlib.sha256(json.dumps(told).encode()).hexdigest()[:16]

    def _stage(
        self,
        stage: Stage,
        at: checkpoint.Progress,
        tensors: checkpoint.Weights | None,
        epochs: int,
        advance: Advance,
    ) -> int:
        """Run a stage from where `at` stands to its end; leaves the best weights, returns its epochs."""
        student, schedule = self.student, self.schedule
        for name in ("encoder", "coding", "decoder", "tail"):
            getattr(student, name).requires_grad_(name not in stage.frozen)
        for module in student.modules():
            if isinstance(module, Coding):
                module.quantised = stage.quantised
        weights = [p for p in student.parameters() if p.requires_grad]
        optimiser = _optimiser(stage, weights)
        if tensors is not None:
            kept = checkpoint.restore(tensors, student, optimiser)
        else:
            kept = _weights(student)
            anew = stage is self.stages[0] and "encoder" not in stage.frozen  # from random weights
            at.best = None if anew else self._score(stage)
        seconds = math.inf if schedule.budget_s is None else schedule.budget_s * stage.share
        began = time.monotonic() - at.seconds
        clock = _Clock(max(epochs * self.views.steps, 1), seconds, at.done, began)
        levels = torch.Generator()
        patience = max(PATIENCE, epochs // 2)
        while at.ran < epochs and at.since < patience and clock.part() < 1.0:
            levels.manual_seed(schedule.seed + at.ran)
            for key, inputs, labels in self.views.epoch(at.ran):
                for group in optimiser.param_groups:
                    group["lr"] = stage.lr * clock.pace()
                self._step(stage, key, inputs, labels, optimiser, weights, levels)
                clock.done += 1
                if clock.part() >= 1.0:
                    break
            at.ran += 1
            score = self._score(stage)
            advance(f"{stage.name}: {score:.3f} on validation")
            at.since += 1
            if at.best is None or score > at.best:
                at.best, at.since, kept = score, 0, _weights(student)
            if schedule.checkpoint is not None:
                at.done, at.seconds = clock.done, time.monotonic() - clock.began
                checkpoint.save(schedule.checkpoint, at, student, kept, optimiser)
        student.load_state_dict(kept)
        return at.ran

    def _step(
        self,
        stage: Stage,
        key: Key,
        inputs: Tensors,
        labels: torch.Tensor,
        optimiser: torch.optim.Optimizer,
        weights: Sequence[torch.Tensor],
        generator: torch.Generator,
    ) -> None:
        student = self.student
        student.train()
        for name in stage.frozen:
            getattr(student, name).eval()
        labels = labels.to(self.device)
        optimiser.zero_grad(set_to_none=True)
        drawn = student.draw(generator)
        with mixed(self.device, self.schedule.precision):
            reads = self._reads(inputs)
            outputs, features = self._wanted(stage, key, reads)
        for level in drawn:
            with mixed(self.device, self.schedule.precision):
                found = student(reads, level)
            loss = loss_of(stage, found, outputs, features, labels, self.task.logits)
            if not bool(torch.isfinite(loss)):
                raise ConfigError("training the codec diverged; are the inputs finite and normalised?")
            (loss / len(drawn)).backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(weights, 5.0)
        optimiser.step()

    def _wanted(self, stage: Stage, key: Key, reads: torch.Tensor) -> tuple[Tensors, Tensors]:
        """The teacher's outputs and, where the stage distils, its cut and taps."""
        if not stage.distil:
            outputs = self.views.answers(key, "outputs", lambda: self.teacher(reads).outputs)
            return tuple(t.to(self.device) for t in outputs), ()

        def ask() -> Tensors:
            said = self.teacher(reads)
            return (*said.outputs, said.cut, *said.taps)

        said = tuple(t.to(self.device) for t in self.views.answers(key, "all", ask))
        count = len(self.task.main)
        return said[:count], said[count:]

    def _reads(self, inputs: Tensors) -> torch.Tensor:
        (reads,) = channels_last((self.teacher.reads(tuple(t.to(self.device) for t in inputs)),))
        return reads

    @torch.no_grad()
    def _score(self, stage: Stage) -> float:
        """How good the student is on validation rows, more is better."""
        student, logits = self.student, self.task.logits
        student.eval()
        target = student.coding.target
        total, count = 0.0, 0
        for rows in self.judged.batches(self.schedule.batch_size):
            labels = rows.labels.to(self.device)
            with mixed(self.device, self.schedule.precision):
                reads = self._reads(rows.inputs)
                wanted = None if by_accuracy(stage, logits, target) else self.teacher(reads)
                for level in range(student.levels):
                    total += goodness(stage, student(reads, level), wanted, labels, logits, target)
            count += len(rows) * student.levels
        return total / count


def _optimiser(stage: Stage, weights: Sequence[torch.Tensor]) -> torch.optim.Optimizer:
    if stage.optimiser == "sgd":
        return torch.optim.SGD(weights, lr=stage.lr, momentum=0.9, weight_decay=5e-4)
    return torch.optim.AdamW(weights, lr=stage.lr, weight_decay=1e-4)


def _weights(student: Student) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in student.state_dict().items()}


@contextmanager
def _bar(wanted: bool, epochs: int) -> Iterator[Advance]:
    with Progress(console=Console(stderr=True), disable=not wanted, transient=True) as bar:
        task = bar.add_task("training", total=epochs)

        def advance(text: str) -> None:
            bar.update(task, advance=1, description=text)

        yield advance
