"""What `splitedge trace synth` does: make a trace by hand-set parameters or like a recorded one."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from rich.console import Console
from rich.table import Table

from splitedge.errors import ConfigError
from splitedge.sim.curves import Rates, Series
from splitedge.sim.fit_error import QUANTILES, Errors
from splitedge.sim.fit_trace import HELD_OUT, RUNS, Fit, fit
from splitedge.sim.formats import read_trace, write_csv
from splitedge.sim.generators import MODELS, Generator, Markov
from splitedge.sim.synth import MAX_SAMPLES, LteLike, lte_like
from splitedge.sim.traces import BIN_S, Trace, summarise

_LEVELS = "0.5,2,8"
_STAY_S = 5.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to make; None stands for what `trace synth --help` says."""

    seconds: float | None = None
    seed: int = 0
    model: str | None = None
    settings: tuple[str, ...] = ()
    like: Path | None = None
    direction: Literal["up", "down"] = "up"
    apart: bool = False
    step_s: float | None = None
    rtt_s: float | None = None
    lte: dict[str, float] = field(default_factory=dict)
    plot: Path | None = None


def make(wanted: Wanted, to: Path, out: Console, as_json: bool) -> None:
    """Make the trace, write it as CSV and show how well it fits what it is to be like.

    Raises:
        ConfigError: options that do not go together, an unknown parameter.
        TraceError: a parameter or the trace to be like is refused.
    """
    _check(wanted)
    if wanted.like is not None:
        _like(wanted, wanted.like, to, out, as_json)
        return
    seconds = wanted.seconds or 300.0
    if wanted.model in (None, "lte"):
        numbers: dict[str, Any] = dict(wanted.lte)
        if wanted.rtt_s is not None:
            numbers["rtt_s"] = wanted.rtt_s
        made = lte_like(seconds, wanted.seed, LteLike(**numbers))
    else:
        assert wanted.model is not None
        step_s = wanted.step_s or BIN_S
        model = by_hand(wanted.model, wanted.settings, step_s)
        made = _trace(model, seconds, step_s, wanted, wanted.rtt_s)
    write_csv(made, to)
    _wrote(to, out, as_json)


def by_hand(name: str, settings: tuple[str, ...], step_s: float) -> Generator:
    """A model with the parameters of `--with NAME=NUMBER`; several numbers have commas between them.

    Raises:
        ConfigError: a parameter is unknown or no number.
        TraceError: a number is out of range.
    """
    known = ("levels_mbps", "stay_s") if name == Markov.name else tuple(f.name for f in fields(MODELS[name]))
    values: dict[str, tuple[float, ...]] = {}
    for setting in settings:
        key, _, text = setting.partition("=")
        if key not in known:
            raise ConfigError(
                f"--with {setting}: '{name}' has no parameter '{key}'; it has {', '.join(known)}"
            )
        try:
            values[key] = tuple(float(part) for part in text.split(","))
        except ValueError as error:
            raise ConfigError(f"--with {setting}: give a number, or several with commas between") from error
        if len(values[key]) > 1 and key not in ("levels_mbps", "quantiles_mbps"):
            raise ConfigError(f"--with {setting}: '{key}' is one number")
    if name == Markov.name:
        levels = values.get("levels_mbps", tuple(map(float, _LEVELS.split(","))))
        return Markov.of_levels(levels, values.get("stay_s", (_STAY_S,))[0], step_s)
    numbers: dict[str, object] = {
        key: value if key == "quantiles_mbps" else value[0] for key, value in values.items()
    }
    return MODELS[name](**numbers)  # type: ignore[arg-type]  # names and kinds were checked above


def _check(wanted: Wanted) -> None:
    lte = wanted.model == "lte" or (wanted.model is None and wanted.like is None)
    if wanted.like is not None and (lte or wanted.settings):
        raise ConfigError("--like fits the parameters itself: no --model lte and no --with beside it")
    if wanted.plot is not None and wanted.like is None:
        raise ConfigError(
            "--plot lays the made over the real: it needs --like (or use 'splitedge trace plot')"
        )
    if not lte and wanted.lte:
        raise ConfigError("--up-mbps and --down-mbps are for --model lte; use --with median_mbps=NUMBER")
    if lte and (wanted.settings or wanted.apart or wanted.step_s is not None):
        raise ConfigError(
            "--with, --apart and --step-s are not for --model lte; it has --up- and --down-mbps"
        )
    if wanted.like is not None and wanted.step_s is not None:
        raise ConfigError("--like takes the steps of its trace: no --step-s beside it")
    step_s = wanted.step_s or BIN_S
    if not lte and not step_s <= (wanted.seconds or 300.0) <= MAX_SAMPLES * step_s:
        raise ConfigError(f"--seconds: give from {step_s:g} to {MAX_SAMPLES * step_s:g}")


