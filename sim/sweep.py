"""Simulate many scenarios, on one core or on a cluster, and put what they come to in one table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from splitedge.errors import ConfigError
from splitedge.sim.digest import Digest, digest
from splitedge.sim.executors import split_executor, spread
from splitedge.sim.grid import ORACLE, Run, Sweep, column, is_oracle
from splitedge.sim.inputs import bound_files, evaluation_of, simulate_files
from splitedge.sim.policies import policy_for
from splitedge.sim.scenario import Scenario
from splitedge.sim.simulation import Simulation

Column = npt.NDArray[np.generic]

#: Numbers of a `Score` in the table, in order.
SCORES = (
    "correct_in_time",
    "accuracy",
    "met",
    "p50_s",
    "p95_s",
    "p99_s",
    "bytes_up",
    "bytes_down",
    "joules",
)


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a run: a digest, or an error in words."""

    digest: Digest | None = None
    error: str = ""
    bound: float = math.nan


@dataclass(frozen=True, eq=False)
class SweepResult:
    """All runs of a sweep with what became of them, in the same order."""

    runs: tuple[Run, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def failed(self) -> list[tuple[Run, str]]:
        """Runs without a result, and why."""
        pairs = zip(self.runs, self.outcomes, strict=True)
        return [(run, outcome.error) for run, outcome in pairs if outcome.error]

    def regret(self) -> npt.NDArray[np.float64]:
        """Share of requests that the oracle answered right in time and this run did not, (runs,); NaN where
        either has no result. The oracle looks one request ahead: a policy may beat it by a little.
        """
        return self._regret(lambda oracle: oracle.digest.score.correct_in_time if oracle.digest else math.nan)

    def bound_regret(self) -> npt.NDArray[np.float64]:
        """The same against a bound that no schedule can beat, and that maybe none can reach, (runs,)."""
        return self._regret(lambda oracle: oracle.bound)

    def _regret(self, best: Callable[[Outcome], float]) -> npt.NDArray[np.float64]:
        pairs = list(zip(self.runs, self.outcomes, strict=True))
        oracles = {run.setting: best(outcome) for run, outcome in pairs if run.scenario.policy == ORACLE}
        regrets = [
            oracles.get(run.setting, math.nan) - outcome.digest.score.correct_in_time
            if outcome.digest is not None
            else math.nan
            for run, outcome in pairs
        ]
        return np.array(regrets, np.float64)

    def columns(self) -> dict[str, Column]:
        """The table: one row a run, one array of shape (runs,) a column, of numbers or of text.

        Any writer of Parquet takes it as it is: `pyarrow.table(columns)`, `polars.DataFrame(columns)`,
        `pandas.DataFrame(columns)`. Of a run that failed `error` says why; its numbers are NaN, its counts 0.
        """
        scores = [None if outcome.digest is None else outcome.digest.score for outcome in self.outcomes]
        table: dict[str, Column] = {"run": np.array([run.index for run in self.runs], np.int64)}
        for key in self.runs[0].point if self.runs else ():
            table[column(key)] = np.array([run.point[key] for run in self.runs], np.str_)
        table["repetition"] = np.array([run.repetition for run in self.runs], np.int64)
        table["seed"] = np.array([run.scenario.seed for run in self.runs], np.int64)
        table["requests"] = np.array([0 if score is None else score.requests for score in scores], np.int64)
        for name in SCORES:
            values = [math.nan if score is None else getattr(score, name) for score in scores]
            table[name] = np.array(values, np.float64)
        table["regret"] = self.regret()
        table["regret_to_bound"] = self.bound_regret()
        for route in sorted({route for score in scores if score for route in score.routes}):
            counts = [0 if score is None else score.routes.get(route, 0) for score in scores]
            table[f"answers_{route}"] = np.array(counts, np.int64)
        table["error"] = np.array([outcome.error for outcome in self.outcomes], np.str_)
        return table


def run_sweep(
    sweep: Sweep,
    executor: str = "local",
    *,
    simulate: Callable[[Scenario], Simulation] = simulate_files,
    bound: Callable[[Scenario], float] = bound_files,
    progress: Callable[[int, int], None] = lambda done, of: None,
) -> SweepResult:
    """Run all of a sweep. A run that fails leaves its error in its place, the others go on.

    Args:
        sweep: what to run.
        executor: where, see `splitedge.sim.executors.spread`; the result is the same everywhere.
        simulate: runs one scenario.
        bound: share of its requests that no schedule can answer right in time more of.
        progress: told how many runs have ended, of how many.

    Raises:
        ConfigError: an axis, a policy, the deployment or the executor is wrong; nothing was run then.
        MissingExtra: the executor is not installed.
    """
    runs = sweep.runs()
    split_executor(executor)
    check(runs)
    attempt = partial(_attempt, simulate, bound)
    outcomes = [Outcome(error="not run") for _ in runs]
    done = 0
    progress(0, len(runs))
    try:
        for index, outcome in spread(executor, attempt, [run.scenario for run in runs]):
            outcomes[index] = outcome
            done += 1
            progress(done, len(runs))
    except ConfigError:
        raise
    except (Exception, KeyboardInterrupt) as error:  # what is done is worth keeping
        trouble = f"not run: the executor stopped ({type(error).__name__}: {error})"
        outcomes = [replace(o, error=trouble) if o.error == "not run" else o for o in outcomes]
    return SweepResult(runs, tuple(outcomes))


def check(runs: Sequence[Run]) -> None:
    """Find what would make every run of a policy or a trace fail, before a long sweep starts.

    Raises:
        SplitedgeError: a deployment can not be read, a policy does not fit it, a trace is missing.
    """
    for deployment, policy in dict.fromkeys((r.scenario.deployment, r.scenario.policy) for r in runs):
        evaluation = evaluation_of(deployment)
        if not is_oracle(policy):
            policy_for(policy, evaluation)
    for path in dict.fromkeys(run.scenario.channel.up for run in runs):
        if not path.is_file():
            raise ConfigError(f"{path}: no such trace")


def _attempt(
    simulate: Callable[[Scenario], Simulation],
    bound: Callable[[Scenario], float],
    scenario: Scenario,
) -> Outcome:
    try:
        run = simulate(scenario)
        most = bound(scenario) if scenario.policy == ORACLE else math.nan
        return Outcome(digest(run), bound=most)
    except Exception as error:  # one run must not take the others with it
        return Outcome(error=" ".join(f"{type(error).__name__}: {error}".split()))
