"""Train and judge forecasts: what a policy would have seen of a recorded uplink, and what came then."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from splitedge.errors import PolicyError
from splitedge.estimate import LinkEstimator
from splitedge.policies.forecast import LEAST_BPS, QUANTILES, Forecast
from splitedge.policies.forecast_trees import FEATURES, ForecastFile, TreesForecast
from splitedge.policies.trees import Trees, export
from splitedge.policy import Estimate

Floats = npt.NDArray[np.float64]
Columns = Mapping[str, npt.NDArray[Any]]

#: Seconds ahead that examples are made for.
HORIZONS = (0.05, 0.1, 0.2, 0.4)
#: Examples used at most; more are thinned out at random.
MOST_ROWS = 24_000
_EVERY_S, _BYTES, _LONGEST_S = 0.1, 4000.0, 1.0
_FASTEST_BPS = 8.0 * _BYTES / 0.001
_RTT_EVERY_S = 1.0


@dataclass(frozen=True, eq=False)
class Seen:
    """What the link estimator said at each moment, and the goodput that came after it.

    Attributes:
        source: who recorded it; whole sources are held out, never parts of one.
        t_s, goodput, rtt: as a policy sees them, bits/s and seconds, each (n,).
        horizon_s, came: seconds ahead and the mean goodput over them, each (n, horizons).
    """

    source: str
    t_s: Floats
    goodput: Floats
    rtt: Floats
    horizon_s: Floats
    came: Floats


def seen_of_trace(
    source: str, t_s: Floats, bps: Floats, rtt_s: float = 0.05, longest_s: float = 300.0
) -> Seen:
    """Replay a trace through the link estimator of the engine: a transfer of 4 kB every 0.1 s, one at a time.

    Goodput above what such a transfer can tell (it takes a millisecond) counts as that.

    Args:
        source: name of it.
        t_s: seconds, from 0, never falling.
        bps: capacity in bits/s from each second on; the last holds as long as the one before it.
        rtt_s: round-trip time.
        longest_s: seconds of the trace used at most.
    """
    ends = np.append(t_s, t_s[-1] + (t_s[-1] - t_s[-2] if len(t_s) > 1 else 1.0))
    bits = np.concatenate([[0.0], np.cumsum(np.diff(ends) * np.maximum(bps, LEAST_BPS))])
    last = min(float(ends[-1]), longest_s) - max(HORIZONS)
    now = np.arange(0.0, last, _EVERY_S)
    if not len(now):
        raise PolicyError(
            f"{source}: {ends[-1]:g} s are too short to learn from; {1 + max(HORIZONS):g} s are needed"
        )
    offered = np.interp(now, ends, bits)
    done = np.interp(offered + 8.0 * _BYTES, bits, ends) - now
    link = LinkEstimator()
    goodput, rtt = np.empty(len(now)), np.empty(len(now))
    free, measured, rtt_at = 0.0, (0.0, 0.0), -1.0
    for i, t in enumerate(now.tolist()):
        if measured[0] and measured[0] <= t:
            link.observe_uplink(measured[0], _BYTES, measured[1])
            measured = (0.0, 0.0)
        if t - rtt_at >= _RTT_EVERY_S:
            link.observe_rtt(t, rtt_s)
            rtt_at = t
        goodput[i], rtt[i] = link.goodput(t).mean, link.rtt(t).mean
        if t < free:
            link.observe_stall(t, _BYTES, t - free + float(done[i]))
        else:
            took = float(done[i])
            free = t + took
            if took < _LONGEST_S:
                measured = (t + took, took + 0.5 * rtt_s)
    steps = np.broadcast_to(np.array(HORIZONS), (len(now), len(HORIZONS)))
    came = (np.interp(now[:, None] + steps, ends, bits) - offered[:, None]) / steps
    return Seen(source, now, goodput, rtt, steps, np.clip(came, LEAST_BPS, _FASTEST_BPS))


def seen_of_records(source: str, table: Columns) -> Seen:
    """What the requests of a run say: the estimates at each decision, and how fast its payload then went.

    Args:
        source: name of it.
        table: columns of records: `t_s`, `goodput_bps`, `rtt_s`, `uplink_s`, `bytes_up`, `attempts`.

    Raises:
        PolicyError: fewer than 50 requests were sent once and arrived.
    """
    seconds = table["uplink_s"] - 0.5 * table["rtt_s"]
    good = (table["attempts"] == 1) & (seconds > 1e-4) & np.isfinite(table["goodput_bps"])
    if int(good.sum()) < 50:
        raise PolicyError(
            f"{source}: {int(good.sum())} requests tell the uplink's goodput; at least 50 are needed"
        )
    order = np.argsort(table["t_s"][good], kind="stable")
    part = {
        name: np.asarray(table[name], float)[good][order] for name in table if table[name].dtype.kind in "fiu"
    }
    took = seconds[good][order]
    came = 8.0 * part["bytes_up"] / took
    return Seen(source, part["t_s"], part["goodput_bps"], part["rtt_s"], took[:, None], came[:, None])


def examples(seen: Seen) -> tuple[Floats, Floats]:
    """Rows for the trees (n, FEATURES), and the logarithm of what came over what was seen, (n,)."""
    state = TreesForecast()
    rows, wanted = [], []
    for i, t in enumerate(seen.t_s.tolist()):
        state.observe(t, float(seen.goodput[i]), float(seen.rtt[i]))
        rows.append(state.features(seen.horizon_s[i].copy()))
        wanted.append(np.log(seen.came[i] / max(float(seen.goodput[i]), LEAST_BPS)))
    return np.concatenate(rows), np.concatenate(wanted)


@dataclass(frozen=True, slots=True)
class Judged:
    """How good a forecast is. Pinball losses in log units: 0.1 is about a tenth of the goodput.

    Attributes:
        pinball: mean over the three quantiles.
        coverage: part of what came between low and high; 0.8 is right.
        below: part of what came below low; 0.1 is right.
        width: median of high over low.
    """

    pinball: float
    coverage: float
    below: float
    width: float


def judge(forecast: Forecast, seen: Seen) -> tuple[Floats, Floats]:
    """Logarithms of what a forecast says, (n * horizons, 3): low, middle, high; and of what came. It is told
    what came, as a policy would be, when the horizon is over.
    """
    said = np.empty((len(seen.t_s), seen.horizon_s.shape[1], 3))
    told: deque[tuple[float, Estimate, float]] = deque()
    for i, t in enumerate(seen.t_s.tolist()):
        while told and told[0][0] <= t:
            _, before, came = told.popleft()
            forecast.adjust(before, came)
        forecast.observe(t, float(seen.goodput[i]), float(seen.rtt[i]))
        for j, horizon in enumerate(seen.horizon_s[i].tolist()):
            found = forecast.predict(horizon)
            said[i, j] = found.low, found.mean, found.high
            if j == 0:
                told.append((t + horizon, found, float(seen.came[i, j])))
    return np.log(said.reshape(-1, 3)), np.log(seen.came.reshape(-1))


def score(said: Floats, came: Floats) -> Judged:
    """Count `judge` up; `said` holds low, middle, high."""
    return Judged(
        pinball=float(np.mean([_pinball(said[:, i], came, q) for i, q in enumerate(QUANTILES)])),
        coverage=float(((came >= said[:, 0]) & (came <= said[:, 2])).mean()),
        below=float((came < said[:, 0]).mean()),
        width=float(np.exp(np.median(said[:, 2] - said[:, 0]))),
    )


def _pinball(said: Floats, came: Floats, q: float) -> float:
    error = came - said
    return float(np.maximum(q * error, (q - 1.0) * error).mean())


def fit_forecast(
    seen: Sequence[Seen],
    *,
    trees: int = 60,
    depth: int = 3,
    seed: int = 0,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> TreesForecast:
    """Train one. A fifth of each recording, its end, is the validation part: it is reported on, not trained
    on.

    Args:
        seen: of one or many recordings.
        trees: for each quantile.
        depth: of a tree.
        seed: of what is drawn; the same seed and data give the same trees.
        progress: told what is done and which share of it.

    Raises:
        PolicyError: there is nothing to learn from.
    """
    from sklearn.ensemble import GradientBoostingRegressor

    parts: list[tuple[Floats, Floats, Floats, Floats]] = []
    for i, one in enumerate(seen):
        x, y = examples(one)
        at = int(0.8 * len(y))
        parts.append((x[:at], y[:at], x[at:], y[at:]))
        progress("reading", (i + 1) / len(seen))
    if not parts or sum(len(part[1]) for part in parts) < 200:
        raise PolicyError(
            "a forecast needs at least 200 moments to learn from; give more or longer recordings"
        )
    x, y, held, wanted = (np.concatenate([part[i] for part in parts]) for i in range(4))
    rng = np.random.default_rng(seed)
    chosen = rng.permutation(len(y))[:MOST_ROWS]
    models = []
    for i, q in enumerate(QUANTILES):
        model = GradientBoostingRegressor(
            loss="quantile",
            alpha=q,
            n_estimators=trees,
            max_depth=depth,
            subsample=0.5,
            min_samples_leaf=20,
            random_state=seed,
        )
        models.append(model.fit(x[chosen], y[chosen]))
        progress("training", (i + 1) / len(QUANTILES))
    arrays = export(models, FEATURES, [float(m.init_.constant_.item()) for m in models])
    judged = score(np.sort(Trees(arrays)(held), -1), wanted)
    sources = tuple(sorted({one.source for one in seen}))
    return TreesForecast(
        ForecastFile(
            trees=arrays, rows=len(chosen), sources=sources, pinball=judged.pinball, coverage=judged.coverage
        )
    )
