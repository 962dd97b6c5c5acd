"""Fleet mode: many devices at once, policies asked about arrays; see docs/simulator-fleet.md.

The run goes in windows of time. Each device that asks in a window first lets happen what was due on it,
then the policy decides for all of them at once, then stages and messages take their seconds. At a window's
end the cloud serves what has come to it, from all devices, in order of arrival. A window shorter than the
quickest way back from the cloud makes that exact, for no decision in it could have known a later reply.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

from splitedge.errors import SimulationError
from splitedge.evaluation import Evaluation
from splitedge.policy import Policy
from splitedge.power import power_profile
from splitedge.sim.answers import Answers
from splitedge.sim.compiled import COMPILES, is_kept
from splitedge.sim.device import scaled
from splitedge.sim.dry_run import rehearse
from splitedge.sim.fleet_columns import ROW, Columns, Totals, count_up, score_of, totals, write
from splitedge.sim.fleet_estimate import QUANTITIES, QUANTITY
from splitedge.sim.fleet_policy import Fleet
from splitedge.sim.fleet_run import Run
from splitedge.sim.fleet_setup import rules_of, table_of, world_of
from splitedge.sim.fleet_work import Requests
from splitedge.sim.fleet_world import DEVICE, ENDED, SLOT
from splitedge.sim.policies import policy_for
from splitedge.sim.scenario import Scenario
from splitedge.sim.simulation import Score, Simulation
from splitedge.sim.traces import Trace
from splitedge.sim.workload import read_arrivals, requests_of

Progress = Callable[[float], None]

log = logging.getLogger(__name__)

_LONG = 100_000  # requests that take minutes as plain Python

#: Bytes of a device beside its state: requests drawn ahead, the order of the evaluation's rows.
_AHEAD = 40_000


def run_fleet(
    scenario: Scenario,
    evaluation: Evaluation,
    up: Trace,
    down: Trace,
    *,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> Simulation:
    """Simulate every request, many devices at once.

    Args:
        scenario: everything but the files it names.
        evaluation: of the deployment, with its option table.
        up, down: traces of the channel's directions.
        policy: in place of the scenario's; one object decides for all devices.
        progress: called with the finished share of all requests, now and then.

    Returns:
        One row a request, in order of arrival; columns of names are made when they are asked for.

    Raises:
        ConfigError: the evaluation, a name or a number of the scenario can not be used.
        PolicyError: the policy can not work with this deployment.
        SimulationError: the policy can not work on arrays or chooses an option that does not exist, or the
            rows would not fit into memory.
        TraceError: a trace lacks its direction.
    """
    total = _total(scenario)
    _fits(scenario, total * ROW.itemsize)
    run, name = _prepare(scenario, evaluation, up, down, policy)
    rows = np.zeros(total, ROW).view(np.recarray)

    def drain(world: Any) -> None:
        write(world, rows)

    run.drive(drain, progress)
    return Simulation(
        policy=name,
        trace=up.source,
        seed=scenario.seed,
        seconds=float(run.now),
        columns=Columns(
            rows.view(np.ndarray), run.world.rules[0].deadline_s, tuple(o.name for o in evaluation.table)
        ),
    )


def score_fleet(
    scenario: Scenario,
    evaluation: Evaluation,
    up: Trace,
    down: Trace,
    *,
    policy: Policy | None = None,
    progress: Progress | None = None,
) -> Score:
    """The same run, of which only totals are kept: memory does not grow with the requests.

    Args and errors are those of `run_fleet`; quantiles of latency are right to 0.1%.
    """
    _fits(scenario, 0)
    run, _ = _prepare(scenario, evaluation, up, down, policy)
    found: Totals = totals()

    def drain(world: Any) -> None:
        count_up(world, found)

    run.drive(drain, progress)
    return score_of(found)


def _total(scenario: Scenario) -> int:
    recorded = None
    if not isinstance(scenario.work.arrivals, str):
        recorded = read_arrivals(scenario.work.arrivals)
    return requests_of(scenario.work, recorded) * scenario.device.count


def _fits(scenario: Scenario, rows_bytes: int) -> None:
    """Refuse a run that would not fit.

    Raises:
        SimulationError: with what it needs, what there is and what to do.
    """
    window = (3 * 4 + 2) * scenario.link.count * QUANTITIES
    state = DEVICE.itemsize + QUANTITIES * QUANTITY.itemsize + window + 3 * SLOT.itemsize + 6 * ENDED.itemsize
    need = scenario.device.count * (state + _AHEAD) + rows_bytes
    there = psutil.virtual_memory().available
    if need > 0.9 * there:
        advice = "simulate fewer devices"
        if rows_bytes > 0.5 * need:
            advice = "simulate fewer requests, or keep totals only (`score_fleet`)"
        raise SimulationError(
            f"this run needs about {need / 2**30:.1f} GiB of memory, {there / 2**30:.1f} GiB are free; "
            f"{advice}"
        )


def _say_how(scenario: Scenario) -> None:
    """Say beforehand where time goes that nobody expects."""
    if not COMPILES and scenario.work.requests * scenario.device.count > _LONG:
        log.warning("no numba (pip install 'splitedge[sim]'): fleet mode runs hundreds of times slower")
    elif COMPILES and not is_kept():
        log.warning("fleet mode compiles its loops, once for this version; that takes about a minute")


def _prepare(
    scenario: Scenario, evaluation: Evaluation, up: Trace, down: Trace, policy: Policy | None
) -> tuple[Run, str]:
    _say_how(scenario)
    Answers(evaluation)  # its checks
    options = scaled(evaluation.table, scenario.device.slower, scenario.cloud.slower)
    power = power_profile(scenario.device.power)
    name = scenario.policy if policy is None else policy.name
    ready = policy_for(scenario.policy if policy is None else policy, evaluation)
    rehearse(ready, options)
    recorded: Any = None
    if not isinstance(scenario.work.arrivals, str):
        recorded = read_arrivals(scenario.work.arrivals)
    table = table_of(options, evaluation)
    rules = rules_of(scenario, power, table, up, options)
    fleet = Fleet(ready, options, power, evaluation.features)
    if fleet.keeps and scenario.work.arrivals == "poisson" and scenario.device.count > 1:
        raise SimulationError(
            f"policy '{name}' learns or keeps something of each device, so fleet mode asks it about all "
            "devices in step, which Poisson arrivals are not; take work.arrivals = 'fixed', or exact mode "
            "(mode = 'exact')"
        )
    requests = Requests(scenario, recorded, len(evaluation.labels))
    world = world_of(scenario, rules, table, up, down)
    return Run(world, requests, fleet, options, scenario.work.rate_hz), name
