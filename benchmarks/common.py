"""What every benchmark shares: arguments, the machine, figures with goals, a table and a JSON file.

A benchmark prints what it measured on, absolute figures, and ratios beside them. With `--json FILE` it
writes `{"machine": {...}, "figures": [{"name", "value", "unit", "goal", "met"}]}`; `goal` and `met` are
null where no goal was set.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from rich.console import Console
from rich.table import Table

from splitedge.machine_code import runs_as

console = Console()


@dataclass(frozen=True, slots=True)
class Figure:
    """One measured number.

    Attributes:
        name: what was measured, unique within the benchmark.
        value: in `unit`; None where it could not be measured.
        unit: `s`, `1/s`, `B`, `ratio` and the like.
        goal: what was to be reached, None where no goal was set.
        met: whether it was, None where there is no goal.
    """

    name: str
    value: float | None
    unit: str
    goal: float | None = None
    met: bool | None = None


def figure(
    name: str,
    value: float | None,
    unit: str,
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> Figure:
    """A figure with a goal from above or below, or none. What was not measured meets no goal."""
    value = None if value is None else float(value)  # NumPy's numbers have no word in JSON
    goal = at_most if at_most is not None else at_least
    if goal is None:
        return Figure(name, value, unit)
    met = value is not None and (value <= goal if at_most is not None else value >= goal)
    return Figure(name, value, unit, goal, met)


@dataclass
class Report:
    """The figures of one run, and how to show them."""

    title: str
    figures: list[Figure] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(
        self,
        name: str,
        value: float | None,
        unit: str,
        *,
        at_most: float | None = None,
        at_least: float | None = None,
    ) -> None:
        """Add a figure; see `figure`."""
        if any(other.name == name for other in self.figures):
            raise ValueError(f"two figures of the name '{name}'")
        self.figures.append(figure(name, value, unit, at_most=at_most, at_least=at_least))

    def show_goals(self) -> None:
        """Print the figures that have a goal."""
        goals = [f for f in self.figures if f.goal is not None]
        if not goals:
            return
        table = Table(title="goals", title_justify="left")
        for name in ("figure", "value", "goal", "met"):
            table.add_column(name, justify="left" if name == "figure" else "right")
        for f in goals:
            met = "[green]yes[/green]" if f.met else "[red]no[/red]"
            table.add_row(f.name, readable(f.value, f.unit), readable(f.goal, f.unit), met)
        console.print(table)

    def finish(self, path: Path | None) -> None:
        """Print goals and notes; write JSON where asked to."""
        self.show_goals()
        for note in self.notes:
            console.print(note, highlight=False)
        if path is not None:
            content = {"machine": machine(), "figures": [asdict(f) for f in self.figures]}
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def arguments(description: str, argv: Sequence[str] | None = None) -> argparse.Namespace:
    """`--quick` and `--json FILE`, the same for every benchmark."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="under 45 s on 2 cores")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    return parser.parse_args(argv)


def machine() -> dict[str, str | int | float | None]:
    """What was measured on."""
    import psutil

    packages = ("splitedge", "torch", "numpy", "pyzmq", "grpcio", "litserve", "aiohttp")
    return {
        "cpu": _cpu(),
        "cores": os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "load_1min": round(os.getloadavg()[0], 2),
        "code": runs_as(),
        **{name: _version(name) for name in packages},
    }


def show_machine(title: str) -> None:
    """Print the title and what is measured on."""
    m = machine()
    console.rule(title)
    console.print(
        f"{m['cpu']}, {m['cores']} cores, {m['memory_gib']} GiB, {m['system']}, Python {m['python']}, "
        f"load {m['load_1min']} (busy with other work above about 0.5), splitedge as {m['code']}",
        highlight=False,
    )


def readable(value: float | None, unit: str) -> str:
    """A number for people: seconds as ms or µs."""
    if value is None:
        return "not measured"
    if unit == "s":
        return f"{value * 1e3:.2f} ms" if value >= 1e-3 else f"{value * 1e6:.0f} µs"
    if unit == "ratio":
        return f"{value:.2f}x"
    return f"{value:,.4g} {unit}"


def quantile(values: Sequence[float], q: float) -> float:
    """The q-quantile (nearest rank) of a sample that is not empty."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))]


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
