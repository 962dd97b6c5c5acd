"""What waits for a model's compute thread, and in which batches it leaves: a state machine without I/O.

Lanes take turns, and within a lane the edges take turns, so that one edge that floods a lane delays
another by one of its own requests at most in each batch. A batch holds entries of one lane only. All
times are integer nanoseconds of the caller's clock.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict, deque
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Generic, TypeVar


@dataclass(slots=True, eq=False)
class Entry:
    """One request that waits.

    Attributes:
        lane: entries of equal lanes may share a batch.
        peer: whose turn it is; edges take turns.
        rows: rows of the request.
        arrived_ns: when it came.
        deadline_ns: when it is of no use any more; None for never.
        waiting: whether a batcher holds it. Set by the batcher.
    """

    lane: Hashable
    peer: Hashable
    rows: int
    arrived_ns: int
    deadline_ns: int | None
    waiting: bool = field(default=False, init=False)


E = TypeVar("E", bound=Entry)


class _LaneQueue(Generic[E]):
    """The waiting entries of one lane. Entries that left early stay in the deques, marked, until met."""

    def __init__(self) -> None:
        self.by_peer: OrderedDict[Hashable, deque[E]] = OrderedDict()
        self.by_age: deque[E] = deque()
        self.rows = 0
        self.count = 0

    def add(self, entry: E) -> None:
        queue = self.by_peer.get(entry.peer)
        if queue is None:
            queue = self.by_peer[entry.peer] = deque()
        queue.append(entry)
        self.by_age.append(entry)
        self.rows += entry.rows
        self.count += 1

    def left(self, entry: E) -> None:
        self.rows -= entry.rows
        self.count -= 1

    def clear(self) -> None:
        """Forget the entries that left."""
        self.by_peer.clear()
        self.by_age.clear()

    def oldest_ns(self) -> int:
        while not self.by_age[0].waiting:
            self.by_age.popleft()
        return self.by_age[0].arrived_ns

    def head(self) -> E | None:
        """The entry whose turn it is."""
        while self.by_peer:
            peer, queue = next(iter(self.by_peer.items()))
            while queue and not queue[0].waiting:
                queue.popleft()
            if queue:
                return queue[0]
            del self.by_peer[peer]
        return None

    def pop(self) -> E:
        """Take the head; the next edge's turn comes."""
        peer, queue = next(iter(self.by_peer.items()))
        entry = queue.popleft()
        if queue:
            self.by_peer.move_to_end(peer)
        else:
            del self.by_peer[peer]
        return entry


