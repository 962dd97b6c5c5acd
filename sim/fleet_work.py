"""The requests of all devices as they come due, of the same random numbers as `workload.py` draws.

Only the next few hundred of each device are held, however many there are.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from splitedge.sim.curves import Floats
from splitedge.sim.fleet_streams import Streams
from splitedge.sim.fleet_world import Ints
from splitedge.sim.scenario import Scenario
from splitedge.sim.workload import ARRIVALS, CLOUD, EDGE, ROWS, requests_of

_HELD = 512  # requests drawn ahead for each device
_LEAST = 64
_NUMBERS = 4_000_000  # at most about this many in all


class Due(NamedTuple):
    """Requests of different devices, arrays of shape (n,)."""

    device: Ints
    t_s: Floats
    row: Ints
    edge_z: Floats
    cloud_z: Floats


class Requests:
    """Gives each device's requests in order.

    Args:
        scenario: arrivals, rates, seed.
        recorded: recorded arrivals, where the scenario names a file of them.
        there_are: rows of the evaluation.

    Attributes:
        next_s: second of each device's next request, inf after its last, shape (devices,).
        each: requests of each device.
        asked: requests of each device that were taken, shape (devices,).
    """

    def __init__(self, scenario: Scenario, recorded: Floats | None, there_are: int) -> None:
        work, count = scenario.work, scenario.device.count
        self.each = requests_of(work, recorded)
        self.asked = np.zeros(count, np.int64)
        self._work = work
        self._recorded = recorded
        self._phase = np.arange(count) / count
        self._held = min(self.each, max(_LEAST, min(_HELD, _NUMBERS // count)))
        self._poisson = work.arrivals == "poisson"
        self._times = np.zeros((count, self._held)) if self._poisson else np.zeros((1, 1))
        self._z = np.zeros((2, count, self._held))
        dtype = np.uint16 if there_are <= 1 << 16 else np.uint32
        self._there_are = there_are
        self._deck = np.zeros((count, min(there_are, self.each)), dtype)
        self._rows, self._edge, self._cloud = (
            Streams(scenario.seed, count, purpose) for purpose in (ROWS, EDGE, CLOUD)
        )
        self._arrivals = Streams(scenario.seed, count if self._poisson else 0, ARRIVALS)
        self._last = np.full(count, work.start_s)
        self._refill(np.arange(count))
        self.next_s = self._time(np.arange(count))

    @property
    def together(self) -> bool:
        """Whether the n-th requests of all devices come before the next of any."""
        return not self._poisson

    @property
    def finished(self) -> bool:
        """Whether all were taken."""
        return bool(np.all(self.asked >= self.each))

    def take(self, device: Ints) -> Due:
        """The next request of each of these devices, which all have one."""
        k = self.asked[device]
        at = k % self._held
        row = self._deck[device, k % self._there_are].astype(np.int64)
        due = Due(device, self.next_s[device], row, self._z[0, device, at], self._z[1, device, at])
        k = k + 1
        self.asked[device] = k
        there_is_more = k < self.each
        empty = device[there_is_more & ((k % self._held == 0) | (k % self._there_are == 0))]
        if empty.size:
            self._refill(empty)
        self.next_s[device] = np.inf
        more = device[there_is_more]
        self.next_s[more] = self._time(more)
        return due

    def _time(self, device: Ints) -> Floats:
        k = self.asked[device]
        work = self._work
        if self._poisson:
            return self._times[device, k % self._held]
        if self._recorded is not None:
            return work.start_s + self._recorded[k]
        return work.start_s + (k + self._phase[device]) / work.rate_hz

    def _refill(self, devices: Ints) -> None:
        held, rate = self._held, self._work.rate_hz
        for i in devices.tolist():
            k = int(self.asked[i])
            if k % held == 0:
                self._z[0, i] = self._edge.resume(i).standard_normal(held)
                self._edge.pause(i)
                self._z[1, i] = self._cloud.resume(i).standard_normal(held)
                self._cloud.pause(i)
                if self._poisson:
                    gaps = self._arrivals.resume(i).exponential(1.0 / rate, held)
                    self._arrivals.pause(i)
                    times = np.cumsum(np.append(self._last[i], gaps))
                    self._times[i], self._last[i] = times[1:], times[-1]
            if k % self._there_are == 0:
                deck = self._rows.resume(i).permutation(self._there_are)
                self._rows.pause(i)
                self._deck[i] = deck[: self._deck.shape[1]]
