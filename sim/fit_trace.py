"""Fit the generators to a recorded capacity; the one that does best on a part it was not fitted to is chosen.

How each is fitted (a step under 1% of the median is an outage; logs are of the other steps):

- `gauss-markov`: median and sigma by the moments of the log rate; its correlation time by maximum likelihood
  of a Gauss-Markov process seen wherever there is capacity (gaps included); outages by maximum likelihood of
  geometric stays.
- `markov`: up to 8 states between quantiles of the rate, and one for outages; moves by maximum likelihood,
  which are the moves counted.
- `gilbert-elliott`: states are capacity and outage; stays by maximum likelihood, the rate by log moments.
- `handover`: the rate's own quantiles. The share of variance between cells, their mean stay and the fading's
  correlation time by least squares on the autocorrelation of the rate's normal scores, which for this process
  is `w exp(-t / cell_s) + (1 - w) exp(-t / tau_s)`; outages are interruptions as far as handovers suffice.
- `two-scale`: the same with outages as rates of 0 among the others.

How one is chosen: each is fitted to the first part, generates `RUNS` series as long as the rest, and the one
with the least `Errors.score` against the rest wins and is fitted again to the whole.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from splitedge.errors import TraceError
from splitedge.sim.curves import Capacity, Floats, Opportunities
from splitedge.sim.fit_error import Errors, autocorrelation, errors, runs_of
from splitedge.sim.generators import GaussMarkov, Generator, GilbertElliott, Handover, Markov, TwoScale
from splitedge.sim.traces import BIN_S

#: A step with less than this share of the median rate is an outage.
OUTAGE_SHARE = 0.01
#: Share of the trace that candidates are compared on, its end.
HELD_OUT = 0.4
RUNS = 8
MIN_STEPS = 100
MAX_STATES = 8
QUANTILES = 41

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Steps:
    """A capacity in steps of equal length.

    Attributes:
        bps: bits per second, (n,).
        step_s: seconds of a step.
        floor_bps: under this a step is an outage.
    """

    bps: Floats
    step_s: float
    floor_bps: float

    @classmethod
    def of(cls, curve: Capacity, source: str) -> Steps:
        """A trace's capacity in steps of its own usual length (packets: 100 ms).

        Raises:
            TraceError: there are too few steps, or they hold no capacity.
        """
        if isinstance(curve, Opportunities):
            step_s = BIN_S
        else:
            step_s = float(np.median(np.diff(curve.time_s))) if len(curve.time_s) > 1 else curve.period_s
        bps = curve.binned(step_s).bps
        if len(bps) < MIN_STEPS:
            raise TraceError(f"{source}: {len(bps)} steps of {step_s:g} s; a fit needs {MIN_STEPS} or more")
        some = bps[bps > 0.0]
        if len(some) < MIN_STEPS // 2:
            raise TraceError(f"{source}: capacity in {len(some)} steps only; a fit needs {MIN_STEPS // 2}")
        return cls(bps, step_s, OUTAGE_SHARE * float(np.median(some)))

    @property
    def out(self) -> Bools:
        """Steps that are outages, (n,)."""
        return self.bps < self.floor_bps

    def part(self, begin: int, end: int) -> Steps:
        """Steps from `begin` up to `end`."""
        return Steps(self.bps[begin:end], self.step_s, self.floor_bps)

    def log_moments(self) -> tuple[float, float]:
        """Median in Mbit/s (as the exponential of the mean log) and standard deviation of the log rate."""
        logs = np.log(self.bps[~self.out])
        return float(np.exp(logs.mean())) / 1e6, float(logs.std())

    def stays(self) -> tuple[float, float]:
        """Mean seconds between outages and of one; (the whole time, 0) without any."""
        lengths = runs_of(self.out)
        if not len(lengths):
            return len(self.bps) * self.step_s, 0.0
        on = float(lengths.sum())
        return (len(self.bps) - on) * self.step_s / len(lengths), on * self.step_s / len(lengths)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A model as it was fitted to the first part, and how far what it makes is from the rest."""

    model: Generator
    errors: Errors


