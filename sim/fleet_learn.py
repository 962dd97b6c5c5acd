"""What a policy learns from in fleet mode: one request of every device, when all of them have ended."""

from __future__ import annotations

from collections import deque
from typing import Any

import numpy as np

from splitedge.sim.fleet_policy import Fleet
from splitedge.sim.fleet_world import ENDED


class Lessons:
    """Gathers the outcomes of each step; a step holds the n-th request of every device.

    Args:
        devices: how many there are.
    """

    def __init__(self, devices: int) -> None:
        self._devices = devices
        self._first = 0  # number of the oldest step not yet taught
        self._steps: deque[Any] = deque()
        self._missing: deque[int] = deque()

    def take(self, ended: Any) -> None:
        """Requests that have ended, records of `ENDED`."""
        number = ended["place"] // self._devices
        for step in np.unique(number):
            while step >= self._first + len(self._steps):
                self._steps.append(np.zeros(self._devices, ENDED))
                self._missing.append(self._devices)
            mine = ended[number == step]
            self._steps[step - self._first][mine["owner"]] = mine
            self._missing[step - self._first] -= len(mine)

    def teach(self, fleet: Fleet, now: float, deadline_s: float) -> None:
        """Let the policy learn from the steps that are over by `now`, in order."""
        while self._steps and not self._missing[0] and self._steps[0]["at"].max() <= now:
            fleet.learn(self._steps.popleft(), deadline_s)
            self._missing.popleft()
            self._first += 1
