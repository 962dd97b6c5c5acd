"""How many requests arrive a second, from the records of those that ended."""

from __future__ import annotations

from typing import Any

import numpy as np


class Pace:
    """A counter that forgets: requests a second over about the last `window_s` seconds.

    Numbers are floats for one device, arrays of shape (N,) for N.

    Args:
        window_s: seconds after which an arrival counts 1/e.
    """

    def __init__(self, window_s: float = 5.0) -> None:
        self.window_s = window_s
        self._first: Any = None
        self._last: Any = 0.0
        self._count: Any = 0.0

    def count(self, t_s: Any) -> None:
        """Count an arrival at second `t_s`. Arrivals may come out of order."""
        if self._first is None:
            self._first = self._last = t_s
            return
        last = np.maximum(self._last, t_s)
        gap = (last - self._last) / self.window_s
        # One arrival spread evenly over its gap, so that a steady pace is measured exactly.
        spread = np.where(gap > 0.0, -np.expm1(-gap) / np.maximum(gap, 1e-300), 1.0)
        self._count = self._count * np.exp(-gap) + spread
        self._last = last

    def rate(self) -> Any:
        """Arrivals a second up to the last one; 0 before the second."""
        if self._first is None:
            return 0.0
        seen = self.window_s * -np.expm1((self._first - self._last) / self.window_s)
        return self._count / np.maximum(seen, 1e-9)
