"""Symbols to the bytes of their information content and back: a range coder that wastes under a byte.

The coder is that of `constriction` (Bamler, arXiv 2201.01741; range coding: Martin, 1979): 32-bit words,
a 64-bit range, models of 24 bits. Tables of integers that sum to 2**12 or 2**24 are handed over as float64,
in which everything it does with them is exact, so no result depends on rounding. What it would write behind
the last symbol, one or two words, is replaced by the fewest bytes that always suffice (`_ending`).

Symbols are coded channel by channel, each with the symbols of all rows: one call of the coder a channel.
Where no symbol has more than 4 bits two neighbours of a channel are coded together: the outer product of
their table with itself sums to 2**24, and one step of the coder costs less than two.
"""

from __future__ import annotations

from typing import Any

import constriction
import numpy as np
import numpy.typing as npt

from splitedge.codecs.packing import pack, packed_bytes, unpack
from splitedge.codecs.tables import Ints, Symbols, Tables
from splitedge.errors import CodecError

_Encoder = constriction.stream.queue.RangeEncoder
_Decoder = constriction.stream.queue.RangeDecoder
_Model = constriction.stream.model.Categorical
_STATE = 1 << 64
#: Bytes of a body up to which `decode` makes sure that its symbols have no other.
CHECKED = 4096


