"""A medium that both directions share: only one of them sends at a time (half duplex).

The medium is one queue, first come, first served: who hands bytes over later waits for all that was
handed over before, in either direction. That keeps an arrival final once it is known. WiFi's stations
take turns packet by packet instead, so a small message against a bulk transfer the other way is a
little pessimistic here, by at most that direction's queue.
"""

from __future__ import annotations

from collections import deque
from typing import Final

#: From one direction's last bit to the other's first; also, no packet opportunity serves both.
TURN_S: Final = 1e-9


class Medium:
    """Who used the shared medium last, and until when."""

    def __init__(self) -> None:
        self.free_at = 0.0
        self.user: object = None


class Booked:
    """The stretches of one direction's capacity that its queue has booked, in bits of that capacity.

    With a shared medium there are gaps between them, in which the other direction sends.
    """

    def __init__(self) -> None:
        self._stretches: deque[tuple[float, float]] = deque()

    def add(self, begin: float, end: float, offered: float) -> None:
        """Book the bits from `begin` to `end`, behind all others; `offered` so far, older ones are over."""
        self._drop(offered)
        if self._stretches and self._stretches[-1][1] == begin:
            begin = self._stretches.pop()[0]
        self._stretches.append((begin, end))

    def waiting(self, offered: float) -> float:
        """Bits not yet sent when the capacity has offered `offered`."""
        self._drop(offered)
        return sum(end - max(begin, offered) for begin, end in self._stretches)

    def mark_of(self, spare: float) -> float:
        """Bits offered when no more than `spare` bits wait."""
        for begin, end in reversed(self._stretches):
            if end - begin > spare:
                return end - spare
            spare -= end - begin
        return 0.0

    def clear(self) -> None:
        """Forget all bookings."""
        self._stretches.clear()

    def _drop(self, offered: float) -> None:
        while self._stretches and self._stretches[0][1] <= offered:
            self._stretches.popleft()