def _trace(model: Generator, seconds: float, step_s: float, wanted: Wanted, rtt_s: float | None) -> Trace:
    count = max(1, round(seconds / step_s))
    time_s = np.arange(count, dtype=np.float64) * step_s

    def draw(seed: int) -> Rates:
        return Rates(time_s, model.generate(count, step_s, seed), count * step_s)

    up = draw(2 * wanted.seed)
    down = draw(2 * wanted.seed + 1) if wanted.apart else up
    rtt = None if rtt_s is None else Series(time_s, np.full(count, rtt_s), count * step_s)
    return Trace(f"{model.name}(seed={wanted.seed})", "synthetic", up, down, rtt)


def _like(wanted: Wanted, like: Path, to: Path, out: Console, as_json: bool) -> None:
    real = read_trace(like)
    found = fit(real.capacity(wanted.direction), str(like), wanted.seed, wanted.model)
    rtt_s = wanted.rtt_s
    if rtt_s is None and real.rtt is not None:
        rtt_s = summarise(real.rtt).p50 / 1e3
    step_s = found.steps.step_s
    seconds = wanted.seconds or len(found.steps.bps) * step_s
    if seconds > MAX_SAMPLES * step_s:
        raise ConfigError(f"--seconds: in steps of {step_s:g} s give at most {MAX_SAMPLES * step_s:g}")
    made = _trace(found.best, seconds, step_s, wanted, rtt_s)
    write_csv(made, to)
    if wanted.plot is not None:
        from splitedge.sim.plots import plot_fit

        assert isinstance(made.up, Rates)
        plot_fit(found, made.up.bps, Path(like).name, wanted.plot)
    if not as_json:
        out.print(_candidates(found, str(like)))
        out.print(_whole(found))
    _wrote(to, out, as_json, found)


def _wrote(to: Path, out: Console, as_json: bool, found: Fit | None = None) -> None:
    if not as_json:
        out.print(f"wrote {to}", highlight=False, soft_wrap=True)
        return
    result: dict[str, object] = {"wrote": str(to)}
    if found is not None:
        result["model"] = found.best.name
        result["held_out"] = {c.model.name: _numbers(c.errors) for c in found.candidates}
        result["itself"] = _numbers(found.itself)
        result["whole"] = _numbers(found.whole)
    sys.stdout.write(json.dumps(result) + "\n")


def _numbers(errors: Errors) -> dict[str, object]:
    return {**asdict(errors), "score": errors.score}


def _candidates(found: Fit, like: str) -> Table:
    title = (
        f"{like}: fitted to the first {1 - HELD_OUT:.0%}, compared with the rest ({RUNS} series each); "
        "best: least KS + ACF + delivery"
    )
    table = Table(title=title, title_justify="left")
    table.add_column("model", no_wrap=True)
    for name in ("score", "KS", "ACF", "delivery", "Wasserstein", "outages/min", "mean s"):
        table.add_column(name, justify="right")
    rest = found.candidates[0].errors.real_outages
    for i, candidate in enumerate(found.candidates):
        table.add_row(candidate.model.name + (" *" if i == 0 else ""), *_cells(candidate.errors))
    table.add_row("the first part itself", *_cells(found.itself))
    table.add_row("the rest", "", "", "", "", "", f"{rest.per_minute:.2f}", f"{rest.mean_s:.2f}")
    return table


def _cells(errors: Errors) -> tuple[str, ...]:
    made = errors.made_outages
    shown = (errors.score, errors.ks, errors.acf, errors.delivery)
    return (
        *(f"{value:.3f}" for value in shown),
        f"{errors.wasserstein:.1%}",
        f"{made.per_minute:.2f}",
        f"{made.mean_s:.2f}",
    )


def _whole(found: Fit) -> Table:
    errors, step_s = found.whole, found.steps.step_s
    made, real = errors.made_outages, errors.real_outages
    table = Table(title=f"{found.best.name}, fitted to the whole and compared with it", title_justify="left")
    for name in ("", "real", "made"):
        table.add_column(name, justify="right")
    mean, quantiles = float(found.steps.bps.mean()) / 1e6, np.quantile(found.steps.bps, QUANTILES) / 1e6
    for share, value, apart in zip(QUANTILES, quantiles.tolist(), errors.quantiles, strict=True):
        table.add_row(f"{share:.0%} quantile, Mbit/s", f"{value:.3g}", f"{value + apart * mean:.3g}")
    for lag_s, ours, theirs in zip(errors.lags_s, errors.real_acf, errors.made_acf, strict=True):
        table.add_row(f"correlation of the log rate after {lag_s:g} s", f"{ours:.2f}", f"{theirs:.2f}")
    table.add_row("outages a minute", f"{real.per_minute:.2f}", f"{made.per_minute:.2f}")
    table.add_row("mean outage, s", f"{real.mean_s:.2f}", f"{made.mean_s:.2f}")
    table.add_row("95% of outages under, s", f"{real.p95_s:.2f}", f"{made.p95_s:.2f}")
    table.add_row("share of time out", f"{real.share:.1%}", f"{made.share:.1%}")
    table.caption = (
        f"KS {errors.ks:.3f}, Wasserstein {errors.wasserstein:.1%} of the mean, ACF {errors.acf:.3f}, "
        f"delivery {errors.delivery:.3f}; steps of {step_s:g} s"
    )
    return table
