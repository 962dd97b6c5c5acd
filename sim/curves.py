"""Capacity over time as a cumulative curve of bits: what a link may carry by when, exactly.

Two shapes: `Rates`, a rate in bits/s that holds until the next sample, and `Opportunities`, instants
at which up to one packet may leave (the model of Mahimahi, Netravali et al., USENIX ATC 2015). Both
repeat after `period_s`. Everything a link asks is one of two questions, each one binary search: how
many bits were offered by `t` (`bits_by`), and when were so many bits offered (`time_of`).
"""

from __future__ import annotations

import math
from array import array
from bisect import bisect_left, bisect_right
from dataclasses import dataclass, field
from typing import Final

import numpy as np
from numpy.typing import NDArray

PACKET_BYTES: Final = 1500
PACKET_BITS: Final = 8 * PACKET_BYTES

#: Sums over a long replay round by a fraction of a bit; this much must not push a byte past an outage.
SLACK_BITS: Final = 2.0**-4

#: A few packets may be spread over years: bins widen rather than be more than this.
MAX_BINS = 1_000_000

Floats = NDArray[np.float64]


def _compact(values: Floats) -> array[float]:
    """An array whose elements are Python floats when read: a scalar search is ten times NumPy's speed."""
    return array("d", np.ascontiguousarray(values, dtype=np.float64).tobytes())


@dataclass(frozen=True, eq=False)
class Series:
    """A quantity that holds from each sample to the next and repeats after `period_s`.

    Attributes:
        time_s: seconds, first 0, never falling, shape (n,).
        value: one per sample, shape (n,).
        period_s: seconds after which the series starts again; more than `time_s[-1]`.
    """

    time_s: Floats
    value: Floats
    period_s: float
    _times: array[float] = field(init=False, repr=False)
    _values: array[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_times", _compact(self.time_s))
        object.__setattr__(self, "_values", _compact(self.value))

    def at(self, t: float) -> float:
        """The value at `t` seconds, t >= 0."""
        return self._values[bisect_right(self._times, t % self.period_s) - 1]


@dataclass(frozen=True, eq=False)
class Rates:
    """Capacity as a rate that holds from each sample to the next and repeats after `period_s`.

    Attributes:
        time_s: seconds, first 0, never falling, shape (n,).
        bps: bits per second from each sample on, shape (n,).
        period_s: seconds after which the rates start again; more than `time_s[-1]`.
    """

    time_s: Floats
    bps: Floats
    period_s: float
    _times: array[float] = field(init=False, repr=False)
    _rates: array[float] = field(init=False, repr=False)
    _sums: array[float] = field(init=False, repr=False)  # n+1 bits offered before each sample, and in all

    def __post_init__(self) -> None:
        lengths = np.diff(self.time_s, append=self.period_s)
        object.__setattr__(self, "_times", _compact(self.time_s))
        object.__setattr__(self, "_rates", _compact(self.bps))
        object.__setattr__(self, "_sums", _compact(np.concatenate([[0.0], np.cumsum(lengths * self.bps)])))

    @property
    def bits_per_period(self) -> float:
        """Bits offered in one period."""
        return self._sums[-1]

    def bits_by(self, t: float) -> float:
        """Bits offered in [0, t)."""
        lap, rest = t // self.period_s, t % self.period_s
        i = bisect_right(self._times, rest) - 1
        return lap * self._sums[-1] + self._sums[i] + (rest - self._times[i]) * self._rates[i]

    def time_of(self, bits: float) -> float:
        """The first time by which `bits` were offered; inf if that never comes."""
        total = self._sums[-1]
        bits -= SLACK_BITS
        if bits <= 0.0:
            return 0.0
        if total <= 0.0:
            return math.inf
        lap, rest = bits // total, bits % total
        if rest == 0.0:
            lap, rest = lap - 1, total
        i = bisect_left(self._sums, rest) - 1
        return lap * self.period_s + self._times[i] + (rest - self._sums[i]) / self._rates[i]

    def rate_at(self, t: float) -> float:
        """Bits per second at `t`."""
        return self._rates[bisect_right(self._times, t % self.period_s) - 1]

    def binned(self, bin_s: float) -> Rates:
        """The same capacity averaged over bins of `bin_s` seconds (wider, if they were over `MAX_BINS`)."""
        edges = _bin_edges(self.period_s, bin_s)
        sums = np.interp(edges, np.append(self.time_s, self.period_s), np.frombuffer(self._sums))
        return Rates(edges[:-1], np.diff(sums) / np.diff(edges), self.period_s)


@dataclass(frozen=True, eq=False)
class Opportunities:
    """Capacity as instants at which up to `PACKET_BYTES` may leave; what nobody takes is lost.

    Attributes:
        time_s: seconds, never falling, shape (n,), n >= 1.
        period_s: seconds after which they start again; at least `time_s[-1]`, more than 0.
    """

    time_s: Floats
    period_s: float
    _times: array[float] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_times", _compact(self.time_s))

    @property
    def bits_per_period(self) -> float:
        """Bits offered in one period."""
        return float(PACKET_BITS * len(self._times))

    def bits_by(self, t: float) -> float:
        """Bits offered before `t`; an opportunity at `t` itself can still be taken."""
        if t <= 0.0:
            return 0.0
        lap = math.ceil(t / self.period_s) - 1
        passed = lap * len(self._times) + bisect_left(self._times, t - lap * self.period_s)
        return float(PACKET_BITS * passed)

    def time_of(self, bits: float) -> float:
        """The first opportunity by which `bits` were offered."""
        bits -= SLACK_BITS
        if bits <= 0.0:
            return 0.0
        lap, k = divmod(math.ceil(bits / PACKET_BITS) - 1, len(self._times))
        return lap * self.period_s + self._times[k]

    def rate_at(self, t: float) -> float:
        """Bits per second, averaged over the 100 ms from `t` on."""
        return (self.bits_by(t + 0.1) - self.bits_by(t)) / 0.1

    def binned(self, bin_s: float) -> Rates:
        """Rates with the same bits in every bin of `bin_s` seconds (wider, if they were over `MAX_BINS`)."""
        edges = _bin_edges(self.period_s, bin_s)
        # The last opportunity stands at the very end of the period and belongs to its last bin.
        # A nanosecond of grace: 3 * 0.1 is more than 0.3.
        where = np.minimum(np.searchsorted(edges - 1e-9, self.time_s, side="right") - 1, len(edges) - 2)
        counts = np.bincount(where, minlength=len(edges) - 1)
        return Rates(edges[:-1], counts * PACKET_BITS / np.diff(edges), self.period_s)


Capacity = Rates | Opportunities


def steady(bps: float) -> Rates:
    """A capacity that never changes, bits per second."""
    return Rates(np.zeros(1), np.full(1, float(bps)), 1.0)


def _bin_edges(period_s: float, bin_s: float) -> Floats:
    bin_s = max(bin_s, period_s / MAX_BINS)
    # A last bin of a sliver would give a meaningless rate: it joins the bin before it.
    count = max(1, math.ceil(period_s / bin_s - 0.01))
    edges = np.arange(count + 1, dtype=np.float64) * bin_s
    edges[-1] = period_s
    return edges
