"""The circuit breaker: after repeated failures the cloud is left alone and probed, not hoped for.

States after Nygard, "Release It!": closed (requests go), open (none goes until the probe is due),
half-open (one probe is out). A state machine without a clock: every method takes the time.
"""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Final


class Circuit(StrEnum):
    """State of a breaker."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half-open"


_CLOSED: Final = Circuit.CLOSED


class Breaker:
    """Counts consecutive failures; opens at `failures` of them; probes with exponential backoff.

    Attributes:
        state: of the circuit.
        probe_at: second at which the next probe is due; inf unless open.
        failures: consecutive failures so far.
    """

    __slots__ = ("_backoff", "_base_s", "_limit", "_max_s", "failures", "probe_at", "state")

    def __init__(self, failures: int, probe_base_s: float, probe_max_s: float) -> None:
        self._limit = failures
        self._base_s = probe_base_s
        self._max_s = probe_max_s
        self._backoff = probe_base_s
        self.state = Circuit.CLOSED
        self.probe_at = math.inf
        self.failures = 0

    def success(self) -> bool:
        """A sign of life: a reply, a refusal, a ping that came back. True if this closed the circuit."""
        self.failures = 0
        if self.state is _CLOSED:
            return False
        self.state = _CLOSED
        self.probe_at = math.inf
        self._backoff = self._base_s
        return True

    def failure(self, now: float) -> bool:
        """A time-out, a failed sending, a lost connection. True if this opened the circuit."""
        self.failures += 1
        if self.state is Circuit.HALF_OPEN:
            self._backoff = min(2.0 * self._backoff, self._max_s)
            self._open(now)
            return False
        if self.state is Circuit.OPEN or self.failures < self._limit:
            return False
        self._open(now)
        return True

    def probing(self) -> None:
        """The due probe was sent."""
        self.state = Circuit.HALF_OPEN
        self.probe_at = math.inf

    def probe_soon(self, now: float) -> None:
        """Something changed for the better (the connection came back): probe at once if open."""
        if self.state is not Circuit.CLOSED:
            self.state = Circuit.OPEN
            self.probe_at = now

    def _open(self, now: float) -> None:
        self.state = Circuit.OPEN
        self.probe_at = now + self._backoff
