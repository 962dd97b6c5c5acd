"""A cloud's language models as an edge sees them: greets, sends asks, hears tells. Decides nothing."""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import zmq

from splitedge.edge.link import Link as Wire
from splitedge.edge.link import LinkState
from splitedge.edge.session import Session
from splitedge.edge.settings import EdgeSettings
from splitedge.errors import CloudFailed, DeadlineExceeded, LinkDown, LinkError, Rejected, WireError
from splitedge.estimate import ClockOffset, LinkEstimator
from splitedge.events import Refusal
from splitedge.llm.happenings import Denied, Event, Needed, Send, Told
from splitedge.llm.logprobs import unpack_logprobs
from splitedge.llm.sampling import Sampling
from splitedge.wire import (
    Ask,
    Cancel,
    Lane,
    Limits,
    Ping,
    Pong,
    Refuse,
    Tell,
    Welcome,
    framed_bytes,
    pack,
    unpack,
)

log = logging.getLogger(__name__)

PING_S = 1.0
_PINGS_KEPT = 16
Frames = Sequence[bytes | zmq.Frame]


@dataclass(slots=True)
class _Heard:
    """Who waits for words on an ask, and when it was sent."""

    ask: int
    context: int
    hear: Callable[[Event], None]
    sent: float
    nbytes: int
    first: bool = True


@dataclass(frozen=True, slots=True)
class Question:
    """What an ask carries beside the action's numbers.

    Attributes:
        context: the edge's number of the text.
        lane: where it goes.
        before: rolling hash of the rows before `start`.
        payload: rows.
        ids: of the tokens; empty where the payload holds them.
        sampling, stops: of the request.
        deadline_s: seconds left; inf for none.
        said: the prompt in words, where it is known.
        prompt: tokens of the prompt.
        logprobs: as in `wire.Ask`.
    """

    context: int
    lane: Lane
    before: int
    payload: bytes
    ids: bytes
    sampling: Sampling
    stops: tuple[int, ...]
    deadline_s: float = math.inf
    said: Said | None = None
    prompt: int = 0
    logprobs: int = 0


@dataclass(frozen=True, slots=True)
class Said:
    """A prompt as its caller gave it, for a cloud with a tokenizer of its own.

    Attributes:
        text: all of it.
        messages: (role, content) of a chat; empty for a plain prompt.
    """

    text: str
    messages: tuple[tuple[str, str], ...] = ()


