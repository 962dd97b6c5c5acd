"""Draw what `explain` says: what crosses each cut, and latency by uplink with the policy's choice below."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splitedge.errors import MissingExtra
from splitedge.explain import GRID, Conditions, winners
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
    figure = Figure(figsize=(12.5, 5.2), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2, width_ratios=(1, 1.35))
    _draw_cuts(left, plan)
    _draw_latency(right, plan, policy, policy_name, at)
    figure.savefig(path, dpi=150)


def _draw_cuts(axes: Axes, plan: Plan) -> None:
    """Bytes at each cut, and how much of the work stands before it."""
    rows = plan.table
    at = np.arange(len(rows))
    axes.bar(at - 0.2, [row.raw_bytes for row in rows], 0.38, color=RAW, label="raw tensors")
    axes.bar(at + 0.2, [row.coded_bytes for row in rows], 0.38, color=CODED, label="as sent")
    for i, row in enumerate(rows):
        share = row.head_flops / max(row.head_flops + row.tail_flops, 1.0)
        text = f"{row.coded_bytes:,.0f} B"
        axes.annotate(
            text, (i + 0.2, row.coded_bytes), (0, 2), textcoords="offset points", ha="center", fontsize=8
        )
        axes.annotate(
            f"{share:.0%} of the work\non the device",
            (i, 0.0),
            (0, -28),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            ha="center",
            va="top",
            fontsize=8,
            color="#555555",
        )
    axes.set_yscale("log")
    axes.margins(y=0.15)
    axes.set_xticks(at, [row.name for row in rows])
    axes.set_ylabel("bytes of one row")
    axes.set_title("What crosses each cut", loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, fontsize=9)
    _plain(axes)


def _draw_latency(axes: Axes, plan: Plan, policy: Policy, name: str, at: Conditions) -> None:
    bands = winners(policy, plan.options, at)
    chosen = {band.option for band in bands}
    shown = _shown(plan.options, chosen)
    colour = {i: COLOURS[n % len(COLOURS)] for n, i in enumerate(shown)}
    observation = at.observe(plan.options, GRID)
    for i in shown:
        seconds = np.broadcast_to(latency_mean(plan.options[i], observation), GRID.shape)
        width = 2.2 if i in chosen else 1.0
        axes.plot(GRID / 1e6, seconds * 1e3, color=colour[i], lw=width, label=plan.options[i].name)
    axes.axhline(at.deadline_s * 1e3, color="#444444", lw=1, ls=(0, (4, 3)))
    axes.annotate(
        f"deadline {at.deadline_s * 1e3:g} ms",
        (1, at.deadline_s * 1e3),
        (-4, 4),
        ha="right",
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        fontsize=8,
        color="#444444",
    )
    for band in bands:
        axes.axvspan(band.low_bps / 1e6, band.high_bps / 1e6, ymax=0.045, color=colour[band.option], lw=0)
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(GRID[0] / 1e6, GRID[-1] / 1e6)
    low, high = axes.get_ylim()
    axes.set_ylim(low * (low / high) ** 0.12, high)
    axes.set_xlabel("uplink goodput, Mbit/s")
    axes.set_ylabel(f"predicted latency, ms (round trip {at.rtt_s * 1e3:g} ms)")
    title = f"Latency of each way; the bar below is what '{name}' takes"
    axes.set_title(title, loc="left", fontsize=11, fontweight="bold")
    axes.legend(frameon=False, fontsize=8, loc="upper right")
    _plain(axes)


def _shown(options: tuple[Option, ...], chosen: set[int]) -> list[int]:
    """The chosen options, and of the others the highest level of each way; in table order."""
    highest: dict[Any, int] = {}
    for i, option in enumerate(options):
        highest[option.route, option.cut, option.exit if option.route is Route.EXIT else None] = i
    return sorted(chosen | set(highest.values()))


def _plain(axes: Axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", axis="y", color="#E5E5E5", lw=0.7)
    axes.set_axisbelow(True)
