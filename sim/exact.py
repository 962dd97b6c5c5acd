"""Exact mode: a virtual clock, a heap of events, and the daemon's own engine on every device."""

from __future__ import annotations

import copy
from collections.abc import Callable
from heapq import heappop, heappush
from typing import Any

from splitedge.engine import Engine
from splitedge.errors import SimulationError
from splitedge.estimate import LinkEstimator
from splitedge.evaluation import Evaluation
from splitedge.policy import Option, Policy
from splitedge.power import PowerModel, power_profile
from splitedge.record import Record
from splitedge.sim.answers import Answers
from splitedge.sim.channel import links_of
from splitedge.sim.cloud import SimCloud
from splitedge.sim.curves import Floats
from splitedge.sim.device import Battery, scaled
from splitedge.sim.dry_run import Watched, rehearse
from splitedge.sim.edge import Edge, Work
from splitedge.sim.link import Link
from splitedge.sim.measured import Measured
from splitedge.sim.policies import policy_for
from splitedge.sim.rows_out import RowsOut
from splitedge.sim.scenario import Scenario
from splitedge.sim.shell import measured_of
from splitedge.sim.simulation import Simulation
from splitedge.sim.traces import Trace
from splitedge.sim.workload import (
    CLOUD,
    EDGE,
    SHELL,
    arrivals,
    read_arrivals,
    requests_of,
    rows,
    start_s,
    stream,
)

#: More rows than this do not belong into one process's memory event by event.
MAX_REQUESTS = 10_000_000
_TOLD = 2000  # requests between two words on progress

Progress = Callable[[float], None]
Call = Callable[[float, Any], None]


class Clock:
    """Virtual time: calls in order of their second, those of one second in the order they were made."""

    def __init__(self) -> None:
        self.now = 0.0
        self.stopped = False
        self._heap: list[tuple[float, int, Call, Any]] = []
        self._made = 0

    def later(self, at: float, call: Call, what: Any) -> None:
        """Call `call(at, what)` at second `at`, not before now."""
        self._made += 1
        heappush(self._heap, (at, self._made, call, what))

    def run(self) -> None:
        """Make calls until one sets `stopped`."""
        heap = self._heap
        while not self.stopped:
            now, _, call, what = heappop(heap)
            self.now = now
            call(now, what)


def run_exact(
    scenario: Scenario,
    evaluation: Evaluation,
    up: Trace,
    down: Trace,
    *,
    policy: Policy | Callable[[int], Policy] | None = None,
    progress: Progress | None = None,
) -> Simulation:
    """Simulate every request event by event, with the engine object of the daemon.

    Args:
        scenario: everything but the files it names.
        evaluation: of the deployment, with its option table.
        up, down: traces of the channel's directions.
        policy: in place of the scenario's: one of which every device gets a copy, or what makes the policy of
            a device from its number.
        progress: called with the finished share of all requests, now and then.

    Returns:
        One row a request, in order of arrival, with all columns of `Record` (`reason` where
        the scenario asks for `reasons`).

    Raises:
        ConfigError: the evaluation, a name or a number of the scenario can not be used.
        PolicyError: the policy can not work with this deployment.
        SimulationError: the policy fails or chooses an option that does not exist.
        TraceError: a trace lacks its direction.
    """
    answers = Answers(evaluation)
    options = scaled(evaluation.table, scenario.device.slower, scenario.cloud.slower)
    power = power_profile(scenario.device.power)
    given = policy(0) if callable(policy) else policy
    name = scenario.policy if given is None else given.name
    ready = policy_for(scenario.policy if given is None else given, evaluation)
    rehearse(ready, options)
    policy_of = policy if callable(policy) else lambda device: copy.deepcopy(ready)
    measured = measured_of(scenario)
    if measured is not None:
        measured.check(options)
    recorded = None
    if not isinstance(scenario.work.arrivals, str):
        recorded = read_arrivals(scenario.work.arrivals)
    total = requests_of(scenario.work, recorded) * scenario.device.count
    if total > MAX_REQUESTS:
        raise SimulationError(
            f"{total} requests; exact mode simulates at most {MAX_REQUESTS} in one run, fleet mode more "
            "(mode = 'fleet')"
        )
    world = _World(scenario, answers, options, policy_of, power, recorded, measured, total, progress)
    return world.run(name, up, down)


