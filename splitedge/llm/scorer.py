"""Small trained functions of features, as plain numbers: fitted with scikit-learn, run with NumPy.

A `Scorer` standardises its features, takes a linear form or one hidden layer of them, and looks the
resulting probability up on a monotone curve that was fitted on other rows. All of it is JSON.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from splitedge.errors import ConfigError

Floats = npt.NDArray[np.float64]
Kind = Literal["linear", "mlp"]
_MOST = 1 << 24  # numbers in one array of a file


@dataclass(frozen=True)
class Curve:
    """A monotone map of [0, 1] into itself by knots, straight lines between.

    Attributes:
        knots: rising, float64 (K,).
        values: not falling, float64 (K,).
        rows: fitted on.
    """

    knots: Floats
    values: Floats
    rows: int

    @classmethod
    def fit(cls, score: Floats, true: Floats, weight: Floats | None = None) -> Curve:
        """Fit by isotonic regression (Zadrozny and Elkan, KDD 2002).

        The curve is kept off 0 and 1 (one more row might have been the first exception: Laplace's rule) and
        rises a little where isotonic regression is flat, so that a threshold can divide every block.

        Args:
            score: in [0, 1], (rows,), of rows that the scorer was not trained on.
            true: 0 or 1 or between, (rows,).
            weight: of rows; None for equal ones.

        Raises:
            ConfigError: fewer than 50 rows.
        """
        from sklearn.isotonic import IsotonicRegression

        if len(score) < 50:
            raise ConfigError(f"{len(score)} rows are too few to calibrate on; 50 are needed at least")
        fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(score, true, weight)
        x, first = np.unique(np.clip(fitted.X_thresholds_, 0.0, 1.0), return_index=True)
        y = np.maximum.accumulate(fitted.y_thresholds_[first])
        if x[0] > 0.0:
            x, y = np.r_[0.0, x], np.r_[y[0], y]
        if x[-1] < 1.0:
            x, y = np.r_[x, 1.0], np.r_[y, y[-1]]
        unsure = 1.0 / (len(score) + 2.0)
        values = np.clip(y, unsure, 1.0 - unsure) * (1.0 - unsure) + unsure * x
        return cls(x, values, len(score))

    def __call__(self, score: npt.ArrayLike) -> Floats:
        """Scores of any shape to probabilities of that shape."""
        out: Floats = np.interp(np.asarray(score, np.float64), self.knots, self.values)
        return out

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {"knots": packed(self.knots), "values": packed(self.values), "rows": self.rows}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Curve:
        """What `to_json` gave.

        Raises:
            ConfigError: it is not that.
        """
        knots, values = unpacked(field_of(data, "knots")), unpacked(field_of(data, "values"))
        fine = knots.ndim == 1 and knots.shape == values.shape and len(knots) >= 2
        if not fine or (np.diff(knots) <= 0).any() or (np.diff(values) < 0).any():
            raise ConfigError("a curve needs two rising knots at least, and values that do not fall")
        return cls(knots, values, int(field_of(data, "rows")))


@dataclass(frozen=True)
class Scorer:
    """Features to a calibrated probability.

    Attributes:
        mean, scale: of each feature, float64 (F,).
        weights: (F, 1), or (F, H) and (H, 1) with rectified linear units between (`mlp`).
        biases: (1,), or (H,) and (1,).
        curve: from the raw probability to the calibrated one; None leaves it.
    """

    mean: Floats
    scale: Floats
    weights: tuple[Floats, ...]
    biases: tuple[Floats, ...]
    curve: Curve | None = None

    def raw(self, features: npt.ArrayLike) -> Floats:
        """Uncalibrated probabilities (...,) of features (..., F)."""
        x = (np.asarray(features, np.float64) - self.mean) / self.scale
        for w, b in zip(self.weights[:-1], self.biases[:-1], strict=True):
            x = np.maximum(x @ w + b, 0.0)
        return sigmoid((x @ self.weights[-1] + self.biases[-1])[..., 0])

    def __call__(self, features: npt.ArrayLike) -> Floats:
        """Calibrated probabilities (...,) of features (..., F)."""
        found = self.raw(features)
        return found if self.curve is None else self.curve(found)

    def to_json(self) -> dict[str, Any]:
        """All of it."""
        return {
            "mean": packed(self.mean),
            "scale": packed(self.scale),
            "weights": [packed(w) for w in self.weights],
            "biases": [packed(b) for b in self.biases],
            "curve": None if self.curve is None else self.curve.to_json(),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scorer:
        """What `to_json` gave.

        Raises:
            ConfigError: it is not that, or shapes do not fit.
        """
        mean, scale = unpacked(field_of(data, "mean")), unpacked(field_of(data, "scale"))
        weights = tuple(unpacked(w) for w in field_of(data, "weights"))
        biases = tuple(unpacked(b) for b in field_of(data, "biases"))
        curve = field_of(data, "curve")
        wide, fine = len(mean), mean.shape == scale.shape and bool((scale > 0).all())
        for w, b in zip(weights, biases, strict=False):
            fine = fine and w.ndim == 2 and w.shape[0] == wide and b.shape == (w.shape[1],)
            wide = w.shape[1] if fine else -1
        if not fine or wide != 1 or len(weights) != len(biases):
            raise ConfigError("the shapes of a scorer's arrays do not fit each other")
        return cls(mean, scale, weights, biases, None if curve is None else Curve.from_json(curve))


def fit_scorer(
    features: Floats,
    soft: Floats,
    *,
    kind: Kind = "linear",
    calibrate: tuple[Floats, Floats] | None = None,
    seed: int = 0,
) -> Scorer:
    """Train one.

    Args:
        features: (rows, F).
        soft: the probability to learn of each row, in [0, 1], (rows,).
        kind: logistic regression, or a hidden layer of 32.
        calibrate: features and outcomes of other rows, which the curve is fitted on.
        seed: of the hidden layer's training.

    Raises:
        ConfigError: labels that are all the same, shapes that do not agree, or too few rows.
    """
    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    x = (features - mean) / scale
    twice, classes, weight = doubled(soft)
    if kind == "linear":
        from sklearn.linear_model import LogisticRegression

        line = LogisticRegression(max_iter=1000).fit(x[twice], classes, sample_weight=weight)
        weights, biases = (line.coef_.T,), (line.intercept_,)
    else:
        from sklearn.neural_network import MLPClassifier

        # This one takes no weights: rows are drawn by theirs instead.
        drawn = np.random.default_rng(seed).random(len(soft)) < soft
        net = MLPClassifier((32,), alpha=1e-3, early_stopping=True, max_iter=200, random_state=seed)
        net.fit(x, drawn.astype(int))
        weights, biases = tuple(net.coefs_), tuple(net.intercepts_)
    plain = Scorer(mean, scale, weights, biases)
    if calibrate is None:
        return plain
    other, true = calibrate
    return Scorer(mean, scale, weights, biases, Curve.fit(plain.raw(other), true))


def constant(features: Floats, soft: Floats) -> Scorer:
    """One that says the mean of the labels, kept off certainty by Laplace's rule, whatever it reads."""
    wide, n = features.shape[1], len(soft)
    p = (soft.sum() + 1.0) / (n + 2.0)
    bias = np.array([np.log(p / (1.0 - p))])
    return Scorer(np.zeros(wide), np.ones(wide), (np.zeros((wide, 1)),), (bias,))


def doubled(soft: Floats) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], Floats]:
    """Soft labels for a classifier that takes hard ones: each row as a yes with weight y and as a no with
    1 - y, those without weight left out. Gives indices of rows, classes and weights.

    Raises:
        ConfigError: labels that are all yes or all no.
    """
    rows = np.arange(len(soft))
    index, classes = np.r_[rows, rows], np.r_[np.ones_like(rows), np.zeros_like(rows)]
    weight = np.r_[soft, 1.0 - soft].astype(np.float64)
    keep = weight > 0.0
    if len(set(classes[keep].tolist())) < 2:
        raise ConfigError(
            f"all {len(soft)} labels are {soft[0] if len(soft) else 'missing'}: there is nothing to learn; "
            "take another kind of label or another pair of models"
        )
    return index[keep], classes[keep], weight[keep]


