"""Which decisions differ between two policies: counted by option, and the most telling one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitedge.sim.replay_measure import Measured
from splitedge.sim.replay_outcome import COLUMNS, same
from splitedge.sim.replay_records import NONE, Decided, Floats, Recorded

MOST = 5  # differences told one by one


@dataclass(frozen=True, slots=True)
class Move:
    """Requests that one policy meant for an option and the other for another.

    Attributes:
        before, after: the decisions, `exit:0`, or `exit:0 > split:...` where the exit was not sure enough.
        requests: how many.
        met, latency_s, nbytes, energy_j, confidence: mean change of each.
    """

    before: str
    after: str
    requests: int
    met: float
    latency_s: float
    nbytes: float
    energy_j: float
    confidence: float


@dataclass(frozen=True, slots=True)
class Told:
    """One policy's side of a difference: the option wanted, what came of it, and why it was wanted."""

    option: str
    reason: str
    met: float
    latency_s: float
    nbytes: float


@dataclass(frozen=True, slots=True)
class Difference:
    """A request that the two policies decided otherwise.

    Attributes:
        request: its number in the records.
        t_s: seconds after the first request.
        deadline_s: seconds allowed, inf for none.
        goodput_bps, rtt_s: the recorded estimates at its decision.
        age_s, transfer_bps, transfer_bytes: how far in time the nearest measured transfer is, and what it
            measured; inf and NaN where there is none.
        before, after: the two policies.
    """

    request: int
    t_s: float
    deadline_s: float
    goodput_bps: float
    rtt_s: float
    age_s: float
    transfer_bps: float
    transfer_bytes: float
    before: Told
    after: Told


def moves(
    baseline: Decided, candidate: Decided, before: Floats, after: Floats, options: Sequence[str]
) -> list[Move]:
    """Moves from option to option, the most frequent first.

    Args:
        baseline, candidate: the two policies' decisions.
        before, after: their outcomes, (columns, n).
        options: names by index.
    """
    differ = ~same(baseline, candidate)
    change = after - before
    found = []
    keys = np.stack([baseline.planned, baseline.target, candidate.planned, candidate.target])
    for key in np.unique(keys[:, differ], axis=1).T:
        mine = differ & (keys == key[:, None]).all(axis=0)
        planned, target, new_planned, new_target = key.tolist()
        means = {name: float(change[COLUMNS.index(name), mine].mean()) for name in COLUMNS}
        found.append(
            Move(
                wanted(options, planned, target),
                wanted(options, new_planned, new_target),
                int(mine.sum()),
                means["met"],
                means["latency_s"],
                means["nbytes"],
                means["energy_j"],
                means["confidence"],
            )
        )
    return sorted(found, key=lambda move: -move.requests)


def differences(
    recorded: Recorded,
    up: Measured,
    baseline: Decided,
    candidate: Decided,
    before: Floats,
    after: Floats,
    options: Sequence[str],
) -> list[Difference]:
    """The decisions that differ the most: in deadlines met, then in seconds; one of each move first."""
    differ = np.flatnonzero(~same(baseline, candidate))
    change = np.abs(after - before)[:, differ]
    order = differ[np.lexsort((-change[COLUMNS.index("latency_s")], -change[0]))]
    chosen: list[int] = []
    kinds: set[tuple[int, int]] = set()
    for i in order.tolist():
        kind = int(baseline.target[i]), int(candidate.target[i])
        if kind not in kinds and len(chosen) < MOST:
            kinds.add(kind)
            chosen.append(i)
    chosen += [i for i in order.tolist() if i not in chosen][: MOST - len(chosen)]
    return [_difference(recorded, up, baseline, candidate, before, after, options, i) for i in chosen]


def _difference(
    recorded: Recorded,
    up: Measured,
    baseline: Decided,
    candidate: Decided,
    before: Floats,
    after: Floats,
    options: Sequence[str],
    i: int,
) -> Difference:
    age, bps, nbytes = _nearest(up, float(recorded.t_s[i]))
    table = recorded.table
    return Difference(
        request=int(table["request"][i]),
        t_s=float(recorded.t_s[i] - recorded.t_s[0]),
        deadline_s=float(recorded.deadline_s[i]),
        goodput_bps=float(table["goodput_bps"][i]),
        rtt_s=float(table["rtt_s"][i]),
        age_s=age,
        transfer_bps=bps,
        transfer_bytes=nbytes,
        before=_told(baseline, before, options, i),
        after=_told(candidate, after, options, i),
    )


def _told(decided: Decided, columns: Floats, options: Sequence[str], i: int) -> Told:
    by = {name: float(columns[COLUMNS.index(name), i]) for name in ("met", "latency_s", "nbytes")}
    option = wanted(options, int(decided.planned[i]), int(decided.target[i]))
    return Told(option, decided.reason[i], **by)


def _nearest(up: Measured, t: float) -> tuple[float, float, float]:
    known = up.answered()
    if not len(known):
        return float("inf"), float("nan"), float("nan")
    apart = np.maximum(np.maximum(known.begin - t, t - known.end), 0.0)
    at = int(np.argmin(apart))
    return float(apart[at]), float(known.bps[at]), float(known.nbytes[at])


def wanted(options: Sequence[str], planned: int, target: int) -> str:
    """A decision by name: the option wanted, behind the exit that was asked first where there was one."""
    if NONE in (planned, target):
        return "nothing"
    return options[target] if planned == target else f"{options[planned]} > {options[target]}"


def wanted_by(decided: Decided, options: Sequence[str]) -> list[str]:
    """Every request's decision by name."""
    pairs = zip(decided.planned.tolist(), decided.target.tolist(), strict=True)
    return [wanted(options, planned, target) for planned, target in pairs]
