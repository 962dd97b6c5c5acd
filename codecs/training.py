"""Staged training of a bottleneck: distil the head, then fine-tune the answer through the real quantiser.

Stage 1 is generalised head distillation with normalised distortion, the tail frozen (Matsubara et al.,
IEEE Access 2020; BottleFit, WoWMoM 2022, section IV). Stage 2 trains all of the student by cross-entropy
and knowledge distillation. Both run the deployed quantiser with straight-through gradients, so that low
bits lose little. The epoch that did best on the validation rows is kept.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import Progress
from torch.nn import functional as F

from splitedge.codec import Tensors
from splitedge.codecs import checkpoint
from splitedge.codecs.augment import augment_of
from splitedge.codecs.student import Student, Teacher, distortion
from splitedge.errors import ConfigError
from splitedge.learning import Schedule, Task
from splitedge.placing import device_named
from splitedge.rows import LabelledRows

EPOCHS = 30
DISTIL_SHARE = 0.6
PATIENCE = 8
LR = {"distil": 2e-3, "tune": 5e-4}
SOFT = 0.5  # weight of the teacher's logits beside the labels


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


def train(student: Student, teacher: Teacher, task: Task, schedule: Schedule) -> int:
    """Train a student; it is left on the CPU, in eval mode, with its best weights.

    Returns:
        Epochs run.

    Raises:
        ConfigError: training diverged, the device is not there, or a checkpoint is of other training.
    """
    device = device_named(schedule.device)
    student.to(device)
    teacher.to(device)
    total = EPOCHS if schedule.epochs is None else max(schedule.epochs, 1)
    distil = min(max(round(DISTIL_SHARE * total), 1), total)
    of = _name(student, task, schedule, total)
    found = None if schedule.checkpoint is None else checkpoint.load(schedule.checkpoint, of)
    epochs = 0
    with _bar(schedule.progress, total) as advance:
        for stage, count in (("distil", distil), ("tune", total - distil)):
            share = DISTIL_SHARE if stage == "distil" else 1 - DISTIL_SHARE
            seconds = math.inf if schedule.budget_s is None else schedule.budget_s * share
            if found is not None and found[0].stage == "tune" and stage == "distil":
                continue  # behind us already; the weights come with the next stage
            if count:
                resumed = found if found is not None and found[0].stage == stage else None
                at = resumed[0] if resumed is not None else checkpoint.Progress(of, stage)
                tensors = resumed[1] if resumed is not None else None
                epochs += _stage(student, teacher, task, schedule, at, tensors, count, seconds, advance)
    student.cpu().eval()
    teacher.cpu()
    return epochs


def _name(student: Student, task: Task, schedule: Schedule, epochs: int) -> str:
    """What a checkpoint is of: all that changes what training does, the seconds it may take left out."""
    shapes = [(name, tuple(value.shape)) for name, value in student.state_dict().items()]
    rows = [len(task.train), int(task.train.labels.sum()), len(task.val)]
    augment = schedule.augment if isinstance(schedule.augment, str) else "function"
    how = [schedule.seed, schedule.batch_size, augment, epochs, student.steps]
    return hashlib.sha256(json.dumps([shapes, rows, how]).encode()).hexdigest()[:16]


def _stage(
    student: Student,
    teacher: Teacher,
    task: Task,
    schedule: Schedule,
    at: checkpoint.Progress,
    tensors: checkpoint.Weights | None,
    epochs: int,
    seconds: float,
    advance: Advance,
) -> int:
    """Run a stage from where `at` stands to its end; leaves the best weights, returns its epochs."""
    student.requires_grad_(True)
    if at.stage == "distil":
        student.tail.requires_grad_(False)
    weights = [p for p in student.parameters() if p.requires_grad]
    optimiser = torch.optim.AdamW(weights, lr=LR[at.stage], weight_decay=1e-4)
    generator = torch.Generator().manual_seed(schedule.seed + (at.stage == "tune"))
    size = schedule.batch_size
    if tensors is not None:
        kept = checkpoint.restore(tensors, student, optimiser, generator)
    else:
        kept = _weights(student)
        at.best = _score(student, teacher, task, size) if at.stage == "tune" else None
    clock = _Clock(
        epochs * max(-(-len(task.train) // size), 1), seconds, at.done, time.monotonic() - at.seconds
    )
    while at.ran < epochs and at.since < PATIENCE and clock.part() < 1.0:
        at.ran += 1
        for rows in _shuffled(task.train, size, generator):
            inputs = augment_of(schedule.augment, rows.inputs)(rows.inputs, generator)
            for group in optimiser.param_groups:
                group["lr"] = LR[at.stage] * 0.5 * (1 + math.cos(math.pi * clock.part()))
            _step(student, teacher, task, at.stage, inputs, rows.labels, optimiser)
            clock.done += 1
            if clock.part() >= 1.0:
                break
        score = _score(student, teacher, task, size)
        advance(f"{at.stage}: {score:.3f} on validation")
        at.since += 1
        if at.best is None or score > at.best:
            at.best, at.since, kept = score, 0, _weights(student)
        if schedule.checkpoint is not None:
            at.done, at.seconds = clock.done, time.monotonic() - clock.began
            checkpoint.save(schedule.checkpoint, at, student, kept, optimiser, generator)
    student.load_state_dict(kept)
    return at.ran


def _step(
    student: Student,
    teacher: Teacher,
    task: Task,
    stage: str,
    inputs: Tensors,
    labels: torch.Tensor,
    optimiser: torch.optim.Optimizer,
) -> None:
    device = student.lo.device
    student.train()
    with torch.autocast(device.type, enabled=device.type == "cuda"):
        reads, cut, outputs, taps = teacher(tuple(t.to(device) for t in inputs))
        found, answers, felt = student(reads)
    loss = distortion([found, *felt], [cut, *taps])
    if stage == "tune":
        loss = 0.1 * loss + distortion(answers, outputs)
        if task.logits is not None:
            ours, theirs = answers[task.logits].float(), outputs[task.logits].float()
            soft = F.kl_div(
                ours.log_softmax(1), theirs.log_softmax(1), reduction="batchmean", log_target=True
            )
            loss = loss + SOFT * soft + (1 - SOFT) * F.cross_entropy(ours, labels.to(device))
    if not bool(torch.isfinite(loss)):
        raise ConfigError("training the bottleneck diverged; are the inputs finite and normalised?")
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    torch.nn.utils.clip_grad_norm_(student.parameters(), 5.0)
    optimiser.step()


@torch.no_grad()
def _score(student: Student, teacher: Teacher, task: Task, size: int) -> float:
    """Accuracy on the validation rows, less the distortion where there are no classes."""
    student.eval()
    right, far, count = 0, 0.0, 0
    for rows in task.val.batches(size):
        reads, cut, outputs, taps = teacher(tuple(t.to(student.lo.device) for t in rows.inputs))
        found, answers, felt = student(reads)
        if task.logits is not None:
            right += int((answers[task.logits].argmax(1).cpu() == rows.labels).sum())
        else:
            far += float(distortion([found, *felt, *answers], [cut, *taps, *outputs])) * len(rows)
        count += len(rows)
    return right / count if task.logits is not None else -far / count


def _shuffled(rows: LabelledRows, size: int, generator: torch.Generator) -> Iterator[LabelledRows]:
    order = torch.randperm(len(rows), generator=generator)
    for start in range(0, len(order), size):
        index = order[start : start + size]
        if len(index) > 1 or len(rows) == 1:  # batch norm needs two rows
            yield rows.take(index)


def _weights(student: Student) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in student.state_dict().items()}


@contextmanager
def _bar(wanted: bool, epochs: int) -> Iterator[Advance]:
    with Progress(console=Console(stderr=True), disable=not wanted, transient=True) as bar:
        task = bar.add_task("bottleneck", total=epochs)

        def advance(text: str) -> None:
            bar.update(task, advance=1, description=f"bottleneck, {text}")

        yield advance
