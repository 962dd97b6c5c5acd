"""Fleet mode beside exact mode: the same scenarios in both, and by how much their results differ.

    python benchmarks/modes.py

Each recorded uplink of traces/CORE.txt in ../shared/data (or SPLITEDGE_DATA; synthetic LTE without), with
`deadline` and `confidence`: four devices, 100 requests each within 150 ms, a made-up deployment with a local
model, an exit and a split. The tolerances are those of docs/simulator-fleet.md. No figure has a time in it,
so that it does not matter what else the machine does.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import numpy as np
from _made_up import ANSWERS
from _uplinks import prepare, uplinks
from common import Report, arguments, console, show_machine
from rich.progress import track
from rich.table import Table

from splitedge.sim.exact import run_exact
from splitedge.sim.fleet import run_fleet
from splitedge.sim.formats import read_trace
from splitedge.sim.scenario import Scenario
from splitedge.sim.simulation import Simulation
from splitedge.sim.synth import lte_like
from splitedge.sim.traces import Trace

ROOT = Path(__file__).resolve().parents[1]
DATA = Path(os.environ.get("SPLITEDGE_DATA") or ROOT.parent / "shared" / "data")
POLICIES = ("deadline", "confidence")
DEVICES, REQUESTS = 4, 100
#: Largest differences that docs/simulator-fleet.md states: points, and parts of the whole.
POINTS, LATENCY, AMOUNT = 2.0, 0.03, 0.03
SAME_S = 1e-4


class Difference(NamedTuple):
    """What a run in fleet mode is off by from the one in exact mode.

    Attributes:
        same: whether every request was decided and answered alike, to 0.1 ms.
        points: of correct in time, accuracy, met; greatest of the shares of routes.
        latency: of p50, p95, relative.
        amount: of bytes and joules, relative.
    """

    same: bool
    points: dict[str, float]
    latency: dict[str, float]
    amount: dict[str, float]


def channels(quick: bool) -> list[tuple[str, Trace, Trace]]:
    """Name, uplink and downlink of each."""
    if not (DATA / "traces" / "CORE.txt").is_file():
        made = [lte_like(60.0, seed) for seed in range(2 if quick else 8)]
        return [(f"synthetic/{i}", one, one) for i, one in enumerate(made)]
    found = uplinks(DATA / "traces")
    ready = [prepare(one, DATA / "traces", ROOT / "out" / "channels") for one in found[:: 8 if quick else 1]]
    return [(one.uplink.name, read_trace(one.up), read_trace(one.down)) for one in ready]


def compared(policy: str, up: Trace, down: Trace) -> Difference:
    """One scenario in both modes."""
    scenario = Scenario.model_validate({
        "deployment": Path("none"), "policy": policy, "channel": {"up": Path("none")},
        "device": {"count": DEVICES, "power": "phone-lte"},
        "work": {"requests": REQUESTS, "rate_hz": 4.0, "deadline_ms": 150.0},
    })  # fmt: skip
    exact, fleet = (run(scenario, ANSWERS, up, down) for run in (run_exact, run_fleet))
    a, b = exact.score(), fleet.score()
    points = {
        name: 100.0 * abs(getattr(a, name) - getattr(b, name))
        for name in ("correct_in_time", "accuracy", "met")
    }
    routes = a.routes.keys() | b.routes.keys()
    points["a route"] = max(100.0 * abs(a.routes.get(r, 0) - b.routes.get(r, 0)) / a.requests for r in routes)

    def relative(name: str) -> float:
        of, found = getattr(a, name), getattr(b, name)
        return abs(found - of) / of if of else float(found != of)

    return Difference(
        alike(exact, fleet),
        points,
        {name: relative(name) for name in ("p50_s", "p95_s")},
        {name: relative(name) for name in ("bytes_up", "bytes_down", "joules")},
    )


def alike(exact: Simulation, fleet: Simulation) -> bool:
    """Whether every request went the same way, to the same time."""
    for name in ("planned", "option", "error"):
        if not np.array_equal(exact[name], fleet[name]):
            return False
    return bool(np.allclose(exact["latency_s"], fleet["latency_s"], rtol=0.0, atol=SAME_S))


def main() -> None:
    """Compare, print, write."""
    asked = arguments(__doc__ or "")
    show_machine("fleet mode beside exact mode")
    cells = [(p, name, up, down) for name, up, down in channels(asked.quick) for p in POLICIES]
    found: dict[tuple[str, str], Difference] = {}
    for policy, name, up, down in track(cells, "simulating", transient=True, console=console):
        found[policy, name] = compared(policy, up, down)
    table = Table(title="runs that differ", title_justify="left")
    for column in ("policy", "uplink", "points", "latency", "bytes, joules"):
        table.add_column(column, justify="left" if column in ("policy", "uplink") else "right")
    for (policy, name), one in found.items():
        if not one.same:
            greatest = (f"{100 * max(part.values()):.2f}%" for part in (one.latency, one.amount))
            table.add_row(policy, name, f"{max(one.points.values()):.2f}", *greatest)
    console.print(table)
    report = Report("modes")
    report.add("runs", float(len(found)), "")
    report.add("runs with every request alike", float(sum(one.same for one in found.values())), "")
    for part, unit, scale, limit in (
        ("points", "points", 1.0, POINTS),
        ("latency", "%", 100.0, 100.0 * LATENCY),
        ("amount", "%", 100.0, 100.0 * AMOUNT),
    ):
        for what in getattr(next(iter(found.values())), part):
            worst = max(scale * getattr(one, part)[what] for one in found.values())
            report.add(f"{what}: largest difference", worst, unit, at_most=limit)
    report.finish(asked.json)


if __name__ == "__main__":
    main()
