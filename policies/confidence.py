"""`confidence[:target]`: an early exit answers when its confidence reaches a threshold."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, ClassVar, Self

from splitedge.errors import PolicyError
from splitedge.policies.latency import known_accuracy, within_reach
from splitedge.policy import Decision, Observation, Policy, Route, latency_mean, where
from splitedge.policy_argument import read_argument

_START, _SURE, _UNSURE = 0, 1, 2


class Confidence(Policy):
    """Run to the first exit; take its answer where it is confident enough, else go to the best remote option.

    Sources: Teerapittayanon et al., "BranchyNet", ICPR 2016 (exits by confidence), and "Distributed Deep
    Neural Networks over the Cloud, the Edge and End Devices", ICDCS 2017 (the unsure ones go to the
    cloud). A threshold is chosen on validation data so that the accuracy of the answers above it is at
    least the target by a Clopper-Pearson bound (Biometrika 1934); `Deployment.fit` does that and calls
    `configure`. Until then the target itself is the threshold, which is right as far as the confidence is
    calibrated.

    The best remote option is the most accurate, of equals the fastest on average. While the cloud is out of
    reach the most accurate local option takes its place.

    Args:
        target: accuracy wanted of the answers of an exit, in (0, 1].
        thresholds: confidence needed at each exit, by its number; inf never takes the exit.
    """

    name: ClassVar[str] = "confidence"
    needs: ClassVar[frozenset[Route]] = frozenset({Route.EXIT})

    def __init__(self, target: float = 0.9, thresholds: Mapping[int, float] | None = None) -> None:
        if not 0.0 < target <= 1.0:
            raise PolicyError(f"policy 'confidence': the target must be in (0, 1], got {target}")
        self.target = target
        self.thresholds: dict[int, float] = {}
        self.configure(thresholds or {})

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        """Make it from `confidence` or `confidence:0.95`.

        Raises:
            PolicyError: an unknown key, or the target is no number in (0, 1].
        """
        return cls(**read_argument(cls, argument, main="target"))

    def configure(self, thresholds: Mapping[int, float]) -> None:
        """Set the confidence needed at each exit.

        Raises:
            PolicyError: a threshold is NaN or negative.
        """
        for number, threshold in thresholds.items():
            if math.isnan(threshold) or threshold < 0.0:
                raise PolicyError(f"policy 'confidence': the threshold of exit {number} is {threshold}")
        self.thresholds = dict(thresholds)

    def decide(self, obs: Observation) -> Decision:
        """The first exit at the start; then by the confidence."""
        best: Any = -1
        best_accuracy: Any = -1.0
        best_s: Any = math.inf
        for i, option in enumerate(obs.options):
            # Local ones count only where no remote one is in reach: they are ranked below all of those.
            value = known_accuracy(option, obs) + (1.0 if option.remote else 0.0)
            value = where(within_reach(obs, option.remote), value, -1.0)
            seconds = latency_mean(option, obs)
            better = (value > best_accuracy) | ((value == best_accuracy) & (seconds < best_s))
            best = where(better, i, best)
            best_s = where(better, seconds, best_s)
            best_accuracy = where(better, value, best_accuracy)
        why: Any = _UNSURE
        first, first_s = -1, math.inf
        for i, option in enumerate(obs.options):
            if option.route is not Route.EXIT or option.exit is None:
                continue
            if option.edge_s < first_s:
                first, first_s = i, option.edge_s
            sure = (obs.exit == option.exit) & (obs.confidence >= self._threshold(option.exit))
            best = where(sure, i, best)
            why = where(sure, _SURE, why)
        start = obs.exit < 0
        return Decision(where(start, first, best), where(start, _START, why))

    def explain(self, obs: Observation, decision: Decision) -> str:
        """One sentence."""
        option = obs.options[decision.option]
        if obs.exit < 0:
            return f"{option.name} is the first exit"
        threshold = self._threshold(obs.exit)
        seen = f"exit {obs.exit} is {obs.confidence:.1%} confident"
        if decision.why == _SURE:
            return f"{seen}, its threshold is {threshold:.1%}"
        need = f"less than its threshold of {threshold:.1%}"
        if option.remote:
            return f"{seen}, {need}; {option.name} is the most accurate remote option"
        return f"{seen}, {need}; the cloud is out of reach and {option.name} is the most accurate left"

    def _threshold(self, number: int) -> float:
        return self.thresholds.get(number, self.target)
