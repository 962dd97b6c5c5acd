"""A trained forecast: quantiles by gradient-boosted trees over what was seen of the uplink lately."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
from pydantic import model_validator

from splitedge.policies.forecast import Forecast
from splitedge.policies.model_file import Model, read_model, write_model
from splitedge.policies.trees import TreeArrays, Trees
from splitedge.policy import Estimate

KIND = "forecast"
#: Samples that are remembered; the features are drawn from them.
LAGS = 6
FEATURES = LAGS + 5
_LEAST_RTT = 1e-6
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
    Econometrica 1978), one set of trees for each of the three quantiles, made by scikit-learn and evaluated by
    `Trees`. The features are ratios but for the level and the RTT, so that it carries over to other links.
    """

    name: ClassVar[str] = "trees"

    def __init__(self, file: ForecastFile | None = None) -> None:
        super().__init__()
        self.file = file
        self._trees = None if file is None else Trees(file.trees)
        self._past: Any = None  # logarithms of the last samples, the newest last, (LAGS, ...)
        self._gap: Any = 0.0
        self._rtt: Any = 0.0
        self._least_rtt: Any = 0.0
        self._known: tuple[Any, Estimate] | None = None

    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Read a trained one.

        Raises:
            PolicyError: the file is missing, damaged or holds something else.
        """
        return cls(read_model(path, KIND, ForecastFile))

    def save(self, path: Path | str) -> str:
        """Write it; returns the digest."""
        assert self.file is not None  # an untrained one is only made to collect features
        return write_model(path, KIND, self.file)

    def features(self, horizon_s: Any) -> npt.NDArray[np.float64]:
        """What the trees read, (..., FEATURES): how the last samples differ from the newest, their spread, the
        level, RTT, gap to the sample before, horizon.
        """
        newest = self._past[-1]
        rtt = np.maximum(self._rtt, _LEAST_RTT)
        columns = (
            *(newest - self._past[i] for i in range(LAGS - 1)),
            self._past.std(0),
            newest - np.log(1e6),
            np.log(rtt),
            np.log(rtt / np.maximum(self._least_rtt, _LEAST_RTT)),
            np.log(np.maximum(self._gap, 1e-3)),
            np.log(np.maximum(horizon_s, 1e-3)),
        )
        return np.stack(np.broadcast_arrays(*columns), -1)

    def observe(self, t_s: Any, goodput: Any, rtt: Any) -> None:
        """See `Forecast.observe`."""
        before = self._past
        super().observe(t_s, goodput, rtt)
        if self._past is not before:
            self._known = None

    def predict(self, horizon_s: Any) -> Estimate:
        """See `Forecast.predict`; asked twice for the same moment and horizon it answers from memory."""
        if self._trees is None or not self.started:
            return super().predict(horizon_s)
        if self._known is not None and self._known[0] is horizon_s or (
            self._known is not None and np.array_equal(self._known[0], horizon_s)
        ):
            return self._known[1]
        steps = np.sort(np.clip(self._trees(self.features(horizon_s)), -_WIDEST, _WIDEST), -1)
        rates = np.exp(self._past[-1][..., None] + steps)
        found = Estimate(rates[..., 1], rates[..., 0], rates[..., 2])
        self._known = (horizon_s, found)
        return found

    def _begin(self, y: Any, rtt: Any) -> None:
        self._past = np.repeat(np.asarray(y, float)[None], LAGS, 0)
        self._gap = 0.0 * self._past[0]
        self._rtt = self._least_rtt = rtt + self._gap

    def _step(self, fresh: Any, gap: Any, y: Any, rtt: Any) -> None:
        shifted = np.concatenate([self._past[1:], np.asarray(y, float)[None]])
        self._past = np.where(fresh, shifted, self._past)
        self._gap = np.where(fresh, gap, self._gap)
        self._rtt = np.where(fresh, rtt, self._rtt)
        self._least_rtt = np.where(fresh, np.minimum(self._least_rtt, rtt), self._least_rtt)

    def _middle(self, horizon_s: Any) -> Any:
        return self._past[-1]
