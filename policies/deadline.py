"""`deadline[:tolerance]`: the option that is most likely to answer right in time."""

from __future__ import annotations

import math
from typing import ClassVar, Self

from splitedge.errors import PolicyError
from splitedge.policies.battery import CRITICAL, CRITICAL_TOLERANCE, LOW, LOW_TOLERANCE, Battery
from splitedge.policies.in_time import Prospects
from splitedge.policies.latency import known_accuracy
from splitedge.policies.scout import check_scout
from splitedge.policies.worth_most import NONE_FITS, SCOUTS, worth_most
from splitedge.policy import Decision, Observation, Policy, latency_mean
from splitedge.policy_argument import read_argument

TOLERANCE = 0.003


class Deadline(Policy):
    """The option that answers most requests right and in time, in expectation.

    What an option is worth: its chance to be in time times its accuracy, plus the chance to be late times the
    accuracy of what the device can still answer then, as the engine makes it (`Prospects`). So a likely miss
    is risked where the device can answer in its place, and is not where it can not. The chance is computed
    from the distribution of the latency, not from its mean: policies that budget on means miss 30 to 80% of
    their deadlines on recorded cellular channels. After an exit its calibrated confidence is its accuracy, so
    an exit that is sure enough stops the request there.

    Compute on the device has a price: whatever keeps it busy delays the requests behind. Options within
    `tolerance` of the most worth are equals: the one of least expected joules wins, then the fastest. If
    nothing is likely to be in time, the fastest.

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
        tolerance: float = TOLERANCE,
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
        """The option worth most; of equals, the cheapest."""
        return worth_most(obs, self.tolerance, self.scout_s, self.battery)

    def explain(self, obs: Observation, decision: Decision) -> str:
        """One sentence."""
        option = obs.options[decision.option]
        chance = Prospects(obs).worth[decision.option].chance
        late = f"{1e3 * latency_mean(option, obs):.1f} ms on average, in time in {chance:.1%}"
        left = "without a deadline"
        if obs.deadline_s < math.inf:
            left = f"with {1e3 * obs.deadline_s:.1f} ms left"
        link = "the cloud is out of reach"
        if obs.link_up:
            link = (
                f"uplink {obs.goodput.mean / 1e6:.2f} Mbit/s, 10th percentile {obs.goodput.low / 1e6:.2f}; "
            )
            link += f"RTT {1e3 * obs.rtt.mean:.0f} ms, 95th percentile {1e3 * obs.rtt.high:.0f}"
        if decision.why == SCOUTS:
            return (
                f"nothing was sent for {obs.unsent_s:.1f} s: {option.name} scouts the link {left}, "
                f"predicted to take {late} ({link}); the device answers if the cloud does not"
            )
        if decision.why == NONE_FITS:
            return f"nothing is likely to answer {left}; {option.name} is nearest, {late} ({link})"
        right = f"right in {known_accuracy(option, obs):.1%}"
        tolerance = self.battery.tolerance(self.tolerance, obs.battery)
        worth = f"is worth most {left}" + (", or as much for fewer joules" if tolerance else "")
        why = self.battery.reason(self.tolerance, obs.battery)
        return f"{option.name} {worth}: {right}, {late} ({link}){why}"
