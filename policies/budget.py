"""What a device may spend: joules a request, a share of what the best would cost, or a battery's lifetime."""

from __future__ import annotations

import math
from typing import Any, Protocol

import numpy as np

from splitedge.errors import PolicyError
from splitedge.policy import where
from splitedge.record import Record

_TINY_J = 1e-12
#: Seconds that are always planned for: past the wanted lifetime the battery may be used up.
_LEAST_S = 60.0


class Budget(Protocol):
    """Joules that requests may spend. Numbers are floats, or arrays of shape (N,) for N devices."""

    def see(self, reference: Any) -> None:
        """Take the joules that the best option would cost the request that just arrived."""

    def allow(self, record: Record) -> Any:
        """Joules that a request which ended was allowed. Called once a request."""

    def usual(self) -> Any:
        """Joules allowed to a usual request, above 0: the unit of what is owed."""


class PerRequest:
    """The same joules for each request."""

    def __init__(self, joules: float) -> None:
        if not 0.0 < joules < math.inf:
            raise PolicyError(f"policy 'energy': the budget must be above 0 joules a request, got {joules}")
        self.joules = joules

    def see(self, reference: Any) -> None:
        """Nothing is taken from it."""

    def allow(self, record: Record) -> Any:
        """The budget."""
        return self.joules

    def usual(self) -> Any:
        """The budget."""
        return self.joules


class Share:
    """A share of what always taking the best option would cost."""

    def __init__(self, share: float) -> None:
        if not 0.0 < share <= 1.0:
            raise PolicyError(f"policy 'energy': the share must be in (0, 1], got {share}")
        self.share = share
        self._last: Any = None
        self._mean: Any = 0.0
        self._count = 0

    def see(self, reference: Any) -> None:
        """Joules of the best option as the request arrived."""
        self._last = reference

    def allow(self, record: Record) -> Any:
        """The share of that; whatever it cost if nobody asked what to do with it."""
        if self._last is None:
            return record.energy_j
        self._count += 1
        self._mean = self._mean + (self._last - self._mean) / self._count
        return self.share * self._last

    def usual(self) -> Any:
        """The share of the mean over all requests."""
        reference = self._mean if self._count or self._last is None else self._last
        return np.maximum(self.share * reference, _TINY_J)


class Lifetime:
    """What is left in the battery, spread evenly over the time it shall still last.

    Args:
        hours: from the first record on.
        battery_wh: watt-hours of a full battery.
        idle_w: watts that the device draws without any request.
    """

    def __init__(self, hours: float, battery_wh: float, idle_w: float) -> None:
        for name, value in (("hours", hours), ("battery_wh", battery_wh)):
            if not 0.0 < value < math.inf:
                raise PolicyError(f"policy 'energy': '{name}' must be above 0, got {value}")
        if not 0.0 <= idle_w < math.inf:
            raise PolicyError(f"policy 'energy': 'idle_w' must be at least 0 watts, got {idle_w}")
        self.lasts_s = 3600.0 * hours
        self.full_j = 3600.0 * battery_wh
        self.idle_w = idle_w
        self._from: Any = None
        self._last: Any = 0.0
        self._spent: Any = 0.0
        self._gap: Any = 0.0
        self._watts: Any = max(self.full_j / self.lasts_s - idle_w, 0.0)

    def see(self, reference: Any) -> None:
        """Nothing is taken from it."""

    def allow(self, record: Record) -> Any:
        """The watts allowed times the seconds since the last request."""
        if self._from is None:
            self._from = self._last = record.t_s
        now = np.maximum(self._last, record.t_s)
        gap, self._last = now - self._last, now
        self._spent = self._spent + record.energy_j + self.idle_w * gap
        # A battery that does not say its charge was full, and has lost what was counted.
        counted = np.maximum(self.full_j - self._spent, 0.0)
        known = record.battery == record.battery
        left = where(known, record.battery * self.full_j, counted)
        seconds = np.maximum(self.lasts_s - (now - self._from), _LEAST_S)
        self._watts = np.maximum(left / seconds - self.idle_w, 0.0)
        self._gap = where(gap > 0.0, where(self._gap > 0.0, 0.9 * self._gap + 0.1 * gap, gap), self._gap)
        return self._watts * gap

    def usual(self) -> Any:
        """The watts allowed times the usual time between requests, a second until that is known."""
        return np.maximum(self._watts * where(self._gap > 0.0, self._gap, 1.0), _TINY_J)
