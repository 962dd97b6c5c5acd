"""The verb `splitedge simulate`, found through the entry-point group `splitedge.commands`."""

from __future__ import annotations

import json
import math
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from splitedge.errors import ConfigError
from splitedge.validating import read_toml

if TYPE_CHECKING:
    from splitedge.sim.scenario import Scenario
    from splitedge.sim.simulation import Simulation

out = Console()
err = Console(stderr=True)

#: A run shorter than this shows no bar.
QUIET_S = 2.0

_FILES = ("deployment", "channel.up", "channel.down", "work.arrivals")
_NO_FILES = ("fixed", "poisson")


class Mode(StrEnum):
    """How a run is computed."""

    EXACT = "exact"
    FLEET = "fleet"


def simulate(
    scenario: Annotated[Path | None, typer.Argument(help="Scenario as TOML; flags go over it.")] = None,
    deployment: Annotated[
        Path | None, typer.Option(help="What Deployment.evaluate(...).save wrote, or a bundle that holds it.")
    ] = None,
    up: Annotated[Path | None, typer.Option(help="Trace of the uplink, or of both ways.")] = None,
    down: Annotated[Path | None, typer.Option(help="Trace of the downlink.")] = None,
    rtt_ms: Annotated[float | None, typer.Option(help="RTT without queueing; default: the trace's.")] = None,
    policy: Annotated[str | None, typer.Option(help="name or name:argument.")] = None,
    deadline_ms: Annotated[float | None, typer.Option(help="Time each request may take.")] = None,
    rate: Annotated[float | None, typer.Option(help="Requests a second of each device.")] = None,
    requests: Annotated[int | None, typer.Option(help="Requests of each device.")] = None,
    devices: Annotated[int | None, typer.Option(help="Devices that share the cloud.")] = None,
    slower: Annotated[float | None, typer.Option(help="Device seconds over measured ones.")] = None,
    power: Annotated[str | None, typer.Option(help="Power profile that joules are modelled with.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same rows.")] = None,
    mode: Annotated[Mode | None, typer.Option(help="exact runs the daemon's engine, fleet arrays.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any key of a scenario: cloud.executors=2. Repeatable."),
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Directory for simulation.csv and simulation.npz.")
    ] = None,
    report: Annotated[
        Path | None, typer.Option(help="Directory for a report in one HTML file, and its pictures.")
    ] = None,
    sweep: Annotated[
        list[str] | None,
        typer.Option(help="An axis of a sweep: policy=deadline,latency, or any key. Repeatable."),
    ] = None,
    traces: Annotated[
        list[str] | None, typer.Option(help="Traces to sweep over, a pattern in quotes. Repeatable.")
    ] = None,
    seeds: Annotated[int | None, typer.Option(help="Repetitions of each run of a sweep.", min=1)] = None,
    sweep_id: Annotated[str | None, typer.Option(help="Name of the sweep; its seeds derive from it.")] = None,
    executor: Annotated[
        str | None, typer.Option(help="Where a sweep runs: local, joblib:N, dask[:ADDRESS], ray[:ADDRESS].")
    ] = None,
    oracle: Annotated[
        bool | None, typer.Option(help="Run the oracle beside a sweep's policies; default: in exact mode.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The score as JSON on stdout.")] = False,
) -> None:
    """Simulate a deployment over a recorded channel, with the engine and the policy that a daemon runs.

    With --sweep, --traces or --seeds, or a table [sweep] in the scenario: all combinations, in one table.

    [bold]Example[/bold]: splitedge simulate --deployment evaluation.npz --up lte.csv --policy deadline
    splitedge simulate scenario.toml --sweep policy=deadline,latency --traces 'lte/*.csv' --out results
    """
    from splitedge.sim import sweep_command
    from splitedge.sim.save import save
    from splitedge.sim.simulate import simulate as run

    flags: dict[str, object | None] = {
        "deployment": deployment,
        "channel.up": up,
        "channel.down": down,
        "channel.rtt_ms": rtt_ms,
        "policy": policy,
        "work.deadline_ms": deadline_ms,
        "work.rate_hz": rate,
        "work.requests": requests,
        "device.count": devices,
        "device.slower": slower,
        "device.power": power,
        "seed": seed,
        "mode": None if mode is None else mode.value,
    }
    asked = sweep_command.asked(
        scenario,
        axes=sweep_command.parse_axes(sweep or []),
        traces=traces or [],
        seeds=seeds,
        name=sweep_id,
        executor=executor,
        oracle=oracle,
    )
    if asked is not None and up is None:
        flags["channel.up"] = asked.first_trace
    wanted = read_scenario(scenario, {**flags, **parse_sets(sets or [])})
    if asked is not None:
        sweep_command.sweep(wanted, asked, to, report, as_json)
        return
    begun = time.perf_counter()
    with _bar() as progress:
        found = run(wanted, progress=progress)
    seconds = time.perf_counter() - begun
    files = save(found, to) if to is not None else ()
    if report is not None:
        from splitedge.sim.report import single, write_report

        files = (*files, write_report(single(wanted, found), report, f"{found.policy}, simulated"))
    if as_json:
        score = {name: _json(value) for name, value in asdict(found.score()).items()}
        about = {"policy": found.policy, "trace": found.trace, "seed": found.seed, "seconds": found.seconds}
        idle = {"idle_joules": idle_joules(wanted, found)}
        sys.stdout.write(json.dumps({**about, **score, **idle, "files": [str(f) for f in files]}) + "\n")
        return
    out.print(score_table(wanted, found))
    rate_hz = len(found) / max(seconds, 1e-9)
    err.print(f"{len(found):,} requests in {seconds:.1f} s ({rate_hz:,.0f} a second)", highlight=False)
    for file in files:
        out.print(f"wrote {file}", highlight=False, soft_wrap=True)


