"""Forecasts of the uplink on recorded channels: pinball loss and coverage on sources they were not trained
on.

    python benchmarks/forecasts.py --quick

The uplinks of `traces/CORE.txt`, each replayed through the link estimator (`seen_of_trace`). The trained
forecast is judged on every source by trees that saw only the sources of the other half; the others are not
trained. Loss is that of the 10th, 50th and 90th percentile of the logarithm of goodput: 0.1 is about a tenth.
Sources weigh alike. Without the recordings (SPLITEDGE_DATA, or ../shared/data) it takes synthetic links, and
says so.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from common import Report, arguments, console, show_machine
from rich.table import Table

from splitedge.policies.fit import read_seen, seen_of_trace
from splitedge.policies.forecast import SIMPLE, Forecast
from splitedge.policies.forecast_fit import Judged, Seen, fit_forecast, judge, score
from splitedge.policies.forecast_trees import TreesForecast

DATA = Path(os.environ.get("SPLITEDGE_DATA") or Path(__file__).resolve().parents[2] / "shared" / "data")


def uplinks(data: Path, quick: bool) -> list[Seen]:
    """What was seen of every uplink of CORE.txt; of three a source in a quick run."""
    core = data / "traces" / "CORE.txt"
    if not core.exists():
        return []
    names = [n for n in core.read_text(encoding="utf-8").split() if n.endswith((".up", ".updown"))]
    if quick:
        sources = sorted({name.split("/")[0] for name in names})
        names = [n for s in sources for n in [m for m in names if m.split("/")[0] == s][:2]]
    longest = 40.0 if quick else 300.0
    found = []
    for name in names:
        seen = read_seen(data / "traces" / f"{name}.csv")
        keep = seen.t_s < longest
        parts = (seen.t_s, seen.goodput, seen.rtt, seen.horizon_s, seen.came)
        found.append(Seen(seen.source, *(part[keep] for part in parts)))
    return found


def synthetic() -> list[Seen]:
    """Four links whose log capacity is an autoregression, of two made-up sources."""
    found = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        y = np.zeros(400)
        for i in range(1, len(y)):
            y[i] = 0.95 * y[i - 1] + 0.25 * rng.standard_normal()
        found.append(seen_of_trace(f"synthetic{seed % 2}", np.arange(len(y)) * 0.1, 4e6 * np.exp(y)))
    return found


def table_of(make: dict[str, Callable[[Seen], Forecast]], seen: list[Seen]) -> dict[str, dict[str, Judged]]:
    """Scores by forecast and source."""
    sources = sorted({one.source for one in seen})
    found: dict[str, dict[str, Judged]] = {}
    for name, making in make.items():
        judged = [(one.source, judge(making(one), one)) for one in seen]
        found[name] = {
            source: score(
                np.concatenate([said for of, (said, _) in judged if of == source]),
                np.concatenate([came for of, (_, came) in judged if of == source]),
            )
            for source in sources
        }
    return found


def main() -> None:
    """Train, judge, print."""
    given = arguments(__doc__ or "", sys.argv[1:])
    show_machine("forecasts of the uplink")
    report = Report("forecasts")
    seen = uplinks(DATA, given.quick)
    if not seen:
        console.print(f"no recordings in {DATA} (set SPLITEDGE_DATA): synthetic links instead")
        seen = synthetic()
    sources = sorted({one.source for one in seen})
    half = {source: i % 2 for i, source in enumerate(sources)}
    trained = {
        part: fit_forecast([one for one in seen if half[one.source] != part], trees=20 if given.quick else 60)
        for part in (0, 1)
    }
    make: dict[str, Callable[[Seen], Forecast]] = {
        name: lambda one, kind=kind: kind()
        for name, kind in SIMPLE.items()  # type: ignore[misc]
    }
    make["trees"] = lambda one: TreesForecast(trained[half[one.source]].file)
    scores = table_of(make, seen)
    shown = Table(title="held-out sources: pinball loss, coverage (0.80 is right)", title_justify="left")
    for column in ("forecast", *sources, "mean"):
        shown.add_column(column, justify="left" if column == "forecast" else "right")
    for name, by in scores.items():
        loss = float(np.mean([one.pinball for one in by.values()]))
        cover = float(np.mean([one.coverage for one in by.values()]))
        cells = [f"{one.pinball:.3f}, {one.coverage:.2f}" for one in by.values()]
        shown.add_row(name, *cells, f"{loss:.3f}, {cover:.2f}")
        report.add(f"{name}: pinball loss", loss, "log units")
        report.add(f"{name}: coverage, off from 0.8", abs(cover - 0.8), "share", at_most=0.05)
        report.add(
            f"{name}: observe and predict", _seconds(make[name](seen[0]), seen[0]), "s", at_most=200e-6
        )
    console.print(shown)
    report.notes.append(
        f"{len(seen)} uplinks of {len(sources)} sources, {sum(len(s.t_s) for s in seen)} moments"
    )
    report.finish(given.json)


def _seconds(forecast: Forecast, seen: Seen) -> float:
    """Processor seconds of one observation and one prediction, by the process's own clock."""
    count = min(300, len(seen.t_s))
    begin = time.process_time()
    for i in range(count):
        forecast.observe(float(seen.t_s[i]), float(seen.goodput[i]), float(seen.rtt[i]))
        forecast.predict(0.1)
    return (time.process_time() - begin) / count


if __name__ == "__main__":
    main()
