"""Changes with their intervals: moving blocks over time, several channels, and the simulation's own error.

Requests close in time are alike, so single requests must not be resampled: blocks of consecutive ones are
(the circular moving-block bootstrap: Künsch 1989; Politis and Romano 1992). A block is as long as the
differences between the policies stay correlated. Every replicate also takes one of the drawn channels, and
draws the simulation's error on each option.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from splitedge.sim.replay_outcome import COLUMNS, Errors
from splitedge.sim.replay_records import Bools, Floats, Ints

REPLICATES = 1000
_MOST_VALUES = 40_000_000  # of all replicates together, for quantiles
_LEVEL = 0.95
_RARE = ("met", "failed")  # columns of yes and no


@dataclass(frozen=True, slots=True)
class Metric:
    """One number of a run.

    Attributes:
        name: key in JSON.
        label: for people.
        column: of `COLUMNS`.
        how: mean, or a quantile.
        unit: `share`, `s`, `B` or `J`.
        better: +1 where more is better, -1 where less is.
    """

    name: str
    label: str
    column: str
    how: Literal["mean", "p50", "p95"]
    unit: Literal["share", "s", "B", "J"]
    better: int


METRICS = (
    Metric("met", "deadlines met", "met", "mean", "share", 1),
    Metric("p50_s", "latency p50", "latency_s", "p50", "s", -1),
    Metric("p95_s", "latency p95", "latency_s", "p95", "s", -1),
    Metric("bytes", "bytes a request", "nbytes", "mean", "B", -1),
    Metric("joules", "joules a request", "energy_j", "mean", "J", -1),
    Metric("expected_right", "expected right answers", "confidence", "mean", "share", 1),
    Metric("expected_right_in_time", "expected right in time", "sure_in_time", "mean", "share", 1),
    Metric("failed", "without an answer", "failed", "mean", "share", -1),
)


@dataclass(frozen=True, slots=True)
class Change:
    """A metric under both policies. Units as the metric's.

    Attributes:
        metric: which.
        before, after: of the policy compared with, and of the candidate.
        change: `after - before`.
        low, high: interval of the change, 95%.
    """

    metric: Metric
    before: float
    after: float
    change: float
    low: float
    high: float

    @property
    def shown(self) -> bool:
        """Whether these records can show a difference: the interval does not hold 0."""
        return self.low > 0.0 or self.high < 0.0


@dataclass(frozen=True, eq=False)
class Pair:
    """Both policies over one drawn channel: outcomes (columns, n), and which requests moved where.

    Attributes:
        before, after: outcomes.
        errors: the simulation's error by option.
        moved_before, moved_after: where the policy decided otherwise than the records, (n,).
        target_before, target_after: the options wanted last, (n,).
    """

    before: Floats
    after: Floats
    errors: Errors
    moved_before: Bools
    moved_after: Bools
    target_before: Ints
    target_after: Ints


def block_length(difference: Floats) -> int:
    """Requests in a block: twice the lag at which the differences are no longer correlated.

    Args:
        difference: of the policies, request by request in order of time, (n,).
    """
    n = len(difference)
    most = max(1, n // 5)
    centred = difference - difference.mean()
    variance = float(centred @ centred)
    if variance <= 0.0 or n < 10:
        return min(most, 10)
    size = 1 << (2 * n - 1).bit_length()
    spectrum = np.fft.rfft(centred, size)
    correlation = np.fft.irfft(spectrum * spectrum.conj(), size)[: most + 1] / variance
    floor = max(0.05, 2.0 / np.sqrt(n))
    below = np.flatnonzero(correlation < floor)
    lag = int(below[0]) if below.size else most
    return int(np.clip(2 * lag, min(10, most), most))


def value(metric: Metric, columns: Floats) -> float:
    """A metric of one outcome."""
    return _statistic(metric, columns[COLUMNS.index(metric.column)])


def changes(pairs: Sequence[Pair], seed: int) -> tuple[list[Change], int]:
    """Every metric's change with its interval, and the length of a block in requests.

    Args:
        pairs: one for each drawn channel, of the same requests.
        seed: of the replicates.
    """
    difference = np.mean([pair.after - pair.before for pair in pairs], axis=0)
    length = max(block_length(difference[COLUMNS.index(name)]) for name in ("met", "latency_s", "nbytes"))
    samples = _replicates(pairs, length, seed)
    found = []
    for metric, sample in zip(METRICS, samples, strict=True):
        before = float(np.mean([value(metric, pair.before) for pair in pairs]))
        after = float(np.mean([value(metric, pair.after) for pair in pairs]))
        alike = not any(pair.moved_before.any() or pair.moved_after.any() for pair in pairs)
        if alike or (sample.min() == sample.max() == 0.0 and metric.column not in _RARE):
            found.append(Change(metric, before, after, 0.0, 0.0, 0.0))
            continue
        low, high = interval(sample)
        change = after - before
        if metric.column in _RARE:
            # None seen in n may still be 3 in n ("rule of three": Hanley and Lippman-Hand, JAMA 1983).
            least = 3.0 / pairs[0].before.shape[1]
            low, high = min(low, change - least), max(high, change + least)
        found.append(Change(metric, before, after, change, min(low, change), max(high, change)))
    return found, length


def interval(samples: Floats) -> tuple[float, float]:
    """The middle 95% of some replicates."""
    low, high = np.quantile(samples, [(1.0 - _LEVEL) / 2.0, (1.0 + _LEVEL) / 2.0])
    return float(low), float(high)


def blocks(n: int, length: int, rng: np.random.Generator) -> Ints:
    """Indices of one replicate: blocks of consecutive requests from random places, wrapped, (n,)."""
    starts = rng.integers(0, n, -(-n // length))
    return ((starts[:, None] + np.arange(length)[None, :]).ravel()[:n]) % n


def _replicates(pairs: Sequence[Pair], length: int, seed: int) -> Floats:
    """Changes of every metric in every replicate, (metrics, replicates)."""
    rng = np.random.default_rng(seed)
    n = pairs[0].before.shape[1]
    count = max(200, min(REPLICATES, _MOST_VALUES // n))
    found = np.empty((len(METRICS), count))
    for i in range(count):
        pair = pairs[i % len(pairs)]
        at = blocks(n, length, rng)
        slips = rng.standard_normal(pair.errors.mean.shape[1]) * pair.errors.deviation
        for column in range(len(COLUMNS)):
            slip = slips[column]
            ours = pair.before[column, at] - (pair.moved_before * slip[pair.target_before])[at]
            theirs = pair.after[column, at] - (pair.moved_after * slip[pair.target_after])[at]
            for j, metric in enumerate(METRICS):
                if COLUMNS.index(metric.column) == column:
                    found[j, i] = _statistic(metric, theirs) - _statistic(metric, ours)
    return found


def _statistic(metric: Metric, column: Floats) -> float:
    if metric.how == "mean":
        return float(column.mean())
    return float(np.quantile(column, 0.5 if metric.how == "p50" else 0.95))