def read_scenario(file: Path | None, changes: dict[str, object | None]) -> Scenario:
    """A scenario from a file, `changes` (by keys with dots; None for none) over it.

    Paths in the file are of its directory, those among the changes of the working directory.

    Raises:
        ConfigError: the file can not be read, a key is unknown, missing or out of range.
    """
    from splitedge.sim.scenario import Scenario

    data: dict[str, Any] = {} if file is None else read_toml(file)
    data.pop("sweep", None)  # `grid.read_sweep` reads it
    for key, value in changes.items():
        if value is not None:
            *tables, name = key.split(".")
            table = data
            for one in tables:
                table = table.setdefault(one, {})
                if not isinstance(table, dict):
                    raise ConfigError(f"'{key}': '{one}' is no table of a scenario")
            is_file = key in _FILES and value not in _NO_FILES
            table[name] = Path(str(value)).absolute() if is_file else value
    for key, flag in (("deployment", "--deployment"), ("channel", "--up")):
        if key not in data:
            raise ConfigError(f"a scenario needs '{key}'; give a file of one, or {flag}")
    return Scenario.parse(data, file if file is not None else Path("scenario"))


def parse_sets(texts: list[str]) -> dict[str, object | None]:
    """Values from `KEY=VALUE`: as TOML has them, else as text.

    Raises:
        ConfigError: a text is none.
    """
    found: dict[str, object | None] = {}
    for text in texts:
        key, equals, value = text.partition("=")
        if not equals or not key.strip():
            raise ConfigError(f"--set '{text}': write KEY=VALUE, as in --set cloud.executors=2")
        try:
            found[key.strip()] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[key.strip()] = value.strip()
    return found


def idle_joules(scenario: Scenario, simulation: Simulation) -> float:
    """Joules that a device would have spent in the run's time anyway; in no request's joules."""
    from splitedge.power import power_profile

    return power_profile(scenario.device.power).idle_joules(simulation.seconds)


def score_table(scenario: Scenario, simulation: Simulation) -> Table:
    """What a person wants to know of a run."""
    score = simulation.score()
    title = f"{simulation.policy} over {Path(simulation.trace).name}, {simulation.seconds:,.0f} s"
    table = Table(title=title, title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    deadline = scenario.work.deadline_ms
    late = "" if deadline is None else f" within {deadline:g} ms"
    rows = {
        "requests": f"{score.requests:,}",
        f"right{late}": f"{score.correct_in_time:.1%}",
        "right": f"{score.accuracy:.1%}",
        f"answered{late}": f"{score.met:.1%}",
        "latency p50 / p95 / p99": " / ".join(_ms(s) for s in (score.p50_s, score.p95_s, score.p99_s)),
        "bytes up / down a request": f"{score.bytes_up:,.0f} / {score.bytes_down:,.0f}",
        "joules a request (modelled)": f"{score.joules:.4g}",
        "joules idle, a device": f"{idle_joules(scenario, simulation):,.4g}",
        "routes": "\n".join(f"{count:,} {route}" for route, count in score.routes.items()),
    }
    for name, value in rows.items():
        table.add_row(name, value)
    return table


@contextmanager
def _bar() -> Iterator[Callable[[float], None]]:
    """A bar with the time left, on a terminal and once a run has taken `QUIET_S` seconds."""
    begun = time.perf_counter()
    with Progress(console=err, transient=True, disable=not err.is_terminal) as bar:
        task = bar.add_task("simulating", total=1.0, visible=False)

        def told(share: float) -> None:
            bar.update(task, completed=share, visible=time.perf_counter() - begun >= QUIET_S)

        yield told


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1e3 * seconds:.1f} ms"


def _json(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
