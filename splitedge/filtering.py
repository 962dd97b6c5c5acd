"""Fit filters: small classifiers on what a codec sends that say when nothing need be sent at all.

No row serves two ends. The threshold comes from rows that neither trained nor calibrated the filter. One
that finds a class learns on the training rows; one that judges an exit learns on rows that the exit was not
trained on, for on its own training rows an exit is right far too often.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from splitedge.calibration import fit_temperature
from splitedge.codec import Network, Tensors
from splitedge.errors import ConfigError
from splitedge.evaluation import boundaries_of
from splitedge.exits import train_exit
from splitedge.filter_segment import FilterSegment
from splitedge.gating import NEEDED, SPARED, spare
from splitedge.plan import Plan
from splitedge.policy import Gate
from splitedge.pooling import feature_among
from splitedge.roc import OperatingPoint, operating_point
from splitedge.rows import LabelledRows
from splitedge.thresholds import Floats

BATCH = 128
EPOCHS = 40
MOST_ROWS = 20_000
STOP_PART = 0.3


@dataclass(frozen=True, slots=True)
class Filter:
    """A filter as it is asked for.

    Attributes:
        recall: part of the requests that need the cloud and are still to be sent, above 0 and below 1.
        nothing: the class that means "nothing here" and is answered on the device; what has another class
            needs the cloud. None: the deepest exit before the cut answers, and what it gets wrong needs
            the cloud.

    Raises:
        ConfigError: a number is out of its range.
    """

    recall: float = 0.95
    nothing: int | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.recall < 1.0:
            raise ConfigError(f"a filter's recall lies above 0 and below 1, got {self.recall}")
        if self.nothing is not None and self.nothing < 0:
            raise ConfigError(f"nothing is a class number from 0 on, got {self.nothing}")


@dataclass(frozen=True, slots=True)
class FilterReport:
    """What filters do, on rows that they have not seen.

    Attributes:
        wanted: as asked for.
        points: by the name of each option that has a filter or could not have one.
    """

    wanted: Filter
    points: dict[str, OperatingPoint]

    def __str__(self) -> str:
        return "\n".join(f"filter of {name}: {point.why}" for name, point in self.points.items())

    def plot(self, path: Path | str) -> None:
        """Draw each filter's ROC with the point it works at; the ending of `path` names the format.

        Raises:
            MissingExtra: matplotlib is not installed.
        """
        from splitedge.filter_plot import draw

        draw(self.points, self.wanted.recall, path)


@dataclass(frozen=True, slots=True)
class _Place:
    """A filter's cut (a boundary), and the exit it judges."""

    cut: int
    exit: int | None


def places(plan: Plan, wanted: Filter, train: LabelledRows) -> list[_Place]:
    """Where filters can stand.

    Raises:
        ConfigError: nowhere, or what is asked for does not fit the deployment or its rows; says why.
    """
    cuts = [cut for cut in plan.cuts if cut]
    if not cuts:
        raise ConfigError("a filter stands behind the codec of a cut; this deployment sends only its input")
    if wanted.nothing is not None:
        _check_class(plan, wanted.nothing, train)
        return [_Place(cut, None) for cut in cuts]
    if not plan.exits:
        raise ConfigError(
            "a filter needs something to answer by: name the class that means nothing is there "
            "(Filter(nothing=0)), or deploy with an exit (exits=[...]) for it to judge"
        )
    found = [_Place(cut, exit_) for cut in cuts if (exit_ := _deepest(plan, cut)) is not None]
    if not found:
        names = ", ".join(f"'{head.path}'" for head in plan.exits)
        raise ConfigError(
            f"every exit ({names}) stands behind the cut, so a filter there has none to judge; add an "
            "earlier exit, cut later, or name the class that means nothing is there (Filter(nothing=0))"
        )
    return found


def _check_class(plan: Plan, nothing: int, train: LabelledRows) -> None:
    at = plan.answers.logits
    classes = 0 if at is None else plan.answers.specs[at].shape[1]
    if nothing >= classes:
        raise ConfigError(f"nothing={nothing}: the model has the classes 0 to {classes - 1}")
    count = int((train.labels == nothing).sum())
    if not 0 < count < len(train):
        raise ConfigError(
            f"{count} of {len(train)} training rows are of class {nothing} (nothing): a filter learns from "
            "rows of that class and of others"
        )


def _deepest(plan: Plan, cut: int) -> int | None:
    """The last exit at or before a cut."""
    before = [number for number, head in enumerate(plan.exits) if head.boundary <= cut]
    return max(before, key=lambda number: plan.exits[number].boundary, default=None)


