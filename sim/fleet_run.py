"""The windows of a run in fleet mode: take requests, ask, go on, serve the cloud, drain what has ended."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from splitedge.policy import Option
from splitedge.sim.curves import Floats
from splitedge.sim.fleet_handle import handle
from splitedge.sim.fleet_learn import Lessons
from splitedge.sim.fleet_policy import Fleet, seen_in
from splitedge.sim.fleet_queue import run_cloud
from splitedge.sim.fleet_route import Asked, approach, arrive, pursue, standing
from splitedge.sim.fleet_setup import with_room
from splitedge.sim.fleet_work import Due, Requests
from splitedge.sim.fleet_world import BLOCKED, DONE, NONE, Ints, World

#: Requests of a window where there is a choice: enough to outweigh what a NumPy call costs by itself, few
#: enough for the arrays to stay in the processor's cache.
WINDOW_REQUESTS = 4096

Drain = Callable[[Any], None]


def window(rules: Any, devices: int, rate_hz: float) -> float:
    """Seconds of a window: the quickest way back from the cloud, or more where too few requests came in that
    time and those of one device are so far apart that a reply is there long before the next.
    """
    latency_s = rules.deadline_s if rules.timed else rules.patience_s
    apart_s = 1.0 / rate_hz - 2.0 * latency_s
    return float(max(rules.lookahead_s, min(WINDOW_REQUESTS / (devices * rate_hz), apart_s)))


class Run:
    """One run.

    Args:
        world: devices at second 0.
        requests: what they will ask.
        fleet: the policy.
        options: the option table.
        rate_hz: of each device's requests, for the length of a window.

    Attributes:
        world: as it is now.
        now: second up to which all is over.
    """

    def __init__(
        self, world: World, requests: Requests, fleet: Fleet, options: tuple[Option, ...], rate_hz: float
    ) -> None:
        self.world = world
        self.now = 0.0
        self._loops = handle(world)
        self._requests = requests
        self._fleet = fleet
        self._numbers = [options[i].exit for i in world.exits]
        devices = len(world.device)
        self._total = devices * requests.each
        self._lessons = Lessons(devices) if fleet.learns else None
        self.window_s = window(world.rules[0], devices, rate_hz)
        self._which = np.zeros(devices, np.int64)
        self._all = np.arange(devices)
        self._begun = 0

    def drive(self, drain: Drain, progress: Callable[[float], None] | None) -> None:
        """Simulate until every request has ended; `drain` takes them as they end."""
        told = 0.0
        steps = self._together() if self._fleet.keeps else self._windows()
        for dues, horizon in steps:
            self._step(dues, horizon, drain)
            # In a shared cell what devices send must not get far out of the order of sending.
            while self.world.rules[0].shared_cell and self.now + self.window_s < horizon:
                self._horizon(self.now + self.window_s, drain)
            self._horizon(horizon, drain)
            if progress is not None and self._begun / self._total >= told + 0.01:
                told = self._begun / self._total
                progress(told)
        self._settle(drain)
        if progress is not None:
            progress(1.0)

    def _windows(self) -> Iterator[tuple[list[tuple[Due, Ints]], float]]:
        """Requests by windows of time, with the place of each in order of arrival."""
        requests = self._requests
        while (begin := float(requests.next_s.min())) < np.inf:
            horizon = begin + self.window_s
            dues = []
            while (device := np.flatnonzero(requests.next_s < horizon)).size:
                dues.append(requests.take(device))
            yield self._placed(dues), self._until_asked(horizon)

    def _together(self) -> Iterator[tuple[list[tuple[Due, Ints]], float]]:
        """The n-th requests of all devices at once."""
        requests = self._requests
        devices = np.arange(len(self.world.device))
        while not requests.finished:
            due = requests.take(devices)
            yield self._placed([due]), self._until_asked(float(due.t_s.max()))

    def _until_asked(self, second: float) -> float:
        """The second of the next request: up to there, all must be over before it is taken in."""
        after = float(self._requests.next_s.min())
        return max(second, after) if after < np.inf else second

    def _placed(self, dues: list[Due]) -> list[tuple[Due, Ints]]:
        times = np.concatenate([due.t_s for due in dues])
        place = np.empty(len(times), np.int64)
        place[np.argsort(times, kind="stable")] = np.arange(self._begun, self._begun + len(times))
        self._begun += len(times)
        ends = np.cumsum([len(due.t_s) for due in dues])
        return list(zip(dues, np.split(place, ends[:-1]), strict=True))

    def _step(self, dues: list[tuple[Due, Ints]], horizon: float, drain: Drain) -> None:
        rules = self.world.rules[0]
        for due, place in dues:
            if self._lessons is not None:
                self._lessons.teach(self._fleet, float(due.t_s.min()), rules.deadline_s)
            # Where a device asks once it may go on at once; in a shared cell all must go on together.
            self._ask(due, place, horizon if len(dues) == 1 and not rules.shared_cell else -np.inf)
            self._drain(drain)

    def _ask(self, due: Due, place: Ints, until: float) -> None:
        """One request of each of these devices: all before it, its arrival, the first decision, and what
        comes of it by `until`.
        """
        n = len(due.device)
        world = with_room(self.world, n)
        if world is not self.world:
            self.world, self._loops = world, handle(world)
        asked = Asked(due.device, due.t_s, place, due.row, due.edge_z, due.cloud_z, np.empty(n, np.int64))
        todo = self._all[:n]
        while stand := arrive(self._loops, asked, todo, self._which):
            todo = self._which[:stand].copy()
            self._choose(due.device, todo)
        choice = self._fleet.ask(seen_in(world.seen[:, :n]), NONE, due.row)
        pursue(self._loops, asked.slot, self._all[:n], choice, until)

    def _come_to(self, device: Ints, until: Floats) -> None:
        """Let devices come to a second each; where requests stand at exits meanwhile the policy is asked."""
        while stand := approach(self._loops, device, until, self._which):
            which = self._which[:stand].copy()
            self._choose(device, which)
            device, until = device[which], until[which]

    def _choose(self, device: Ints, which: Ints) -> None:
        """Ask the policy about the requests that stand at exits on `device[which]`, exit by exit."""
        slot, depth = standing(self._loops, device, which)
        row = self.world.slot["row"][slot]
        choice = np.empty(len(which), np.int64)
        for at in np.unique(depth):
            group = depth == at
            there = seen_in(self.world.seen[:, which[group]])
            choice[group] = self._fleet.ask(there, self._numbers[at] or 0, row[group])
        pursue(self._loops, slot, which, choice, -np.inf)

    def _drain(self, drain: Drain) -> None:
        if self._lessons is not None:
            self._lessons.take(self.world.ended[: self.world.counts[DONE]])
        drain(self._loops)

    def _settle(self, drain: Drain) -> None:
        """Let what is in flight after the last arrival end."""
        step = max(self.window_s, self.world.rules[0].lookahead_s)
        while self.world.device["active"].any():
            self._horizon(self.now + step, drain)

    def _horizon(self, second: float, drain: Drain) -> None:
        """Let all devices come to a second, and the cloud serve what comes to it before."""
        clock, until = self.world.clock, np.full(len(self._all), second)
        horizon = 0.0
        while horizon < second:
            clock[BLOCKED] = np.inf
            self._come_to(self._all, until)
            horizon = min(second, float(clock[BLOCKED]))
            run_cloud(self._loops, horizon)
        self.now = second
        self._drain(drain)
