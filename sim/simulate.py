"""One simulated run from a scenario: reads the files it names, checks everything, dispatches on its mode."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from splitedge.errors import ConfigError
from splitedge.evaluation import Evaluation
from splitedge.policy import Policy
from splitedge.sim.channel import read_traces
from splitedge.sim.grid import is_oracle
from splitedge.sim.scenario import Scenario
from splitedge.sim.simulation import Simulation
from splitedge.sim.traces import Trace

#: Name of the evaluation in a bundle's directory.
EVALUATION = "evaluation.npz"


def simulate(
    scenario: Scenario,
    *,
    evaluation: Evaluation | None = None,
    up: Trace | None = None,
    down: Trace | None = None,
    policy: Policy | None = None,
    progress: Callable[[float], None] | None = None,
) -> Simulation:
    """Simulate one scenario. What is wrong with it is said before a long run starts.

    Args:
        scenario: what to simulate.
        evaluation: of the deployment; None reads `scenario.deployment`.
        up, down: traces; None reads those of `scenario.channel`. With `up` alone it serves both ways.
        policy: in place of the scenario's; a copy of it decides.
        progress: called with the finished share of the run, now and then.

    Raises:
        ConfigError: a setting is wrong or a file is missing.
        RecordError: the evaluation or the recorded arrivals can not be read.
        TraceError: a trace can not be read or lacks its direction.
        PolicyError: the policy can not work with this deployment.
        SimulationError: the policy fails or chooses an option that does not exist, or the run is too large.
    """
    evaluation = evaluation if evaluation is not None else read_evaluation(scenario.deployment)
    if up is None:
        up, recorded_down = read_traces(scenario.channel)
        down = down if down is not None else recorded_down
    down = down if down is not None else up
    if scenario.mode == "fleet":
        if policy is None and is_oracle(scenario.policy):
            raise ConfigError("the policy 'oracle' runs in exact mode only: mode = 'exact'")
        from splitedge.sim.fleet import run_fleet

        return run_fleet(scenario, evaluation, up, down, policy=policy, progress=progress)
    from splitedge.sim.exact import run_exact

    if policy is None and is_oracle(scenario.policy):
        from splitedge.sim.oracle import oracle_policies

        oracle = oracle_policies(scenario, evaluation, up, down)
        return run_exact(scenario, evaluation, up, down, policy=oracle, progress=progress)
    return run_exact(scenario, evaluation, up, down, policy=policy, progress=progress)


def read_evaluation(path: Path) -> Evaluation:
    """The evaluation in a file, or of a bundle's directory.

    Raises:
        ConfigError: a directory without one.
        RecordError: no evaluation that can be read.
    """
    if not path.is_dir():
        return Evaluation.load(path)
    if not (path / EVALUATION).is_file():
        raise ConfigError(
            f"{path} holds no {EVALUATION}: what every option answers to real rows; write it with "
            f"`deployment.evaluate(data).save('{path / EVALUATION}')`"
        )
    return Evaluation.load(path / EVALUATION)
