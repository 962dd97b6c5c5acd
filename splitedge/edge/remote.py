"""The cloud as the runtime sees it: greets it, sends requests, reads answers, probes, keeps the byte budget.

Turns what comes from the link into events; decides nothing. Retries, deadlines and the circuit breaker
are the engine's.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import zmq

from splitedge.codec import Payload
from splitedge.edge.link import Link, LinkState
from splitedge.edge.session import Session, Unanswered
from splitedge.edge.settings import EdgeSettings
from splitedge.errors import LinkDown, LinkError, WireError
from splitedge.estimate import ClockOffset
from splitedge.events import Event, LinkChanged, Ponged, Refusal, Refused, Send, SendFailed, Sent
from splitedge.parts import EdgeModel
from splitedge.wire import (
    Cancel,
    Hello,
    Infer,
    Limits,
    Ping,
    Pong,
    Refuse,
    Reply,
    Welcome,
    framed_bytes,
    pack,
    unpack,
)

log = logging.getLogger(__name__)

_PING = -1  # stands for a request's number in the byte budget; requests count from 1
_MAX_MS = 0xFFFF_FFFF
_PINGS_KEPT = 16
_SENT_KEPT = 16384  # when each attempt was sent; late replies still teach the estimators
Frames = Sequence[bytes | zmq.Frame]
Outgoing = list[bytes | memoryview]


@dataclass(frozen=True, slots=True)
class Arrival:
    """A reply from the link: the message, its framed bytes, and the seconds it and its request took."""

    message: Reply
    nbytes: int
    uplink_s: float
    downlink_s: float


class Remote:
    """One cloud over one link.

    Args:
        model: for the lanes of its options.
        link: not yet started.
        settings: caps and the hello's repetition.
        clock: seconds, the runtime's one clock.
        emit: takes events for the engine.
        on_reply: takes replies whose request may still be waiting.
    """

    def __init__(
        self,
        model: EdgeModel,
        link: Link,
        settings: EdgeSettings,
        clock: Callable[[], float],
        emit: Callable[[Event], None],
        on_reply: Callable[[Arrival], None],
    ) -> None:
        self._link = link
        self._settings = settings
        self._clock = clock
        self._emit = emit
        self._on_reply = on_reply
        self._limits = Limits(max_message=settings.max_message)
        self._lanes = {i: model.lane(i) for i, option in enumerate(model.options) if option.remote}
        self._numbers: dict[int, int] = {}  # lane number by option, while the session is open
        self.session = Session(self._lanes.values())
        self.offset = ClockOffset()
        self._unanswered = Unanswered(settings.max_unanswered)
        self._sent: dict[tuple[int, int], float] = {}
        self._pings: dict[int, float] = {}
        self._token = 0
        self._state = LinkState(False, "not connected yet")
        self._told: LinkChanged | None = None
        self._told_at = clock()
        self._prepared: tuple[int, int, int, int, Outgoing, int] = (0, 0, 0, 0, [], 0)
        self._hello_timer: asyncio.TimerHandle | None = None
        self._waiters: set[asyncio.Future[None]] = set()
        self._encrypted = link.encrypted

    # State ----------------------------------------------------------------------------------------

    @property
    def up(self) -> bool:
        """Whether connected and welcomed."""
        return self._told is not None and self._told.up

    @property
    def since_s(self) -> float:
        """Second since which the link is up, or down, of the runtime's clock."""
        return self._told_at

    @property
    def reason(self) -> str:
        """Why the link is up or down, readable."""
        return self._told.reason if self._told is not None else self._state.reason

    @property
    def error(self) -> LinkError | None:
        """What is wrong with the link where waiting will not mend it (keys, bundle), else None."""
        return self._state.error

    @property
    def unanswered_bytes(self) -> int:
        """Framed bytes sent and not yet known to have arrived."""
        return self._unanswered.nbytes

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to connect."""
        self._loop = loop
        self._link.start(loop, self._message, self._changed)

    def close(self) -> None:
        """Drop the link."""
        self._stop_hello()
        self._link.close()
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_exception(LinkDown("the runtime was closed"))

    async def connected(self, timeout_s: float) -> None:
        """Wait for the cloud's welcome.

        Raises:
            AuthenticationError: a key was refused, on either side.
            LinkError: the cloud does not serve this bundle.
            LinkDown: no connection within `timeout_s`.
        """
        if self.up:
            return
        if self.error is not None:
            raise self.error
        waiter: asyncio.Future[None] = self._loop.create_future()
        self._waiters.add(waiter)
        try:
            await asyncio.wait_for(waiter, timeout_s)
        except TimeoutError:
            raise LinkDown(f"no welcome from the cloud within {timeout_s:g} s: {self.reason}") from None
        finally:
            self._waiters.discard(waiter)

    def _tell(self, up: bool, reason: str) -> None:
        """Tell engine and waiters of a change, once."""
        change = LinkChanged(up, reason)
        if change == self._told:
            return
        if self._told is None or self._told.up != up or self.error is not None:
            log.log(logging.INFO if up else logging.WARNING, "%s", reason)
        if self._told is None or self._told.up != up:
            self._told_at = self._clock()
        self._told = change
        self._emit(change)
        for waiter in self._waiters:
            if waiter.done():
                continue
            if up:
                waiter.set_result(None)
            elif self.error is not None:
                waiter.set_exception(self.error)

    # Session --------------------------------------------------------------------------------------

    def _changed(self, state: LinkState) -> None:
        """The connection below the session came or went."""
        self._state = state
        self._forget()
        if state.connected:
            self._greet()
        else:
            self._stop_hello()
            self._tell(False, state.reason)

    def _forget(self) -> None:
        self.session.lost()
        self._numbers = {}
        self._unanswered.clear()
        self._sent.clear()
        self._pings.clear()

    def _greet(self) -> None:
        """Say hello now, and again until there is a welcome."""
        self._stop_hello()
        wait = self._settings.hello_s
        try:
            self._link.send(pack(self.session.hello()))
        except LinkDown:  # libzmq reports the handshake an instant before it takes messages
            wait = 0.005
        self._hello_timer = self._loop.call_later(wait, self._greet)

    def _stop_hello(self) -> None:
        if self._hello_timer is not None:
            self._hello_timer.cancel()
            self._hello_timer = None

    def _welcomed(self, message: Welcome) -> None:
        try:
            if self.session.welcome(message):
                self.offset.reset()  # another lifetime of the cloud has another clock
        except LinkError as error:
            self._state = LinkState(True, str(error), error)
            self._numbers = {}
            self._tell(False, str(error))
            return  # the hello goes on being repeated: the bundle may be loaded there later
        self._stop_hello()
        self._state = LinkState(True, "connected")
        numbers = ((option, self.session.number(lane)) for option, lane in self._lanes.items())
        self._numbers = {option: number for option, number in numbers if number is not None}
        self._tell(True, "connected")

    # Sending --------------------------------------------------------------------------------------

    def prepare(self, request: int, option: int, deadline_s: float, payload: Payload) -> int:
        """Make a request's first message, which is usually sent at once; returns its framed bytes."""
        left, lane = _milliseconds(deadline_s), self._numbers.get(option, 0)
        frames = pack(Infer(request, 1, lane, payload.rows, left, payload.data))
        nbytes = self.framed(frames)
        self._prepared = (request, option, lane, left, frames, nbytes)
        return nbytes

    def _frames(self, action: Send, lane: int, payload: Payload) -> tuple[Outgoing, int]:
        left = _milliseconds(action.deadline_s)
        request, option, for_lane, then, frames, nbytes = self._prepared
        made = (request, option, for_lane, 1)
        if made == (action.request, action.option, lane, action.attempt) and abs(then - left) <= 1:
            return frames, nbytes
        frames = pack(Infer(action.request, action.attempt, lane, payload.rows, left, payload.data))
        return frames, self.framed(frames)

    def framed(self, frames: Sequence[bytes | memoryview | zmq.Frame]) -> int:
        """Bytes they take on this link."""
        return framed_bytes(frames, encrypted=self._encrypted)

    def send(self, action: Send, payload: Payload) -> None:
        """Send one attempt; emits `Sent` or `SendFailed`."""
        request, attempt = action.request, action.attempt
        try:
            nbytes = self._send(action, payload)
        except (LinkDown, WireError) as error:
            self._emit(SendFailed(request, attempt, str(error)))
            return
        self._emit(Sent(request, attempt, nbytes))

    def _send(self, action: Send, payload: Payload) -> int:
        lane = self._numbers.get(action.option)
        if lane is None:
            raise LinkDown(self.reason)
        frames, nbytes = self._frames(action, lane, payload)
        if nbytes > self.session.max_message:
            raise WireError(f"a message of {nbytes} bytes; the cloud takes {self.session.max_message}")
        if not self._unanswered.fits(nbytes):
            raise LinkDown(
                f"{self._unanswered.nbytes} bytes are on their way unanswered; "
                f"'max_unanswered' allows {self._settings.max_unanswered}"
            )
        # Before it goes: a stamp that is late because another thread had its turn makes the way look shorter
        # than it is, and of all round trips the shortest is believed.
        sent = self._clock()
        self._link.send(frames)
        key = (action.request, action.attempt)
        self._unanswered.sent(key, nbytes)
        self._sent[key] = sent
        if len(self._sent) > _SENT_KEPT:
            del self._sent[next(iter(self._sent))]
        return nbytes

    def cancel(self, request: int) -> None:
        """Tell the cloud that nobody waits; as good as nothing if the link is down."""
        self._quietly(Cancel(request))

    def ping(self) -> None:
        """Send a probe; emits `Ponged` when it comes back."""
        self._token += 1
        message, sent = Ping(self._token), self._clock()
        if self._quietly(message):
            self._pings[self._token] = sent
            self._unanswered.sent((_PING, self._token), 32)
            while len(self._pings) > _PINGS_KEPT:
                del self._pings[next(iter(self._pings))]

    def _quietly(self, message: Cancel | Ping | Hello) -> bool:
        try:
            self._link.send(pack(message))
        except LinkDown:
            return False
        return True

    # Receiving ------------------------------------------------------------------------------------

    def _message(self, frames: Frames) -> None:
        now = self._clock()
        try:
            message = unpack(frames, self._limits)
        except WireError as error:
            log.warning("dropped a message from the cloud: %s", error)
            return
        if type(message) is Reply:
            self._replied(now, message, self.framed(frames))
        elif type(message) is Refuse:
            self._refused(message)
        elif type(message) is Pong:
            self._ponged(now, message)
        elif type(message) is Welcome:
            self._welcomed(message)
        else:
            log.warning("dropped a %s: a cloud does not send it", type(message).__name__)

    def _replied(self, now: float, message: Reply, nbytes: int) -> None:
        key = (message.request, message.attempt)
        self._unanswered.arrived(key)
        sent = self._sent.pop(key, None)
        if sent is None:
            return  # not of this connection
        stamps = (sent, message.received_ns * 1e-9, message.sent_ns * 1e-9, now)
        self.offset.observe(*stamps)
        self._on_reply(Arrival(message, nbytes, *self.offset.one_way(*stamps)))

    def _refused(self, message: Refuse) -> None:
        key = (message.request, message.attempt)
        self._unanswered.arrived(key)
        self._sent.pop(key, None)
        try:
            kind = Refusal(message.kind)
        except ValueError:
            log.warning("the cloud refused a request as '%s', which this version does not know", message.kind)
            kind = Refusal.FAILED
        if kind is Refusal.UNKNOWN:
            self._forgotten(message.message)
            return
        retry = message.retry_after_ms / 1000
        self._emit(Refused(message.request, message.attempt, kind, message.message, retry))

    def _forgotten(self, why: str) -> None:
        """The cloud does not know the session: a restart between two heartbeats, or a long idle time.

        The engine is told that the link is down, keeps the requests, and sends them again after the welcome.
        """
        if self._hello_timer is None and self._state.connected:
            self._numbers = {}
            self._tell(False, f"the cloud forgot this session ({why})")
            self._greet()

    def _ponged(self, now: float, message: Pong) -> None:
        sent = self._pings.pop(message.token, None)
        if sent is None:
            return
        self._unanswered.arrived((_PING, message.token))
        received, sent_back = message.received_ns * 1e-9, message.sent_ns * 1e-9
        self.offset.observe(sent, received, sent_back, now)
        self._emit(Ponged(max(0.0, now - sent - max(0.0, sent_back - received))))


def _milliseconds(deadline_s: float) -> int:
    """A deadline as it travels: at least 1, and 0 for none."""
    return 0 if deadline_s == math.inf else min(_MAX_MS, max(1, int(deadline_s * 1000)))
