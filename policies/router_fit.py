"""Train a router: labels from what two options answered, a classifier, and a threshold with a stated risk."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from splitedge.errors import PolicyError
from splitedge.evaluation import Evaluation
from splitedge.policies.router import RouterFile, Scorer
from splitedge.policies.trees import export
from splitedge.thresholds import clopper_pearson

Floats = npt.NDArray[np.float64]
Labels = Literal["det", "prob", "trans"]
#: A threshold above every probability: nothing stays here.
NEVER = 2.0
_RISK, _CANDIDATES = 0.05, 40


def labels_of(
    kind: Labels, edge_right: Floats, cloud_right: Floats, edge_sure: Floats, cloud_sure: Floats
) -> Floats:
    """How far "the edge's answer is no worse than the cloud's" holds of each row, in [0, 1], shape (rows,).

    With q the quality of an answer, all three are about H = q(edge) - q(cloud), as in Hybrid LLM:

    - `det`: 1 where H >= 0 on the answers given, right (1) or wrong (0).
    - `prob`: Pr[H >= 0] where each answer is right with its calibrated confidence: what is near a coin's
      throw is not taught as certain.
    - `trans`: Pr[H >= -t], for an edge so much weaker that the others are 0 nearly everywhere. Quality is
      here graded, the confidence where right and 0 where wrong; t is chosen so that the labels differ most
      from each other, mean |y_i - y_j| over all pairs.

    The confidences are the models' own, so `prob` and `trans` are as good as their calibration.
    """
    if kind == "det":
        return (edge_right >= cloud_right).astype(float)
    if kind == "prob":
        return 1.0 - cloud_sure * (1.0 - edge_sure)
    best, widest = np.zeros(len(edge_sure)), -1.0
    for t in np.linspace(0.0, 1.0, 41):
        y = _at_least(edge_sure, cloud_sure, float(t))
        spread = _pairwise(y)
        if spread > widest + 1e-12:
            best, widest = y, spread
    return best


def _at_least(edge: Floats, cloud: Floats, t: float) -> Floats:
    """Pr[q(edge) >= q(cloud) - t], where q is the confidence c with probability c, else 0."""
    both = edge * cloud * (edge >= cloud - t - 1e-12)
    neither_needs = edge * (1.0 - cloud) + (1.0 - edge) * (1.0 - cloud)
    return both + neither_needs + (1.0 - edge) * cloud * (cloud <= t + 1e-12)


def _pairwise(y: Floats) -> float:
    """Mean of |y_i - y_j| over all pairs."""
    n = len(y)
    return float((np.sort(y) * (2.0 * np.arange(n) - n + 1.0)).sum() * 2.0 / (n * n))


def fit_router(
    evaluation: Evaluation,
    edge: str | None = None,
    cloud: str | None = None,
    *,
    labels: Labels = "prob",
    model: Literal["logistic", "trees"] = "logistic",
    target: float = 0.01,
    val: float = 0.3,
    seed: int = 0,
    progress: Callable[[str, float], None] = lambda what, share: None,
) -> RouterFile:
    """Train one.

    Args:
        evaluation: of rows that are neither trained on elsewhere nor tested on, with features.
        edge: option that may answer here; None takes the most accurate of those that need no cloud.
        cloud: option that it is compared with; None takes the most accurate remote one.
        labels: see `labels_of`.
        model: `logistic` regression, or gradient-boosted `trees`.
        target: share of all requests, above 0 and below 1, that may lose an answer which the cloud option
            would have given right and the edge option does not.
        val: part of the rows that the threshold is chosen on; none of them is trained on.
        seed: of the division.
        progress: told what is done and which share of it.

    Raises:
        PolicyError: no features, no such option, too few rows, or labels that are all the same.
    """
    if evaluation.features is None:
        raise PolicyError(
            "this evaluation holds no features (it is from before there were any): evaluate again"
        )
    if not 0.0 < target < 1.0 or not 0.0 < val < 1.0:
        raise PolicyError(f"target and val lie between 0 and 1, got {target} and {val}")
    i, j = _place(evaluation, edge, remote=False), _place(evaluation, cloud, remote=True)
    x = evaluation.features.astype(float)
    right, sure = evaluation.correct.astype(float), evaluation.confidence
    if labels != "det" and not (np.isfinite(sure[i]).all() and np.isfinite(sure[j]).all()):
        raise PolicyError(f"labels '{labels}' need confidences, and some are not known; take labels 'det'")
    y = labels_of(labels, right[i], right[j], sure[i], sure[j])
    order = np.random.default_rng(seed).permutation(len(y))
    held, train = order[: round(val * len(y))], order[round(val * len(y)) :]
    if min(len(held), len(train)) < 50:
        raise PolicyError(
            f"{len(y)} rows are too few: at least 50 to train on and 50 to choose the threshold on"
        )
    if y[train].std() < 1e-6:
        raise PolicyError(
            f"labels '{labels}' are all {y[train][0]:.2f}: nothing to learn; take 'prob' or 'trans', or "
            "another pair of options"
        )
    progress("training", 0.2)
    mean, scale = x[train].mean(0), x[train].std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    found = _train(model, (x[train] - mean) / scale, y[train], seed)
    progress("choosing the threshold", 0.8)
    file = RouterFile(
        edge=evaluation.options[i],
        cloud=evaluation.options[j],
        labels=labels,
        mean=tuple(mean.tolist()),
        scale=tuple(scale.tolist()),
        threshold=NEVER,
        loss=0.0,
        share=0.0,
        auc=0.5,
        rows=len(train),
        **found,
    )
    score = Scorer(file)(x[held])
    lost = (right[j][held] > right[i][held]).astype(float)
    threshold, loss, share = threshold_for_loss(score, lost, target)
    auc = _auc(score, right[i][held] >= right[j][held])
    progress("done", 1.0)
    return file.model_copy(update={"threshold": threshold, "loss": loss, "share": share, "auc": auc})


def _train(model: str, x: Floats, y: Floats, seed: int) -> dict[str, Any]:
    """Fit on soft labels: each row stands twice, as a yes with weight y and as a no with weight 1 - y."""
    from sklearn.ensemble import GradientBoostingClassifier
    from sklearn.linear_model import LogisticRegression

    twice, classes = np.concatenate([x, x]), np.repeat([1, 0], len(y))
    weight = np.concatenate([y, 1.0 - y])
    if model == "logistic":
        fitted = LogisticRegression(C=1.0, max_iter=2000).fit(twice, classes, sample_weight=weight)
        return {"weights": tuple(fitted.coef_[0].tolist()), "bias": float(fitted.intercept_[0])}
    boosted = GradientBoostingClassifier(
        n_estimators=80, max_depth=3, subsample=0.5, min_samples_leaf=20, random_state=seed
    ).fit(twice, classes, sample_weight=weight)
    yes = float(boosted.init_.class_prior_[1])
    return {"trees": export([boosted], x.shape[1], [math.log(yes / (1.0 - yes))])}


def threshold_for_loss(score: Floats, lost: Floats, target: float) -> tuple[float, float, float]:
    """The least threshold from which on at most `target` of all requests lose a right answer, with 95%
    confidence; that bound; and the share of requests that stay.

    Thresholds are tested in an order fixed beforehand, from strict to lax, at 40 shares of the rows, each by
    a one-sided Clopper-Pearson bound, up to the first that fails (fixed-sequence testing; Angelopoulos et
    al., "Learn then Test", 2021).

    Args:
        score: of validation rows, shape (rows,).
        lost: 1 where the cloud would be right and the edge is not, shape (rows,).
        target: share of all rows.
    """
    n = len(score)
    order = np.argsort(-score, kind="stable")
    ranked, losses = score[order], np.cumsum(lost[order])
    best = (NEVER, 0.0, 0.0)
    for k in (math.ceil(n * c / _CANDIDATES) for c in range(1, _CANDIDATES + 1)):
        value = float(ranked[k - 1])
        rows = int(np.searchsorted(-ranked, -value, side="right"))
        bound = clopper_pearson(round(float(losses[rows - 1])), n, 1.0 - 2.0 * _RISK)[1]
        if bound > target:
            break
        best = (value, bound, rows / n)
    return best


def _place(evaluation: Evaluation, name: str | None, *, remote: bool) -> int:
    sort = "remote option" if remote else "option that needs no cloud"
    mine = [i for i, option in enumerate(evaluation.table) if option.remote is remote]
    if name is None:
        if not mine:
            raise PolicyError(f"this evaluation has no {sort} in its table: a router chooses between the two")
        return max(mine, key=lambda i: float(evaluation.correct[i].mean()))
    if name not in evaluation.options:
        raise PolicyError(f"no option '{name}'; the evaluation has {', '.join(evaluation.options)}")
    found = evaluation.options.index(name)
    if found not in mine:
        raise PolicyError(f"'{name}' is no {sort}")
    return found


def _auc(score: Floats, good: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve; 0.5 where all rows are of one kind."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(good, score)) if 0 < good.sum() < len(good) else 0.5
