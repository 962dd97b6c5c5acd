"""The least confidence at which an exit's answers are right often enough, with a stated risk."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from splitedge.errors import ConfigError

Floats = npt.NDArray[np.float64]
Array = npt.ArrayLike | torch.Tensor

#: A threshold above every probability: an exit with it is never taken.
NEVER = 2.0

_CANDIDATES = 40  # coverages tried: 1/40, 2/40, ... of the validation rows
_STARTS = 4  # coverages at which testing may begin anew; each brings a quarter of the risk


@dataclass(frozen=True, slots=True)
class Threshold:
    """An exit is taken where its confidence is at least `value`.

    Attributes:
        value: between 0 and 1, or `NEVER` (2.0).
        reason: one readable sentence: what was shown, or why the exit is never taken.
        rows: validation rows at or above the threshold.
        coverage: part of all validation rows that these are.
        accuracy: part of them answered right; NaN when there are none.
        lower: Clopper-Pearson lower bound of that accuracy; 0 when there are none.
    """

    value: float
    reason: str
    rows: int = 0
    coverage: float = 0.0
    accuracy: float = math.nan
    lower: float = 0.0

    @property
    def ever(self) -> bool:
        """Whether the exit is taken at all."""
        return self.value <= 1.0


def threshold_for(
    confidence: Array, correct: Array, target_accuracy: float, *, alpha: float = 0.05
) -> Threshold:
    """The least threshold at which the answers are right at least `target_accuracy` of the time.

    With probability 1 - `alpha` over the draw of the validation rows, the accuracy of the answers at
    or above the threshold returned is at least the target. Looking at many thresholds and taking the
    luckiest would void that, so they are tested in an order fixed beforehand (fixed-sequence testing;
    Angelopoulos et al., "Learn then Test", 2021, section 4): 40 coverages of the rows, from strict to
    lax, each by a one-sided Clopper-Pearson bound; a test that succeeds hands its risk on to the next,
    one that fails loses it. One unlucky row among the strictest would end the only sequence, so a
    quarter of `alpha` is brought in at each of four coverages (Bretz et al., Statistics in Medicine
    2009, show that such handing on keeps the whole risk at `alpha`).

    Args:
        confidence: of validation rows used neither to train nor to calibrate the exit, shape (rows,).
        correct: whether the exit's answer is right, shape (rows,).
        target_accuracy: of the answers given at the exit, above 0 and below 1.
        alpha: accepted risk that the target is missed.

    Raises:
        ConfigError: shapes do not agree, or a number is out of its range.
    """
    c, right = _checked(confidence, correct, target_accuracy, alpha)
    n = len(c)
    # Fewer rows than this can not show the target even with no error among them; known beforehand.
    least = max(math.ceil(math.log(alpha / _STARTS) / math.log(target_accuracy)), 1)
    sizes = [k for k in (math.ceil(n * j / _CANDIDATES) for j in range(1, _CANDIDATES + 1)) if k >= least]
    if not sizes:
        return Threshold(
            NEVER,
            f"never exits: {n} validation rows can not show an accuracy of {target_accuracy:.1%} "
            f"at risk {alpha:g}; at least {least} are needed",
        )
    order = np.argsort(-c, kind="stable")
    ranked, hits = c[order], np.cumsum(right[order])
    starts = {s * len(sizes) // _STARTS for s in range(_STARTS)}
    best: Threshold | None = None
    handed_on = 0.0
    for i, k in enumerate(sizes):
        risk = handed_on + (alpha / len(starts) if i in starts else 0.0)
        tried = _at(ranked, hits, k, risk, target_accuracy) if risk else None
        succeeded = tried is not None and tried.lower >= target_accuracy
        best = tried if succeeded else best
        handed_on = risk if succeeded else 0.0
    if best is not None:
        return best
    return Threshold(
        NEVER,
        f"never exits: at no threshold do {n} validation rows show an accuracy of {target_accuracy:.1%} "
        f"at risk {alpha:g} (all rows: {right.mean():.1%} right)",
    )


def clopper_pearson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Exact two-sided interval for a probability (Clopper and Pearson, Biometrika 1934).

    Args:
        successes: how often, of `n` independent trials.
        n: trials; with none the interval is (0, 1).
        confidence: of the interval, between 0 and 1.

    Raises:
        ConfigError: successes not within 0 to n, or confidence not within 0 to 1.
    """
    from scipy.special import betaincinv

    if not 0 <= successes <= n or not 0.0 < confidence < 1.0:
        raise ConfigError(f"no interval for {successes} of {n} at confidence {confidence}")
    tail = (1.0 - confidence) / 2.0
    low = float(betaincinv(successes, n - successes + 1, tail)) if successes else 0.0
    high = float(betaincinv(successes + 1, n - successes, 1.0 - tail)) if successes < n else 1.0
    return low, high


def lower_bound(successes: int, n: int, alpha: float) -> float:
    """One-sided lower bound of a probability, wrong with a probability of at most `alpha`."""
    return clopper_pearson(successes, n, 1.0 - 2.0 * alpha)[0]


def _at(ranked: Floats, hits: Floats, k: int, risk: float, target: float) -> Threshold:
    """What the rows show at the threshold of the `k`-th greatest confidence, ties included."""
    value = float(ranked[k - 1])
    rows = int(np.searchsorted(-ranked, -value, side="right"))
    right = round(float(hits[rows - 1]))
    lower = lower_bound(right, rows, risk)
    share = rows / len(ranked)
    return Threshold(
        value,
        f"at confidence {value:.3f} or more, {right} of {rows} validation answers are right "
        f"({right / rows:.1%}, surely {lower:.1%}; target {target:.1%}); {share:.0%} of rows exit",
        rows,
        share,
        right / rows,
        lower,
    )


def _checked(confidence: Array, correct: Array, target: float, alpha: float) -> tuple[Floats, Floats]:
    c, right = as_floats(confidence).reshape(-1), as_floats(correct).reshape(-1)
    if c.shape != right.shape or not c.size:
        raise ConfigError(f"as many outcomes as confidences expected, got {right.size} and {c.size}")
    if not (np.isfinite(c).all() and (c >= 0.0).all() and (c <= 1.0).all()):
        raise ConfigError("confidences must lie between 0 and 1")
    if not ((right == 0.0) | (right == 1.0)).all():
        raise ConfigError("correct must hold only true and false")
    if not 0.0 < target < 1.0 or not 0.0 < alpha < 1.0:
        raise ConfigError(f"target_accuracy and alpha lie between 0 and 1, got {target} and {alpha}")
    return c, right


def as_floats(values: Array) -> Floats:
    """A tensor of any device, an array or a list as float64."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype is torch.bfloat16 else values).numpy()
    return np.asarray(values, np.float64)
