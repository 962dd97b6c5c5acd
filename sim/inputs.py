"""The files that a simulation reads, each read once by a process however many runs need it."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

from splitedge.errors import ConfigError
from splitedge.evaluation import Evaluation
from splitedge.sim.formats import read_trace
from splitedge.sim.oracle import upper_bound
from splitedge.sim.scenario import Scenario
from splitedge.sim.simulate import EVALUATION, read_evaluation, simulate
from splitedge.sim.simulation import Simulation
from splitedge.sim.traces import Trace

#: Files of each kind kept in memory, the latest used.
KEPT = 64


def evaluation_of(path: Path) -> Evaluation:
    """An evaluation with its option table: a file, or `evaluation.npz` in a bundle's directory.

    It is shared: do not change it.

    Raises:
        RecordError: it can not be read.
        ConfigError: it holds no option table.
    """
    file = path / EVALUATION if path.is_dir() else path
    return _evaluation(path, _stamp(file))


def trace_of(path: Path) -> Trace:
    """A channel trace. It is shared: do not change it.

    Raises:
        TraceError: it can not be read.
    """
    return _trace(path, _stamp(path))


def _stamp(path: Path) -> tuple[int, int]:
    """What changes when a file is written anew."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0  # reading it will say what is wrong
    return stat.st_mtime_ns, stat.st_size


@lru_cache(KEPT)
def _evaluation(path: Path, stamp: tuple[int, int]) -> Evaluation:
    found = read_evaluation(path)
    if not found.table:
        raise ConfigError(
            f"{path} holds no option table: an older version wrote it; run Deployment.evaluate again"
        )
    return found


@lru_cache(KEPT)
def _trace(path: Path, stamp: tuple[int, int]) -> Trace:
    return read_trace(path)


def simulate_files(scenario: Scenario) -> Simulation:
    """Run a scenario on the files that it names.

    Raises:
        SplitedgeError: a file can not be read, or what it says can not be simulated.
    """
    evaluation, up, down = _files(scenario)
    return simulate(scenario, evaluation=evaluation, up=up, down=down)


def bound_files(scenario: Scenario) -> float:
    """`oracle.upper_bound` of a scenario on the files that it names."""
    return upper_bound(scenario, *_files(scenario))


def _files(scenario: Scenario) -> tuple[Evaluation, Trace, Trace]:
    up = trace_of(scenario.channel.up)
    down = up if scenario.channel.down is None else trace_of(scenario.channel.down)
    return evaluation_of(scenario.deployment), up, down