@dataclass(frozen=True, eq=False)
class Fit:
    """What fitting a trace comes to.

    Attributes:
        steps: the trace.
        candidates: every model, the best one first.
        itself: the errors of the trace's first part taken as if it were made: no stationary model can be
            expected to do much better.
        best: the model chosen, fitted to the whole trace.
        whole: its errors against the whole trace.
    """

    steps: Steps
    candidates: tuple[Candidate, ...]
    itself: Errors
    best: Generator
    whole: Errors


def fit(curve: Capacity, source: str, seed: int = 0, only: str | None = None) -> Fit:
    """Fit all models, or the one named `only`, to a capacity and choose the best.

    Raises:
        TraceError: the trace is too short, a part of it has no capacity, or there is no model of that name.
    """
    if only is not None and only not in FITS:
        raise TraceError(f"no model '{only}' can be fitted; there are {', '.join(FITS)}")
    steps = Steps.of(curve, source)
    border = round(len(steps.bps) * (1.0 - HELD_OUT))
    first, rest = steps.part(0, border), steps.part(border, len(steps.bps))
    for name, part in (("first", first), ("last", rest)):
        if np.count_nonzero(~part.out) < MIN_STEPS // 5:
            raise TraceError(f"{source}: the {name} part has capacity in too few steps to fit or compare")
    found = []
    for name in FITS if only is None else (only,):
        model = FITS[name](first)
        found.append(Candidate(model, _made(model, rest, seed)))
    found.sort(key=lambda candidate: candidate.errors.score)
    best = FITS[found[0].model.name](steps)
    itself = errors(rest.bps, [first.bps], steps.step_s, steps.floor_bps)
    return Fit(steps, tuple(found), itself, best, _made(best, steps, seed))


def _made(model: Generator, real: Steps, seed: int) -> Errors:
    made = [model.generate(len(real.bps), real.step_s, RUNS * seed + run) for run in range(RUNS)]
    return errors(real.bps, made, real.step_s, real.floor_bps)


def fit_gauss_markov(steps: Steps) -> GaussMarkov:
    """See the module's text."""
    median, sigma = steps.log_moments()
    at = np.flatnonzero(~steps.out)
    if sigma < 1e-6 or len(at) < 3:
        return GaussMarkov(median, sigma, 0.0, *steps.stays())
    z = np.log(steps.bps[at] / (1e6 * median)) / sigma
    before, after, gap = z[:-1], z[1:], np.diff(at) * steps.step_s

    def unlikely(tau_s: float) -> float:
        keep = np.exp(-gap / tau_s)
        rest = np.maximum(1.0 - keep * keep, 1e-12)
        return float(np.sum(np.log(rest) + (after - keep * before) ** 2 / rest))

    tau_s = min(np.geomspace(0.05 * steps.step_s, len(steps.bps) * steps.step_s, 40).tolist(), key=unlikely)
    tau_s = min(np.geomspace(tau_s / 1.5, tau_s * 1.5, 40).tolist(), key=unlikely)
    return GaussMarkov(median, sigma, tau_s, *steps.stays())


