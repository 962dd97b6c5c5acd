"""Who computes next on the device: urgent stages first, then the earliest deadline."""

from __future__ import annotations

from heapq import heappop, heappush

from splitedge.errors import SplitedgeError
from splitedge.events import Run, Stage
from splitedge.request import Request


class ComputeQueue:
    """Stages waiting for the device and stages it computes; a request has at most one of each.

    Earliest deadline first (Liu & Layland, J. ACM 1973), without pre-emption. A stage of a request that
    has ended keeps its slot until the device reports it.

    Attributes:
        heap: what waits, perhaps with entries that were dropped. To be read only.
    """

    __slots__ = ("_busy_until", "_order", "_running", "_slots", "_waiting_s", "heap")

    def __init__(self, slots: int) -> None:
        self._slots = slots
        self.heap: list[tuple[int, float, int, Request]] = []
        self._running: dict[int, Stage] = {}
        self._order = 0
        self._waiting_s = 0.0
        self._busy_until = 0.0

    @property
    def running(self) -> dict[int, Stage]:
        """Stage computed for each request, ended ones included."""
        return self._running

    def wait_s(self, now: float) -> float:
        """Expected seconds until a stage queued now would begin (deadlines of others not considered)."""
        return self.residual_s(now) + self._waiting_s / self._slots

    def residual_s(self, now: float) -> float:
        """Expected seconds until a slot is free for an urgent stage."""
        if len(self._running) < self._slots:
            return 0.0
        return self._busy_until - now if self._busy_until > now else 0.0

    def put(self, request: Request, stage: Stage, seconds: float, urgent: bool) -> None:
        """Queue a stage, in place of the one the request had queued."""
        self.drop(request)
        self._order += 1
        request.queued = stage
        request.queued_s = seconds
        request.order = self._order
        self._waiting_s += seconds
        heappush(self.heap, (0 if urgent else 1, request.limit, self._order, request))

    def drop(self, request: Request) -> None:
        """Take the request's stage out of the queue. What is running runs on."""
        if request.queued is not None:
            request.queued = None
            self._waiting_s -= request.queued_s

    def done(self, request: int, stage: Stage) -> bool:
        """The device reported a stage. False if it computes no such stage."""
        if self._running.get(request) != stage:
            return False
        del self._running[request]
        return True

    def take(self) -> Request | None:
        """The request whose stage shall begin now, if a slot is free and a stage waits. It leaves the queue:
        `start` it, or `put` another stage of it.
        """
        if not self.heap or len(self._running) >= self._slots:
            return None
        kept: list[tuple[int, float, int, Request]] = []
        found: Request | None = None
        while self.heap and found is None and len(self._running) < self._slots:
            entry = heappop(self.heap)
            request = entry[3]
            if request.queued is None or request.order != entry[2]:
                continue  # dropped, or replaced by a later entry
            if request.id in self._running:
                kept.append(entry)  # one stage of a request at a time
                continue
            found = request
        for entry in kept:
            heappush(self.heap, entry)
        return found

    def start(self, now: float, request: Request) -> Run:
        """Begin the stage of a request that `take` gave."""
        stage = request.queued
        if stage is None:
            raise SplitedgeError(f"request {request.id} has no stage to begin")
        self._waiting_s -= request.queued_s
        if not self.heap:
            self._waiting_s = 0.0  # sheds the rounding of a long run of sums
        request.queued = None
        request.running = stage
        self._running[request.id] = stage
        end = now + request.queued_s
        self._busy_until = end if self._slots == 1 else max(self._busy_until, end)
        return Run(request.id, stage)

    def validate(self) -> None:
        """Raise if a slot is computed on twice, or idles while a stage could run."""
        if len(self._running) > self._slots:
            raise SplitedgeError(f"{len(self._running)} stages run in {self._slots} slots")
        if len(self._running) < self._slots:
            for _, _, order, request in self.heap:
                live = request.queued is not None and request.order == order
                if live and request.id not in self._running:
                    raise SplitedgeError(
                        f"stage {request.queued} of request {request.id} waits for a free slot"
                    )
        if self._waiting_s < -1e-6:
            raise SplitedgeError(f"the queue's seconds are negative: {self._waiting_s}")
