"""Which request must be looked at next though no event comes."""

from __future__ import annotations

import math
from heapq import heapify, heappop, heappush
from typing import Final

from splitedge.errors import SplitedgeError
from splitedge.request import Request

_SMALL: Final = 64


class Timers:
    """A heap of (second, request) with lazy removal: a timer that moved later, or whose request ended,
    stays in the heap and is skipped when it comes up.

    Args:
        requests: those in flight, shared with the engine.

    Attributes:
        heap: the timers, perhaps with stale ones; the first is the earliest. To be read only.
    """

    __slots__ = ("_requests", "heap")

    def __init__(self, requests: dict[int, Request]) -> None:
        self._requests = requests
        self.heap: list[tuple[float, int]] = []

    def first(self) -> float:
        """Second of the first timer that stands; inf when there is none."""
        heap, requests = self.heap, self._requests
        while heap:
            at, request = heap[0]
            r = requests.get(request)
            if r is not None and r.pushed == at:
                return at
            heappop(heap)
        return math.inf

    def touch(self, r: Request) -> None:
        """Make sure that a timer stands at the request's next wake, or before it."""
        wake = r.wake()
        if wake < r.pushed:
            r.pushed = wake
            heap = self.heap
            heappush(heap, (wake, r.id))
            if len(heap) > _SMALL and len(heap) > 4 * len(self._requests):
                heap[:] = [timer for timer in heap if not self._stale(timer)]
                heapify(heap)

    def due(self, now: float) -> Request | None:
        """Take off the next timer that is due and give its request."""
        heap = self.heap
        while heap and heap[0][0] <= now:
            timer = heappop(heap)
            if not self._stale(timer):
                r = self._requests[timer[1]]
                r.pushed = math.inf
                return r
        return None

    def _stale(self, timer: tuple[float, int]) -> bool:
        r = self._requests.get(timer[1])
        return r is None or r.pushed != timer[0]

    def validate(self, wake_at: float) -> None:
        """Raise if a request in flight has no timer at or before its wake."""
        for r in self._requests.values():
            if not wake_at <= r.pushed <= r.wake():
                raise SplitedgeError(
                    f"request {r.id} must be looked at by {r.wake()}; its timer stands at {r.pushed}, "
                    f"the engine's at {wake_at}"
                )
