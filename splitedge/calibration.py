"""How sure is an exit? Temperature scaling, isotonic regression, and thresholds with a guarantee.

Everything that runs on the device is NumPy: scikit-learn is needed to fit, not to answer.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from splitedge.errors import ConfigError
from splitedge.thresholds import (
    NEVER,
    Array,
    Floats,
    Threshold,
    as_floats,
    clopper_pearson,
    threshold_for,
)

__all__ = [
    "NEVER",
    "Calibration",
    "CalibrationReport",
    "Threshold",
    "calibrate",
    "clopper_pearson",
    "ece",
    "fit_temperature",
    "threshold_for",
]

_MIN_ROWS = 10
_LOG_TEMPERATURE = (math.log(0.02), math.log(50.0))


@dataclass(frozen=True, slots=True)
class Calibration:
    """Maps an exit's logits to the probability that its answer is right; monotone in its confidence.

    The logits are divided by `temperature` (Guo et al., "On Calibration of Modern Neural Networks",
    ICML 2017, section 4.2), the greatest softmax probability is looked up among knots that isotonic
    regression found (Zadrozny and Elkan, KDD 2002), with straight lines between them.

    Attributes:
        temperature: above 0; 1 leaves the logits as they are.
        knots: greatest softmax probability at each knot, increasing.
        values: probability of being right at each knot, not decreasing.
        rows: validation rows it was fitted on.
    """

    temperature: float
    knots: tuple[float, ...]
    values: tuple[float, ...]
    rows: int

    def __post_init__(self) -> None:
        ok = (
            math.isfinite(self.temperature)
            and self.temperature > 0
            and len(self.knots) == len(self.values) >= 2
            and all(a < b for a, b in zip(self.knots, self.knots[1:], strict=False))
            and all(a <= b for a, b in zip(self.values, self.values[1:], strict=False))
            and all(0.0 <= v <= 1.0 for v in (*self.knots, *self.values))
        )
        if not ok:
            raise ConfigError("a calibration needs a temperature above 0 and rising knots between 0 and 1")

    @classmethod
    def fit(cls, logits: Array, labels: Array) -> Self:
        """Fit on validation rows that the exit was not trained on.

        Args:
            logits: shape (rows, classes).
            labels: the right classes, shape (rows,).

        Raises:
            ConfigError: shapes do not agree, fewer than 10 rows, or logits that are not finite.
        """
        from sklearn.isotonic import IsotonicRegression

        z, y = _checked(logits, labels)
        temperature = fit_temperature(z, y)
        confidence = _max_softmax(z, temperature)
        correct = (z.argmax(axis=1) == y).astype(np.float64)
        curve = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(confidence, correct)
        knots, values = _knots(
            np.asarray(curve.X_thresholds_, float), np.asarray(curve.y_thresholds_, float), len(y)
        )
        return cls(temperature, tuple(knots.tolist()), tuple(values.tolist()), len(y))

    def probability(self, logits: Array) -> Floats:
        """Probability that the answer of each row is right: logits (rows, classes) to floats (rows,)."""
        return np.interp(_max_softmax(as_floats(logits), self.temperature), self.knots, self.values)

    def state(self) -> dict[str, Any]:
        """All of it as JSON."""
        return {
            "temperature": self.temperature,
            "knots": list(self.knots),
            "values": list(self.values),
            "rows": self.rows,
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> Self:
        """What `state()` returned, as a calibration again.

        Raises:
            ConfigError: it is not such a state.
        """
        try:
            return cls(
                float(state["temperature"]),
                tuple(float(v) for v in state["knots"]),
                tuple(float(v) for v in state["values"]),
                int(state["rows"]),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ConfigError(f"not the state of a calibration: {error!r}") from error


@dataclass(frozen=True, slots=True)
class CalibrationReport:
    """How well an exit knows itself, on rows that its calibration was not fitted on.

    Attributes:
        rows: validation rows.
        accuracy: part of them the exit answers right.
        ece_before: expected calibration error of the greatest softmax probability, uncalibrated.
        ece_after: the same, calibrated, cross-fitted: each row scored by a calibration that had not
            seen it.
        temperature: of the calibration fitted on all rows.
    """

    rows: int
    accuracy: float
    ece_before: float
    ece_after: float
    temperature: float


def calibrate(
    logits: Array, labels: Array, *, folds: int = 5, seed: int = 0
) -> tuple[Calibration, CalibrationReport]:
    """Fit a calibration on all rows and report its error cross-fitted over `folds` parts.

    Args:
        logits: shape (rows, classes), of rows the exit was not trained on.
        labels: shape (rows,).
        folds: parts; each is scored by a calibration fitted on the others.
        seed: of the division into parts.

    Raises:
        ConfigError: shapes do not agree, or fewer than 10 rows in a fit.
    """
    z, y = _checked(logits, labels)
    if not 2 <= folds <= len(y):
        raise ConfigError(f"folds is {folds}; use 2 to the number of rows ({len(y)})")
    part = np.random.default_rng(seed).permutation(len(y)) % folds
    held_out = np.empty(len(y))
    for k in range(folds):
        held_out[part == k] = Calibration.fit(z[part != k], y[part != k]).probability(z[part == k])
    correct = z.argmax(axis=1) == y
    fitted = Calibration.fit(z, y)
    report = CalibrationReport(
        rows=len(y),
        accuracy=float(correct.mean()),
        ece_before=ece(_max_softmax(z, 1.0), correct),
        ece_after=ece(held_out, correct),
        temperature=fitted.temperature,
    )
    return fitted, report


def fit_temperature(logits: Array, labels: Array) -> float:
    """The temperature of least negative log-likelihood on validation rows, between 1/50 and 50.

    Each label is held right with probability (n + 1) / (n + 2) only (Platt, 1999): an exit without an
    error among its n rows would else be declared certain, and all its confidences be 1.
    """
    from scipy.optimize import minimize_scalar

    z, y = as_floats(logits), as_floats(labels).astype(np.int64)
    z = z - z.max(axis=1, keepdims=True)
    right, doubt = z[np.arange(len(y)), y], 1.0 / (len(y) + 2.0)
    others = (z.sum(axis=1) - right) / max(z.shape[1] - 1, 1)
    expected = (1.0 - doubt) * right + doubt * others

    def nll(log_temperature: float) -> float:
        scale = math.exp(-log_temperature)
        return float((np.log(np.exp(z * scale).sum(axis=1)) - expected * scale).mean())

    found = minimize_scalar(nll, bounds=_LOG_TEMPERATURE, method="bounded", options={"xatol": 1e-4})
    return math.exp(float(found.x))


def ece(probability: Array, correct: Array, bins: int = 15) -> float:
    """Expected calibration error over bins of equal width (Naeini et al., AAAI 2015; Guo et al. 2017).

    Args:
        probability: stated probability of being right, shape (rows,), between 0 and 1.
        correct: whether it was, shape (rows,).
        bins: number of bins.

    Raises:
        ConfigError: no rows, or shapes do not agree.
    """
    p, c = as_floats(probability).reshape(-1), as_floats(correct).reshape(-1)
    if p.size == 0 or p.shape != c.shape:
        raise ConfigError(f"ece needs as many outcomes as probabilities, got {c.size} and {p.size}")
    which = np.clip((p * bins).astype(np.int64), 0, bins - 1)
    gap = np.bincount(which, weights=p - c, minlength=bins)
    return float(np.abs(gap).sum() / p.size)


def _checked(logits: Array, labels: Array) -> tuple[Floats, npt.NDArray[np.int64]]:
    z, y = as_floats(logits), as_floats(labels)
    if z.ndim != 2 or y.shape != z.shape[:1]:
        raise ConfigError(f"logits (rows, classes) and labels (rows,) expected, got {z.shape} and {y.shape}")
    if len(y) < _MIN_ROWS:
        raise ConfigError(f"{len(y)} validation rows are too few to calibrate an exit on; give {_MIN_ROWS}")
    if not np.isfinite(z).all():
        raise ConfigError("the exit's logits hold NaN or infinity; did its training diverge?")
    classes = y.astype(np.int64)
    if (classes != y).any() or classes.min() < 0 or classes.max() >= z.shape[1]:
        raise ConfigError(f"labels must be whole numbers from 0 to {z.shape[1] - 1}")
    return z.astype(np.float64), classes


def _knots(x: Floats, y: Floats, rows: int) -> tuple[Floats, Floats]:
    """The curve from 0 to 1, kept off certainty and strictly rising.

    Isotonic regression says 0 and 1 where a block had no exception; one more row might have been one
    (Laplace's rule of succession). A slope as small keeps the order inside a flat block, so that a
    threshold can still divide it.
    """
    x, first = np.unique(np.clip(x, 0.0, 1.0), return_index=True)
    y = np.maximum.accumulate(y[first])
    if x[0] > 0.0:
        x, y = np.r_[0.0, x], np.r_[y[0], y]
    if x[-1] < 1.0:
        x, y = np.r_[x, 1.0], np.r_[y, y[-1]]
    unsure = 1.0 / (rows + 2.0)
    return x, np.clip(y, unsure, 1.0 - unsure) * (1.0 - unsure) + unsure * x


def _max_softmax(logits: Floats, temperature: float) -> Floats:
    """Greatest softmax probability of each row: 1 / sum(exp(z - max z))."""
    scaled = (logits - logits.max(axis=1, keepdims=True)) / temperature
    greatest: Floats = 1.0 / np.exp(scaled).sum(axis=1)
    return greatest
