"""Keys and values of past tokens: of one context, and of several run as one batch.

Both have the one method that a block of `transformers` calls: `update(keys, values, layer)`. A context
knows its length layer by layer, because a half of a model fills only its own layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from splitedge.errors import ConfigError

_ROOM = 64  # tokens by which a buffer grows at least


class KVCache:
    """Of one context. Layers keep the numbers they have in the whole model.

    Keys and values are (1, heads, tokens, size) in the model's dtype; buffers grow by a quarter.
    """

    __slots__ = ("_layers", "_lengths")

    def __init__(self) -> None:
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        self._lengths: dict[int, int] = {}

    def length(self, layer: int) -> int:
        """Tokens kept of a layer."""
        return self._lengths.get(layer, 0)

    @property
    def nbytes(self) -> int:
        """Bytes of all buffers, room to grow included."""
        return sum(k.nbytes + v.nbytes for k, v in self._layers.values())

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append keys and values (1, heads, T, size) of a layer, and give all that are kept of it."""
        before = self.length(layer_idx)
        after = before + keys.shape[2]
        kept = self._layers.get(layer_idx)
        if kept is None or kept[0].shape[2] < after:
            old = (None, None) if kept is None else kept
            kept = (_grown(old[0], keys, before, after), _grown(old[1], values, before, after))
            self._layers[layer_idx] = kept
        kept[0][:, :, before:after] = keys
        kept[1][:, :, before:after] = values
        self._lengths[layer_idx] = after
        return kept[0][:, :, :after], kept[1][:, :, :after]

    def crop(self, length: int) -> None:
        """Keep the first `length` tokens of every layer (those that have fewer keep what they have)."""
        if length < 0:
            raise ConfigError(f"a cache can not keep {length} tokens")
        for layer, now in self._lengths.items():
            self._lengths[layer] = min(now, length)

    def clear(self) -> None:
        """Forget everything and free the memory."""
        self._layers.clear()
        self._lengths.clear()

    def kept(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys and values of a layer, each (1, heads, tokens, size)."""
        keys, values = self._layers[layer]
        length = self._lengths[layer]
        return keys[:, :, :length], values[:, :, :length]


def room_for(tokens: int) -> int:
    """Tokens that the buffers of a context of so many may have room for."""
    return tokens + max(_ROOM, tokens // 4)


def _grown(old: torch.Tensor | None, new: torch.Tensor, before: int, after: int) -> torch.Tensor:
    room = after + max(_ROOM, before // 4)  # at most `room_for(after)`
    n, heads, _, size = new.shape
    buffer = new.new_empty((n, heads, room, size))
    if old is not None:
        buffer[:, :, :before] = old[:, :, :before]
    return buffer


class Ragged:
    """Several contexts as one batch: row i appends its first `counts[i]` tokens to `caches[i]`.

    Args:
        caches: one for each row.
        counts: tokens of each row that are real; those behind them are padding and are not kept.
    """

    __slots__ = ("_caches", "_counts")

    def __init__(self, caches: Sequence[KVCache], counts: Sequence[int]) -> None:
        if len(caches) != len(counts):
            raise ConfigError(f"{len(caches)} contexts and {len(counts)} counts of tokens")
        self._caches = tuple(caches)
        self._counts = tuple(counts)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer_idx: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """As `KVCache.update`, for a batch: (N, heads, T, size) to (N, heads, longest, size), then zeros."""
        rows = [
            cache.update(keys[i : i + 1, :, :count], values[i : i + 1, :, :count], layer_idx)
            for i, (cache, count) in enumerate(zip(self._caches, self._counts, strict=True))
        ]
        longest = max(k.shape[2] for k, _ in rows)
        size = keys.shape[3]
        padded = keys.new_zeros((2, keys.shape[0], keys.shape[1], longest, size))
        for row, (k, v) in enumerate(rows):
            padded[0, row, :, : k.shape[2]] = k[0]
            padded[1, row, :, : v.shape[2]] = v[0]
        return padded[0], padded[1]


def causal_mask(past: Sequence[int], counts: Sequence[int], width: int) -> torch.Tensor:
    """Which of the kept tokens each token of a batch may attend to: bool (N, 1, width, longest).

    Args:
        past: tokens each row had before.
        counts: new tokens of each row, at most `width`; padding attends to what the last real one does.
        width: tokens of the batch.
    """
    longest = max(p + c for p, c in zip(past, counts, strict=True))
    at = torch.arange(longest)
    step = torch.arange(width)
    last = torch.tensor([p + c - 1 for p, c in zip(past, counts, strict=True)])
    reach = torch.minimum(torch.tensor(past).view(-1, 1) + step.view(1, -1), last.view(-1, 1))
    return (at.view(1, 1, -1) <= reach.unsqueeze(-1)).unsqueeze(1)
