"""Whatever happens in whatever order: each request ends once, in time, and nothing is left behind."""

from __future__ import annotations

import math

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitedge.engine import Engine, EngineSettings
from splitedge.events import (
    Answer,
    Arrived,
    BatteryRead,
    Cancelled,
    CancelRemote,
    Draining,
    Fail,
    LinkChanged,
    Ping,
    Ponged,
    Refusal,
    Refused,
    Replied,
    Run,
    Send,
    SendFailed,
    Sent,
    Stage,
    StageDone,
    StageFailed,
    StageKind,
    Tick,
)
from splitedge.policy import Decision, Gate, Observation, Option, Policy, Route

TABLE = (
    Option(Route.EXIT, exit=1, accuracy=0.7, edge_s=0.004, edge_s_q95=0.005),
    Option(Route.EXIT, exit=2, accuracy=0.8, edge_s=0.009, edge_s_q95=0.011),
    Option(Route.LOCAL, accuracy=0.85, edge_s=0.02, edge_s_q95=0.03),
    Option(Route.SPLIT, cut="a", codec="int8", accuracy=0.93, edge_s=0.006, edge_s_q95=0.008, bytes_up=3000),
    Option(
        Route.SPLIT,
        cut="b",
        codec="int8",
        accuracy=0.93,
        edge_s=0.012,
        edge_s_q95=0.014,
        bytes_up=1500,
        gate=Gate(0.5, nothing=0),
    ),
    Option(Route.CLOUD, codec="webp", accuracy=0.92, edge_s=0.002, edge_s_q95=0.003, bytes_up=6000),
)
REMOTE_ONLY = TABLE[3:]
LOCAL_ONLY = TABLE[:3]


class Whim(Policy):
    """Chooses by a list of numbers; an index out of range or an exception is a policy's bug."""

    name = "whim"

    def __init__(self, whims):
        self._whims = list(whims) or [0]
        self._next = 0

    def decide(self, obs: Observation) -> Decision:
        self._next = (self._next + 1) % len(self._whims)
        whim = self._whims[self._next]
        if whim == 97:
            raise ValueError("whim")
        return Decision(whim % len(obs.options) if whim < 98 else whim)

    def explain(self, obs, decision):
        return "a whim"


