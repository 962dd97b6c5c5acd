"""What a low battery changes: joules and right answers of `deadline`, `mpc` and `energy`, beside a full one.

    python benchmarks/battery.py

Simulated in exact mode: eight made-up LTE drives of a minute each (`lte_like`, four seeds at 1.5 and at 6
Mbit/s up), a made-up deployment with a local model, an exit and a split behind that exit, power profile
`phone-lte`. A charge of 15% and of 4% is compared with a full one, drive by drive, on the same requests. No
figure has a time in it, so that it does not matter what else the machine does.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from common import Report, arguments, console, show_machine
from rich.progress import track
from rich.table import Table

from splitedge.evaluation import Evaluation
from splitedge.policy import Option, Route
from splitedge.sim.exact import run_exact
from splitedge.sim.scenario import Scenario
from splitedge.sim.synth import LteLike, lte_like

OPTIONS = (
    Option(Route.LOCAL, accuracy=0.80, accuracy_measured=True, edge_s=0.040, edge_s_q95=0.050),
    Option(Route.EXIT, exit=0, accuracy=0.70, accuracy_measured=True, edge_s=0.005, edge_s_q95=0.006),
    Option(
        Route.SPLIT, cut="layer2", codec="int8", accuracy=0.93, accuracy_measured=True, edge_s=0.010,
        edge_s_q95=0.012, cloud_s=0.006, cloud_s_q95=0.009, bytes_up=4000, bytes_up_q95=4400, bytes_down=120,
    ),
)  # fmt: skip
ROWS, SECONDS = 1000, 60
POLICIES = ("deadline", "mpc", "energy")
CHARGES = (0.15, 0.04)
RATES_HZ, DEADLINES_MS = (1.0, 4.0, 10.0), (100.0, 150.0, 300.0)
MOST = 1.02  # joules on the average, over those with a full battery: as many, but for draws


def evaluation() -> Evaluation:
    """Answers drawn so that each option is right as often as it says, surer where it is right more often."""
    draw = np.random.default_rng(0)
    accuracy = np.array([option.accuracy for option in OPTIONS])[:, None]
    sure = draw.beta(9 * accuracy, 9 * (1 - accuracy), (len(OPTIONS), ROWS))
    nbytes = np.array([option.bytes_up for option in OPTIONS])[:, None] * np.ones((1, ROWS))
    names = tuple(option.name for option in OPTIONS)
    return Evaluation(names, draw.random(sure.shape) < sure, sure, nbytes, np.zeros(ROWS, np.int64), OPTIONS)


ANSWERS = evaluation()


def drives(
    policy: str, charge: float, rate_hz: float, deadline_ms: float, seeds: int
) -> tuple[np.ndarray, float]:
    """Mean joules a request of each drive, float (drives,), and the share right in time over all."""
    joules, right = [], []
    for mbps in (1.5, 6.0):
        for seed in range(seeds):
            trace = lte_like(2.0 * SECONDS, seed, LteLike(up_mbps=mbps))
            scenario = Scenario.model_validate({
                "deployment": Path("none"), "policy": policy, "seed": seed,
                "channel": {"up": Path("none")},
                "device": {"power": "phone-lte", "battery_j": 1e7, "charge": charge},
                "work": {
                    "arrivals": "poisson", "rate_hz": rate_hz, "requests": round(SECONDS * rate_hz),
                    "deadline_ms": deadline_ms,
                },
            })  # fmt: skip
            seen = run_exact(scenario, ANSWERS, trace, trace).columns
            joules.append(seen["energy_j"].mean())
            right.append(seen["right"] & (seen["latency_s"] <= deadline_ms / 1e3))
    return np.array(joules), float(np.concatenate(right).mean())


def main() -> None:
    """Simulate, print, write."""
    asked = arguments(__doc__ or "")
    show_machine("a low battery")
    rates, deadlines, seeds = ((4.0,), (100.0,), 2) if asked.quick else (RATES_HZ, DEADLINES_MS, 4)
    report = Report("battery")
    table = Table(title="joules over those with a full battery", title_justify="left")
    for column in ("policy", "charge", "requests/s", "deadline", "average", "worst drive", "right in time"):
        table.add_column(column, justify="left" if column == "policy" else "right")
    cells = [(p, r, d) for p in POLICIES for r in rates for d in deadlines]
    worst: dict[tuple[str, float], list[tuple[float, float]]] = {}
    for policy, rate, deadline in track(cells, "simulating", transient=True, console=console):
        full, right = drives(policy, 1.0, rate, deadline, seeds)
        for charge in CHARGES:
            low, right_low = drives(policy, charge, rate, deadline, seeds)
            ratios = float(low.mean() / full.mean()), float((low / full).max())
            worst.setdefault((policy, charge), []).append(ratios)
            table.add_row(
                policy, f"{charge:.0%}", f"{rate:g}", f"{deadline:g} ms", f"{ratios[0]:.3f}",
                f"{ratios[1]:.3f}", f"{right_low:.1%} (full: {right:.1%})",
            )  # fmt: skip
    console.print(table)
    for (policy, charge), found in worst.items():
        means, drive = zip(*found, strict=True)
        name = f"{policy}, {charge:.0%} charge: joules over a full battery's"
        report.add(f"{name}, best setting", min(means), "ratio")
        report.add(f"{name}, worst setting", max(means), "ratio", at_most=MOST)
        report.add(f"{name}, worst drive", max(drive), "ratio")
    report.finish(asked.json)


if __name__ == "__main__":
    main()
