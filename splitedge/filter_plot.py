"""Draw what filters can do: their ROC, and the point each works at."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from splitedge.errors import ConfigError, MissingExtra
from splitedge.explain_plot import COLOURS
from splitedge.roc import OperatingPoint


def draw(points: Mapping[str, OperatingPoint], recall: float, path: Path | str) -> None:
    """Write the figure; the ending of `path` names its format.

    Raises:
        MissingExtra: matplotlib is not installed.
        ConfigError: the file can not be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("sim", "filter.plot(...)") from None
    figure = Figure(figsize=(6.4, 5.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    axes.axhline(recall, color="#888888", lw=0.8, ls="--", label=f"recall wanted: {recall:.1%}")
    for i, (name, point) in enumerate(points.items()):
        if point.curve is None:
            continue
        colour = COLOURS[i % len(COLOURS)]
        label = f"{name} (area {point.curve.auc:.3f}): sends everything"
        if point.ever:
            label = (
                f"{name} (area {point.curve.auc:.3f}): {point.filtered:.0%} of rows kept back,\n"
                f"recall {point.recall:.1%}, surely {point.lower:.1%}"
            )
            axes.plot(_needless_sent(point), point.recall, "o", color=colour, ms=8, zorder=3)
        axes.plot(point.curve.needless, point.curve.needed, color=colour, lw=1.5, label=label)
    axes.set_xlabel("needless requests that are sent")
    axes.set_ylabel("requests that need the cloud and are sent (recall)")
    axes.set_xlim(-0.02, 1.02)
    axes.set_ylim(-0.02, 1.02)
    axes.legend(loc="lower right", fontsize=8)
    try:
        figure.savefig(path, dpi=150)
    except OSError as error:
        raise ConfigError(f"{path}: can not be written: {error.strerror or error}") from error


def _needless_sent(point: OperatingPoint) -> float:
    """Part of the needless rows that is sent."""
    needless = point.rows - point.needed
    return 1.0 - point.filtered * point.precision * point.rows / needless
