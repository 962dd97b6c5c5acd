"""Recorded requests through the daemon's own engine under a virtual clock, over a drawn channel.

The device is exact mode's (`edge.py`); only what it would draw is taken from the records instead: seconds,
bytes and confidences request by request, and what the cloud took.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from splitedge.engine import Engine
from splitedge.errors import PolicyError
from splitedge.estimate import EstimatorSettings, LinkEstimator
from splitedge.evaluation import Evaluation
from splitedge.events import Arrived, BatteryRead, Cancelled, Event, Refusal, Stage
from splitedge.policy import Decision, Observation, Option, Policy
from splitedge.record import Record
from splitedge.settings import EngineSettings
from splitedge.sim.answers import Answers
from splitedge.sim.cloud import Reply, Session, SimCloud
from splitedge.sim.connection import Later
from splitedge.sim.device import Seconds
from splitedge.sim.edge import Edge, Work
from splitedge.sim.exact import Clock
from splitedge.sim.link import Channel, Link
from splitedge.sim.replay_conditions import Conditions, payload_bytes
from splitedge.sim.replay_records import NONE, Decided, Ints, Recorded, targets
from splitedge.sim.scenario import ChannelPart, CloudPart, Scenario

Progress = Callable[[int], None]
_TOLD = 256  # requests between two words on progress


class AsRecorded(Policy):
    """Decides each request as the records say it was decided."""

    name: ClassVar[str] = "recorded"

    def __init__(self, recorded: Recorded) -> None:
        self._planned = recorded.decided.planned.tolist()
        self._target = recorded.decided.target.tolist()
        self._reason = recorded.decided.reason
        self.request = NONE  # set by the device before each step

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
        n = len(self.recorded)
        ended: list[Record | None] = [None] * n
        count = 0

        def end(edge: Edge, record: Record, row: int, right: bool) -> None:
            nonlocal count
            ended[row] = record
            count += 1
            if count % _TOLD == 0 or count == n:
                progress((count - 1) % _TOLD + 1)
            clock.stopped = count == n

        clock = Clock()
        engine = Engine(
            self.evaluation.table,
            policy,
            settings=self.settings,
            link=LinkEstimator(self.link),
            power=self.conditions.power,
        )
        _Device(self, engine, clock.later, end).start()
        clock.run()
        return [record for record in ended if record is not None]


class _Device(Edge):
    """Exact mode's device with the recorded requests: row i of its answers is request i."""

    def __init__(
        self, world: World, engine: Engine, later: Later, ended: Callable[[Edge, Record, int, bool], None]
    ) -> None:
        recorded = world.recorded
        n = len(recorded)
        number = np.arange(n)
        nowhere = Path("records")
        scenario = Scenario(
            deployment=nowhere,
            channel=ChannelPart(up=nowhere),
        )
        work = Work(recorded.t_s, number, number.astype(float), number.astype(float))
        links = Link(world.up), Link(world.down)
        cloud = _Cloud(world.conditions, engine.options, later)
        super().__init__(0, engine, scenario, _Answers(world), work, links, cloud, None, later, ended)
        self._seconds = _Seconds(world.conditions)
        self._hand_s = world.conditions.hand_s.tolist()
        self._recorded = recorded
        self._deadlines = [None if d == math.inf else d for d in recorded.deadline_s.tolist()]
        self._counts = recorded.rows.tolist()
        self._follows = engine.policy if isinstance(engine.policy, AsRecorded) else None

    def start(self) -> None:
        """Connect, and plan what comes from outside: requests, cancellations, readings of the battery."""
        recorded = self._recorded
        super().start()
        for i in np.flatnonzero(recorded.cancelled).tolist():
            self._later(float(recorded.t_s[i] + recorded.decided.latency_s[i]), self._feed, Cancelled(i + 1))
        battery = recorded.table["battery"]
        for i in np.flatnonzero(np.isfinite(battery)).tolist():
            if i == 0 or battery[i] != battery[i - 1]:
                at = max(0.0, float(recorded.t_s[i]) - 1e-6)
                self._later(at, self._feed, BatteryRead(float(battery[i])))

    def _feed(self, now: float, event: Event) -> None:
        if self._follows is not None:
            self._follows.request = getattr(event, "request", 0) - 1
        super()._feed(now, event)

    def _computed(self, now: float, done: tuple[int, Stage, int, float]) -> None:
        self._later(now + self._hand_s[done[0] - 1], self._stage_done, done)

    def _arrive(self, now: float, i: int) -> None:
        if i + 1 < len(self._t):
            self._later(self._t[i + 1], self._arrive, i + 1)
        self._feed(now, Arrived(i + 1, self._counts[i], self._deadlines[i], self._recorded.forced[i]))


