"""Train and calibrate what a plan holds, and measure its options: the work behind `Deployment.fit`.

Rows never serve two ends. Learned codecs, the extra tails behind them, exits and the codecs' static ranges
see the training rows. Where there are learned codecs, a quarter of the validation rows says when training
stops, and nothing else. One half of the others calibrates the confidences; the other half reports them, and
chooses thresholds. The accuracy of an option does not depend on the calibration and is measured on both
halves, and so are the extra tails; where a filter was asked for, which it does depend on, on the second half
alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from splitedge.calibration import Calibration, ece
from splitedge.codec import Tensors
from splitedge.costs import Effort, measure
from splitedge.errors import ConfigError
from splitedge.evaluation import Evaluation, answer_by, boundaries_of, evaluate
from splitedge.exit_segment import ExitSegment, export_exit
from splitedge.exits import TrainReport, train_exit
from splitedge.filtering import Filter, FilterReport, fit_filters, places, unfiltered
from splitedge.learning import Schedule, TrainedCodec
from splitedge.plan import Plan, twin
from splitedge.planner import options_of
from splitedge.policy import Option
from splitedge.rows import LabelledRows
from splitedge.segments import Evidence, ExitHead, confidence_of
from splitedge.tail_fitting import TailRows, TrainedTail, check_tail_data, shared, train_tails
from splitedge.trained import STOP_PART, ready_to_train, train_codecs

BATCH = 128
RANGE_ROWS = 512
EVIDENCE_ROWS = 20_000
EXIT_EPOCHS = 40
EFFORT = Effort(rows=128)


@dataclass(frozen=True, slots=True)
class Sureness:
    """How well one answerer knows itself, on rows its calibration has not seen.

    Attributes:
        name: `exit:0`, `local`, `whole` for the whole model, or an option's through a learned codec.
        path: where an exit stands, else empty.
        rows: of the report.
        accuracy: part of them answered right.
        ece_before, ece_after: expected calibration error of the largest softmax probability, and of the
            calibrated confidence.
        training: how the exit's training went, None where nothing was trained.
    """

    name: str
    path: str
    rows: int
    accuracy: float
    ece_before: float
    ece_after: float
    training: TrainReport | None = None


@dataclass(frozen=True, slots=True)
class FitReport:
    """What `fit` did.

    Attributes:
        sureness: of every exit, the local model, the whole model and what learned codecs let through.
        evaluation: of every option on the validation rows.
        train_rows, val_rows: rows of each kind; `val_rows` without those of `stop_rows`.
        split: whether the validation rows were taken from the training rows.
        codecs: how the training of each learned codec went.
        stop_rows: validation rows that said when it stopped.
        filter: what filters keep from being sent; None where none was asked for.
        tails: how every extra tail learned to answer from their payloads.
    """

    sureness: tuple[Sureness, ...]
    evaluation: Evaluation
    train_rows: int
    val_rows: int
    split: bool
    codecs: tuple[TrainedCodec, ...] = ()
    stop_rows: int = 0
    filter: FilterReport | None = None
    tails: tuple[TrainedTail, ...] = ()

    def __str__(self) -> str:
        width = max(len(f"{s.name} {s.path}") for s in self.sureness)
        taken = " (held out from the training rows)" if self.split else ""
        stop = f", {self.stop_rows} more to stop training by" if self.stop_rows else ""
        lines = [
            f"{self.train_rows} training rows, {self.val_rows} validation rows{stop}{taken}",
            *map(str, self.codecs),
            *map(str, self.tails),
            "",
            f"{'':<{width}}  accuracy  ECE before -> after calibration",
        ]
        for s in self.sureness:
            name = f"{s.name} {s.path}"
            lines.append(f"{name:<{width}}  {s.accuracy:>8.1%}  {s.ece_before:.3f} -> {s.ece_after:.3f}")
        if self.filter is not None:
            lines += ["", str(self.filter)]
        return "\n".join([*lines, "", str(self.evaluation)])


class Advance(Protocol):
    """Says what is being done now."""

    def __call__(self, text: str) -> None: ...


def fit_plan(
    plan: Plan,
    train: LabelledRows,
    val: LabelledRows | None,
    schedule: Schedule,
    wanted: Filter | None = None,
    tail_data: Mapping[str, LabelledRows] | None = None,
) -> tuple[Plan, FitReport]:
    """Train learned codecs, tails, exits and filters, calibrate, measure. The plan given is not changed.

    Args:
        plan: with all its segments, of a classifier.
        train: rows for learned codecs, exits and static ranges.
        val: rows that neither the model nor an exit was trained on; None takes 30% of `train`.
        schedule: how long and where to train, and the seed of everything drawn.
        wanted: filters for the splits; None for none.
        tail_data: rows with the classes of extra tails, by their names.

    Raises:
        ConfigError: too few rows, labels out of range, no classifier, training diverged, a plan that
            lacks a part of the model, or one that no filter can stand in.
        CodecError: a learned codec can not be made of these tensors.
    """
    if not plan.complete:
        raise ConfigError(
            "this bundle was fitted with a learned codec and no longer holds the whole model; fit the "
            "deployment or bundle that 'deploy' made"
        )
    if plan.answers.logits is None:
        raise ConfigError("fit needs a classifier: one output of logits, or one named 'logits'")
    seed, split, stop_rows = schedule.seed, val is None, 0
    if val is None:
        train, val = train.divide(0.3, seed)
    plan = unfiltered(plan)
    if wanted is not None:
        places(plan, wanted, train)  # what can not be is said before hours of training
    coded: tuple[TrainedCodec, ...] = ()
    tails: tuple[TrainedTail, ...] = ()
    check_tail_data(plan, tail_data or {})
    plan = ready_to_train(plan, len(train), len(val))
    if any(not recipe.unused for recipe in plan.recipes.values()):
        val, stop = val.divide(STOP_PART, seed + 2)
        stop_rows = len(stop)
        for_codecs, for_tail = shared(schedule, plan)
        plan, coded = train_codecs(plan, train, stop, for_codecs)
        labelled = {name: TailRows.divided(rows, seed) for name, rows in (tail_data or {}).items()}
        plan, tails = train_tails(plan, TailRows(train, stop, val), labelled, for_tail)
    report_rows, scale_rows = val.divide(0.5, seed + 1)
    epochs = EXIT_EPOCHS if schedule.epochs is None else schedule.epochs
    with _bar(schedule.progress, 5 + len(plan.exits) + (wanted is not None)) as advance:
        advance("reading what crosses the boundaries")
        plan = _ranged(plan, train.first(RANGE_ROWS))
        trained = []
        exits = []
        for head in plan.exits:
            advance(f"training the exit at {head.path}")
            fresh, how = _trained(plan, head, train, epochs, seed)
            exits.append(fresh)
            trained.append(how)
        plan = replace(plan, exits=tuple(exits))
        advance("calibrating confidences")
        plan = _scaled(plan, scale_rows)
        advance("checking confidences on other rows")
        logits = _logits(plan, report_rows)
        plan = _evident(plan, logits, report_rows)
        sureness = _sureness(plan, logits, report_rows, trained)
        filtered = None
        if wanted is not None:
            advance("training filters")
            plan, filtered = fit_filters(plan, wanted, train, scale_rows, report_rows, seed)
        advance("measuring every option")
        evaluation = evaluate(plan, val if wanted is None else report_rows, sizes=False)
    options = tuple(
        replace(option, accuracy=evaluation.accuracy[option.name], accuracy_measured=True)
        for option in plan.options
    )
    report = FitReport(
        tuple(sureness), evaluation, len(train), len(val), split, coded, stop_rows, filtered, tails
    )
    return replace(plan, options=options), report


def measured_again(plan: Plan, rows: LabelledRows) -> Plan:
    """The plan with seconds and bytes measured anew on real rows; accuracies stay."""
    costs = measure(plan, rows.first(EFFORT.rows).inputs, EFFORT)
    accuracies = {option.name: option.accuracy for option in plan.options}
    options = tuple(
        replace(option, accuracy=accuracies[option.name], accuracy_measured=True)
        for option in options_of(plan, costs, edge_speed=plan.edge_speed, cloud_speed=plan.cloud_speed)
    )
    table = []
    for row in plan.table:
        boundary = plan.boundaries_by_name()[row.name]
        head_s, tail_s = float(np.median(costs.head(boundary))), float(np.median(costs.tail(boundary)))
        coded = costs.nbytes[boundary, len(plan.codecs[boundary].levels) - 1]
        table.append(replace(row, coded_bytes=float(coded.mean()), head_s=head_s, tail_s=tail_s))
    return replace(plan, options=options, table=tuple(table))


def _ranged(plan: Plan, rows: LabelledRows) -> Plan:
    """The plan with static ranges of its codecs set from training rows."""
    codecs = {boundary: twin(codec) for boundary, codec in plan.codecs.items()}
    reached = list(_reached(plan, rows))
    for boundary, codec in codecs.items():
        codec.calibrate([at[plan.source(boundary)] for at, _ in reached])
    return replace(plan, codecs=codecs)


def _reached(plan: Plan, rows: LabelledRows) -> Iterator[tuple[list[Tensors], torch.Tensor]]:
    """What crosses every boundary, and the labels, batch by batch."""
    with torch.inference_mode():
        for batch in rows.batches(BATCH if plan.batchable else 1):
            yield boundaries_of(plan, batch.inputs), batch.labels


def _trained(
    plan: Plan, head: ExitHead, train: LabelledRows, epochs: int, seed: int
) -> tuple[ExitHead, TrainReport]:
    at_logits = plan.answers.logits
    assert at_logits is not None
    classes = plan.answers.specs[at_logits].shape[1]
    segment = ExitSegment.build(plan.boundaries[head.boundary].specs, classes, head.path, seed)
    features, teacher = [], []
    for at, _ in _reached(plan, train):
        features.append(segment.feature(at[head.boundary]).clone())
        teacher.append(at[-1][at_logits].clone())
    report = train_exit(
        segment.head,
        torch.cat(features),
        train.labels,
        teacher_logits=torch.cat(teacher),
        epochs=epochs,
        seed=seed,
        progress=False,
    )
    return replace(head, segment=export_exit(segment), scale=None, evidence=None), report


def _logits(plan: Plan, rows: LabelledRows) -> dict[str, torch.Tensor]:
    """Logits of every answerer, by `exit:N`, `local`, `whole`, and the option through a learned codec."""
    found: dict[str, list[torch.Tensor]] = {}
    at = plan.answers.logits
    assert at is not None
    with torch.inference_mode():
        for batch in rows.batches(BATCH if plan.batchable else 1):
            reached = boundaries_of(plan, batch.inputs)
            found.setdefault("whole", []).append(reached[-1][at])
            for number, head in enumerate(plan.exits):
                found.setdefault(f"exit:{number}", []).append(head.segment(*reached[head.boundary])[0])
            if plan.local is not None:
                found.setdefault("local", []).append(plan.local.segment(*batch.inputs)[at])
            for option in _through_learned(plan):
                logits, *_ = answer_by(plan, option, batch.inputs, reached, sizes=False)
                found.setdefault(option.name, []).append(logits)
    return {name: torch.cat(parts) for name, parts in found.items()}


def _through_learned(plan: Plan) -> list[Option]:
    index = plan.boundaries_by_name()
    return [o for o in plan.options if o.remote and plan.codecs[index[o.cut or ""]].learned]


def _scaled(plan: Plan, rows: LabelledRows) -> Plan:
    """The plan with a calibration for every answerer."""
    scales = {name: Calibration.fit(logits, rows.labels) for name, logits in _logits(plan, rows).items()}
    local = plan.local
    return replace(
        plan,
        exits=tuple(replace(head, scale=scales[f"exit:{n}"]) for n, head in enumerate(plan.exits)),
        local=None if local is None else replace(local, scale=scales["local"]),
        answers=replace(
            plan.answers,
            scale=scales["whole"],
            coded={option.name: scales[option.name] for option in _through_learned(plan)},
        ),
    )


def _evident(plan: Plan, logits: dict[str, torch.Tensor], rows: LabelledRows) -> Plan:
    """The plan with what its exits said on rows new to them, for thresholds of any target."""
    rows = rows.first(EVIDENCE_ROWS)
    exits = []
    for number, head in enumerate(plan.exits):
        mine = logits[f"exit:{number}"][: len(rows)]
        right = tuple((mine.argmax(1) == rows.labels).tolist())
        exits.append(replace(head, evidence=Evidence(tuple(confidence_of(mine, head.scale).tolist()), right)))
    return replace(plan, exits=tuple(exits))


def _sureness(
    plan: Plan, found: dict[str, torch.Tensor], rows: LabelledRows, trained: list[TrainReport]
) -> Iterator[Sureness]:
    for name, logits in sorted(found.items()):
        number = int(name.split(":")[1]) if name.startswith("exit:") else None
        scale = plan.answers.coded.get(name, plan.answers.scale)
        if number is not None:
            scale = plan.exits[number].scale
        if name == "local" and plan.local is not None:
            scale = plan.local.scale
        right = (logits.argmax(1) == rows.labels).numpy()
        yield Sureness(
            name=name,
            path="" if number is None else plan.exits[number].path,
            rows=len(rows),
            accuracy=float(np.mean(right)),
            ece_before=ece(confidence_of(logits, None), right),
            ece_after=ece(confidence_of(logits, scale), right),
            training=None if number is None else trained[number],
        )


@contextmanager
def _bar(wanted: bool, steps: int) -> Iterator[Advance]:
    bar = Progress(console=Console(stderr=True), disable=not wanted, transient=True)
    with bar:
        task = bar.add_task("fit", total=steps)

        def advance(text: str) -> None:
            bar.update(task, advance=1, description=text)

        yield advance
