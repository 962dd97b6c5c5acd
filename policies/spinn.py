"""`spinn[:order]`: exit threshold and split chosen together under an SLA, by the user's objectives."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt

from splitedge.errors import PolicyError
from splitedge.policies.designs import Designs
from splitedge.policies.exit_shares import ExitShares
from splitedge.policies.latency import within_reach
from splitedge.policy import Decision, Observation, Option, Policy, Route, joules, latency_mean
from splitedge.policy_argument import read_argument

Array = npt.NDArray[Any]

#: Confidences tried as the threshold of all exits; inf passes every exit.
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, math.inf)
OBJECTIVES = ("accuracy", "latency", "joules", "cloud")
_TINY = 1e-9


class Spinn(Policy):
    """The split and the exit threshold that are best together, by objectives in the user's order or weights.

    Source: Laskaridis et al., "SPINN: Synergistic Progressive Inference of Neural Networks over Device and
    Cloud", MobiCom 2020. Every pair of a split (all in the cloud and all here included) and a threshold of
    the exits before it is predicted: accuracy, mean latency, joules of the device, seconds of the server,
    each weighted with how often requests end at each exit. Pairs whose mean latency is within the SLA (the
    time left) are compared; if there are none, the fastest is taken. As published, the SLA is on the mean;
    for single requests see `deadline`.

    With an order, the first objective keeps the pairs within `slack` of its best (of accuracy: that much
    lower; of the others: that fraction more), the next one the best of those, and so on. With weights, the
    least weighted sum wins, each cost as a fraction of its greatest among the pairs.

    How often an exit answers comes from the confidences of validation rows (`see_exits`, called by
    `Deployment.fit`); until then a Beta distribution with the exit's accuracy as mean stands in. A row sure
    at one exit counts as sure at the deeper ones.

    Args:
        order: objectives by falling importance, joined by dashes, of accuracy, latency, joules, cloud.
        slack: of an ordered objective, in [0, 1].
        accuracy, latency, joules, cloud: weights, at least 0; any above 0 replaces the order.
    """

    name: ClassVar[str] = "spinn"
    needs: ClassVar[frozenset[Route]] = frozenset({Route.EXIT, Route.SPLIT})

    def __init__(
        self,
        order: str = "accuracy-latency-joules",
        slack: float = 0.02,
        accuracy: float = 0.0,
        latency: float = 0.0,
        joules: float = 0.0,
        cloud: float = 0.0,
    ) -> None:
        self.order = tuple(order.split("-"))
        if not set(self.order) <= set(OBJECTIVES) or len(set(self.order)) < len(self.order):
            there = ", ".join(OBJECTIVES)
            raise PolicyError(f"policy 'spinn': the order joins some of {there} with dashes, got '{order}'")
        if not 0.0 <= slack <= 1.0:
            raise PolicyError(f"policy 'spinn': the slack must be in [0, 1], got {slack}")
        self.slack = slack
        self.weights = {"accuracy": accuracy, "latency": latency, "joules": joules, "cloud": cloud}
        for objective, weight in self.weights.items():
            if not 0.0 <= weight < math.inf:
                raise PolicyError(f"policy 'spinn': the weight of {objective} must be >= 0, got {weight}")
        self._seen: dict[int, ExitShares] = {}
        self._options: tuple[Option, ...] = ()
        self._designs: Designs | None = None

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        """Make it from `spinn`, `spinn:latency-accuracy,slack=0.05` or `spinn:accuracy=1,latency=0.3`.

        Raises:
            PolicyError: an unknown key or objective, or a value that is no number or out of range.
        """
        return cls(**read_argument(cls, argument, main="order"))

    def see_exits(self, confidence: Mapping[int, Sequence[float]]) -> None:
        """Take the calibrated confidences that the exits gave on validation rows, by the exit's number.

        Raises:
            PolicyError: an exit without rows, or a confidence outside of [0, 1].
        """
        self._seen = {number: ExitShares(rows) for number, rows in confidence.items()}
        self._options = ()

    def designs(self, options: tuple[Option, ...]) -> Designs:
        """All pairs of a split and a threshold."""
        if self._designs is None or options is not self._options:
            self._options = options
            self._designs = Designs(options, self._seen)
        return self._designs

    def decide(self, obs: Observation) -> Decision:
        """The end of the best pair; at an exit, its answer where the confidence reaches the threshold."""
        start = obs
        if obs.exit >= 0:  # the pair was chosen on arrival: see the request as it was then
            start = obs._replace(
                exit=-1, confidence=math.nan, sunk_s=0.0, deadline_s=obs.deadline_s + obs.sunk_s
            )
        designs = self.designs(obs.options)
        best = self._best(start, designs)
        end = designs.end[best]
        if obs.exit >= 0:
            here = next((i for i, o in enumerate(obs.options) if o.exit == obs.exit), -1)
            depth = obs.options[here].edge_s
            past = np.array([o.route is Route.EXIT and o.edge_s <= depth for o in obs.options])
            end = np.where((obs.confidence >= designs.threshold[best]) | past[end], here, end)
        if np.shape(end):
            return Decision(end, best)
        return Decision(int(end), int(best))

    def explain(self, obs: Observation, decision: Decision) -> str:
        """One sentence."""
        option = obs.options[decision.option]
        designs, best = self.designs(obs.options), int(decision.why)
        end, threshold = obs.options[designs.end[best]], float(designs.threshold[best])
        at = "no exit" if threshold == math.inf else f"exits from {threshold:.0%} on"
        told = " over ".join(self.order)
        if any(self.weights.values()):
            told = ", ".join(f"{key} x {weight:g}" for key, weight in self.weights.items() if weight)
        plan = f"{end.name} with {at} is best by {told} (expected accuracy {designs.accuracy[best]:.1%})"
        if obs.exit < 0:
            seconds = float(designs.expected([latency_mean(o, obs) for o in obs.options])[best, 0])
            return f"{plan}, {1e3 * seconds:.1f} ms on average"
        seen = f"exit {obs.exit} is {obs.confidence:.1%} confident"
        if option.exit == obs.exit:
            return f"{seen} and answers as {option.name}: {plan}"
        return f"{seen}, not enough, so {option.name} answers: {plan}"

    def _best(self, obs: Observation, designs: Designs) -> Any:
        """Index of the best pair, a scalar or of shape (N,)."""
        options = obs.options
        latency = designs.expected([latency_mean(option, obs) for option in options])
        reach = designs.at_end([within_reach(obs, option.remote) for option in options])
        latency = np.where(reach, latency, math.inf)
        good = reach & (latency <= obs.deadline_s)
        costs = {
            "accuracy": 1.0 - designs.accuracy[:, None],
            "latency": latency,
            "joules": designs.expected([joules(option, obs) for option in options]),
            "cloud": designs.cloud_s[:, None],
        }
        if any(self.weights.values()):
            total = self._weighted(costs, good)
        else:
            total = self._ordered(costs, good)
        best = np.where(good.any(axis=0), total.argmin(axis=0), latency.argmin(axis=0))
        many = any(map(np.shape, (obs.deadline_s, obs.link_up, obs.goodput.mean, obs.rtt.mean, obs.rows)))
        return best if many or best.size > 1 else best[0]

    def _weighted(self, costs: dict[str, Array], good: Array) -> Array:
        total: Array = np.zeros(good.shape)
        for name, weight in self.weights.items():
            if weight:
                cost = np.where(good, costs[name], 0.0)
                total = total + weight * (cost / np.maximum(cost.max(axis=0), _TINY))
        return np.where(good, total, math.inf)

    def _ordered(self, costs: dict[str, Array], good: Array) -> Array:
        """The last objective of the pairs that are near the best of each before it, inf for the others."""
        for name in self.order[:-1]:
            least = np.where(good, costs[name], math.inf).min(axis=0)
            bound = least + self.slack if name == "accuracy" else least * (1.0 + self.slack)
            good = good & (costs[name] <= bound + _TINY)
        return np.where(good, costs[self.order[-1]], math.inf)
