"""Teach extra tails to answer from the payloads of a learned codec, and report how they do.

What is sent stays as the main task made it. A tail is taught by its original, which reads the model's own
tensors: that takes no labels. Where there are some of its classes, it learns from them too.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from splitedge.choice import Choice
from splitedge.codec import Codec, Tensors
from splitedge.errors import ConfigError
from splitedge.evaluation import answered, boundaries_of
from splitedge.learning import LearnedCodec, Schedule
from splitedge.plan import Plan
from splitedge.rows import LabelledRows
from splitedge.segments import Answers
from splitedge.tasks import task_of_tail
from splitedge.trained import UNASKED_S

BATCH = 128


@dataclass(frozen=True, slots=True)
class TailScore:
    """How an extra tail answers on what a codec lets through.

    Attributes:
        distortion: squared distance to what its original answers on the model's own tensors over the
            square of that; the mean of several outputs.
        agreement: part of the rows with the original's class; NaN where it gives no logits of two classes or
            more.
        accuracy: part of the rows answered right; NaN without labels.
    """

    distortion: float
    agreement: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class TrainedTail:
    """How one extra tail learned to answer from a learned codec's payloads.

    Attributes:
        name: of the tail.
        codec, cut: whose payloads.
        levels: names of the codec's.
        rows: of the report; none of them was trained on or said when to stop.
        before: by level, of the original on the cut as the codec reproduces it for the main task.
        after: by level, of the trained copy, which is deployed.
        accuracy: of the original on the model's own tensors; NaN without labels.
        epochs: run; 0 for a codec that gives the cut and holds no tail.
        seconds: of training.
    """

    name: str
    codec: str
    cut: str
    levels: tuple[str, ...]
    rows: int
    before: tuple[TailScore, ...]
    after: tuple[TailScore, ...]
    accuracy: float
    epochs: int
    seconds: float

    def __str__(self) -> str:
        lines = [
            f"tail '{self.name}' behind codec '{self.codec}' at '{self.cut}': {self.epochs} epochs, "
            f"{self.seconds:.0f} s"
        ]
        for level, before, after in zip(self.levels, self.before, self.after, strict=True):
            told = [f"distortion {before.distortion:.4f} -> {after.distortion:.4f}"]
            if not math.isnan(after.agreement):
                told.append(f"agrees {before.agreement:.1%} -> {after.agreement:.1%}")
            if not math.isnan(after.accuracy):
                told.append(
                    f"right {before.accuracy:.1%} -> {after.accuracy:.1%} (whole {self.accuracy:.1%})"
                )
            lines.append(f"  {level}: {', '.join(told)}")
        return "\n".join(lines)


@dataclass(frozen=True, slots=True)
class TailRows:
    """Rows of one tail's own classes, each part with one end.

    Attributes:
        train: to train on.
        stop: that say when to stop.
        report: that it is reported on.
        labelled: whether the labels are this tail's classes.
    """

    train: LabelledRows
    stop: LabelledRows
    report: LabelledRows
    labelled: bool = False

    @classmethod
    def divided(cls, rows: LabelledRows, seed: int) -> TailRows:
        """Seven parts of ten to train on, the rest as `fit` divides validation rows.

        Raises:
            ConfigError: too few rows.
        """
        train, val = rows.divide(0.3, seed)
        report, stop = val.divide(0.25, seed + 2)
        return cls(train, stop, report, labelled=True)


def check_tail_data(plan: Plan, given: Mapping[str, LabelledRows]) -> None:
    """Whether labels of extra tails can be learned from.

    Raises:
        ConfigError: no learned codec, no tail of that name, one without logits, or labels out of range.
    """
    if given and not plan.recipes:
        raise ConfigError(
            "tail_data is for the tails behind a learned codec; this deployment has no such codec"
        )
    for name, rows in given.items():
        if name not in plan.answers.tails:
            known = ", ".join(plan.answers.tails) or "none"
            raise ConfigError(f"tail_data names '{name}'; the extra tails are: {known}")
        classes = _classes(plan.answers.of_tail(name))
        if classes is None:
            raise ConfigError(
                f"tail_data of '{name}': classes are for a tail that gives logits of two or more; one that "
                "does not is taught by its original, from the training rows"
            )
        if int(rows.labels.min()) < 0 or int(rows.labels.max()) >= classes:
            raise ConfigError(f"tail_data of '{name}': labels lie between 0 and {classes - 1}")


def shared(schedule: Schedule, plan: Plan) -> tuple[Schedule, Schedule]:
    """What the learned codecs of a plan have of a schedule together, and what each tail behind one of them.

    Of a budget every codec and every tail that learns has the same part. Where nothing limits training and
    nobody asked for the codecs, a tail has as long as they.
    """
    recipes = [recipe for recipe in plan.recipes.values() if not recipe.unused]
    if schedule.budget_s is None:
        unasked = schedule.epochs is None and all(recipe.default for recipe in recipes)
        return schedule, replace(schedule, budget_s=UNASKED_S) if unasked else schedule
    kinds = [Choice(recipe.name).learned for recipe in recipes]
    teachable = sum(kind is not None and kind.gives == "output" for kind in kinds)
    part = schedule.budget_s / max(len(kinds) + teachable * len(plan.answers.tails), 1)
    return replace(schedule, budget_s=part * len(kinds)), replace(schedule, budget_s=part)


def train_tails(
    plan: Plan, rows: TailRows, labelled: Mapping[str, TailRows], schedule: Schedule
) -> tuple[Plan, tuple[TrainedTail, ...]]:
    """The plan with every extra tail taught behind every learned codec.

    Args:
        plan: with all its segments, its learned codecs trained; not changed.
        rows: of the main task, for the tails without labels.
        labelled: rows of a tail's own, by its name.
        schedule: for each tail behind each codec.

    Raises:
        ConfigError: training diverged, or the device is not there.
    """
    codecs, found = dict(plan.codecs), []
    for boundary in sorted(cut for cut in plan.recipes if codecs[cut].learned):
        for name in plan.answers.tails:
            mine = labelled.get(name, rows)
            codecs[boundary], how = _teach(plan, boundary, codecs[boundary], name, mine, schedule)
            found.append(how)
    return replace(plan, codecs=codecs), tuple(found)


def _teach(
    plan: Plan, boundary: int, codec: Codec, name: str, rows: TailRows, schedule: Schedule
) -> tuple[Codec, TrainedTail]:
    assert isinstance(codec, LearnedCodec)  # `train_codecs` has put it there
    if schedule.checkpoint is not None:
        directory = schedule.checkpoint / f"cut-{boundary}" / f"tail-{name}"
        schedule = replace(schedule, checkpoint=directory)
    task = task_of_tail(plan, boundary, name, rows.train, rows.stop, labelled=rows.labelled)
    before, whole = _scores(plan, boundary, codec, name, rows)
    start = time.perf_counter()
    taught, epochs = codec.taught(task, plan.answers.tails[name], schedule)
    seconds = time.perf_counter() - start
    after, _ = _scores(plan, boundary, taught, name, rows)
    return taught, TrainedTail(
        name=name,
        codec=codec.name,
        cut=plan.boundaries[boundary].name,
        levels=codec.levels,
        rows=len(rows.report),
        before=before,
        after=after,
        accuracy=whole.accuracy,
        epochs=epochs,
        seconds=seconds,
    )


def _scores(
    plan: Plan, boundary: int, codec: Codec, name: str, rows: TailRows
) -> tuple[tuple[TailScore, ...], TailScore]:
    """A tail's by level, as payloads bring it; and its original's."""
    answers, outputs = plan.answers.of_tail(name), plan.answers.tails[name]
    logits = None if _classes(answers) is None else answers.logits
    whole, tallies = _Tally(logits, rows.labelled), [_Tally(logits, rows.labelled) for _ in codec.levels]
    with torch.inference_mode():
        for batch in rows.report.batches(BATCH if plan.batchable else 1):
            reached = boundaries_of(plan, batch.inputs)
            wanted = reached[-1][outputs.start : outputs.stop]
            whole.add(wanted, wanted, batch.labels)
            for level, tally in enumerate(tallies):
                payload = codec.encode(reached[plan.source(boundary)], level)
                found = answered(plan, boundary, codec.decode(payload))
                tally.add(found[outputs.start : outputs.stop], wanted, batch.labels)
    return tuple(tally.score() for tally in tallies), whole.score()


class _Tally:
    """Sums of what a `TailScore` is made of, over batches."""

    def __init__(self, logits: int | None, labelled: bool) -> None:
        self._logits, self._labelled = logits, labelled
        self._rows = self._agreed = self._right = 0
        self._far: dict[int, float] = {}
        self._norm: dict[int, float] = {}

    def add(self, found: Tensors, wanted: Tensors, labels: torch.Tensor) -> None:
        """One batch."""
        for i, (f, w) in enumerate(zip(found, wanted, strict=True)):
            if w.is_floating_point():
                self._far[i] = self._far.get(i, 0.0) + float((f.double() - w).square().sum())
                self._norm[i] = self._norm.get(i, 0.0) + float(w.double().square().sum())
        self._rows += len(labels)
        if self._logits is not None:
            classes = found[self._logits].argmax(1)
            self._agreed += int((classes == wanted[self._logits].argmax(1)).sum())
            self._right += int((classes == labels).sum())

    def score(self) -> TailScore:
        """Of all batches."""
        far = sum(self._far[i] / max(self._norm[i], 1e-12) for i in self._far) / max(len(self._far), 1)
        agreed = math.nan if self._logits is None else self._agreed / self._rows
        return TailScore(far, agreed, self._right / self._rows if self._labelled else math.nan)


def _classes(answers: Answers) -> int | None:
    """Of a classifier of two classes or more; None for anything else."""
    at = answers.logits
    return None if at is None or answers.specs[at].shape[1] < 2 else answers.specs[at].shape[1]
