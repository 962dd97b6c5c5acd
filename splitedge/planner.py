"""The option table, and the cuts that are worth having.

Nothing here is a model of a device except two stated ratios of speed: seconds and bytes are measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from splitedge.codec import Codec
from splitedge.costs import Costs
from splitedge.plan import Plan
from splitedge.policy import Option, Route
from splitedge.thresholds import Floats

#: Uplinks a set of cuts is chosen for, bits/s.
GOODPUTS = (0.5e6, 1e6, 2e6, 5e6, 10e6, 20e6, 50e6)
#: What the search for cuts takes a cloud to compute faster than the device by, where nobody says.
ASSUMED_CLOUD_SPEED = 8.0
#: A cut whose tail has less than this share of the model's work is no split: the device did it all.
LEAST_TAIL = 0.05
#: A learned codec that replaces the head leaves at least this share of the model to the tail.
MOST_OF_MODEL = 0.5
#: Cuts that differ by less of the model's work than this stand at the same place.
SAME_WORK = 0.01


@dataclass(frozen=True, slots=True)
class Candidate:
    """A cut with what it costs: edge and cloud seconds (as measured on this device) and framed bytes."""

    edge_s: float
    cloud_s: float
    nbytes: float


# The option table -------------------------------------------------------------------------------------


def options_of(
    plan: Plan, costs: Costs, *, edge_speed: float = 1.0, cloud_speed: float = 1.0
) -> tuple[Option, ...]:
    """The table every policy chooses from: local, exits, splits, then the whole model in the cloud.

    Args:
        plan: what there is.
        costs: measured on this device.
        edge_speed, cloud_speed: how many times faster than this device the real ones compute.

    Accuracies are an assumed order (`accuracy_measured` is False) until `fit` measures them. Gates of the
    plan's options stay.
    """
    table: list[Option] = []
    if plan.local is not None:
        table.append(_edge(Option(Route.LOCAL), costs.local / edge_speed))
    for number, head in enumerate(plan.exits):
        seconds = costs.head(head.boundary) + costs.exits[number]
        table.append(_edge(Option(Route.EXIT, exit=number), seconds / edge_speed))
    for boundary in (*(cut for cut in plan.cuts if cut), *(cut for cut in plan.cuts if not cut)):
        for level in range(len(plan.codecs[boundary].levels)):
            table.append(_remote(plan, costs, boundary, level, edge_speed, cloud_speed))
    return assume_accuracies(table, plan.codecs, plan.boundaries_by_name())


def _remote(
    plan: Plan, costs: Costs, boundary: int, level: int, edge_speed: float, cloud_speed: float
) -> Option:
    key = boundary, level
    gate = plan.gate(boundary, level)
    edge = costs.head(plan.source(boundary)) + costs.encode[key]
    if gate is not None and gate.exit is not None:  # its filter needs the exit's answer
        edge = costs.head(max(plan.source(boundary), plan.exits[gate.exit].boundary)) + costs.encode[key]
    cloud = costs.decode[key] / cloud_speed
    if plan.codecs[boundary].gives == "cut":
        cloud = cloud + costs.tail(boundary) / cloud_speed
    option = Option(
        Route.SPLIT if boundary else Route.CLOUD,
        cut=plan.boundaries[boundary].name if boundary else None,
        codec=plan.codecs[boundary].name,
        level=level,
        cloud_s=float(np.median(cloud)),
        cloud_s_q95=float(np.quantile(cloud, 0.95)),
        bytes_up=float(costs.nbytes[key].mean()),
        bytes_up_q95=float(np.quantile(costs.nbytes[key], 0.95)),
        bytes_down=costs.down,
        gate=gate,
    )
    return _edge(option, edge / edge_speed)


def _edge(option: Option, seconds: Floats) -> Option:
    return replace(option, edge_s=float(np.median(seconds)), edge_s_q95=float(np.quantile(seconds, 0.95)))


def assume_accuracies(
    table: Sequence[Option], codecs: Mapping[int, Codec], index: Mapping[str, int]
) -> tuple[Option, ...]:
    """An order of accuracy that holds for most models: local < exits by depth < lossy < finer < lossless.

    Only the order means anything; the values are spread over 0.5 to 1 and marked as not measured.
    """
    exits = sum(option.route is Route.EXIT for option in table)

    def assumed(option: Option) -> float:
        if option.route is Route.LOCAL:
            return 0.5
        if option.route is Route.EXIT:
            return 0.6 + 0.2 * ((option.exit or 0) + 1) / (exits + 1)
        levels = len(codecs[index[option.cut or ""]].levels)
        return 0.9 + 0.1 * (option.level + 1) / levels

    return tuple(replace(option, accuracy=assumed(option), accuracy_measured=False) for option in table)


# The choice of cuts -----------------------------------------------------------------------------------


def pick_cuts(
    candidates: Sequence[Candidate],
    rival: Candidate | None = None,
    *,
    cloud_speed: float = ASSUMED_CLOUD_SPEED,
    goodputs: Sequence[float] = GOODPUTS,
    most: int = 3,
) -> list[int]:
    """Indices of the few candidates that together are least slow over a range of uplinks.

    Each uplink names its fastest candidate (edge seconds + transmission + cloud seconds, Neurosurgeon's
    latency model); where more than `most` are named, those are kept that lose least when the others'
    uplinks fall to them (greedy, from the best single one on). Uplinks at which the rival is faster than
    every candidate name none; if it always is, the one candidate that loses least is kept.

    Args:
        candidates: the cuts.
        rival: sending the coded input, None where there is no such route.
        cloud_speed: how many times faster the cloud computes than the machine that was measured.
        goodputs: of the uplinks, bits/s.
        most: candidates to keep.

    Returns:
        At least one index, ascending.
    """
    seconds = np.array([[_seconds(c, rate, cloud_speed) for c in candidates] for rate in goodputs])
    if rival is not None:
        lead = seconds.min(axis=1) < [_seconds(rival, rate, cloud_speed) for rate in goodputs]
        most = most if lead.any() else 1
        seconds = seconds[lead] if lead.any() else seconds
    floor = seconds.min(axis=1)
    left = sorted({int(i) for i in seconds.argmin(axis=1)})
    chosen: list[int] = []
    best = np.full(len(floor), np.inf)
    while left and len(chosen) < most:
        # Relative loss, so that the slow uplinks do not rule alone.
        loss = [float((np.minimum(best, seconds[:, i]) / floor).sum()) for i in left]
        chosen.append(left.pop(int(np.argmin(loss))))
        best = np.minimum(best, seconds[:, chosen[-1]])
    return sorted(chosen)


def _seconds(candidate: Candidate, goodput: float, cloud_speed: float) -> float:
    return candidate.edge_s + 8 * candidate.nbytes / goodput + candidate.cloud_s / cloud_speed


def shortlist(nbytes: Sequence[int], tail_share: Sequence[float], most: int = 12) -> list[int]:
    """Cuts worth measuring, by raw bytes and by the share of the work behind them, in model order.

    A later cut costs the device more, so it must send less than every cut before it; after an operation
    that costs nothing, such as a ReLU, the same bytes code better. Cuts that leave
    the cloud less than `LEAST_TAIL` of the work are dropped while others are left.
    """
    useful = [i for i, share in enumerate(tail_share) if share >= LEAST_TAIL] or list(range(len(nbytes)))
    front: list[int] = []
    for i in useful:
        if not front or nbytes[i] < nbytes[front[-1]]:
            front.append(i)
        elif nbytes[i] == nbytes[front[-1]] and tail_share[front[-1]] - tail_share[i] < SAME_WORK:
            front[-1] = i
    if len(front) <= most:
        return front
    return [front[round(i)] for i in np.linspace(0, len(front) - 1, most)]


def narrowest(nbytes: Sequence[int], tail_share: Sequence[float]) -> int:
    """The cut for a learned codec that replaces the head: of those that leave the tail most of the work,
    the one crossed by the fewest raw bytes; the earliest of equals, but behind what costs nothing (a ReLU).

    Its encoder and its payload are the same wherever the decoder leads to, so that seconds and bytes do not
    choose: what is to be reproduced should be small, and the trained layers behind it many. Where every cut
    leaves less than `MOST_OF_MODEL`, the one that leaves most.
    """
    most = max(tail_share)
    useful = [i for i, share in enumerate(tail_share) if share >= min(MOST_OF_MODEL, most)]
    first = min(useful, key=lambda i: (nbytes[i], i))
    same = [i for i in useful if nbytes[i] == nbytes[first] and tail_share[first] - tail_share[i] < SAME_WORK]
    return max(same)
