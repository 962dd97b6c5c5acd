"""A rolling hash of what a context holds: how both ends know that they speak of the same tokens."""

from __future__ import annotations

import zlib
from collections.abc import Iterable

import numpy as np

#: Of no token.
EMPTY = 0


def rolled(before: int, data: bytes | memoryview) -> int:
    """The hash of a context's bytes behind `before` with `data` appended (CRC-32).

    The bytes are those of the lane's payload: 4 little-endian ones for an id, a row of the codec for a
    hidden state. It tells mistakes apart, not attacks: a context belongs to one authenticated edge.
    """
    return zlib.crc32(data, before)


def id_bytes(ids: Iterable[int]) -> bytes:
    """Ids as they are sent: int32, little-endian."""
    return np.fromiter(ids, dtype="<i4").tobytes()
