"""The channel around recorded requests: what their transfers measured, and draws of what lay between.

A transfer of n framed bytes that took `uplink_s` one way was served behind those before it (first in, first
out), after a propagation delay. So it measured the mean capacity from the moment the link was free for it to
the moment its last byte left; messages never answered that were still in the queue before it are counted in.
A message never answered with nothing behind it bounds the capacity from above while it was under way.

The delay is the least seen within a few seconds, and jitter: small replies, whose transmission takes next
to nothing, show it. A message of one packet whose transmission drowns in it only says "at least as fast".

Between two measurements the capacity is not known. It is drawn: the log rate as a Gauss-Markov process
(`synth.py`) with the mean, spread and correlation time that the measurements show (the bounds count as
censored values: Tobin, Econometrica 1958), conditioned on those at either end. Several draws show how much
the gaps matter.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr, ndtr, ndtri

from splitedge.sim.curves import Rates, Series
from splitedge.sim.link import Channel
from splitedge.sim.replay_records import Bools, Floats, Recorded

Indices = npt.NDArray[np.intp]

#: Transmission times below this say only "at least as fast as".
NOISE_S = 0.001
STEP_S = 0.1  # between the values drawn in a gap
MAX_STEPS = 2_000_000
BASE_S = 5.0  # the propagation delay is the least seen this near
MTU = 1500.0
LINGER_S = 0.1  # an unanswered message is taken to be in the queue for this much longer
_FEW = 8
_NEAR = 10  # jitter of a request that measured none is that of one of so many before or after
_TAUS = np.geomspace(0.1, 100.0, 25)
_LIMITS = (1e3, 1e10)  # bits/s


@dataclass(frozen=True, eq=False)
class Measured:
    """What the transfers of the records measured of one direction, in order of time.

    Attributes:
        begin, end: seconds in which the bytes left, none before the end of the one before, (k,).
        bps: mean capacity in that time; for `bound` its most, (k,).
        nbytes: framed bytes of the message, (k,).
        bound: whether the message was never answered, (k,).
        weak: whether `bps` is the least it was, (k,).
        waited: whether unanswered messages were served in that time too, before it, (k,).
    """

    begin: Floats
    end: Floats
    bps: Floats
    nbytes: Floats
    bound: Bools
    weak: Bools
    waited: Bools

    def __len__(self) -> int:
        return len(self.begin)

    def answered(self) -> Measured:
        """Only the transfers that were answered."""
        return self.only(~self.bound)

    def only(self, keep: Bools | Indices) -> Measured:
        """Some of them."""
        return Measured(*(column[keep] for column in self._columns()))

    def _columns(self) -> tuple[Any, ...]:
        return self.begin, self.end, self.bps, self.nbytes, self.bound, self.weak, self.waited

    def strong(self) -> Measured:
        """Without those that only say "at least as fast", unless there are hardly any others."""
        kept = self.only(~self.weak & ~self.waited)
        return kept if (~kept.bound).sum() >= _FEW else self.only(np.ones(len(self), bool))


@dataclass(frozen=True, eq=False)
class Fading:
    """The log rate as a Gauss-Markov process: mean, standard deviation, correlation time in seconds."""

    mean: float
    sigma: float
    tau_s: float


@dataclass(frozen=True, eq=False)
class Measurements:
    """Both directions, the propagation delay, and how the capacity moves.

    Attributes:
        up, down: the transfers.
        base_s: one-way delay without jitter at each request's arrival, seconds, (n,).
        jitter_s: jitter of each answered request, NaN of others, (n,).
        fading_up, fading_down: of the log rate.
    """

    up: Measured
    down: Measured
    base_s: Floats
    jitter_s: Floats
    fading_up: Fading
    fading_down: Fading


def measure(recorded: Recorded) -> Measurements:
    """What the records' own transfers measured."""
    table, t_s = recorded.table, recorded.t_s
    ends = t_s + table["latency_s"]
    answered = (table["uplink_s"] + table["downlink_s"] > 0.0) & (table["attempts"] >= 1)
    back = ends - table["downlink_s"]
    there = back - table["tail_s"] - table["decode_s"] - table["queue_s"]
    base = _base(recorded, answered)
    small = answered & (table["bytes_down"] <= MTU)
    jitter = np.where(small, table["downlink_s"] - base, np.nan)
    delay = base + np.where(np.isfinite(jitter), jitter, 0.0)
    noise = float(np.nanquantile(jitter, 0.9)) if small.sum() >= _FEW else 0.0
    size = table["bytes_up"] / np.maximum(1, table["attempts"])
    # An unanswered one: it was sent after its compute, and nothing had come back when the request ended.
    lost = ~answered & (table["attempts"] >= 1)
    sent = np.where(answered, there - table["uplink_s"], t_s + table["head_s"] + table["encode_s"])
    left = np.where(answered, np.maximum(there - delay, sent), np.maximum(ends - 2.0 * base, sent))
    up = _served(sent, left, size, lost, answered | lost, 2.0 * noise)
    down = _served(back, ends - delay, table["bytes_down"].astype(float), lost, answered, 2.0 * noise)
    return Measurements(up, down, base, jitter, fading(up.strong()), fading(down.strong()))


