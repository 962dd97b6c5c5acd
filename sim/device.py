"""The simulated device: how long its stages take, and what its battery has left."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

from splitedge.policy import Option, Route
from splitedge.power import PowerModel

_Z95 = 1.6449


def log_normal_sigma(mean: float, q95: float) -> float:
    """Sigma of the log-normal with this mean and 95th percentile; 0 where the two are equal or unknown.

    `q95 / mean = exp(1.645 sigma - sigma**2 / 2)` has two solutions and the lesser is taken; the ratio can
    be 3.87 at most (sigma 1.645), and a greater one is taken for that.
    """
    if not (mean > 0.0 and q95 > mean):
        return 0.0
    return _Z95 - math.sqrt(max(0.0, _Z95 * _Z95 - 2.0 * math.log(q95 / mean)))


class Seconds:
    """Seconds of a side's part of each option, drawn from a log-normal of its mean and 95th percentile.

    A request has one normal number `z` for all its stages there: what slows its first stage slows its
    second. So the stages on the way to an option sum up to a draw of that option's distribution.

    Args:
        means, q95s: seconds of one row, by option.
    """

    __slots__ = ("_means", "_sigmas")

    def __init__(self, means: Sequence[float], q95s: Sequence[float]) -> None:
        sigmas = [log_normal_sigma(m, q) for m, q in zip(means, q95s, strict=True)]
        self._sigmas = sigmas
        self._means = [m * math.exp(-0.5 * s * s) for m, s in zip(means, sigmas, strict=True)]

    def draw(self, option: int, z: float) -> float:
        """Seconds of an option for a request of this `z`."""
        sigma = self._sigmas[option]
        return self._means[option] * math.exp(sigma * z) if sigma else self._means[option]


def scaled(options: Sequence[Option], edge: float, cloud: float) -> tuple[Option, ...]:
    """The option table of a device and a cloud so many times slower: what a profile made there would say."""
    return tuple(
        replace(
            option,
            edge_s=option.edge_s * edge,
            edge_s_q95=option.edge_s_q95 * edge,
            cloud_s=option.cloud_s * cloud,
            cloud_s_q95=option.cloud_s_q95 * cloud,
        )
        for option in options
    )


class Battery:
    """Joules left. Idle power is drawn all the time; compute, bits and the radio's tail come on top.

    Args:
        capacity_j: of the full battery.
        charge: fraction of it at second 0.
        power: the device's.
    """

    __slots__ = ("_at", "_capacity", "_left", "_power")

    def __init__(self, capacity_j: float, charge: float, power: PowerModel) -> None:
        self._capacity = capacity_j
        self._left = capacity_j * charge
        self._power = power
        self._at = 0.0

    def spend(self, joules: float) -> None:
        """Draw joules of work (idle is drawn by `fraction`)."""
        self._left -= joules

    def fraction(self, now: float) -> float:
        """Charge in [0, 1] at `now`."""
        self._left -= self._power.idle_joules(now - self._at)
        self._at = now
        return min(1.0, max(0.0, self._left / self._capacity))


def on_head(option: Option) -> bool:
    """Whether an option's compute seconds on the device begin with the head's."""
    return option.route in (Route.SPLIT, Route.EXIT)
