"""How far made capacities are from a real one: distribution, correlation, outages, delivery times."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitedge.sim.curves import Floats

QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
#: Lags of the autocorrelation, in steps; those longer than a quarter of the series are left out.
LAGS = (1, 2, 5, 10, 20, 50, 100)
#: A burst takes this many steps at the real mean rate.
BURSTS = (0.3, 3.0, 30.0)

Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Outages:
    """Outages: how many a minute, their mean and 95th percentile in seconds, their share of the time."""

    per_minute: float
    mean_s: float
    p95_s: float
    share: float


@dataclass(frozen=True, slots=True)
class Errors:
    """Distances of made series from a real one.

    Attributes:
        quantiles: made minus real at `QUANTILES`, as a share of the real mean rate.
        wasserstein: distance of the distributions of the rate, as a share of the real mean rate.
        ks: greatest distance of their cumulative distributions, 0 to 1 (Kolmogorov-Smirnov).
        lags_s: lags of the autocorrelation of the log rate, seconds.
        real_acf, made_acf: it, at those lags; of the made series the mean.
        acf: mean absolute difference of the two, 0 to 2.
        real_outages, made_outages: count and lengths.
        delivery: mean Kolmogorov-Smirnov distance of the times that bursts of `BURSTS` steps' mean capacity
            take from every moment on, 0 to 1: what a request would notice.
        score: ks + acf + delivery. Less is better.
    """

    quantiles: tuple[float, ...]
    wasserstein: float
    ks: float
    lags_s: tuple[float, ...]
    real_acf: tuple[float, ...]
    made_acf: tuple[float, ...]
    acf: float
    real_outages: Outages
    made_outages: Outages
    delivery: float

    @property
    def score(self) -> float:
        """What candidates are compared by."""
        return self.ks + self.acf + self.delivery


def errors(real: Floats, made: Sequence[Floats], step_s: float, floor_bps: float) -> Errors:
    """Distances between a real series and made ones.

    Args:
        real: bits per second in steps of equal length.
        made: the same of each made series.
        step_s: seconds of a step.
        floor_bps: under this a step is an outage; logs are of nothing less.
    """
    # To whole bits: rounding in a sum must not part two equal rates, or KS would see two atoms.
    real, made = np.round(real), [np.round(series) for series in made]
    pooled, mean = np.concatenate(made), float(real.mean())
    apart = np.quantile(pooled, QUANTILES) - np.quantile(real, QUANTILES)
    shortest = min(len(real), *(len(series) for series in made))
    lags = np.array([lag for lag in LAGS if lag <= max(1, shortest // 4)])

    def correlation(series: Floats) -> Floats:
        return autocorrelation(np.log(np.maximum(series, floor_bps)), lags)

    real_acf = np.nan_to_num(correlation(real))
    made_acf = np.nan_to_num(np.mean([correlation(series) for series in made], axis=0))
    return Errors(
        quantiles=tuple((apart / mean).tolist()),
        wasserstein=wasserstein(real, pooled) / mean,
        ks=kolmogorov_smirnov(real, pooled),
        lags_s=tuple((lags * step_s).tolist()),
        real_acf=tuple(real_acf.tolist()),
        made_acf=tuple(made_acf.tolist()),
        acf=float(np.mean(np.abs(real_acf - made_acf))),
        real_outages=_outages([real], step_s, floor_bps),
        made_outages=_outages(made, step_s, floor_bps),
        delivery=float(np.mean([_delivery(real, made, burst * mean) for burst in BURSTS])),
    )


def autocorrelation(values: Floats, lags: NDArray[np.int_], valid: Bools | None = None) -> Floats:
    """Autocorrelation at `lags` steps over pairs of valid values; NaN where there are none, (len(lags),)."""
    valid = np.ones(len(values), dtype=np.bool_) if valid is None else valid
    centred = np.where(valid, values - values[valid].mean(), 0.0)
    variance = float(np.sum(centred**2)) / max(1, int(valid.sum()))
    found = np.full(len(lags), np.nan)
    for i, lag in enumerate(lags.tolist()):
        pairs = int(np.count_nonzero(valid[:-lag] & valid[lag:]))
        if pairs and variance > 0.0:
            found[i] = float(np.sum(centred[:-lag] * centred[lag:])) / pairs / variance
    return found


def kolmogorov_smirnov(ours: Floats, theirs: Floats) -> float:
    """The greatest distance of two samples' cumulative distributions, 0 to 1."""
    apart, _ = _between(ours, theirs)
    return float(np.max(np.abs(apart)))


def wasserstein(ours: Floats, theirs: Floats) -> float:
    """The area between two samples' cumulative distributions, in their unit."""
    apart, values = _between(ours, theirs)
    return float(np.sum(np.abs(apart[:-1]) * np.diff(values)))


def _between(ours: Floats, theirs: Floats) -> tuple[Floats, Floats]:
    """Difference of the cumulative distributions from each value on, and the values."""
    values = np.unique(np.concatenate([ours, theirs]))
    below = [np.searchsorted(np.sort(part), values, side="right") / len(part) for part in (ours, theirs)]
    return below[0] - below[1], values


def runs_of(flags: Bools) -> NDArray[np.int_]:
    """Lengths of the runs of true values."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], flags, [False]]).astype(np.int8)))
    return edges[1::2] - edges[::2]


def _outages(series: Sequence[Floats], step_s: float, floor_bps: float) -> Outages:
    lengths = np.concatenate([runs_of(part < floor_bps) for part in series])
    seconds = step_s * sum(len(part) for part in series)
    total_s = float(lengths.sum()) * step_s
    p95_s = float(np.quantile(lengths, 0.95)) * step_s if len(lengths) else 0.0
    return Outages(60.0 * len(lengths) / seconds, total_s / max(1, len(lengths)), p95_s, total_s / seconds)


def _delivery(real: Floats, made: Sequence[Floats], burst: float) -> float:
    ours, theirs = _times(real, burst), np.concatenate([_times(series, burst) for series in made])
    if not len(ours) or not len(theirs):
        return 1.0  # one of the two never delivers it
    return kolmogorov_smirnov(ours, theirs)


def _times(series: Floats, burst: float) -> Floats:
    """Steps until `burst` (in rate times steps) is delivered, from each step on that has enough behind it."""
    sums = np.concatenate([[0.0], np.cumsum(series)])
    goals = sums[:-1] + burst
    goals = goals[goals <= sums[-1]]
    at = np.searchsorted(sums, goals)
    before = np.maximum(at - 1, 0)
    part = (goals - sums[before]) / np.maximum(sums[at] - sums[before], 1e-9)
    return np.asarray(np.round(before + part - np.arange(len(goals)), 6))