def fit_markov(steps: Steps) -> Markov:
    """See the module's text."""
    some = steps.bps[~steps.out]
    k = int(np.clip(len(some) // 40, 2, MAX_STATES))
    edges = np.unique(np.quantile(some, np.linspace(0.0, 1.0, k + 1)))
    if len(edges) < 2:
        edges = np.repeat(edges, 2)
    inner = np.searchsorted(edges[1:-1], steps.bps, side="right")
    silent = bool(steps.out.any())
    states = np.where(steps.out, 0, inner + silent)
    low, high = edges[:-1] / 1e6, edges[1:] / 1e6
    if silent:
        low, high = np.concatenate([[0.0], low]), np.concatenate([[0.0], high])
    counts = np.zeros((len(low), len(low)))
    np.add.at(counts, (states[:-1], states[1:]), 1.0)
    # A state seen in the last step only, or never, goes on as the trace does on the whole.
    usual = np.bincount(states, minlength=len(low)).astype(np.float64)
    counts[counts.sum(axis=1) == 0.0] = usual
    moves = counts / counts.sum(axis=1, keepdims=True)
    return Markov(tuple(low.tolist()), tuple(high.tolist()), tuple(map(tuple, moves.tolist())))


def fit_gilbert_elliott(steps: Steps) -> GilbertElliott:
    """See the module's text."""
    median, sigma = steps.log_moments()
    good_s, bad_s = steps.stays()
    bad_mbps = float(steps.bps[steps.out].mean()) / 1e6 if bad_s else 0.0
    return GilbertElliott(median, sigma, bad_mbps, good_s, bad_s)


def fit_handover(steps: Steps) -> Handover:
    """See the module's text."""
    median, sigma = steps.log_moments()
    scales = _two_scales(steps.bps, steps, ~steps.out)
    every_s, outage_s = steps.stays()
    interrupted, left = 0.0, 0.0
    if outage_s:
        rate = 1.0 / (every_s + outage_s)
        interrupted = min(1.0, rate * scales.cell_s)
        left = rate - interrupted / scales.cell_s
    return Handover(
        median,
        scales.cell_s,
        sigma * math.sqrt(scales.cell_share),
        sigma * math.sqrt(1.0 - scales.cell_share),
        scales.tau_s,
        interrupted,
        outage_s,
        *((1.0 / left, outage_s) if left > 1e-9 else (every_s, 0.0)),
        scales.quantiles_mbps,
    )


def fit_two_scale(steps: Steps) -> TwoScale:
    """See the module's text."""
    return _two_scales(np.where(steps.out, 0.0, steps.bps), steps, np.ones(len(steps.bps), dtype=np.bool_))


def _two_scales(bps: Floats, steps: Steps, valid: Bools) -> TwoScale:
    """Quantiles and time scales of the valid steps."""
    some = bps[valid]
    scores = np.zeros(len(bps))
    _, place, count = np.unique(some, return_inverse=True, return_counts=True)
    scores[valid] = ndtri(((np.cumsum(count) - 0.5 * count) / len(some))[place])  # ties share their mean
    lags = np.unique(np.geomspace(1, len(bps) // 4, 24).astype(int))
    seen = autocorrelation(scores, lags, valid)
    known = np.isfinite(seen)
    seconds, seen = lags[known] * steps.step_s, seen[known]
    best = (math.inf, 10.0 * steps.step_s, 0.0, 0.0)
    for cell_s in np.geomspace(5.0 * steps.step_s, 0.25 * len(bps) * steps.step_s, 24):
        slow = np.exp(-seconds / cell_s)
        for tau_s in (0.0, *np.geomspace(0.2 * steps.step_s, 0.5 * cell_s, 16)):
            fast = np.exp(-seconds / tau_s) if tau_s else np.zeros_like(seconds)
            apart = slow - fast
            share = float(np.clip(np.sum(apart * (seen - fast)) / np.sum(apart * apart), 0.0, 1.0))
            wrong = float(np.sum((share * slow + (1.0 - share) * fast - seen) ** 2))
            best = min(best, (wrong, float(cell_s), share, float(tau_s)))
    marks = int(np.clip(len(some) // 10, 2, QUANTILES))
    quantiles = np.quantile(some, np.linspace(0.0, 1.0, marks)) / 1e6
    return TwoScale(tuple(quantiles.tolist()), *best[1:])


FITS: dict[str, Callable[[Steps], Generator]] = {
    "gauss-markov": fit_gauss_markov,
    "markov": fit_markov,
    "gilbert-elliott": fit_gilbert_elliott,
    "handover": fit_handover,
    "two-scale": fit_two_scale,
}
