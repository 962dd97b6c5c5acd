"""The link model of `link.py` for many devices: the same sums, a binary search each, state in records.

A curve's samples are found through a guide table (Chen and Asau, 1974): the search begins in one of as many
equal buckets as there are samples, and so takes one or two steps.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from splitedge.sim.compiled import inner
from splitedge.sim.curves import PACKET_BITS, SLACK_BITS, Capacity, Floats, Opportunities, Series
from splitedge.sim.link import Channel

_LEAST_BUCKETS = 16
_MOST_BUCKETS = 1 << 22

#: State of one direction of a device's link, or of the cell's.
LINK = np.dtype([("served", "f8"), ("last_arrival", "f8")], align=True)


#: Where a series stands in `Way.data`: keys, values and guide, and how its buckets are found.
STEPS = [("n", "i8"), ("end", "f8"), ("buckets", "i8"), ("per_key", "f8"), ("keys", "i8"), ("guide", "i8")]

#: One direction: whether it is made of packet opportunities, when the replay ends (inf where it loops), and
#: its three series: rates (or opportunities) by second, bits offered before each, round trip by second.
WAY = np.dtype(
    [("packets", "?"), ("ends_s", "f8")]
    + [(f"{part}_{name}", kind) for part in ("rates", "sums", "rtt") for name, kind in STEPS],
    align=True,
)


class Way(NamedTuple):
    """One direction of a channel.

    Attributes:
        data: keys, values and guides of its series, one after the other.
        at: record array of WAY, shape (1,), that says where.
    """

    data: Floats
    at: Any


def way(channel: Channel) -> Way:
    """One direction of a channel, ready for the loops; `start_s` is the devices' affair."""
    capacity: Capacity = channel.capacity
    rtt = channel.rtt_s
    if not isinstance(rtt, Series):
        rtt = Series(np.zeros(1), np.full(1, float(rtt)), 1.0)
    if isinstance(capacity, Opportunities):
        values, sums = np.zeros(len(capacity.time_s)), np.zeros(1)
        total = capacity.bits_per_period
    else:
        values = capacity.bps
        sums = np.concatenate([[0.0], np.cumsum(np.diff(capacity.time_s, append=capacity.period_s) * values)])
        total, sums = float(sums[-1]), sums[:-1]
    at = np.zeros(1, WAY)
    at["packets"] = isinstance(capacity, Opportunities)
    at["ends_s"] = np.inf if channel.loop else capacity.period_s
    series = {
        "rates": (capacity.time_s, values, capacity.period_s),
        "sums": (sums, np.zeros(0), total),
        "rtt": (rtt.time_s, rtt.value, rtt.period_s),
    }
    parts: list[Floats] = []
    for name, (keys, held, end) in series.items():
        guide, scale = _guide(keys, end)
        begin = sum(len(part) for part in parts)
        spec = (len(keys), end, len(guide) - 1, scale, begin, begin + len(keys) + len(held))
        for (field, _), value in zip(STEPS, spec, strict=True):
            at[f"{name}_{field}"] = value
        parts += [np.asarray(keys, np.float64), np.asarray(held, np.float64), guide]
    return Way(np.concatenate(parts), at.view(np.recarray))


def _guide(keys: Floats, end: float) -> tuple[Floats, float]:
    """For each of equal buckets of keys the last key at or before its beginning; and buckets per key."""
    buckets = min(max(len(keys), _LEAST_BUCKETS), _MOST_BUCKETS)
    scale = buckets / end if end > 0.0 else 0.0
    edges = np.arange(buckets + 1) / scale if scale > 0.0 else np.zeros(buckets + 1)
    # One key of grace: the product that finds the bucket may round up over its edge.
    guide = np.clip(np.searchsorted(keys, edges, side="right") - 2, 0, len(keys) - 1)
    return guide.astype(np.float64), scale


@inner
def _find(data: Floats, n: int, buckets: int, per_key: float, keys: int, guide: int, key: float) -> int:
    """Index of the last key that is not above `key` (at least 0); as `bisect_right(keys, key) - 1`."""
    bucket = min(int(key * per_key), buckets - 1)
    low = int(data[guide + bucket])
    high = min(int(data[guide + bucket + 1]) + 3, n)
    while high < n and data[keys + high] <= key:
        high = min(high * 2, n)
    while low > 0 and data[keys + low] > key:
        low //= 2
    while low + 1 < high:
        middle = (low + high) // 2
        if data[keys + middle] <= key:
            low = middle
        else:
            high = middle
    return low