class Remote(Protocol):
    """A cloud that writes: `LanguageRemote`, or `edge.black_box.BlackBoxRemote`."""

    estimator: LinkEstimator
    decode_s: float
    up: bool
    reason: str

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to connect."""
        ...

    def close(self) -> None:
        """Stop."""
        ...

    async def connected(self, timeout_s: float) -> None:
        """Wait until it is in reach; see `LanguageRemote.connected`."""
        ...

    def ask(self, action: Send, question: Question, hear: Callable[[Event], None]) -> int:
        """Send an ask; see `LanguageRemote.ask`."""
        ...

    def cancel(self, context: int) -> None:
        """Nobody waits for a text any more."""
        ...


class LanguageRemote:
    """One cloud over one link.

    Args:
        lanes: that will be asked on.
        link: not yet started.
        settings: caps, the hello's repetition.
        clock: seconds, the runtime's one clock.
        changed: told when the cloud comes into reach or goes, with the reason.

    Attributes:
        estimator: of goodput and round trip, fed by all that passes.
        decode_s: seconds of the cloud a pass, smoothed; NaN before the first.
    """

    def __init__(
        self,
        lanes: Sequence[Lane],
        link: Wire,
        settings: EdgeSettings,
        clock: Callable[[], float],
        changed: Callable[[bool, str], None],
    ) -> None:
        self._link, self._settings, self._clock, self._changed = link, settings, clock, changed
        self._limits = Limits(max_message=settings.max_message)
        self.session = Session(lanes)
        self.estimator = LinkEstimator()
        self.offset = ClockOffset()
        self.decode_s = math.nan
        self.up, self.reason = False, "not connected yet"
        self.error: LinkError | None = None
        self._requests = itertools.count(1)
        self._waits: dict[int, _Heard] = {}
        self._pings: dict[int, float] = {}
        self._token = 0
        self._hello: asyncio.TimerHandle | None = None
        self._pinger: asyncio.TimerHandle | None = None
        self._waiters: set[asyncio.Future[None]] = set()

    def start(self, loop: asyncio.AbstractEventLoop) -> None:
        """Begin to connect."""
        self._loop = loop
        self._link.start(loop, self._message, self._state)

    def close(self) -> None:
        """Drop the link."""
        for timer in (self._hello, self._pinger):
            if timer is not None:
                timer.cancel()
        self._link.close()

    async def connected(self, timeout_s: float) -> None:
        """Wait for the cloud's welcome.

        Raises:
            LinkError: a key was refused, or the cloud does not serve this bundle.
            LinkDown: no welcome within `timeout_s`.
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

    # Sending --------------------------------------------------------------------------------------

    def ask(self, action: Send, question: Question, hear: Callable[[Event], None]) -> int:
        """Send an ask; words on it come to `hear`. Returns framed bytes.

        Raises:
            LinkDown: it could not be handed over.
            WireError: it is too large for the cloud.
        """
        q, how = question, question.sampling
        number = self.session.number(q.lane)
        if number is None:
            raise LinkDown(self.reason)
        request = next(self._requests)
        left = 0 if q.deadline_s == math.inf else min(0xFFFF_FFFF, max(1, int(q.deadline_s * 1000)))
        message = Ask(
            request, min(action.attempt, 0xFFFF), number, left, q.context, action.epoch, action.start,
            q.before, len(action.ids), action.drafts, action.want, round(how.temperature * 1e6),
            round(how.top_p * 1e6), how.top_k, how.seed, q.stops, q.payload, q.ids, action.tables,
            q.logprobs,
        )  # fmt: skip
        frames = pack(message)
        nbytes = framed_bytes(frames, encrypted=self._link.encrypted)
        if nbytes > self.session.max_message:
            raise WireError(f"a message of {nbytes} bytes; the cloud takes {self.session.max_message}")
        sent = self._clock()  # before it goes, as in `remote.py`
        self._link.send(frames)
        self._waits[request] = _Heard(action.ask, q.context, hear, sent, nbytes)
        return nbytes

    def cancel(self, context: int) -> None:
        """Nobody waits for a text any more."""
        for request in [r for r, heard in self._waits.items() if heard.context == context]:
            del self._waits[request]
        if self.up:
            try:
                self._link.send(pack(Cancel(context)))
            except LinkDown:
                return

    # Session --------------------------------------------------------------------------------------

    def _state(self, state: LinkState) -> None:
        self.session.lost()
        self._waits.clear()
        self._pings.clear()
        self.error = state.error
        if state.connected:
            self._greet()
            return
        if self._hello is not None:
            self._hello.cancel()
            self._hello = None
        self._tell(False, state.reason)

    def _greet(self) -> None:
        if self._hello is not None:
            self._hello.cancel()
        wait = self._settings.hello_s
        try:
            self._link.send(pack(self.session.hello()))
        except LinkDown:  # libzmq reports the handshake an instant before it takes messages
            wait = 0.005
        self._hello = self._loop.call_later(wait, self._greet)

    def _tell(self, up: bool, reason: str) -> None:
        before, self.up, self.reason = self.up, up, reason
        for waiter in self._waiters:
            if not waiter.done() and (up or self.error is not None):
                if up:
                    waiter.set_result(None)
                elif self.error is not None:
                    waiter.set_exception(self.error)
        if before != up:
            self._changed(up, reason)

    def _welcomed(self, message: Welcome) -> None:
        try:
            if self.session.welcome(message):
                self.offset.reset()
        except LinkError as error:
            self.error = error
            self._tell(False, str(error))
            return  # the hello goes on being repeated: the bundle may be loaded there later
        if self._hello is not None:
            self._hello.cancel()
            self._hello = None
        self.error = None
        self._tell(True, "connected")
        self._ping()

    def _ping(self) -> None:
        if self._pinger is not None:
            self._pinger.cancel()
            self._pinger = None
        if not self.up:
            return
        self._token += 1
        sent = self._clock()
        try:
            self._link.send(pack(Ping(self._token)))
            self._pings[self._token] = sent
        except LinkDown:
            return
        while len(self._pings) > _PINGS_KEPT:
            del self._pings[next(iter(self._pings))]
        self._pinger = self._loop.call_later(PING_S, self._ping)

    # Receiving ------------------------------------------------------------------------------------

    def _message(self, frames: Frames) -> None:
        now = self._clock()
        try:
            message = unpack(frames, self._limits)
        except WireError as error:
            log.warning("dropped a message from the cloud: %s", error)
            return
        if type(message) is Tell:
            self._told(now, message, framed_bytes(frames, encrypted=self._link.encrypted))
        elif type(message) is Refuse:
            self._refused(message)
        elif type(message) is Pong:
            self._ponged(now, message)
        elif type(message) is Welcome:
            self._welcomed(message)
        else:
            log.warning("dropped a %s: a cloud does not send it", type(message).__name__)

    def _told(self, now: float, tell: Tell, nbytes: int) -> None:
        heard = self._waits.get(tell.request)
        if heard is None:
            return
        if tell.last:
            del self._waits[tell.request]
        if heard.first:
            heard.first = False
            stamps = (heard.sent, tell.received_ns * 1e-9, tell.sent_ns * 1e-9, now)
            self.offset.observe(*stamps)
            up, down = self.offset.one_way(*stamps)
            self.estimator.observe_uplink(now, heard.nbytes, up)
            self.estimator.observe_downlink(now, nbytes, down)
            self.estimator.observe_queue(now, tell.queue_ns * 1e-9)
        seconds = tell.compute_ns * 1e-9
        if tell.ids:
            old = self.decode_s
            self.decode_s = seconds if math.isnan(old) else old + 0.1 * (seconds - old)
        tokens = tuple(np.frombuffer(bytes(tell.ids), "<i4").tolist())
        try:
            thought = unpack_logprobs(tell.logprobs, tell.accepted + len(tokens))
        except WireError as error:
            log.warning("dropped what the cloud thought of its tokens: %s", error)
            thought = ()
        last = bool(tell.last)
        heard.hear(Told(heard.ask, tell.start, tokens, tell.accepted, last, nbytes, seconds, thought))

    def _refused(self, refuse: Refuse) -> None:
        heard = self._waits.pop(refuse.request, None)
        if heard is None:
            if refuse.request == 0:
                log.warning("the cloud refused a message: %s", refuse.message)
            return
        if refuse.kind == Refusal.NEED:
            held = int(refuse.message) if refuse.message.isdecimal() and len(refuse.message) < 10 else 0
            heard.hear(Needed(heard.ask, held))
        elif refuse.kind == Refusal.BUSY:
            heard.hear(Denied(heard.ask, refuse.retry_after_ms / 1000))
        elif refuse.kind == Refusal.UNKNOWN:
            self._tell(False, f"the cloud forgot this session ({refuse.message})")
            self._greet()
        elif refuse.kind == Refusal.EXPIRED:
            heard.hear(Denied(heard.ask, error=DeadlineExceeded(refuse.message)))
        elif refuse.kind == Refusal.BAD:
            heard.hear(Denied(heard.ask, error=Rejected(f"the cloud refused: {refuse.message}")))
        else:
            heard.hear(Denied(heard.ask, 0.5, CloudFailed(f"the cloud failed: {refuse.message}")))

    def _ponged(self, now: float, pong: Pong) -> None:
        sent = self._pings.pop(pong.token, None)
        if sent is not None:
            received, back = pong.received_ns * 1e-9, pong.sent_ns * 1e-9
            self.offset.observe(sent, received, back, now)
            self.estimator.observe_rtt(now, max(0.0, now - sent - max(0.0, back - received)))
