"""Symbols in as many bits as their channel's alphabet needs, no table asked."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splitedge.codecs.tables import Symbols
from splitedge.errors import CodecError


def packed_bytes(sizes: Sequence[int], n: int) -> int:
    """Bytes of `n` symbols of each channel, of channels with `sizes` symbols."""
    return (n * sum((size - 1).bit_length() for size in sizes) + 7) // 8


def pack(symbols: Symbols, sizes: Sequence[int]) -> bytes:
    """Symbols uint8 (channels, n), channel by channel, the lowest bit of each first; zeros at the end."""
    widths = [(size - 1).bit_length() for size in sizes]
    if set(widths) == {8}:
        return symbols.tobytes()
    n = symbols.shape[1]
    bits = np.empty(n * sum(widths), np.uint8)
    at = 0
    for channel, width in zip(symbols, widths, strict=True):
        for bit in range(width):
            bits[at + bit : at + n * width : width] = channel >> bit & 1
        at += n * width
    return np.packbits(bits, bitorder="little").tobytes()


def unpack(body: memoryview | bytes, sizes: Sequence[int], n: int) -> Symbols:
    """Symbols uint8 (channels, n) of a body of exactly `packed_bytes`.

    Raises:
        CodecError: a symbol is beyond its channel's size, or the padding is not zero.
    """
    widths = [(size - 1).bit_length() for size in sizes]
    raw = np.frombuffer(body, np.uint8)
    if set(widths) == {8}:
        symbols = raw.reshape(len(sizes), n)
    else:
        bits = np.unpackbits(raw, bitorder="little")
        end = n * sum(widths)
        if bits[end:].any():
            raise CodecError("the padding behind packed symbols is not zero")
        symbols = np.zeros((len(sizes), n), np.uint8)
        at = 0
        for channel, width in zip(symbols, widths, strict=True):
            for bit in range(width):
                channel |= bits[at + bit : at + n * width : width] << bit
            at += n * width
    if (symbols >= np.asarray(sizes)[:, None]).any():
        raise CodecError("a packed symbol is beyond the size of its channel's table")
    return symbols
