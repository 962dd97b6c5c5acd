"""A cascade: the device answers, a judge looks at the answer, and the cloud is asked where it will not do.

Source: Chen et al., "FrugalGPT", 2023. There the judge and the thresholds were fitted on the same queries,
on which a judge seems better than it is; here three parts of the queries teach the judge, calibrate it, and
choose its threshold.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from splitedge.errors import ConfigError
from splitedge.llm.reading import ANSWER
from splitedge.llm.route_thresholds import RouteThreshold, for_budget, for_drop, for_recovery
from splitedge.llm.router_fit import Aim, auc_of
from splitedge.llm.scorer import Floats, Kind, Scorer, field_of, fit_scorer

SCHEMA = "splitedge.answer-judge/1"
_AIMS = {"drop": for_drop, "budget": for_budget, "recovery": for_recovery}


@dataclass(frozen=True)
class Judge:
    """Says whether an answer of the device will do.

    Attributes:
        names: of the numbers it reads; `reading.ANSWER` in a deployment.
        scorer: of these, calibrated.
        threshold: from which score on an answer is kept.
        auc: on the rows the threshold was chosen on.
    """

    names: tuple[str, ...]
    scorer: Scorer
    threshold: RouteThreshold
    auc: float = float("nan")

    def scores(self, numbers: npt.ArrayLike) -> Floats:
        """Calibrated probability that the answer will do, (...,) of numbers (..., names)."""
        return self.scorer(numbers)

    def accepts(self, numbers: npt.ArrayLike) -> tuple[bool, str]:
        """Whether one answer is kept, and one readable sentence why."""
        score, need = float(self.scorer(numbers)), self.threshold.value
        kept = score >= need
        did = "kept" if kept else "the cloud answers anew"
        return kept, f"the device's answer will do with score {score:.3f}, {need:.3f} are needed: {did}"

    def at(self, threshold: RouteThreshold | float) -> Judge:
        """The same judge with another threshold."""
        if not isinstance(threshold, RouteThreshold):
            nan = float("nan")
            threshold = RouteThreshold(threshold, nan, nan, nan, 0, "set by hand")
        return replace(self, threshold=threshold)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON."""
        limit = {k: None if v != v else v for k, v in self.threshold.to_json().items()}
        auc = None if self.auc != self.auc else self.auc
        scorer = self.scorer.to_json()
        return {"schema": SCHEMA, "names": list(self.names), "scorer": scorer, "threshold": limit, "auc": auc}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Judge:
        """What `to_json` gave.

        Raises:
            ConfigError: it is something else, or damaged.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise ConfigError(f"this is no judge of answers that this version reads (expected '{SCHEMA}')")
        scorer, limit = Scorer.from_json(field_of(data, "scorer")), field_of(data, "threshold")
        names, auc = field_of(data, "names"), field_of(data, "auc")
        if not isinstance(limit, Mapping) or not isinstance(names, list) or len(names) != len(scorer.mean):
            raise ConfigError("a judge of answers whose names and numbers do not fit; train it again")
        nan = float("nan")
        threshold = RouteThreshold.from_json({k: nan if v is None else v for k, v in limit.items()})
        return cls(tuple(map(str, names)), scorer, threshold, nan if auc is None else float(auc))


def fit_judge(
    numbers: Floats,
    edge: npt.ArrayLike,
    cloud: npt.ArrayLike,
    *,
    names: tuple[str, ...] = ANSWER,
    kind: Kind = "linear",
    aim: Aim = "drop",
    to: float = 0.02,
    risk: float = 0.05,
    parts: npt.NDArray[np.int64] | None = None,
    seed: int = 0,
) -> Judge:
    """Train one.

    Args:
        numbers: of each answer by the device, (rows, names).
        edge, cloud: qualities of the answers in [0, 1], (rows,); a row is taught (1 + edge - cloud) / 2.
        names: what the numbers are.
        kind: linear, or one hidden layer.
        aim, to, risk: what the threshold is chosen for, see `router_fit.fit_router`.
        parts: which part each row belongs to: 0 teaches, 1 calibrates, 2 chooses the threshold; None divides
            2 : 1 : 1 at random. Give it where rows are akin (`router_fit.parts_of`).
        seed: of that division.

    Raises:
        ConfigError: shapes that do not agree, or fewer than 50 rows in a part.
    """
    q, r = np.asarray(edge, np.float64), np.asarray(cloud, np.float64)
    if numbers.ndim != 2 or numbers.shape != (len(q), len(names)) or q.shape != r.shape:
        raise ConfigError(f"numbers {numbers.shape}, qualities {q.shape} and {r.shape}, {len(names)} names")
    if parts is None:
        parts = np.maximum(np.random.default_rng(seed).permutation(len(q)) % 4 - 1, 0)
    learn, curve, choose = (np.flatnonzero(parts == i) for i in range(3))
    if min(len(learn), len(curve), len(choose)) < 50:
        sizes = f"{len(learn)}, {len(curve)} and {len(choose)}"
        raise ConfigError(
            f"{sizes} answers to teach, calibrate and choose the threshold on: 50 of each needed"
        )
    soft = 0.5 * (1.0 + q - r)
    scorer = fit_scorer(
        numbers[learn], soft[learn], kind=kind, calibrate=(numbers[curve], soft[curve]), seed=seed
    )
    score = scorer(numbers[choose])
    found = _AIMS[aim](score, q[choose], r[choose], to, risk=risk)
    return Judge(names, scorer, found, auc_of(score, q[choose] >= r[choose]))
