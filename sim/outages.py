"""Intervals in which a channel carries nothing, laid over any capacity."""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence

from splitedge.errors import TraceError
from splitedge.sim.curves import SLACK_BITS


class Outages:
    """What a capacity offers when the bits of some intervals are taken away.

    Bits with the intervals left out ("carried") and all bits ("offered") are two scales of one ruler;
    this object converts between them.

    Args:
        intervals: (begin, end) in seconds of the replay, in any order; they may overlap.
        offered: bits offered by a time, without outages.

    Raises:
        TraceError: an interval is malformed.
    """

    def __init__(self, intervals: Sequence[tuple[float, float]], offered: Callable[[float], float]) -> None:
        self._offered = offered
        self._begins: list[float] = []
        self._ends: list[float] = []
        for begin, end in sorted(intervals):
            if not 0.0 <= begin < end < math.inf:
                raise TraceError(
                    f"an outage from {begin:g} s to {end:g} s; it begins at 0 or later and ends after that"
                )
            if self._ends and begin <= self._ends[-1]:
                self._ends[-1] = max(end, self._ends[-1])
            else:
                self._begins.append(begin)
                self._ends.append(end)
        self._taken = [0.0]  # bits taken away before each interval, and by all
        self._marks: list[float] = []  # bits carried by the beginning of each
        for begin, end in zip(self._begins, self._ends, strict=True):
            before = offered(begin)
            self._marks.append(before - self._taken[-1])
            self._taken.append(self._taken[-1] + offered(end) - before)

    def carried_by(self, t: float) -> float:
        """Bits carried in [0, t)."""
        i = bisect_right(self._begins, t)
        if i and t < self._ends[i - 1]:
            return self._marks[i - 1]
        return self._offered(t) - self._taken[i]

    def bits_offered(self, carried: float) -> float:
        """How many bits have to be offered for so many to be carried."""
        return carried + self._taken[bisect_left(self._marks, carried - SLACK_BITS)]

    def at(self, t: float) -> bool:
        """Whether `t` lies in an outage."""
        i = bisect_right(self._begins, t)
        return bool(i) and t < self._ends[i - 1]
