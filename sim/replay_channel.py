"""Draws of the channel between what the records measured of it.

Between two measurements the capacity is not known. It is drawn: the log rate as a Gauss-Markov process
(`synth.py`) with the mean, spread and correlation time that the measurements show, conditioned on those at
either end. Several draws show how much the gaps matter; all agree with every measured transfer.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from scipy.special import ndtr, ndtri

from splitedge.sim.curves import Rates, Series
from splitedge.sim.link import Channel
from splitedge.sim.replay_measure import LIMITS, Fading, Measured, Measurements
from splitedge.sim.replay_records import Floats, Recorded

STEP_S = 0.1  # between the values drawn in a gap
MAX_STEPS = 2_000_000
JITTER_SIGMA = 0.7  # of the log of a draw's jitter over the recorded one
_NEAR = 10  # jitter of a request that measured none is that of one of so many before or after


def draw(recorded: Recorded, measured: Measurements, rng: np.random.Generator) -> tuple[Channel, Channel]:
    """One possible channel: uplink and downlink that agree with every measured transfer."""
    ends = float((recorded.t_s + recorded.table["latency_s"]).max()) + 60.0
    times = np.concatenate([[0.0], recorded.t_s[1:]]) if len(recorded) > 1 else np.array([0.0])
    # Jitter also comes from what else device and cloud did: another run has less of it, or more.
    much = np.exp(JITTER_SIGMA * rng.standard_normal())
    there, back = (
        Series(times, 2.0 * (measured.base_s + much * _jitter(jitter, rng)), ends)  # a channel takes half
        for jitter in (measured.jitter_up_s, measured.jitter_down_s)
    )
    up = Channel(_rates(measured.up, measured.fading_up, ends, rng), there)
    down = Channel(_rates(measured.down, measured.fading_down, ends, rng), back)
    return up, down


def _jitter(jitter_s: Floats, rng: np.random.Generator) -> Floats:
    """Jitter of every request; where it was not measured, that of one near it."""
    known = np.flatnonzero(np.isfinite(jitter_s))
    if not known.size:
        return np.zeros(len(jitter_s))
    at = np.searchsorted(known, np.arange(len(jitter_s)))
    other = known[np.clip(at + rng.integers(-_NEAR, _NEAR, len(jitter_s)), 0, len(known) - 1)]
    return np.asarray(np.where(np.isfinite(jitter_s), jitter_s, jitter_s[other]))


def _rates(measured: Measured, fading: Fading, ends: float, rng: np.random.Generator) -> Rates:
    """Measured rates where there are some, drawn ones between."""
    known = _imputed(_silence(measured, rng), fading, rng)
    grid = np.arange(0.0, ends, max(STEP_S, ends / MAX_STEPS))
    value = _between(grid, known, fading, rng)
    inside_known = np.searchsorted(known.begin, grid, "right") - 1
    covered = (
        (inside_known >= 0) & (grid < known.end[np.maximum(inside_known, 0)])
        if len(known)
        else np.zeros(len(grid), bool)
    )
    free = ~covered
    # Each busy time begins with its own rate; what follows it goes on with a drawn one.
    after = known.end
    after_value = _between(after, known, fading, rng) if len(known) else np.empty(0)
    starts_later = np.append(known.begin[1:] > after[:-1] + 1e-9, True) if len(known) else np.empty(0, bool)
    times = np.concatenate([grid[free], known.begin, after[starts_later]])
    rates = np.concatenate([np.exp(value[free]), known.bps, np.exp(after_value[starts_later])])
    order = np.argsort(times, kind="stable")
    times, rates = np.maximum(times[order], 0.0), np.clip(rates[order], *LIMITS)
    keep = np.append(times[1:] > times[:-1], True) & (times < ends)
    times, rates = times[keep], rates[keep]
    times[0] = 0.0
    return Rates(times, rates, ends)


def _silence(measured: Measured, rng: np.random.Generator) -> Measured:
    """A single message without an answer: the link failed it, or device or cloud were late. Nothing tells
    which, so draws differ in it. Several in a row are taken for the link's.
    """
    nbytes = measured.bps * (measured.end - measured.begin) / 8.0
    alone = (measured.bound & (nbytes < 1.1 * measured.nbytes)) | (
        measured.waited & (nbytes < 2.2 * measured.nbytes)
    )
    return measured.only(~alone) if rng.random() < 0.5 else measured


def _imputed(measured: Measured, fading: Fading, rng: np.random.Generator) -> Measured:
    """Bounds replaced by rates drawn below them, or above where they say "at least". Where several messages
    stayed unanswered, the link stood still in half of the draws, and was slow in the others.
    """
    z = (np.log(measured.bps) - fading.mean) / fading.sigma
    drawn = ndtri(np.clip(rng.random(len(z)) * ndtr(z), 1e-12, 1.0 - 1e-12))
    bps = np.exp(fading.mean + fading.sigma * np.minimum(drawn, z))
    above = np.exp(fading.mean - fading.sigma * ndtri(np.clip(rng.random(len(z)) * ndtr(-z), 1e-12, 1.0)))
    bps = np.where(measured.bound, LIMITS[0] if rng.random() < 0.5 else bps, measured.bps)
    bps = np.where(measured.weak, np.maximum(above, measured.bps), bps)
    none = np.zeros(len(z), bool)
    columns = measured.begin, measured.end, np.clip(bps, *LIMITS), measured.nbytes, none, none
    drawn = np.exp(fading.mean + fading.sigma * rng.standard_normal(len(z)))
    return _stalled(Measured(*columns, measured.waited), drawn)


def _stalled(measured: Measured, usual: Floats) -> Measured:
    """Times in which several messages waited and the last was answered: the link stood still, then served
    them all at a usual rate, unless that is less than the mean needed.
    """
    seconds, low = measured.end - measured.begin, LIMITS[0]
    stood = measured.waited & (usual > measured.bps)
    burst = np.where(stood, seconds * (measured.bps - low) / np.maximum(usual - low, 1.0), seconds)
    burst = np.clip(burst, 0.0, seconds)
    middle = np.where(stood, measured.end - burst, measured.begin)
    late = replace(measured, begin=middle, bps=np.where(stood, usual, measured.bps))
    early = replace(measured, end=middle, bps=np.full(len(usual), low)).only(stood)
    both = Measured(*(np.concatenate(pair) for pair in zip(late.columns(), early.columns(), strict=True)))
    return both.only(np.argsort(both.begin, kind="stable"))


def _between(at: Floats, known: Measured, fading: Fading, rng: np.random.Generator) -> Floats:
    """Log rates at rising times: a path of the process, bent so that it goes through the measurements.

    For a Gaussian process a free path plus the interpolated difference to the data is a draw from the
    conditional distribution; only the two neighbours count, as the process is Markov.
    """
    if not len(known):
        return fading.mean + fading.sigma * _path(np.asarray(at), fading.tau_s, rng)
    nodes = np.concatenate([at, known.begin, known.end])
    order = np.argsort(nodes, kind="stable")
    path = np.empty(len(nodes))
    path[order] = fading.sigma * _path(nodes[order], fading.tau_s, rng)
    free, at_begin, at_end = np.split(path, [len(at), len(at) + len(known)])
    # A link that stood still says nothing of the rate before and after.
    value = np.maximum(np.log(known.bps) - fading.mean, -2.0 * fading.sigma)
    right = np.searchsorted(known.begin, at, "right")
    left = right - 1
    from_left = np.where(left >= 0, value[np.maximum(left, 0)] - at_end[np.maximum(left, 0)], 0.0)
    nxt = np.minimum(right, len(known) - 1)
    from_right = np.where(right < len(known), value[nxt] - at_begin[nxt], 0.0)
    gap_left = np.where(left >= 0, np.maximum(at - known.end[np.maximum(left, 0)], 0.0), np.inf)
    gap_right = np.where(right < len(known), np.maximum(known.begin[nxt] - at, 0.0), np.inf)
    a, b = np.exp(-gap_left / fading.tau_s), np.exp(-gap_right / fading.tau_s)
    rest = np.maximum(1.0 - (a * b) ** 2, 1e-12)
    wa, wb = a * (1.0 - b * b) / rest, b * (1.0 - a * a) / rest
    return np.asarray(fading.mean + free + wa * from_left + wb * from_right)


def _path(times: Floats, tau_s: float, rng: np.random.Generator) -> Floats:
    """A Gauss-Markov process of mean 0 and variance 1 at rising times."""
    noise = rng.standard_normal(len(times))
    if not len(times):
        return noise
    keep = np.exp(-np.diff(times) / tau_s)
    value = np.empty(len(times))
    level = value[0] = noise[0]
    shocks = noise[1:] * np.sqrt(np.maximum(0.0, 1.0 - keep * keep))
    for i, (k, shock) in enumerate(zip(keep.tolist(), shocks.tolist(), strict=True), start=1):
        level = k * level + shock
        value[i] = level
    return value
