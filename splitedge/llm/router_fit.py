"""Train a query router: labels, features, a linear model, and a threshold on rows held back for it."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from splitedge.errors import ConfigError
from splitedge.llm.labels import labels_of
from splitedge.llm.queries import Hashing, rarity
from splitedge.llm.route_thresholds import RouteThreshold, for_budget, for_drop, for_recovery
from splitedge.llm.router import _DENSE_SCALE, TAUGHT, QueryRouter, numbers_of, weighed
from splitedge.llm.scorer import Floats, doubled
from splitedge.thresholds import NEVER

Aim = Literal["drop", "budget", "recovery"]
_AIMS = {"drop": for_drop, "budget": for_budget, "recovery": for_recovery}
_LEAST = 50


def fit_router(
    texts: Sequence[str],
    edge: npt.ArrayLike,
    cloud: npt.ArrayLike,
    *,
    taught: str = "pair",
    aim: Aim = "drop",
    to: float = 0.02,
    risk: float = 0.05,
    held: float = 0.3,
    hashing: Hashing | None = None,
    readings: Floats | None = None,
    strength: float = 0.5,
    seed: int = 0,
) -> QueryRouter:
    """Train one.

    Prompts that are the same but for digits, case and signs never stand on both sides of the division.

    Args:
        texts: prompts.
        edge, cloud: qualities of the device's and the cloud's answers in [0, 1], (texts,) or
            (texts, answers).
        taught: what is learnt; see `splitedge.llm.router.TAUGHT` and `splitedge.llm.labels`.
        aim: what the threshold is chosen for: quality lost against the cloud, surely at most `to` (`drop`);
            a share `to` of calls (`budget`); or a share `to` of the gap in quality (`recovery`).
        risk: accepted that a bound is missed.
        held: part of the prompts that the threshold is chosen on; none of them is trained on.
        hashing: which n-grams.
        readings: of the local model; see `QueryRouter.scores`.
        strength: inverse of the regularisation.
        seed: of the division.

    Raises:
        ConfigError: shapes or names that do not fit, too few rows, or labels that are all the same.
    """
    if taught not in TAUGHT or aim not in _AIMS:
        raise ConfigError(f"taught is one of {', '.join(TAUGHT)}, aim of {', '.join(_AIMS)}")
    if not 0.0 < held < 1.0:
        raise ConfigError(f"held is a share between 0 and 1, got {held}")
    q, r = (np.asarray(a, np.float64) for a in (edge, cloud))
    if len(q) != len(texts) or len(r) != len(texts):
        raise ConfigError(f"{len(texts)} prompts, {len(q)} and {len(r)} qualities")
    if min(q.min(), r.min()) < 0.0 or max(q.max(), r.max()) > 1.0:
        raise ConfigError("qualities must lie in [0, 1]; scale them")
    parts = parts_of(texts, 1000, seed)
    learn, keep = np.flatnonzero(parts >= 1000 * held), np.flatnonzero(parts < 1000 * held)
    if min(len(learn), len(keep)) < _LEAST:
        raise ConfigError(
            f"{len(learn)} prompts to learn from and {len(keep)} to choose the threshold on are too few: "
            f"{_LEAST} each"
        )
    router = learn_router(
        [texts[i] for i in learn.tolist()],
        q[learn],
        r[learn],
        taught=taught,
        hashing=hashing,
        readings=None if readings is None else readings[learn],
        strength=strength,
    )
    score = router.scores([texts[i] for i in keep.tolist()], None if readings is None else readings[keep])
    mine, theirs = _mean(q[keep]), _mean(r[keep])
    found = _AIMS[aim](score, mine, theirs, to, risk=risk)
    return replace(router, threshold=found, auc=auc_of(score, mine >= theirs))


def learn_router(
    texts: Sequence[str],
    edge: npt.ArrayLike,
    cloud: npt.ArrayLike,
    *,
    taught: str = "pair",
    hashing: Hashing | None = None,
    readings: Floats | None = None,
    strength: float = 0.5,
) -> QueryRouter:
    """Train on all rows given, with a threshold that keeps nothing; args as in `fit_router`."""
    how = hashing if hashing is not None else Hashing()
    numbers = numbers_of(texts, readings)
    mean, scale = numbers.mean(0), numbers.std(0)
    scale = np.where(scale > 1e-9, scale, 1.0)
    counts = how(texts)
    rare = rarity(counts) if how.columns else np.zeros(0)
    x = _beside(weighed(counts, rare) if how.columns else None, (numbers - mean) / scale * _DENSE_SCALE)
    q, r = (np.asarray(a, np.float64) for a in (edge, cloud))
    if taught == "pair":
        wanted = [_mean(q), _mean(r)]
    else:
        wanted = [labels_of(taught, q, r)]  # type: ignore[arg-type]  # checked there
    if all(np.ptp(y) == 0.0 for y in wanted):
        doubled(wanted[0])  # says why nothing can be learnt, unless one soft label is all there is
    lines = [_line(x, y, strength) for y in wanted]
    return QueryRouter(
        taught=taught,
        hashing=how,
        rarity=rare,
        mean=mean,
        scale=scale,
        weights=np.stack([line[0] for line in lines], axis=1),
        biases=np.array([line[1] for line in lines]),
        threshold=RouteThreshold(NEVER, 1.0, 0.0, 0.0, 0, "no threshold was chosen"),
        rows=len(texts),
    )


def _line(x: Any, soft: Floats, strength: float) -> tuple[Floats, float]:
    from sklearn.linear_model import LogisticRegression

    if np.ptp(soft) == 0.0:  # one model of a pair that always does as well
        p = (soft.sum() + 1.0) / (len(soft) + 2.0)
        return np.zeros(x.shape[1]), float(np.log(p / (1.0 - p)))
    rows, classes, weight = doubled(soft)
    fitted = LogisticRegression(C=strength, max_iter=500).fit(x[rows], classes, sample_weight=weight)
    return fitted.coef_[0].astype(np.float64), float(fitted.intercept_[0])


def _beside(left: Any, right: Floats) -> Any:
    from scipy.sparse import csr_matrix, hstack

    return right if left is None else hstack([left, csr_matrix(right)]).tocsr()


def parts_of(texts: Sequence[str], parts: int, seed: int = 0) -> npt.NDArray[np.int64]:
    """A part 0 to parts - 1 of each text, the same for texts that are the same but for digits and signs."""
    return np.array([zlib.crc32(f"{seed}:{stem(text)}".encode()) % parts for text in texts])


def stem(text: str) -> str:
    """Letters of a text, lower case; all of it where it has none. Choices behind "A." are left out."""
    question = re.split(r"\nA[.)] ", text)[0]
    return re.sub(r"[^a-z]+", "", question.lower()) or text


def auc_of(score: Floats, good: npt.NDArray[np.bool_]) -> float:
    """Area under the ROC curve; NaN where all rows are of one kind."""
    from sklearn.metrics import roc_auc_score

    return float(roc_auc_score(good, score)) if 0 < good.sum() < len(good) else float("nan")


def _mean(quality: Floats) -> Floats:
    return quality if quality.ndim == 1 else quality.mean(axis=1)
