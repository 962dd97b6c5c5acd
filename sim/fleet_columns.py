"""Where the outcomes of fleet mode go: a row for each request, or running totals of constant size."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from splitedge.sim.compiled import entry, inner
from splitedge.sim.curves import Floats
from splitedge.sim.fleet_end import ROUTES
from splitedge.sim.fleet_policy import names_of
from splitedge.sim.fleet_world import DONE, ERRORS, NO_ERROR, Ints, World
from splitedge.sim.simulation import COLUMNS, Column, Score

#: One request; `planned`, `option`, `route` and `error` as codes.
ROW = np.dtype(
    [("t_s", "f8"), ("latency_s", "f8"), ("energy_j", "f8"), ("asker", "i4"), ("row", "i4")]
    + [(name, "f4") for name in ("confidence", "goodput_bps", "rtt_s", "battery")]
    + [("bytes_up", "i4"), ("bytes_down", "i4"), ("planned", "i2"), ("option", "i2"), ("attempts", "i2")]
    + [("route", "i1"), ("error", "i1"), ("degraded", "?"), ("met", "?"), ("right", "?")]
)

_FIRST_S, _STEP = 1e-6, 0.001  # latencies are counted in bins 0.1% wide
_BINS = int(math.log(1e10) / _STEP) + 2


class Totals(NamedTuple):
    """Running totals.

    Attributes:
        routes: answers by route's code, requests without an answer at 0.
        counts: requests, right in time, right, met.
        sums: bytes up, bytes down, joules.
        latency: answers by bin of latency.
    """

    routes: Ints
    counts: Ints
    sums: Floats
    latency: Ints


def totals() -> Totals:
    """Nothing counted yet."""
    return Totals(
        np.zeros(len(ROUTES), np.int64), np.zeros(4, np.int64), np.zeros(3), np.zeros(_BINS, np.int64)
    )


@entry
def write(w: World, rows: Any) -> None:
    """Put the requests that ended since the last time at their places."""
    _write(w, rows)


@inner
def _write(w: World, rows: Any) -> None:
    for i in range(w.counts[DONE]):
        e = w.ended[i]
        to = rows[e.place]
        to.t_s, to.latency_s, to.energy_j, to.asker, to.row = e.t, e.at - e.t, e.energy, e.owner, e.row
        to.confidence, to.goodput_bps, to.rtt_s, to.battery = e.confidence, e.goodput, e.rtt, e.battery
        to.bytes_up, to.bytes_down, to.attempts = int(e.bytes_up), int(e.bytes_down), e.attempts
        to.planned, to.option, to.route, to.error = e.planned, e.option, e.route, e.error
        to.degraded, to.met, to.right = e.degraded, e.met, e.right
    w.counts[DONE] = 0


@entry
def count_up(w: World, t: Totals) -> None:
    """Count the requests that ended since the last time."""
    _count_up(w, t)


@inner
def _count_up(w: World, t: Totals) -> None:
    for i in range(w.counts[DONE]):
        e = w.ended[i]
        t.routes[e.route] += 1
        t.counts[0] += 1
        t.counts[1] += e.right and e.met
        t.counts[2] += e.right
        t.counts[3] += e.met
        t.sums[0] += e.bytes_up
        t.sums[1] += e.bytes_down
        t.sums[2] += e.energy
        if e.error == NO_ERROR:
            place = int(math.log(max(e.at - e.t, _FIRST_S) / _FIRST_S) / _STEP)
            t.latency[min(place, len(t.latency) - 1)] += 1
    w.counts[DONE] = 0


def score_of(t: Totals) -> Score:
    """What the totals come to; quantiles of latency are right to 0.1%."""
    requests = int(t.counts[0])
    cumulated = np.cumsum(t.latency)
    answered = int(cumulated[-1])

    def share(value: float) -> float:
        return float(value) / requests if requests else math.nan

    def quantile(q: float) -> float:
        if not answered:
            return math.nan
        place = int(np.searchsorted(cumulated, q * (answered - 1), side="right"))
        return _FIRST_S * math.exp((place + 0.5) * _STEP)

    names = {"error": int(t.routes[0])} if t.routes[0] else {}
    routes = names | {name: int(n) for name, n in zip(ROUTES[1:], t.routes[1:], strict=True) if n}
    return Score(
        requests=requests,
        correct_in_time=share(t.counts[1]),
        accuracy=share(t.counts[2]),
        met=share(t.counts[3]),
        p50_s=quantile(0.5),
        p95_s=quantile(0.95),
        p99_s=quantile(0.99),
        bytes_up=share(t.sums[0]),
        bytes_down=share(t.sums[1]),
        joules=share(t.sums[2]),
        routes=dict(sorted(routes.items())),
    )


class Columns(Mapping[str, Column]):
    """The columns of a `Simulation` over rows of `ROW`: views; names become text when they are asked for.

    Args:
        rows: array of `ROW`, in order of arrival.
        deadline_s: of every request.
        names: of the options.
    """

    def __init__(self, rows: Any, deadline_s: float, names: tuple[str, ...]) -> None:
        self._rows = rows
        self._deadline_s = deadline_s
        self._names = np.array(["", *names, "nothing"])

    def __getitem__(self, name: str) -> Column:
        if name not in self:
            raise KeyError(name)
        if name == "deadline_s":
            return np.broadcast_to(np.float64(self._deadline_s), len(self._rows))
        codes: Column = self._rows["asker" if name == "device" else name]
        if name in ("planned", "option"):
            codes = names_of(codes, self._names)
        if name in ("route", "error"):
            codes = np.array(ROUTES if name == "route" else ERRORS)[codes]
        return codes

    def __contains__(self, name: object) -> bool:
        return name in COLUMNS or name == "attempts"

    def __iter__(self) -> Iterator[str]:
        return iter((*COLUMNS, "attempts"))

    def __len__(self) -> int:
        return len(COLUMNS) + 1
