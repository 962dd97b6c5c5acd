"""A report of simulated runs that a person can read: one HTML file, and each picture as a PNG beside it."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from splitedge.errors import ConfigError
from splitedge.sim import report_plots as plots
from splitedge.sim.digest import digest
from splitedge.sim.grid import ORACLE, Run, column
from splitedge.sim.inputs import evaluation_of
from splitedge.sim.intervals import Interval, pooled_latency
from splitedge.sim.report_data import Data
from splitedge.sim.report_page import figure_block, page, table
from splitedge.sim.report_style import DARK, LIGHT, Theme, canvas, png
from splitedge.sim.scenario import Scenario
from splitedge.sim.simulation import Simulation
from splitedge.sim.sweep import Outcome, SweepResult

Draw = Callable[[Any, Data, Theme], None]


@dataclass(frozen=True, slots=True)
class Picture:
    """One picture of a report: file name, title, what it shows, how it is drawn, height in inches."""

    name: str
    title: str
    text: str
    draw: Draw
    height: float


def write_report(result: SweepResult, folder: Path, title: str = "Simulation") -> Path:
    """Write `folder/index.html` and the PNGs beside it.

    Args:
        result: of a sweep, or `single` of one run.
        folder: made where it does not exist; files of these names in it are replaced.
        title: of the page.

    Returns:
        the HTML file: all in one, it needs none of the others and no network.

    Raises:
        ConfigError: no run has a result, or the folder can not be written.
        MissingExtra: matplotlib is not installed.
    """
    data = Data(result)
    if not data.policies:
        raise ConfigError("there is nothing to report: no run has a result")
    pictures = _pictures(data)
    figures = [
        figure_block(one.title, one.text, _uri(_draw(one, data, LIGHT)), _uri(_draw(one, data, DARK)))
        for one in pictures
    ]
    html = page(title, [_headline(data), *figures, _simulated(data), _options(data), _failures(result)])
    path = folder / "index.html"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for one in pictures:
            (folder / f"{one.name}.png").write_bytes(_draw(one, data, LIGHT, titled=True))
        path.write_text(html, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{folder}: the report can not be written: {error.strerror or error}") from error
    return path


def single(scenario: Scenario, run: Simulation) -> SweepResult:
    """One run as a sweep of one."""
    point = {"policy": scenario.policy, "channel.up": str(scenario.channel.up)}
    return SweepResult((Run(0, scenario, point, 0),), (Outcome(digest(run)),))


def _pictures(data: Data) -> list[Picture]:
    lines = len(data.shown)
    found = [
        Picture(
            "latency",
            "How fast the answers came",
            "Share of all requests answered within a time, all runs of a policy together. "
            "What is never answered keeps a line below 1.",
            plots.latency,
            3.2,
        ),
        Picture(
            "routes",
            "Where requests were answered",
            f"Each strip is a policy, each column a stretch of time of one run over {_where(data)}; "
            "below, what the uplink could carry.",
            plots.routes,
            1.9 + 0.62 * lines,
        ),
    ]
    if lines > 1:
        found.append(
            Picture(
                "pareto",
                "Accuracy, time and energy",
                "Up and to the left is better. Larger points cost the device more joules a request; "
                "a hollow point is beaten in all three by another policy (oracles, in grey, apart).",
                plots.pareto,
                3.4,
            )
        )
    if lines * len(data.traces) > 1:
        found.append(_by_trace(data))
    sent = "Framed bytes, mean a request."
    found.append(Picture("bytes", "What was sent", sent, plots.traffic, 1.0 + 0.36 * lines))
    for key in data.numeric_axes:
        name = column(key)
        draw: Draw = partial(plots.along, key=key)
        text = f"Requests of 100 answered right within the deadline, for each {name}."
        file = f"along-{name.replace('.', '-')}"
        found.append(Picture(file, f"Right in time along {name}", text, draw, 3.2))
    return found


def _by_trace(data: Data) -> Picture:
    height = 1.5 + 0.34 * len(data.traces)
    if ORACLE in data.policies and len(data.policies) > 1:
        text = "How many more of 100 requests the oracle answered right within the deadline: 0 is perfect."
        return Picture("regret", "Regret by trace, percentage points", text, plots.regret, height)
    text = "Requests of 100 that were answered right within the deadline."
    return Picture("regret", "Right in time by trace, %", text, plots.regret, height)


def _where(data: Data) -> str:
    """The trace of the example, and its other axes."""
    point = data.example.point
    others = [f"{key} {value}" for key, value in point.items() if key not in ("policy", "channel.up")]
    return ", ".join([data.trace_names[point["channel.up"]], *others])


def _draw(picture: Picture, data: Data, theme: Theme, titled: bool = False) -> bytes:
    """As a PNG; with its title inside where it stands alone."""
    with canvas(theme, picture.height + 0.3 * titled) as figure:
        if titled:
            figure.suptitle(picture.title, x=0.01, ha="left", fontweight="bold", fontsize=10.5)
        picture.draw(figure, data, theme)
        return png(figure)


def _uri(picture: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(picture).decode()}"


def _headline(data: Data) -> str:
    against = ORACLE in data.policies
    head = ["policy", "right in time", "answered in time", "right", "median", "95%", "kB up", "mJ"]
    if against:
        head.insert(2, "regret")
    rows = []
    for name in data.policies:
        pooled = pooled_latency([one for _, one in data.pairs(name)])
        row = [
            name,
            _percent(data.means.of("correct_in_time", name)),
            _percent(data.means.of("met", name)),
            _percent(data.means.of("accuracy", name)),
            *(_ms(pooled, q) for q in (0.5, 0.95)),
            f"{data.means.of('bytes_up', name).mean / 1e3:.3g}",
            f"{1e3 * data.means.of('joules', name).mean:.3g}",
        ]
        if against:
            row.insert(2, "" if name == ORACLE else _points(data.means.of("regret", name)))
        rows.append(row)
    note = (
        "Means over all traces and other settings, each with the same weight, with 95% intervals in "
        "brackets. An interval says how much another stretch of these very channels, with other requests, "
        "would move the mean; other channels can move it more. Times are of answered requests."
    )
    if against:
        note += (
            " Regret: percentage points behind an oracle that knows the channel and which answers are right, "
            "one request at a time; as it does not plan ahead, a policy can beat it by a little (below 0)."
        )
    return f"<h2>How the policies did</h2>{table(head, rows)}<p class='note'>{escape(note)}</p>"


def _percent(value: Interval) -> str:
    if math.isnan(value.mean):
        return "–"
    return f"{100 * value.mean:.1f}% ({100 * value.low:.1f} to {100 * value.high:.1f})"


def _points(value: Interval) -> str:
    if math.isnan(value.mean):
        return "–"
    return f"{100 * value.mean:.1f} ({100 * value.low:.1f} to {100 * value.high:.1f})"


def _ms(latency_s: Any, quantile: float) -> str:
    answered = latency_s[np.isfinite(latency_s)]
    return f"{1e3 * float(np.quantile(answered, quantile)):.1f} ms" if answered.size else "–"


def _simulated(data: Data) -> str:
    result = data.result
    scenario = result.runs[0].scenario
    requests = sum(one.score.requests for _, one in data.pairs())
    varied = {key: list(dict.fromkeys(run.point[key] for run in result.runs)) for key in result.runs[0].point}
    rows = [["runs", f"{len(result.runs)}, {len(result.failed)} failed; {requests:,} requests in all"]]
    for key, values in varied.items():
        rows.append([column(key), ", ".join(values)])
    rows.append(["repetitions", str(1 + max(run.repetition for run in result.runs))])
    for part, values in scenario.model_dump(mode="json").items():
        pairs = values.items() if isinstance(values, dict) else [("", values)]
        for leaf, value in pairs:
            key = f"{part}.{leaf}" if leaf else part
            if key not in varied and key != "seed":
                rows.append([key, "none" if value is None else str(value)])
    return f"<h2>What was simulated</h2>{table(['', ''], rows, kind='facts')}"


def _options(data: Data) -> str:
    """The deployment's ways to answer."""
    deployment = data.result.runs[0].scenario.deployment
    evaluation = evaluation_of(deployment)
    right = evaluation.accuracy
    head = ["way to answer", "right", "device", "cloud", "bytes up"]
    rows = [
        [
            option.name,
            f"{right[option.name]:.1%}",
            f"{1e3 * option.edge_s:.2f} ms",
            f"{1e3 * option.cloud_s:.2f} ms" if option.remote else "–",
            f"{option.bytes_up:.0f}" if option.remote else "–",
        ]
        for option in evaluation.table
    ]
    note = f"{deployment}: {len(evaluation.labels)} rows; costs as measured on the machine of its profile."
    return f"<h2>The deployment</h2>{table(head, rows)}<p class='note'>{escape(note)}</p>"


def _failures(result: SweepResult) -> str:
    if not result.failed:
        return ""
    rows = [[str(run.index), str(run), error] for run, error in result.failed]
    return f"<h2>Runs that failed</h2>{table(['run', 'scenario', 'error'], rows, kind='facts')}"
