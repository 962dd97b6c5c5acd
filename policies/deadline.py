"""`deadline[:tolerance]`: the most accurate option that meets the deadline in 19 of 20 cases."""

from __future__ import annotations

import math
from typing import Any, ClassVar, Self

from splitedge.errors import PolicyError
from splitedge.policies.battery import CRITICAL, CRITICAL_TOLERANCE, LOW, LOW_TOLERANCE, Battery
from splitedge.policies.latency import known_accuracy, within_reach
from splitedge.policies.scout import check_scout, scout
from splitedge.policy import Decision, Observation, Policy, joules, latency_q95, where
from splitedge.policy_argument import read_argument

_FITS, _NONE_FITS, _SCOUTS = 0, 1, 2


class Deadline(Policy):
    """The most accurate option whose predicted 95th percentile of latency meets the time left.

    The prediction takes the 95th percentile of bytes, RTT and queue over the 10th of goodput: policies
    that budget on means miss 30 to 80% of their deadlines on recorded cellular channels. Options within
    `tolerance` of the best accuracy are equals: the one of least joules wins, then the fastest. After an
    exit its calibrated confidence is its accuracy, so an exit that is sure enough stops the request there.
    If nothing fits, the option of the least 95th percentile is most likely to make it (a local one, of
    equals).

    Where nothing was sent for `scout_s` seconds, the device can answer in time, and a more accurate remote
    option could make it on a good link, that request is sent as a scout (`scout`). While the battery is low
    the tolerance is wider (`Battery`), and at a critical charge nothing scouts.

    Sources: cut and exit chosen together under a latency bound as in SPINN (Laskaridis et al., MobiCom
    2020); planning on the distribution of a transfer's time instead of its mean as in Fugu (Yan et al.,
    NSDI 2020).

    Args:
        tolerance: of accuracy, in [0, 1].
        scout_s: seconds; inf for never.
        low, low_tolerance, critical, critical_tolerance: see `Battery`.
    """

    name: ClassVar[str] = "deadline"

    def __init__(
        self,
        tolerance: float = 0.01,
        scout_s: float = 1.0,
        low: float = LOW,
        low_tolerance: float = LOW_TOLERANCE,
        critical: float = CRITICAL,
        critical_tolerance: float = CRITICAL_TOLERANCE,
    ) -> None:
        if not 0.0 <= tolerance <= 1.0:
            raise PolicyError(f"policy 'deadline': the tolerance must be in [0, 1], got {tolerance}")
        self.tolerance = tolerance
        self.scout_s = check_scout(self.name, scout_s)
        self.battery = Battery(self.name, low, low_tolerance, critical, critical_tolerance)

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        """Make it from `deadline`, `deadline:0.02` or `deadline:0.02,low=0.3`.

        Raises:
            PolicyError: an unknown key, or a value that is no number or out of range.
        """
        return cls(**read_argument(cls, argument, main="tolerance"))

    def decide(self, obs: Observation) -> Decision:
        """The most accurate option that fits; of equals, the cheapest."""
        seconds: list[Any] = []
        rights: list[Any] = []
        values: list[Any] = []  # accuracy where the option fits, else -1
        top: Any = -1.0
        for option in obs.options:
            late = latency_q95(option, obs)
            if option.remote:
                late = where(within_reach(obs, True), late, math.inf)
            right = known_accuracy(option, obs)
            value = where(late <= obs.deadline_s, right, -1.0)
            value = where(late < math.inf, value, -1.0)  # without a deadline too
            seconds.append(late)
            rights.append(right)
            values.append(value)
            top = where(value > top, value, top)
        fits = top >= 0.0
        tolerance = self.battery.tolerance(self.tolerance, obs.battery)
        if fits is True:  # one device, and something fits: the usual case
            best = _cheapest(obs, seconds, values, top - tolerance)
        else:
            best = where(fits, _cheapest(obs, seconds, values, top - tolerance), _fastest(obs, seconds))
        due = where(self.battery.is_critical(obs.battery), False, fits)
        sent = scout(obs, best, due, rights, top + tolerance, self.scout_s)
        why = where(sent >= 0, _SCOUTS, where(fits, _FITS, _NONE_FITS))
        return Decision(where(sent >= 0, sent, best), why)

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
        tolerance = self.battery.tolerance(self.tolerance, obs.battery)
        best = "the most accurate that fits" if not tolerance else "the cheapest of the most accurate"
        why = self.battery.reason(self.tolerance, obs.battery)
        return f"{option.name} is {best} {left}: {right}, {late} ({link}){why}"


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


def _cheapest(obs: Observation, seconds: list[Any], values: list[Any], floor: Any) -> Any:
    """The option of least joules among those whose value is at least `floor`; of equals, the fastest."""
    floor = where(floor > 0.0, floor, 0.0)
    best: Any = 0
    best_j: Any = math.inf
    best_s: Any = math.inf
    for i, option in enumerate(obs.options):
        good = values[i] >= floor
        if good is False:
            continue
        cost = where(good, joules(option, obs), math.inf)
        late = where(good, seconds[i], math.inf)
        better = (cost < best_j) | ((cost == best_j) & (late < best_s))
        best = where(better, i, best)
        best_j = where(better, cost, best_j)
        best_s = where(better, late, best_s)
    return best
