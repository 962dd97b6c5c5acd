"""`deadline[:tolerance]`: the most accurate option that meets the deadline in 19 of 20 cases."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

from splitedge.errors import PolicyError
from splitedge.policies.in_time import Fallback, worth
from splitedge.policies.latency import fraction, known_accuracy, within_reach
from splitedge.policy import Decision, Observation, Policy, joules, latency_hoped, latency_q95, where

_FITS, _NONE_FITS, _SCOUTS = 0, 1, 2
import os
BUSY = float(os.environ.get('BUSY','0.1'))


class Deadline(Policy):
    """The most accurate option whose predicted 95th percentile of latency meets the time left.

    The prediction takes the 95th percentile of bytes, RTT and queue over the 10th of goodput: policies
    that budget on means miss 30 to 80% of their deadlines on recorded cellular channels. Options within
    `tolerance` of the best accuracy are equals: the one of least joules wins, then the fastest. After an
    exit its calibrated confidence is its accuracy, so an exit that is sure enough stops the request there.
    If nothing fits, the option of the least 95th percentile is most likely to make it (a local one, of
    equals).

    A link that looks too slow to use would look so for ever, since only use measures it. So where nothing
    was sent for `scout_s` seconds, the device can answer in time, and a more accurate remote option could
    make it on a good link, that request is sent as a scout. It can lose no deadline: the engine answers
    from the device when the cloud does not.

    Sources: cut and exit chosen together under a latency bound as in SPINN (Laskaridis et al., MobiCom
    2020); planning on the distribution of a transfer's time instead of its mean as in Fugu (Yan et al.,
    NSDI 2020).

    Args:
        tolerance: of accuracy, in [0, 1].
        scout_s: seconds; inf for never.
    """

    name: ClassVar[str] = "deadline"

    def __init__(self, tolerance: float = 0.01, scout_s: float = 1.0) -> None:
        if not 0.0 <= tolerance <= 1.0:
            raise PolicyError(f"policy 'deadline': the tolerance must be in [0, 1], got {tolerance}")
        if not scout_s > 0.0:
            raise PolicyError(f"policy 'deadline': scout_s must be above 0 seconds, got {scout_s}")
        self.tolerance = tolerance
        self.scout_s = scout_s

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        """Make it from `deadline` or `deadline:0.02`.

        Raises:
            PolicyError: the tolerance is no number in [0, 1].
        """
        return cls(fraction(cls.name, argument, 0.01))

    def decide(self, obs: Observation) -> Decision:
        """The option worth most; of equals, the cheapest."""
        fallback = Fallback(obs)
        found = [worth(option, obs, fallback) for option in obs.options]
        values = [one.right - BUSY * option.edge_s * obs.rows for option, one in zip(obs.options, found, strict=True)]
        top: Any = -math.inf
        fits: Any = False
        for option, value in zip(obs.options, values, strict=True):
            top = where(value > top, value, top)
            fits = fits | (within_reach(obs, option.remote) & (latency_q95(option, obs) <= obs.deadline_s))
        best = self._cheapest(obs, [one.joules for one in found], values, top)
        scout = self._scout(obs, best, fits, top)
        why = where(scout >= 0, _SCOUTS, where(fits, _FITS, _NONE_FITS))
        return Decision(where(scout >= 0, scout, best), why)

    def _scout(self, obs: Observation, best: Any, fits: Any, top: Any) -> Any:
        """The remote option to scout the link with in place of a local `best` that fits, -1 for none.

        The most accurate that can be hoped for: it also has the most bytes, as a rule, and so tells most.
        """
        due = fits & within_reach(obs, True) & (obs.unsent_s >= self.scout_s)
        scout: Any = -1
        floor = top + self.tolerance
        for i, option in enumerate(obs.options):
            if not option.remote:
                continue
            due = due & (best != i)
            right = known_accuracy(option, obs)
            chosen = (latency_hoped(option, obs) <= obs.deadline_s) & (right > floor)
            scout = where(chosen, i, scout)
            floor = where(chosen, right, floor)
        return where(due, scout, -1)

    def _cheapest(self, obs: Observation, costs: list[Any], values: list[Any], top: Any) -> Any:
        floor = top - self.tolerance
        best: Any = 0
        best_j: Any = math.inf
        best_s: Any = math.inf
        for i, option in enumerate(obs.options):
            good = values[i] >= floor
            if good is False:
                continue
            cost = where(good, costs[i], math.inf)
            late = where(good, latency_q95(option, obs), math.inf)
            better = (cost < best_j) | ((cost == best_j) & (late < best_s))
            best = where(better, i, best)
            best_j = where(better, cost, best_j)
            best_s = where(better, late, best_s)
        return best

    def explain(self, obs: Observation, decision: Decision) -> str:
        """One sentence."""
        option = obs.options[decision.option]
        late = f"{1e3 * latency_q95(option, obs):.1f} ms at the 95th percentile"
        left = "without a deadline"
        if obs.deadline_s < math.inf:
            left = f"with {1e3 * obs.deadline_s:.1f} ms left"
        link = "the cloud is out of reach"
        if obs.link_up:
            link = f"uplink {obs.goodput.low / 1e6:.2f} Mbit/s at the 10th percentile, "
            link += f"RTT {1e3 * obs.rtt.high:.0f} ms at the 95th"
        if decision.why == _SCOUTS:
            return (
                f"nothing was sent for {obs.unsent_s:.1f} s: {option.name} scouts the link {left}, "
                f"predicted to take {late} ({link}); the device answers if the cloud does not"
            )
        if decision.why == _NONE_FITS:
            return f"nothing is predicted to answer {left}; {option.name} is nearest, {late} ({link})"
        right = f"right in {known_accuracy(option, obs):.1%}"
        best = "the most accurate that fits" if not self.tolerance else "the cheapest of the most accurate"
        return f"{option.name} is {best} {left}: {right}, {late} ({link})"


def _fastest(obs: Observation, seconds: list[Any]) -> Any:
    best: Any = -1
    best_s: Any = math.inf
    for local_first in (False, True):
        for i, option in enumerate(obs.options):
            if option.remote is local_first:
                better = (seconds[i] < best_s) | (best < 0)
                best = where(better, i, best)
                best_s = where(better, seconds[i], best_s)
    return best
