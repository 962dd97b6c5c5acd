"""Train the learned codecs of a plan and put them in their places."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import torch

from splitedge.choice import Choice
from splitedge.costs import Effort, measure
from splitedge.errors import ConfigError
from splitedge.evaluation import boundaries_of
from splitedge.learning import LearnedCodec, Recipe, Schedule, TrainedCodec
from splitedge.plan import Plan
from splitedge.planner import options_of
from splitedge.rows import LabelledRows
from splitedge.tasks import task_of

BATCH = 128
#: A first look at a new codec; `fit` measures again at its end.
LOOK = Effort(rows=4, repeats=3, warm_up=1)


def with_codec(plan: Plan, choice: Choice) -> Plan:
    """The plan with a recipe for this learned codec at every cut, in place of those it has.

    Raises:
        ConfigError: the codec needs no training.
        CodecError: it can not stand at one of the cuts.
    """
    kind = choice.learned
    if kind is None:
        raise ConfigError(
            f"codec '{choice}' needs no training: fit takes learned codecs; name this one to deploy(codec=)"
        )
    recipes = {}
    for cut in filter(None, plan.cuts):
        source = cut if kind.reads_cut else 0
        choice.check(plan.boundaries[source].specs, plan.boundaries[cut].specs)
        recipes[cut] = Recipe(choice.name, source, choice.options)
    return replace(plan, recipes=recipes)


def train_codecs(
    plan: Plan, train: LabelledRows, stop: LabelledRows, schedule: Schedule
) -> tuple[Plan, tuple[TrainedCodec, ...]]:
    """The plan with every recipe's codec trained and its options in the table; a budget is shared evenly.

    Args:
        plan: with all its segments; not changed.
        train: rows to train on.
        stop: rows that choose when to stop, and serve no other end.
        schedule: for all codecs.

    Raises:
        ConfigError: the plan lacks a part of the model, training diverged, or the device is not there.
        CodecError: the tensors or options are not for the codec.
    """
    if not plan.recipes:
        return plan, ()
    teacher = _teacher_accuracy(plan, stop)
    codecs, sources, found = dict(plan.codecs), dict(plan.sources), []
    for boundary, recipe in sorted(plan.recipes.items()):
        codecs[boundary], how = _train_one(plan, boundary, recipe, train, stop, schedule, teacher)
        sources[boundary] = recipe.source
        found.append(how)
    plan = replace(plan, codecs=codecs, sources={i: s for i, s in sources.items() if i != s})
    costs = measure(plan, train.first(LOOK.rows).inputs, LOOK)
    options = options_of(plan, costs, edge_speed=plan.edge_speed, cloud_speed=plan.cloud_speed)
    return replace(plan, options=options), tuple(found)


def _train_one(
    plan: Plan,
    boundary: int,
    recipe: Recipe,
    train: LabelledRows,
    stop: LabelledRows,
    schedule: Schedule,
    teacher: float,
) -> tuple[LearnedCodec, TrainedCodec]:
    kind = Choice(recipe.name).learned
    if kind is None:
        raise ConfigError(f"codec '{recipe.name}' is not learned by training; deploy the model again")
    task = task_of(plan, boundary, recipe.source, train, stop)
    start = time.perf_counter()
    codec, right, sizes, epochs = kind.train(
        task, _share(schedule, boundary, len(plan.recipes)), **recipe.options
    )
    codec.to(torch.device("cpu"))
    seconds = time.perf_counter() - start
    name = plan.boundaries[boundary].name
    return codec, TrainedCodec(recipe.name, name, epochs, seconds, right, sizes, teacher)


def _share(schedule: Schedule, boundary: int, codecs: int) -> Schedule:
    """One codec's part of a schedule: of the budget, and a directory of its own."""
    budget = None if schedule.budget_s is None else schedule.budget_s / codecs
    directory = None if schedule.checkpoint is None else schedule.checkpoint / f"cut-{boundary}"
    return replace(schedule, budget_s=budget, checkpoint=directory)


def _teacher_accuracy(plan: Plan, rows: LabelledRows) -> float:
    at = plan.answers.logits
    if at is None:
        return math.nan
    right = 0
    with torch.inference_mode():
        for batch in rows.batches(BATCH if plan.batchable else 1):
            right += int((boundaries_of(plan, batch.inputs)[-1][at].argmax(1) == batch.labels).sum())
    return right / len(rows)
