"""Forecasts of the uplink's goodput: a state per device, `observe` what is seen, `predict` what will come.

All work on the logarithm of goodput, so an error is a factor. Numbers are floats for one device or arrays of
shape (N,) for N; a forecast never mixes devices. An `Estimate` of a forecast is the median, the 10th and the
90th percentile of the mean goodput over the horizon.

How wide it is, and how far what is seen is off from what comes, a forecast learns from what it said and what
came (`adjust`): each quantile moves up by `rate * q` where it was too low and down by `rate * (1 - q)` where
too high, so that in the long run the right share of what comes lies below it, whatever the distribution
(Gibbs and Candes, "Adaptive Conformal Inference Under Distribution Shift", NeurIPS 2021).
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any, ClassVar

import numpy as np

from splitedge.errors import PolicyError
from splitedge.policy import Estimate, where

LEAST_BPS, MOST_BPS = 1e3, 1e12
#: Seconds between samples that are kept; what is seen in between is left out.
STEP_S = 0.05
QUANTILES = (0.1, 0.5, 0.9)
#: How far, in log units, a quantile may be moved.
_FARTHEST = 5.0


class Forecast(ABC):
    """One forecast of a device, or of N at once.

    Args:
        rate: how fast the quantiles follow, in log units for each transfer.
        wide: where the 10th and 90th percentile begin, in log units from the middle.
    """

    name: ClassVar[str]
    #: Whether its quantiles mean something before `adjust` was ever called.
    knows_width: ClassVar[bool] = False

    def __init__(self, rate: float = 0.08, wide: float = 0.5) -> None:
        self._rate = rate
        self._t: Any = None
        self._moved: tuple[Any, Any, Any] = (-wide, 0.0, wide)

    @property
    def started(self) -> bool:
        """Whether anything was observed."""
        return self._t is not None

    def observe(self, t_s: Any, goodput: Any, rtt: Any) -> None:
        """Take what is seen of the uplink at second `t_s`: goodput in bits/s, rtt in seconds.

        A time within `STEP_S` of the last one kept, or before it, is left out.
        """
        y = log(goodput)
        if self._t is None:
            self._t = t_s + 0.0 * y
            self._begin(y + 0.0 * t_s, rtt)
            return
        gap = t_s - self._t
        fresh = gap >= STEP_S
        if not (fresh.any() if isinstance(fresh, np.ndarray) else fresh):
            return
        self._step(fresh, where(fresh, gap, STEP_S), y, rtt)
        self._t = where(fresh, t_s, self._t)

    def predict(self, horizon_s: Any) -> Estimate:
        """Median, 10th and 90th percentile of the mean goodput from now to `horizon_s` later, bits/s.

        NaN before anything was observed.
        """
        if self._t is None:
            return Estimate(math.nan, math.nan, math.nan)
        low, middle, high = self._quantiles(horizon_s)
        down, off, up = self._moved
        middle = middle + off
        low, high = low + down, high + up
        low, high = where(low < middle, low, middle), where(high > middle, high, middle)
        return Estimate(exp(middle), exp(low), exp(high))

    def adjust(self, said: Estimate, came: Any) -> None:
        """Learn from a transfer: what `predict` said of it and the goodput it got, bits/s (NaN: not
        known).
        """
        known = came == came
        if not (known.any() if isinstance(known, np.ndarray) else known):
            return
        moved = []
        for q, value, offset in zip(QUANTILES, (said.low, said.mean, said.high), self._moved, strict=True):
            step = self._rate * (q - where(came < value, 1.0, 0.0))
            moved.append(where(known, clip(offset + step, -_FARTHEST, _FARTHEST), offset))
        self._moved = moved[0], moved[1], moved[2]

    @abstractmethod
    def _begin(self, y: Any, rtt: Any) -> None:
        """The first sample, as a logarithm."""

    @abstractmethod
    def _step(self, fresh: Any, gap: Any, y: Any, rtt: Any) -> None:
        """A later one, of the devices for which `fresh` holds, `gap` seconds after the last."""

    @abstractmethod
    def _quantiles(self, horizon_s: Any) -> tuple[Any, Any, Any]:
        """Low, middle and high before they are moved, as logarithms."""


def log(goodput: Any) -> Any:
    """Logarithm of a goodput within limits."""
    if isinstance(goodput, np.ndarray):
        return np.log(np.clip(goodput, LEAST_BPS, MOST_BPS))
    return math.log(min(max(goodput, LEAST_BPS), MOST_BPS))


def exp(value: Any) -> Any:
    """Exponential of floats or arrays."""
    return np.exp(value) if isinstance(value, np.ndarray) else math.exp(value)


def clip(value: Any, low: float, high: float) -> Any:
    """The value within limits, of floats or arrays."""
    return np.clip(value, low, high) if isinstance(value, np.ndarray) else min(max(value, low), high)


class _Simple(Forecast):
    """A forecast of the middle alone; its width is learned."""

    def _quantiles(self, horizon_s: Any) -> tuple[Any, Any, Any]:
        middle = self._middle(horizon_s)
        return middle, middle, middle

    @abstractmethod
    def _middle(self, horizon_s: Any) -> Any:
        """The logarithm expected."""


class EwmaForecast(_Simple):
    """Exponentially weighted mean: a sample counts 1/e after `tau_s` seconds."""

    name: ClassVar[str] = "ewma"

    def __init__(self, tau_s: float = 0.15) -> None:
        super().__init__()
        self._tau = tau_s
        self._level: Any = 0.0

    def _begin(self, y: Any, rtt: Any) -> None:
        self._level = y

    def _step(self, fresh: Any, gap: Any, y: Any, rtt: Any) -> None:
        share = 1.0 - exp(-gap / self._tau)
        self._level = where(fresh, self._level + share * (y - self._level), self._level)

    def _middle(self, horizon_s: Any) -> Any:
        return self._level


class HarmonicForecast(_Simple):
    """Harmonic mean of the last samples, robust to single fast ones: Jiang et al., "FESTIVE", CoNEXT 2012;
    the forecast of robust MPC (Yin et al., SIGCOMM 2015), which takes the last five.
    """

    name: ClassVar[str] = "harmonic"

    def __init__(self, count: int = 5) -> None:
        super().__init__()
        self._count = count
        self._slowness: tuple[Any, ...] = ()  # 1 / goodput of the last samples

    def _begin(self, y: Any, rtt: Any) -> None:
        self._slowness = (exp(-y),) * self._count

    def _step(self, fresh: Any, gap: Any, y: Any, rtt: Any) -> None:
        kept = self._slowness
        self._slowness = tuple(
            where(fresh, new, old) for new, old in zip((*kept[1:], exp(-y)), kept, strict=True)
        )

    def _middle(self, horizon_s: Any) -> Any:
        return log(self._count / sum(self._slowness))


class HoltForecast(_Simple):
    """Double exponential smoothing with a damped trend (Holt 1957; Gardner and McKenzie, Management Science
    1985): where the link is going, not only where it is.
    """

    name: ClassVar[str] = "holt"

    def __init__(self, level: float = 0.6, trend: float = 0.1, fade_s: float = 0.3) -> None:
        super().__init__()
        self._alpha, self._beta, self._fade = level, trend, fade_s
        self._level: Any = 0.0
        self._trend: Any = 0.0  # log units a second

    def _begin(self, y: Any, rtt: Any) -> None:
        self._level = y
        self._trend = 0.0 * y

    def _step(self, fresh: Any, gap: Any, y: Any, rtt: Any) -> None:
        expected = self._middle(gap)
        level = expected + self._alpha * (y - expected)
        faded = self._trend * exp(-gap / self._fade)
        trend = faded + self._beta * ((level - self._level) / gap - faded)
        self._level = where(fresh, level, self._level)
        self._trend = where(fresh, trend, self._trend)

    def _middle(self, horizon_s: Any) -> Any:
        return self._level + self._trend * self._fade * (1.0 - exp(-horizon_s / self._fade))


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
        raise PolicyError(
            f"no forecast '{spec}'; there are {known}, and files written by 'splitedge policy fit'"
        )
    from splitedge.policies.forecast_trees import TreesForecast

    return TreesForecast.load(spec)
