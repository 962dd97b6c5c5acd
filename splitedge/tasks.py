"""What a learned codec is trained on: the model around a cut, as copies that training may move and change."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from splitedge.errors import ConfigError
from splitedge.learning import Task
from splitedge.plan import Plan
from splitedge.program import Program
from splitedge.rows import LabelledRows


def task_of(plan: Plan, boundary: int, source: int, train: LabelledRows, val: LabelledRows) -> Task:
    """The task of a codec that reads boundary `source` and stands at boundary `boundary`.

    Args:
        plan: with all its segments.
        boundary: of the cut, 1 or more.
        source: what the encoder reads, from 0 (the model's input) to `boundary`.
        train: rows to train on.
        val: rows that choose when to stop.

    Raises:
        ConfigError: a part of the model could not be captured, so that it can not be trained through.
    """
    count = len(plan.boundaries)
    return Task(
        reads=plan.boundaries[source].specs,
        cut=plan.boundaries[boundary].specs,
        outputs=plan.answers.structure,
        logits=plan.answers.logits,
        before=_copies(plan, range(source)),
        head=_copies(plan, range(source, boundary)),
        tail=_copies(plan, range(boundary, count)),
        train=train,
        val=val,
        tails=plan.answers.tails,
    )


def task_of_tail(
    plan: Plan, boundary: int, name: str, train: LabelledRows, val: LabelledRows, *, labelled: bool
) -> Task:
    """The task of one extra tail behind the codec at a cut; otherwise as `task_of`.

    Args:
        plan: with all its segments.
        boundary: of the cut.
        name: of the tail.
        train, val: as for `task_of`.
        labelled: whether their labels are this tail's.

    Raises:
        ConfigError: as for `task_of`.
    """
    task = task_of(plan, boundary, plan.source(boundary), train, val)
    answers = plan.answers.of_tail(name)
    return replace(
        task,
        outputs=answers.structure,
        logits=answers.logits if labelled else None,
        tail=task.tail_of(plan.answers.tails[name]),
        tails={},
    )


def _copies(plan: Plan, indices: Iterable[int]) -> tuple[Program, ...]:
    return tuple(_copy(plan, i) for i in indices)


def _copy(plan: Plan, index: int) -> Program:
    segment = plan.segments[index]
    if not isinstance(segment, Program):
        raise ConfigError(
            f"the part of the model behind '{plan.boundaries[index].name or 'the input'}' could not be "
            f"captured (it is a {type(segment).__name__}): a learned codec can not be trained through it; "
            "take codec 'int8'"
        )
    return segment.copy()
