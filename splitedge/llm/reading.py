"""What the device's model thinks of a prompt, or of its own answer: numbers of one pass over the ids."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from splitedge.errors import ConfigError
from splitedge.llm.scorer import Floats

#: Of a prompt: surprise at its tokens (nats), and how sure the model is of what comes.
PROMPT = (
    "mean surprise",
    "greatest surprise",
    "mean entropy",
    "mean sureness",
    "last entropy",
    "last sureness",
)
#: Of an answer that the model wrote itself.
ANSWER = (
    "mean sureness", "least sureness", "mean surprise", "greatest surprise", "mean entropy", "log tokens",
    "ended",
)  # fmt: skip


class Reader(Protocol):
    """A model that gives logits of every token of a list in one pass, as `WholeModel` does."""

    def read(self, ids: Sequence[int]) -> Iterator[npt.NDArray[np.float32]]:
        """Logits of what comes after each id, in pieces (n, vocabulary)."""
        ...


def per_token(model: Reader, ids: Sequence[int]) -> tuple[Floats, Floats, Floats]:
    """Of what comes after each id: greatest probability, entropy (nats), and surprise at the id that does
    come (nats; NaN after the last), each float64 (tokens,).
    """
    sure, entropy, surprise, at = [], [], [], 0
    for logits in model.read(ids):
        z = logits.astype(np.float64)
        z -= z.max(axis=1, keepdims=True)
        log = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
        p = np.exp(log)
        sure.append(p.max(axis=1))
        entropy.append(-(p * np.where(p > 0, log, 0.0)).sum(axis=1))
        come = ids[at + 1 : at + 1 + len(log)]
        found = np.full(len(log), math.nan)
        found[: len(come)] = -log[np.arange(len(come)), list(come)]
        surprise.append(found)
        at += len(log)
    return np.concatenate(sure), np.concatenate(entropy), np.concatenate(surprise)


def prompt_numbers(model: Reader, ids: Sequence[int]) -> Floats:
    """What a router may know of a prompt from the device's model: float64 (6,), see `PROMPT`."""
    sure, entropy, surprise = per_token(model, ids)
    seen = surprise[:-1] if len(ids) > 1 else np.zeros(1)
    return np.array(
        [seen.mean(), seen.max(), entropy.mean(), sure.mean(), entropy[-1], sure[-1]], dtype=np.float64
    )


def answer_numbers(model: Reader, prompt: Sequence[int], answer: Sequence[int], ended: bool) -> Floats:
    """What a judge may know of an answer by the device's model: float64 (7,), see `ANSWER`.

    Args:
        model: that wrote it.
        prompt: ids, at least one.
        answer: ids.
        ended: whether it came to an end by itself.

    Raises:
        ConfigError: an empty answer.
    """
    if not answer:
        raise ConfigError("an empty answer can not be judged")
    sure, entropy, surprise = per_token(model, [*prompt, *answer])
    mine = slice(len(prompt) - 1, len(prompt) + len(answer) - 1)
    s, h, nll = sure[mine], entropy[mine], surprise[mine]
    return np.array(
        [s.mean(), s.min(), nll.mean(), nll.max(), h.mean(), math.log1p(len(answer)), float(ended)]
    )
