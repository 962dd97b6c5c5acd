"""Make a plan's policy, with what the exits said on validation rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from splitedge.plan import Plan
from splitedge.policy import Policy, make_policy
from splitedge.thresholds import NEVER, Threshold, threshold_for


@runtime_checkable
class Thresholded(Protocol):
    """A policy that takes an exit's answer from some confidence on, so that a target is met."""

    target: float
    thresholds: dict[int, float]

    def configure(self, thresholds: Mapping[int, float]) -> None:
        """Set the confidence needed at each exit."""
        ...


@runtime_checkable
class SeesExits(Protocol):
    """A policy that predicts how often each exit answers."""

    def see_exits(self, confidence: Mapping[int, Sequence[float]]) -> None:
        """Take the calibrated confidences of validation rows, by the exit's number."""
        ...


def ready_policy(spec: str | Policy, plan: Plan) -> tuple[Policy, dict[int, Threshold]]:
    """A policy for a plan, and the thresholds it was given (none before `fit`).

    A policy object that comes with thresholds keeps them. What a wrapper wraps is made ready like any other.

    Raises:
        UnknownName: no such policy.
        PolicyError: bad argument, or the plan lacks a route the policy needs.
    """
    made = policy = make_policy(spec, plan.options)
    while policy.inner is not None:
        policy = policy.inner
    evident = {n: head.evidence for n, head in enumerate(plan.exits) if head.evidence is not None}
    if evident and isinstance(policy, SeesExits):
        policy.see_exits({number: evidence.confidence for number, evidence in evident.items()})
    if not isinstance(policy, Thresholded) or (not isinstance(spec, str) and policy.thresholds):
        return made, {}
    found = {
        number: _threshold(evidence.confidence, evidence.correct, policy.target)
        for number, evidence in evident.items()
    }
    policy.configure({number: threshold.value for number, threshold in found.items()})
    return made, found


def _threshold(confidence: tuple[float, ...], correct: tuple[bool, ...], target: float) -> Threshold:
    if target >= 1.0:
        return Threshold(NEVER, "never exits: no number of rows can show that an exit is always right")
    return threshold_for(confidence, correct, target)
