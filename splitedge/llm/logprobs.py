"""What a model thought of a token that it chose, and how the cloud tells it."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitedge.errors import WireError
from splitedge.llm.sampling import Sampling, log_probabilities
from splitedge.wire import MAX_TOP

_ONE, _PAIR = 4, 8  # bytes of the chosen token's, and of each of the likeliest


@dataclass(frozen=True, slots=True)
class LogProbs:
    """Natural logarithms of probabilities at temperature 1, before top-k and top-p.

    Attributes:
        chosen: of the token.
        top: (id, logarithm) of the most likely ones, falling.
    """

    chosen: float
    top: tuple[tuple[int, float], ...]

    @classmethod
    def of(cls, logits: npt.NDArray[np.floating], token: int, count: int) -> LogProbs:
        """Of a token and the `count` most likely ones, from logits (vocabulary,)."""
        said = log_probabilities(logits, Sampling())
        best = np.arange(len(said))
        if count < len(said):  # of a large vocabulary only what is told is sorted
            best = np.argpartition(-said, count)[:count]
        best = best[np.lexsort((best, -said[best]))]
        return cls(float(said[token]), tuple((int(i), float(said[i])) for i in best))

    def pack(self) -> bytes:
        """float32 of the token, then uint32 id and float32 of each other one, little-endian."""
        return struct.pack("<f", self.chosen) + b"".join(struct.pack("<If", *pair) for pair in self.top)


def unpack_logprobs(data: bytes | memoryview, tokens: int) -> tuple[LogProbs, ...]:
    """What `LogProbs.pack` wrote of so many tokens, one behind the other; none where there is no data.

    Raises:
        WireError: the length does not fit, or a number is none.
    """
    raw = bytes(data)
    if not raw:
        return ()
    size, rest = divmod(len(raw), max(tokens, 1))
    top, odd = divmod(size - _ONE, _PAIR)
    if not tokens or rest or odd or not 0 <= top <= MAX_TOP:
        raise WireError(f"{len(raw)} bytes of logarithms do not fit {tokens} tokens")
    found = []
    for values in struct.iter_unpack("<f" + "If" * top, raw):
        if not all(value <= 0.0 for value in (values[0], *values[2::2])):
            raise WireError("a logarithm of a probability is above 0, or no number")
        found.append(LogProbs(values[0], tuple(zip(values[1::2], values[2::2], strict=True))))
    return tuple(found)


def packed(rows: npt.NDArray[np.floating], tokens: Sequence[int], count: int) -> bytes:
    """What is told of tokens: logits (tokens, vocabulary), the tokens chosen, and how many likeliest ones."""
    return b"".join(LogProbs.of(row, token, count).pack() for row, token in zip(rows, tokens, strict=True))
