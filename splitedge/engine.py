"""The edge's state machine: events in, actions out; no clock, no socket, no thread.

A shell (the daemon, the simulator, a test) calls `step(now, event)` with every event of `events.py`,
carries out the actions that come back, and feeds `Tick()` at `wake_at`. Every request that `Arrived` ends
in exactly one `Answer` or `Fail`, at its deadline at the latest. docs/engine.md tells the rules.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any, Final

from splitedge.errors import (
    CloudUnavailable,
    DeadlineExceeded,
    EdgeFailed,
    Rejected,
    RequestCancelled,
    RequestError,
    SplitedgeError,
)
from splitedge.estimate import LinkEstimator
from splitedge.events import (
    Action,
    Arrived,
    BatteryRead,
    Cancelled,
    Draining,
    Event,
    Fail,
    LinkChanged,
    Ponged,
    Refused,
    Replied,
    SendFailed,
    Sent,
    Stage,
    StageDone,
    StageFailed,
    StageKind,
    Tick,
)
from splitedge.outcome import failed, route_names, stage_name
from splitedge.paths import held
from splitedge.policy import Decision, Observation, Option, Policy, Route, latency_q95
from splitedge.power import PowerModel
from splitedge.remote import RemoteSide
from splitedge.request import NONE, Request
from splitedge.settings import EngineSettings

__all__ = ["Engine", "EngineSettings"]

_log = logging.getLogger("splitedge.engine")

# Members of an enumeration are slow to read off their class (0.3 us in Python 3.11).
_EXIT: Final = StageKind.EXIT
_ENCODE: Final = StageKind.ENCODE
_LOCAL: Final = StageKind.LOCAL
_SPLIT: Final = Route.SPLIT


class Engine(RemoteSide):
    """Decides and supervises every request of one device.

    Args:
        options: the ways to answer a request, as the deployment's edge half lists them.
        policy: chooses among them.
        settings: see `EngineSettings`.
        link: fed and read by the engine.
        power: charges compute, bits and radio wake-ups.

    Attributes:
        wake_at: second at which the shell shall feed `Tick()`; inf for never. Read it after each step.
        battery: last reading, fraction of charge; NaN on mains.
        draining: whether new requests are refused.

    Raises:
        ConfigError: the options can not be carried out (no option, an exit without a number).
        PolicyError: the deployment lacks a route that the policy needs.
    """

    def __init__(
        self,
        options: tuple[Option, ...],
        policy: Policy,
        *,
        settings: EngineSettings | None = None,
        link: LinkEstimator | None = None,
        power: PowerModel | None = None,
    ) -> None:
        super().__init__(options, policy, settings, link, power)
        self._handlers: dict[type, Callable[[float, Any], None]] = {
            Arrived: self._arrived,
            StageDone: self._stage_done,
            StageFailed: self._stage_failed,
            Sent: self._sent,
            Replied: self._replied,
            Refused: self._refused,
            SendFailed: self._send_failed,
            LinkChanged: self._link_changed,
            Ponged: self._ponged,
            BatteryRead: self._battery_read,
            Cancelled: self._cancelled,
            Tick: self._tick,
            Draining: self._draining,
        }

    # The face -------------------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """Requests that arrived and have not ended."""
        return len(self._requests)

    @property
    def link_up(self) -> bool:
        """Whether a remote route may be tried now: connected, and the circuit closed."""
        return self._sender.usable

    @property
    def circuit(self) -> str:
        """State of the circuit breaker: closed, open or half-open."""
        return self._sender.breaker.state.value

    def step(self, now: float, event: Event) -> list[Action]:
        """Take one event; give what is to be done, in order.

        Args:
            now: seconds of the shell's clock; one that runs backwards is taken to stand still.
            event: what happened. Events of requests that have ended are no error.

        Raises:
            SplitedgeError: a request arrived whose id is in use.
        """
        if now < self._now:
            now = self._now
        self._now = now
        actions: list[Action] = []
        self._actions = actions
        self._handlers[type(event)](now, event)
        timers = self._timers.heap
        if timers and timers[0][0] <= now:
            self._fire(now)
        sender = self._sender
        link_at = sender.wake_at
        if link_at <= now:
            sender.tick(now, actions)
            link_at = sender.wake_at
        compute = self._compute
        if compute.heap:
            while (r := compute.take()) is not None:
                if r.fallback is None or not self._cheaper(now, r):
                    actions.append(compute.start(now, r))
        first = self._timers.first() if timers else math.inf
        self.wake_at = first if first < link_at else link_at
        return actions

    # Arrival and decision -------------------------------------------------------------------------

    def _arrived(self, now: float, event: Arrived) -> None:
        timers = self._timers.heap
        if timers and timers[0][0] <= now:
            self._fire(now)
        if event.request in self._requests or event.request in self._compute.running:
            raise SplitedgeError(f"request {event.request} arrived, and a request of that id is in flight")
        settings = self.settings
        deadline = event.deadline_s if event.deadline_s is not None else math.inf
        timed = deadline != math.inf
        limit = now + (deadline if timed else settings.default_timeout_s)
        request = Request(event.request, now, event.rows, deadline, limit, limit)
        request.forced = event.route
        request.features = event.features
        if self._refuse(now, request):
            return
        if timed:
            request.answer_by = max(now, limit - settings.margin_s)
        self._requests[event.request] = request
        self._sender.busy(now)
        obs = self._observe(now, request, math.nan)
        if event.route is None:
            target = self._ask(request, obs)
        else:
            request.obs = obs
            target = self._paths.of_route(event.route, obs)
        request.planned = target
        self._pursue(now, request, target)
        self._timers.touch(request)

    def _refuse(self, now: float, request: Request) -> bool:
        """End a request that can not be taken in."""
        error: RequestError
        if self.draining:
            error = Rejected("the edge is shutting down")
        elif len(self._requests) >= self.settings.max_in_flight:
            error = Rejected(f"{self.settings.max_in_flight} requests are in flight, the most allowed")
        elif request.rows < 1:
            error = Rejected(f"a request needs at least one row, got {request.rows}")
        elif not request.deadline_s > 0.0:
            error = DeadlineExceeded(f"the deadline of {request.deadline_s} s had passed on arrival")
        elif request.forced is not None and all(o.route is not request.forced for o in self.options):
            have = route_names(self._paths)
            error = Rejected(f"this deployment has no route '{request.forced}'; it has {have}")
        else:
            return False
        record = failed(request, now, error, self._paths, self.power)
        self._actions.append(Fail(request.id, error, record))
        return True

    def _observe(self, now: float, r: Request, confidence: float) -> Observation:
        link, power = self.link, self.power
        return Observation(
            self.options,
            link.goodput(now),
            link.downlink(now),
            link.rtt(now),
            link.queue(now),
            self._compute.wait_s(now),
            self._sender.usable,
            r.answer_by - now if r.timed else math.inf,
            r.rows,
            r.exit,
            confidence,
            r.sunk_s,
            self.battery,
            power.compute_w,
            power.j_per_bit_up,
            power.j_per_bit_down,
            now - self._uplink_at,
            now,
            r.features,
            power.tail_w,
            power.tail_s,
        )

    def _ask(self, r: Request, obs: Observation) -> int:
        """The option the policy wants; a policy that fails is replaced by the most accurate option."""
        r.obs = obs
        try:
            r.decision = self.policy.decide(obs)
            option = int(r.decision.option)
            if 0 <= option < len(self.options):
                return option
            problem = f"it chose option {option} of {len(self.options)}"
        except Exception as error:  # a plug-in's bug must not lose the request
            _log.exception("policy '%s' failed", self.policy.name)
            problem = f"{type(error).__name__}: {error}"
        r.broken = True
        r.decision = Decision(0)
        r.note = f"policy '{self.policy.name}' failed ({problem})"
        return self._paths.fallbacks[0] if self._paths.fallbacks else 0

    def _pursue(self, now: float, r: Request, target: int) -> None:
        """Make `target` the option wanted and go on towards it."""
        r.target = target
        final = self._paths.final[target]
        if not self._paths.remote[target]:
            confidence = held(r, target)
            if confidence is not None:
                self._answer(now, r, target, confidence)
            else:
                self._advance(now, r)
            return
        if not self._sender.usable and r.forced is None and self._paths.can_fall_back(r):
            self._fall_back(now, r, self._sender.state, CloudUnavailable)
            return
        if not r.timed and self._paths.can_fall_back(r) and r.obs is not None:
            predicted = self.settings.overdue_factor * float(latency_q95(self.options[target], r.obs))
            r.answer_by = min(r.limit, now + max(self.settings.patience_s, predicted))
        if not r.in_hand and r.guard_at == math.inf:
            self._guard_from(now, r)
        if final in r.passed:
            self._remote_failed(now, r, f"the codec of {self.options[target].name} failed", EdgeFailed)
            return
        self._advance(now, r)

    def _advance(self, now: float, r: Request) -> None:
        """Queue the next stage on the way to the target: past what was run, exits in depth order."""
        depth = self._paths.depth
        reached = depth[r.exit] if r.exit != NONE else -1
        for stage in self._paths.stages[r.target]:
            on_the_way = stage.kind is _EXIT and depth[stage.number] <= reached
            if stage not in r.passed and not on_the_way:
                self._compute.put(r, stage, self._paths.cost_s(r, stage, quantile=False), urgent=False)
                return
        self._fall_back(now, r, r.trouble or "the device could not compute the route", EdgeFailed)

    # Stages ---------------------------------------------------------------------------------------

    def _stage_done(self, now: float, event: StageDone) -> None:
        stage = event.stage
        if not self._compute.done(event.request, stage):
            return
        r = self._alive(now, event.request)
        if r is None:
            return
        r.running = None
        r.head_s += event.head_s
        r.encode_s += event.encode_s
        r.passed.append(stage)
        if stage.kind is _ENCODE:
            self._encoded(now, r, event)
        else:
            self._computed(now, r, stage, event)
        if event.request in self._requests:
            self._timers.touch(r)

    def _encoded(self, now: float, r: Request, event: StageDone) -> None:
        if self.options[event.stage.number].route is _SPLIT:
            r.sunk_s += event.head_s
        r.encoded = event.stage.number
        r.nbytes = event.nbytes
        if not r.remote_over and r.target == r.encoded:
            gate = self.options[r.encoded].gate
            if gate is not None and r.forced is None and event.confidence >= gate.threshold:
                self._answer_unsent(now, r, gate, event.confidence)
            else:
                self._offer(now, r)

    def _computed(self, now: float, r: Request, stage: Stage, event: StageDone) -> None:
        """An exit or the local model gave an answer: ask again, give it, or keep it."""
        owner = self._paths.owner[stage]
        r.in_hand.append((owner, event.confidence))
        self._unguard(r)
        if stage.kind is _EXIT:
            r.sunk_s += event.head_s
            if r.exit == NONE or self._paths.depth[stage.number] > self._paths.depth[r.exit]:
                r.exit = stage.number
        if stage == r.fallback:
            r.fallback = None
            if not self._awaits_cloud(now, r):
                self._answer_in_hand(now, r)
        elif owner == r.target:
            if r.forced is not None or stage.kind is _LOCAL or r.broken:
                self._answer(now, r, owner, event.confidence)
            else:
                self._reconsider(now, r, event.confidence)
        elif r.remote_over or r.fallback is not None:
            pass  # a better fall-back is queued or runs; this one is in hand if that fails
        elif r.forced is not None or r.broken:
            self._advance(now, r)
        else:
            self._reconsider(now, r, event.confidence)

    def _reconsider(self, now: float, r: Request, confidence: float) -> None:
        """Ask the policy again, now that an exit's confidence is known."""
        self._pursue(now, r, self._ask(r, self._observe(now, r, confidence)))

    def _stage_failed(self, now: float, event: StageFailed) -> None:
        stage = event.stage
        if not self._compute.done(event.request, stage):
            return
        r = self._alive(now, event.request)
        if r is None:
            return
        r.running = None
        r.passed.append(stage)
        r.trouble = f"the device failed at {stage_name(stage)}: {event.error}"
        r.trouble_type = EdgeFailed
        if stage == r.fallback:
            r.fallback = None
            if not self._awaits_cloud(now, r):
                self._fall_back(now, r, r.trouble, EdgeFailed)
            else:
                self._guard(now, r)
        elif r.fallback is None and not r.remote_over:
            if stage == self._paths.final[r.target]:
                self._fall_back(now, r, r.trouble, EdgeFailed)
            else:
                if self._paths.remote[r.target] and not r.in_hand and r.guard_at == math.inf:
                    self._guard_from(now, r)
                self._advance(now, r)
        if event.request in self._requests:
            self._timers.touch(r)

    # Time -----------------------------------------------------------------------------------------

    def _fire(self, now: float) -> None:
        """Do what is due."""
        while (r := self._timers.due(now)) is not None:
            self._due(now, r)
            if r.id in self._requests:
                self._timers.touch(r)

    def _due(self, now: float, r: Request) -> None:
        if now >= r.limit:
            self._expire(now, r)
        elif now >= r.answer_by and r.in_hand:
            self._missed(now, r)
            self._answer_in_hand(now, r)
        else:
            if now >= r.guard_at:
                self._guard(now, r)
            if now >= r.retry_at:
                self._offer(now, r)
            elif now >= r.overdue_at:
                self._overdue(now, r)

    # The end --------------------------------------------------------------------------------------

    def _cancelled(self, now: float, event: Cancelled) -> None:
        r = self._alive(now, event.request)
        if r is not None:
            self._fail(now, r, RequestCancelled("the caller went away"))

    def _battery_read(self, now: float, event: BatteryRead) -> None:
        self.battery = event.fraction

    def _tick(self, now: float, event: Tick) -> None:
        """Nothing of its own: every step does what is due."""

    def _draining(self, now: float, event: Draining) -> None:
        self.draining = True

    def validate(self) -> None:
        """Check what must hold after every step.

        Raises:
            SplitedgeError: it does not; the message says what.
        """
        self._compute.validate()
        self._timers.validate(self.wake_at)
        if len(self._requests) > self.settings.max_in_flight:
            raise SplitedgeError(f"{len(self._requests)} requests in flight, too many")
        for r in self._requests.values():
            self._validate_request(r)
        for request in self._sender.waiting:
            if request not in self._requests:
                raise SplitedgeError(f"request {request} has ended and waits for the link")
        if self._pending.keys() - self._requests.keys():
            raise SplitedgeError("device time is reserved for a request that has ended")
        reserved = sum(r.guarded_s for r in self._requests.values())
        if abs(self._pending_s - reserved) > 1e-6:
            raise SplitedgeError(f"{self._pending_s} s are reserved for fall-backs that need {reserved} s")

    def _validate_request(self, r: Request) -> None:
        busy = r.queued is not None or r.running is not None
        remote = r.flying or r.id in self._sender.waiting or r.retry_at < math.inf or r.awaited
        if not (busy or remote):
            raise SplitedgeError(f"request {r.id} is in flight and nothing is done for it")
        if r.running is not None and self._compute.running.get(r.id) != r.running:
            raise SplitedgeError(f"request {r.id} believes that the device computes {r.running}")
        if r.attempts > self.settings.max_attempts:
            raise SplitedgeError(f"request {r.id} was sent {r.attempts} times")
        if not r.limit < math.inf:
            raise SplitedgeError(f"request {r.id} has no limit")
