"""A query router: from the prompt alone, will the device's model answer as well as the cloud's?

Source: Ding et al., "Hybrid LLM: Cost-Efficient and Quality-Aware Query Routing", ICLR 2024. Theirs is a
language model of 300 million parameters; this is a linear form of hashed n-grams and a few numbers, which a
device evaluates in about a millisecond. `splitedge.llm.router_fit` trains it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from splitedge.errors import ConfigError
from splitedge.llm.labels import LABELS
from splitedge.llm.queries import DENSE, Hashing, dense
from splitedge.llm.route_thresholds import RouteThreshold
from splitedge.llm.scorer import Floats, field_of, packed, sigmoid, unpacked

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

SCHEMA = "splitedge.query-router/1"
#: What a router may be taught: a label of `splitedge.llm.labels`, or `pair`: the quality of each model's
#: answer apart, by two linear forms; the score is their difference.
TAUGHT = (*LABELS, "pair")
#: Numbers beside the n-grams, which have length 1, are shrunk to about that.
_DENSE_SCALE = 0.3
_MOST_COLUMNS = 1 << 20


@dataclass(frozen=True, slots=True)
class Routed:
    """Where a query goes.

    Attributes:
        local: the device answers; else the cloud.
        score: how far the device's answer will do, in [0, 1].
        why: one readable sentence.
    """

    local: bool
    score: float
    why: str


@dataclass(frozen=True)
class QueryRouter:
    """A trained router.

    Attributes:
        taught: one of `TAUGHT`.
        hashing: which n-grams it reads.
        rarity: weight of each column, (columns,).
        mean, scale: of the numbers beside them, (D,): those of `queries.DENSE`, then those of the local
            model's reading of the prompt where it was trained with these.
        weights: (columns + D, 1), or (columns + D, 2) for `pair`: device, cloud.
        biases: (1,) or (2,).
        threshold: from which score on a query stays.
        auc: area under the ROC curve on the calibration rows, of "the device's answer is no worse".
        rows: trained on.
    """

    taught: str
    hashing: Hashing
    rarity: Floats
    mean: Floats
    scale: Floats
    weights: Floats
    biases: Floats
    threshold: RouteThreshold
    auc: float = float("nan")
    rows: int = 0

    @property
    def reads(self) -> bool:
        """Whether it wants the local model's reading of the prompt."""
        return len(self.mean) > len(DENSE)

    def scores(self, texts: Sequence[str], readings: Floats | None = None) -> Floats:
        """How far the device's answer will do, in [0, 1], (texts,).

        Args:
            texts: prompts.
            readings: of the local model, (texts, numbers); see `reading.prompt_numbers`.

        Raises:
            ConfigError: it was trained with readings and there are none, or the reverse.
        """
        numbers = numbers_of(texts, readings)
        if numbers.shape[1] != len(self.mean):
            have, want = numbers.shape[1], len(self.mean)
            raise ConfigError(f"this router was trained on {want} numbers of a prompt, it was given {have}")
        x = (numbers - self.mean) / self.scale * _DENSE_SCALE
        columns = self.hashing.columns
        odds = x @ self.weights[columns:] + self.biases
        if columns:
            odds = odds + weighed(self.hashing(texts), self.rarity) @ self.weights[:columns]
        p = sigmoid(odds)
        return p[:, 0] if p.shape[1] == 1 else 0.5 * (1.0 + p[:, 0] - p[:, 1])

    def __call__(self, text: str, reading: Floats | None = None) -> Routed:
        """Where a prompt goes; see `scores`."""
        score = float(self.scores([text], None if reading is None else reading[None])[0])
        need = self.threshold.value
        local = score >= need
        why = f"the device's answer will do with score {score:.3f}; from {need:.3f} on it answers"
        if need > 1.0:
            why = f"nothing stays on the device: {self.threshold.reason}"
        return Routed(local, score, f"{'local' if local else 'cloud_stream'}: {why}")

    def at(self, threshold: RouteThreshold | float) -> QueryRouter:
        """The same router with another threshold."""
        if not isinstance(threshold, RouteThreshold):
            nan = float("nan")
            threshold = RouteThreshold(threshold, nan, nan, nan, 0, "set by hand")
        return replace(self, threshold=threshold)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON."""
        limit = {k: None if v != v else v for k, v in self.threshold.to_json().items()}
        return {
            "schema": SCHEMA,
            "taught": self.taught,
            "words": self.hashing.words,
            "chars": self.hashing.chars,
            "rarity": packed(self.rarity),
            "mean": packed(self.mean),
            "scale": packed(self.scale),
            "weights": packed(self.weights),
            "biases": packed(self.biases),
            "threshold": limit,
            "auc": None if self.auc != self.auc else self.auc,
            "rows": self.rows,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> QueryRouter:
        """What `to_json` gave.

        Raises:
            ConfigError: it is something else, or damaged.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise ConfigError(f"this is no query router that this version reads (expected '{SCHEMA}')")
        sizes = [field_of(data, "words"), field_of(data, "chars")]
        arrays = [unpacked(field_of(data, k)) for k in ("rarity", "mean", "scale", "weights", "biases")]
        rarity, mean, scale, weights, biases = arrays
        taught, auc = field_of(data, "taught"), field_of(data, "auc")
        limit = field_of(data, "threshold")
        heads = 2 if taught == "pair" else 1
        whole = all(isinstance(n, int) and 0 <= n <= _MOST_COLUMNS for n in sizes)
        if not whole or taught not in TAUGHT or not isinstance(limit, Mapping):
            raise ConfigError(f"a query router of sizes {sizes}, taught '{taught}': the file is damaged")
        hashing = Hashing(*sizes)
        wide = hashing.columns + len(mean)
        fits = rarity.shape == (hashing.columns,) and mean.shape == scale.shape and mean.ndim == 1
        fits = (
            fits and weights.shape == (wide, heads) and biases.shape == (heads,) and bool((scale > 0).all())
        )
        if not fits or len(mean) < len(DENSE):
            raise ConfigError("the shapes of a query router's arrays do not fit each other; train it again")
        nan = float("nan")
        threshold = RouteThreshold.from_json({k: nan if v is None else v for k, v in limit.items()})
        if not threshold.value >= 0.0:
            raise ConfigError(f"a query router's threshold is a number from 0 on, got {threshold.value}")
        score = nan if auc is None else float(auc)
        rows = int(field_of(data, "rows"))
        return cls(taught, hashing, rarity, mean, scale, weights, biases, threshold, score, rows)


def numbers_of(texts: Sequence[str], readings: Floats | None) -> Floats:
    """Numbers beside the n-grams: (texts, D)."""
    found = np.stack([dense(text) for text in texts])
    return found if readings is None else np.concatenate([found, readings], axis=1)


def weighed(counts: csr_matrix, rarity: Floats) -> csr_matrix:
    """Counts with each column by its rarity, rows of length 1 again."""
    from sklearn.preprocessing import normalize

    out = counts.copy()
    out.data = out.data * rarity[out.indices]
    return normalize(out, copy=False)
