"""Train the learned codecs of a plan and put them in their places.

A codec that nobody asked for must not make things worse, nor take long unasked: it is trained for a minute
at most where no other limit is given, and put in only if it is about as good as the whole model.
"""

from __future__ import annotations

import math
import time
from contextlib import AbstractContextManager
from dataclasses import replace

import torch

from splitedge.choice import Choice
from splitedge.costs import Effort, measure
from splitedge.errors import ConfigError, SplitedgeError
from splitedge.evaluation import boundaries_of
from splitedge.learning import LearnedCodec, Recipe, Schedule, TrainedCodec
from splitedge.plan import Plan
from splitedge.planner import options_of
from splitedge.rows import LabelledRows
from splitedge.tasks import task_of

BATCH = 128
#: A first look at a new codec; `fit` measures again at its end.
LOOK = Effort(rows=4, repeats=3, warm_up=1)
#: Seconds of training for codecs that nobody asked for, all cuts together.
UNASKED_S = 60.0
#: Accuracy that such a codec may lose on the validation rows and still be put in.
UNASKED_LOSS = 0.05
#: Training rows, and validation rows to stop by, that it needs: with fewer its accuracy says nothing.
UNASKED_ROWS = (64, 16)
#: Part of the validation rows that says when training stops.
STOP_PART = 0.25


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


def ready_to_train(plan: Plan, train_rows: int, val_rows: int) -> Plan:
    """The plan, its recipes for codecs that nobody asked for marked unused where there are too few rows."""
    least, least_stop = UNASKED_ROWS
    stop_rows = round(STOP_PART * val_rows)
    why = ""
    if train_rows < least or stop_rows < least_stop:
        why = (
            f"{train_rows} training and {val_rows} validation rows are too few to train the default one "
            f"(at least {least} and {round(least_stop / STOP_PART)})"
        )
    recipes = {
        cut: replace(recipe, unused=why if recipe.default else "") for cut, recipe in plan.recipes.items()
    }
    return replace(plan, recipes=recipes)


def train_codecs(
    plan: Plan, train: LabelledRows, stop: LabelledRows, schedule: Schedule
) -> tuple[Plan, tuple[TrainedCodec, ...]]:
    """The plan with every recipe's codec trained and its options in the table; a budget is shared evenly.

    Recipes that are marked unused are passed over; one that turns out worse than it may be is marked.

    Args:
        plan: with all its segments; not changed.
        train: rows to train on.
        stop: rows that choose when to stop, and serve no other end.
        schedule: for all codecs.

    Raises:
        ConfigError: the plan lacks a part of the model, training diverged, or the device is not there.
        CodecError: the tensors or options are not for the codec.
    """
    wanted = {boundary: recipe for boundary, recipe in plan.recipes.items() if not recipe.unused}
    if not wanted:
        return plan, ()
    teacher = _teacher_accuracy(plan, stop)
    recipes, codecs, sources, found = dict(plan.recipes), dict(plan.codecs), dict(plan.sources), []
    for boundary, recipe in sorted(wanted.items()):
        share = _share(schedule, boundary, len(wanted), recipe.default)
        codec, how = _train_one(plan, boundary, recipe, train, stop, share, teacher)
        if recipe.default:
            how = replace(how, unused=_too_bad(how))
        recipes[boundary] = replace(recipe, unused=how.unused)
        found.append(how)
        if not how.unused:
            codecs[boundary], sources[boundary] = codec, recipe.source
    sources = {i: s for i, s in sources.items() if i != s}
    plan = replace(plan, recipes=recipes, codecs=codecs, sources=sources)
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
    try:
        with _own_randomness():
            codec, right, sizes, epochs = kind.train(task, schedule, **recipe.options)
    except (SplitedgeError, RuntimeError) as error:
        if not recipe.default:
            raise
        raise ConfigError(
            f"training the default codec '{recipe.name}' failed: {error}; deploy(codec='int8') does without"
        ) from error
    codec.to(torch.device("cpu"))
    seconds = time.perf_counter() - start
    name = plan.boundaries[boundary].name
    return codec, TrainedCodec(recipe.name, name, epochs, seconds, right, sizes, teacher)


def _own_randomness() -> AbstractContextManager[None]:
    """The caller's random generators are left as they were, whatever a codec seeds."""
    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()  # type: ignore[no-untyped-call]
    return torch.random.fork_rng(devices=devices)


def _too_bad(how: TrainedCodec) -> str:
    """Why a codec that nobody asked for is not put in; empty where it is."""
    best = max(how.val_accuracy)
    if best >= how.teacher_accuracy - UNASKED_LOSS:
        return ""
    return (
        f"'{how.name}', trained for {how.epochs} epochs in {how.seconds:.0f} s, is right on {best:.1%} of "
        f"validation rows, the whole model on {how.teacher_accuracy:.1%}; fit longer (epochs=, budget_s=), "
        f"or take it as it is (codec='{how.name}')"
    )


def _share(schedule: Schedule, boundary: int, codecs: int, unasked: bool) -> Schedule:
    """One codec's part of a schedule: of the budget, and a directory of its own."""
    budget = schedule.budget_s
    if budget is None and schedule.epochs is None and unasked:
        budget = UNASKED_S
    budget = None if budget is None else budget / codecs
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
