"""`router:FILE`: cheap features of the input say whether the device's answer will do."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from splitedge.errors import PolicyError
from splitedge.policies.latency import within_reach
from splitedge.policies.model_file import Model, read_model, write_model
from splitedge.policies.trees import TreeArrays, Trees
from splitedge.policy import Decision, Observation, Option, Policy, latency_q95, where
from splitedge.policy_argument import read_argument

KIND = "router"
_EASY, _HARD, _LATE, _BLIND, _DOWN = 0, 1, 2, 3, 4


class RouterFile(Model):
    """What a file of a router holds.

    Attributes:
        edge, cloud: names of the options between which it chooses.
        labels: what it was trained on, see `router_fit.labels_of`.
        mean, scale: of each feature, (F,); features are standardised by them.
        weights, bias: of a logistic regression, (F,); empty where there are trees.
        trees: of a gradient-boosted classifier, whose one output is log-odds; None for a logistic regression.
        threshold: on the probability that the device's answer will do; above 1 it never does.
        loss, share: of the validation part at that threshold: upper bound of the share of requests that the
            cloud would have answered right and the device does not, and share of requests kept here.
        auc: area under the ROC curve on the validation part, of "the device's answer is no worse".
        rows: trained on.
    """

    edge: str
    cloud: str
    labels: Literal["det", "prob", "trans"]
    mean: tuple[float, ...] = Field(min_length=1, max_length=4096)
    scale: tuple[float, ...]
    weights: tuple[float, ...] = ()
    bias: float = 0.0
    trees: TreeArrays | None = None
    threshold: float = Field(ge=0.0, le=2.0)
    loss: float
    share: float
    auc: float
    rows: int

    @model_validator(mode="after")
    def _agree(self) -> Self:
        n = len(self.mean)
        if len(self.scale) != n or not all(value > 0.0 for value in self.scale):
            raise ValueError(f"'scale' must be {n} numbers above 0")
        if self.trees is None and len(self.weights) != n:
            raise ValueError(f"'weights' must be {n} numbers, as 'mean' is")
        if self.trees is not None and (self.trees.features != n or len(self.trees.base) != 1):
            raise ValueError(f"its trees must read {n} features and give one number")
        return self


class Scorer:
    """Probability that the device's answer will do, from features."""

    def __init__(self, file: RouterFile) -> None:
        self.file = file
        self._mean, self._scale = np.array(file.mean), np.array(file.scale)
        self._weights = np.array(file.weights)
        self._trees = None if file.trees is None else Trees(file.trees)

    def __call__(self, features: Any) -> Any:
        """Shape (...,) for features of shape (..., F)."""
        x = (np.asarray(features, float) - self._mean) / self._scale
        odds = x @ self._weights + self.file.bias if self._trees is None else self._trees(x)[..., 0]
        return 1.0 / (1.0 + np.exp(-np.clip(odds, -40.0, 40.0)))


class Router(Policy):
    """Keep what the device will answer as well as the cloud, send the rest.

    A small classifier on features of the input (splitedge/features.py) predicts, before anything is computed,
    whether the answer of the edge option is no worse than the cloud option's. From `threshold` on the request
    stays here. `splitedge policy fit router` trains it on an evaluation and chooses the threshold so that,
    with 95% confidence, at most a stated share of requests loses an answer that the cloud would have given
    right.

    The router knows nothing of time: the cloud option is taken only if its 95th percentile of latency meets
    the deadline, else the most accurate remote option that does, else the edge option. Without features, and
    while the link is down, the edge option answers.

    Source: Ding et al., "Hybrid LLM: Cost-Efficient and Quality-Aware Query Routing", ICLR 2024, with its
    three kinds of labels; theirs is a language model on queries, ours a classifier on cheap numbers.

    Args:
        file: what `splitedge policy fit router` wrote.
        threshold: in place of the file's; a negative one takes the file's.

    Raises:
        PolicyError: the file can not be read, is damaged or holds something else.
    """

    name: ClassVar[str] = "router"
    wants_features = True

    def __init__(self, file: str | RouterFile = "", threshold: float = -1.0) -> None:
        if file == "":
            raise PolicyError(
                "policy 'router' needs a file: 'router:FILE', made by 'splitedge policy fit router'"
            )
        self.file = read_model(file, KIND, RouterFile) if isinstance(file, str) else file
        if not threshold <= 2.0:
            raise PolicyError(f"policy 'router': the threshold must be at most 2, got {threshold}")
        self.threshold = threshold if threshold >= 0.0 else self.file.threshold
        self._score = Scorer(self.file)
        self._options: tuple[Option, ...] = ()
        self._edge = self._cloud = -1

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        """Make it from `router:FILE` or `router:FILE,threshold=0.8`.

        Raises:
            PolicyError: an unknown key, no number, or the file can not be read.
        """
        return cls(**read_argument(cls, argument, main="file"))

    def save(self, path: str) -> str:
        """Write its file; returns the digest."""
        return write_model(path, KIND, self.file)

    def check(self, options: Sequence[Option]) -> None:
        """Refuse a deployment that lacks one of the two options.

        Raises:
            PolicyError: it does; the message lists what there is.
        """
        for name in (self.file.edge, self.file.cloud):
            if all(option.name != name for option in options):
                there = ", ".join(option.name for option in options)
                raise PolicyError(
                    f"policy 'router' was trained to choose between '{self.file.edge}' and "
                    f"'{self.file.cloud}'; this deployment has {there}; train it again"
                )

    def decide(self, obs: Observation) -> Decision:
        """The edge option where its answer will do, else the cloud's."""
        if obs.options is not self._options:
            self.check(obs.options)
            names = [option.name for option in obs.options]
            self._options = obs.options
            self._edge, self._cloud = names.index(self.file.edge), names.index(self.file.cloud)
        cloud, late = self._in_time(obs)
        if obs.features is None:
            easy, why = True, _BLIND
        else:
            score = self._score(obs.features)
            easy = score >= self.threshold if score.ndim else bool(score >= self.threshold)
            why = where(easy, _EASY, where(late, _LATE, _HARD))
        near = within_reach(obs, True)
        why = where(near, why, _DOWN)
        return Decision(where(easy, self._edge, where(near, cloud, self._edge)), why)

    def _in_time(self, obs: Observation) -> tuple[Any, Any]:
        """The remote option to send by, the edge option where none meets the deadline; and whether that is
        not the one it was trained for.
        """
        best: Any = self._edge
        top: Any = -1.0
        for i, option in enumerate(obs.options):
            if option.remote:
                worth = 2.0 if i == self._cloud else option.accuracy
                better = (latency_q95(option, obs) <= obs.deadline_s) & (worth > top)
                best, top = where(better, i, best), where(better, worth, top)
        return best, best != self._cloud

    def explain(self, obs: Observation, decision: Decision) -> str:
        """One sentence."""
        option = obs.options[decision.option]
        if decision.why == _BLIND:
            return f"{option.name}: no features of the input were computed, so the router can not judge it"
        score = math.nan if obs.features is None else float(self._score(obs.features))
        seen = f"{self.file.edge} is no worse than {self.file.cloud} here with {score:.1%}"
        need = (
            f"at least {self.threshold:.1%} is needed to stay" if self.threshold <= 1.0 else "nothing stays"
        )
        if decision.why == _EASY:
            return f"{option.name}: {seen}, {need}"
        if decision.why == _DOWN:
            return f"{option.name} answers, the cloud is out of reach ({seen})"
        if decision.why == _LATE:
            return f"{option.name}: {seen}, {need}; {self.file.cloud} is predicted to miss the deadline"
        return f"{option.name}: {seen}, {need}"