def _base(recorded: Recorded, answered: Bools) -> Floats:
    """One-way propagation at each arrival: the least of the transfers and half pings around it, (n,)."""
    table, t_s = recorded.table, recorded.t_s
    one_way = np.minimum(
        np.where(answered, np.minimum(table["uplink_s"], table["downlink_s"]), np.inf),
        np.where(np.isfinite(table["rtt_s"]), 0.5 * table["rtt_s"], np.inf),
    )
    first = np.searchsorted(t_s, t_s - BASE_S)
    last = np.searchsorted(t_s, t_s + BASE_S, "right")
    least = np.array([one_way[a:b].min() for a, b in zip(first.tolist(), last.tolist(), strict=True)])
    return np.where(np.isfinite(least), least, 0.0)


def _served(
    sent: Floats, left: Floats, nbytes: Floats, lost: Bools, valid: Bools, noise_s: float
) -> Measured:
    """When each transfer was served, with the unanswered ones before it, and at what rate.

    Args:
        sent, left: when a message was handed to the link, and when its last byte had left; of a lost one,
            until when it had not, (n,).
        nbytes: of the message, (n,).
        lost: never answered, (n,).
        valid: which were sent at all, (n,).
        noise_s: transmissions of one packet below this drown in the jitter.
    """
    at = np.flatnonzero(valid & (nbytes > 0))
    at = at[np.argsort(sent[at], kind="stable")]
    rows: list[tuple[float, float, float, float, bool, bool]] = []
    queue: list[tuple[float, float, float]] = []  # unanswered, each still there when the next was sent
    free = -np.inf

    def close() -> None:
        if queue:
            begin, end = max(queue[0][0], free), queue[-1][1]
            if end - begin > NOISE_S:
                total = sum(size for _, _, size in queue)
                rows.append((begin, end, 8.0 * total / (end - begin), queue[0][2], True, False))
            queue.clear()

    for s, e, size, gone in zip(
        sent[at].tolist(), left[at].tolist(), nbytes[at].tolist(), lost[at].tolist(), strict=True
    ):
        if queue and queue[-1][1] + LINGER_S <= s:
            close()
        if gone:
            queue.append((s, e, size))
            continue
        begin = max(queue[0][0] if queue else s, free)
        end = max(e, begin + NOISE_S)
        total = size + sum(waiting for _, _, waiting in queue)
        rows.append((begin, end, 8.0 * total / (end - begin), size, False, bool(queue)))
        queue.clear()
        free = end
    close()
    begin, end, bps, size = (np.array([row[i] for row in rows], float) for i in range(4))
    bound, waited = (np.array([row[i] for row in rows], bool) for i in (4, 5))
    weak = ~bound & (size <= MTU) & (end - begin <= max(noise_s, NOISE_S))
    return Measured(begin, end, np.clip(bps, *_LIMITS), size, bound, weak, waited)


def fading(measured: Measured) -> Fading:
    """Mean, spread and correlation time of the log rate.

    The correlation time is the one whose exponential fits the squared differences of answered transfers one,
    two, four and eight apart best. Measurements closer together than that share their weight.
    """
    known = measured.answered()
    if len(known) < 2:
        return Fading(float(np.log(10e6)), 1.0, 1.0)
    tau = _tau(known)
    gap = np.append(np.inf, measured.end[1:] - measured.end[:-1])
    weight = 1.0 - np.exp(-np.maximum(gap, 0.0) / tau)
    mean, sigma = _censored(np.log(measured.bps), measured.bound, np.maximum(weight, 0.01))
    return Fading(mean, max(sigma, 1e-3), tau)


def _tau(known: Measured) -> float:
    value = np.log(known.bps)
    spread = float(value.var())
    if spread < 1e-9 or len(known) < 8:
        return 1.0
    lags = [lag for lag in (1, 2, 4, 8) if len(known) > lag]
    gap = np.concatenate([np.maximum(known.begin[lag:] - known.end[:-lag], 0.0) for lag in lags])
    apart = np.concatenate([(value[lag:] - value[:-lag]) ** 2 for lag in lags]) / (2.0 * spread)
    errors = [float(np.mean((apart - (1.0 - np.exp(-gap / tau))) ** 2)) for tau in _TAUS]
    return float(_TAUS[int(np.argmin(errors))])


