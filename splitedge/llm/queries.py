"""What a device can see of a prompt before anything is answered: cheap numbers, and hashed n-grams.

All of it is computed on the device from the prompt's text, and from the local model's reading of it where
there is one. No embedding service is asked: a router that sends a prompt away in order to decide whether it
may stay would be of no use here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from splitedge.llm.scorer import Floats

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

#: Names of the numbers that `dense` gives of a text.
DENSE = (
    "log characters", "log words", "characters a word", "digits", "numbers", "capitals", "punctuation",
    "operators", "question marks", "lines", "code marks", "not ASCII", "log sentences",
)  # fmt: skip
_NUMBER, _WORD, _CODE = re.compile(r"\d+(?:[.,]\d+)*"), re.compile(r"\w+"), re.compile(r"[{}();=<>\\`_]")


def dense(text: str) -> Floats:
    """Cheap numbers of a text, float64 (13,); see `DENSE`. Shares are of its characters, times 10."""
    n = max(len(text), 1)
    words = len(_WORD.findall(text))
    tenth = 10.0 / n
    return np.array(
        [
            np.log1p(len(text)),
            np.log1p(words),
            len(text) / max(words, 1),
            tenth * sum(c.isdigit() for c in text),
            np.log1p(len(_NUMBER.findall(text))),
            tenth * sum(c.isupper() for c in text),
            tenth * sum(c in ".,;:!?'\"-" for c in text),
            tenth * sum(c in "+-*/=^%$<>" for c in text),
            float(text.count("?")),
            np.log1p(text.count("\n")),
            tenth * len(_CODE.findall(text)),
            tenth * sum(ord(c) > 127 for c in text),
            np.log1p(sum(text.count(mark) for mark in ".!?")),
        ]
    )


@dataclass(frozen=True, slots=True)
class Hashing:
    """Which n-grams are counted, and into how many columns.

    Attributes:
        words: columns of words and pairs of words; 0 for none.
        chars: columns of 3 to 5 characters within words; 0 for none. They cost some ten times as much as
            words, and brought no more than noise on the labels of docs/language-routing.md.
    """

    words: int = 1 << 15
    chars: int = 0

    @property
    def columns(self) -> int:
        """All of them."""
        return self.words + self.chars

    def __call__(self, texts: Sequence[str]) -> csr_matrix:
        """1 + log of the counts of n-grams in each text, each part of length 1: sparse (texts, columns)."""
        from scipy.sparse import csr_matrix, hstack

        parts = []
        for count, how in ((self.words, ("word", 1, 2)), (self.chars, ("char_wb", 3, 5))):
            if count:
                found = _vectoriser(count, *how).transform(list(texts))
                found.data = 1.0 + np.log(found.data)
                parts.append(_normed(found))
        return csr_matrix(hstack(parts)) if parts else csr_matrix((len(texts), 0))


@lru_cache(maxsize=8)
def _vectoriser(columns: int, kind: str, low: int, high: int) -> Any:
    from sklearn.feature_extraction.text import HashingVectorizer

    return HashingVectorizer(
        n_features=columns, analyzer=kind, ngram_range=(low, high), norm=None, alternate_sign=False
    )


def _normed(matrix: Any) -> Any:
    """Rows of length 1; empty ones stay empty."""
    from sklearn.preprocessing import normalize

    return normalize(matrix, copy=False)


def rarity(counts: csr_matrix) -> Floats:
    """Inverse document frequency of each column, smoothed: log((1 + n) / (1 + rows with it)) + 1."""
    n = counts.shape[0]
    seen = np.bincount(counts.indices, minlength=counts.shape[1])
    out: Floats = np.log((1.0 + n) / (1.0 + seen)) + 1.0
    return out