class _Seconds(Seconds):
    """Seconds on the device by option and request in place of draws."""

    __slots__ = ("_by",)

    def __init__(self, conditions: Conditions) -> None:
        super().__init__([], [])
        self._by = conditions.edge_s.tolist()

    def draw(self, option: int, z: float) -> float:
        """Seconds of request number `z` by an option."""
        seconds: float = self._by[option][int(z)]
        return seconds


class _Answers(Answers):
    """Answers by option and request; where the record is of that option, it is the record's own."""

    def __init__(self, world: World) -> None:
        recorded, evaluation, rows = world.recorded, world.evaluation, world.rows
        table, decided, options = recorded.table, recorded.decided, world.evaluation.table
        confidence = evaluation.confidence[:, rows]
        known = np.flatnonzero((decided.option != NONE) & np.isfinite(decided.confidence))
        confidence[decided.option[known], known] = decided.confidence[known]
        nbytes = np.stack([payload_bytes(evaluation, i)[rows] for i in range(len(options))])
        more = np.where(nbytes > 0.0, world.conditions.more_up[:, None], 0.0)
        nbytes = np.maximum(nbytes + more, 0.0) * recorded.rows
        once = np.flatnonzero((decided.option != NONE) & (table["attempts"] == 1) & ~decided.degraded)
        remote = np.array([option.remote for option in options])
        once = once[remote[decided.option[once]]]
        nbytes[decided.option[once], once] = table["bytes_up"][once]
        self.confidence = confidence.tolist()
        self.correct = evaluation.correct[:, rows].tolist()
        self.bytes_down = np.rint(world.conditions.bytes_down).astype(int).tolist()
        self.index = {option.name: i for i, option in enumerate(options)}
        self._gated = [option.gate is not None for option in options]
        self._nbytes = np.rint(nbytes).astype(np.int64).tolist()


class _Cloud(SimCloud):
    """The cloud as the records found it: every request waits and is computed as long as they say."""

    def __init__(self, conditions: Conditions, options: tuple[Option, ...], later: Later) -> None:
        super().__init__(CloudPart(), options, later)
        self._queue_s = conditions.queue_s.tolist()
        self._tail_s = conditions.cloud_s.tolist()
        self._jobs: dict[int, tuple[int, int]] = {}  # request: attempt and connection that the reply is for

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
        """A request's message is here. A repeated attempt joins the one that runs."""
        running = request in self._jobs
        self._jobs[request] = attempt, connection
        if running:
            return
        queue, tail = self._queue_s[request - 1], self._tail_s[option][request - 1]
        if deadline_ms and queue > deadline_ms / 1e3:
            del self._jobs[request]
            why = "the deadline passed in the queue"
            late = Reply(request, attempt, option, now, now, 0.0, 0.0, Refusal.EXPIRED, why)
            session.client.cloud_says(now, connection, late)
            return
        self._later(now + queue + tail, self._done, (session, request, option, now, queue, tail))

    def cancel(self, now: float, session: Session, request: int) -> None:
        """Nobody waits for this request any more."""
        self._jobs.pop(request, None)

    def _done(self, now: float, what: tuple[Any, ...]) -> None:
        session, request, option, received, queue, tail = what
        if request in self._jobs:
            attempt, connection = self._jobs.pop(request)
            reply = Reply(request, attempt, option, received, now, queue, tail)
            session.client.cloud_says(now, connection, reply)


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
