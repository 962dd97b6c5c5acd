"""When each simulated device asks, and which row of the evaluation each request is."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import numpy.typing as npt

from splitedge.errors import ConfigError, RecordError
from splitedge.records import read_records
from splitedge.sim.curves import Floats
from splitedge.sim.scenario import Scenario, WorkPart

Rows = npt.NDArray[np.int64]

MAX_BYTES = 64 * 1024 * 1024

#: Purposes of random numbers: each device draws each from a stream of its own, so that a change of one
#: (another policy, a longer run) leaves the others as they are.
ARRIVALS, ROWS, EDGE, CLOUD, SHELL = range(5)


def stream(seed: int, device: int, purpose: int) -> np.random.Generator:
    """The random numbers of one purpose of one device."""
    return np.random.default_rng([seed, device, purpose])


def read_arrivals(path: Path) -> Floats:
    """Recorded arrivals in seconds, never falling, shape (n,).

    Takes a file of records (`.jsonl` or `.npz`), whose first request then arrives at 0, or text with one
    number of seconds a line, taken as they are: seconds since the run began.

    Raises:
        RecordError: missing, empty, too large, not sorted, or a line that is no number of seconds >= 0.
    """
    if path.suffix in (".jsonl", ".npz"):
        times = np.sort(read_records(path)["t_s"].astype(np.float64))
        if not times.size:
            raise RecordError(f"{path}: no request is recorded in it")
        since: Floats = times - times[0]
        return since
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecordError(f"{path}: more than {MAX_BYTES >> 20} MiB; no file of arrivals is that large")
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise RecordError(
            f"{path}: can not be read as arrivals, one number of seconds a line: {error}"
        ) from error
    found: list[float] = []
    for number, line in enumerate(lines, 1):
        if line.strip():
            found.append(_second(path, number, line.strip(), found[-1] if found else 0.0))
    if not found:
        raise RecordError(f"{path}: the file is empty; give one arrival in seconds a line")
    return np.array(found)


def _second(path: Path, number: int, text: str, before: float) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0.0):
        raise RecordError(f"{path}:{number}: '{text[:40]}' is no arrival; give seconds, 0 or more")
    if value < before:
        raise RecordError(f"{path}:{number}: {value:g} s comes after {before:g} s; arrivals must not fall")
    return value


def arrivals(scenario: Scenario, device: int, recorded: Floats | None = None) -> Floats:
    """When one device asks: seconds, never falling, shape (requests,).

    A fixed rate begins at `work.start_s`, the devices of a fleet evenly out of step. Recorded arrivals are
    the same for every device and come from `recorded`, `work.requests` of them at most.

    Raises:
        ConfigError: recorded arrivals were not read.
    """
    work, count = scenario.work, scenario.device.count
    if isinstance(work.arrivals, Path):
        if recorded is None:
            raise ConfigError(f"work.arrivals is the file {work.arrivals}; read it with `read_arrivals`")
        return work.start_s + recorded[: work.requests]
    if work.arrivals == "poisson":
        gaps = stream(scenario.seed, device, ARRIVALS).exponential(1.0 / work.rate_hz, work.requests)
        return work.start_s + np.cumsum(gaps)
    phase = device / count
    return work.start_s + (np.arange(work.requests, dtype=np.float64) + phase) / work.rate_hz


def requests_of(work: WorkPart, recorded: Floats | None) -> int:
    """How many requests each device makes."""
    return work.requests if recorded is None else min(work.requests, len(recorded))


def rows(scenario: Scenario, device: int, requests: int, there_are: int) -> Rows:
    """Which row of the evaluation each request of a device is, shape (requests,).

    Drawn without replacement until all `there_are` rows were drawn, then again in another order.
    """
    draw = stream(scenario.seed, device, ROWS)
    decks = [draw.permutation(there_are) for _ in range(-(-requests // there_are))]
    return np.concatenate(decks)[:requests].astype(np.int64)


def start_s(scenario: Scenario, device: int, period_s: float) -> float:
    """Where in the trace a device begins.

    Devices that do not share a cell are spread evenly over a trace that loops: otherwise all of them would
    see the same fades at the same time.
    """
    channel = scenario.channel
    if scenario.device.shared_cell or not channel.loop:
        return channel.start_s
    return (channel.start_s + period_s * device / scenario.device.count) % period_s
