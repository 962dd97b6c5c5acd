"""Which k of n places are taken, in the fewest whole bytes: a bitmap, or the subset's number."""

from __future__ import annotations

from math import comb

import numpy as np
import numpy.typing as npt

from splitedge.errors import CodecError

Bools = npt.NDArray[np.bool_]


class Subsets:
    """Subsets of `k` of `n` places as bytes and back.

    A subset is sent as its number among all of them in the combinatorial number system (Knuth, The Art of
    Computer Programming 4A, section 7.2.1.3), little-endian, or as a bitmap, lowest bit first, where that
    takes no more bytes. Which one it is follows from n and k, and there is one form of every subset.

    Args:
        n: places, 1 or more.
        k: how many of them are taken, 0 to n.

    Attributes:
        nbytes: of every subset; 0 where there is only one.

    Raises (construction):
        CodecError: n or k is out of range.
    """

    def __init__(self, n: int, k: int) -> None:
        if n < 1 or not 0 <= k <= n:
            raise CodecError(f"subsets of {k} of {n} places: there are none")
        self.n, self.k = n, k
        self._count = comb(n, k)
        self.nbytes = ((self._count - 1).bit_length() + 7) // 8
        self._bitmap = 0 < self.nbytes == (n + 7) // 8

    def encode(self, taken: Bools) -> bytes:
        """The bytes of a subset.

        Args:
            taken: bool (n,), k of them true.

        Raises:
            CodecError: it is not that.
        """
        if taken.shape != (self.n,) or taken.dtype != np.bool_ or np.count_nonzero(taken) != self.k:
            raise CodecError(f"a subset is {self.k} of {self.n} places, got {taken.dtype} {taken.shape}")
        if self._bitmap:
            return np.packbits(taken, bitorder="little").tobytes()
        return self._number(taken).to_bytes(self.nbytes, "little")

    def decode(self, data: bytes | memoryview) -> Bools:
        """The subset of some bytes, bool (n,).

        Raises:
            CodecError: no subset has these bytes.
        """
        if len(data) != self.nbytes:
            raise CodecError(
                f"a subset of {self.k} of {self.n} places has {self.nbytes} bytes, not {len(data)}"
            )
        if self._bitmap:
            bits = np.unpackbits(np.frombuffer(data, np.uint8), bitorder="little")
            if bits[self.n :].any() or np.count_nonzero(bits) != self.k:
                raise CodecError(f"the bitmap does not name {self.k} of {self.n} places")
            return bits[: self.n].astype(np.bool_)
        number = int.from_bytes(data, "little")
        if number >= self._count:
            raise CodecError(f"there are {self._count} subsets of {self.k} of {self.n}, not {number}")
        return self._subset(number)

    # Places from the last down; `below` is how many subsets there are that leave this place out and take
    # all that are left from the places before it.

    def _number(self, taken: Bools) -> int:
        number, left, below = 0, self.k, comb(self.n - 1, self.k)
        for place in range(self.n - 1, 0, -1):
            if taken[place]:
                number += below
                below = below * left // place
                left -= 1
            else:
                below = below * (place - left) // place
        return number

    def _subset(self, number: int) -> Bools:
        taken = np.zeros(self.n, np.bool_)
        left, below = self.k, comb(self.n - 1, self.k)
        for place in range(self.n - 1, 0, -1):
            if number >= below:
                taken[place] = True
                number -= below
                below = below * left // place
                left -= 1
            else:
                below = below * (place - left) // place
        taken[0] = left == 1
        return taken
