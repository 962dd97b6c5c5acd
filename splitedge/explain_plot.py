"""Draw what `explain` says: what crosses each cut, and latency by uplink with the policy's choice below."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splitedge.errors import MissingExtra
from splitedge.explain import GRID, Band, Conditions, winners
from splitedge.plan import Plan
from splitedge.policy import Option, Policy, Route, latency_mean

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#F0E442", "#000000")
RAW, CODED = "#B8C4CE", "#0072B2"


def draw(plan: Plan, policy: Policy, policy_name: str, at: Conditions, path: Path | str) -> None:
    """Write the figure; the ending of `path` names its format.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("sim", "explain(plot=...)") from None
    figure = Figure(figsize=(14, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.3))
    _draw_cuts(left, plan)
    _draw_latency(right, plan, policy, policy_name, at)
    figure.savefig(path, dpi=150)


def _draw_cuts(axes: Axes, plan: Plan) -> None:
    """Bytes at each cut, and how much of the work stands before it."""
    rows = plan.table
    at = np.arange(len(rows))
    raw, coded = [float(row.raw_bytes) for row in rows], [row.coded_bytes for row in rows]
    for shift, values, colour, label in (
        (-0.2, raw, RAW, "raw tensors"),
        (0.2, coded, CODED, "framed, as sent"),
    ):
        bars = axes.bar(at + shift, values, 0.38, color=colour, label=label)
        axes.bar_label(bars, [_bytes(value) for value in values], padding=2, fontsize=8, color="#333333")
    shares = [row.head_flops / max(row.head_flops + row.tail_flops, 1.0) for row in rows]
    names = [
        f"{row.name}\n{share:.0%} of the work before it" for row, share in zip(rows, shares, strict=True)
    ]
    axes.set_xticks(at, names, fontsize=9)
    axes.set_xlim(-0.7, max(len(rows) - 0.3, 0.7))
    axes.set_yscale("log")
    axes.set_ylim(min(coded, default=1.0) / 3, max(*raw, *coded, 1.0) * 4)
    axes.yaxis.set_major_formatter(lambda value, _: _bytes(value))
    axes.minorticks_off()
    axes.set_ylabel("bytes of one row")
    _title(axes, "What crosses each cut")
    axes.legend(frameon=False, fontsize=9, loc="upper right", ncols=2)
    _plain(axes)


def _draw_latency(axes: Axes, plan: Plan, policy: Policy, name: str, at: Conditions) -> None:
    """A line an option, the deadline across, and a strip of what the policy takes."""
    bands = winners(policy, plan.options, at)
    chosen = {band.option for band in bands}
    shown = _shown(plan.options, chosen)
    colour = {i: COLOURS[n % len(COLOURS)] for n, i in enumerate(shown)}
    observation = at.observe(plan.options, GRID)
    for i in shown:
        seconds = np.broadcast_to(latency_mean(plan.options[i], observation), GRID.shape)
        width = 2.4 if i in chosen else 1.1
        axes.plot(GRID / 1e6, seconds * 1e3, color=colour[i], lw=width, label=plan.options[i].name)
    axes.axhline(at.deadline_s * 1e3, color="#444444", lw=1, ls=(0, (4, 3)), label="deadline")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(GRID[0] / 1e6, GRID[-1] / 1e6)
    low, high = axes.get_ylim()
    axes.set_ylim(low * (low / high) ** 0.16, high)
    _draw_strip(axes, bands, colour, [option.name for option in plan.options])
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("uplink goodput, Mbit/s")
    axes.set_ylabel(f"predicted mean latency, ms (round trip {at.rtt_s * 1e3:g} ms)")
    _title(axes, f"How long each way takes, and which policy '{name}' takes")
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    _plain(axes)


def _draw_strip(axes: Axes, bands: list[Band], colour: dict[int, str], names: list[str]) -> None:
    """Coloured by option; named where there is room."""
    span = np.log(GRID[-1] / GRID[0])
    for n, band in enumerate(bands):
        high = bands[n + 1].low_bps if n + 1 < len(bands) else band.high_bps
        axes.axvspan(band.low_bps / 1e6, high / 1e6, ymax=0.07, color=colour[band.option], lw=0)
        share, name = np.log(high / band.low_bps) / span, names[band.option]
        if share > 0.014 * len(name):
            middle = np.sqrt(band.low_bps * high) / 1e6
            axes.text(
                middle,
                0.035,
                name,
                transform=axes.get_xaxis_transform(),
                color="white",
                fontsize=8,
                ha="center",
                va="center",
            )


def _shown(options: tuple[Option, ...], chosen: set[int]) -> list[int]:
    """The chosen options, and of the others the highest level of each way; in table order."""
    highest: dict[Any, int] = {}
    for i, option in enumerate(options):
        highest[option.route, option.cut, option.exit if option.route is Route.EXIT else None] = i
    return sorted(chosen | set(highest.values()))


def _bytes(value: float) -> str:
    """`189 B`, `1.2 kB`, `3 MB`."""
    for unit, size in (("MB", 1e6), ("kB", 1e3)):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:.3g} B"


def _title(axes: Axes, text: str) -> None:
    axes.set_title(text, loc="left", fontsize=11, fontweight="bold", pad=10)


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", axis="y", color="#E5E5E5", lw=0.7)
    axes.set_axisbelow(True)
