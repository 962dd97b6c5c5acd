"""Quality against cloud calls, and what RouteLLM calls CPT and APGR, with bootstrap intervals.

Source of the measures: Ong et al., "RouteLLM: Learning to Route LLMs with Preference Data", 2024. The gap is
that between the device's and the cloud's mean quality; PGR is the part of it that a router recovers. APGR is
its mean over all rates of calls, CPT(x) the fewest calls at which PGR is x. Calls at random give PGR = rate.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
#: Recovered parts of the gap at which calls are counted.
LEVELS = (0.5, 0.8, 0.9, 0.95, 1.0)
GRID = np.linspace(0.0, 1.0, 201)


@dataclass(frozen=True)
class Curve:
    """One way of ranking questions, on a test.

    Attributes:
        quality: mean quality at each rate of calls of `GRID`.
        apgr: mean of PGR, with its 95% interval.
        cpt: at each of `LEVELS` the fewest calls, with its 95% interval.
    """

    quality: Floats
    apgr: tuple[float, float, float]
    cpt: dict[float, tuple[float, float, float]]


def ranks(score: Floats, part: npt.NDArray[np.int64]) -> Floats:
    """Scores of several models to one: the share of its part's rows that a row lies above. Ties at random."""
    out, noise = np.empty(len(score)), np.random.default_rng(0).random(len(score))
    for p in np.unique(part):
        rows = np.flatnonzero(part == p)
        order = np.lexsort((noise[rows], score[rows]))
        out[rows[order]] = (np.arange(len(rows)) + 0.5) / len(rows)
    return out


def curve_of(want: Floats, edge: Floats, cloud: Floats, draws: int = 300, seed: int = 0) -> Curve:
    """The curve of a ranking.

    Args:
        want: how much the cloud is wanted for each question, (n,); the most wanted are called first.
        edge, cloud: qualities, (n,).
        draws: of the bootstrap over questions.
        seed: of that.
    """
    rng, n = np.random.default_rng(seed), len(want)
    order = np.argsort(-want, kind="stable")
    e, g = edge[order], (cloud - edge)[order]
    whole, found = _recovered(g, np.ones(n)), []
    for _ in range(draws):
        weight = np.bincount(rng.integers(0, n, n), minlength=n).astype(float)
        if (g * weight).sum() > 0.0:  # a draw without a gap says nothing of how much of it is recovered
            found.append(_recovered(g, weight))
    spread = np.array([[p.mean(), *(_least(p, x) for x in LEVELS)] for p in found])
    low, high = np.quantile(spread, [0.025, 0.975], axis=0)
    cpt = {x: (_least(whole, x), low[1 + i], high[1 + i]) for i, x in enumerate(LEVELS)}
    return Curve(e.mean() + whole * g.mean(), (float(whole.mean()), low[0], high[0]), cpt)


def difference(
    first: Floats, second: Floats, edge: Floats, cloud: Floats, draws: int = 300
) -> tuple[float, float]:
    """95% interval of APGR of one ranking less that of another, on the same bootstrap draws."""
    rng, n, found = np.random.default_rng(1), len(first), []
    orders = [np.argsort(-want, kind="stable") for want in (first, second)]
    for _ in range(draws):
        weight = np.bincount(rng.integers(0, n, n), minlength=n).astype(float)
        gains = [_recovered((cloud - edge)[o], weight[o]).mean() for o in orders]
        found.append(gains[0] - gains[1])
    low, high = np.quantile(found, [0.025, 0.975])
    return float(low), float(high)


def _recovered(gain: Floats, weight: Floats) -> Floats:
    """PGR at each rate of `GRID`; rows are in the order in which they are called."""
    share = np.r_[0.0, np.cumsum(weight)] / weight.sum()
    got = np.r_[0.0, np.cumsum(gain * weight)]
    out: Floats = np.interp(GRID, share, got) / got[-1]
    return out


def _least(recovered: Floats, level: float) -> float:
    """The least rate from which the curve first reaches a level."""
    return float(GRID[np.argmax(recovered >= level - 1e-12)]) if (recovered >= level - 1e-12).any() else 1.0
