"""What `splitedge simulate` does with a sweep: read it from a file and flags, run it, save and show it."""

from __future__ import annotations

import csv
import json
import math
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as Remaining
from rich.table import Table

from splitedge.errors import ConfigError
from splitedge.sim.grid import ORACLE, Sweep, SweepTable, find_traces, full_key, read_sweep
from splitedge.sim.intervals import Interval, means
from splitedge.sim.report import write_report
from splitedge.sim.scenario import Scenario
from splitedge.sim.sweep import Column, SweepResult, run_sweep

out = Console()
err = Console(stderr=True)

#: Failed runs named on the screen; the table names all.
MOST_NAMED = 10


def parse_axes(texts: Sequence[str]) -> dict[str, list[object]]:
    """Axes from `--sweep KEY=A,B`; values that hold a comma are parted by `;`. Naming a key again adds to it.

    Raises:
        ConfigError: a text is none, or the key unknown.
    """
    axes: dict[str, list[object]] = {}
    for text in texts:
        key, equals, values = text.partition("=")
        found = [part.strip() for part in values.split(";" if ";" in values else ",") if part.strip()]
        if not equals or not found:
            raise ConfigError(f"--sweep '{text}': write a key and its values, as policy=deadline,latency")
        axes.setdefault(full_key(key.strip()), []).extend(found)
    return axes


@dataclass(frozen=True, slots=True)
class Asked:
    """A sweep as a file and flags ask for it; the scenario is still to come."""

    axes: dict[str, list[object]]
    seeds: int
    name: str
    executor: str
    oracle: bool | None

    @property
    def first_trace(self) -> str | None:
        """A trace for a scenario that names none of its own."""
        traces = self.axes.get("channel.up")
        return str(traces[0]) if traces else None


def asked(
    file: Path | None,
    *,
    axes: dict[str, list[object]],
    traces: Sequence[str],
    seeds: int | None,
    name: str | None,
    executor: str | None,
    oracle: bool | None,
) -> Asked | None:
    """The sweep that a scenario's file and the flags ask for, the flags first; None where neither does.

    Raises:
        ConfigError: an axis is no key of a scenario, or a pattern names no trace.
    """
    table, found = read_sweep(file) if file is not None else (None, {})
    given = {**found, **axes}
    if traces:
        given["channel.up"] = list(find_traces(traces))
    if table is None and not given and seeds is None:
        return None
    table = table or SweepTable()
    return Asked(
        given,
        table.seeds if seeds is None else seeds,
        table.id if name is None else name,
        table.executor if executor is None else executor,
        table.oracle if oracle is None else oracle,
    )


def sweep(scenario: Scenario, asked: Asked, to: Path | None, report: Path | None, as_json: bool) -> None:
    """Run it, write what was asked for, show the means. Exits with 1 if a run failed.

    Raises:
        SplitedgeError: nothing could be run, or the results can not be written.
    """
    wanted = Sweep(scenario, asked.axes, asked.seeds, asked.name, asked.oracle)
    with progress_bar("sweep") as progress:
        result = run_sweep(wanted, asked.executor, progress=progress)
    name_failures(result)
    done = len(result.failed) < len(result.runs)
    files = list(save_table(result, to)) if to is not None else []
    if report is not None and done:
        files.append(write_report(result, report, f"Sweep '{asked.name}'"))
    if as_json:
        rows = [dict(zip(result.columns(), row, strict=True)) for row in _rows(result.columns())]
        told = {"runs": len(result.runs), "failed": len(result.failed), "rows": rows}
        sys.stdout.write(json.dumps({**told, "files": [str(path) for path in files]}) + "\n")
    elif done:
        out.print(score_table(result))
        for path in files:
            out.print(f"wrote {path}", highlight=False, soft_wrap=True)
    if result.failed:
        raise typer.Exit(1)


@contextmanager
def progress_bar(title: str) -> Iterator[_Bar]:
    """A bar with the time left on a terminal, nothing elsewhere."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    with Progress(
        *columns,
        TimeElapsedColumn(),
        TextColumn("left"),
        Remaining(),
        console=err,
        transient=True,
        disable=not err.is_terminal,
    ) as progress:
        yield _Bar(progress, title)


class _Bar:
    def __init__(self, progress: Progress, title: str) -> None:
        self._progress = progress
        self._task = progress.add_task(escape(title), total=None)

    def __call__(self, done: int, of: int) -> None:
        self._progress.update(self._task, completed=done, total=of)


def save_table(result: SweepResult, folder: Path) -> tuple[Path, Path]:
    """Write the table as `sweep.csv` (an empty cell is NaN) and, as arrays, `sweep.npz`.

    Raises:
        ConfigError: they can not be written.
    """
    columns = result.columns()
    files = folder / "sweep.csv", folder / "sweep.npz"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with files[0].open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(columns)
            writer.writerows(_rows(columns))
        with files[1].open("wb") as archive:
            np.savez_compressed(archive, allow_pickle=False, **columns)
    except OSError as error:
        raise ConfigError(f"{folder}: can not be written: {error.strerror or error}") from error
    return files


def _rows(columns: dict[str, Column]) -> Iterator[list[object]]:
    for row in zip(*(column.tolist() for column in columns.values()), strict=True):
        yield ["" if isinstance(value, float) and math.isnan(value) else value for value in row]


def score_table(result: SweepResult) -> Table:
    """The policies' means for a terminal."""
    shown = means(result)
    table = Table(title=f"{len(result.runs)} runs, means; ± to 95%", title_justify="left")
    head = ("policy", "right in time, %", "regret", "in time", "right", "kB up", "mJ")
    for name in head:
        table.add_column(name, justify="left" if name == "policy" else "right", no_wrap=name != "policy")
    regret = shown.values.get("regret")
    for i, policy in enumerate(shown.policies):
        value = {name: intervals[i] for name, intervals in shown.values.items()}
        table.add_row(
            escape(policy),
            _percent(value["correct_in_time"]),
            "" if regret is None or policy == ORACLE else _percent(regret[i]),
            f"{100 * value['met'].mean:.1f}",
            f"{100 * value['accuracy'].mean:.1f}",
            f"{value['bytes_up'].mean / 1e3:.3g}",
            f"{1e3 * value['joules'].mean:.3g}",
        )
    return table


def _percent(value: Interval) -> str:
    """The mean and the larger half of its interval."""
    half = max(value.high - value.mean, value.mean - value.low)
    return f"{100 * value.mean:.1f} ± {100 * half:.1f}"


def name_failures(result: SweepResult) -> None:
    """Say on stderr which runs failed, and why."""
    failed = result.failed
    for run, error in failed[:MOST_NAMED]:
        err.print(f"run {run.index} failed: {run}: {error}", markup=False, highlight=False, soft_wrap=True)
    if len(failed) > MOST_NAMED:
        err.print(f"and {len(failed) - MOST_NAMED} more runs failed; the column 'error' names them")
