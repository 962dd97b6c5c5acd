"""The cloud server without sockets, threads or a clock of its own: messages in, messages and batches out.

A shell gives it frames (`deliver`), asks for batches (`next_batch`), runs them wherever it likes, and
hands the results back (`finish`); replies leave through the `send` it was given. The ROUTER front, the
in-process cloud and the tests are such shells.

A request id of a session is executed at most once in the lifetime of a server: a repeated attempt joins
the one that waits or runs, gets the kept reply of one that is done, or is refused.
"""

from __future__ import annotations

import logging
import math
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

from splitedge.cloud.batcher import Batcher, Entry
from splitedge.cloud.executor import Result, Task
from splitedge.cloud.metrics import ANSWERED, CANCELLED, REPEATED, CloudMetrics, LaneMetrics
from splitedge.cloud.service import ServiceTime
from splitedge.cloud.sessions import Done, Session, Sessions
from splitedge.cloud.settings import ServerSettings
from splitedge.codec import HEADER
from splitedge.errors import CodecError, ConfigError, WireError
from splitedge.events import Refusal
from splitedge.parts import CloudModel
from splitedge.wire import (
    MAX_HEADER,
    Cancel,
    Hello,
    Infer,
    Lane,
    Limits,
    Message,
    Ping,
    Pong,
    Refuse,
    Reply,
    Welcome,
    pack,
    unpack,
)

if TYPE_CHECKING:
    import zmq

log = logging.getLogger(__name__)

MS = 1_000_000
#: What a draining server tells edges to wait; by then another stands in its place or none does.
DRAIN_RETRY_MS = 1000

Frames = list[bytes | memoryview]
Send = Callable[[bytes, Frames], None]


@dataclass(slots=True, eq=False)
class Work(Entry):
    """A request that waits or runs."""

    session: Session[Work]
    request: int
    attempt: int
    to: bytes  # the connection its latest attempt came on
    target: _Lane
    payload: memoryview
    received_ns: int
    cancelled: bool = False


@dataclass(slots=True, eq=False)
class _Model:
    index: int
    model: CloudModel
    batcher: Batcher[Work]
    service: ServiceTime = field(default_factory=ServiceTime)
    running: Batch | None = None


@dataclass(slots=True, eq=False)
class _Lane:
    lane: Lane
    owner: _Model
    metrics: LaneMetrics
    service: ServiceTime = field(default_factory=ServiceTime)
    caps: dict[tuple[int, int], int] = field(default_factory=dict)

    def cap(self, level: int, rows: int) -> int:
        """The most bytes a payload may have. Raises CodecError where there is no such level."""
        cap = self.caps.get((level, rows))
        if cap is None:
            cap = self.caps[level, rows] = self.owner.model.max_bytes(self.lane, level, rows)
        return cap


@dataclass(slots=True, eq=False)
class Batch:
    """Work to be run now, together.

    Attributes:
        index: of the model among those given to the core.
        model, lane: what to run it on.
        tasks: payload and rows of each request.
        quick: whether the lane is so fast that handing it to a thread would cost more.
    """

    index: int
    model: CloudModel
    lane: Lane
    tasks: list[Task]
    quick: bool
    target: _Lane
    works: list[Work]
    started_ns: int


