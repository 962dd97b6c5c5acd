"""What a sweep keeps of a run: its score, and enough of its course to draw it and to bootstrap it.

Thousands of runs of thousands of requests would fill the memory and the wires between machines; a digest is
a few kilobytes however long the run was.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitedge.policy import Route
from splitedge.sim.simulation import Score, Simulation

Floats = npt.NDArray[np.float64]

#: Equal parts of a run's time: points of a plot over time, and blocks of the bootstrap.
PARTS = 60

#: Latencies kept of a run: as many quantiles, of all requests.
QUANTILES = 201

#: Where a request can end; `nothing` is a filter's own answer, `error` none at all.
ENDS = (*(route.value for route in Route), "nothing", "error")

#: What is summed up in each part.
SUMS = ("requests", "correct_in_time", "accuracy", "met", "bytes_up", "bytes_down", "joules")


@dataclass(frozen=True, eq=False)
class Digest:
    """One run in little.

    Attributes:
        score: what it comes to.
        seconds: simulated, of one device.
        deadline_s: that of its requests; NaN where they differ or have none.
        latency_s: `QUANTILES` evenly spaced quantiles of the latency of all requests; inf for those that were
            never answered.
        ends: requests by part of the time and end, float (PARTS, len(ENDS)).
        sums: of each of `SUMS` by part of the time, float (PARTS, len(SUMS)); parts are equally long.
    """

    score: Score
    seconds: float
    deadline_s: float
    latency_s: Floats
    ends: Floats
    sums: Floats


def digest(run: Simulation) -> Digest:
    """Sum a run up."""
    answered = np.asarray(run["error"] == "")
    deadlines = np.unique(run["deadline_s"].astype(float))
    alike = deadlines.size == 1 and math.isfinite(deadlines[0])
    latency = np.sort(np.where(answered, run["latency_s"].astype(float), math.inf))
    at = np.linspace(0, max(0, latency.size - 1), QUANTILES).round().astype(int)
    right, met = run["right"].astype(bool), run["met"].astype(bool)
    numbers = (
        np.ones(len(run)),
        right & met,
        right,
        met,
        run["bytes_up"],
        run["bytes_down"],
        run["energy_j"],
    )
    part = _parts(run["t_s"].astype(float), run.seconds)
    return Digest(
        score=run.score(),
        seconds=run.seconds,
        deadline_s=float(deadlines[0]) if alike else math.nan,
        latency_s=latency[at] if latency.size else np.full(QUANTILES, math.nan),
        ends=_by_end(run, answered, part),
        sums=np.stack([np.bincount(part, np.asarray(n, float), PARTS) for n in numbers], axis=1),
    )


def _parts(t_s: Floats, seconds: float) -> npt.NDArray[np.int64]:
    """Which part of the run's time each request arrived in."""
    whole = max(seconds, float(t_s.max(initial=0.0)))
    if whole <= 0.0:
        return np.zeros(t_s.size, np.int64)
    return np.minimum((t_s / whole * PARTS).astype(np.int64), PARTS - 1)


def _by_end(run: Simulation, answered: npt.NDArray[np.bool_], part: npt.NDArray[np.int64]) -> Floats:
    ends = np.where(run["option"] == "nothing", "nothing", run["route"].astype(str))
    ends = np.where(answered, ends, "error")
    return np.stack([np.bincount(part[ends == end], minlength=PARTS) for end in ENDS], axis=1).astype(float)
