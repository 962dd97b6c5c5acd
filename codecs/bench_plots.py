"""Draw an outcome of the bench. Needs matplotlib (the extra 'sim')."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from splitedge.codecs.bench import Outcome
from splitedge.codecs.rate_distortion import Point, accuracy_interval
from splitedge.errors import MissingExtra

if TYPE_CHECKING:
    from matplotlib.axes import Axes

#: Okabe and Ito's palette: told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES = {"ours": "-", "published": (0, (5, 2)), "baseline": (0, (1, 1.5))}
#: The families of a kind take the colours in turn, and once these are used up the next mark.
MARKS = {"ours": "oD", "published": "sP", "baseline": "^v<>"}


def draw(outcome: Outcome, rate: Path, size: Path) -> None:
    """Write two figures: accuracy by bytes, and accuracy by encoder size times bytes.

    Raises:
        MissingExtra: matplotlib is not installed.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("sim", "plots of the rate-distortion bench") from None
    for path, at, words in (
        (rate, _bytes, "mean payload of one row, bytes (header included)"),
        (size, _product, "encoder size × mean payload, KiB × bytes"),
    ):
        figure = Figure(figsize=(10, 5.6), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.subplots()
        _curves(axes, outcome, at)
        axes.set_xlabel(words)
        figure.savefig(path, format="png", dpi=130)


def _bytes(point: Point) -> float:
    return point.bytes_mean


def _product(point: Point) -> float:
    """0 for a codec without an encoder: it has no place on a logarithmic axis."""
    return point.encoder_kib * point.bytes_mean if point.encoder_macs else 0.0


def _curves(axes: Axes, outcome: Outcome, at: Callable[[Point], float]) -> None:
    from matplotlib.ticker import LogLocator

    families = [f for f in outcome.families() if f != "dedicated"]
    nowhere, drawn = [], dict.fromkeys(MARKS, 0)
    for family in families:
        points = sorted((p for p in outcome.family(family) if at(p) > 0), key=at)
        if points:
            _curve(axes, points, at, drawn[points[0].kind])
            drawn[points[0].kind] += 1
        else:
            nowhere.append(family)
    right = 100 * float(outcome.whole.mean())
    axes.axhline(right, color="#777777", lw=1, label=f"whole model, {right:.1f}%")
    axes.set_xscale("log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    axes.minorticks_off()
    _near_the_top(axes, outcome, right)
    axes.set_ylabel(f"accuracy on {outcome.rows} test rows, % (bars: 95% intervals)")
    axes.set_title(
        f"Rate and accuracy, {outcome.subject}", loc="left", fontsize=11, fontweight="bold", pad=10
    )
    without = f"no encoder: {', '.join(nowhere)}" if nowhere else None
    axes.legend(
        frameon=False,
        fontsize=8,
        loc="upper left",
        bbox_to_anchor=(1.01, 1.0),
        title=without,
        title_fontsize=8,
    )
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(True, which="major", color="#E5E5E5", lw=0.7)
    axes.set_axisbelow(True)


def _curve(axes: Axes, points: Sequence[Point], at: Callable[[Point], float], n: int) -> None:
    kind = points[0].kind
    marks = MARKS[kind]
    ends = [accuracy_interval(p.correct) for p in points]
    axes.errorbar(
        [at(p) for p in points],
        [100 * end.value for end in ends],
        yerr=[[100 * (e.value - e.low) for e in ends], [100 * (e.high - e.value) for e in ends]],
        color=COLOURS[n % len(COLOURS)],
        linestyle=LINES[kind],
        marker=marks[n // len(COLOURS) % len(marks)],
        markersize=4.5,
        lw=2.0 if kind == "ours" else 1.3,
        elinewidth=0.8,
        label=f"{points[0].family} ({kind})",
    )


def _near_the_top(axes: Axes, outcome: Outcome, right: float) -> None:
    """Differences of a point matter near the whole model; what lies 30 points below it is cut off."""
    lowest = min((100 * p.accuracy for p in outcome.points), default=0.0)
    axes.set_ylim(max(lowest - 2, right - 30), min(right + 2.5, 101.0))