def sigmoid(odds: npt.ArrayLike) -> Floats:
    """Log-odds to probabilities."""
    out: Floats = 1.0 / (1.0 + np.exp(-np.clip(odds, -40.0, 40.0)))
    return out


def packed(array: npt.ArrayLike) -> dict[str, Any]:
    """An array as JSON: its shape, and float64 little-endian in base64."""
    values = np.ascontiguousarray(array, "<f8")
    return {"shape": list(values.shape), "f8": base64.b64encode(values.tobytes()).decode()}


def unpacked(data: Any) -> Floats:
    """What `packed` gave.

    Raises:
        ConfigError: it is not that, or holds numbers that are not finite.
    """
    try:
        shape = [int(n) for n in data["shape"]]
        raw = base64.b64decode(data["f8"], validate=True)
        if any(not 0 <= n <= _MOST for n in shape) or len(raw) > 8 * _MOST:
            raise ValueError("too large")
        values = np.frombuffer(raw, "<f8").astype(np.float64).reshape(shape)
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise ConfigError(f"not an array of a trained function: {error!r}") from error
    if not np.isfinite(values).all():
        raise ConfigError("an array of a trained function holds NaN or infinity")
    return values


def field_of(data: Any, name: str) -> Any:
    """A field of a JSON object.

    Raises:
        ConfigError: there is none.
    """
    if not isinstance(data, Mapping) or name not in data:
        raise ConfigError(f"the file of a trained function lacks '{name}'; train it again")
    return data[name]
