"""How far the simulator is from real processes: the same requests over the same channels, one by one.

    python benchmarks/fidelity.py
    python benchmarks/fidelity.py --seconds 20 --uplinks starlink solis
    python benchmarks/fidelity.py --quick

For every uplink a cloud server and an edge daemon run as real processes, with the pacer between them, and are
sent images over HTTP, twice; then the simulator gets the same rows at the same moments of the same channel.
Seconds of stages and shells are drawn from those of runs over a channel that only delays, of the same
processes. Leave the machine alone meanwhile. docs/fidelity.md says what the figures mean.
"""

from __future__ import annotations

import argparse
import csv
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from _fidelity_figures import Residuals, draw, page, report_of, show
from _fidelity_runs import Asked, Bench, medians
from _uplinks import prepare, uplinks
from cifar_deployment import DATA, ROOT, cifar, small
from common import console, show_machine

from splitedge.sim.formats import write_csv
from splitedge.sim.scenario import ChannelPart
from splitedge.sim.synth import LteLike, lte_like

if TYPE_CHECKING:
    from collections.abc import Sequence

#: One of each technology. The simulator was not fitted to any of them.
UPLINKS = (
    "mahimahi/TMobile-UMTS-driving",
    "mahimahi/Verizon-LTE-short",
    "mahimahi/ATT-LTE-driving-2016",
    "nuwins_mmwave_uplink/driving_5g_run1",
    "nuwins_mmwave_uplink/driving_lte_run2",
    "starlink_autobahn/autobahn_1",
    "solis_wifi/restr_231115-130711",
)
DEADLINE_MS = 150.0
RATE_HZ = 15.0
CALIBRATING = 60


def options(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """What was asked for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick",
        action="store_true",
        help="digits, one synthetic channel, one real run: under 45 s on 2 cores",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures here")
    parser.add_argument("--deployment", type=Path, metavar="DIR", help="as cifar_deployment.py keeps it")
    parser.add_argument(
        "--uplinks", nargs="+", default=UPLINKS, metavar="TEXT", help="whose name contains one"
    )
    parser.add_argument("--policy", default="deadline")
    parser.add_argument("--seconds", type=float, default=60.0, help="of each uplink")
    parser.add_argument(
        "--repeats",
        type=int,
        help="real runs of each uplink, which show how far they are from each other: 2, quick 1",
    )
    parser.add_argument("--out", type=Path, metavar="DIR", help="write fidelity.png and requests.csv here")
    parser.add_argument("--page", type=Path, metavar="FILE", help="put the table into this Markdown page")
    return parser.parse_args(argv)


def channels(args: argparse.Namespace, folder: Path) -> list[tuple[str, ChannelPart]]:
    """Names and channels."""
    if args.quick:
        path = folder / "synthetic.csv"
        write_csv(lte_like(60.0, 0, LteLike(up_mbps=1.5)), path)
        return [("synthetic 1.5 Mbit/s", ChannelPart(up=path))]
    wanted = [u for u in uplinks(DATA / "traces") if any(text in u.name for text in args.uplinks)]
    ready = [prepare(uplink, DATA / "traces", folder / "channels") for uplink in wanted]
    return [(f"{r.uplink.name} ({r.uplink.technology})", ChannelPart(up=r.up, down=r.down)) for r in ready]


def main() -> None:
    """Run, print, write."""
    args = options()
    show_machine("fidelity of the simulator")
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        made = (
            small(args.deployment or folder / "digits-deployment", webp=None)
            if args.quick
            else cifar(args.deployment or ROOT / "out" / "cifar-deployment")
        )
        parts = channels(args, folder if args.quick else ROOT / "out")
        if not parts:
            sys.exit("no uplink has such a name")
        bench = Bench(made, folder / "processes")

        def told(text: str) -> None:
            console.print(text, highlight=False)

        measured = bench.calibrate(10 if args.quick else CALIBRATING, RATE_HZ, told)
        told(f"shells, median ms: {medians(measured)}")
        seconds = 2.0 if args.quick else args.seconds
        asked = Asked(RATE_HZ, round(seconds * RATE_HZ), DEADLINE_MS, args.policy)
        found = []
        for name, channel in parts:
            told(name)
            one = Residuals.of(
                name, *bench.pair(channel, asked, measured, args.repeats or (1 if args.quick else 2))
            )
            found.append(one)
            told(f"  simulated: {one.simulated.first_apart()}")
            for again in one.again:
                told(f"  real again: {again.first_apart()}")
    show(found)
    if args.out is not None:
        args.out.mkdir(parents=True, exist_ok=True)
        draw(found, args.out / "fidelity.png")
        with (args.out / "requests.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(Residuals.HEAD)
            for one in found:
                writer.writerows(one.rows())
    if args.page is not None:
        page(found, args.page)
    report_of(found).finish(args.json)


if __name__ == "__main__":
    main()
