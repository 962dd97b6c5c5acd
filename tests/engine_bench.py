"""A bench to try the engine on: a policy with a plan, and a clock that is a number."""

from __future__ import annotations

from splitedge.engine import Engine, EngineSettings
from splitedge.events import (
    LinkChanged,
    Replied,
    Stage,
    StageDone,
    StageKind,
    Tick,
)
from splitedge.policy import Decision, Option, Policy, Route

EXIT1 = Option(Route.EXIT, exit=1, accuracy=0.7, edge_s=0.005, edge_s_q95=0.006)
EXIT2 = Option(Route.EXIT, exit=2, accuracy=0.8, edge_s=0.009, edge_s_q95=0.010)
LOCAL = Option(Route.LOCAL, accuracy=0.85, edge_s=0.040, edge_s_q95=0.050)
SPLIT = Option(
    Route.SPLIT, cut="b", codec="int8", accuracy=0.93, edge_s=0.012, edge_s_q95=0.014, bytes_up=900
)
CLOUD = Option(Route.CLOUD, codec="webp", accuracy=0.92, edge_s=0.002, edge_s_q95=0.003, bytes_up=4000)
TABLE = (EXIT1, EXIT2, LOCAL, SPLIT, CLOUD)
RUN_EXIT1, RUN_EXIT2, RUN_LOCAL = Stage(StageKind.EXIT, 1), Stage(StageKind.EXIT, 2), Stage(StageKind.LOCAL)


class Plan(Policy):
    """Takes the options listed, one decision after the other, the last one for ever."""

    name = "plan"

    def __init__(self, *options):
        self.options = list(options)
        self.seen = []
        self.learnt = []

    def decide(self, obs):
        self.seen.append(obs)
        wanted = self.options.pop(0) if len(self.options) > 1 else self.options[0]
        return Decision(obs.options.index(wanted))

    def explain(self, obs, decision):
        return f"the plan says {obs.options[decision.option].name}"

    def learn(self, record):
        self.learnt.append(record)


class Bench:
    """An engine with its invariants checked after each step."""

    def __init__(self, *plan, options=TABLE, up=True, power=None, **limits):
        self.policy = Plan(*(plan or (CLOUD,)))
        limits = {"ping_interval_s": 0.0, "margin_s": 0.004, **limits}
        limits.setdefault("guard_slack_s", 0.0)  # the tests' clock is never late
        self.engine = Engine(options, self.policy, settings=EngineSettings(**limits), power=power)
        self.options = options
        self.now = 0.0
        if up:
            self.at(0.0, LinkChanged(True))

    def at(self, now, event):
        self.now = now
        actions = self.engine.step(now, event)
        self.engine.validate()
        return actions

    def until(self, now):
        """Tick whenever the engine wants it until `now`; all actions, with their time."""
        seen = []
        while self.engine.wake_at <= now:
            seen += [(self.now, action) for action in self.at(self.engine.wake_at, Tick())]
        return seen

    def encode(self, option):
        return Stage(StageKind.ENCODE, self.options.index(option))

    def encoded(self, now, request, option=CLOUD, nbytes=4000):
        return self.at(now, StageDone(request, self.encode(option), 0.0, 0.002, nbytes=nbytes))

    def replied(self, now, request, attempt=1):
        return self.at(now, Replied(request, attempt, 0.02, 0.01, 0.001, 0.002, 0.003, 150, 0.97))


def only(actions, kind):
    found = [action for action in actions if isinstance(action, kind)]
    assert len(found) == 1, actions
    return found[0]
