"""The cloud's half of a language model: one pass over tokens of several contexts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch

from splitedge.llm.anatomy import Anatomy
from splitedge.llm.cache import KVCache, Ragged
from splitedge.llm.halves import LanguageHead, LanguageTail, steps_of

Logits = npt.NDArray[np.float32]


class StateCodec(Protocol):
    """Writes hidden states as rows of bytes, each of the same size, and reads them back."""

    @property
    def width(self) -> int:
        """Bytes of a row."""
        ...

    def encode(self, states: torch.Tensor) -> bytes:
        """float32 (tokens, hidden) to rows."""
        ...

    def decode(self, rows: bytes | memoryview) -> torch.Tensor:
        """Rows to float32 (tokens, hidden).

        Raises:
            CodecError: the bytes are no rows.
        """
        ...


@dataclass(frozen=True, slots=True)
class PassRow:
    """One context's part of a pass.

    Attributes:
        cache: keys and values of its first `past` tokens; gets those of the new ones.
        past: tokens computed before.
        rows: payload of the new tokens.
        count: how many.
        keep: of how many of the last ones the logits are wanted; 0 for none.
    """

    cache: KVCache
    past: int
    rows: bytes
    count: int
    keep: int


class CloudLanguageModel:
    """Computes logits from ids (the whole model) or from hidden states at a cut (the tail alone).

    Args:
        head: embedding and first blocks; None where only hidden states are taken.
        tail: blocks from the cut on.
        anatomy: of the whole.
        codec: that wrote the hidden states; None where ids come.
    """

    def __init__(
        self, head: LanguageHead | None, tail: LanguageTail, anatomy: Anatomy, codec: StateCodec | None = None
    ) -> None:
        assert (head is None) is not (codec is None)
        self._head, self._tail, self._codec, self.anatomy = head, tail, codec, anatomy

    @property
    def width(self) -> int:
        """Bytes of a row."""
        return 4 if self._codec is None else self._codec.width

    @property
    def sees_ids(self) -> bool:
        """Whether rows are ids, so that the model can go on from tokens of its own."""
        return self._codec is None

    def token_bytes(self) -> int:
        """Bytes of keys and values of one token, over the layers that run here; found by running one."""
        cache = KVCache()
        self.run([PassRow(cache, 0, self.row_of_zeros(), 1, 0)])
        layers = [cache.kept(layer) for layer in range(self._tail.body.last) if cache.length(layer)]
        return sum(k[:, :, :1].nbytes + v[:, :, :1].nbytes for k, v in layers)

    def row_of_zeros(self) -> bytes:
        """A row that means nothing, for measurements."""
        if self._codec is None:
            return np.zeros(1, "<i4").tobytes()
        return self._codec.encode(torch.zeros(1, self.anatomy.hidden))

    @torch.inference_mode()
    def run(self, rows: Sequence[PassRow]) -> list[Logits]:
        """One pass; for each row its logits float32 (keep, vocabulary)."""
        width = max(row.count for row in rows)
        past, counts = [row.past for row in rows], [row.count for row in rows]
        device = next(self._tail.parameters()).device
        positions, mask = steps_of(past, counts, width)
        positions = positions.to(device)
        cache = rows[0].cache if len(rows) == 1 else Ragged([row.cache for row in rows], counts)
        hidden = self._entering(rows, width, device, positions, cache, mask)
        most = max(row.keep for row in rows)
        hidden = self._tail.body(hidden, positions, cache, mask)
        if not most:
            return [np.zeros((0, self.anatomy.vocabulary), np.float32) for _ in rows]
        kept = torch.cat([hidden[i, row.count - row.keep : row.count] for i, row in enumerate(rows)])
        logits = self._tail.logits(kept.unsqueeze(0))[0].float().cpu().numpy()
        ends = np.cumsum([row.keep for row in rows])
        return np.split(logits, ends[:-1])

    def _entering(
        self,
        rows: Sequence[PassRow],
        width: int,
        device: torch.device,
        positions: torch.Tensor,
        cache: KVCache | Ragged,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """What enters the tail: (N, width, hidden)."""
        if self._head is not None:
            ids = np.zeros((len(rows), width), np.int64)
            for i, row in enumerate(rows):
                ids[i, : row.count] = np.frombuffer(row.rows, "<i4")
            out: torch.Tensor = self._head(torch.from_numpy(ids).to(device), positions, cache, mask)
            return out
        assert self._codec is not None
        dtype = next(self._tail.parameters()).dtype
        states = torch.zeros((len(rows), width, self.anatomy.hidden), dtype=dtype)
        for i, row in enumerate(rows):
            states[i, : row.count] = self._codec.decode(row.rows).to(dtype)
        return states.to(device)
