"""How many requests a second the simulator simulates, beside the same model written in SimPy.

Both modes and SimPy simulate devices that ask at 10 Hz for an answer within 150 ms, over a synthetic LTE
channel, of a made-up deployment with four options. Seconds are processor seconds of one process on one core
(everything here is one thread), so that what else the machine does counts little. Set-up is in them;
compiling the loops of fleet mode is not: that happens once for each version and is kept on disk.
"""

from __future__ import annotations

import importlib.util
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from _sim_speed_model import Queues, evaluation, scenario
from common import Report, arguments, console, show_machine
from rich.table import Table

from splitedge.policy import make_policy
from splitedge.sim.compiled import COMPILES
from splitedge.sim.exact import run_exact
from splitedge.sim.fleet import run_fleet, score_fleet
from splitedge.sim.synth import lte_like

DEVICES = 10_000
STATIC, DEADLINE = "static:split", "deadline"
FLEET, EXACT, SIMPY = f"fleet mode, {DEVICES:,} devices", "exact mode, one device", "SimPy, one device"


def cpu_seconds(work: Callable[[], object]) -> float:
    """Processor seconds of one call."""
    began = time.process_time()
    work()
    return time.process_time() - began


def fleet(policy: str, devices: int, requests: int) -> float:
    """Processor seconds of a run in fleet mode."""
    trace = lte_like(600, 1)
    return cpu_seconds(
        lambda: run_fleet(scenario(policy, devices, requests, "fleet"), EVALUATION, trace, trace)
    )


def exact(policy: str, devices: int, requests: int) -> float:
    """Processor seconds of a run in exact mode."""
    trace = lte_like(600, 1)
    return cpu_seconds(
        lambda: run_exact(scenario(policy, devices, requests, "exact"), EVALUATION, trace, trace)
    )


def simpy(policy: str | None, requests: int, linked: bool = True) -> float:
    """Processor seconds of the same in SimPy, one device."""
    chosen = None if policy is None else make_policy(policy, EVALUATION.table)
    queues = Queues(lte_like(600, 1), requests, chosen, linked)
    seconds = cpu_seconds(queues.run)
    if queues.done != requests:
        raise RuntimeError(f"SimPy answered {queues.done} of {requests} requests")
    return seconds


EVALUATION = evaluation()


def speeds(report: Report, quick: bool) -> None:
    """Requests a second of all, side by side, with a policy that never chooses and with `deadline`."""
    each = 30 if quick else 200
    single = 4000 if quick else 40_000
    fleet("deadline", 16, 4)  # compiles, or reads what is compiled
    rates = {
        FLEET: (
            DEVICES * each / fleet(STATIC, DEVICES, each),
            DEVICES * each / fleet(DEADLINE, DEVICES, each),
        ),
        EXACT: (single / exact(STATIC, 1, single), single / exact(DEADLINE, 1, single)),
    }
    if importlib.util.find_spec("simpy") is not None:
        rates[SIMPY] = (single / simpy(None, single), single / simpy(DEADLINE, single))
        bare = single / simpy(None, single, linked=False)
    else:
        bare = None
        report.notes.append("SimPy: not measured, it is not installed (pip install 'splitedge[peers]')")
    table = Table("", "no policy", "deadline", title="requests a second on one core", title_justify="left")
    for name, pair in rates.items():
        table.add_row(name, *(f"{rate:,.0f}" for rate in pair))
    if bare is not None:
        table.add_row("SimPy, two queues and no link", f"{bare:,.0f}", "-")
    console.print(table)
    goals = {FLEET: 1e6, EXACT: 25e3, SIMPY: None}
    for name, goal in goals.items():
        none, deadline = rates.get(name, (None, None))
        report.add(f"{name}, no policy", none, "1/s")
        report.add(f"{name}, deadline", deadline, "1/s", at_least=goal)
    report.add("SimPy, two queues and no link", bare, "1/s")
    if SIMPY in rates:
        for name in (FLEET, EXACT):
            for i, policy in enumerate(("no policy", "deadline")):
                report.add(f"{name} over SimPy, {policy}", rates[name][i] / rates[SIMPY][i], "ratio")


def growth(report: Report, quick: bool) -> None:
    """Cost over devices."""
    each = 20 if quick else 100
    table = Table(
        "devices",
        "requests",
        "seconds",
        "µs a request",
        title="fleet mode with deadline",
        title_justify="left",
    )
    cost: dict[int, float] = {}
    for devices in (1, 10, 100, 1000, DEVICES):
        seconds = fleet("deadline", devices, each)
        cost[devices] = seconds / (devices * each)
        table.add_row(f"{devices:,}", f"{devices * each:,}", f"{seconds:.2f}", f"{1e6 * cost[devices]:.1f}")
        report.add(f"fleet mode, {devices} devices: a request", cost[devices], "s")
    console.print(table)
    report.add(
        "a request at 10,000 devices over one at 1,000", cost[DEVICES] / cost[1000], "ratio", at_most=1.25
    )


def memory(report: Report, quick: bool) -> None:
    """Peak memory of processes that keep rows, or totals only, of few requests and of four times as many."""
    few = 10 if quick else 50
    table = Table("kept", "requests", "peak memory", title="memory, 10,000 devices")
    peaks: dict[tuple[str, int], float] = {}
    for kept in ("rows", "totals"):
        for each in (few, 4 * few):
            command = [sys.executable, __file__, "--child", kept, str(each)]
            done = subprocess.run(command, check=True, capture_output=True, text=True)
            peaks[kept, each] = json.loads(done.stdout)
            table.add_row(kept, f"{DEVICES * each:,}", f"{peaks[kept, each] / 2**20:,.0f} MiB")
            report.add(f"peak memory, {kept} of {each} requests a device", peaks[kept, each], "B")
    console.print(table)
    report.add(
        "peak memory of totals, four times the requests",
        peaks["totals", 4 * few] / peaks["totals", few],
        "ratio",
        at_most=1.1,
    )


def child(kept: str, each: int) -> None:
    """Run alone, and print the peak of the process in bytes."""
    run = run_fleet if kept == "rows" else score_fleet
    trace = lte_like(600, 1)
    run(scenario("deadline", DEVICES, each, "fleet"), EVALUATION, trace, trace)
    print(peak_bytes())


def peak_bytes() -> int:
    """Most memory that this process ever held. (Linux: `ru_maxrss` would begin with the parent's.)"""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def main() -> None:
    """Run all parts."""
    args = arguments(__doc__ or "")
    show_machine("simulated requests a second")
    report = Report("sim_speed")
    if not COMPILES:
        report.notes.append("numba is not installed or turned off: fleet mode ran as plain Python")
    speeds(report, args.quick)
    growth(report, args.quick)
    memory(report, args.quick)
    report.finish(args.json)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        child(sys.argv[2], int(sys.argv[3]))
    else:
        main()
