"""Recorded requests through the daemon's own engine under a virtual clock, over a drawn channel."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from heapq import heappop, heappush
from itertools import count
from typing import ClassVar

import numpy as np

from splitedge.engine import Engine
from splitedge.errors import PolicyError
from splitedge.estimate import EstimatorSettings, LinkEstimator
from splitedge.evaluation import Evaluation
from splitedge.events import (
    Action,
    Answer,
    Arrived,
    BatteryRead,
    Cancelled,
    Event,
    Fail,
    LinkChanged,
    Ping,
    Ponged,
    Refusal,
    Refused,
    Replied,
    Run,
    Send,
    Sent,
    StageDone,
    StageKind,
    Tick,
)
from splitedge.policy import Decision, Observation, Policy, Route
from splitedge.record import Record
from splitedge.settings import EngineSettings
from splitedge.sim.link import Channel, Link
from splitedge.sim.replay_conditions import Conditions, payload_bytes
from splitedge.sim.replay_records import NONE, Decided, Ints, Recorded, targets

PING_BYTES = 100  # framed and encrypted, either way
Progress = Callable[[int], None]


class AsRecorded(Policy):
    """Decides each request as the records say it was decided."""

    name: ClassVar[str] = "recorded"

    def __init__(self, recorded: Recorded) -> None:
        self._planned = recorded.decided.planned.tolist()
        self._target = recorded.decided.target.tolist()
        self._reason = recorded.decided.reason
        self.request = NONE  # set by the world before each step

    def decide(self, obs: Observation) -> Decision:
        """The option planned first; after an exit the one wanted last."""
        return Decision((self._planned if obs.exit < 0 else self._target)[self.request])

    def explain(self, obs: Observation, decision: Decision) -> str:
        """What the recorded policy said."""
        return self._reason[self.request]


@dataclass(frozen=True, eq=False)
class World:
    """All that a policy meets.

    Attributes:
        recorded: the requests.
        evaluation: what each option answers on each of its rows.
        rows: the row of the evaluation that each request is, (n,).
        conditions: device and cloud.
        up, down: the channel.
        settings, link: of the engine and its link estimator, as the daemon had them.
    """

    recorded: Recorded
    evaluation: Evaluation
    rows: Ints
    conditions: Conditions
    up: Channel
    down: Channel
    settings: EngineSettings = field(default_factory=EngineSettings)
    link: EstimatorSettings = field(default_factory=EstimatorSettings)

    def run(self, policy: Policy, progress: Progress = lambda done: None) -> Decided:
        """Put every request through a policy, which must be fresh.

        Raises:
            PolicyError: the policy failed on a request; it may need what records do not hold.
        """
        return _decided(self, self.record(policy, progress))

    def record(self, policy: Policy, progress: Progress = lambda done: None) -> list[Record]:
        """The same as records, in order of arrival."""
        return _Run(self, policy, progress).go()


class _Run:
    """One run: the shell around the engine."""

    def __init__(self, world: World, policy: Policy, progress: Progress) -> None:
        self.world, self.policy, self.progress = world, policy, progress
        self.options = world.evaluation.table
        self.engine = Engine(
            self.options,
            policy,
            settings=world.settings,
            link=LinkEstimator(world.link),
            power=world.conditions.power,
        )
        self.up, self.down = Link(world.up), Link(world.down)
        self.records: list[Record | None] = [None] * len(world.recorded)
        self.ran = [0.0] * len(world.recorded)  # head seconds so far
        self.owner = {option.exit: i for i, option in enumerate(self.options) if option.route is Route.EXIT}
        self.local = next((i for i, o in enumerate(self.options) if o.route is Route.LOCAL), NONE)
        self.sizes = [payload_bytes(world.evaluation, i) for i in range(len(self.options))]
        self.later: list[tuple[float, int, Event | Callable[[float], None]]] = []
        self.order = count()
        self.follows: AsRecorded | None = policy if isinstance(policy, AsRecorded) else None

    def go(self) -> list[Record]:
        """Every request from its arrival to its end."""
        recorded = self.world.recorded
        self.at(0.0, LinkChanged(True, "connected"))
        self._plan_outside_events()
        arrivals = recorded.t_s.tolist()
        deadlines = [None if d == math.inf else d for d in recorded.deadline_s.tolist()]
        rows = recorded.rows.tolist()
        i, n = 0, len(arrivals)
        engine, later = self.engine, self.later
        while i < n or engine.in_flight:
            next_arrival = arrivals[i] if i < n else math.inf
            next_event = later[0][0] if later else math.inf
            now = min(next_arrival, next_event, engine.wake_at)
            if now == math.inf:  # every request has a limit, so the engine always wakes for it
                raise AssertionError("requests are in flight and nothing will happen")
            if next_event <= now:
                _, _, what = heappop(later)
                if callable(what):
                    what(now)
                else:
                    self.feed(now, what)
            elif next_arrival <= now:
                self.feed(now, Arrived(i, rows[i], deadlines[i], recorded.forced[i]))
                i += 1
                if i % 256 == 0:
                    self.progress(256)
            else:
                self.feed(now, Tick())
        self.progress(n % 256)
        ended = [record for record in self.records if record is not None]
        assert len(ended) == n  # the engine ends every request
        return ended

    def at(self, when: float, what: Event | Callable[[float], None]) -> None:
        """Do something later; never, where `when` is inf."""
        if when < math.inf:
            heappush(self.later, (when, next(self.order), what))

    def _plan_outside_events(self) -> None:
        recorded = self.world.recorded
        for i in np.flatnonzero(recorded.cancelled).tolist():
            self.at(float(recorded.t_s[i] + recorded.decided.latency_s[i]), Cancelled(i))
        battery = recorded.table["battery"]
        for i in np.flatnonzero(np.isfinite(battery)).tolist():
            if i == 0 or battery[i] != battery[i - 1]:
                self.at(max(0.0, float(recorded.t_s[i]) - 1e-6), BatteryRead(float(battery[i])))

    # The engine -----------------------------------------------------------------------------------

    def feed(self, now: float, event: Event) -> None:
        """One event, and what comes of it at once."""
        events: deque[Event] = deque([event])
        while events:
            event = events.popleft()
            if self.follows is not None:
                self.follows.request = getattr(event, "request", NONE)
            for action in self.engine.step(now, event):
                at_once = self.act(now, action)
                if at_once is not None:
                    events.append(at_once)

    def act(self, now: float, action: Action) -> Event | None:
        """Carry out an action; the event that it brings at once, if any."""
        if isinstance(action, Run):
            self.compute(now, action)
        elif isinstance(action, Send):
            return self.send(now, action)
        elif isinstance(action, Answer | Fail):
            self.records[action.request] = action.record
        elif isinstance(action, Ping):
            self.at(self.up.send(now, PING_BYTES), lambda there: self._pong(now, there))
        return None

    def _pong(self, sent: float, now: float) -> None:
        back = self.down.send(now, PING_BYTES)
        self.at(back, Ponged(back - sent))

    # The device -----------------------------------------------------------------------------------

    def compute(self, now: float, action: Run) -> None:
        request, stage = action.request, action.stage
        world = self.world
        option = {StageKind.ENCODE: stage.number, StageKind.LOCAL: self.local}.get(stage.kind, NONE)
        if stage.kind is StageKind.EXIT:
            option = self.owner[stage.number]
        one = self.options[option]
        seconds = float(world.conditions.edge_s[option, request])
        if one.route in (Route.EXIT, Route.SPLIT):
            seconds = max(0.0, seconds - self.ran[request])
            self.ran[request] += seconds
        confidence, nbytes = math.nan, 0
        if stage.kind is StageKind.ENCODE:
            nbytes = self.payload(request, option)
            if one.gate is not None:
                confidence = 1.0 if nbytes == 0 else 0.0
        else:
            confidence = self.confidence(request, option)
        hand = world.conditions.hand_s[one.remote]
        self.at(now + seconds + hand, StageDone(request, stage, seconds, 0.0, confidence, nbytes))

    def payload(self, request: int, option: int) -> int:
        """Framed bytes; those of the record where it was this option's."""
        recorded = self.world.recorded
        if recorded.decided.option[request] == option and recorded.table["attempts"][request] == 1:
            return int(recorded.table["bytes_up"][request])
        size = self.sizes[option][self.world.rows[request]] * self.world.conditions.ratio_up[option]
        return round(float(size) * int(recorded.rows[request]))

    def confidence(self, request: int, option: int) -> float:
        """Of an option's answer; that of the record where it was this option's."""
        decided = self.world.recorded.decided
        if decided.option[request] == option and math.isfinite(decided.confidence[request]):
            return float(decided.confidence[request])
        return float(self.world.evaluation.confidence[option, self.world.rows[request]])

    # Link and cloud -------------------------------------------------------------------------------

    def send(self, now: float, action: Send) -> Event:
        nbytes = self.payload(action.request, action.option)
        arrives = self.up.send(now, nbytes)
        self.at(arrives, lambda there: self._serve(now, there, action))
        return Sent(action.request, action.attempt, nbytes)

    def _serve(self, sent: float, there: float, action: Send) -> None:
        """The message is in the cloud: wait, compute, and send the reply."""
        conditions = self.world.conditions
        queue = float(conditions.queue_s[action.request])
        if queue > action.deadline_s:
            back = self.down.send(there, PING_BYTES)
            why = "the deadline passed in the queue"
            self.at(back, Refused(action.request, action.attempt, Refusal.EXPIRED, why))
            return
        tail = float(conditions.cloud_s[action.option, action.request])
        self.at(there + queue + tail, lambda done: self._reply(sent, there, done, queue, tail, action))

    def _reply(self, sent: float, there: float, done: float, queue: float, tail: float, action: Send) -> None:
        world, request, option = self.world, action.request, action.option
        nbytes = round(float(world.conditions.bytes_down[option]) * int(world.recorded.rows[request]))
        back = self.down.send(done, nbytes)
        self.at(
            back,
            Replied(
                request,
                action.attempt,
                uplink_s=there - sent,
                downlink_s=back - done,
                queue_s=queue,
                decode_s=0.0,
                tail_s=tail,
                nbytes=nbytes,
                confidence=self.confidence(request, option),
            ),
        )


