"""The edge's state machine: events in, actions out; no clock, no socket, no thread.

A shell (the daemon, the simulator, a test) calls `step(now, event)` with every event of `events.py`,
carries out the actions that come back, and feeds `Tick()` at `wake_at`. Every request that `Arrived` ends
in exactly one `Answer` or `Fail`, at its deadline at the latest. docs/engine.md tells the rules.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from typing import Any

from splitedge.compute import ComputeQueue
from splitedge.errors import (
    CloudBusy,
    CloudFailed,
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
    Answer,
    Arrived,
    BatteryRead,
    Cancelled,
    CancelRemote,
    Draining,
    Event,
    Fail,
    LinkChanged,
    Ponged,
    Refusal,
    Refused,
    Replied,
    SendFailed,
    Sent,
    Source,
    Stage,
    StageDone,
    StageFailed,
    StageKind,
    Tick,
)
from splitedge.outcome import answered, failed, route_names, stage_name, typed, why_late
from splitedge.paths import Paths, held
from splitedge.policy import Decision, Observation, Option, Policy, Route, latency_q95
from splitedge.power import PowerModel
from splitedge.request import NONE, Request
from splitedge.sender import Sender
from splitedge.settings import EngineSettings
from splitedge.timers import Timers

__all__ = ["Engine", "EngineSettings"]

_log = logging.getLogger("splitedge.engine")
_GHOSTS = 256  # ended requests whose late replies still teach the link estimator


class Engine:
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
        self.settings = settings if settings is not None else EngineSettings()
        self.link = link if link is not None else LinkEstimator()
        self.power = power if power is not None else PowerModel()
        self.policy = policy
        self.options = options
        self.wake_at = math.inf
        self.battery = math.nan
        self.draining = False
        self._paths = Paths(options)
        policy.check(options)
        self._sender = Sender(self.settings)
        self._compute = ComputeQueue(self.settings.compute_slots)
        self._requests: dict[int, Request] = {}
        self._timers = Timers(self._requests)
        self._ghosts: dict[int, int] = {}
        self._unguarded_s = 0.0
        self._radio_at = -math.inf
        self._now = -math.inf
        self._actions: list[Action] = []
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
        timers = self._timers
        if timers.next_at <= now:
            self._fire(now)
        sender = self._sender
        if sender.wake_at <= now:
            sender.tick(now, actions)
        while (run := self._compute.next(now)) is not None:
            actions.append(run)
        self.wake_at = min(timers.first(), sender.wake_at)
        return actions

    # Arrival and decision -------------------------------------------------------------------------

    def _arrived(self, now: float, event: Arrived) -> None:
        self._fire(now)
        if event.request in self._requests or event.request in self._compute.running:
            raise SplitedgeError(f"request {event.request} arrived, and a request of that id is in flight")
        settings = self.settings
        timed = event.deadline_s is not None and event.deadline_s != math.inf
        deadline = event.deadline_s if timed and event.deadline_s is not None else math.inf
        limit = now + (deadline if timed else settings.default_timeout_s)
        request = Request(event.request, now, event.rows, deadline, limit, limit)
        request.forced = event.route
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
            on_the_way = stage.kind is StageKind.EXIT and depth[stage.number] <= reached
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
        if stage.kind is StageKind.ENCODE:
            self._encoded(now, r, event)
        else:
            self._computed(now, r, stage, event)
        if event.request in self._requests:
            self._timers.touch(r)

    def _encoded(self, now: float, r: Request, event: StageDone) -> None:
        if self.options[event.stage.number].route is Route.SPLIT:
            r.sunk_s += event.head_s
        r.encoded = event.stage.number
        r.nbytes = event.nbytes
        if not r.remote_over and r.target == r.encoded:
            self._offer(now, r)

    def _computed(self, now: float, r: Request, stage: Stage, event: StageDone) -> None:
        """An exit or the local model gave an answer: ask again, give it, or keep it."""
        owner = self._paths.owner[stage]
        r.in_hand.append((owner, event.confidence))
        self._unguard(r)
        if stage.kind is StageKind.EXIT:
            r.sunk_s += event.head_s
            if r.exit == NONE or self._paths.depth[stage.number] > self._paths.depth[r.exit]:
                r.exit = stage.number
        if stage == r.fallback:
            r.fallback = None
            if not self._awaits_cloud(now, r):
                self._answer_in_hand(now, r)
        elif owner == r.target:
            if r.forced is not None or stage.kind is StageKind.LOCAL or r.broken:
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

    # Falling back ---------------------------------------------------------------------------------

    def _awaits_cloud(self, now: float, r: Request) -> bool:
        """Whether a reply may still come and there is time to wait for it."""
        return not r.remote_over and r.encoded != NONE and r.encoded == r.target and now < r.answer_by

    def _best_fallback(self, now: float, r: Request) -> int:
        return self._paths.best_fallback(r, r.answer_by - now - self._compute.residual_s(now))

    def _guard_from(self, now: float, r: Request) -> None:
        """Set the second at which the fall-back must begin so that it ends in time."""
        best = self._best_fallback(now, r)
        if best == NONE:
            return
        own = self._paths.cost_s(r, self._paths.final[best], quantile=True)
        # Requests that wait for the same cloud would all need the device at once: leave room for
        # theirs too, but never give up more than half of the time left for that.
        latest = r.answer_by - own - self._compute.residual_s(now)
        reserved = max(latest - self._unguarded_s, now + 0.5 * (r.answer_by - now))
        r.guard_at = max(now, min(latest, reserved))
        r.guarded_s = own
        self._unguarded_s += own

    def _unguard(self, r: Request) -> None:
        r.guard_at = math.inf
        self._unguarded_s = max(0.0, self._unguarded_s - r.guarded_s)
        r.guarded_s = 0.0

    def _guard(self, now: float, r: Request) -> None:
        """The last moment to begin a fall-back has come."""
        self._unguard(r)
        running_exit = r.running is not None and r.running.kind is not StageKind.ENCODE
        if r.in_hand or r.fallback is not None or running_exit:
            return
        best = self._best_fallback(now, r)
        if best != NONE:
            self._run_fallback(r, best)

    def _run_fallback(self, r: Request, option: int) -> None:
        r.fallback = self._paths.final[option]
        if r.running != r.fallback:
            self._compute.put(r, r.fallback, self._paths.cost_s(r, r.fallback, quantile=False), urgent=True)

    def _fall_back(self, now: float, r: Request, note: str, error: type[RequestError]) -> None:
        """The target is out of reach: answer without the cloud, or end in `error`."""
        r.remote_over = True
        r.flying = False
        r.retry_at = r.overdue_at = math.inf
        r.trouble_type = error
        r.note = note
        self._sender.waiting.pop(r.id, None)
        self._unguard(r)
        if r.fallback is not None:
            return  # it runs already, and answers when done
        self._compute.drop(r)
        best = self._best_fallback(now, r)
        if best == NONE:
            self._fail(now, r, typed(error, note, r))
        elif (confidence := held(r, best)) is not None:
            self._answer(now, r, best, confidence)
        else:
            self._run_fallback(r, best)

    def _answer_in_hand(self, now: float, r: Request) -> None:
        best, confidence = self._paths.best_in_hand(r)
        r.note = r.note or why_late(r, now, self._paths, self._sender)
        self._answer(now, r, best, confidence)

    # The cloud ------------------------------------------------------------------------------------

    def _offer(self, now: float, r: Request) -> None:
        """Send the payload, or wait for the link; give up when all attempts are used."""
        if r.attempts >= self.settings.max_attempts:
            times = f"{r.attempts} time{'s' if r.attempts > 1 else ''}"
            self._remote_failed(now, r, f"sent {times} without an answer ({r.trouble})", CloudUnavailable)
        elif self._sender.offer(now, r, self._actions):
            r.awaited = True
            s = self.settings
            wait = max(s.overdue_min_s, s.overdue_factor * self._reply_s(now, r))
            r.overdue_at = now + wait * 2.0 ** min(r.attempts - 1, 60)

    def _reply_s(self, now: float, r: Request) -> float:
        """Predicted 95th percentile of the seconds between sending and reply."""
        option, link = self.options[r.encoded], self.link
        up = r.nbytes * 8.0 / link.goodput(now).low
        down = option.bytes_down * 8.0 * r.rows / link.downlink(now).low
        return float(up + link.rtt(now).high + link.queue(now).high + option.cloud_s_q95 * r.rows + down)

    def _remote_failed(self, now: float, r: Request, note: str, error: type[RequestError]) -> None:
        """The cloud will not answer: fall back."""
        r.trouble = note
        self._fall_back(now, r, note, error)

    def _retry(self, now: float, r: Request, wait_s: float, error: type[RequestError]) -> None:
        """Send again after `wait_s` if an attempt and the time are left, else fall back."""
        r.flying = False
        r.overdue_at = math.inf
        if r.attempts >= self.settings.max_attempts or now + wait_s >= r.answer_by:
            self._remote_failed(now, r, r.trouble, error)
        else:
            r.retry_at = now + wait_s

    def _sent(self, now: float, event: Sent) -> None:
        r = self._requests.get(event.request)
        if r is not None and 1 <= event.attempt <= r.attempts:
            r.bytes_up += event.nbytes
            r.tail_j += self._radio(now)

    def _radio(self, now: float) -> float:
        """Joules of the radio's tail that a transfer at `now` adds."""
        joules = self.power.tail_joules(now - self._radio_at)
        self._radio_at = now
        return joules

    def _replied(self, now: float, event: Replied) -> None:
        r = self._alive(now, event.request)
        if r is None:
            ghost = self._ghosts.pop(event.request, None)
            if ghost is not None:  # else it is not ours, or a second reply
                self._learn_link(now, ghost, event)
            return
        if not 1 <= event.attempt <= r.attempts:
            return
        self._learn_link(now, r.nbytes, event)
        r.uplink_s, r.downlink_s = event.uplink_s, event.downlink_s
        r.queue_s, r.decode_s, r.tail_s = event.queue_s, event.decode_s, event.tail_s
        r.bytes_down += event.nbytes
        r.tail_j += self._radio(now)
        r.flying = False
        r.awaited = False
        self._answer(now, r, r.encoded, event.confidence)

    def _learn_link(self, now: float, nbytes: int, event: Replied) -> None:
        link = self.link
        link.observe_uplink(now, nbytes, event.uplink_s)
        link.observe_downlink(now, event.nbytes, event.downlink_s)
        link.observe_queue(now, event.queue_s)
        self._alive_sign(now)

    def _alive_sign(self, now: float) -> None:
        if self._sender.life(now):
            self._flush(now)

    def _flush(self, now: float) -> None:
        """The link is usable again: send what waited for it."""
        waiting = self._sender.waiting
        for r in list(waiting.values()):
            del waiting[r.id]
            self._offer(now, r)
            if r.id in self._requests:
                self._timers.touch(r)

    def _refused(self, now: float, event: Refused) -> None:
        self._alive_sign(now)
        r = self._alive(now, event.request)
        if r is None or not 1 <= event.attempt <= r.attempts or r.remote_over:
            return
        latest = event.attempt == r.attempts
        if event.kind is Refusal.BUSY and latest and r.flying:
            r.trouble = f"the cloud is busy: {event.message}"
            r.retry_after_s = event.retry_after_s
            wait = max(event.retry_after_s, self._sender.backoff_s(r.attempts))
            self._retry(now, r, wait, CloudBusy)
        elif event.kind is Refusal.EXPIRED and latest:
            r.awaited = False
            self._remote_failed(
                now, r, f"the deadline passed in the cloud: {event.message}", DeadlineExceeded
            )
        elif event.kind not in (Refusal.BUSY, Refusal.EXPIRED):
            r.awaited = False
            self._remote_failed(now, r, f"the cloud refused ({event.kind}): {event.message}", CloudFailed)
        if event.request in self._requests:
            self._timers.touch(r)

    def _send_failed(self, now: float, event: SendFailed) -> None:
        r = self._alive(now, event.request)
        if r is None or not r.flying or event.attempt != r.attempts:
            return
        self._sender.breaker.failure(now)
        r.trouble = f"sending failed: {event.error}"
        self._retry(now, r, self._sender.backoff_s(r.attempts), CloudUnavailable)
        if event.request in self._requests:
            self._timers.touch(r)

    def _link_changed(self, now: float, event: LinkChanged) -> None:
        self._sender.connection(now, event.up, event.reason)
        if not event.up:
            for r in list(self._requests.values()):
                if r.flying:
                    r.flying = False
                    r.overdue_at = math.inf
                    r.trouble = self._sender.state
                    self._sender.waiting[r.id] = r
        elif self._sender.usable:
            self._flush(now)

    def _ponged(self, now: float, event: Ponged) -> None:
        self.link.observe_rtt(now, event.rtt_s)
        self._alive_sign(now)

    # Time -----------------------------------------------------------------------------------------

    def _alive(self, now: float, request: int) -> Request | None:
        """The request, unless it has ended; one whose limit has passed unnoticed ends here."""
        r = self._requests.get(request)
        if r is not None and now > r.limit:
            self._expire(now, r)
            return None
        return r

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

    def _overdue(self, now: float, r: Request) -> None:
        """The reply is late by far: the message or the reply may be lost."""
        r.overdue_at = math.inf
        self._missed(now, r)
        r.trouble = f"the reply to sending {r.attempts} is overdue after {now - r.sent_at:.3f} s"
        if r.attempts < self.settings.max_attempts:
            self._offer(now, r)
        elif not r.timed and self._paths.can_fall_back(r):
            self._remote_failed(now, r, r.trouble, CloudUnavailable)

    def _missed(self, now: float, r: Request) -> None:
        """No reply in time: evidence on the link, and perhaps a failure of it."""
        if r.flying:
            option = self.options[r.encoded]
            elapsed = now - r.sent_at - self.link.rtt(now).mean - option.cloud_s * r.rows
            self.link.observe_stall(now, r.nbytes, elapsed)
            self._sender.missed(now, r)

    def _expire(self, now: float, r: Request) -> None:
        self._missed(now, r)
        if r.in_hand:
            self._answer_in_hand(now, r)
            return
        why = r.note or why_late(r, now, self._paths, self._sender)
        if r.timed:
            self._fail(now, r, DeadlineExceeded(f"deadline of {r.deadline_s:.3f} s: {why}"))
        else:
            remote = self._paths.remote[r.target] and not self._sender.usable
            kind = CloudUnavailable if remote else DeadlineExceeded
            self._fail(now, r, kind(f"timeout of {self.settings.default_timeout_s:.3f} s: {why}"))

    # The end --------------------------------------------------------------------------------------

    def _answer(self, now: float, r: Request, option: int, confidence: float) -> None:
        record = answered(r, now, option, confidence, self.policy, self._paths, self.power)
        chosen = self.options[option]
        if chosen.remote:
            self._end(r, Answer(r.id, Source.CLOUD, -1, record))
        elif chosen.exit is None:
            self._end(r, Answer(r.id, Source.LOCAL, -1, record))
        else:
            self._end(r, Answer(r.id, Source.EXIT, chosen.exit, record))

    def _fail(self, now: float, r: Request, error: RequestError) -> None:
        self._end(r, Fail(r.id, error, failed(r, now, error, self._paths, self.power)))

    def _end(self, r: Request, last: Answer | Fail) -> None:
        self._actions.append(last)
        del self._requests[r.id]
        self._compute.drop(r)
        self._sender.waiting.pop(r.id, None)
        self._unguard(r)
        if r.awaited:
            if self._sender.connected:
                self._actions.append(CancelRemote(r.id))
            self._ghosts[r.id] = r.nbytes
            if len(self._ghosts) > _GHOSTS:
                del self._ghosts[next(iter(self._ghosts))]
        try:
            self.policy.learn(last.record)
        except Exception:  # a plug-in's bug must not lose the actions of this step
            _log.exception("policy '%s' failed to learn from a record", self.policy.name)

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
        if not self._requests and self._unguarded_s > 1e-6:
            raise SplitedgeError(f"nothing is in flight and {self._unguarded_s} s are reserved")

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
