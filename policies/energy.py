"""`energy[:joules]`: the best answers that an average budget of joules, or a battery's lifetime, allows."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

import numpy as np

from splitedge.errors import PolicyError
from splitedge.policies.battery import CRITICAL, CRITICAL_TOLERANCE, LOW, LOW_TOLERANCE, Battery
from splitedge.policies.budget import Budget, Lifetime, PerRequest, Share
from splitedge.policies.latency import known_accuracy, within_reach
from splitedge.policies.saving import cheaper
from splitedge.policies.scout import check_scout, scout, scouts_now
from splitedge.policy import (
    Decision,
    Observation,
    Option,
    Policy,
    joules,
    joules_of_tail,
    latency_mean,
    latency_q95,
    where,
)
from splitedge.policy_argument import read_argument
from splitedge.record import Record

_BEST, _SCOUTS = 0, 1


class Energy(Policy):
    """Lyapunov drift-plus-penalty: as much utility as the budget allows on the average.

    Utility is accuracy where the 95th percentile of latency meets the time left, half of it where only the
    mean does, else 0. What was spent over the budget so far waits in a virtual queue, Q <- max(0, Q + joules
    - budget), fed by the measured joules of each record. Each request takes the option of greatest
    V * utility - (Q / budget) * (joules / budget): a device that owes nothing takes the best, one that owes
    much the cheapest. After n requests the mean is at most the budget plus Q / n, whatever
    happened; where some option keeps below the budget, Q is bounded in proportion to V, and the utility is
    within the order of 1 / V of the best mix of options that the budget allows.

    Source: Neely, "Stochastic Network Optimization with Application to Communication and Queueing Systems",
    Morgan & Claypool 2010, chapters 3 and 4. A battery that runs low widens a tolerance: of the options whose
    utility is that near, the one of least joules wins (`Battery`).

    Args:
        budget: joules a request on the average, modelled ones, idle not counted.
        v: weight of utility against what is owed, above 0: a budget is met after some `v` requests.
        share: without a budget, the joules allowed as a share of what always taking the best option would
            cost, in (0, 1].
        hours, battery_wh: instead of a budget, how long a battery of so many watt-hours shall last.
        idle_w: watts that the device draws besides, which the lifetime must pay for.
        scout_s: seconds without a request sent after which one scouts the link, if it would be the best use
            of the budget on a good link; inf for never.
        low, low_tolerance, critical, critical_tolerance: see `Battery`.
    """

    name: ClassVar[str] = "energy"

    def __init__(
        self,
        budget: float = math.nan,
        v: float = 50.0,
        share: float = 0.5,
        hours: float = math.nan,
        battery_wh: float = math.nan,
        idle_w: float = 0.0,
        scout_s: float = 1.0,
        low: float = LOW,
        low_tolerance: float = LOW_TOLERANCE,
        critical: float = CRITICAL,
        critical_tolerance: float = CRITICAL_TOLERANCE,
    ) -> None:
        if not 0.0 < v < math.inf:
            raise PolicyError(f"policy 'energy': 'v' must be above 0, got {v}")
        lasts = not (math.isnan(hours) and math.isnan(battery_wh))
        if lasts and not math.isnan(budget):
            raise PolicyError("policy 'energy' takes a budget, or hours and battery_wh, not both")
        if lasts and (math.isnan(hours) or math.isnan(battery_wh)):
            raise PolicyError(
                "policy 'energy' needs hours and battery_wh for a lifetime, as in "
                "'energy:hours=8,battery_wh=50'"
            )
        self.v = v
        self.scout_s = check_scout(self.name, scout_s)
        self.budget: Budget = Share(share)
        if lasts:
            self.budget = Lifetime(hours, battery_wh, idle_w)
        elif not math.isnan(budget):
            self.budget = PerRequest(budget)
        self.battery = Battery(self.name, low, low_tolerance, critical, critical_tolerance)
        #: Joules spent over the budget so far, a float or of shape (N,).
        self.owed: Any = 0.0
        self._asked_s: Any = None  # second of the last arrival

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        """Make it from `energy`, `energy:0.05`, `energy:0.05,v=20` or `energy:hours=8,battery_wh=50`.

        Raises:
            PolicyError: an unknown key, or a value that is no number or out of range.
        """
        return cls(**read_argument(cls, argument, main="budget"))

    def decide(self, obs: Observation) -> Decision:
        """The greatest drift-plus-penalty score; of equals, the fastest."""
        utility = [_utility(option, obs) for option in obs.options]
        cost = [joules(option, obs) for option in obs.options]
        reach = [within_reach(obs, option.remote) for option in obs.options]
        seconds = [latency_q95(option, obs) for option in obs.options]
        if obs.exit < 0:
            self.budget.see(_of_best(utility, self._if_always(obs, cost), reach))
        usual = self.budget.usual()
        price = self.owed / usual / usual
        scores = [self.v * u - price * j for u, j in zip(utility, cost, strict=True)]
        best, top, top_u = _greatest(scores, reach, seconds, utility)
        tolerance = self.battery.tolerance(0.0, obs.battery)
        if np.any(tolerance > 0.0):
            near = [r & (u >= top_u - tolerance) for r, u in zip(reach, utility, strict=True)]
            best = where(tolerance > 0.0, cheaper(obs, cost, seconds, near, best), best)
        answers = where(self.battery.is_critical(obs.battery), False, _answers(obs, seconds))
        due = answers & within_reach(obs, True) & scouts_now(obs, self.scout_s)
        if due is False:
            return Decision(best, _BEST)
        worth = [self.v * known_accuracy(o, obs) - price * j for o, j in zip(obs.options, cost, strict=True)]
        sent = scout(obs, best, due, worth, top)
        return Decision(where(sent >= 0, sent, best), where(sent >= 0, _SCOUTS, _BEST))

    def _if_always(self, obs: Observation, cost: list[Any]) -> list[Any]:
        """Joules of each option if every request were sent: then the radio's tail lasts from one to the next,
        however long it has slept by now. A budget that is a share of what the best costs would else grow with
        every request kept on the device.
        """
        gap = obs.tail_s if self._asked_s is None else obs.t_s - self._asked_s
        gap = where(gap > 0.0, where(gap < obs.tail_s, gap, obs.tail_s), 0.0)
        self._asked_s = obs.t_s
        instead = obs.tail_w * gap - joules_of_tail(obs)
        return [one + instead if o.remote else one for o, one in zip(obs.options, cost, strict=True)]

    def learn(self, record: Record) -> None:
        """Owe what the request cost above what it was allowed."""
        self.owed = np.maximum(self.owed + record.energy_j - self.budget.allow(record), 0.0)

    def explain(self, obs: Observation, decision: Decision) -> str:
        """One sentence."""
        option = obs.options[decision.option]
        right = f"right in {known_accuracy(option, obs):.1%}"
        late = f"{1e3 * latency_q95(option, obs):.1f} ms at the 95th percentile"
        if not (obs.joules_per_edge_s or obs.joules_per_bit_up or obs.joules_per_bit_down):
            return (
                f"{option.name} is best: {right}, {late}; no power profile is set, so no joules are charged"
            )
        costs = (
            f"{1e3 * joules(option, obs):.3g} mJ where {1e3 * float(self.budget.usual()):.3g} mJ are allowed"
        )
        owed = f"{1e3 * float(self.owed):.3g} mJ are owed"
        if decision.why == _SCOUTS:
            return (
                f"nothing was sent for {obs.unsent_s:.1f} s: {option.name} scouts the link, predicted to "
                f"take {late}, {costs}, {owed}; the device answers if the cloud does not"
            )
        why = self.battery.reason(0.0, obs.battery)
        return f"{option.name} is the best use of the energy budget: {right}, {late}, {costs}, {owed}{why}"


def _utility(option: Option, obs: Observation) -> Any:
    """Accuracy times the chance to answer in time, in three steps."""
    right = known_accuracy(option, obs)
    late = where(latency_mean(option, obs) <= obs.deadline_s, 0.5 * right, 0.0)
    return where(latency_q95(option, obs) <= obs.deadline_s, right, late)


def _of_best(utility: list[Any], cost: list[Any], reach: list[Any]) -> Any:
    """Joules of the option in reach of greatest utility; of equals, the cheapest."""
    top: Any = -1.0
    found: Any = 0.0
    for u, j, near in zip(utility, cost, reach, strict=True):
        better = near & ((u > top) | ((u == top) & (j < found)))
        top, found = where(better, u, top), where(better, j, found)
    return found


def _answers(obs: Observation, seconds: list[Any]) -> Any:
    """Whether the device can answer in time without the cloud."""
    found: Any = False
    for option, late in zip(obs.options, seconds, strict=True):
        if not option.remote:
            found = found | (late <= obs.deadline_s)
    return found


def _greatest(
    scores: list[Any], allowed: list[Any], seconds: list[Any], utility: list[Any]
) -> tuple[Any, Any, Any]:
    """Index of the greatest score among those allowed, that score and its utility; of equals the fastest."""
    best: Any = 0
    top: Any = -math.inf
    top_s: Any = math.inf
    top_u: Any = 0.0
    for i, (score, near, s) in enumerate(zip(scores, allowed, seconds, strict=True)):
        better = near & ((score > top) | ((score == top) & (s < top_s)))
        best, top = where(better, i, best), where(better, score, top)
        top_s, top_u = where(better, s, top_s), where(better, utility[i], top_u)
    return best, top, top_u
