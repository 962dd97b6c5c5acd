"""The simulated cloud: the real batcher and the real admission, before executors of measured speed.

What `cloud.core.CloudCore` does with messages is done here with calls: a request id of a session is executed
at most once, a repeated attempt joins the one that waits or runs or gets the reply again, what is late is
refused unstarted, what is cancelled is dropped. Only decoders and tails are replaced by seconds.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

from splitedge.cloud.admission import Admission
from splitedge.cloud.batcher import Batcher, Entry
from splitedge.cloud.service import ServiceTime
from splitedge.cloud.settings import ServerSettings
from splitedge.events import Refusal
from splitedge.policy import Option
from splitedge.sim.device import Seconds
from splitedge.sim.measured import Drawn
from splitedge.sim.scenario import CloudPart

MS: Final = 1_000_000

#: Payload bytes are counted, not kept: views of this stand for them.
_BYTES: Final = memoryview(bytes(1 << 20))

Later = Callable[[float, Callable[[float, Any], None], Any], None]


@dataclass(slots=True)
class Reply:
    """The cloud's answer to one attempt, seconds of the run's clock; `refusal` says why there is none."""

    request: int
    attempt: int
    option: int
    received_s: float
    sent_s: float
    queue_s: float = 0.0
    tail_s: float = 0.0
    refusal: Refusal | None = None
    message: str = ""
    retry_after_s: float = 0.0


class Client(Protocol):
    """The device at the other end, as the cloud sees it."""

    def cloud_says(self, now: float, connection: int, reply: Reply) -> None:
        """Take a reply for one of its connections."""
        ...

    def cloud_z(self, request: int) -> float:
        """The normal number that the request's service time is drawn with."""
        ...


@dataclass(slots=True, eq=False)
class Session:
    """One device's session: the requests that the cloud knows of it."""

    client: Client
    account: bytes
    active: int = 0
    seen: OrderedDict[int, Job | Reply] = field(default_factory=OrderedDict)


class Job(Entry):
    """A request that waits or runs."""

    __slots__ = (
        "attempt",
        "cancelled",
        "connection",
        "option",
        "payload",
        "received_s",
        "request",
        "session",
    )

    def __init__(
        self,
        lane: int,
        arrived_ns: int,
        deadline_ns: int | None,
        session: Session,
        request: int,
        attempt: int,
        connection: int,
        option: int,
        payload: memoryview,
        received_s: float,
    ) -> None:
        self.lane = lane
        self.peer = session.account
        self.rows = 1
        self.arrived_ns = arrived_ns
        self.deadline_ns = deadline_ns
        self.waiting = False
        self.session = session
        self.request = request
        self.attempt = attempt
        self.connection = connection
        self.option = option
        self.payload = payload
        self.received_s = received_s
        self.cancelled = False


@dataclass(slots=True, eq=False)
class Batch:
    """Jobs computed together."""

    works: list[Job]
    started_ns: int
    started_s: float
    seconds: float


