"""A trained forecast: quantiles by gradient-boosted trees over what was seen of the uplink lately."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from splitedge.errors import PolicyError
from splitedge.policies.forecast import Forecast
from splitedge.policies.model_file import Model, read_model, write_model
from splitedge.policies.trees import TreeArrays, Trees
from splitedge.policy import where

KIND = "forecast"
#: Samples that are remembered; the features are drawn from them.
LAGS = 6
FEATURES = LAGS + 5
_LEAST_RTT, _LEAST_S = 1e-6, 1e-3
_WIDEST = 12.0  # log units that a forecast may differ from what is seen now


class ForecastFile(Model):
    """What a file of a forecast holds.

    Attributes:
        trees: three outputs, the 10th, 50th and 90th percentile of the logarithm of what comes over what is
            seen now.
        rows, sources: how many examples it was trained on, and of what.
        pinball: mean pinball loss of the three on the validation part, log units.
        coverage: part of the validation part between low and high; 0.8 were right.
    """

    trees: TreeArrays
    rows: int
    sources: tuple[str, ...]
    pinball: float
    coverage: float

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.trees.features != FEATURES or len(self.trees.base) != 3:
            raise ValueError(f"trees of {FEATURES} features and 3 outputs are expected")
        return self


class TreesForecast(Forecast):
    """Gradient boosting with the pinball loss (Friedman, Annals of Statistics 2001; Koenker and Bassett,
    Econometrica 1978), one set of trees for each of the three quantiles, made by scikit-learn and evaluated
    by `Trees`. The features are ratios but for the level and the RTT, so that it carries over to other links.
    """

    name: ClassVar[str] = "trees"
    knows_width: ClassVar[bool] = True

    def __init__(self, file: ForecastFile | None = None) -> None:
        super().__init__(wide=0.0)
        self.file = file
        self._trees = None if file is None else Trees(file.trees)
        self._past: tuple[Any, ...] = ()  # logarithms of the last samples, the newest last
        self._gap: Any = 0.0
        self._rtt: Any = 0.0
        self._least_rtt: Any = 0.0
        self._known: tuple[Any, npt.NDArray[np.float64]] | None = None

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a trained one.

        Raises:
            PolicyError: the file is missing, damaged or holds something else.
        """
        return cls(read_model(path, KIND, ForecastFile))

    def save(self, path: Path | str) -> str:
        """Write it; returns the digest.

        Raises:
            PolicyError: it was not trained, or the file can not be written.
        """
        if self.file is None:
            raise PolicyError("a forecast that was not trained can not be saved; see fit_forecast")
        return write_model(path, KIND, self.file)

    def features(self, horizon_s: Any) -> npt.NDArray[np.float64]:
        """What the trees read, (..., FEATURES): how the last samples differ from the newest, their spread,
        the level, RTT, gap to the sample before, horizon.
        """
        newest = self._past[-1]
        apart = [newest - y for y in self._past[:-1]]
        mean = sum(apart) / LAGS
        spread = sum(a * a for a in apart) / LAGS - mean * mean
        rtt = self._rtt + _LEAST_RTT
        columns = [
            *apart,
            where(spread > 0.0, spread, 0.0) ** 0.5,
            newest,
            _plain_log(rtt),
            _plain_log(rtt / (self._least_rtt + _LEAST_RTT)),
            _plain_log(self._gap + _LEAST_S),
            _plain_log(horizon_s + _LEAST_S),
        ]
        if all(isinstance(column, float) for column in columns):
            return np.array(columns)
        return np.stack(np.broadcast_arrays(*columns), -1)

    def _quantiles(self, horizon_s: Any) -> tuple[Any, Any, Any]:
        if self._trees is None:
            raise PolicyError("this forecast was not trained; see fit_forecast")
        if self._known is None or not np.array_equal(self._known[0], horizon_s):
            steps = np.sort(np.clip(self._trees(self.features(horizon_s)), -_WIDEST, _WIDEST), -1)
            self._known = horizon_s, steps
        steps, newest = self._known[1], self._past[-1]
        if steps.ndim == 1:
            low, middle, high = steps.tolist()
            return newest + low, newest + middle, newest + high
        return newest + steps[..., 0], newest + steps[..., 1], newest + steps[..., 2]

    def _begin(self, y: Any, rtt: Any) -> None:
        self._past = (y,) * LAGS
        self._gap = 0.0 * y
        self._rtt = self._least_rtt = rtt + self._gap

    def _step(self, fresh: Any, gap: Any, y: Any, rtt: Any) -> None:
        kept = self._past
        self._past = tuple(where(fresh, new, old) for new, old in zip((*kept[1:], y), kept, strict=True))
        self._gap = where(fresh, gap, self._gap)
        self._rtt = where(fresh, rtt, self._rtt)
        least = where(self._rtt < self._least_rtt, self._rtt, self._least_rtt)
        self._least_rtt = where(fresh, least, self._least_rtt)
        self._known = None


def _plain_log(value: Any) -> Any:
    return np.log(value) if isinstance(value, np.ndarray) else math.log(value)
