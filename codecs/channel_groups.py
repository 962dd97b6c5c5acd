"""Bodies that hold one level behind another: each level adds a group of channels, and what a lower level
sends is the beginning of what a higher one sends.

    level 0:  group 0
    level 1:  group 0 | group 1 | length of group 1
    level 2:  group 0 | group 1 | length of group 1 | group 2 | length of group 2

A payload's own length is known, so that a body is taken apart from its end; group 0 is what is left.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from splitedge.codecs.range_coder import RangeCoder
from splitedge.codecs.tables import Symbols, Tables
from splitedge.errors import CodecError


class ChannelGroups:
    """Codes the first channels of a latent, as many as a level has; each group is a body of `RangeCoder`.

    For given symbols and level there is exactly one body, as there is for each of its groups. A length
    takes 1 byte where its group has at most 255 (2 to 65,535, and so on).

    Args:
        tables: one a channel.
        inner: symbols of one channel of one row.
        prefixes: channels of each level, ascending, up to all of them.

    Raises (construction):
        CodecError: the prefixes do not ascend from at least 1 to the number of tables.
    """

    def __init__(self, tables: Tables, inner: int, prefixes: Sequence[int]) -> None:
        self._starts = (0, *prefixes)[: len(prefixes)]
        groups = list(zip(self._starts, prefixes, strict=True))
        if not groups or any(a >= b for a, b in groups) or prefixes[-1] != tables.channels:
            raise CodecError(f"levels of {tuple(prefixes)} channels do not ascend to all {tables.channels}")
        self._groups = groups
        self._coders = [RangeCoder(Tables(tables.frequencies[a:b]), inner) for a, b in groups]

    def max_bytes(self, level: int, rows: int) -> int:
        """The most bytes a body can have: all groups packed, and their lengths."""
        coded = sum(coder.max_bytes(rows) for coder in self._coders[: level + 1])
        return coded + sum(self._field(i, rows) for i in range(1, level + 1))

    def encode(self, symbols: Symbols, level: int) -> bytes:
        """The body of a level.

        Args:
            symbols: uint8 (rows, channels, inner); channels beyond the level's are not read.
            level: from 0 up.

        Raises:
            CodecError: shape, dtype or a symbol is not what the tables are for.
        """
        body = b""
        for i, (start, stop) in enumerate(self._groups[: level + 1]):
            group = self._coders[i].encode(symbols[:, start:stop])
            body += group
            if i:
                body += len(group).to_bytes(self._field(i, len(symbols)), "little")
        return body

    def decode(self, body: memoryview, level: int, rows: int) -> Symbols:
        """The symbols of a body, uint8 (rows, channels of the level, inner).

        Takes memory for the result and at most six times as much for a moment, whatever the body holds.

        Raises:
            CodecError: no symbols have this body: it is truncated, too long or damaged.
        """
        ends = self._ends(body, level, rows)
        found, start = [], 0
        for i, end in enumerate(ends):
            field = self._field(i, rows) if i else 0
            found.append(self._coders[i].decode(body[start : end - field], rows))
            start = end
        return np.concatenate(found, axis=1)

    def beginning(self, body: memoryview, level: int, rows: int, lower: int) -> memoryview:
        """The body of a lower level, or the same, that a body begins with.

        Raises:
            CodecError: the body does not consist of groups.
        """
        return body[: self._ends(body, level, rows)[lower]]

    def _ends(self, body: memoryview, level: int, rows: int) -> list[int]:
        """Where the body of each level up to this one ends."""
        ends = [len(body)]
        for i in range(level, 0, -1):
            at = ends[-1] - self._field(i, rows)
            end = at - int.from_bytes(body[max(at, 0) : ends[-1]], "little")
            if end < 0:
                raise CodecError(f"body damaged: the length of channel group {i} is beyond what there is")
            ends.append(end)
        return ends[::-1]

    def _field(self, group: int, rows: int) -> int:
        """Bytes that a group's length takes."""
        return (self._coders[group].max_bytes(rows).bit_length() + 7) // 8
