"""Probabilities that work or a transfer is done in time. Numbers are floats or arrays of shape (N,)."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from splitedge.policy import Estimate, where

#: Student's t with two degrees of freedom has a closed form; its 90th and 95th percentile.
_T90, _T95 = 1.8856, 2.9200
_LEAST_S, _LEAST_BITS, _LEAST_WIDTH = 1e-6, 1.0, 0.02
_FAR = 1e6


class Link(NamedTuple):
    """The uplink as it is forecast.

    Attributes:
        rate: goodput in bits/s: median, 10th and 90th percentile.
        down, up: how far, in log units, the 10th and the 90th percentile are from the median.
        backlog: bits sent and not yet gone.
        shift: added to what a chance is computed from; learned from those that came true.
    """

    rate: Any
    down: Any
    up: Any
    backlog: Any
    shift: Any


def link_of(forecast: Estimate, backlog: Any, shift: Any) -> Link:
    """The link of a forecast."""
    down, up = log(forecast.mean / forecast.low), log(forecast.high / forecast.mean)
    return Link(
        forecast.mean,
        where(down > _LEAST_WIDTH, down, _LEAST_WIDTH),
        where(up > _LEAST_WIDTH, up, _LEAST_WIDTH),
        backlog,
        shift,
    )


def arrives(bits: Any, free_s: Any, link: Link) -> Any:
    """Probability that `bits` go within `free_s` seconds: goodput is log-normal around its median, as wide as
    the forecast on either side, with the tails of Student's t.
    """
    bits = where(bits > _LEAST_BITS, bits, _LEAST_BITS)
    room = where(free_s > _LEAST_S, free_s, _LEAST_S)
    ratio = log(where(room < _FAR, room, _FAR) * link.rate / bits)
    chance = share_below(_T90 * ratio / where(ratio > 0.0, link.down, link.up) + link.shift)
    return where(free_s > _LEAST_S, chance, 0.0)


def done(left_s: Any, mean_s: Any, q95_s: Any) -> Any:
    """Probability that work of this mean and 95th percentile is done in `left_s` seconds; certain where there
    is nothing to do and time left.
    """
    spread = q95_s - mean_s
    z = _T95 * (left_s - mean_s) / where(spread > _LEAST_S, spread, _LEAST_S)
    return share_below(z)


def share_below(z: Any) -> Any:
    """Student's t with two degrees of freedom: probability of a value below `z`. Heavy-tailed, as recorded
    channels are: a margin of twice the 95th percentile is still missed in 1 of 70 cases.
    """
    z = where(z < _FAR, z, _FAR)
    z = where(z > -_FAR, z, -_FAR)
    return 0.5 + 0.5 * z / (2.0 + z * z) ** 0.5


def log(value: Any) -> Any:
    """Natural logarithm of floats or arrays above 0."""
    return np.log(value) if isinstance(value, np.ndarray) else math.log(value)
