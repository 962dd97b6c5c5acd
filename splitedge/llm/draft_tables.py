"""What a device drew a draft from, exactly, in few bytes: the q of rejection sampling.

Any q is a right one, as long as the draft was drawn from it and the cloud judges by it. So the device keeps
the most likely tokens, rounds their probabilities to whole weights first, and draws from those: what it sends
is no approximation of what it did. A draft that was drawn first and described by rounded numbers afterwards
would be judged by another law than its own, and the text would no longer have the cloud's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitedge.errors import WireError
from splitedge.llm.sampling import Floats, Sampling, log_probabilities, uniform

#: Which of a position's random numbers a draft is drawn by; `gumbel` has 0.
DRAFT = 1
#: Bytes of a packed table, and of each entry.
HEAD, ENTRY = 2, 6
MAX_TABLE = 4096
_MOST = 65535


@dataclass(frozen=True, slots=True, eq=False)
class DraftTable:
    """A law over few tokens: the probability of `ids[i]` is `weights[i] / weights.sum()`, of all others 0.

    Attributes:
        ids: int64 (entries,), rising.
        weights: int64 (entries,), 1 to 65535.
    """

    ids: npt.NDArray[np.int64]
    weights: npt.NDArray[np.int64]

    @property
    def probabilities(self) -> Floats:
        """Of `ids`, float64 (entries,)."""
        found: Floats = self.weights / float(self.weights.sum())
        return found

    def find(self, token: int) -> int:
        """Where a token stands in `ids`; -1 where it does not."""
        at = int(np.searchsorted(self.ids, token))
        return at if at < len(self.ids) and self.ids[at] == token else -1

    def draw(self, seed: int, position: int) -> int:
        """The token that the device drafts at a position."""
        reached = np.cumsum(self.weights)
        at = uniform(seed, position, DRAFT) * float(reached[-1])
        return int(self.ids[np.searchsorted(reached, at, side="right")])

    def pack(self) -> bytes:
        """Entries (uint16), ids (uint32), weights (uint16), little-endian: 2 + 6 bytes an entry."""
        head = np.array([len(self.ids)], "<u2").tobytes()
        return head + self.ids.astype("<u4").tobytes() + self.weights.astype("<u2").tobytes()


def table_of(logits: npt.NDArray[np.floating], sampling: Sampling, most: int) -> DraftTable:
    """The law that a draft is drawn from: the device's after temperature, top-k and top-p, of which the
    `most` likeliest tokens are kept and rounded to whole weights, 65535 for the likeliest; what rounds to 0
    is left out.

    Args:
        logits: (vocabulary,).
        sampling: how tokens are drawn; not greedy.
        most: entries at most, 1 to `MAX_TABLE`.

    Raises:
        ConfigError: no logit is finite.
    """
    p = np.exp(log_probabilities(logits, sampling))
    kept = np.argpartition(-p, most - 1)[:most] if most < len(p) else np.arange(len(p))
    weights = np.rint(p[kept] / p.max() * _MOST).astype(np.int64)
    ids = kept[weights > 0].astype(np.int64)
    order = np.argsort(ids)
    return DraftTable(ids[order], weights[weights > 0][order])


def read_tables(data: bytes | memoryview, drafts: Sequence[int], vocabulary: int) -> tuple[DraftTable, ...]:
    """The tables of these drafts, as `DraftTable.pack` wrote them one behind another.

    Raises:
        WireError: they are damaged, name tokens out of the vocabulary, or can not have given these drafts.
    """
    view, at = memoryview(data), 0
    found = []
    for i, draft in enumerate(drafts):
        if view.nbytes < at + HEAD:
            raise WireError(f"tables of {len(drafts)} drafts end before number {i}")
        count = int.from_bytes(view[at : at + HEAD], "little")
        stop = at + HEAD + count * ENTRY
        if not 1 <= count <= MAX_TABLE or view.nbytes < stop:
            raise WireError(
                f"draft {i}: a table has 1 to {MAX_TABLE} entries, this one says {count} and "
                f"{view.nbytes - at - HEAD} bytes follow"
            )
        ids = np.frombuffer(view, "<u4", count, at + HEAD).astype(np.int64)
        weights = np.frombuffer(view, "<u2", count, stop - 2 * count).astype(np.int64)
        if ids[-1] >= vocabulary or (np.diff(ids) < 1).any() or weights.min() < 1:
            raise WireError(f"draft {i}: a table has rising ids under {vocabulary}, and weights of 1 or more")
        table = DraftTable(ids, weights)
        if table.find(draft) < 0:
            raise WireError(f"draft {i}: token {draft} can not have been drawn from its table")
        found.append(table)
        at = stop
    if at != view.nbytes:
        raise WireError(f"{view.nbytes - at} bytes behind the tables of {len(drafts)} drafts")
    return tuple(found)
