"""Random processes for the capacity of one direction, each with a few parameters that can be fitted.

All work on steps of equal length and give bits per second; the same seed gives the same series. Parameters
come from `fit_trace.py` (`splitedge trace synth --like FILE`) or by hand (`--model NAME --with sigma=0.8`).

- `gauss-markov`: the log rate is a first-order Gauss-Markov process (Gudmundson, "Correlation model for
  shadow fading in mobile radio systems", 1991), with outages.
- `markov`: k levels of capacity and a Markov chain among them (and an outage, where there are some), as in
  Markov-modulated models of mobile links.
- `gilbert-elliott`: a good and a bad state (Gilbert 1960, Elliott 1963); in the good one the rate is drawn
  anew in every step.
- `handover`: cells of exponential stays, each with a level of its own; faster Gauss-Markov fading within; a
  cell may begin with an interruption. The rate is log-normal, or of any distribution given by quantiles.
- `two-scale`: the same cells and fading, the rate of a distribution given by quantiles. Its outages are not a
  process of their own but its deepest fades: they come where the rate was low already.

Outages of `gauss-markov`, and of `handover` outside of handovers, are a Gilbert-Elliott chain laid over the
rate.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass, fields
from itertools import accumulate
from typing import ClassVar, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

from splitedge.errors import TraceError
from splitedge.sim.curves import Floats

Bools = NDArray[np.bool_]
Rng = np.random.Generator


class Generator(Protocol):
    """A process that gives a capacity."""

    name: ClassVar[str]

    def generate(self, count: int, step_s: float, seed: int) -> Floats:
        """Bits per second in each of `count` steps of `step_s` seconds."""
        ...


class Checked:
    """Refuses parameters that make no process: all are finite numbers, and none is negative."""

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = getattr(self, field.name)
            numbers = np.asarray(value, dtype=np.float64)
            if not (np.isfinite(numbers).all() and (numbers >= 0.0).all()):
                raise TraceError(f"{field.name} is {value}; give a number of 0 or more")


@dataclass(frozen=True, slots=True)
class GaussMarkov(Checked):
    """Gauss-Markov log rate with outages.

    Attributes:
        median_mbps: median rate outside of outages.
        sigma: standard deviation of the log rate.
        tau_s: seconds after which its correlation is 1/e; 0 for none from step to step.
        outage_every_s, outage_s: mean seconds between outages, and of one; 0 for `outage_s` has none.
    """

    name: ClassVar[str] = "gauss-markov"
    median_mbps: float = 6.0
    sigma: float = 0.9
    tau_s: float = 1.0
    outage_every_s: float = 12.0
    outage_s: float = 0.35

    def generate(self, count: int, step_s: float, seed: int) -> Floats:
        """See `Generator`."""
        fading = gauss_markov(count, step_s, self.tau_s, np.random.default_rng([seed, 0]))
        out = alternating(count, step_s, self.outage_every_s, self.outage_s, np.random.default_rng([seed, 1]))
        return np.where(out, 0.0, 1e6 * self.median_mbps * np.exp(self.sigma * fading))


@dataclass(frozen=True, slots=True)
class Markov(Checked):
    """Levels of capacity with a Markov chain among them.

    Attributes:
        low_mbps, high_mbps: each state's least and most rate, (k,); drawn between them, evenly in the log.
            Both 0 is an outage.
        moves: chance to go from state to state in one step, (k, k), rows sum to 1.
    """

    name: ClassVar[str] = "markov"
    low_mbps: tuple[float, ...]
    high_mbps: tuple[float, ...]
    moves: tuple[tuple[float, ...], ...]

    @classmethod
    def of_levels(cls, levels_mbps: tuple[float, ...], stay_s: float, step_s: float) -> Self:
        """Fixed levels with mean stays of `stay_s`, moves to a neighbouring level."""
        k = len(levels_mbps)
        leave = min(1.0, step_s / max(stay_s, step_s)) if k > 1 else 0.0
        moves = np.eye(k) * (1.0 - leave)
        for i in range(k):
            beside = [j for j in (i - 1, i + 1) if 0 <= j < k]
            for j in beside:
                moves[i, j] = leave / len(beside)
        return cls(levels_mbps, levels_mbps, tuple(map(tuple, moves.tolist())))

    def generate(self, count: int, step_s: float, seed: int) -> Floats:
        """See `Generator`."""
        k = len(self.low_mbps)
        moves = np.array(self.moves)
        if moves.shape != (k, k) or len(self.high_mbps) != k or not np.allclose(moves.sum(axis=1), 1.0):
            raise TraceError(f"a Markov chain of {k} states needs {k} rows of {k} chances that sum to 1")
        states = chain(count, moves, np.random.default_rng([seed, 0]))
        low, high = np.array(self.low_mbps), np.array(self.high_mbps)
        some = low > 0.0
        ratio = np.divide(high, low, out=np.ones(k), where=some)
        share = np.random.default_rng([seed, 1]).random(count)
        return np.asarray(1e6 * low[states] * ratio[states] ** share)


@dataclass(frozen=True, slots=True)
class GilbertElliott(Checked):
    """A good state with a rate drawn anew in every step, and a bad one.

    Attributes:
        median_mbps, sigma: of the log-normal rate in the good state.
        bad_mbps: rate in the bad state; 0 is an outage.
        good_s, bad_s: mean seconds in each state; 0 for `bad_s` has no bad state.
    """

    name: ClassVar[str] = "gilbert-elliott"
    median_mbps: float = 6.0
    sigma: float = 0.5
    bad_mbps: float = 0.0
    good_s: float = 10.0
    bad_s: float = 0.5

    def generate(self, count: int, step_s: float, seed: int) -> Floats:
        """See `Generator`."""
        bad = alternating(count, step_s, self.good_s, self.bad_s, np.random.default_rng([seed, 1]))
        noise = np.random.default_rng([seed, 0]).standard_normal(count)
        return 1e6 * np.where(bad, self.bad_mbps, self.median_mbps * np.exp(self.sigma * noise))


@dataclass(frozen=True, slots=True)
class Handover(Checked):
    """Cells with levels of their own, fading within them, interruptions between them.

    Attributes:
        median_mbps: median over all cells.
        cell_s: mean seconds in a cell.
        cell_sigma: standard deviation of the cells' log levels.
        sigma, tau_s: of the Gauss-Markov fading of the log rate within a cell.
        interrupted: share of handovers that interrupt, 0 to 1.
        interruption_s: mean seconds of an interruption.
        outage_every_s, outage_s: outages besides, as of `GaussMarkov`.
        quantiles_mbps: evenly spaced quantiles of the rate outside of outages, least to most, two or more:
            the normal level and fading are mapped to them instead of to a log-normal (of which then only the
            proportion of `cell_sigma` to `sigma` counts).
    """

    name: ClassVar[str] = "handover"
    median_mbps: float = 6.0
    cell_s: float = 15.0
    cell_sigma: float = 0.7
    sigma: float = 0.6
    tau_s: float = 0.5
    interrupted: float = 1.0
    interruption_s: float = 0.1
    outage_every_s: float = 60.0
    outage_s: float = 0.0
    quantiles_mbps: tuple[float, ...] = ()

    def generate(self, count: int, step_s: float, seed: int) -> Floats:
        """See `Generator`."""
        level, begins = cells(count, step_s, self.cell_s, np.random.default_rng([seed, 2]))
        fading = gauss_markov(count, step_s, self.tau_s, np.random.default_rng([seed, 0]))
        rng = np.random.default_rng([seed, 1])
        silent = alternating(count, step_s, self.outage_every_s, self.outage_s, rng)
        if self.interruption_s > 0.0:
            for begin in begins:
                if rng.random() < self.interrupted:
                    silent[begin : begin + geometric(self.interruption_s, step_s, rng)] = True
        return np.where(silent, 0.0, 1e6 * self._rate(self.cell_sigma * level + self.sigma * fading))

    def _rate(self, log_rate: Floats) -> Floats:
        """Mbit/s of a normal variable."""
        if not self.quantiles_mbps:
            return np.asarray(self.median_mbps * np.exp(log_rate))
        return of_quantiles(log_rate, math.hypot(self.cell_sigma, self.sigma), self.quantiles_mbps)


@dataclass(frozen=True, slots=True)
class TwoScale(Checked):
    """Cells and fading within them, mapped to any distribution; outages are the deepest fades.

    Attributes:
        quantiles_mbps: evenly spaced quantiles of the rate, least to most, two or more; as many 0 as there is
            time without capacity.
        cell_s: mean seconds in a cell.
        cell_share: share of the variance between cells, 0 to 1.
        tau_s: correlation time of the fading within a cell.
    """

    name: ClassVar[str] = "two-scale"
    quantiles_mbps: tuple[float, ...] = (0.0, 1.0, 2.5, 4.0, 5.5, 7.0, 9.0, 12.0, 20.0)
    cell_s: float = 15.0
    cell_share: float = 0.6
    tau_s: float = 0.3

    def generate(self, count: int, step_s: float, seed: int) -> Floats:
        """See `Generator`."""
        level, _ = cells(count, step_s, self.cell_s, np.random.default_rng([seed, 2]))
        fading = gauss_markov(count, step_s, self.tau_s, np.random.default_rng([seed, 0]))
        share = min(1.0, self.cell_share)
        mixed = math.sqrt(share) * level + math.sqrt(1.0 - share) * fading
        return 1e6 * of_quantiles(mixed, 1.0, self.quantiles_mbps)


MODELS: dict[str, type[GaussMarkov | GilbertElliott | Handover | TwoScale]] = {
    model.name: model for model in (GaussMarkov, GilbertElliott, Handover, TwoScale)
}


def of_quantiles(normal: Floats, spread: float, quantiles: tuple[float, ...]) -> Floats:
    """A normal variable of standard deviation `spread` mapped to the distribution with these quantiles."""
    share = ndtr(normal / spread) if spread else np.full_like(normal, 0.5)
    return np.interp(share, np.linspace(0.0, 1.0, len(quantiles)), quantiles)


def cells(count: int, step_s: float, cell_s: float, rng: Rng) -> tuple[Floats, list[int]]:
    """A normal level for each of a row of geometric stays, and the steps in which they begin."""
    level, begins, begin = np.empty(count), [], 0
    while begin < count:
        stay = geometric(cell_s, step_s, rng)
        level[begin : begin + stay] = rng.standard_normal()
        begins.append(begin)
        begin += stay
    return level, begins


def gauss_markov(count: int, step_s: float, tau_s: float, rng: Rng) -> Floats:
    """A stationary Gauss-Markov process of mean 0 and variance 1."""
    keep = math.exp(-step_s / tau_s) if tau_s > 0.0 else 0.0
    noise = rng.standard_normal(count)
    noise[1:] *= math.sqrt(1.0 - keep * keep)
    return np.fromiter(accumulate(noise.tolist(), lambda level, shock: keep * level + shock), float, count)


def geometric(mean_s: float, step_s: float, rng: Rng) -> int:
    """Steps of a stay, geometric with that mean, at least one."""
    return int(rng.geometric(min(1.0, step_s / max(mean_s, step_s))))


def alternating(count: int, step_s: float, off_s: float, on_s: float, rng: Rng) -> Bools:
    """Steps that are "on" in a two-state chain of mean stays `off_s` and `on_s` (at least a step each)."""
    on = np.zeros(count, dtype=np.bool_)
    if on_s <= 0.0:
        return on
    state = bool(rng.random() < on_s / (on_s + off_s))
    begin = 0
    while begin < count:
        stay = geometric(on_s if state else off_s, step_s, rng)
        on[begin : begin + stay] = state
        begin, state = begin + stay, not state
    return on


def chain(count: int, moves: Floats, rng: Rng) -> NDArray[np.int64]:
    """States of a Markov chain, begun in its long-run distribution (reached by many moves)."""
    long_run = np.linalg.matrix_power(0.5 * (moves + np.eye(len(moves))), 1 << 14)[0]
    sums = np.cumsum(moves, axis=1)
    sums[:, -1] = 1.0
    rows = [row.tolist() for row in sums]
    state = min(int(np.searchsorted(np.cumsum(long_run), rng.random() * long_run.sum())), len(moves) - 1)
    states = np.empty(count, dtype=np.int64)
    for i, draw in enumerate(rng.random(count).tolist()):
        states[i] = state
        state = bisect_right(rows[state], draw)
    return states
