"""From which score on a query stays on the device: by a quality to keep, with a stated risk, or by a budget.

All of it is counted on rows that the score was not trained on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from splitedge.errors import ConfigError
from splitedge.llm.scorer import Floats
from splitedge.thresholds import NEVER, clopper_pearson

_CANDIDATES = 40


@dataclass(frozen=True, slots=True)
class RouteThreshold:
    """A query is answered by the device where its score is at least `value`.

    Attributes:
        value: in [0, 1], or 2.0 where nothing stays.
        calls: share of the calibration rows that go to the cloud.
        drop: mean quality lost on these rows against asking the cloud always; negative for a gain.
        drop_bound: upper bound of `drop` at the risk asked for.
        rows: counted on.
        reason: one readable sentence.
    """

    value: float
    calls: float
    drop: float
    drop_bound: float
    rows: int
    reason: str

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def from_json(cls, data: Any) -> RouteThreshold:
        """What `to_json` gave.

        Raises:
            ConfigError: it is not that.
        """
        try:
            value, calls, drop, bound = (float(data[k]) for k in ("value", "calls", "drop", "drop_bound"))
            return cls(value, calls, drop, bound, int(data["rows"]), str(data["reason"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ConfigError(f"not a threshold of a router: {error!r}") from error


def for_drop(
    score: npt.ArrayLike, edge: npt.ArrayLike, cloud: npt.ArrayLike, most: float, *, risk: float = 0.05
) -> RouteThreshold:
    """The least threshold at which at most `most` of quality is lost against asking the cloud always.

    With probability 1 - `risk` over the draw of the rows. 40 shares of queries that stay are tested from
    strict to lax, up to the first that fails (fixed-sequence testing; Angelopoulos et al., "Learn then
    Test", 2021), so that looking at many costs nothing.

    Args:
        score: of calibration rows, more is better for the device, (rows,).
        edge, cloud: mean quality of each row, (rows,).
        most: quality that may be lost on average, in the unit of the qualities.

    Raises:
        ConfigError: shapes do not agree, or a number is out of its range.
    """
    s, short = _checked(score, edge, cloud)
    if not 0.0 < risk < 1.0:
        raise ConfigError(f"a risk lies between 0 and 1, got {risk}")
    order = np.argsort(-s, kind="stable")
    best: RouteThreshold | None = None
    for c in range(1, _CANDIDATES + 1):
        value = float(s[order[math.ceil(len(s) * c / _CANDIDATES) - 1]])
        lost = np.where(s >= value, short, 0.0)
        bound = upper_bound(lost, risk)
        if bound > most:
            break
        best = _at(s, short, value, bound, f"surely at most {most:g} lost (risk {risk:g})")
    if best is None:
        return RouteThreshold(
            NEVER, 1.0, 0.0, 0.0, len(s), f"{len(s)} rows can not show that at most {most:g} would be lost"
        )
    return best


def for_budget(
    score: npt.ArrayLike, edge: npt.ArrayLike, cloud: npt.ArrayLike, calls: float, *, risk: float = 0.05
) -> RouteThreshold:
    """The threshold at which a share `calls` of the queries goes to the cloud; args as in `for_drop`."""
    if not 0.0 <= calls <= 1.0:
        raise ConfigError(f"a budget is a share of the queries, got {calls}")
    s, short = _checked(score, edge, cloud)
    stay = len(s) - math.floor(calls * len(s) + 1e-9)
    value = NEVER if stay == 0 else float(np.sort(s)[::-1][stay - 1])
    lost = np.where(s >= value, short, 0.0)
    low, high = clopper_pearson(int((s < value).sum()), len(s), 1.0 - risk)
    return _at(
        s, short, value, upper_bound(lost, risk), f"calls in [{low:.1%}, {high:.1%}] are to be expected"
    )


def for_recovery(
    score: npt.ArrayLike, edge: npt.ArrayLike, cloud: npt.ArrayLike, share: float, *, risk: float = 0.05
) -> RouteThreshold:
    """The fewest calls that recover a `share` of the gap between device and cloud on these rows.

    An estimate, not a guarantee: on other rows it may be missed either way. Args as in `for_drop`.
    """
    s, short = _checked(score, edge, cloud)
    order = np.argsort(-s, kind="stable")
    lost = np.r_[0.0, np.cumsum(short[order])] / len(s)
    fine = np.flatnonzero(lost <= (1.0 - share) * short.mean() + 1e-12)
    value = NEVER if not len(fine) or fine[-1] == 0 else float(s[order[fine[-1] - 1]])
    bound = upper_bound(np.where(s >= value, short, 0.0), risk)
    return _at(s, short, value, bound, f"{share:.0%} of the gap is recovered on these rows")


def upper_bound(lost: Floats, risk: float) -> float:
    """Upper bound of the mean of values in [-1, 1], wrong with a probability of at most `risk`.

    Where they are -1, 0 and 1 only: the Clopper-Pearson bound of the losses less that of the gains, each at
    half the risk. Else the empirical Bernstein bound (Maurer and Pontil, COLT 2009, theorem 4).
    """
    n = len(lost)
    if np.isin(lost, (-1.0, 0.0, 1.0)).all():
        worst = clopper_pearson(int((lost > 0).sum()), n, 1.0 - risk)[1]
        return worst - clopper_pearson(int((lost < 0).sum()), n, 1.0 - risk)[0]
    if n < 2:
        return 1.0
    log = math.log(2.0 / risk)
    return float(lost.mean() + math.sqrt(2.0 * lost.var(ddof=1) * log / n) + 14.0 * log / (3.0 * (n - 1)))


def _at(s: Floats, short: Floats, value: float, bound: float, why: str) -> RouteThreshold:
    stays = s >= value
    drop = float(np.where(stays, short, 0.0).mean())
    said = (
        f"{1.0 - stays.mean():.1%} of {len(s)} calibration queries go to the cloud, {drop:+.4f} lost; {why}"
    )
    return RouteThreshold(value, float(1.0 - stays.mean()), drop, bound, len(s), said)


def _checked(score: npt.ArrayLike, edge: npt.ArrayLike, cloud: npt.ArrayLike) -> tuple[Floats, Floats]:
    s, q, r = (np.asarray(a, np.float64) for a in (score, edge, cloud))
    if s.ndim != 1 or not len(s) or s.shape != q.shape or s.shape != r.shape:
        raise ConfigError(f"rows must agree: scores {s.shape}, qualities {q.shape} and {r.shape}")
    if not all(np.isfinite(a).all() for a in (s, q, r)) or np.abs(r - q).max() > 1.0:
        raise ConfigError(
            "scores and qualities must be finite, and qualities differ by at most 1: scale them"
        )
    return s, r - q
