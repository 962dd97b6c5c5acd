"""Forecasts of the uplink's goodput: a state per device, `observe` what is seen, `predict` what will come.

All work on the logarithm of goodput, so an error is a factor. Numbers are floats for one device or arrays of
shape (N,) for N; a forecast never mixes devices. `middle`, `low` and `high` are the median, the 10th and the
90th percentile of the mean goodput over the horizon.

The three simple ones learn how wide to be from their own errors, whatever their distribution: each quantile
moves up by `rate * q` where it was too low and down by `rate * (1 - q)` where too high, so that in the long run
the right share of what comes lies below it (Gibbs and Candes, "Adaptive Conformal Inference Under Distribution
Shift", NeurIPS 2021).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from splitedge.errors import PolicyError
from splitedge.policy import Estimate

LEAST_BPS, MOST_BPS = 1e3, 1e12
#: Seconds between samples that are kept; what is seen in between is left out.
STEP_S = 0.05
_LOW, _HIGH = 0.1, 0.9


class Forecast(ABC):
    """One forecast of a device, or of N at once.

    Args:
        rate: how fast the quantiles follow, in log units a sample.
    """

    name: ClassVar[str]

    def __init__(self, rate: float = 0.08) -> None:
        self._rate = rate
        self._t: Any = None
        self._low: Any = -0.5
        self._high: Any = 0.5

    @property
    def started(self) -> bool:
        """Whether anything was observed."""
        return self._t is not None

    def observe(self, t_s: Any, goodput: Any, rtt: Any) -> None:
        """Take what is seen of the uplink at second `t_s`: goodput in bits/s, rtt in seconds.

        A time within `STEP_S` of the last one kept, or before it, is left out.
        """
        y = np.log(np.minimum(np.maximum(goodput, LEAST_BPS), MOST_BPS))
        if self._t is None:
            shape = np.broadcast(t_s, y, rtt).shape
            self._t = np.broadcast_to(t_s, shape).astype(float) if shape else float(t_s)
            self._begin(y if shape == np.shape(y) else np.broadcast_to(y, shape), rtt)
            return
        gap = t_s - self._t
        fresh = gap >= STEP_S
        if not np.any(fresh):
            return
        gap = np.maximum(gap, STEP_S)
        error = y - self._middle(gap)
        self._low = np.where(fresh, self._low + self._rate * (_LOW - (error < self._low)), self._low)
        self._high = np.where(fresh, self._high + self._rate * (_HIGH - (error < self._high)), self._high)
        self._step(fresh, gap, y, rtt)
        self._t = np.where(fresh, t_s, self._t)

    def predict(self, horizon_s: Any) -> Estimate:
        """Median, 10th and 90th percentile of the mean goodput from now to `horizon_s` later, bits/s.

        NaN before anything was observed.
        """
        if self._t is None:
            return Estimate(math.nan, math.nan, math.nan)
        middle = self._middle(horizon_s)
        low, high = np.minimum(self._low, 0.0), np.maximum(self._high, 0.0)
        return Estimate(np.exp(middle), np.exp(middle + low), np.exp(middle + high))

    @abstractmethod
    def _begin(self, y: Any, rtt: Any) -> None:
        """The first sample, as a logarithm."""

    @abstractmethod
    def _step(self, fresh: Any, gap: Any, y: Any, rtt: Any) -> None:
        """A later one, of the devices for which `fresh` holds, `gap` seconds after the last."""

    @abstractmethod
    def _middle(self, horizon_s: Any) -> Any:
        """The logarithm expected."""


class EwmaForecast(Forecast):
    """Exponentially weighted mean: a sample counts 1/e after `tau_s` seconds."""

    name: ClassVar[str] = "ewma"

    def __init__(self, tau_s: float = 0.15, rate: float = 0.08) -> None:
        super().__init__(rate)
        self._tau = tau_s
        self._level: Any = 0.0

    def _begin(self, y: Any, rtt: Any) -> None:
        self._level = y

    def _step(self, fresh: Any, gap: Any, y: Any, rtt: Any) -> None:
        share = -np.expm1(-gap / self._tau)
        self._level = np.where(fresh, self._level + share * (y - self._level), self._level)

    def _middle(self, horizon_s: Any) -> Any:
        return self._level


class HarmonicForecast(Forecast):
    """Harmonic mean of the last samples, robust to single fast ones: Jiang et al., "FESTIVE", CoNEXT 2012; the
    forecast of robust MPC (Yin et al., SIGCOMM 2015), which takes the last five.
    """

    name: ClassVar[str] = "harmonic"

    def __init__(self, count: int = 5, rate: float = 0.08) -> None:
        super().__init__(rate)
        self._count = count
        self._slowness: Any = None  # 1 / goodput of the last samples, (count, ...)

    def _begin(self, y: Any, rtt: Any) -> None:
        self._slowness = np.repeat(np.exp(-np.asarray(y))[None], self._count, 0)

    def _step(self, fresh: Any, gap: Any, y: Any, rtt: Any) -> None:
        shifted = np.concatenate([self._slowness[1:], np.exp(-np.asarray(y))[None]])
        self._slowness = np.where(fresh, shifted, self._slowness)

    def _middle(self, horizon_s: Any) -> Any:
        return -np.log(self._slowness.mean(0))


class HoltForecast(Forecast):
    """Double exponential smoothing with a damped trend (Holt 1957; Gardner and McKenzie, Management Science
    1985): where the link is going, not only where it is.
    """

    name: ClassVar[str] = "holt"

    def __init__(self, level: float = 0.6, trend: float = 0.1, fade_s: float = 0.3, rate: float = 0.08) -> None:
        super().__init__(rate)
        self._alpha, self._beta, self._fade = level, trend, fade_s
        self._level: Any = 0.0
        self._trend: Any = 0.0  # log units a second

    def _begin(self, y: Any, rtt: Any) -> None:
        self._level = y
        self._trend = 0.0 * y

    def _step(self, fresh: Any, gap: Any, y: Any, rtt: Any) -> None:
        expected = self._middle(gap)
        level = expected + self._alpha * (y - expected)
        slope = (level - self._level) / gap
        trend = self._trend * np.exp(-gap / self._fade)
        trend = trend + self._beta * (slope - trend)
        self._level = np.where(fresh, level, self._level)
        self._trend = np.where(fresh, trend, self._trend)

    def _middle(self, horizon_s: Any) -> Any:
        return self._level + self._trend * self._fade * -np.expm1(-np.minimum(horizon_s / self._fade, 50.0))


#: Those that need no training, by name.
SIMPLE: dict[str, type[Forecast]] = {
    kind.name: kind for kind in (EwmaForecast, HarmonicForecast, HoltForecast)
}


def make_forecast(spec: str) -> Forecast:
    """A forecast by name, or the trained one in a file.

    Raises:
        PolicyError: neither; the message lists the names.
    """
    if spec in SIMPLE:
        return SIMPLE[spec]()
    if "." not in spec and "/" not in spec:
        known = ", ".join(SIMPLE)
        raise PolicyError(f"no forecast '{spec}'; there are {known}, and files written by 'splitedge policy fit'")
    from splitedge.policies.forecast_trees import TreesForecast

    return TreesForecast.load(spec)
