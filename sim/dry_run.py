"""Asks a policy beforehand, and watches it during a run: one clear error, and early."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from splitedge.errors import SimulationError
from splitedge.policy import Decision, Estimate, Observation, Option, Policy, Route
from splitedge.record import Record

_MBPS = (0.05, 0.5, 2.0, 10.0, 100.0)
_RTT_S = (0.002, 0.05, 0.3)
_DEADLINE_S = (0.02, 0.15, math.inf)
_BATTERY = (math.nan, 0.03, 0.8)
_CONFIDENCE = (0.1, 0.6, 0.99)


def rehearse(policy: Policy, options: tuple[Option, ...]) -> None:
    """Ask a copy of the policy about a grid of conditions: links from dead to fast, batteries, exits passed.

    Raises:
        SimulationError: it raises, or chooses an option that does not exist; the message names the
            conditions.
    """
    watched = Watched(copy.deepcopy(policy))
    for obs in _grid(options):
        try:
            decision = watched.decide(obs)
            watched.explain(obs, Decision(int(decision.option), decision.why))
        except Exception as error:
            raise SimulationError(
                f"{watched.failure or _failed(policy, error)}; asked at {_conditions(obs)}"
            ) from error


def _grid(options: tuple[Option, ...]) -> Iterator[Observation]:
    exits = [option.exit for option in options if option.route is Route.EXIT and option.exit is not None]
    passed = [(-1, math.nan), *itertools.product(exits, _CONFIDENCE)]
    links = [(True, mbps, rtt_s) for mbps in _MBPS for rtt_s in _RTT_S] + [(False, 1.0, 0.05)]
    for t, ((up, mbps, rtt_s), deadline_s, (number, confidence)) in enumerate(
        itertools.product(links, _DEADLINE_S, passed)
    ):
        bps = 1e6 * mbps
        yield Observation(
            options,
            Estimate(bps, 0.5 * bps, 2.0 * bps),
            Estimate(2.0 * bps, bps, 4.0 * bps),
            Estimate(rtt_s, 0.5 * rtt_s, 2.0 * rtt_s),
            Estimate(0.002, 0.0001, 0.01),
            link_up=up,
            deadline_s=deadline_s,
            exit=number,
            confidence=confidence,
            sunk_s=0.0 if number < 0 else 0.001,
            battery=_BATTERY[t % len(_BATTERY)],
            joules_per_edge_s=2.5,
            joules_per_bit_up=50e-9,
            joules_per_bit_down=10e-9,
            unsent_s=math.inf if t % 2 else 0.05,
            t_s=0.05 * t,
        )


def _conditions(obs: Observation) -> str:
    link = f"uplink {obs.goodput.mean / 1e6:g} Mbit/s, RTT {1e3 * obs.rtt.mean:g} ms"
    at = "on arrival" if obs.exit < 0 else f"after exit {obs.exit} with confidence {obs.confidence:g}"
    return f"{link if obs.link_up else 'no link'}, {1e3 * obs.deadline_s:g} ms left, {at}"


def _failed(policy: Policy, error: Exception) -> str:
    return f"policy '{policy.name}' failed ({type(error).__name__}: {error})"


@dataclass
class Watched(Policy):
    """A policy whose failures are kept in `failure`: the engine would fall back and go on, as it must."""

    inner: Policy
    failure: str | None = None
    name: ClassVar[str] = "watched"

    def __post_init__(self) -> None:
        self.__dict__["name"] = self.inner.name

    def decide(self, obs: Observation) -> Decision:
        """What the policy says."""
        try:
            decision = self.inner.decide(obs)
            option = int(decision.option)
        except Exception as error:
            self.failure = self.failure or _failed(self.inner, error)
            raise
        if not 0 <= option < len(obs.options):
            self.failure = self.failure or (
                f"policy '{self.inner.name}' chose option {option}; there are {len(obs.options)}, "
                "numbered from 0"
            )
            raise SimulationError(self.failure)
        return decision

    def explain(self, obs: Observation, decision: Decision) -> str:
        """Why."""
        return self.inner.explain(obs, decision)

    def check(self, options: Any) -> None:
        """Whether it can work with these options."""
        self.inner.check(options)

    def learn(self, record: Record) -> None:
        """Take an outcome."""
        try:
            self.inner.learn(record)
        except Exception as error:
            self.failure = self.failure or f"{_failed(self.inner, error)} when it was to learn from a record"
            raise
