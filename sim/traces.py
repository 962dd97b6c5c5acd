"""Channel traces: what was recorded of a channel over time, and their numbers.

A `Trace` holds capacity up and down and, where it was measured, the round-trip time. `read_trace`
takes the formats that `formats.py` lists.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from splitedge.errors import TraceError
from splitedge.sim.curves import Capacity, Floats, Opportunities, Rates, Series

Kind = Literal["csv", "mahimahi", "pensieve", "records", "synthetic"]

#: Bin over which packet opportunities are averaged to a rate for people and for CSV.
BIN_S = 0.1


@dataclass(frozen=True, eq=False)
class Trace:
    """What was recorded of one channel; it repeats at its end.

    Attributes:
        source: where it came from, for messages.
        kind: how it was written down.
        up: capacity from edge to cloud, None where it was not measured.
        down: capacity from cloud to edge, None where it was not measured. A trace with one capacity
            for both ways holds the same object twice.
        rtt: round-trip time in seconds, None where it was not measured.
    """

    source: str
    kind: Kind
    up: Capacity | None
    down: Capacity | None
    rtt: Series | None = None

    @property
    def duration_s(self) -> float:
        """Seconds until the trace repeats (its longest part, should they differ)."""
        return max(part.period_s for part in (self.up, self.down, self.rtt) if part is not None)

    def capacity(self, direction: Literal["up", "down"]) -> Capacity:
        """Capacity of one direction.

        Raises:
            TraceError: it was not measured.
        """
        curve = self.up if direction == "up" else self.down
        if curve is None:
            raise TraceError(
                f"{self.source}: no capacity for the {direction}link in this trace; "
                "give one with a column 'mbps', or one trace for each direction"
            )
        return curve


@dataclass(frozen=True, slots=True)
class Summary:
    """Numbers of one capacity or RTT series.

    Attributes:
        samples: samples, or packet opportunities.
        duration_s: seconds until it repeats.
        mean: weighted by time; Mbit/s, or milliseconds for an RTT.
        low, p5, p50, p95, high: least, quantiles over time, most; same unit. Packet opportunities are
            averaged over 100 ms first.
        zero_share: share of the time without any capacity (0 for an RTT).
        longest_zero_s: the longest time without any capacity, seconds.
    """

    samples: int
    duration_s: float
    mean: float
    low: float
    p5: float
    p50: float
    p95: float
    high: float
    zero_share: float
    longest_zero_s: float


def summarise(part: Capacity | Series) -> Summary:
    """Numbers of one part of a trace."""
    if isinstance(part, Opportunities):
        rates = part.binned(BIN_S)
        return _summary(rates.time_s, rates.bps / 1e6, rates.period_s, len(part.time_s))
    if isinstance(part, Rates):
        return _summary(part.time_s, part.bps / 1e6, part.period_s, len(part.time_s))
    return _summary(part.time_s, part.value * 1e3, part.period_s, len(part.time_s))


def _summary(time_s: Floats, value: Floats, period_s: float, samples: int) -> Summary:
    lengths = np.diff(time_s, append=period_s)
    order = np.argsort(value, kind="stable")
    shares = np.cumsum(lengths[order]) / period_s
    at = np.minimum(np.searchsorted(shares, np.array([0.05, 0.5, 0.95])), len(order) - 1)
    p5, p50, p95 = value[order[at]].tolist()
    zero = value <= 0.0
    return Summary(
        samples=samples,
        duration_s=period_s,
        mean=float(np.sum(lengths * value) / period_s),
        low=float(value.min()),
        p5=p5,
        p50=p50,
        p95=p95,
        high=float(value.max()),
        zero_share=float(lengths[zero].sum() / period_s),
        longest_zero_s=_longest(lengths, zero),
    )


def _longest(lengths: Floats, zero: NDArray[np.bool_]) -> float:
    """The longest run of `zero`, in seconds."""
    ends = np.concatenate([[0.0], np.cumsum(lengths)])
    edges = np.flatnonzero(np.diff(np.concatenate([[False], zero, [False]])))
    return float(np.max(ends[edges[1::2]] - ends[edges[::2]], initial=0.0))