def _decided(world: World, records: list[Record]) -> Decided:
    broken = [r.reason for r in records if r.reason.startswith("policy '") and "' failed (" in r.reason]
    if broken:
        raise PolicyError(
            f"{broken[0].split(';')[0]}, on {len(broken)} of {len(records)} requests; a policy that looks "
            "at the inputs themselves can not be replayed: records do not hold them"
        )
    options, evaluation = world.evaluation.table, world.evaluation
    index = {option.name: i for i, option in enumerate(options)}
    planned = np.array([index.get(r.planned, NONE) for r in records], np.int64)
    option = np.array([index.get(r.option, NONE) for r in records], np.int64)
    answered = np.array([r.error == "" for r in records], bool)
    degraded = np.array([r.degraded for r in records], bool)
    sent = np.array([r.attempts > 0 for r in records], bool)
    by = np.where(option == NONE, planned, option)
    confidence = np.array([r.confidence for r in records])
    confidence = np.where(np.isnan(confidence), evaluation.confidence[by, world.rows], confidence)
    return Decided(
        planned=planned,
        target=targets(planned, option, degraded | ~answered, sent, options),
        option=option,
        degraded=degraded,
        error=np.array([r.error for r in records], np.str_),
        reason=[r.reason for r in records],
        latency_s=np.array([r.latency_s for r in records]),
        met=np.array([r.met for r in records], bool),
        nbytes=np.array([r.bytes_up + r.bytes_down for r in records], float),
        sent=np.array([r.bytes_up for r in records], float),
        energy_j=np.array([r.energy_j for r in records]),
        confidence=np.where(answered, confidence, 0.0),
        right=np.where(answered, evaluation.correct[by, world.rows], 0.0).astype(float),
    )
