"""What gives the next token's logits for a list of ids, and keeps up with a list that changes.

The caller owns the ids. A model is told the whole list each time; it keeps what it has computed of their
common beginning, forgets what lies behind, and computes the rest in one pass. Taking tokens back needs no
call of its own and can not be forgotten.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from splitedge.errors import Rejected
from splitedge.llm.anatomy import Anatomy
from splitedge.llm.cache import KVCache
from splitedge.llm.halves import LanguageHead, LanguageTail, split_language_model, steps_of

Logits = npt.NDArray[np.float32]
#: Tokens computed in one pass at most: bounds the memory that a long prompt takes.
CHUNK = 512


@dataclass(frozen=True, slots=True)
class Step:
    """What a model says of the token that comes next.

    Attributes:
        logits: float32 (vocabulary,).
        exit: number of the exit that gave them; -1 for the whole model.
        confidence: calibrated probability that the whole model (or the cloud) would choose the same token;
            NaN where nobody knows.
    """

    logits: Logits
    exit: int = -1
    confidence: float = float("nan")


class TokenModel(Protocol):
    """Gives logits; see the module."""

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        ...

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        ...

    def step(self, ids: Sequence[int]) -> Step:
        """What comes after these ids (at least one).

        Raises:
            Rejected: no id, one out of the vocabulary, or more than the context.
        """
        ...

    def forget(self) -> None:
        """Free what was kept."""
        ...


def common(first: Sequence[int], second: Sequence[int]) -> int:
    """Length of the common beginning."""
    for i, (a, b) in enumerate(zip(first, second, strict=False)):
        if a != b:
            return i
    return min(len(first), len(second))


def checked(ids: Sequence[int], vocabulary: int, context: int) -> None:
    """Refuse ids that a model can not take.

    Raises:
        Rejected: see `TokenModel.step`.
    """
    if not ids:
        raise Rejected("a language model needs at least one token to go on from")
    if len(ids) > context:
        raise Rejected(
            f"{len(ids)} tokens are more than the model's context of {context}; shorten the prompt"
        )
    if min(ids) < 0 or max(ids) >= vocabulary:
        raise Rejected(
            f"token {min(ids) if min(ids) < 0 else max(ids)} is not in the vocabulary of {vocabulary}: "
            "the ids are of another tokenizer"
        )


class WholeModel:
    """A complete causal language model on this machine, one context at a time.

    Args:
        model: see `splitedge.llm.anatomy.anatomy_of`.
        context: most tokens that will be asked of it.

    Raises:
        PartitionError: its structure is not known.
    """

    def __init__(self, model: nn.Module, context: int | None = None) -> None:
        self._head, self._tail, self.anatomy = split_language_model(model, 0, context)
        self._ids: list[int] = []
        self._cache = KVCache()

    @classmethod
    def of(cls, head: LanguageHead, tail: LanguageTail, anatomy: Anatomy) -> WholeModel:
        """From the halves of a model that was cut before its first block."""
        made = cls.__new__(cls)
        made._head, made._tail, made.anatomy = head, tail, anatomy
        made._ids, made._cache = [], KVCache()
        return made

    @property
    def scale(self) -> float:
        """What embeddings are multiplied by."""
        return self._head.scale

    @property
    def vocabulary(self) -> int:
        """How many ids there are."""
        return self.anatomy.vocabulary

    @property
    def context(self) -> int:
        """Most tokens of prompt and answer together."""
        return self.anatomy.context

    def fresh(self) -> WholeModel:
        """Another context of the same weights."""
        other = copy.copy(self)
        other._ids, other._cache = [], KVCache()
        return other

    def step(self, ids: Sequence[int]) -> Step:
        """What comes after these ids; see `TokenModel.step`."""
        checked(ids, self.vocabulary, self.context)
        # The last token is computed anew even if it is known: its logits are what is asked for.
        kept = min(common(self._ids, ids), len(ids) - 1)
        self._cache.crop(kept)
        logits = advance(self._head, self._tail, self._cache, ids, kept)
        self._ids = list(ids)
        return Step(logits)

    @torch.inference_mode()
    def read(self, ids: Sequence[int], rows: int = 64) -> Iterator[Logits]:
        """What comes after each of these ids, in one pass over a context of its own; what was kept stays.

        Args:
            ids: at least one.
            rows: tokens a piece, which bounds the memory that logits take.

        Yields:
            float32 (up to `rows`, vocabulary), in order.

        Raises:
            Rejected: see `TokenModel.step`.
        """
        checked(ids, self.vocabulary, self.context)
        cache, device = KVCache(), next(self._head.parameters()).device
        for start in range(0, len(ids), rows):
            part = list(ids[start : start + rows])
            positions, mask = steps_of([start], [len(part)], len(part))
            positions = positions.to(device)
            hidden = self._head(torch.tensor([part], device=device), positions, cache, mask)
            yield self._tail(hidden, positions, cache, mask)[0].float().cpu().numpy()

    def forget(self) -> None:
        """Free what was kept."""
        self._ids = []
        self._cache.clear()


@torch.inference_mode()
def advance(head: LanguageHead, tail: LanguageTail, cache: KVCache, ids: Sequence[int], kept: int) -> Logits:
    """Compute the ids behind the first `kept`, which the cache holds; float32 logits (vocabulary,) of what
    comes after the last.
    """
    out: Logits | None = None
    device = next(head.parameters()).device
    for start in range(kept, len(ids), CHUNK):
        part = ids[start : start + CHUNK]
        positions, mask = steps_of([start], [len(part)], len(part))
        positions = positions.to(device)
        hidden = head(torch.tensor([list(part)], device=device), positions, cache, mask)
        found = tail(hidden, positions, cache, mask, slice(-1, None))
        out = found[0, -1].float().cpu().numpy()
    assert out is not None
    return out


__all__ = ["Anatomy", "Step", "TokenModel", "WholeModel", "advance", "checked", "common"]