class Batcher(Generic[E]):
    """Orders and batches what waits for one model.

    Args:
        max_rows: rows of a batch; a single request with more rows runs alone.
        max_wait_ns: how long an entry may wait for company while the compute thread is free; 0 for not
            at all: whatever waits when the thread becomes free is the batch.
        batchable: False makes every batch one entry.
    """

    def __init__(self, max_rows: int, max_wait_ns: int = 0, batchable: bool = True) -> None:
        self._max_rows = max_rows
        self._max_wait = max_wait_ns if batchable else 0
        self._batchable = batchable
        self._lanes: OrderedDict[Hashable, _LaneQueue[E]] = OrderedDict()
        self._spare: _LaneQueue[E] | None = None  # an empty one, for the next lane in which something waits
        self._deadlines: list[tuple[int, int, E]] = []
        self._sequence = 0
        self._peers: dict[Hashable, int] = {}
        self._count = 0
        self._rows = 0

    def __len__(self) -> int:
        return self._count

    @property
    def rows(self) -> int:
        """Rows waiting."""
        return self._rows

    @property
    def peers(self) -> int:
        """Edges with something waiting."""
        return len(self._peers)

    def add(self, entry: E) -> None:
        """Queue an entry behind its edge's others."""
        entry.waiting = True
        lane = self._lanes.get(entry.lane)
        if lane is None:
            lane = self._lanes[entry.lane] = self._spare or _LaneQueue()
            self._spare = None
        lane.add(entry)
        self._peers[entry.peer] = self._peers.get(entry.peer, 0) + 1
        self._count += 1
        self._rows += entry.rows
        if entry.deadline_ns is not None:
            self._watch(entry, entry.deadline_ns)

    def extend(self, entry: E, deadline_ns: int | None) -> None:
        """Give a waiting entry a later deadline; an earlier one changes nothing."""
        if entry.deadline_ns is None or (deadline_ns is not None and deadline_ns <= entry.deadline_ns):
            return
        entry.deadline_ns = deadline_ns
        if entry.waiting and deadline_ns is not None:
            self._watch(entry, deadline_ns)

    def remove(self, entry: E) -> bool:
        """Drop an entry; False where it does not wait any more."""
        if not entry.waiting:
            return False
        self._left(entry)
        return True

    def expire(self, now_ns: int) -> list[E]:
        """Drop and return every entry whose deadline has passed."""
        expired: list[E] = []
        while self._deadlines and self._deadlines[0][0] <= now_ns:
            _, _, entry = heapq.heappop(self._deadlines)
            if entry.waiting and entry.deadline_ns is not None and entry.deadline_ns <= now_ns:
                self._left(entry)
                expired.append(entry)
        return expired

    def take(self, now_ns: int) -> list[E] | None:
        """The next batch, or None where nothing waits or company is still waited for.

        Entries whose deadline has passed are not taken; call `expire` first to get them.
        """
        for key in list(self._lanes):
            lane = self._lanes.get(key)
            if lane is None or not self._ready(lane, now_ns):
                continue
            batch = self._fill(lane, now_ns)
            if key in self._lanes:
                self._lanes.move_to_end(key)
            if batch:
                return batch
        return None

    def wake_at(self) -> int | None:
        """When `take` or `expire` should be called again; in the past where a batch is ready now."""
        times = [lane.oldest_ns() + self._max_wait for lane in self._lanes.values()]
        if any(lane.rows >= self._max_rows for lane in self._lanes.values()):
            times.append(0)
        deadline = self.next_deadline()
        if deadline is not None:
            times.append(deadline)
        return min(times, default=None)

    def next_deadline(self) -> int | None:
        """When `expire` should be called again."""
        while self._deadlines and not self._deadlines[0][2].waiting:
            heapq.heappop(self._deadlines)
        return self._deadlines[0][0] if self._deadlines else None

    def _ready(self, lane: _LaneQueue[E], now_ns: int) -> bool:
        if not self._max_wait or lane.rows >= self._max_rows:
            return True
        return now_ns - lane.oldest_ns() >= self._max_wait

    def _fill(self, lane: _LaneQueue[E], now_ns: int) -> list[E]:
        batch: list[E] = []
        rows = 0
        while (entry := lane.head()) is not None:
            if entry.deadline_ns is not None and entry.deadline_ns <= now_ns:
                break  # `expire` was not called for this instant; leave it to that
            if batch and (not self._batchable or rows + entry.rows > self._max_rows):
                break
            lane.pop()
            self._left(entry)
            batch.append(entry)
            rows += entry.rows
        return batch

    def _left(self, entry: E) -> None:
        entry.waiting = False
        lane = self._lanes[entry.lane]
        lane.left(entry)
        if not lane.count:
            del self._lanes[entry.lane]
            lane.clear()
            self._spare = lane
        left = self._peers[entry.peer] - 1
        if left:
            self._peers[entry.peer] = left
        else:
            del self._peers[entry.peer]
        self._count -= 1
        self._rows -= entry.rows

    def _watch(self, entry: E, deadline_ns: int) -> None:
        self._sequence += 1
        heapq.heappush(self._deadlines, (deadline_ns, self._sequence, entry))
        if len(self._deadlines) > 64 + 2 * self._count:  # entries that left would be kept alive by it
            self._deadlines = [item for item in self._deadlines if item[2].waiting]
            heapq.heapify(self._deadlines)
