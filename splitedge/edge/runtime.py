"""The asyncio shell around the engine: feeds it events with the time, carries out its actions.

Nothing is decided here. A request enters by `infer`, becomes an `Arrived` event, and ends when the
engine answers it or fails it; stages run through `compute.StageRunner`, messages through `remote.Remote`.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import math
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from splitedge.codec import Payload, rows_of
from splitedge.edge.compute import StageRunner
from splitedge.edge.link import Link
from splitedge.edge.remote import Arrival, Remote
from splitedge.edge.settings import EdgeSettings
from splitedge.engine import Engine
from splitedge.errors import CodecError, ConfigError, EdgeFailed, LinkDown, RecordError, Rejected
from splitedge.events import (
    Answer,
    Arrived,
    BatteryRead,
    Cancelled,
    CancelRemote,
    Draining,
    Event,
    Fail,
    LinkChanged,
    Ping,
    Refusal,
    Refused,
    Replied,
    Run,
    Send,
    SendFailed,
    Source,
    Stage,
    StageDone,
    StageFailed,
    StageKind,
    Tick,
)
from splitedge.parts import EdgeModel, Flow, Outcome
from splitedge.policy import Route, wants_features
from splitedge.power import BatteryMeter
from splitedge.record import Record
from splitedge.records import RecordStore
from splitedge.result import Result
from splitedge.wire import Reply

log = logging.getLogger(__name__)

NO_CLOUD = "no cloud is configured"
_SOURCE = {StageKind.EXIT: Source.EXIT, StageKind.LOCAL: Source.LOCAL}


@dataclass(slots=True)
class _Call:
    """One request under way: what was computed for it so far, and who waits."""

    flow: Flow
    future: asyncio.Future[Result]
    deadline_at: float  # of the runtime's clock
    outputs: dict[tuple[Source, int], Any] = field(default_factory=dict)
    payloads: dict[int, Payload] = field(default_factory=dict)
    sent: dict[int, int] = field(default_factory=dict)  # option by attempt


class EdgeRuntime:
    """Runs a deployment's edge half on an event loop.

    Args:
        model: the edge's half. Its `open` and `finish` are called on the loop's thread, `run` there or
            on the one compute thread.
        engine: a fresh one, of the same options.
        link: to the cloud, not yet started; None where there is none.
        settings: link budget and battery interval.
        clock: seconds; must be the loop's own clock in all but tests.
        records: where each request's row goes.
        battery: read every `settings.battery_interval_s`.

    Raises:
        ConfigError: there is no cloud, and every option needs one.
    """

    def __init__(
        self,
        model: EdgeModel,
        engine: Engine,
        link: Link | None,
        *,
        settings: EdgeSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        records: RecordStore | None = None,
        battery: BatteryMeter | None = None,
    ) -> None:
        if link is None and all(option.remote for option in model.options):
            raise ConfigError(
                "this bundle can answer only with a cloud (it has no exit and no local model); "
                "name one, with --cloud tcp://HOST:PORT say"
            )
        self._model = model
        self._engine = engine
        self._settings = settings or EdgeSettings()
        self._clock = clock
        self._records = records
        self._battery = battery
        self._remote: Remote | None = None
        if link is not None:
            self._remote = Remote(model, link, self._settings, clock, self._feed, self._replied)
        self._output_specs = model.output_specs()
        self._ids = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._events: deque[Event] = deque()
        self._feeding = False
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf
        self._battery_timer: asyncio.TimerHandle | None = None
        self._runner: StageRunner | None = None
        self._draining = False
        self._idle: asyncio.Event | None = None
        #: Called with every request's record, when it has ended.
        self.listeners: list[Callable[[Record], None]] = []
        #: Called with each stage computed and its seconds.
        self.stage_listeners: list[Callable[[Stage, float], None]] = []
        self._actions: dict[type, Callable[[Any], None]] = {
            Run: self._run,
            Send: self._send,
            Answer: self._answer,
            Fail: self._fail,
            CancelRemote: self._cancel_remote,
            Ping: self._ping,
        }

    # Life -----------------------------------------------------------------------------------------

    @property
    def model(self) -> EdgeModel:
        """The edge's half."""
        return self._model

    @property
    def engine(self) -> Engine:
        """The engine, to be read and never stepped from outside."""
        return self._engine

    @property
    def remote(self) -> Remote | None:
        """The cloud, None where none is configured."""
        return self._remote

    @property
    def in_flight(self) -> int:
        """Requests not yet ended; 0 at idle."""
        return len(self._calls)

    @property
    def draining(self) -> bool:
        """Whether new requests are refused."""
        return self._draining

    @property
    def clock(self) -> Callable[[], float]:
        """The clock that every second of a record is of."""
        return self._clock

    async def start(self) -> None:
        """Begin to connect and to take requests. Does not wait for the cloud; `connected` does."""
        if self._runner is not None or self._draining:
            raise Rejected("this runtime was started already; make a new one")
        self._loop = asyncio.get_running_loop()
        if self._remote is not None:
            self._remote.start(self._loop)
        self._runner = StageRunner(self._model, self._loop, self._stage_done)
        if self._remote is None:
            self._feed(LinkChanged(False, NO_CLOUD))
        self._read_battery()

    async def connected(self, timeout_s: float = 5.0) -> None:
        """Wait until the cloud is there.

        Raises:
            AuthenticationError: a key was refused, on either side.
            LinkError: the cloud does not serve this bundle.
            LinkDown: no connection within `timeout_s`, or no cloud is configured.
        """
        if self._remote is None:
            raise LinkDown(NO_CLOUD)
        await self._remote.connected(timeout_s)

    async def drain(self, timeout_s: float | None = None) -> bool:
        """Refuse new requests and wait for those in flight; returns whether all ended in time."""
        if not self._draining:
            self._draining = True
            if self._runner is not None:
                self._feed(Draining())
        if not self._calls:
            return True
        self._idle = asyncio.Event()
        try:
            async with asyncio.timeout(self._settings.drain_s if timeout_s is None else timeout_s):
                await self._idle.wait()
        except TimeoutError:
            return False
        return True

    async def close(self) -> None:
        """Stop at once; requests still in flight end as `Rejected`. May be called twice."""
        self._draining = True
        for timer in (self._timer, self._battery_timer):
            if timer is not None:
                timer.cancel()
        self._timer = self._battery_timer = None
        if self._remote is not None:
            self._remote.close()
        for call in self._calls.values():
            if not call.future.done():
                call.future.set_exception(Rejected("the edge was shut down before the answer"))
        self._calls.clear()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.close()
        if self._records is not None:
            self._records.close()
            self._records = None

    # Requests -------------------------------------------------------------------------------------

    async def infer(self, inputs: Any, deadline_s: float | None = None, route: Route | None = None) -> Result:
        """Answer one request.

        Args:
            inputs: as the model's example inputs: a tensor, tuple or dict.
            deadline_s: seconds from now within which an answer is of use; None waits as the engine's
                settings say.
            route: force a route instead of asking the policy.

        Raises:
            CodecError: the inputs do not fit the model.
            RequestError: the request ended without an answer; the subclass says why.
        """
        if self._runner is None:
            why = "it was shut down" if self._draining else "call start() first"
            raise Rejected(f"the edge is not running: {why}")
        flow = self._model.open(inputs)
        request = next(self._ids)
        future: asyncio.Future[Result] = self._loop.create_future()
        deadline_at = math.inf if deadline_s is None else self._clock() + deadline_s
        self._calls[request] = _Call(flow, future, deadline_at)
        try:
            self._feed(Arrived(request, flow.rows, deadline_s, route, self._features(flow)))
            return await future
        except asyncio.CancelledError:
            if request in self._calls:
                self._feed(Cancelled(request))
            raise
        finally:
            self._forget(request)

    def _features(self, flow: Flow) -> tuple[float, ...] | None:
        return self._model.features(flow) if wants_features(self._engine.policy) else None

    def _forget(self, request: int) -> None:
        self._calls.pop(request, None)
        if not self._calls and self._idle is not None:
            self._idle.set()

    # The engine -----------------------------------------------------------------------------------

    def _feed(self, event: Event) -> None:
        """Step the engine. Events that come up while actions are carried out wait for their turn."""
        self._events.append(event)
        if self._feeding:
            return
        self._feeding = True
        try:
            while self._events:
                self._step(self._events.popleft())
        finally:
            self._feeding = False
        self._schedule()

    def _step(self, event: Event) -> None:
        """One event, and every action that comes of it: one that fails must not take the others with it."""
        try:
            actions = self._engine.step(self._clock(), event)
        except Exception as error:  # a defect of the engine: that request must still end
            self._defect(getattr(event, "request", 0), f"event {type(event).__name__}", error)
            return
        for action in actions:
            try:
                self._actions[type(action)](action)
            except Exception as error:  # a defect of ours, of the model's half or of a listener
                self._defect(getattr(action, "request", 0), f"action {type(action).__name__}", error)

    def _defect(self, request: int, what: str, error: Exception) -> None:
        """Log what should not happen, and end the request that it happened to."""
        log.error("%s of request %d failed", what, request, exc_info=error)
        call = self._calls.get(request)
        if call is not None and not call.future.done():
            failure = EdgeFailed(f"a defect of the edge ended this request ({type(error).__name__}: {error})")
            failure.__cause__ = error
            call.future.set_exception(failure)

    def _schedule(self) -> None:
        """One timer, never later than the engine wants to be woken. An early one is put off when it fires."""
        wake = self._engine.wake_at
        if wake == math.inf:
            return
        if self._timer is not None:
            if self._wakes_at <= wake:
                return
            self._timer.cancel()
        self._wakes_at = wake
        self._timer = self._loop.call_later(max(0.0, wake - self._clock()), self._tick)

    def _tick(self) -> None:
        self._timer = None
        if self._engine.wake_at <= self._clock():
            self._feed(Tick())
        else:
            self._schedule()

    def _read_battery(self) -> None:
        if self._battery is None:
            return
        self._feed(BatteryRead(self._battery.fraction()))
        self._battery_timer = self._loop.call_later(self._settings.battery_interval_s, self._read_battery)

    # Stages ---------------------------------------------------------------------------------------

    def _run(self, action: Run) -> None:
        call = self._calls.get(action.request)
        if call is None or self._runner is None:
            self._feed(StageFailed(action.request, action.stage, "the caller is gone"))
        else:
            self._runner.run(action.request, call.flow, action.stage)

    def _stage_done(self, request: int, stage: Stage, outcome: Outcome | Exception) -> None:
        if isinstance(outcome, Exception):
            log.warning("stage %s of request %d failed", stage, request, exc_info=outcome)
            self._feed(StageFailed(request, stage, f"{type(outcome).__name__}: {outcome}"))
            return
        for listen in self.stage_listeners:
            _tell(listen, stage, outcome.head_s + outcome.encode_s)
        if stage.kind is StageKind.ENCODE and outcome.payload is None:
            self._feed(StageFailed(request, stage, "the encoder gave no payload"))
            return
        call = self._calls.get(request)
        nbytes = 0 if call is None else self._keep(call, request, stage, outcome)
        self._feed(StageDone(request, stage, outcome.head_s, outcome.encode_s, outcome.confidence, nbytes))

    def _keep(self, call: _Call, request: int, stage: Stage, outcome: Outcome) -> int:
        """Keep what a stage gave; framed bytes of the message where it is a payload."""
        if stage.kind is not StageKind.ENCODE:
            number = stage.number if stage.kind is StageKind.EXIT else -1
            call.outputs[_SOURCE[stage.kind], number] = outcome.output
            return 0
        call.outputs[Source.FILTER, -1] = outcome.output
        if outcome.payload is None or self._remote is None:
            return 0
        call.payloads[stage.number] = outcome.payload
        left_s = call.deadline_at - self._clock()
        return self._remote.prepare(request, stage.number, left_s, outcome.payload)

    # The cloud ------------------------------------------------------------------------------------

    def _send(self, action: Send) -> None:
        call = self._calls.get(action.request)
        payload = call.payloads.get(action.option) if call is not None else None
        if call is None or payload is None or self._remote is None:
            self._feed(SendFailed(action.request, action.attempt, "nothing to send, or nowhere to"))
            return
        call.sent[action.attempt] = action.option
        self._remote.send(action, payload)

    def _cancel_remote(self, action: CancelRemote) -> None:
        if self._remote is not None:
            self._remote.cancel(action.request)

    def _ping(self, action: Ping) -> None:
        if self._remote is not None:
            self._remote.ping()

    def _replied(self, arrival: Arrival) -> None:
        """Check a reply against the model before anything of it is used."""
        message = arrival.message
        call = self._calls.get(message.request)
        confidence = math.nan
        if call is not None:
            try:
                confidence = self._take(call, message)
            except Exception as error:  # `finish` is the model's code; the request must still end
                log.warning("the reply to request %d is of no use: %s", message.request, error)
                why = f"its reply does not fit the model: {error}"
                self._feed(Refused(message.request, message.attempt, Refusal.BAD, why))
                return
        self._feed(
            Replied(
                message.request,
                message.attempt,
                arrival.uplink_s,
                arrival.downlink_s,
                message.queue_ns * 1e-9,
                message.decode_ns * 1e-9,
                message.tail_ns * 1e-9,
                arrival.nbytes,
                confidence,
            )
        )

    def _take(self, call: _Call, message: Reply) -> float:
        rows = rows_of(self._output_specs, message.tensors, "the model's output")
        if rows != call.flow.rows:
            raise CodecError(f"the cloud answered {rows} rows, {call.flow.rows} were asked for")
        call.outputs[Source.CLOUD, -1], confidence = self._model.finish(
            message.tensors, rows, call.sent.get(message.attempt)
        )
        return confidence

    # Ends -----------------------------------------------------------------------------------------

    def _answer(self, action: Answer) -> None:
        call = self._calls.get(action.request)
        if call is not None and not call.future.done():
            number = action.exit if action.source is Source.EXIT else -1
            call.future.set_result(Result.of(call.outputs[action.source, number], action.record))
        self._ended(action.request, action.record)

    def _fail(self, action: Fail) -> None:
        call = self._calls.get(action.request)
        error = action.error
        if self._remote is not None:
            error.__cause__ = self._remote.error  # the caller sees what is behind it: keys or bundle, say
        if call is not None and not call.future.done():
            call.future.set_exception(error)
        self._ended(action.request, action.record)

    def _ended(self, request: int, record: Record) -> None:
        self._forget(request)
        for listen in self.listeners:
            _tell(listen, record)
        if self._records is not None:
            try:
                self._records.append(record)
            except RecordError as error:  # a full disk must not stop answers
                log.error("records are no longer kept: %s", error)
                self._records = None


def _tell(listener: Callable[..., None], *news: object) -> None:
    """Call a listener; one that fails stops neither requests nor the other listeners."""
    try:
        listener(*news)
    except Exception:
        log.exception("a listener failed")
