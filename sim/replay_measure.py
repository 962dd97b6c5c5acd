"""What the transfers of recorded requests measured of the channel.

A transfer of n framed bytes that took `uplink_s` one way was served behind those before it (first in, first
out), after a delay. So it measured the mean capacity from the moment the link was free for it to the moment
its last byte left; messages never answered that were still in the queue before it are counted in. A message
never answered with nothing behind it bounds the capacity from above while it was under way.

The delay is the least seen within a few seconds, and jitter: small replies, whose transmission takes next
to nothing, show it. A message of one packet whose transmission drowns in it only says "at least as fast".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.special import log_ndtr

from splitedge.sim.replay_records import Bools, Floats, Recorded

Indices = npt.NDArray[np.intp]

#: Transmission times below this say only "at least as fast as".
NOISE_S = 0.001
BASE_S = 5.0  # the propagation delay is the least seen this near
MTU = 1500.0
LINGER_S = 0.1  # an unanswered message is taken to be in the queue for this much longer
FEW = 8
_PRIOR = float(np.log(10e6))
_TAUS = np.geomspace(0.1, 100.0, 25)
LIMITS = (1e3, 1e10)  # bits/s


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
        return Measured(*(column[keep] for column in self.columns()))

    def columns(self) -> tuple[Any, ...]:
        """Its arrays, in the order of the attributes."""
        return self.begin, self.end, self.bps, self.nbytes, self.bound, self.weak, self.waited

    def strong(self) -> Measured:
        """Without those that only say "at least as fast", unless there are hardly any others."""
        kept = self.only(~self.weak & ~self.waited)
        return kept if (~kept.bound).sum() >= FEW else self.only(np.ones(len(self), bool))


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
        jitter_up_s, jitter_down_s: jitter of each answered request's messages, NaN of others, (n,).
        fading_up, fading_down: of the log rate.
    """

    up: Measured
    down: Measured
    base_s: Floats
    jitter_up_s: Floats
    jitter_down_s: Floats
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
    size = table["bytes_up"] / np.maximum(1, table["attempts"])
    down_jitter, noise = _jitter(table["downlink_s"] - base, answered & (table["bytes_down"] <= MTU))
    up_jitter, up_noise = _jitter(table["uplink_s"] - base, answered & (size <= MTU))
    # A long message's own jitter can not be told from its transmission: it is taken for its reply's.
    up_jitter = np.where(np.isfinite(up_jitter), up_jitter, np.where(answered, down_jitter, np.nan))
    up_noise = up_noise or noise
    # An unanswered one: it was sent after its compute, and nothing had come back when the request ended.
    lost = ~answered & (table["attempts"] >= 1)
    sent = np.where(answered, there - table["uplink_s"], t_s + table["head_s"] + table["encode_s"])
    left = np.where(
        answered,
        np.maximum(there - base - np.nan_to_num(up_jitter), sent),
        np.maximum(ends - 2.0 * base, sent),
    )
    up = _served(sent, left, size, lost, answered | lost, 2.0 * up_noise)
    down = _served(
        back,
        ends - base - np.nan_to_num(down_jitter),
        table["bytes_down"].astype(float),
        lost,
        answered,
        2.0 * noise,
    )
    return Measurements(up, down, base, up_jitter, down_jitter, fading(up), fading(down))


def _jitter(over: Floats, small: Bools) -> tuple[Floats, float]:
    """Jitter of small messages, whose time over the base is next to nothing else (NaN of others, (n,)), and
    its 90th percentile: what takes longer was slow.
    """
    if small.sum() < FEW:
        return np.full(len(over), np.nan), 0.0
    most = float(np.quantile(over[small], 0.9))
    return np.where(small, np.clip(over, 0.0, most), np.nan), most


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
    return Measured(begin, end, np.clip(bps, *LIMITS), size, bound, weak, waited)


def fading(measured: Measured) -> Fading:
    """Mean, spread and correlation time of the log rate.

    Bounds from above (unanswered) and from below (weak) count as censored values: Tobin, Econometrica 1958.
    One sample's worth of the link estimator's prior, 10 Mbit/s, holds where they are all that there is. The
    correlation time is the one whose exponential fits the squared differences of answered transfers one,
    two, four and eight apart best. Measurements closer together than that share their weight.
    """
    used = measured.only(~measured.waited)
    if not len(used):
        return Fading(_PRIOR, 1.0, 1.0)
    sure = used.only(~used.bound & ~used.weak)
    tau = _tau(sure if len(sure) >= FEW else used.answered())
    gap = np.append(np.inf, used.end[1:] - used.end[:-1])
    weight = np.maximum(1.0 - np.exp(-np.maximum(gap, 0.0) / tau), 0.01)
    side = np.where(used.bound, -1, np.where(used.weak, 1, 0))
    values = np.append(np.log(used.bps), [_PRIOR - 1.0, _PRIOR + 1.0])
    mean, sigma = _censored(values, np.append(side, [0, 0]), np.append(weight, [0.5, 0.5]))
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


def _censored(value: Floats, side: npt.NDArray[np.int_], weight: Floats) -> tuple[float, float]:
    """Mean and standard deviation of a normal by EM, of values known (side 0), or only known to be below
    (-1) or above (1) `value`.
    """
    mean = float(np.average(value, weights=weight))
    variance = float(np.average((value - mean) ** 2, weights=weight))
    sign = side.astype(float)
    for _ in range(200):
        sigma = max(variance**0.5, 1e-3)
        z = (value - mean) / sigma
        tail = log_ndtr(np.where(side < 0, z, -z))
        ratio = np.exp(-0.5 * z * z - tail) / np.sqrt(2.0 * np.pi)  # density over probability of that side
        first = np.where(side == 0, value, mean + sign * sigma * ratio)
        extra = np.where(side == 0, 0.0, sigma**2 * np.maximum(0.0, 1.0 + sign * z * ratio - ratio**2))
        new = float(np.average(first, weights=weight))
        variance = float(np.average((first - new) ** 2 + extra, weights=weight))
        if abs(new - mean) < 1e-6:
            break
        mean = new
    return mean, max(variance, 0.0) ** 0.5