@inner
def _rate(w: Way, t: float) -> int:
    a = w.at[0]
    return _find(w.data, a.rates_n, a.rates_buckets, a.rates_per_key, a.rates_keys, a.rates_guide, t)


@inner
def _offered_before(w: Way, t: float) -> int:
    """How many opportunities come before `t`, as `bisect_left`."""
    i = _rate(w, t)
    while i >= 0 and w.data[w.at[0].rates_keys + i] >= t:
        i -= 1
    return i + 1


@inner
def _sum_below(w: Way, bits: float) -> int:
    """Index of the last sample before which fewer than `bits` were offered."""
    a = w.at[0]
    i = _find(w.data, a.sums_n, a.sums_buckets, a.sums_per_key, a.sums_keys, a.sums_guide, bits)
    while i > 0 and w.data[a.sums_keys + i] >= bits:
        i -= 1
    return i


@inner
def bits_by(w: Way, t: float) -> float:
    """Bits offered in [0, t); see `curves.py`."""
    a = w.at[0]
    if a.packets:
        if t <= 0.0:
            return 0.0
        lap = np.ceil(t / a.rates_end) - 1.0
        return float(PACKET_BITS * (lap * a.rates_n + _offered_before(w, t - lap * a.rates_end)))
    lap = np.floor(t / a.rates_end)
    rest = max(0.0, t - lap * a.rates_end)
    i = _rate(w, rest)
    since = rest - w.data[a.rates_keys + i]
    return float(lap * a.sums_end + w.data[a.sums_keys + i] + since * w.data[a.rates_keys + a.rates_n + i])


@inner
def time_of(w: Way, bits: float) -> float:
    """The first second by which `bits` were offered; inf if that never comes."""
    a = w.at[0]
    bits -= SLACK_BITS
    if bits <= 0.0:
        return 0.0
    if a.packets:
        nth = np.ceil(bits / PACKET_BITS) - 1.0
        lap = np.floor(nth / a.rates_n)
        return float(lap * a.rates_end + w.data[a.rates_keys + int(nth - lap * a.rates_n)])
    if a.sums_end <= 0.0:
        return np.inf
    lap = np.floor(bits / a.sums_end)
    rest = bits - lap * a.sums_end
    if rest <= 0.0:
        lap -= 1.0
        rest = a.sums_end
    i = _sum_below(w, rest)
    more = (rest - w.data[a.sums_keys + i]) / w.data[a.rates_keys + a.rates_n + i]
    return float(lap * a.rates_end + w.data[a.rates_keys + i] + more)


@inner
def one_way(w: Way, t: float) -> float:
    """Seconds of propagation of what leaves at second `t` of the trace."""
    a = w.at[0]
    i = 0
    if a.rtt_n > 1:
        rest = max(0.0, t - np.floor(t / a.rtt_end) * a.rtt_end)
        i = _find(w.data, a.rtt_n, a.rtt_buckets, a.rtt_per_key, a.rtt_keys, a.rtt_guide, rest)
    return float(0.5 * w.data[a.rtt_keys + a.rtt_n + i])


@inner
def _last_bits(w: Way) -> float:
    return float(PACKET_BITS * w.at[0].rates_n if w.at[0].packets else w.at[0].sums_end)


@inner
def carry(link: Any, w: Way, start_s: float, now: float, nbytes: float) -> float:
    """Queue `nbytes` at `now` and give the second at which the last of them arrives: `Link.send`.

    Args:
        link: a record of `LINK`.
        w: the direction.
        start_s: where in the trace this link began.
        now: seconds since then, never falling.
        nbytes: of the message.
    """
    ends = w.at[0].ends_s
    start = max(link.served, bits_by(w, min(now + start_s, ends)))
    link.served = start + 8.0 * nbytes
    if ends < np.inf and link.served > _last_bits(w):
        return np.inf
    left = max(now, time_of(w, link.served) - start_s)
    if left == np.inf:
        return np.inf
    link.last_arrival = max(link.last_arrival, left + one_way(w, left + start_s))
    return float(link.last_arrival)


@inner
def drop_queue(link: Any, w: Way, start_s: float, now: float) -> None:
    """Forget what is queued: `Link.clear`."""
    link.served = min(link.served, bits_by(w, min(now + start_s, w.at[0].ends_s)))
    link.last_arrival = min(link.last_arrival, now)