class RangeCoder:
    """Codes latents of a fixed number of channels and symbols a channel, any number of rows.

    A body is range-coded where that is shorter than `packed_bytes`, else the symbols are packed at
    ceil(log2 size) bits each (`packing`). Its length tells which: a packed body has exactly that length,
    a range-coded one is shorter. So there is no flag, and no input, unlikely or made for it, takes more
    than `max_bytes`; a codec that wants a tighter cap states it in its own `max_body`.

    A range-coded body is at most one byte longer than the ideal code length `Tables.bits`. For given
    symbols there is exactly one body, and `decode` takes no other up to `CHECKED` bytes: it encodes what it
    found once more. For longer ones that would take a quarter of the time and is left out. What a damaged
    body decodes to may by chance have just that body; the CRC in front of every payload is there for that, at
    any length.

    Args:
        tables: one a channel.
        inner: symbols of one channel of one row.

    Raises (construction):
        CodecError: `inner` is not positive.
    """

    def __init__(self, tables: Tables, inner: int) -> None:
        if inner < 1:
            raise CodecError(f"a coder needs at least one symbol a channel, got {inner}")
        self.tables = tables
        self.inner = inner
        self._sizes = [int(size) for size in tables.sizes]
        self._greatest = (tables.sizes - 1).astype(np.uint8)[:, None]
        # The same for all channels, whichever are used: a narrower body is coded alike.
        self._width = (max(self._sizes) - 1).bit_length()
        self._group = 2 if self._width <= 4 else 1
        # A channel of one symbol has nothing to say and takes no model.
        self._alone: list[Any] = [
            _Model(table[:size].astype(np.float64), perfect=False) if size > 1 else None
            for table, size in zip(tables.frequencies, self._sizes, strict=True)
        ]
        self._grouped = self._alone
        if self._group > 1:
            self._grouped = [
                _Model(_joint(table, self._width), perfect=False) if size > 1 else None
                for table, size in zip(tables.frequencies, self._sizes, strict=True)
            ]

    def max_bytes(self, rows: int, channels: int | None = None) -> int:
        """The most bytes a body of `rows` can have: that of its symbols packed."""
        return packed_bytes(self._sizes[: self._checked(channels)], rows * self.inner)

    def encode(self, symbols: Symbols, channels: int | None = None) -> bytes:
        """The body of some symbols.

        Args:
            symbols: uint8 (rows, channels, inner), each below its channel's size.
            channels: code only so many, the first; None is all. The others are not read.

        Raises:
            CodecError: shape, dtype or a symbol is not what the tables are for.
        """
        k = self._checked(channels)
        if symbols.dtype != np.uint8 or symbols.ndim != 3 or symbols.shape[1] < k:
            raise CodecError(f"symbols are uint8 (rows, {k}, inner), got {symbols.dtype} {symbols.shape}")
        if not symbols.shape[0] or symbols.shape[2] != self.inner:
            raise CodecError(f"symbols of shape {symbols.shape}, expected (rows, {k}, {self.inner})")
        used = symbols[:, :k]
        if (used > self._greatest[:k]).any():
            raise CodecError("a symbol is beyond the size of its channel's table")
        return self._encode(used)

    def decode(self, body: memoryview | bytes, rows: int, channels: int | None = None) -> Symbols:
        """The symbols of a body, uint8 (rows, channels, inner), those that `encode` was given.

        Takes memory for the result and at most six times as much for a moment, whatever the body holds.

        Raises:
            CodecError: no symbols have this body: it is truncated, too long or damaged.
        """
        k = self._checked(channels)
        if rows < 1:
            raise CodecError(f"a body holds at least one row, got {rows}")
        n, length = rows * self.inner, len(body)
        most = packed_bytes(self._sizes[:k], n)
        if length > most:
            raise CodecError(f"body of {length} bytes; these symbols take at most {most}")
        if length == most:
            found = self._by_row(unpack(body, self._sizes[:k], n), rows)
            agrees = len(self._coded(found)) >= most  # else that shorter form would have been sent
        else:
            found = self._decode(body, rows, k)
            agrees = length > CHECKED or self._coded(found) == body
        if not agrees:
            raise CodecError("body damaged or truncated: its symbols have another body")
        return np.ascontiguousarray(found)

    def _checked(self, channels: int | None) -> int:
        if channels is None:
            return len(self._sizes)
        if not 1 <= channels <= len(self._sizes):
            raise CodecError(f"tables of {len(self._sizes)} channels asked for {channels}")
        return channels

    def _encode(self, symbols: Symbols) -> bytes:
        rows, k, _ = symbols.shape
        coded = self._coded(symbols)
        if len(coded) < packed_bytes(self._sizes[:k], rows * self.inner):
            return coded
        return pack(symbols.transpose(1, 0, 2).reshape(k, -1), self._sizes[:k])

    def _coded(self, symbols: Symbols) -> bytes:
        encoder = _Encoder()
        encode = encoder.encode
        channels = symbols.transpose(1, 0, 2).reshape(symbols.shape[1], -1)
        whole = channels.shape[1] // self._group * self._group
        grouped = self._joined(channels[:, :whole]).astype(np.int32)
        rest = channels[:, whole:].astype(np.int32)
        for some, left, model, alone in zip(grouped, rest, self._grouped, self._alone, strict=False):
            if model is not None:
                if whole:
                    encode(some, model)
                if left.size:
                    encode(left, alone)
        return _ending(encoder)

    def _decode(self, body: memoryview | bytes, rows: int, channels: int) -> Symbols:
        words = np.zeros(-(-len(body) // 4), ">u4")  # behind its end the coder reads zeros, as we do here
        words.view(np.uint8)[: len(body)] = np.frombuffer(body, np.uint8)
        decode = _Decoder(words.astype(np.uint32)).decode
        n = rows * self.inner
        whole = n // self._group * self._group
        grouped = np.zeros((channels, whole // self._group), np.uint8)
        found = np.zeros((channels, n), np.uint8)
        rest = found[:, whole:]
        try:
            for some, left, model, alone in zip(grouped, rest, self._grouped, self._alone, strict=False):
                if model is not None:
                    if whole:
                        some[:] = decode(model, some.size)
                    if left.size:
                        left[:] = decode(alone, left.size)
        except AssertionError as error:  # how `constriction` says that no symbol has these bits
            raise CodecError("body damaged: no symbols have this beginning") from error
        self._parted(grouped, found[:, :whole])
        if (found > self._greatest[:channels]).any():
            raise CodecError("body damaged: a symbol is beyond the size of its channel's table")
        return self._by_row(found, rows)

    def _joined(self, channels: Symbols) -> Symbols:
        """Two neighbours as one number each, the first in the high bits."""
        if self._group == 1:
            return channels
        joined: Symbols = channels[:, 0::2] << np.uint8(self._width)
        joined |= channels[:, 1::2]
        return joined

    def _parted(self, joined: Symbols, channels: Symbols) -> None:
        """Undo `_joined`, into `channels`."""
        if self._group == 1:
            channels[:] = joined
            return
        np.right_shift(joined, self._width, out=channels[:, 0::2])
        np.bitwise_and(joined, (1 << self._width) - 1, out=channels[:, 1::2])

    def _by_row(self, found: Symbols, rows: int) -> Symbols:
        return found.reshape(len(found), rows, self.inner).transpose(1, 0, 2)


def _joint(table: Ints, width: int) -> npt.NDArray[np.float64]:
    """The table of two neighbours of one channel as one number, integers that sum to 2**24."""
    padded = np.zeros(1 << width)
    padded[: table.size] = table
    return np.multiply.outer(padded, padded).ravel()


def _ending(encoder: Any) -> bytes:
    """What `encoder` holds, in the fewest bytes that name a number of its final range for certain.

    Any number in [low, low + range) decodes to the symbols. A range of at least 256**k holds a multiple
    of 256**k, and the k bytes behind it are zeros that need not be sent. k follows from the range alone,
    so a length belongs to the symbols as much as the bytes do.
    """
    whole, (low, width) = encoder.pos()
    if not whole and width == _STATE - 1:
        return b""
    words = encoder.get_compressed()[:whole]
    spare: int = (width.bit_length() - 1) >> 3
    step = 8 * spare
    last: int = -(-low >> step)
    front: bytes = words.astype(">u4").tobytes()
    if last >> (64 - step):
        last = 0
        # The number is carried into the words before, if `constriction` has not done so for its own.
        if low <= _STATE - (1 << 32):
            front = (int.from_bytes(front) + 1).to_bytes(len(front))
    return front + last.to_bytes(8 - spare)
