"""Choosing a token: greedy, or sampled with noise that depends on the seed and the position alone.

argmax(log p + g) with Gumbel noise g draws from p (Gumbel, 1954; "Gumbel-max"). Here g comes from a
counter-based generator (Philox: Salmon et al., SC 2011), so that a device and a server that see the same
position make the same draw from the same p, and likely the same one from different p. What is drawn then
depends on prompt, seed and model, not on drafts, link or failures.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitedge.errors import ConfigError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Sampling:
    """How the next token is drawn from logits.

    Attributes:
        temperature: 0 for greedy.
        top_k: only the k most likely; 0 for all.
        top_p: only the smallest set of most likely tokens whose probabilities reach this; 1 for all.
        seed: of the noise; the same seed, prompt and model give the same text.
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not (math.isfinite(self.temperature) and 0.0 <= self.temperature <= 100.0):
            raise ConfigError(f"temperature must be in [0, 100], got {self.temperature}")
        if not 0.0 < self.top_p <= 1.0:
            raise ConfigError(f"top_p must be in (0, 1], got {self.top_p}")
        if self.top_k < 0:
            raise ConfigError(f"top_k must be 0 (all) or more, got {self.top_k}")
        if not 0 <= self.seed < 2**64:
            raise ConfigError(f"seed must be in [0, 2**64), got {self.seed}")

    @property
    def greedy(self) -> bool:
        """Whether the most likely token is taken."""
        return self.temperature == 0.0


def gumbel(seed: int, position: int, count: int) -> Floats:
    """Gumbel noise of the tokens 0 to count - 1 at a position, float64 (count,).

    Args:
        seed: in [0, 2**64).
        position: of the token that is drawn, counted from the beginning of the context.
        count: size of the vocabulary.
    """
    raw = np.random.Philox(key=seed, counter=[0, position, 0, 0]).random_raw(count)
    uniform = ((raw >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    noise: Floats = -np.log(-np.log(uniform))
    return noise


def uniform(seed: int, position: int, purpose: int) -> float:
    """A number in (0, 1) of its own for a seed, a position and what it is used for (1 or more)."""
    raw = int(np.random.Philox(key=seed, counter=[0, position, purpose, 0]).random_raw())
    return ((raw >> 12) + 0.5) * 2.0**-52


def log_probabilities(logits: npt.NDArray[np.floating], sampling: Sampling) -> Floats:
    """Logits (vocabulary,) to log probabilities after temperature, top-k and top-p, float64; -inf for what
    is left out. For greedy sampling those of temperature 1.
    """
    x: Floats = logits.astype(np.float64)
    if not np.isfinite(x.max()):
        raise ConfigError("the model gave logits that are not finite: check its weights and dtype")
    if not sampling.greedy:
        x = x / sampling.temperature
        if 0 < sampling.top_k < len(x):
            x = np.where(x < np.partition(x, -sampling.top_k)[-sampling.top_k], -np.inf, x)
    x = x - x.max()
    x = x - np.log(np.exp(x).sum())
    if sampling.greedy or sampling.top_p >= 1.0:
        return x
    order = np.argsort(-x, kind="stable")
    reached = np.cumsum(np.exp(x[order]))
    kept = order[: int(np.searchsorted(reached, sampling.top_p)) + 1]
    out = np.full_like(x, -np.inf)
    out[kept] = x[kept]
    scaled: Floats = out - np.log(np.exp(out).sum())
    return scaled


def choose(logits: npt.NDArray[np.floating], position: int, sampling: Sampling) -> int:
    """The token at `position`: the most likely one, or a draw by the noise of that position.

    Args:
        logits: (vocabulary,), of the token at `position`.
        position: counted from the beginning of the context.
        sampling: how.

    Raises:
        ConfigError: no logit is finite.
    """
    if sampling.greedy:
        if not np.isfinite(logits.max()):
            raise ConfigError("the model gave logits that are not finite: check its weights and dtype")
        return int(logits.argmax())
    scores = log_probabilities(logits, sampling) + gumbel(sampling.seed, position, len(logits))
    return int(scores.argmax())
