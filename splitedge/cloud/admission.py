"""Is there room for one more request? Budgets in bytes and requests, in all and for each edge, and time."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol

from splitedge.cloud.service import ServiceTime
from splitedge.cloud.settings import ServerSettings

#: What a draining server tells edges to wait; by then another stands in its place or none does.
DRAIN_RETRY_MS = 1000
MAX_RETRY_MS = 60_000

_NOTHING: Final = (0, 0)
_EMPTY: Final = memoryview(b"")


class Queue(Protocol):
    """What waits for a model: a `Batcher`, as far as admission looks at it."""

    def __len__(self) -> int: ...

    @property
    def rows(self) -> int:
        """Rows waiting."""
        ...

    @property
    def peers(self) -> int:
        """Edges with something waiting."""
        ...


class Account(Protocol):
    """Whose share of the queue is used: a `Session`."""

    active: int

    @property
    def account(self) -> str | bytes:
        """Its name."""
        ...


class Held(Protocol):
    """A request that waits or runs: a `Work`."""

    rows: int
    payload: memoryview

    @property
    def session(self) -> Account:
        """Of the edge that asked."""
        ...


class Run(Protocol):
    """A `Batch` that runs."""

    started_ns: int

    @property
    def works(self) -> Sequence[Held]:
        """The requests in it."""
        ...


class Owner(Protocol):
    """A model, what waits for it and what it runs now: a `ServedModel`."""

    @property
    def batchable(self) -> bool:
        """Whether rows of several requests may be run as one batch."""
        ...

    @property
    def batcher(self) -> Queue:
        """What waits."""
        ...

    @property
    def service(self) -> ServiceTime:
        """How long its batches take."""
        ...

    @property
    def running(self) -> Run | None:
        """What runs now, None where nothing does."""
        ...


class Admission:
    """Counts what waits or runs, and says "busy" early.

    Attributes:
        draining: refuse everything from here on.
        requests, nbytes: held now: requests, and bytes of their payloads.
    """

    def __init__(self, settings: ServerSettings) -> None:
        self.draining = False
        self.requests = 0
        self.nbytes = 0
        self._settings = settings
        self._by_account: dict[str | bytes, tuple[int, int]] = {}  # requests and bytes of each edge

    def refusal(
        self, owner: Owner, account: str | bytes, nbytes: int, rows: int, deadline_ms: int, now_ns: int
    ) -> tuple[str, int] | None:
        """Why there is no room, and milliseconds until it is worth asking again; None where there is.

        `deadline_ms` is what the request has left, 0 for no deadline.
        """
        requests, held = self._by_account.get(account, _NOTHING)
        wait_s = self._wait(owner, requests, rows, now_ns)
        why = self._full(nbytes, requests, held, wait_s, deadline_ms)
        if not why:
            return None
        retry_ms = DRAIN_RETRY_MS if self.draining else max(1, math.ceil(wait_s * 1000))
        return why, min(retry_ms, MAX_RETRY_MS)

    def hold(self, work: Held) -> None:
        """Count a request from here on. Each is released exactly once."""
        requests, held = self._by_account.get(work.session.account, _NOTHING)
        size = work.payload.nbytes
        self._by_account[work.session.account] = requests + 1, held + size
        self.requests += 1
        self.nbytes += size
        work.session.active += 1

    def release(self, work: Held) -> None:
        """Count it no more, and let its payload's memory go."""
        account = work.session.account
        requests, held = self._by_account[account]
        size = work.payload.nbytes
        if requests == 1:
            del self._by_account[account]
        else:
            self._by_account[account] = requests - 1, held - size
        self.requests -= 1
        self.nbytes -= size
        work.session.active -= 1
        work.payload = _EMPTY

    def _full(self, nbytes: int, requests: int, held: int, wait_s: float, deadline_ms: int) -> str:
        s = self._settings
        if self.draining:
            return "this cloud is shutting down"
        if self.requests >= s.queue_requests or self.nbytes + nbytes > s.queue_bytes:
            return f"the queue is full: {self.requests} requests, {self.nbytes} bytes"
        if held + nbytes > s.peer_queue_bytes or requests >= max(1, s.queue_requests // 2):
            return f"this edge's share of the queue is used up: {requests} requests, {held} bytes"
        if deadline_ms and wait_s * 1000 > deadline_ms:
            return f"it would wait {wait_s:.3f} s, {deadline_ms / 1000:.3f} s are left"
        return ""

    def _wait(self, owner: Owner, own: int, rows: int, now_ns: int) -> float:
        """Predicted seconds until a new request of an edge with `own` requests here would start.

        Edges take turns, so that at most their number times the edge's own requests are ahead of it. An
        idle model predicts 0, so that one slow run can not lock requests out for good.
        """
        wait_s = 0.0
        running = owner.running
        if running is not None:
            expected = owner.service.predict(sum(work.rows for work in running.works))
            wait_s = max(0.0, expected - (now_ns - running.started_ns) / 1e9)
        if len(owner.batcher):
            ahead = min(owner.batcher.rows, (owner.batcher.peers + 1) * (own + 1) * rows)
            per_run, per_row = owner.service.line()
            size = self._settings.max_batch_rows if owner.batchable else 1
            wait_s += per_run * math.ceil(ahead / size) + per_row * ahead
        return wait_s
