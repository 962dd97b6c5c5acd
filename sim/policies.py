"""The scenario's policy, as a deployment would make it."""

from __future__ import annotations

from splitedge.evaluation import Evaluation
from splitedge.policy import Policy
from splitedge.policy_setup import ready_policy


def policy_for(spec: str | Policy, evaluation: Evaluation) -> Policy:
    """A policy for the options of an evaluation, with the thresholds that the deployment would give it.

    Raises:
        UnknownName: no such policy.
        PolicyError: bad argument, or the deployment lacks a route the policy needs.
    """
    policy, _ = ready_policy(spec, evaluation.table, evaluation.evidence)
    return policy
