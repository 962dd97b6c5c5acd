"""From what confidence on a filter may keep payloads back, so that a stated recall is held."""

from __future__ import annotations

import math
from bisect import bisect_left
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from splitedge.errors import ConfigError
from splitedge.thresholds import NEVER, Floats, lower_bound

#: A payload is kept back only where it is more likely needless than needed, whatever the recall allows.
LIKELIER = 0.5
Flags = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class Curve:
    """A receiver operating characteristic: from sending nothing to sending all, each of shape (points,).

    Attributes:
        needless: part of the needless rows that are sent (the rate of false alarms).
        needed: part of the needed rows that are sent (the recall).
        auc: area under it; NaN where all rows are of one kind.
    """

    needless: Floats
    needed: Floats
    auc: float


@dataclass(frozen=True, slots=True)
class OperatingPoint:
    """A threshold on the confidence that a payload is needless, and what it does to rows.

    Attributes:
        why: one readable sentence.
        rows, needed: how many rows, and how many of them need the cloud.
        curve: what other thresholds would do; None where there was no filter to try.
        threshold: payloads of at least this confidence are kept back; `NEVER` (2.0) sends all.
        recall: part of the needed rows that is still sent.
        lower: bound of that part for rows not seen, missed with a risk of `alpha`.
        filtered: part of all rows that is kept back.
        precision: part of the rows kept back that are needless; NaN where there are none.
    """

    why: str
    rows: int
    needed: int
    curve: Curve | None = field(repr=False)
    threshold: float = NEVER
    recall: float = 1.0
    lower: float = 1.0
    filtered: float = 0.0
    precision: float = math.nan

    @property
    def ever(self) -> bool:
        """Whether anything is kept back at all."""
        return self.threshold <= 1.0


def roc(spare: Floats, needed: Flags) -> Curve:
    """The curve of a filter; arguments as `operating_point` has them."""
    from sklearn.metrics import auc, roc_curve

    if needed.all() or not needed.any():
        return Curve(np.array([0.0, 1.0]), np.array([0.0, 1.0]), math.nan)
    needless, sent, _ = roc_curve(needed, -spare)
    return Curve(needless, sent, float(auc(needless, sent)))


def operating_point(spare: Floats, needed: Flags, recall: float, *, alpha: float = 0.05) -> OperatingPoint:
    """The least threshold at which at least `recall` of the needed rows are sent.

    With probability 1 - `alpha` over the draw of these rows the recall on fresh ones is at least `recall`:
    the threshold lies just above the (k + 1)-th greatest confidence of the n needed rows, so that k of
    them are kept back, and k is the most for which the one-sided Clopper-Pearson bound of n - k
    in n is no less. As k depends on n alone and not on the confidences, this is a tolerance
    limit (Wilks, Annals of Mathematical Statistics 1941), and no bound is voided by looking often.

    Args:
        spare: confidence that a row is needless, of rows that neither trained nor calibrated the filter,
            shape (rows,).
        needed: whether the row needs the cloud, shape (rows,).
        recall: above 0 and below 1.
        alpha: accepted risk that the recall is missed.

    Raises:
        ConfigError: shapes do not agree, or a number is out of its range.
    """
    if spare.shape != needed.shape or spare.ndim != 1 or not spare.size:
        raise ConfigError(f"as many confidences as rows expected, got {spare.shape} and {needed.shape}")
    if not 0.0 < recall < 1.0 or not 0.0 < alpha < 1.0:
        raise ConfigError(f"recall and alpha lie between 0 and 1, got {recall} and {alpha}")
    rows, n = len(needed), int(needed.sum())
    curve = roc(spare, needed)
    missed = _most_missed(n, recall, alpha)
    if missed is None:
        least = math.ceil(math.log(alpha) / math.log(recall))
        why = (
            f"sends everything: {n} rows that need the cloud can not show a recall of {recall:.1%} at risk "
            f"{alpha:g}; at least {least} are needed"
        )
        return OperatingPoint(why, rows, n, curve)
    threshold = max(float(np.sort(spare[needed])[::-1][missed]), LIKELIER)
    kept = spare > threshold
    if not kept.any():
        why = (
            f"sends everything: a recall of {recall:.1%}, sure at risk {alpha:g}, leaves no row to keep back "
            f"(area under the ROC {curve.auc:.3f})"
        )
        return OperatingPoint(why, rows, n, curve)
    sent, lower = int((~kept & needed).sum()), lower_bound(n - missed, n, alpha)
    precision = float((~needed)[kept].mean())
    why = (
        f"keeps back {kept.mean():.1%} of {rows} rows, {precision:.1%} of these rightly; {sent} of {n} rows "
        f"that need the cloud are sent ({sent / n:.1%}, surely {lower:.1%}; wanted {recall:.1%})"
    )
    above = float(np.nextafter(threshold, 1.0))
    return OperatingPoint(why, rows, n, curve, above, sent / n, lower, float(kept.mean()), precision)


def _most_missed(n: int, recall: float, alpha: float) -> int | None:
    """The most of `n` needed rows that may be kept back; None where not even 0 shows the recall."""
    too_many = bisect_left(range(n), True, key=lambda missed: lower_bound(n - missed, n, alpha) < recall)
    return too_many - 1 if too_many else None
