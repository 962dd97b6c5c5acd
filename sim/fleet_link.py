"""The link model of `link.py` for many devices: the same sums, a binary search each, state in records.

A curve's samples are found through a guide table (Chen and Asau, 1974): the search begins in one of as many
equal buckets as there are samples, and so takes one or two steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitedge.sim.compiled import compiled
from splitedge.sim.curves import PACKET_BITS, SLACK_BITS, Capacity, Floats, Opportunities, Series
from splitedge.sim.link import Channel

Ints = NDArray[np.int32]
_LEAST_BUCKETS = 16
_MOST_BUCKETS = 1 << 22

#: State of one direction of a device's link, or of the cell's.
LINK = np.dtype([("served", "f8"), ("last_arrival", "f8")], align=True)


class Steps(NamedTuple):
    """Values that hold from one key to the next, with the guide to find them.

    Attributes:
        keys: rising from 0, shape (n,).
        values: from each key on, shape (n,).
        end: the key after the last, more than `keys[-1]`.
        scale: buckets per unit of key.
        guide: for each bucket, the last key at or before its beginning, shape (buckets + 1,).
    """

    keys: Floats
    values: Floats
    end: float
    scale: float
    guide: Ints


class Way(NamedTuple):
    """One direction of a channel.

    Attributes:
        packets: whether it is made of packet opportunities.
        rates: seconds and bits/s (or seconds and nothing, for opportunities).
        sums: bits offered before each sample, as keys; the values are not used.
        rtt: seconds of round trip by second.
        ends_s: second at which the replay ends; inf where it loops.
    """

    packets: bool
    rates: Steps
    sums: Steps
    rtt: Steps
    ends_s: float


def steps(keys: Floats, values: Floats, end: float) -> Steps:
    """Build the guide."""
    buckets = min(max(len(keys), _LEAST_BUCKETS), _MOST_BUCKETS)
    scale = buckets / end if end > 0.0 else 0.0
    edges = np.arange(buckets + 1) / scale if scale > 0.0 else np.zeros(buckets + 1)
    guide = np.searchsorted(keys, edges, side="right") - 1
    # One sample of grace: the division that finds the bucket may round up over its edge.
    guide = np.clip(guide - 1, 0, len(keys) - 1).astype(np.int32)
    return Steps(np.ascontiguousarray(keys), np.ascontiguousarray(values), float(end), scale, guide)


def way(channel: Channel) -> Way:
    """One direction of a channel, ready for the kernels; `start_s` is the devices' affair."""
    capacity: Capacity = channel.capacity
    rtt = channel.rtt_s
    if not isinstance(rtt, Series):
        rtt = Series(np.zeros(1), np.full(1, float(rtt)), 1.0)
    packets = isinstance(capacity, Opportunities)
    if isinstance(capacity, Opportunities):
        values = np.zeros(len(capacity.time_s))
        sums = np.zeros(1)
        rates = steps(capacity.time_s, values, capacity.period_s)
        total = capacity.bits_per_period
    else:
        lengths = np.diff(capacity.time_s, append=capacity.period_s)
        sums = np.concatenate([[0.0], np.cumsum(lengths * capacity.bps)])
        rates = steps(capacity.time_s, capacity.bps, capacity.period_s)
        total = float(sums[-1])
        sums = sums[:-1]
    ends = np.inf if channel.loop else capacity.period_s
    return Way(
        packets,
        rates,
        steps(sums, np.zeros(len(sums)), total),
        steps(rtt.time_s, rtt.value, rtt.period_s),
        ends,
    )


@compiled
def at_or_before(s: Steps, key: float) -> int:
    """Index of the last key that is not above `key`, in [0, s.end]; as `bisect_right(keys, key) - 1`."""
    keys = s.keys
    bucket = min(int(key * s.scale), len(s.guide) - 2)
    low = s.guide[bucket]
    high = min(s.guide[bucket + 1] + 3, len(keys))
    while high < len(keys) and keys[high] <= key:
        high = min(high * 2, len(keys))
    while low > 0 and keys[low] > key:
        low //= 2
    while low + 1 < high:
        middle = (low + high) // 2
        if keys[middle] <= key:
            low = middle
        else:
            high = middle
    return int(low)


@compiled
def before(s: Steps, key: float) -> int:
    """How many keys are below `key`, as `bisect_left(keys, key)`."""
    i = at_or_before(s, key)
    while i >= 0 and s.keys[i] >= key:
        i -= 1
    return i + 1


@compiled
def bits_by(w: Way, t: float) -> float:
    """Bits offered in [0, t); see `curves.py`."""
    period = w.rates.end
    if w.packets:
        if t <= 0.0:
            return 0.0
        lap = np.ceil(t / period) - 1.0
        return float(PACKET_BITS) * (lap * len(w.rates.keys) + before(w.rates, t - lap * period))
    lap = np.floor(t / period)
    rest = t - lap * period
    i = at_or_before(w.rates, max(rest, 0.0))
    return lap * w.sums.end + w.sums.keys[i] + (rest - w.rates.keys[i]) * w.rates.values[i]


@compiled
def time_of(w: Way, bits: float) -> float:
    """The first second by which `bits` were offered; inf if that never comes."""
    bits -= SLACK_BITS
    if bits <= 0.0:
        return 0.0
    if w.packets:
        count = len(w.rates.keys)
        nth = np.ceil(bits / PACKET_BITS) - 1.0
        lap = np.floor(nth / count)
        return lap * w.rates.end + w.rates.keys[int(nth - lap * count)]
    total = w.sums.end
    if total <= 0.0:
        return np.inf
    lap = np.floor(bits / total)
    rest = bits - lap * total
    if rest <= 0.0:
        lap -= 1.0
        rest = total
    i = before(w.sums, rest) - 1
    return lap * w.rates.end + w.rates.keys[i] + (rest - w.sums.keys[i]) / w.rates.values[i]


@compiled
def one_way(w: Way, t: float) -> float:
    """Seconds of propagation of what leaves at second `t` of the trace."""
    if len(w.rtt.keys) == 1:
        return 0.5 * w.rtt.values[0]
    rest = t - np.floor(t / w.rtt.end) * w.rtt.end
    return 0.5 * w.rtt.values[at_or_before(w.rtt, max(rest, 0.0))]


@compiled
def carry(link: Any, w: Way, start_s: float, now: float, nbytes: float) -> float:
    """Queue `nbytes` at `now` and give the second at which the last of them arrives: `Link.send`.

    Args:
        link: a record of `LINK`.
        w: the direction.
        start_s: where in the trace this link began.
        now: seconds since then, never falling.
        nbytes: of the message.
    """
    start = max(link.served, bits_by(w, min(now + start_s, w.ends_s)))
    link.served = start + 8.0 * nbytes
    if w.ends_s < np.inf and link.served > (PACKET_BITS * len(w.rates.keys) if w.packets else w.sums.end):
        return np.inf
    left = max(now, time_of(w, link.served) - start_s)
    if left == np.inf:
        return np.inf
    link.last_arrival = max(link.last_arrival, left + one_way(w, left + start_s))
    return float(link.last_arrival)


@compiled
def drop_queue(link: Any, w: Way, start_s: float, now: float) -> None:
    """Forget what is queued: `Link.clear`."""
    link.served = min(link.served, bits_by(w, min(now + start_s, w.ends_s)))
    link.last_arrival = min(link.last_arrival, now)
