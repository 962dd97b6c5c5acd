"""Draw a trace. Needs matplotlib (the extra 'sim')."""

from __future__ import annotations

from pathlib import Path

from splitedge.errors import ConfigError, MissingExtra
from splitedge.sim.curves import Capacity, Floats, Opportunities
from splitedge.sim.traces import BIN_S, Trace


def plot_trace(trace: Trace, path: Path) -> None:
    """Write a PNG with capacity over time and, where measured, RTT below it.

    Raises:
        MissingExtra: matplotlib is not installed.
        ConfigError: the file can not be written.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("sim", "'splitedge trace plot'") from error
    rows = (trace.up is not None or trace.down is not None) + (trace.rtt is not None)
    figure = Figure(figsize=(9, 2.6 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(rows, 1, sharex=True, squeeze=False)[:, 0].tolist()
    ways = [("both ways", trace.up)] if trace.up is trace.down else [("up", trace.up), ("down", trace.down)]
    drawn = [(name, curve) for name, curve in ways if curve is not None]
    if drawn:
        axis = axes.pop(0)
        for name, curve in drawn:
            axis.step(*_rates(curve), where="post", label=name, linewidth=0.8)
        axis.set_ylabel("capacity, Mbit/s")
        axis.set_ylim(bottom=0)
        axis.legend(loc="upper right")
    if trace.rtt is not None:
        axes[0].step(trace.rtt.time_s, trace.rtt.value * 1e3, where="post", linewidth=0.8)
        axes[0].set_ylabel("RTT, ms")
    figure.axes[0].set_title(Path(trace.source).name, loc="left")
    figure.axes[-1].set_xlabel("time, s")
    try:
        figure.savefig(path, format="png", dpi=110)
    except OSError as error:
        raise ConfigError(f"{path}: can not be written: {error.strerror or error}") from error


def _rates(curve: Capacity) -> tuple[Floats, Floats]:
    rates = curve.binned(BIN_S) if isinstance(curve, Opportunities) else curve
    return rates.time_s, rates.bps / 1e6
