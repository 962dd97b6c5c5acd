"""Make a deployment's policy, with what the exits said on validation rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from splitedge.policy import Option, Policy, make_policy
from splitedge.segments import Evidence
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


def ready_policy(
    spec: str | Policy, options: Sequence[Option], evidence: Mapping[int, Evidence]
) -> tuple[Policy, dict[int, Threshold]]:
    """A policy for a deployment, and the thresholds it was given (none before `fit`).

    A policy object that comes with thresholds keeps them. What a wrapper wraps is made ready like any other.

    Args:
        spec: by name or an object.
        options: of the deployment.
        evidence: what each exit said on validation rows, by its number; see `Plan.evidence`.

    Raises:
        UnknownName: no such policy.
        PolicyError: bad argument, or the deployment lacks a route the policy needs.
    """
    made = policy = make_policy(spec, options)
    while policy.inner is not None:
        policy = policy.inner
    if evidence and isinstance(policy, SeesExits):
        policy.see_exits({number: seen.confidence for number, seen in evidence.items()})
    if not isinstance(policy, Thresholded) or (not isinstance(spec, str) and policy.thresholds):
        return made, {}
    found = {
        number: _threshold(seen.confidence, seen.correct, policy.target) for number, seen in evidence.items()
    }
    policy.configure({number: threshold.value for number, threshold in found.items()})
    return made, found


def _threshold(confidence: tuple[float, ...], correct: tuple[bool, ...], target: float) -> Threshold:
    if target >= 1.0:
        return Threshold(NEVER, "never exits: no number of rows can show that an exit is always right")
    return threshold_for(confidence, correct, target)
