"""The pictures of a report. Each function draws one on an empty figure."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from splitedge.policy import Route
from splitedge.sim.digest import ENDS, PARTS, Digest
from splitedge.sim.grid import ORACLE, Run, column, is_oracle
from splitedge.sim.inputs import trace_of
from splitedge.sim.intervals import pooled_latency
from splitedge.sim.report_data import Data
from splitedge.sim.report_style import END_COLOURS, Label, Theme, label_beside, shorten

Floats = npt.NDArray[np.float64]


def latency(figure: Any, data: Data, theme: Theme) -> None:
    """Share of requests answered within so many milliseconds, by policy, with the deadlines marked."""
    axis = figure.subplots()
    pooled = {name: pooled_latency([one for _, one in data.pairs(name)]) for name in data.shown}
    answered = np.concatenate([values[np.isfinite(values)] for values in pooled.values()])
    right = _right_edge_ms(data, answered)
    for name, values in pooled.items():
        share = np.arange(1, values.size + 1) / values.size
        ms = np.where(np.isfinite(values), values * 1e3, math.inf)
        label = shorten(name)
        axis.step(ms, share, where="post", label=label, **data.line(name))
    for deadline in data.deadlines_s:
        axis.axvline(1e3 * deadline, color=theme.ink, linewidth=0.8, linestyle=(0, (2, 2)))
    for i, deadline in enumerate(data.deadlines_s[:: max(1, len(data.deadlines_s) // 4)]):
        note = f"{1e3 * deadline:g}" if i else f"deadline {1e3 * deadline:g} ms"
        top = axis.get_xaxis_transform()
        axis.text(1e3 * deadline, 1.01, note, fontsize=8, ha="center" if i else "right", transform=top)
    axis.set_xlim(max(1e3 * float(answered.min(initial=1.0)) * 0.8, 0.01), right)
    axis.set_xscale("log")
    _plain_ticks(axis.xaxis)
    axis.set_ylim(0, 1.005)
    axis.set_ylabel("share of requests answered")
    axis.set_xlabel("time from request to answer, ms")
    figure.legend(loc="outside lower left", ncols=3, frameon=False)


def routes(figure: Any, data: Data, theme: Theme) -> None:
    """Where requests were answered over time, one strip a policy, above the capacity of the uplink."""
    run = data.example
    strips = [(name, _beside(data, run, name)) for name in data.shown]
    known = [(name, one) for name, one in strips if one is not None]
    axes = figure.subplots(len(known) + 1, 1, sharex=True, height_ratios=[1.0] * len(known) + [1.3])
    used = [end for i, end in enumerate(ENDS) if any(one.ends[:, i].any() for _, one in known)]
    for axis, (name, one) in zip(axes, known, strict=False):
        edges = np.linspace(0.0, one.seconds, PARTS + 1)
        total = one.ends.sum(axis=1)
        share = one.ends / np.where(total > 0, total, np.nan)[:, None]
        under = np.zeros(PARTS)
        for end in used:
            value = np.nan_to_num(share[:, ENDS.index(end)])
            hatch = "////" if end == "error" else None
            axis.stairs(under + value, edges, baseline=under, fill=True, color=END_COLOURS[end], hatch=hatch)
            under = under + value
        axis.set_ylim(0, 1)
        axis.set_yticks([])
        axis.grid(False)
        axis.set_title(shorten(name, 40), fontsize=8.5, fontweight="normal", pad=2)
    _capacity(axes[-1], run, known[0][1].seconds, theme)
    axes[-1].set_xlabel("time, s")
    patches = [_patch(END_COLOURS[end], _end_name(end), end == "error") for end in used]
    figure.legend(handles=patches, loc="outside lower left", ncols=min(4, len(patches)), frameon=False)


def pareto(figure: Any, data: Data, theme: Theme) -> None:
    """Accuracy against latency; a larger point costs more joules, a hollow one is beaten in all three."""
    axis = figure.subplots()
    points = {}
    for name in data.shown:
        values = pooled_latency([one for _, one in data.pairs(name)])
        median = (
            float(np.quantile(values[np.isfinite(values)], 0.5)) if np.isfinite(values).any() else math.nan
        )
        accuracy = data.means.of("accuracy", name).mean
        points[name] = (1e3 * median, 100 * accuracy, 1e3 * data.means.of("joules", name).mean)
    known = {name: point for name, point in points.items() if not any(math.isnan(x) for x in point)}
    most = max((mj for _, _, mj in known.values()), default=0.0)
    for name, (ms, percent, mj) in known.items():
        colour = data.line(name)["color"]
        rivals = [known[other] for other in known if not is_oracle(other)]
        beaten = not is_oracle(name) and any(_beats(rival, (ms, percent, mj)) for rival in rivals)
        size = 30.0 + 250.0 * (mj / most if most > 0.0 else 0.0)
        face = theme.paper if beaten else colour
        axis.scatter([ms], [percent], s=size, facecolor=face, edgecolor=colour, linewidth=1.4, zorder=3)
    axis.margins(x=0.12, y=0.16)
    axis.set_xlabel("median time to the answer, ms")
    axis.set_ylabel("answers that are right, %")
    axis.autoscale_view()
    axis.set_ylim(*axis.get_ylim())
    label_beside(
        axis,
        [
            Label(percent, f"{shorten(name)}, {mj:.3g} mJ", data.line(name)["color"], ms)
            for name, (ms, percent, mj) in known.items()
        ],
    )


def regret(figure: Any, data: Data, theme: Theme) -> None:
    """By trace and policy: share of requests that the oracle got right in time and the policy did not.

    Without an oracle, the share that was right in time.
    """
    against_oracle = ORACLE in data.policies and len(data.policies) > 1
    names = [name for name in data.shown if not (against_oracle and name == ORACLE)]
    regrets = data.result.regret()
    cells = np.full((len(data.traces), len(names)), np.nan)
    index = {run.index: i for i, run in enumerate(data.result.runs)}
    for row, trace in enumerate(data.traces):
        for col, name in enumerate(names):
            found = [
                float(regrets[index[run.index]]) if against_oracle else one.score.correct_in_time
                for run, one in data.pairs(name)
                if run.point["channel.up"] == trace
            ]
            cells[row, col] = 100 * np.nanmean(found) if found and not np.isnan(found).all() else np.nan
    axis = figure.subplots()
    filled = cells[~np.isnan(cells)]
    top = max(1.0, float(filled.max(initial=0.0))) if against_oracle else 100.0
    image = axis.imshow(
        cells, cmap="cividis_r" if against_oracle else "cividis", vmin=0, vmax=top, aspect="auto"
    )
    for (row, col), value in np.ndenumerate(cells):
        if not math.isnan(value):
            red, green, blue, _ = image.cmap(image.norm(value))
            dark = 0.3 * red + 0.6 * green + 0.1 * blue < 0.5
            axis.text(col, row, f"{value:.1f}", ha="center", va="center", color="white" if dark else "black")
    axis.set_xticks(range(len(names)), [shorten(name) for name in names], rotation=30, ha="right")
    axis.set_yticks(range(len(data.traces)), [shorten(data.trace_names[t]) for t in data.traces])
    axis.tick_params(length=0)
    axis.grid(False)
    axis.spines[:].set_visible(False)


def traffic(figure: Any, data: Data, theme: Theme) -> None:
    """Mean bytes of a request, up and down, by policy."""
    axis = figure.subplots()
    names = data.shown[::-1]
    up = np.array([data.means.of("bytes_up", name).mean / 1e3 for name in names])
    down = np.array([data.means.of("bytes_down", name).mean / 1e3 for name in names])
    at = np.arange(len(names))
    axis.barh(at, up, color=END_COLOURS["split"], height=0.6)
    axis.barh(at, down, left=up, color=END_COLOURS["exit"], height=0.6)
    for y, (u, d) in enumerate(zip(up.tolist(), down.tolist(), strict=True)):
        axis.text(u + d, y, f" {u:.3g} up, {d:.3g} down", va="center", fontsize=8.5)
    axis.set_yticks(at, [shorten(name) for name in names])
    axis.set_xlim(0, max(1e-3, float((up + down).max(initial=0.0))) * 1.45)
    axis.grid(axis="y", visible=False)
    axis.set_xlabel("kB a request")


def along(figure: Any, data: Data, theme: Theme, key: str) -> None:
    """Share right in time along an axis of the sweep, by policy."""
    axis = figure.subplots()
    xs = data.numeric_axes[key]
    ends = []
    for name in data.shown:
        shares = [
            [d.score.correct_in_time for run, d in data.pairs(name) if float(run.point[key]) == x] for x in xs
        ]
        ys = [100 * float(np.mean(found)) if found else math.nan for found in shares]
        axis.plot(xs, ys, marker="o", markersize=3.5, **data.line(name))
        if not math.isnan(ys[-1]):
            ends.append(Label(ys[-1], shorten(name), data.line(name)["color"]))
    axis.set_xlabel(column(key))
    axis.set_ylabel("right in time, %")
    axis.margins(x=0.02)
    axis.set_ylim(*axis.get_ylim())
    label_beside(axis, ends)


def _right_edge_ms(data: Data, answered: Floats) -> float:
    """Twice the longest deadline, or where nearly everything is answered."""
    slow = 1e3 * float(np.quantile(answered, 0.995)) if answered.size else 1.0
    if not data.deadlines_s:
        return max(slow, 0.1)
    return min(max(1.15e3 * data.deadlines_s[-1], slow), 2e3 * data.deadlines_s[-1])


def _plain_ticks(axis: Any) -> None:
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0), numticks=8))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_formatter(NullFormatter())


def _beside(data: Data, run: Run, policy: str) -> Digest | None:
    return next((d for other, d in data.pairs(policy) if other.setting == run.setting), None)


def _capacity(axis: Any, run: Run, seconds: float, theme: Theme) -> None:
    """Mean capacity of the uplink in each of 300 parts of the run."""
    channel = run.scenario.channel
    curve = trace_of(channel.up).capacity("up")
    edges = np.linspace(0.0, seconds if seconds > 0.0 else 1.0, 301)
    by = np.array([curve.bits_by(float(t) + channel.start_s) for t in edges])
    rate = np.diff(by) / np.diff(edges) / 1e6
    if not channel.loop:
        rate[edges[1:] + channel.start_s > curve.period_s] = 0.0
    axis.stairs(rate, edges, fill=True, color=theme.faint)
    axis.stairs(rate, edges, color=theme.ink, linewidth=0.7)
    axis.set_xlim(edges[0], edges[-1])
    axis.set_ylim(bottom=0)
    axis.set_ylabel("uplink,\nMbit/s")


def _patch(colour: str, label: str, hatched: bool) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=colour, label=label, hatch="////" if hatched else None)


def _end_name(end: str) -> str:
    return {"error": "no answer", "nothing": "filter", Route.EXIT.value: "early exit"}.get(end, end)


def _beats(a: tuple[float, float, float], b: tuple[float, float, float]) -> bool:
    """Whether a is no worse than b in time, accuracy and joules, and better in one."""
    return a[0] <= b[0] and a[1] >= b[1] and a[2] <= b[2] and a != b