class _World:
    """All that one run holds."""

    def __init__(
        self,
        scenario: Scenario,
        answers: Answers,
        options: tuple[Option, ...],
        policy_of: Callable[[int], Policy],
        power: PowerModel,
        recorded: Floats | None,
        measured: Measured | None,
        total: int,
        progress: Progress | None,
    ) -> None:
        self._scenario = scenario
        self._answers = answers
        self._options = options
        self._policy_of = policy_of
        self._power = power
        self._recorded = recorded
        self._measured = measured
        self._total = total
        self._progress = progress
        self._clock = Clock()
        self._out = RowsOut(scenario.reasons)
        seconds = None if measured is None else measured.cloud(options, scenario.cloud.slower)
        self._cloud = SimCloud(scenario.cloud, options, self._clock.later, seconds)

    def run(self, name: str, up: Trace, down: Trace) -> Simulation:
        """Simulate until every request has ended."""
        scenario, out, total = self._scenario, self._out, self._total
        shared = links_of_device(scenario, up, down, 0) if scenario.device.shared_cell else None
        for device in range(scenario.device.count):
            links = shared if shared is not None else links_of_device(scenario, up, down, device)
            self._edge(device, links).start()
        if total:
            self._clock.run()
        return Simulation(
            policy=name,
            trace=up.source,
            seed=scenario.seed,
            seconds=self._clock.now,
            columns=out.columns(),
        )

    def _edge(self, device: int, links: tuple[Link, Link]) -> Edge:
        scenario = self._scenario
        times = arrivals(scenario, device, self._recorded)
        asked = len(times)
        work = Work(
            times,
            rows(scenario, device, asked, len(self._answers.confidence[0])),
            stream(scenario.seed, device, EDGE).standard_normal(asked),
            stream(scenario.seed, device, CLOUD).standard_normal(asked),
            None if self._measured is None else stream(scenario.seed, device, SHELL).standard_normal(asked),
        )
        engine = Engine(
            self._options,
            Watched(self._policy_of(device)),
            settings=scenario.engine.model_copy(
                update={"seed": scenario.engine.seed + device, "reasons": scenario.reasons}
            ),
            link=LinkEstimator(scenario.link),
            power=self._power,
        )
        part = scenario.device
        battery = None
        if part.battery_j is not None:
            battery = Battery(part.battery_j, part.charge, self._power)
        return Edge(
            device, engine, scenario, self._answers, work, links, self._cloud, battery,
            self._clock.later, self._ended, self._measured,
        )  # fmt: skip

    def _ended(self, edge: Edge, record: Record, row: int, right: bool) -> None:
        out = self._out
        out.add(edge.index, record, row, right)
        watched = edge.engine.policy
        if isinstance(watched, Watched) and watched.failure is not None:
            raise SimulationError(watched.failure)
        if out.count == self._total:
            self._clock.stopped = True
        if self._progress is not None and (out.count % _TOLD == 0 or self._clock.stopped):
            self._progress(out.count / self._total)


def links_of_device(scenario: Scenario, up: Trace, down: Trace, device: int) -> tuple[Link, Link]:
    """Fresh links of one device, which begin in the trace where that device does."""
    part = scenario.channel
    ahead = start_s(scenario, device, up.duration_s) - part.start_s
    moved: dict[str, float] = {"start_s": part.start_s + ahead}
    if part.down_start_s is not None:
        moved["down_start_s"] = max(0.0, part.down_start_s + ahead)
    return links_of(part.model_copy(update=moved), up, down, scenario.seed * scenario.device.count + device)
