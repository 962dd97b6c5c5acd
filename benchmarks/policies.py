"""Which policy answers right in time most often, over recorded uplinks, with a deployment's real answers.

    python benchmarks/policies.py
    python benchmarks/policies.py --seconds 20 --only deadline static:cloud --executor joblib:2
    python benchmarks/policies.py --quick

CIFAR-10 as `cifar_deployment.py` makes it (kept in `--deployment`), on a device as slow as a Cortex-A55 core
with a phone's LTE radio, 15 requests a second, over the uplinks of traces/CORE.txt in ../shared/data (or
SPLITEDGE_DATA). `--quick` takes digits and two synthetic channels. docs/policy-benchmark.md says what the
figures mean.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from _policy_tables import RIVALS, Cell, Results, draw, page, report_of, show
from _uplinks import Ready, Uplink, prepare, uplinks
from cifar_deployment import DATA, ROOT, SLOWER, cifar, small
from common import console, show_machine

from splitedge.errors import SplitedgeError
from splitedge.evaluation import Evaluation
from splitedge.policy import make_policy
from splitedge.sim.formats import write_csv
from splitedge.sim.grid import Sweep
from splitedge.sim.scenario import ChannelPart, CloudPart, DevicePart, Scenario, WorkPart
from splitedge.sim.sweep import run_sweep
from splitedge.sim.synth import LteLike, lte_like

if TYPE_CHECKING:
    from collections.abc import Sequence

POLICIES = (
    *RIVALS,
    "confidence",
    "energy",
    "router",
    "bandit",
    "mpc",
    "deadline",
)
ORACLES = ("oracle:channel", "oracle")
DEADLINES_MS = (30.0, 60.0, 100.0, 150.0, 200.0, 300.0)
RATE_HZ = 15.0
EXECUTORS = 4


@dataclass(frozen=True, slots=True)
class Plan:
    """What is to be run."""

    evaluation: Path
    channels: list[Ready]
    policies: list[str]
    deadlines_ms: tuple[float, ...]
    seconds: float


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="digits, two synthetic channels: under 45 s on 2 cores"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--deployment", type=Path, metavar="DIR", help="as cifar_deployment.py keeps it")
    parser.add_argument("--only", nargs="+", default=[], metavar="POLICY", help="these policies")
    parser.add_argument(
        "--uplinks", nargs="+", default=[], metavar="TEXT", help="uplinks whose name contains one"
    )
    parser.add_argument("--seconds", type=float, default=60.0, help="of each recording, at most")
    parser.add_argument("--executor", default="local", help="local, joblib:N, dask or ray")
    parser.add_argument("--out", type=Path, metavar="DIR", help="write policies.png and results.csv here")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the tables into this Markdown page")
    return parser.parse_args(argv)


def planned(args: argparse.Namespace, folder: Path) -> Plan:
    """Deployment, channels and policies; what can not work is left out, and why is said."""
    if args.quick:
        evaluation = small(args.deployment or folder / "digits-deployment").evaluation
        channels = [_synthetic(i, folder) for i in range(2)]
    else:
        evaluation = cifar(args.deployment or folder / "cifar-deployment").evaluation
        wanted = [
            u for u in uplinks(DATA / "traces") if not args.uplinks or any(t in u.name for t in args.uplinks)
        ]
        channels = [prepare(uplink, DATA / "traces", folder / "channels") for uplink in wanted]
    if not channels:
        sys.exit("no uplink has such a name")
    table = Evaluation.load(evaluation).table
    policies = []
    for name in args.only or POLICIES:
        try:
            make_policy(name, table)
        except SplitedgeError as error:
            console.print(f"without {name}: {error}", highlight=False)
        else:
            policies.append(name)
    deadlines = DEADLINES_MS[1:4:2] if args.quick else DEADLINES_MS
    return Plan(evaluation, channels, policies, deadlines, 10.0 if args.quick else args.seconds)


def _synthetic(seed: int, folder: Path) -> Ready:
    trace = lte_like(60.0, seed, LteLike(up_mbps=(1.5, 6.0)[seed]))
    path = folder / f"synthetic-{seed}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_csv(trace, path)
    return Ready(Uplink(f"synthetic/{seed}.up", "synthetic", "lte-like", "its own"), path, path, 60.0)


def run(plan: Plan, executor: str) -> Results:
    """Simulate everything, uplink by uplink."""
    cells: list[Cell] = []
    failed: list[str] = []
    for number, ready in enumerate(plan.channels, 1):
        seconds = min(plan.seconds, max(ready.seconds, 10.0))
        scenario = Scenario(
            deployment=plan.evaluation,
            channel=ChannelPart(up=ready.up, down=ready.down),
            device=DevicePart(slower=SLOWER, power="phone-lte"),
            cloud=CloudPart(executors=EXECUTORS),
            work=WorkPart(rate_hz=RATE_HZ, requests=max(2, round(seconds * RATE_HZ)), start_s=0.5),
        )
        axes = {"policy": [*plan.policies, *ORACLES], "work.deadline_ms": list(plan.deadlines_ms)}
        result = run_sweep(Sweep(scenario, axes, id=ready.uplink.name, oracle=False), executor)
        for one, outcome in zip(result.runs, result.outcomes, strict=True):
            if outcome.digest is None:
                failed.append(f"{ready.uplink.name} {one}: {outcome.error}")
                continue
            score = outcome.digest.score
            cells.append(
                Cell(
                    ready.uplink.name,
                    ready.uplink.source,
                    ready.uplink.technology,
                    one.point["policy"],
                    float(one.point["work.deadline_ms"]),
                    score.correct_in_time,
                    score.accuracy,
                    score.met,
                    score.joules,
                    score.bytes_up + score.bytes_down,
                )
            )
        console.print(f"{number}/{len(plan.channels)} {ready.uplink.name}", highlight=False)
    return Results(cells, failed)


def main() -> None:
    """Run, print, write."""
    args = options()
    show_machine("policies over recorded uplinks")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) if args.quick else ROOT / "out"
        plan = planned(args, folder)
        requests = int(np.ceil(plan.seconds * RATE_HZ))
        console.print(
            f"{len(plan.channels)} uplinks, {len(plan.policies)} policies, deadlines of "
            f"{', '.join(f'{d:g}' for d in plan.deadlines_ms)} ms, up to {requests} requests each",
            highlight=False,
        )
        results = run(plan, args.executor)
    for line in results.failed:
        console.print(f"failed: {line}", highlight=False)
    show(results)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        results.write(args.out / "results.csv")
        draw(results, args.out / "policies.png")
    if args.page is not None:
        page(results, args.page)
    report_of(results).finish(args.json)
    if results.failed:
        sys.exit(f"{len(results.failed)} runs failed")


if __name__ == "__main__":
    main()
