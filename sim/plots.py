"""Draw traces and fits. Needs matplotlib (the extra 'sim')."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splitedge.errors import ConfigError, MissingExtra
from splitedge.sim.curves import Capacity, Floats, Opportunities, Rates
from splitedge.sim.traces import BIN_S, Trace

if TYPE_CHECKING:
    from splitedge.sim.fit_trace import Fit


def plot_trace(trace: Trace, path: Path) -> None:
    """Write a PNG: capacity over time and, where measured, RTT below it; beside each, its distribution.

    Raises:
        MissingExtra: matplotlib is not installed.
        ConfigError: the file can not be written.
    """
    rows = (trace.up is not None or trace.down is not None) + (trace.rtt is not None)
    figure = _figure((11, 2.6 * rows), "'splitedge trace plot'")
    axes = figure.subplots(rows, 2, squeeze=False, width_ratios=(3, 1))
    ways = [("both ways", trace.up)] if trace.up is trace.down else [("up", trace.up), ("down", trace.down)]
    drawn = [(name, curve) for name, curve in ways if curve is not None]
    row = 0
    if drawn:
        for name, curve in drawn:
            rates = _rates(curve)
            axes[0][0].step(rates.time_s, rates.bps / 1e6, where="post", label=name, linewidth=0.8)
            _cdf(axes[0][1], rates.bps / 1e6, np.diff(rates.time_s, append=rates.period_s), name)
        axes[0][0].set_ylabel("capacity, Mbit/s")
        axes[0][0].set_ylim(bottom=0)
        axes[0][0].legend(loc="upper right")
        axes[0][1].set_xlabel("capacity, Mbit/s")
        row = 1
    if trace.rtt is not None:
        rtt = trace.rtt
        axes[row][0].step(rtt.time_s, rtt.value * 1e3, where="post", linewidth=0.8)
        axes[row][0].set_ylabel("RTT, ms")
        _cdf(axes[row][1], rtt.value * 1e3, np.diff(rtt.time_s, append=rtt.period_s), "rtt")
        axes[row][1].set_xlabel("RTT, ms")
    axes[0][0].set_title(Path(trace.source).name, loc="left")
    axes[0][1].set_title("share of time below", loc="left")
    axes[-1][0].set_xlabel("time, s")
    _save(figure, path)


def plot_fit(fit: Fit, made: Floats, name: str, path: Path) -> None:
    """Write a PNG that lays a made series over the real one: over time, as distribution, as correlation.

    Args:
        fit: of the real trace.
        made: bits per second in steps of the same length.
        name: of the real trace.
        path: to write.

    Raises:
        MissingExtra: matplotlib is not installed.
        ConfigError: the file can not be written.
    """
    figure = _figure((13, 3.4), "'splitedge trace synth --plot'")
    over, spread, memory = figure.subplots(1, 3, width_ratios=(2, 1, 1))
    step_s, errors = fit.steps.step_s, fit.whole
    shown = min(len(fit.steps.bps), len(made), round(120.0 / step_s))
    for label, bps in (("real", fit.steps.bps), (f"made ({fit.best.name})", made)):
        over.step(np.arange(shown) * step_s, bps[:shown] / 1e6, where="post", label=label, linewidth=0.8)
        _cdf(spread, bps / 1e6, np.ones(len(bps)), label)
    over.set_title(name, loc="left")
    over.set_xlabel("time, s")
    over.set_ylabel("capacity, Mbit/s")
    over.set_ylim(bottom=0)
    over.legend(loc="upper right")
    spread.set_title("share of time below", loc="left")
    spread.set_xlabel("capacity, Mbit/s")
    memory.plot(errors.lags_s, errors.real_acf, marker="o", label="real")
    memory.plot(errors.lags_s, errors.made_acf, marker="o", label="made")
    memory.set_xscale("log")
    memory.set_title("correlation of the log rate", loc="left")
    memory.set_xlabel("after, s")
    memory.set_ylim(-0.5, 1.0)
    _save(figure, path)


def _figure(size: tuple[float, float], needed_for: str) -> Any:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("sim", needed_for) from error
    figure = Figure(figsize=size, layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _save(figure: Any, path: Path) -> None:
    try:
        figure.savefig(path, format="png", dpi=110)
    except OSError as error:
        raise ConfigError(f"{path}: can not be written: {error.strerror or error}") from error


def _cdf(axis: Any, values: Floats, weights: Floats, label: str) -> None:
    order = np.argsort(values, kind="stable")
    shares = np.cumsum(weights[order]) / weights.sum()
    axis.step(np.append(values[order][:1], values[order]), np.append(0.0, shares), label=label, where="post")
    axis.set_ylim(0, 1)


def _rates(curve: Capacity) -> Rates:
    return curve.binned(BIN_S) if isinstance(curve, Opportunities) else curve
