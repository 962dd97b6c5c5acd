"""A rolling hash of a context's ids: how both ends know that they speak of the same tokens."""

from __future__ import annotations

from collections.abc import Iterable

EMPTY = 0xCBF29CE484222325
_PRIME = 0x100000001B3
_MASK = (1 << 64) - 1


def rolled(before: int, ids: Iterable[int]) -> int:
    """The hash of the tokens behind `before` with `ids` appended; `EMPTY` is that of no token.

    FNV-1a of 64 bits (Fowler, Noll, Vo) over 4 little-endian bytes an id. It tells mistakes apart, not
    attacks: a context belongs to one authenticated edge.
    """
    for token in ids:
        for shift in (0, 8, 16, 24):
            before = ((before ^ (token >> shift & 0xFF)) * _PRIME) & _MASK
    return before
