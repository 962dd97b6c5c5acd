"""The gate of the mode `assist`: will the cloud choose the token that the device's model chose?

Everything it reads costs nothing beside the step itself: how the logits lie, how they lay before, where in
the text the token stands, and whether it repeats what stands there. `splitedge.llm.gate_fit` trains it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from splitedge.errors import ConfigError
from splitedge.llm.scorer import Floats, Scorer, field_of, packed, unpacked
from splitedge.llm.token_model import Step

SCHEMA = "splitedge.token-gate/1"
NUMBERS = (
    "greatest probability", "margin", "entropy", "gap of logits", "entropy before", "log position", "repeats",
)  # fmt: skip
_TOP = 8  # further numbers of the learned reward: log probabilities of the most likely tokens
_DECAY, _WINDOW = 0.8, 8


@dataclass(frozen=True, slots=True)
class GateReport:
    """What a gate is worth, on text that it was neither trained nor calibrated on.

    Attributes:
        agreement: share of tokens at which the device's model chooses what the cloud does.
        auc: area under the ROC curve of telling these.
        calibration_error: expected calibration error of its confidence.
        calls: share of tokens at which the cloud is asked, by the threshold.
        disagreement: share of all tokens that are taken from the device and that the cloud would have chosen
            otherwise.
        survival: probability that the next 1, 2, ... tokens of the device are all the cloud's.
        tokens: it was counted on.
    """

    agreement: float
    auc: float
    calibration_error: float
    calls: float
    disagreement: float
    survival: tuple[float, ...]
    tokens: int


@dataclass(frozen=True)
class Gate:
    """A trained gate.

    Attributes:
        scorer: of the numbers, calibrated; see `token_numbers`.
        reward: whether it reads the most likely tokens' probabilities too (the learned reward).
        threshold: confidence from which the device's token is taken.
        price: cost of a call, as a part of what a wrong token costs: a token is called where its probability
            of disagreement is more than this. 1 - threshold.
        disagreements: quantiles of the probability of disagreement on calibration text, rising: what
            `at_rate` solves on.
        report: None where it was not judged.
    """

    scorer: Scorer
    reward: bool
    threshold: float
    disagreements: Floats
    report: GateReport | None = None

    @property
    def price(self) -> float:
        """See the class."""
        return 1.0 - self.threshold

    def at_rate(self, calls: float) -> Gate:
        """The same gate with the price at which a share `calls` of calibration tokens is asked of the cloud,
        found by bisection; its report no longer holds and is left out.

        Raises:
            ConfigError: not a share.
        """
        return replace(self, threshold=1.0 - price_for(self.disagreements, calls), report=None)

    def to_json(self) -> dict[str, Any]:
        """All of it, as JSON."""
        report = None if self.report is None else asdict(self.report)
        if report is not None:
            report = {k: None if v != v else v for k, v in report.items()}
        return {
            "schema": SCHEMA,
            "scorer": self.scorer.to_json(),
            "reward": self.reward,
            "threshold": self.threshold,
            "disagreements": packed(self.disagreements),
            "report": report,
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Gate:
        """What `to_json` gave.

        Raises:
            ConfigError: it is something else, or damaged.
        """
        if not isinstance(data, Mapping) or data.get("schema") != SCHEMA:
            raise ConfigError(f"this is no token gate that this version reads (expected '{SCHEMA}')")
        scorer, reward = Scorer.from_json(field_of(data, "scorer")), bool(field_of(data, "reward"))
        if len(scorer.mean) != len(NUMBERS) + (_TOP if reward else 0):
            raise ConfigError(f"a token gate of {len(scorer.mean)} numbers; train it again")
        try:
            threshold = float(field_of(data, "threshold"))
            said = field_of(data, "report")
            if said is not None:
                said = {k: math.nan if v is None else v for k, v in said.items()}
                said = GateReport(**{**said, "survival": tuple(map(float, said["survival"]))})
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ConfigError(f"a token gate's file is damaged: {error!r}") from error
        return cls(scorer, reward, threshold, unpacked(field_of(data, "disagreements")), said)


def price_for(disagreements: Floats, calls: float) -> float:
    """The price of a call at which a share `calls` of tokens is worth one: by bisection on [0, 1].

    A token is called where its probability of disagreement, times what a wrong token costs, is more than a
    call costs; the price is the ratio of the two, the one multiplier of the Lagrangian.

    Raises:
        ConfigError: not a share, or nothing to solve on.
    """
    if not 0.0 <= calls <= 1.0 or not len(disagreements):
        raise ConfigError(f"a rate of calls is a share from 0 to 1, got {calls}")
    low, high = 0.0, 1.0
    if calls >= 1.0:
        return -1.0  # no price at all: even a certain token is called
    for _ in range(60):
        price = 0.5 * (low + high)
        if float((disagreements > price).mean()) > calls:
            low = price
        else:
            high = price
    return high


def token_numbers(
    logits: npt.ArrayLike,
    before: npt.ArrayLike,
    positions: npt.ArrayLike,
    repeats: npt.ArrayLike,
    *,
    reward: bool = False,
) -> Floats:
    """What a gate reads of tokens: float64 (tokens, 7), or (tokens, 15) for the learned reward.

    Args:
        logits: (tokens, vocabulary).
        before: smoothed entropy of the tokens before each, (tokens,); see `entropy_before`.
        positions: of each token in its context, (tokens,).
        repeats: whether the likeliest token would end a triple that stands in the text already, (tokens,).
        reward: whether log probabilities of the 8 likeliest tokens are added.
    """
    z = np.array(logits, np.float32)
    top = _greatest(z, _TOP if reward else 2)
    # In single precision and without further copies: a vocabulary of 150,000 is read at each token.
    z -= top[:, :1].astype(np.float32)
    np.maximum(z, -80.0, out=z)
    weight = np.exp(z)
    mass = weight.sum(axis=1, dtype=np.float64)
    total = np.log(mass)[:, None]
    entropy = total[:, 0] - np.einsum("tv,tv->t", weight, z, dtype=np.float64) / mass
    two = np.exp(top[:, :2] - top[:, :1] - total)
    out = np.stack(
        [
            two[:, 0],
            two[:, 0] - two[:, -1],
            entropy / math.log(max(z.shape[1], 2)),
            np.minimum(top[:, 0] - top[:, min(1, top.shape[1] - 1)], 20.0),
            np.asarray(before, np.float64),
            np.log1p(np.asarray(positions, np.float64)),
            np.asarray(repeats, np.float64),
        ],
        axis=1,
    )
    if not reward:
        return out
    best = np.maximum(top - top[:, :1] - total, -20.0)
    wide = np.pad(best, ((0, 0), (0, _TOP - best.shape[1])), constant_values=-20.0)
    return np.concatenate([out, wide], axis=1)


def _greatest(logits: npt.NDArray[np.float32], count: int) -> Floats:
    """The greatest logits of each row, falling: float64 (tokens, count or the vocabulary)."""
    rows, left, found = np.arange(len(logits)), logits.copy(), []
    for _ in range(min(count, logits.shape[1])):
        best = left.argmax(axis=1)
        found.append(left[rows, best].astype(np.float64))
        left[rows, best] = -np.inf
    return np.stack(found, axis=1)


def entropy_before(entropies: Mapping[int, float], position: int) -> float:
    """Normalised entropies of up to 8 positions before one, the nearest weighed most (0.8 a step back); those
    that the device did not compute are left out, 0.5 where none is known.
    """
    total = weight = 0.0
    for back in range(1, _WINDOW + 1):
        if (found := entropies.get(position - back)) is not None:
            total += _DECAY**back * found
            weight += _DECAY**back
    return total / weight if weight else 0.5


def repeats_of(triples: set[tuple[int, int, int]], ids: Sequence[int], token: int) -> bool:
    """Whether a token would end a triple of tokens that stands in the text already."""
    return len(ids) >= 2 and (ids[-2], ids[-1], token) in triples


class Forkable(Protocol):
    """A token model that makes another context of the same weights, as `WholeModel` does."""

    @property
    def vocabulary(self) -> int:
        """See `TokenModel`."""
        ...

    @property
    def context(self) -> int:
        """See `TokenModel`."""
        ...

    def step(self, ids: Sequence[int]) -> Step:
        """See `TokenModel`."""
        ...

    def forget(self) -> None:
        """See `TokenModel`."""
        ...

    def fresh(self) -> Self:
        """Another context."""
        ...


@dataclass(eq=False)
class GatedModel:
    """A token model whose steps say how likely the cloud would choose the same; a `TokenModel` itself."""

    inner: Forkable
    gate: Gate
    _ids: list[int] = field(default_factory=list)
    _entropies: dict[int, float] = field(default_factory=dict)
    _triples: set[tuple[int, int, int]] = field(default_factory=set)

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return self.inner.vocabulary

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.inner.context

    def fresh(self) -> GatedModel:
        """Another context of the same weights."""
        return GatedModel(self.inner.fresh(), self.gate)

    def step(self, ids: Sequence[int]) -> Step:
        """What comes after these ids; see `TokenModel.step`. The exit is that of the whole local model."""
        found = self.inner.step(ids)
        self._follow(ids)
        position = len(ids)
        best = int(found.logits.argmax())
        before = entropy_before(self._entropies, position)
        repeats = repeats_of(self._triples, ids, best)
        row = token_numbers(found.logits[None], [before], [position], [repeats], reward=self.gate.reward)
        self._entropies[position] = float(row[0, 2])
        return Step(found.logits, found.exit, float(self.gate.scorer(row)[0]))

    def forget(self) -> None:
        """Free what was kept."""
        self.inner.forget()
        self._ids, self._entropies, self._triples = [], {}, set()

    def _follow(self, ids: Sequence[int]) -> None:
        """Take the ids; what was known of tokens that are no longer there is forgotten."""
        kept = len(self._ids)
        if list(ids[:kept]) != self._ids:
            kept = next((i for i, (a, b) in enumerate(zip(self._ids, ids, strict=False)) if a != b), len(ids))
            self._entropies = {at: h for at, h in self._entropies.items() if at <= kept}
            self._triples = {(ids[i - 2], ids[i - 1], ids[i]) for i in range(2, kept)}
        for i in range(max(kept, 2), len(ids)):
            self._triples.add((ids[i - 2], ids[i - 1], ids[i]))
        self._ids = list(ids)
