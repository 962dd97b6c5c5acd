"""`dads[:loss]`: the minimum cut for the load: least latency of a frame, or least of the slowest stage."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import numpy as np

from splitedge.errors import PolicyError
from splitedge.policies.latency import known_accuracy, within_reach
from splitedge.policies.pace import Pace
from splitedge.policy import Decision, Observation, Option, Policy, Route, latency_mean, where
from splitedge.policy_argument import read_argument
from splitedge.record import Record

_LIGHT, _HEAVY = 0, 1


class Dads(Policy):
    """The deployed cut that is the minimum cut under this load and link.

    Source: Hu et al., "Dynamic Adaptive DNN Surgery for Inference Acceleration on the Edge", INFOCOM 2019.
    Under light load the cut of least latency of one frame is taken (DADS-L, a minimum cut of the network's
    graph). It holds as long as its slowest stage, of device, uplink, server and downlink, keeps up with the
    frames that arrive. Under heavier load the cut whose slowest stage is fastest is taken (DADS-H), so that
    most frames get through; of equals the one of less latency.

    What is deployed is a chain: computing everything in the cloud, one cut after the other, computing
    everything here. A finite cut between source and sink of a chain crosses it at exactly one place, so the
    minimum cut is the place of least cost, and DADS-H, for which the paper has an approximation on general
    graphs, is solved exactly. A place is charged its cheapest codec and level. Exits are no cuts: they are
    used only where nothing else is in reach, the most accurate one.

    Args:
        loss: options this much (or less) below the most accurate cut in reach are considered, in [0, 1];
            1 considers all.
        rate: frames a second that arrive; NaN measures it from the records.
    """

    name: ClassVar[str] = "dads"
    needs: ClassVar[frozenset[Route]] = frozenset({Route.SPLIT})

    def __init__(self, loss: float = 1.0, rate: float = math.nan) -> None:
        if not 0.0 <= loss <= 1.0:
            raise PolicyError(f"policy 'dads': the loss must be in [0, 1], got {loss}")
        if rate <= 0.0 or rate == math.inf:
            raise PolicyError(f"policy 'dads': the rate must be above 0 frames a second, got {rate}")
        self.loss = loss
        self.rate = rate
        self._pace = Pace()

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        """Make it from `dads`, `dads:0.02` or `dads:0.02,rate=30`.

        Raises:
            PolicyError: an unknown key, or a value that is no number or out of range.
        """
        return cls(**read_argument(cls, argument, main="loss"))

    def decide(self, obs: Observation) -> Decision:
        """The minimum cut of least latency, or that of the fastest slowest stage if it can't keep up."""
        values = [_value(option, obs) for option in obs.options]
        top: Any = -2.0
        for value in values:
            top = where(value > top, value, top)
        floor = where(top >= 0.0, where(top > self.loss, top - self.loss, 0.0), top)
        light: Any = 0
        least: Any = math.inf
        for i, option in enumerate(obs.options):
            good = values[i] >= floor
            if good is False:
                continue
            seconds = where(good, latency_mean(option, obs), math.inf)
            better = seconds < least
            light, least = where(better, i, light), where(better, seconds, least)
        keeps_up = self._frames() * _stage_of(obs, light) < 1.0
        if np.all(keeps_up):
            return Decision(light, where(keeps_up, _LIGHT, _HEAVY))
        heavy = _heavy(obs, values, floor)
        return Decision(where(keeps_up, light, heavy), where(keeps_up, _LIGHT, _HEAVY))

    def learn(self, record: Record) -> None:
        """Count an arrival."""
        self._pace.count(record.t_s)

    def explain(self, obs: Observation, decision: Decision) -> str:
        """One sentence."""
        option = obs.options[decision.option]
        ms = f"{1e3 * latency_mean(option, obs):.1f} ms on average"
        stage = f"slowest stage {1e3 * slowest_stage(option, obs):.1f} ms"
        link = "the cloud is out of reach"
        if obs.link_up:
            link = f"uplink {obs.goodput.mean / 1e6:.2f} Mbit/s, RTT {1e3 * obs.rtt.mean:.0f} ms"
        if option.route is Route.EXIT:
            return f"{option.name} is the most accurate left where no cut is in reach, {ms} ({link})"
        frames = float(self._frames())
        if decision.why == _HEAVY:
            return f"{option.name} gets most of {frames:.1f} frames/s through: {stage}, {ms} ({link})"
        load = f"keeps up with {frames:.1f} frames/s" if frames else "is not loaded yet"
        return f"{option.name} is the cut of least latency, {ms}; its {stage} {load} ({link})"

    def _frames(self) -> Any:
        """Frames a second, as told or as measured."""
        return self._pace.rate() if math.isnan(self.rate) else self.rate


def slowest_stage(option: Option, obs: Observation) -> Any:
    """Seconds of the slowest stage of a pipeline of frames: device, uplink, server, downlink."""
    slowest: Any = option.edge_s * obs.rows
    if not option.remote:
        return slowest
    for seconds in (
        option.bytes_up * 8.0 * obs.rows / obs.goodput.mean,
        option.cloud_s * obs.rows,
        option.bytes_down * 8.0 * obs.rows / obs.downlink.mean,
    ):
        slowest = where(seconds > slowest, seconds, slowest)
    return slowest


def _value(option: Option, obs: Observation) -> Any:
    """Accuracy of a cut in reach; less 2 for an exit, so that it counts only where there is no cut; -2 for
    what is out of reach.
    """
    value = known_accuracy(option, obs) - (2.0 if option.route is Route.EXIT else 0.0)
    return where(within_reach(obs, option.remote), value, -2.0)


def _heavy(obs: Observation, values: list[Any], floor: Any) -> Any:
    """The cut whose slowest stage is fastest; of equals, the one of least latency."""
    best: Any = 0
    best_stage: Any = math.inf
    best_s: Any = math.inf
    for i, option in enumerate(obs.options):
        good = values[i] >= floor
        if good is False:
            continue
        stage = where(good, slowest_stage(option, obs), math.inf)
        seconds = where(good, latency_mean(option, obs), math.inf)
        better = (stage < best_stage) | ((stage == best_stage) & (seconds < best_s))
        best = where(better, i, best)
        best_stage, best_s = where(better, stage, best_stage), where(better, seconds, best_s)
    return best


def _stage_of(obs: Observation, index: Any) -> Any:
    """The slowest stage of the option of that index, element by element."""
    if not isinstance(index, np.ndarray):
        return slowest_stage(obs.options[index], obs)
    found: Any = math.inf
    for i in np.unique(index):
        found = where(index == i, slowest_stage(obs.options[i], obs), found)
    return found