class CloudCore:
    """One server's state.

    Args:
        models: what is served; their lanes must differ.
        settings: limits and budgets.
        send: called with a connection and the frames for it; must not raise.
        clock_ns: monotonic nanoseconds.
        metrics: counters; own ones where not given.

    Raises:
        ConfigError: two models serve the same lane.
    """

    def __init__(
        self,
        models: Sequence[CloudModel],
        settings: ServerSettings,
        send: Send,
        clock_ns: Callable[[], int],
        metrics: CloudMetrics | None = None,
    ) -> None:
        self.epoch = secrets.token_bytes(8)
        self.metrics = metrics or CloudMetrics()
        self.draining = False
        self._settings = s = settings
        self._send = send
        self._clock = clock_ns
        self._models = [
            _Model(i, m, Batcher(s.max_batch_rows, int(s.max_wait_s * 1e9), m.batchable))
            for i, m in enumerate(models)
        ]
        self._lanes: list[_Lane] = []
        self._numbers: dict[Lane, int] = {}
        for owner in self._models:
            self._serve(owner)
        self.max_message = min(s.max_message_bytes, max(4 * MAX_HEADER, self._largest() + MAX_HEADER))
        self._limits = Limits(max_message=self.max_message)
        self._sessions: Sessions[Work] = Sessions(
            s.sessions,
            int(s.session_idle_s * 1e9),
            s.seen_requests,
            s.kept_reply_bytes,
            int(s.kept_reply_s * 1e9),
        )
        self._held_bytes = 0
        self._held = 0
        self._by_account: dict[str | bytes, list[int]] = {}  # bytes and requests held
        self.metrics.in_flight.set_function(lambda: self._held)
        self.metrics.queue_bytes.set_function(lambda: self._held_bytes)
        self.metrics.sessions.set_function(lambda: len(self._sessions))
        self._handlers: dict[type, Callable[[bytes, str, Any], None]] = {
            Infer: self._on_infer,
            Hello: self._on_hello,
            Cancel: self._on_cancel,
            Ping: self._on_ping,
        }

    def _serve(self, owner: _Model) -> None:
        for lane in owner.model.lanes:
            if lane in self._numbers:
                raise ConfigError(f"two models serve {_name(lane)}; give each bundle once")
            self._numbers[lane] = len(self._lanes)
            self._lanes.append(_Lane(lane, owner, LaneMetrics(self.metrics, _name(lane))))

    def _largest(self) -> int:
        """Bytes of the largest payload that any lane can take."""
        most = 0
        for target in self._lanes:
            for level in range(256):
                try:
                    most = max(most, target.cap(level, self._settings.max_rows))
                except CodecError:
                    break
        return most

    # What a shell sees ---------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests waiting or running."""
        return self._held

    @property
    def held_bytes(self) -> int:
        """Payload bytes waiting or running."""
        return self._held_bytes

    @property
    def users(self) -> set[str]:
        """Keys with a session."""
        return self._sessions.users()

    def deliver(self, peer: bytes, frames: Sequence[bytes | memoryview | zmq.Frame], user: str = "") -> None:
        """Take one message. Never raises, whatever the frames hold.

        Args:
            peer: the connection, as `send` will be given it.
            frames: the message, without routing frames.
            user: public key of the peer as authenticated; empty without keys.
        """
        try:
            message = unpack(frames, self._limits)
            handler = self._handlers.get(type(message))
            if handler is None:
                raise WireError(f"a cloud takes no {type(message).__name__}")
        except WireError as error:
            self.metrics.malformed.inc()
            log.info("refused a message: %s", error)
            self._post(peer, Refuse(0, 0, Refusal.BAD, str(error)[:200], 0))
            return
        handler(peer, user, message)

    def next_batch(self, index: int) -> Batch | None:
        """The next batch of a model, None where one runs or nothing is ready. Hand it to `finish`."""
        owner = self._models[index]
        if owner.running is not None or not len(owner.batcher):
            return None
        now = self._clock()
        self._expire(owner, now)
        works = owner.batcher.take(now)
        if not works:
            return None
        target = works[0].target
        quick = 0.0 < target.service.peak_s < self._settings.inline_below_s
        tasks = [Task(work.payload, work.rows) for work in works]
        owner.running = Batch(index, owner.model, target.lane, tasks, quick, target, works, now)
        return owner.running

    def finish(self, batch: Batch, results: Sequence[Result]) -> None:
        """Answer the requests of a batch that has run."""
        now = self._clock()
        owner, target = self._models[batch.index], batch.target
        owner.running = None
        seconds = (now - batch.started_ns) / 1e9
        rows = sum(work.rows for work in batch.works)
        owner.service.observe(rows, seconds)
        target.service.observe(rows, seconds)
        target.metrics.batch_rows.observe(rows)
        target.metrics.tail_seconds.observe(max(result.tail_ns for result in results) / 1e9)
        for work, result in zip(batch.works, results, strict=True):
            self._release(work)
            self._finish(work, result, batch.started_ns, now)

    def wake_at(self) -> int | None:
        """When `next_batch` or `expire` has something to do that no message or result announces."""
        times = [
            at
            for m in self._models
            if (at := m.batcher.next_deadline() if m.running else m.batcher.wake_at()) is not None
        ]
        return min(times, default=None)

    def expire(self) -> None:
        """Refuse what waits and is of no use any more."""
        now = self._clock()
        for owner in self._models:
            self._expire(owner, now)

    def sweep(self) -> None:
        """Forget idle sessions and old replies; call it about once a second."""
        self._sessions.sweep(self._clock())

    def drain(self) -> None:
        """Refuse new requests from here on; those in flight end as usual."""
        self.draining = True

    def forget_user(self, user: str) -> None:
        """Drop the sessions and the waiting work of a key that is trusted no more."""
        for session in self._sessions.forget_user(user):
            for state in list(session.seen.values()):
                if isinstance(state, Work):
                    self._drop(state, CANCELLED)

    def observe(self, lane: Lane, rows: int, seconds: float) -> None:
        """Take the time of a run that served nobody: warming up."""
        target = self._lanes[self._numbers[lane]]
        target.service.observe(rows, seconds)
        target.owner.service.observe(rows, seconds)

    # Messages ------------------------------------------------------------------------------------

    def _on_hello(self, peer: bytes, user: str, hello: Hello) -> None:
        session = self._sessions.hello(peer, user, hello.session, self._clock())
        if session is None:
            refusal = Refuse(0, 0, Refusal.BUSY, "no room for another session", DRAIN_RETRY_MS)
            self._post(peer, refusal)
            return
        session.lanes = tuple(self._numbers.get(lane, -1) for lane in hello.lanes)
        reasons = [self._why_not(lane) for lane in hello.lanes if lane not in self._numbers]
        numbers = tuple(i if n >= 0 else -1 for i, n in enumerate(session.lanes))
        self._post(peer, Welcome(self.epoch, numbers, "; ".join(reasons)[:500], self.max_message))

    def _why_not(self, lane: Lane) -> str:
        """Why a lane is not served, in words that say which side to change."""
        same = [other for other in self._numbers if other.bundle == lane.bundle]
        if not same:
            served = ", ".join(sorted({other.bundle[:12] for other in self._numbers})) or "none"
            return f"bundle {lane.bundle[:12]} is not served here (served: {served})"
        if not any(other.cut == lane.cut for other in same):
            return f"bundle {lane.bundle[:12]} has no cut '{lane.cut[:60]}' here"
        return f"codec {lane.codec[:40]} at cut '{lane.cut[:60]}' has other tables here"

    def _on_ping(self, peer: bytes, user: str, ping: Ping) -> None:
        now = self._clock()
        self._post(peer, Pong(ping.token, now, self._clock()))

    def _on_cancel(self, peer: bytes, user: str, cancel: Cancel) -> None:
        session = self._sessions.of(peer, user)
        state = session.seen.get(cancel.request) if session is not None else None
        if isinstance(state, Work):
            self._drop(state, CANCELLED)

    def _on_infer(self, peer: bytes, user: str, infer: Infer) -> None:
        now = self._clock()
        session = self._sessions.of(peer, user)
        if session is None:
            self._unknown(peer, infer, "no session on this connection: say hello again")
            return
        session.used_ns = now
        number = session.lanes[infer.lane] if infer.lane < len(session.lanes) else -1
        if number < 0:
            self._unknown(peer, infer, f"lane {infer.lane} was not agreed on: say hello again")
            return
        target = self._lanes[number]
        state = session.seen.get(infer.request)
        if state is not None:
            self._repeat(peer, session, state, infer, target, now)
        elif infer.request <= session.floor:
            self._refuse(peer, infer, target, Refusal.FAILED, "request ids of a session must increase")
        else:
            self._admit(peer, session, infer, target, now)

    def _unknown(self, peer: bytes, infer: Infer, why: str) -> None:
        self.metrics.unknown.inc()
        self._post(peer, Refuse(infer.request, infer.attempt, Refusal.UNKNOWN, why, 0))

    def _repeat(
        self, peer: bytes, session: Session[Work], state: Work | Done, infer: Infer, target: _Lane, now: int
    ) -> None:
        """Another attempt at a request that is here already: never a second execution."""
        target.metrics.ended(REPEATED)
        if isinstance(state, Work):
            state.attempt, state.to, state.received_ns, state.cancelled = infer.attempt, peer, now, False
            state.target.owner.batcher.extend(state, _deadline(infer, now))
        elif state.reply is not None:
            kept = state.reply
            reply = Reply(infer.request, infer.attempt, now, self._clock(), 0, 0, 0, kept.tensors)
            self._post(peer, reply)
        else:
            kind, message = state.failure or (
                Refusal.FAILED,
                "executed before; its reply is not kept any more",
            )
            self._post(peer, Refuse(infer.request, infer.attempt, kind, message, 0))

    # Admission -----------------------------------------------------------------------------------

    def _admit(self, peer: bytes, session: Session[Work], infer: Infer, target: _Lane, now: int) -> None:
        data = cast(memoryview, infer.payload)
        bad = self._malformed(infer, data, target)
        if bad:
            self._refuse(peer, infer, target, Refusal.BAD, bad)
            return
        account = session.account
        used = self._by_account.get(account, _NOTHING)
        wait_s = self._wait(target.owner, used[1], infer.rows, now)
        full = self._full(data.nbytes, used, wait_s, infer.deadline_ms)
        if full:
            retry_ms = DRAIN_RETRY_MS if self.draining else max(1, math.ceil(wait_s * 1000))
            self._refuse(peer, infer, target, Refusal.BUSY, full, min(retry_ms, 60_000))
            return
        work = Work(  # a lane is told by identity: cheaper than to hash three strings
            id(target), account, infer.rows, now, _deadline(infer, now),
            session, infer.request, infer.attempt, peer, target, data, now,
        )  # fmt: skip
        session.seen[infer.request] = work
        self._hold(work)
        target.owner.batcher.add(work)

    def _malformed(self, infer: Infer, data: memoryview, target: _Lane) -> str:
        if infer.rows > self._settings.max_rows:
            return f"{infer.rows} rows; this cloud takes {self._settings.max_rows} in a request"
        if data.nbytes < HEADER.size:
            return f"payload of {data.nbytes} bytes is shorter than a codec's header"
        try:
            cap = target.cap(data[1], infer.rows)
        except CodecError as error:
            return str(error)
        return f"payload of {data.nbytes} bytes; this level has at most {cap}" if data.nbytes > cap else ""

    def _full(self, nbytes: int, used: list[int], wait_s: float, deadline_ms: int) -> str:
        """Why there is no room; empty where there is."""
        s = self._settings
        if self.draining:
            return "this cloud is shutting down"
        if self._held >= s.queue_requests or self._held_bytes + nbytes > s.queue_bytes:
            return f"the queue is full: {self._held} requests, {self._held_bytes} bytes"
        if used[0] + nbytes > s.peer_queue_bytes or used[1] >= max(1, s.queue_requests // 2):
            return f"this edge's share of the queue is used up: {used[1]} requests, {used[0]} bytes"
        if deadline_ms and wait_s * 1000 > deadline_ms:
            return f"it would wait {wait_s:.3f} s, {deadline_ms / 1000:.3f} s are left"
        return ""

    def _wait(self, owner: _Model, own: int, rows: int, now: int) -> float:
        """Predicted seconds until a new request of an edge with `own` requests here would start.

        Edges take turns, so that at most their number times the edge's own requests are ahead of it.
        """
        wait_s = 0.0
        if owner.running is not None:
            works = owner.running.works
            expected = owner.service.predict(sum(work.rows for work in works))
            wait_s = max(0.0, expected - (now - owner.running.started_ns) / 1e9)
        if len(owner.batcher):
            ahead = min(owner.batcher.rows, (owner.batcher.peers + 1) * (own + 1) * rows)
            per_run, per_row = owner.service.line()
            size = self._settings.max_batch_rows if owner.model.batchable else 1
            wait_s += per_run * math.ceil(ahead / size) + per_row * ahead
        return wait_s

    # Ends ----------------------------------------------------------------------------------------

    def _finish(self, work: Work, result: Result, started: int, now: int) -> None:
        queue_ns = max(0, started - work.received_ns)
        work.target.metrics.queue_seconds.observe(queue_ns / 1e9)
        session, size, outcome = work.session, 0, ANSWERED
        frames: Frames | None = None
        if result.tensors is not None:
            size = sum(t.nbytes for t in result.tensors)
            reply = Reply(
                work.request, work.attempt, work.received_ns, now, queue_ns,
                result.decode_ns, result.tail_ns, result.tensors,
            )  # fmt: skip
            done = Done(reply)
            try:
                frames = pack(reply)
            except WireError as error:
                done = Done(failure=(Refusal.FAILED, str(error)[:200]))
        else:
            done = Done(failure=(result.refusal or Refusal.FAILED, result.message[:200]))
        if done.failure is not None:
            outcome = done.failure[0].value
            frames = pack(Refuse(work.request, work.attempt, done.failure[0], done.failure[1], 0))
        self._sessions.done(session, work.request, done, size, now)
        work.target.metrics.ended(CANCELLED if work.cancelled else outcome)
        if frames is not None and not work.cancelled:
            self._send(work.to, frames)

    def _expire(self, owner: _Model, now: int) -> None:
        for work in owner.batcher.expire(now):
            waited = (now - work.arrived_ns) / 1e9
            self._forget(work)
            work.target.metrics.ended(Refusal.EXPIRED)
            message = f"the deadline passed after {waited:.3f} s in the queue; it was not run"
            self._post(work.to, Refuse(work.request, work.attempt, Refusal.EXPIRED, message, 0))

    def _drop(self, work: Work, outcome: str) -> None:
        """Nobody waits for this: off the queue if it waits, else its answer is not sent."""
        if work.target.owner.batcher.remove(work):
            self._forget(work)
            work.target.metrics.ended(outcome)
        else:
            work.cancelled = True

    def _forget(self, work: Work) -> None:
        """It was not run, so its id may come again."""
        work.session.seen.pop(work.request, None)
        self._release(work)

    def _refuse(
        self, peer: bytes, infer: Infer, target: _Lane, kind: Refusal, why: str, retry_ms: int = 0
    ) -> None:
        target.metrics.ended(kind.value)
        self._post(peer, Refuse(infer.request, infer.attempt, kind, why[:200], retry_ms))

    def _hold(self, work: Work) -> None:
        used = self._by_account.setdefault(work.session.account, [0, 0])
        used[0] += work.payload.nbytes
        used[1] += 1
        work.session.active += 1
        self._held += 1
        self._held_bytes += work.payload.nbytes

    def _release(self, work: Work) -> None:
        account = work.session.account
        used = self._by_account[account]
        used[0] -= work.payload.nbytes
        used[1] -= 1
        if not used[1]:
            del self._by_account[account]
        work.session.active -= 1
        self._held -= 1
        self._held_bytes -= work.payload.nbytes
        work.payload = _EMPTY  # the frame's memory is free from here on

    def _post(self, peer: bytes, message: Message) -> None:
        self._send(peer, pack(message))


_NOTHING = [0, 0]
_EMPTY = memoryview(b"")


def _deadline(infer: Infer, now: int) -> int | None:
    return now + infer.deadline_ms * MS if infer.deadline_ms else None


def _name(lane: Lane) -> str:
    """A lane in metrics and messages: short digest, cut, codec."""
    return f"{lane.bundle[:8]}/{lane.cut or 'input'}/{lane.codec.partition(':')[0]}"