class SimCloud:
    """One model behind `part.executors` executors.

    Args:
        part: of the scenario.
        options: the option table, for lanes and seconds.
        later: schedules a call at a second of the run's clock.
        seconds: drawn for each row; None draws log-normals of the option table.
    """

    batchable = True

    def __init__(
        self,
        part: CloudPart,
        options: tuple[Option, ...],
        later: Later,
        seconds: Seconds | Drawn | None = None,
    ) -> None:
        self.batcher: Batcher[Job] = Batcher(part.max_rows, int(part.max_wait_ms * MS))
        self.service = ServiceTime()
        self._settings = ServerSettings(
            max_batch_rows=min(part.max_rows, 65535),
            queue_requests=part.queue_requests,
        )
        self._room = Admission(self._settings)
        self._later = later
        self._free = part.executors
        self._running: list[Batch] = []
        self._per_row = part.per_row
        usual = Seconds([o.cloud_s for o in options], [o.cloud_s_q95 for o in options])
        self._seconds: Seconds | Drawn = usual if seconds is None else seconds
        lanes = {(o.cut, o.codec): i for i, o in enumerate(options)}
        self._lanes = [lanes[o.cut, o.codec] for o in options]  # a lane is a cut and a codec, at every level
        self._wakes_at = math.inf

    @property
    def running(self) -> Batch | None:
        """The batch that has run longest where no executor is free."""
        return None if self._free else self._running[0]

    @property
    def in_flight(self) -> int:
        """Requests waiting or running; 0 at idle."""
        return self._room.requests

    # Messages -------------------------------------------------------------------------------------

    def infer(
        self,
        now: float,
        session: Session,
        connection: int,
        request: int,
        attempt: int,
        option: int,
        nbytes: int,
        deadline_ms: int,
    ) -> None:
        """A request's message is here; `deadline_ms` is what was left when it was sent, 0 for none."""
        now_ns = int(now * 1e9)
        known = session.seen.get(request)
        if type(known) is Job:
            known.attempt, known.connection, known.received_s, known.cancelled = (
                attempt,
                connection,
                now,
                False,
            )
            self.batcher.extend(known, now_ns + deadline_ms * MS if deadline_ms else None)
            return
        if known is not None:
            again = Reply(request, attempt, known.option, now, now)
            session.client.cloud_says(now, connection, again)
            return
        account = session.account
        busy = self._room.refusal(self, account, nbytes, 1, deadline_ms, now_ns)
        if busy is not None:
            why, retry_ms = busy
            refused = Reply(request, attempt, option, now, now, 0.0, 0.0, Refusal.BUSY, why, retry_ms / 1000)
            session.client.cloud_says(now, connection, refused)
            return
        deadline_ns = now_ns + deadline_ms * MS if deadline_ms else None
        job = Job(
            self._lanes[option], now_ns, deadline_ns,
            session, request, attempt, connection, option, _payload(nbytes), now,
        )  # fmt: skip
        session.seen[request] = job
        if len(session.seen) > self._settings.seen_requests:
            self._forget_oldest(session)
        self._room.hold(job)
        self.batcher.add(job)
        self._pump(now)

    def cancel(self, now: float, session: Session, request: int) -> None:
        """Nobody waits for this request any more."""
        job = session.seen.get(request)
        if type(job) is not Job:
            return
        if self.batcher.remove(job):
            del session.seen[request]
            self._room.release(job)
        else:
            job.cancelled = True

    # Work -----------------------------------------------------------------------------------------

    def _pump(self, now: float) -> None:
        """Start what may start, and refuse what is late."""
        now_ns = int(now * 1e9)
        for job in self.batcher.expire(now_ns):
            self._expired(now, job)
        while self._free and len(self.batcher):
            works = self.batcher.take(now_ns)
            if not works:
                break
            self._start(now, now_ns, works)
        if len(self.batcher):
            self._wake(now)

    def _wake(self, now: float) -> None:
        """One timer, at what the batcher waits for: company for a batch, or a deadline."""
        at_ns = self.batcher.wake_at() if self._free else self.batcher.next_deadline()
        if at_ns is None:
            return
        at = max(now, (at_ns + 1) * 1e-9)
        if at < self._wakes_at:
            self._wakes_at = at
            self._later(at, self._woken, None)

    def _woken(self, now: float, _: None) -> None:
        if now >= self._wakes_at:
            self._wakes_at = math.inf
            self._pump(now)

    def _start(self, now: float, now_ns: int, works: list[Job]) -> None:
        each = [self._seconds.draw(job.option, job.session.client.cloud_z(job.request)) for job in works]
        most = max(each)
        seconds = most + self._per_row * (sum(each) - most)
        batch = Batch(works, now_ns, now, seconds)
        self._free -= 1
        self._running.append(batch)
        self._later(now + seconds, self._finish, batch)

    def _finish(self, now: float, batch: Batch) -> None:
        self._free += 1
        self._running.remove(batch)
        for job in batch.works:
            self._room.release(job)
            queued = max(0.0, batch.started_s - job.received_s)
            reply = Reply(job.request, job.attempt, job.option, job.received_s, now, queued, batch.seconds)
            job.session.seen[job.request] = reply
            if not job.cancelled:
                job.session.client.cloud_says(now, job.connection, reply)
        self.service.observe(len(batch.works), batch.seconds)
        if len(self.batcher):
            self._pump(now)

    def _expired(self, now: float, job: Job) -> None:
        del job.session.seen[job.request]
        self._room.release(job)
        waited = now - job.arrived_ns * 1e-9
        why = f"the deadline passed after {waited:.3f} s in the queue; it was not run"
        late = Reply(job.request, job.attempt, job.option, now, now, 0.0, 0.0, Refusal.EXPIRED, why)
        job.session.client.cloud_says(now, job.connection, late)

    def _forget_oldest(self, session: Session) -> None:
        for request, known in session.seen.items():
            if type(known) is Reply:
                del session.seen[request]
                return


def _payload(nbytes: int) -> memoryview:
    return _BYTES[:nbytes] if nbytes <= len(_BYTES) else memoryview(bytes(nbytes))
