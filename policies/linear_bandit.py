"""Linear rewards of several arms, learned from what was chosen: LinUCB and Thompson sampling."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]


class LinearArms:
    """For each arm a ridge regression of its reward on the context: A = ridge I + sum of x x', b = sum of r
    x.

    The rows of many devices are taken at once, and give the same sums in any order.

    Args:
        arms, size: how many arms, and numbers in a context.
        ridge: weight of the prior, which is a reward of 0.
    """

    def __init__(self, arms: int, size: int, ridge: float) -> None:
        self.a = np.broadcast_to(ridge * np.eye(size), (arms, size, size)).copy()
        self.b = np.zeros((arms, size))
        self._solve(range(arms))

    def _solve(self, arms: Any) -> None:
        if not hasattr(self, "inverse"):
            self.inverse, self.theta = np.empty_like(self.a), np.empty_like(self.b)
        for arm in arms:
            self.inverse[arm] = np.linalg.inv(self.a[arm])
            self.theta[arm] = self.inverse[arm] @ self.b[arm]

    def put(self, a: Floats, b: Floats) -> None:
        """Begin from other sums, as `a` and `b` of another one."""
        self.a, self.b = a.copy(), b.copy()
        self._solve(range(len(b)))

    def mean(self, x: Floats) -> Floats:
        """Expected reward of every arm, (..., arms), for contexts (..., size)."""
        return np.asarray(np.einsum("...d,kd->...k", x, self.theta))

    def bonus(self, x: Floats) -> Floats:
        """How unsure that is: sqrt(x' A^-1 x), (..., arms)."""
        return np.asarray(np.sqrt(np.einsum("...d,kde,...e->...k", x, self.inverse, x)))

    def draw(self, x: Floats, scale: float, rng: np.random.Generator) -> Floats:
        """Rewards by a weight vector drawn for each arm and context from N(theta, scale^2 A^-1), (...,
        arms).
        """
        return self.mean(x) + scale * self.bonus(x) * rng.standard_normal((*x.shape[:-1], len(self.b)))

    def learn(self, arm: npt.NDArray[np.int64], x: Floats, reward: Floats) -> None:
        """Take outcomes: arm (n,), contexts (n, size), rewards (n,)."""
        for one in np.unique(arm):
            mine = arm == one
            rows = x[mine]
            self.a[one] += rows.T @ rows
            self.b[one] += reward[mine] @ rows
        self._solve(np.unique(arm))