def _censored(value: Floats, bound: Bools, weight: Floats) -> tuple[float, float]:
    """Mean and standard deviation of a normal of which some values are only known to be below `value`: EM."""
    mean = float(np.average(value, weights=weight))
    variance = float(np.average((value - mean) ** 2, weights=weight))
    if not bound.any():
        return mean, variance**0.5
    for _ in range(100):
        sigma = max(variance**0.5, 1e-3)
        z = (value - mean) / sigma
        ratio = np.exp(-0.5 * z * z - log_ndtr(z)) / np.sqrt(2.0 * np.pi)  # density over probability below
        first = np.where(bound, mean - sigma * ratio, value)
        extra = np.where(bound, sigma**2 * np.maximum(0.0, 1.0 - z * ratio - ratio**2), 0.0)
        new = float(np.average(first, weights=weight))
        variance = float(np.average((first - new) ** 2 + extra, weights=weight))
        if abs(new - mean) < 1e-6:
            break
        mean = new
    return mean, variance**0.5


def _imputed(measured: Measured, fading: Fading, rng: np.random.Generator) -> Measured:
    """Bounds replaced by rates drawn below them, or above where they say "at least"."""
    weak = measured.weak & (measured.weak.sum() < len(measured) - _FEW)
    z = (np.log(measured.bps) - fading.mean) / fading.sigma
    drawn = ndtri(np.clip(rng.random(len(z)) * ndtr(z), 1e-12, 1.0 - 1e-12))
    bps = np.exp(fading.mean + fading.sigma * np.minimum(drawn, z))
    above = np.exp(fading.mean - fading.sigma * ndtri(np.clip(rng.random(len(z)) * ndtr(-z), 1e-12, 1.0)))
    # Unanswered: the link stood still, or it was only slow. Nothing tells which, so draws differ in it.
    bps = np.where(measured.bound, _LIMITS[0] if rng.random() < 0.5 else bps, measured.bps)
    bps = np.where(weak, np.maximum(above, measured.bps), bps)
    none = np.zeros(len(z), bool)
    columns = measured.begin, measured.end, np.clip(bps, *_LIMITS), measured.nbytes, none, none
    drawn = np.exp(fading.mean + fading.sigma * rng.standard_normal(len(z)))
    return _stalled(Measured(*columns, measured.waited), drawn)


def _stalled(measured: Measured, usual: Floats) -> Measured:
    """Times in which several messages waited and the last was answered: the link stood still, then served
    them all at a usual rate, unless that is less than the mean needed.
    """
    seconds, low = measured.end - measured.begin, _LIMITS[0]
    stood = measured.waited & (usual > measured.bps)
    burst = np.where(stood, seconds * (measured.bps - low) / np.maximum(usual - low, 1.0), seconds)
    burst = np.clip(burst, 0.0, seconds)
    middle = np.where(stood, measured.end - burst, measured.begin)
    late = replace(measured, begin=middle, bps=np.where(stood, usual, measured.bps))
    early = replace(measured, end=middle, bps=np.full(len(usual), low)).only(stood)
    both = Measured(*(np.concatenate(pair) for pair in zip(late._columns(), early._columns(), strict=True)))
    return both.only(np.argsort(both.begin, kind="stable"))


def draw(recorded: Recorded, measured: Measurements, rng: np.random.Generator) -> tuple[Channel, Channel]:
    """One possible channel: uplink and downlink that agree with every measured transfer."""
    ends = float((recorded.t_s + recorded.table["latency_s"]).max()) + 60.0
    times = np.concatenate([[0.0], recorded.t_s[1:]]) if len(recorded) > 1 else np.array([0.0])
    rtt = Series(times, 2.0 * (measured.base_s + _jitter(measured.jitter_s, rng)), ends)
    up = Channel(_rates(measured.up, measured.fading_up, ends, rng), rtt)
    down = Channel(_rates(measured.down, measured.fading_down, ends, rng), rtt)
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
    known = _imputed(measured, fading, rng)
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
    times, rates = np.maximum(times[order], 0.0), np.clip(rates[order], *_LIMITS)
    keep = np.append(times[1:] > times[:-1], True) & (times < ends)
    times, rates = times[keep], rates[keep]
    times[0] = 0.0
    return Rates(times, rates, ends)


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
    value = np.log(known.bps) - fading.mean
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
