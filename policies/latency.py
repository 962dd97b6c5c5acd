"""`latency[:loss]`: the option of least predicted mean latency."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

from splitedge.errors import PolicyError
from splitedge.policy import Decision, Observation, Option, Policy, accuracy, latency_mean, where
from splitedge.policy_argument import read_argument


class Latency(Policy):
    """The cut and route of least predicted mean latency; of equals, the more accurate.

    Source: Kang et al., "Neurosurgeon: Collaborative Intelligence Between the Cloud and Mobile Edge",
    ASPLOS 2017: per-layer latency models of both sides and the measured bandwidth choose the cut. Here the
    options also hold early exits and local models, which Neurosurgeon had not: they give up accuracy for
    speed, and `loss` bounds how much.

    Args:
        loss: options this much (or less) below the most accurate one in reach are considered, in
            [0, 1]; 1 considers all.
    """

    name: ClassVar[str] = "latency"

    def __init__(self, loss: float = 1.0) -> None:
        if not 0.0 <= loss <= 1.0:
            raise PolicyError(f"policy 'latency': the loss must be in [0, 1], got {loss}")
        self.loss = loss

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        """Make it from `latency` or `latency:0.02`.

        Raises:
            PolicyError: an unknown key, or the loss is no number in [0, 1].
        """
        return cls(**read_argument(cls, argument, main="loss"))

    def decide(self, obs: Observation) -> Decision:
        """The fastest option in reach."""
        reach = [within_reach(obs, option.remote) for option in obs.options]
        floor: Any = 0.0
        if self.loss < 1.0:
            top: Any = -1.0
            for option, near in zip(obs.options, reach, strict=True):
                value = where(near, known_accuracy(option, obs), -1.0)
                top = where(value > top, value, top)
            floor = top - self.loss
        best: Any = 0
        best_s: Any = math.inf
        best_accuracy: Any = -1.0
        for i, option in enumerate(obs.options):
            value = known_accuracy(option, obs)
            seconds = where(reach[i], where(value >= floor, latency_mean(option, obs), math.inf), math.inf)
            better = (seconds < best_s) | ((seconds == best_s) & (value > best_accuracy))
            best = where(better, i, best)
            best_accuracy = where(better, value, best_accuracy)
            best_s = where(better, seconds, best_s)
        return Decision(best)

    def explain(self, obs: Observation, decision: Decision) -> str:
        """One sentence."""
        option = obs.options[decision.option]
        ms = 1e3 * latency_mean(option, obs)
        bound = f" of those within {self.loss:.1%} of the best accuracy" if self.loss < 1.0 else ""
        if option.remote:
            link = f" (uplink {obs.goodput.mean / 1e6:.2f} Mbit/s, RTT {1e3 * obs.rtt.mean:.0f} ms)"
        else:
            link = "" if obs.link_up else " (the cloud is out of reach)"
        return f"{option.name} has the least predicted latency{bound}, {ms:.1f} ms on average{link}"


def within_reach(obs: Observation, remote: bool) -> Any:
    """Whether an option may be chosen: a remote one only while the link is up, unless all are remote."""
    if not remote or obs.link_up is True or all(option.remote for option in obs.options):
        return True
    return obs.link_up


def known_accuracy(option: Option, obs: Observation) -> Any:
    """Probability that an option answers right; an exit whose confidence is not known counts as usual."""
    value = accuracy(option, obs)
    return where(value == value, value, option.accuracy)