class World:
    """A shell with a fake clock, a device and a cloud that do what a list of numbers says."""

    def __init__(self, options, whims, slots):
        limits = EngineSettings(compute_slots=slots, max_in_flight=6, default_timeout_s=2.0, patience_s=0.5)
        self.slots = slots
        self.engine = Engine(options, Whim(whims), settings=limits)
        self.now = 0.0
        self.running: list[tuple[int, Stage]] = []
        self.sent: list[tuple[int, int]] = []
        self.limits: dict[int, float] = {}
        self.ended: dict[int, float] = {}
        self.answerable: dict[int, set[tuple[str, int]]] = {}
        self.pings = 0
        self.next_id = 0

    def feed(self, event):
        for action in self.engine.step(self.now, event):
            self.carry_out(action)
        self.engine.validate()
        assert self.engine.in_flight == len(self.limits) - len(self.ended)
        assert len(self.running) <= self.slots

    def carry_out(self, action):
        if isinstance(action, Run):
            assert action.request not in [request for request, _ in self.running]
            self.running.append((action.request, action.stage))
        elif isinstance(action, Send):
            assert action.request not in self.ended
            assert action.deadline_s > 0.0
            self.sent.append((action.request, action.attempt))
        elif isinstance(action, Answer | Fail):
            self.end(action)
        elif isinstance(action, Ping):
            self.pings += 1
        else:
            assert isinstance(action, CancelRemote)

    def end(self, action):
        assert action.request not in self.ended, "a request ended twice"
        self.ended[action.request] = self.now
        record = action.record
        assert record.request == action.request
        assert record.reason
        if isinstance(action, Answer):
            assert record.route and not record.error
            assert (action.source.value, action.exit) in self.answerable[action.request]
            assert self.now <= self.limits[action.request] + 1e-9
        else:
            assert record.error == type(action.error).__name__

    def arrive(self, a, b):
        self.next_id += 1
        deadline = [None, 0.01, 0.05, 0.2, 1.0, math.inf][a % 6]
        self.limits[self.next_id] = self.now + (2.0 if deadline in (None, math.inf) else deadline)
        self.answerable[self.next_id] = set()
        route = [None, None, None, None, Route.EXIT, Route.SPLIT, Route.CLOUD, Route.LOCAL][b % 8]
        self.feed(Arrived(self.next_id, 1 + a % 2, deadline, route))

    def advance(self, seconds):
        """Let time pass, with a tick whenever the engine wants one."""
        end = self.now + seconds
        for _ in range(10_000):
            if self.engine.wake_at > end:
                self.now = end
                return
            self.now = max(self.now, self.engine.wake_at)
            self.feed(Tick())
        raise AssertionError("the engine wants ticks without end")

    def compute(self, a, fails):
        if not self.running:
            return
        request, stage = self.running.pop(a % len(self.running))
        if fails:
            self.feed(StageFailed(request, stage, "out of memory"))
            return
        if stage.kind is StageKind.ENCODE:
            self.answerable[request].add(("filter", -1))
        else:
            self.answerable[request].add(
                (stage.kind.value, stage.number if stage.kind is StageKind.EXIT else -1)
            )
        confidence = math.nan if a % 5 == 0 else (a % 100) / 100
        self.feed(StageDone(request, stage, 0.002, 0.001, confidence, 0 if a % 7 == 0 else 2000))

    def cloud(self, a, b):
        """The cloud, or the way to it, does something; about any attempt ever sent, or one never sent."""
        request, attempt = self.sent[a % len(self.sent)] if self.sent else (1, 1)
        if b % 8 < 3:
            self.answerable.setdefault(request, set()).add(("cloud", -1))
            self.feed(Replied(request, attempt, 0.01, 0.005, 0.0, 0.001, 0.002, 200, 0.9))
        elif b % 8 == 3:
            kind = list(Refusal)[a % len(Refusal)]
            self.feed(Refused(request, attempt, kind, "no", 0.01 * (a % 5)))
        elif b % 8 == 4:
            self.feed(SendFailed(request, attempt, "no connection"))
        elif b % 8 == 5:
            self.feed(Sent(request, attempt, 2000))
        elif b % 8 == 6:
            self.feed(Replied(request + 1000, attempt, 0.01, 0.005, 0.0, 0.0, 0.0, 200))
        else:
            self.feed(Ponged(0.02))

    def do(self, op, a, b):
        if op <= 2:
            self.arrive(a, b)
        elif op <= 5:
            self.compute(a, fails=b % 8 == 0)
        elif op <= 8:
            self.cloud(a, b)
        elif op <= 10:
            self.advance((0.0, 0.001, 0.004, 0.02, 0.1, 0.7)[a % 6])
        elif op == 11:
            self.feed(LinkChanged(a % 3 > 0, "flap"))
        elif op == 12:
            self.feed(Cancelled(1 + a % max(1, self.next_id)))
        else:
            self.feed(BatteryRead(0.5))

    def finish(self):
        """No event but time: everything must still end."""
        self.feed(Draining())
        self.advance(3.0)
        assert self.engine.in_flight == 0
        assert self.ended.keys() == self.limits.keys()
        for request, at in self.ended.items():
            assert at <= self.limits[request] + 1e-9, "a request outlived its deadline"
        while self.running:
            self.compute(1, fails=False)
        assert self.engine.in_flight == 0


steps = st.tuples(st.integers(0, 13), st.integers(0, 1000), st.integers(0, 1000))


@given(
    st.sampled_from([TABLE, TABLE, REMOTE_ONLY, LOCAL_ONLY, TABLE[:1] + TABLE[5:]]),
    st.lists(st.integers(0, 99), max_size=8),
    st.integers(1, 2),
    st.lists(steps, max_size=120),
)
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_each_request_ends_once_and_in_time(options, whims, slots, script):
    world = World(options, whims, slots)
    world.feed(LinkChanged(True))
    for op, a, b in script:
        world.do(op, a, b)
    world.finish()


@given(st.lists(steps, max_size=60), st.integers(0, 2**32))
@settings(max_examples=30, deadline=None)
def test_the_same_events_give_the_same_actions(script, seed):
    def trace():
        seen = []
        world = World(TABLE, [seed % 6, 3, 5], 1)
        plain = world.carry_out
        world.carry_out = lambda action: (seen.append(repr(action)), plain(action))
        for op, a, b in script:
            world.do(op, a, b)
        return seen

    assert trace() == trace()
