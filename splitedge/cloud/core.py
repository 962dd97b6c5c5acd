"""The cloud server without sockets, threads or a clock of its own: messages in, messages and batches out.

A shell gives it frames (`deliver`), asks for batches (`next_batch`), runs them wherever it likes, and
hands the results back (`finish`); replies leave through the `send` it was given. The ROUTER front, the
in-process cloud and the tests are such shells.

A request id of a session is executed at most once in the lifetime of a server: a repeated attempt joins
the one that waits or runs, gets the kept reply of one that is done, or is refused.
"""

from __future__ import annotations

import logging
import secrets
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, cast

from splitedge.cloud.admission import Admission
from splitedge.cloud.batcher import Batcher
from splitedge.cloud.desk import LanguageDesk, LanguageHalf
from splitedge.cloud.executor import Result, Task
from splitedge.cloud.language_metrics import LanguageMetrics
from splitedge.cloud.metrics import ANSWERED, CANCELLED, REPEATED, CloudMetrics, LaneMetrics
from splitedge.cloud.sessions import Done, Session, Sessions
from splitedge.cloud.settings import ServerSettings
from splitedge.cloud.work import Batch, ServedLane, ServedModel, Work
from splitedge.codec import HEADER
from splitedge.errors import CodecError, ConfigError, WireError
from splitedge.events import Refusal
from splitedge.parts import CloudModel
from splitedge.wire import (
    MAX_HEADER,
    Ask,
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
#: What an edge is told to wait where there is no room for its session.
SESSION_RETRY_MS = 1000

Frames = list[bytes | memoryview]
Send = Callable[[bytes, Frames], None]


class CloudCore:
    """One server's state.

    Args:
        models: what is served; their lanes must differ.
        settings: limits and budgets.
        send: called with a connection and the frames for it; must not raise.
        clock_ns: monotonic nanoseconds.
        metrics: counters; own ones where not given.
        languages: language models that are served beside them.

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
        languages: Sequence[LanguageHalf] = (),
    ) -> None:
        self.epoch = secrets.token_bytes(8)
        self.metrics = metrics or CloudMetrics()
        self._settings = s = settings
        self._send = send
        self._clock = clock_ns
        self._models = [
            ServedModel(i, m, Batcher(s.max_batch_rows, int(s.max_wait_s * 1e9), m.batchable))
            for i, m in enumerate(models)
        ]
        self._lanes: list[ServedLane] = []
        self._numbers: dict[Lane, int] = {}
        for owner in self._models:
            self._serve(owner)
        self.desk = LanguageDesk(languages, s.language, self._post, clock_ns)
        for i, lane in enumerate(self.desk.lanes):
            if lane in self._numbers:
                raise ConfigError(f"two models serve {_name(lane)}; give each bundle once")
            self._numbers[lane] = len(self._lanes) + i
        self.max_message = min(s.max_message_bytes, max(4 * MAX_HEADER, self._largest() + MAX_HEADER))
        self._limits = Limits(max_message=self.max_message)
        self._sessions: Sessions[Work] = Sessions(
            s.sessions,
            int(s.session_idle_s * 1e9),
            s.seen_requests,
            s.kept_reply_bytes,
            int(s.kept_reply_s * 1e9),
        )
        self._room = Admission(settings)
        self.metrics.registry.register(LanguageMetrics(self.desk))
        self.metrics.in_flight.set_function(lambda: self._room.requests)
        self.metrics.queue_bytes.set_function(lambda: self._room.nbytes)
        self.metrics.sessions.set_function(lambda: len(self._sessions))
        self._handlers: dict[type, Callable[[bytes, str, Any], None]] = {
            Infer: self._on_infer,
            Ask: self._on_ask,
            Hello: self._on_hello,
            Cancel: self._on_cancel,
            Ping: self._on_ping,
        }

    def _serve(self, owner: ServedModel) -> None:
        for lane in owner.model.lanes:
            if lane in self._numbers:
                raise ConfigError(f"two models serve {_name(lane)}; give each bundle once")
            self._numbers[lane] = len(self._lanes)
            self._lanes.append(ServedLane(lane, owner, LaneMetrics(self.metrics, _name(lane))))

    def _largest(self) -> int:
        """Bytes of the largest payload that any lane can take."""
        most = self.desk.largest
        for target in self._lanes:
            for level in range(256):
                try:
                    most = max(most, target.cap(level, self._settings.max_rows))
                except CodecError:
                    break
        return most

    # What a shell sees ---------------------------------------------------------------------------

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._room.draining

    @property
    def in_flight(self) -> int:
        """Requests waiting or running."""
        return self._room.requests

    @property
    def held_bytes(self) -> int:
        """Payload bytes waiting or running."""
        return self._room.nbytes

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
        quick = target.service.quick(self._settings.inline_below_s)
        tasks = [Task(work.payload, work.rows) for work in works]
        owner.running = Batch(index, owner.model, target.lane, tasks, quick, target, works, now)
        return owner.running

    def finish(self, batch: Batch, results: Sequence[Result], ran: tuple[float, float] | None = None) -> None:
        """Answer the requests of a batch that has run.

        Args:
            batch: from `next_batch`.
            results: one for each of its tasks.
            ran: seconds of the clock and of the processor it computed, without hand-overs between threads
                (with them a lane that once ran on a thread would never look quick again); None for the
                time since `next_batch`.
        """
        now = self._clock()
        owner, target = self._models[batch.index], batch.target
        owner.running = None
        for work, result in zip(batch.works, results, strict=True):
            self._room.release(work)
            self._finish(work, result, batch.started_ns, now)
        # What follows helps later requests only: the replies are on their way meanwhile.
        seconds = (now - batch.started_ns) / 1e9
        rows = sum(work.rows for work in batch.works)
        owner.service.observe(rows, seconds)
        target.service.observe(rows, *(ran or (seconds,)))
        target.metrics.batch_rows.observe(rows)
        target.metrics.tail_seconds.observe(max(result.tail_ns for result in results) / 1e9)

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
        """Forget idle sessions, old replies and contexts; call it about once a second."""
        self._sessions.sweep(self._clock())
        self.desk.sweep()

    def drain(self) -> None:
        """Refuse new requests from here on; those in flight end as usual."""
        self._room.draining = True

    def forget_user(self, user: str) -> None:
        """Drop the sessions, contexts and waiting work of a key that is trusted no more."""
        self.desk.forget_user(user)
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
            refusal = Refuse(0, 0, Refusal.BUSY, "no room for another session", SESSION_RETRY_MS)
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
        elif session is not None and self.desk.served:
            self.desk.cancel(user, session.id, cancel.request)

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
        if number >= len(self._lanes):
            self._post(peer, Refuse(infer.request, infer.attempt, Refusal.BAD, "a language model's lane", 0))
            return
        target = self._lanes[number]
        state = session.seen.get(infer.request)
        if state is not None:
            self._repeat(peer, session, state, infer, target, now)
        elif infer.request <= session.floor:
            self._refuse(peer, infer, target, Refusal.FAILED, "request ids of a session must increase")
        else:
            self._admit(peer, session, infer, target, now)

    def _on_ask(self, peer: bytes, user: str, ask: Ask) -> None:
        session = self._sessions.of(peer, user)
        if session is None:
            self._unknown(peer, ask, "no session on this connection: say hello again")
            return
        session.used_ns = self._clock()
        number = session.lanes[ask.lane] if ask.lane < len(session.lanes) else -1
        at = number - len(self._lanes)
        if number < 0:
            self._unknown(peer, ask, f"lane {ask.lane} was not agreed on: say hello again")
        elif at < 0:
            self._post(peer, Refuse(ask.request, ask.attempt, Refusal.BAD, "no language model's lane", 0))
        elif self._room.draining:
            busy = Refuse(ask.request, ask.attempt, Refusal.BUSY, "this cloud shuts down", SESSION_RETRY_MS)
            self._post(peer, busy)
        else:
            self.desk.ask(peer, user, session.id, at, ask)

    def _unknown(self, peer: bytes, infer: Infer | Ask, why: str) -> None:
        self.metrics.unknown.inc()
        self._post(peer, Refuse(infer.request, infer.attempt, Refusal.UNKNOWN, why, 0))

    def _repeat(
        self,
        peer: bytes,
        session: Session[Work],
        state: Work | Done,
        infer: Infer,
        target: ServedLane,
        now: int,
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

    def _admit(self, peer: bytes, session: Session[Work], infer: Infer, target: ServedLane, now: int) -> None:
        data = cast(memoryview, infer.payload)
        bad = self._malformed(infer, data, target)
        if bad:
            self._refuse(peer, infer, target, Refusal.BAD, bad)
            return
        busy = self._room.refusal(
            target.owner, session.account, data.nbytes, infer.rows, infer.deadline_ms, now
        )
        if busy is not None:
            self._refuse(peer, infer, target, Refusal.BUSY, *busy)
            return
        work = Work(  # a lane is told by identity: cheaper than to hash three strings
            id(target), session.account, infer.rows, now, _deadline(infer, now),
            session, infer.request, infer.attempt, peer, target, data, now,
        )  # fmt: skip
        session.seen[infer.request] = work
        self._room.hold(work)
        target.owner.batcher.add(work)

    def _malformed(self, infer: Infer, data: memoryview, target: ServedLane) -> str:
        if infer.rows > self._settings.max_rows:
            return f"{infer.rows} rows; this cloud takes {self._settings.max_rows} in a request"
        if data.nbytes < HEADER.size:
            return f"payload of {data.nbytes} bytes is shorter than a codec's header"
        try:
            cap = target.cap(data[1], infer.rows)
        except CodecError as error:
            return str(error)
        return f"payload of {data.nbytes} bytes; this level has at most {cap}" if data.nbytes > cap else ""

    # Ends ----------------------------------------------------------------------------------------

    def _finish(self, work: Work, result: Result, started: int, now: int) -> None:
        queue_ns = max(0, started - work.received_ns)
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
        if frames is not None and not work.cancelled:
            self._send(work.to, frames)
        self._sessions.done(session, work.request, done, size, now)
        work.target.metrics.ended(CANCELLED if work.cancelled else outcome)
        work.target.metrics.queue_seconds.observe(queue_ns / 1e9)

    def _expire(self, owner: ServedModel, now: int) -> None:
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
        self._room.release(work)

    def _refuse(
        self, peer: bytes, infer: Infer, target: ServedLane, kind: Refusal, why: str, retry_ms: int = 0
    ) -> None:
        target.metrics.ended(kind.value)
        self._post(peer, Refuse(infer.request, infer.attempt, kind, why[:200], retry_ms))

    def _post(self, peer: bytes, message: Message) -> None:
        self._send(peer, pack(message))


def _deadline(infer: Infer, now: int) -> int | None:
    return now + infer.deadline_ms * MS if infer.deadline_ms else None


def _name(lane: Lane) -> str:
    """A lane in metrics and messages: short digest, cut, codec."""
    return f"{lane.bundle[:8]}/{lane.cut or 'input'}/{lane.codec.partition(':')[0]}"
