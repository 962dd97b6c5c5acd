"""Frequency tables of an entropy coder: frozen integers, one table a channel."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch

from splitedge.errors import CodecError

#: Every table sums to 2**PRECISION_BITS.
PRECISION_BITS = 12
PRECISION = 1 << PRECISION_BITS
MAX_SYMBOLS = 256
_MOST_COUNTED = 1 << 48  # times PRECISION it still fits 64 bits

Ints = npt.NDArray[np.int64]
Symbols = npt.NDArray[np.uint8]


class Tables:
    """How often each symbol of each channel is expected, in parts of `PRECISION`.

    Integers, so that two machines can not differ about them. A channel of s symbols has s entries of at
    least 1 and zeros behind them, up to the width of the widest channel.

    Args:
        frequencies: (channels, symbols) integers; every row sums to `PRECISION`.

    Attributes:
        frequencies: int64 (channels, symbols), not writable.
        sizes: symbols of each channel, int64 (channels,), not writable.

    Raises:
        CodecError: the frequencies are no such tables.
    """

    def __init__(self, frequencies: npt.ArrayLike) -> None:
        found = np.asarray(frequencies)
        if found.ndim != 2 or not found.size or found.shape[1] > MAX_SYMBOLS or found.dtype.kind not in "iu":
            raise CodecError(
                f"frequency tables are integers of shape (channels, 1 to {MAX_SYMBOLS} symbols), "
                f"got {found.dtype} of shape {found.shape}"
            )
        if (
            found.min() < 0
            or found.max() > PRECISION
            or (found.sum(axis=1, dtype=np.int64) != PRECISION).any()
        ):
            raise CodecError(f"a frequency table does not sum to {PRECISION} or has negative entries")
        table = found.astype(np.int64)
        sizes = (table > 0).sum(axis=1)
        if ((table > 0) != (np.arange(table.shape[1]) < sizes[:, None])).any():
            raise CodecError("a frequency table has a zero before its last symbol: it could not be coded")
        table.setflags(write=False)
        sizes.setflags(write=False)
        self.frequencies: Ints = table
        self.sizes: Ints = sizes
        self._cost = -np.log2(np.maximum(table, 1) / PRECISION)

    @property
    def channels(self) -> int:
        """How many tables there are."""
        return len(self.frequencies)

    @classmethod
    def from_counts(cls, counts: npt.ArrayLike, sizes: Sequence[int] | None = None) -> Tables:
        """Tables for symbols counted on samples, one added to each count.

        The same counts give the same tables on every machine.

        Args:
            counts: integers (channels, symbols), each from 0 to 2**48.
            sizes: symbols of each channel, where not all use the full width.

        Raises:
            CodecError: counts or sizes are out of range, or a symbol beyond its channel's size was counted.
        """
        found = np.asarray(counts)
        if found.ndim != 2 or not found.size or found.shape[1] > MAX_SYMBOLS or found.dtype.kind not in "iu":
            raise CodecError(
                f"counts are integers of shape (channels, 1 to {MAX_SYMBOLS} symbols), "
                f"got {found.dtype} of shape {found.shape}"
            )
        if found.min() < 0 or int(found.sum(axis=1, dtype=np.float64).max()) > _MOST_COUNTED:
            raise CodecError("counts are negative or beyond 2**48")
        channels, width = found.shape
        used = [width] * channels if sizes is None else [int(size) for size in sizes]
        if len(used) != channels or not all(1 <= size <= width for size in used):
            raise CodecError(
                f"{len(used)} sizes, each from 1 to {width}, for {channels} channels: got {used}"
            )
        table = np.zeros((channels, width), np.int64)
        for channel, size in enumerate(used):
            if found[channel, size:].any():
                raise CodecError(f"channel {channel} has {size} symbols, but greater ones were counted")
            table[channel, :size] = _frequencies(found[channel, :size].astype(np.int64) + 1)
        return cls(table)

    @classmethod
    def of(cls, symbols: Symbols, n_symbols: int | Sequence[int]) -> Tables:
        """Tables for the symbols of samples.

        Args:
            symbols: uint8 (rows, channels, inner).
            n_symbols: how many there are, for all channels or for each.

        Raises:
            CodecError: a symbol is beyond its channel's number.
        """
        if symbols.dtype != np.uint8 or symbols.ndim != 3 or not symbols.shape[1]:
            raise CodecError(
                f"symbols are uint8 (rows, channels, inner), got {symbols.dtype} {symbols.shape}"
            )
        channels = symbols.shape[1]
        sizes = [n_symbols] * channels if isinstance(n_symbols, int) else list(n_symbols)
        if len(sizes) != channels or not all(1 <= size <= MAX_SYMBOLS for size in sizes):
            raise CodecError(f"sizes of 1 to {MAX_SYMBOLS} for {channels} channels wanted, got {sizes}")
        counts = [np.bincount(symbols[:, c].ravel(), minlength=MAX_SYMBOLS) for c in range(channels)]
        for channel, (count, size) in enumerate(zip(counts, sizes, strict=True)):
            if count[size:].any():
                raise CodecError(f"channel {channel} holds symbols beyond its {size}")
        return cls.from_counts(np.stack(counts)[:, : max(sizes)], sizes)

    def tensors(self) -> dict[str, torch.Tensor]:
        """What `from_tensors` needs: `frequencies`, int32 (channels, symbols)."""
        return {"frequencies": torch.from_numpy(self.frequencies.astype(np.int32))}

    @classmethod
    def from_tensors(cls, tensors: Mapping[str, torch.Tensor]) -> Tables:
        """The tables that `tensors` gave; other names in the mapping are left alone.

        Raises:
            CodecError: there are none, or they are damaged.
        """
        saved = tensors.get("frequencies")
        if saved is None or saved.dtype is not torch.int32:
            raise CodecError("saved frequency tables are missing or not int32; save the deployment again")
        return cls(saved.detach().cpu().numpy())

    def bits(self, symbols: Symbols) -> npt.NDArray[np.float64]:
        """The ideal code length of each row, in bits.

        Args:
            symbols: uint8 (rows, channels, inner), within the channels' sizes; fewer channels than there
                are tables are the first ones.

        Raises:
            CodecError: a symbol is beyond its channel's size.
        """
        if symbols.ndim != 3:
            raise CodecError(f"symbols are uint8 (rows, channels, inner), got shape {symbols.shape}")
        channels = symbols.shape[1]
        if channels > self.channels or (symbols >= self.sizes[:channels, None]).any():
            raise CodecError("symbols beyond these tables have no code length")
        lengths: npt.NDArray[np.float64] = self._cost[np.arange(channels)[:, None], symbols].sum(axis=(1, 2))
        return lengths


def _frequencies(counts: Ints) -> Ints:
    """Positive counts in parts of `PRECISION`: each at least 1, the sum exact, by largest remainders."""
    shares = counts * PRECISION
    total = int(counts.sum())
    table = np.maximum(shares // total, 1)
    short = PRECISION - int(table.sum())
    if short > 0:
        table[np.argsort(-(shares % total), kind="stable")[:short]] += 1
    for _ in range(-short):  # what the least frequent were given, the most frequent give up
        table[np.argmax(table)] -= 1
    return table