def fit_filters(
    plan: Plan, wanted: Filter, train: LabelledRows, hold: LabelledRows, test: LabelledRows, seed: int
) -> tuple[Plan, FilterReport]:
    """The plan with a filter at every cut and gates on its options, where the recall can be shown.

    Args:
        plan: with its codecs and exits trained; not changed.
        wanted: checked by `places`.
        train: rows that codecs and exits were trained on.
        hold: rows that they were not trained on.
        test: rows for thresholds and the report, used for nothing else.
        seed: of weights and order.

    Raises:
        ConfigError: what is asked for does not fit the deployment, or no filter can stand on what a codec
            sends.
    """
    networks: dict[int, Network] = {}
    gates: dict[str, Gate] = {}
    points: dict[str, OperatingPoint] = {}
    for place in places(plan, wanted, train):
        network = _trained(plan, place, wanted, train, hold, seed)
        for option in plan.options:
            if option.cut != plan.boundaries[place.cut].name:
                continue
            point = _point(plan, place, wanted, network, option.level, test)
            points[option.name] = point
            if point.ever and network is not None:
                networks[place.cut] = network
                gates[option.name] = Gate(point.threshold, wanted.nothing, place.exit)
    options = tuple(replace(option, gate=gates.get(option.name)) for option in plan.options)
    return replace(plan, filters=networks, options=options), FilterReport(wanted, points)


def unfiltered(plan: Plan) -> Plan:
    """The plan without filters and gates."""
    return replace(plan, filters={}, options=tuple(replace(option, gate=None) for option in plan.options))


def _trained(
    plan: Plan, place: _Place, wanted: Filter, train: LabelledRows, hold: LabelledRows, seed: int
) -> Network | None:
    """A filter, calibrated; None where the rows it would learn from are all of one kind."""
    if place.exit is not None:
        train, hold = hold.divide(STOP_PART, seed + 3)
    codec, at = plan.codecs[place.cut], plan.answers.logits
    which = feature_among(codec.unpacked_specs)
    if which is None or at is None:
        crossing = ", ".join(map(str, codec.unpacked_specs))
        raise ConfigError(f"no filter can stand on what codec '{codec.name}' sends: {crossing}")
    classes = None if place.exit is None else plan.answers.specs[at].shape[1]
    net = FilterSegment(codec.unpacked_specs[which], classes, seed)
    features, targets = _features(plan, place, wanted, net, which, _some(train, seed))
    held, truth = _features(plan, place, wanted, net, which, _some(hold, seed))
    if targets.min() == targets.max():
        return None
    train_exit(net.head, features, targets, val=(held, truth), epochs=EPOCHS, seed=seed, progress=False)
    with torch.no_grad():
        net.temperature.fill_(fit_temperature(net.head(held), truth))
    return net.export()


def _some(rows: LabelledRows, seed: int) -> LabelledRows:
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(seed))
    return rows if len(rows) <= MOST_ROWS else rows.take(order[:MOST_ROWS])


def _features(
    plan: Plan, place: _Place, wanted: Filter, net: FilterSegment, which: int, rows: LabelledRows
) -> tuple[torch.Tensor, torch.Tensor]:
    """What the classifier sees of the rows at every level of the codec, and what is right to say of each."""
    features, targets = [], []
    for level in range(len(plan.codecs[place.cut].levels)):
        for unpacked, logits, labels in _sent(plan, place, level, rows):
            features.append(net.features(unpacked[which], logits).clone())
            targets.append(_truth(wanted, logits, labels))
    return torch.cat(features), torch.cat(targets)


def _sent(
    plan: Plan, place: _Place, level: int, rows: LabelledRows
) -> Iterator[tuple[Tensors, torch.Tensor | None, torch.Tensor]]:
    """What the cloud would unpack, the logits of the exit judged, and the labels, batch by batch."""
    codec, source = plan.codecs[place.cut], plan.source(place.cut)
    with torch.inference_mode():
        for batch in rows.batches(BATCH if plan.batchable else 1):
            reached = boundaries_of(plan, batch.inputs, plan.edge_end)
            logits = None
            if place.exit is not None:
                head = plan.exits[place.exit]
                (logits,) = head.segment(*reached[head.boundary])
            yield codec.unpack(codec.encode(reached[source], level)), logits, batch.labels


def _truth(wanted: Filter, logits: torch.Tensor | None, labels: torch.Tensor) -> torch.Tensor:
    """`SPARED` or `NEEDED`, int64 (rows,)."""
    if logits is not None:
        answer = logits.argmax(1)
    else:
        assert wanted.nothing is not None  # a filter that judges no exit finds a class
        answer = torch.full_like(labels, wanted.nothing)
    return torch.where(answer == labels, SPARED, NEEDED)


def _point(
    plan: Plan, place: _Place, wanted: Filter, network: Network | None, level: int, test: LabelledRows
) -> OperatingPoint:
    """Where the filter works at a level, and what it does there."""
    specs = plan.codecs[place.cut].unpacked_specs
    sure: list[Floats] = []
    truth = []
    for unpacked, logits, labels in _sent(plan, place, level, test):
        truth.append(_truth(wanted, logits, labels))
        if network is not None:
            sure.append(spare(network, specs, unpacked, logits))
    needed = (torch.cat(truth) == NEEDED).numpy()
    if network is None:
        why = f"sends everything: exit {place.exit} is always (or never) right on the rows to learn from"
        return OperatingPoint(why, len(needed), int(needed.sum()), None)
    return operating_point(np.concatenate(sure), needed, wanted.recall)
