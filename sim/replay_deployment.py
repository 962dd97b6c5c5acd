"""The deployment that records were made with, as an evaluation, and its policies."""

from __future__ import annotations

from pathlib import Path

from splitedge.errors import ConfigError
from splitedge.evaluation import Evaluation
from splitedge.policy import Policy, Route, make_policy
from splitedge.policy_setup import Thresholded
from splitedge.thresholds import threshold_for

EVALUATION = "evaluation.npz"


def load_evaluation(path: Path) -> Evaluation:
    """Read an evaluation, or that of a bundle's directory.

    Raises:
        ConfigError: the directory holds none, or it has no option table.
        RecordError: the file is damaged or something else.
    """
    file = path / EVALUATION if path.is_dir() else path
    again = f"make it with `deployment.evaluate(data).save('{file}')`, on labelled rows not trained on"
    if path.is_dir() and not file.exists():
        raise ConfigError(f"'{path}' holds no {EVALUATION}, which a replay needs; {again}")
    found = Evaluation.load(file)
    if not found.table or not len(found.labels):
        raise ConfigError(f"'{file}' has no option table or no rows; {again}")
    return found


def policy_for(spec: str, evaluation: Evaluation) -> Policy:
    """A policy for the options of an evaluation. One that goes by confidence gets thresholds from its rows.

    Raises:
        UnknownName: no such policy.
        PolicyError: bad argument, or the deployment lacks a route the policy needs.
    """
    policy = make_policy(spec, evaluation.table)
    if isinstance(policy, Thresholded):
        policy.configure(
            {
                option.exit: threshold_for(
                    tuple(evaluation.confidence[i].tolist()),
                    tuple(evaluation.correct[i].tolist()),
                    policy.target,
                ).value
                for i, option in enumerate(evaluation.table)
                if option.route is Route.EXIT and option.exit is not None
            }
        )
    return policy
