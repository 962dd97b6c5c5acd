"""Messages that ZeroMQ would not take yet, within a byte budget.

ZeroMQ's own queue to an edge is short, so that its memory stays within the edge's budget; and it counts a
message as gone only when half of the queue was read, so that even an edge that reads may find it full.
What it refuses waits here, in order, and is offered again.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

Frames = list[bytes | memoryview]
#: Gives a message to the socket: True where it took it, False where the queue is full.
Offer = Callable[[bytes, Frames], bool]


class Outbox:
    """What waits to be sent, by connection.

    Args:
        offer: gives one message to the socket; raises OSError where the edge is gone.
        peer_bytes: bytes that may wait for one edge.
        total_bytes: bytes that may wait in all.
        lost: called with a number of messages that will never be sent.
    """

    def __init__(self, offer: Offer, peer_bytes: int, total_bytes: int, lost: Callable[[int], None]) -> None:
        self._offer = offer
        self._peer_bytes = peer_bytes
        self._total_bytes = total_bytes
        self._lost = lost
        self._waiting: dict[bytes, deque[tuple[Frames, int]]] = {}
        self._bytes: dict[bytes, int] = {}
        self._total = 0

    def __bool__(self) -> bool:
        return bool(self._waiting)

    @property
    def nbytes(self) -> int:
        """Bytes waiting."""
        return self._total

    def send(self, peer: bytes, frames: Frames) -> None:
        """Send a message now or later; one over the budget is lost, and so is one to an edge that is gone."""
        if peer not in self._waiting:
            try:
                if self._offer(peer, frames):
                    return
            except OSError:
                self._lost(1)
                return
        size = sum(memoryview(frame).nbytes for frame in frames)
        held = self._bytes.get(peer, 0)
        if held + size > self._peer_bytes or self._total + size > self._total_bytes:
            self._lost(1)
            return
        self._waiting.setdefault(peer, deque()).append((frames, size))
        self._bytes[peer] = held + size
        self._total += size

    def flush(self) -> None:
        """Offer what waits again."""
        for peer in list(self._waiting):
            queue = self._waiting[peer]
            try:
                while queue and self._offer(peer, queue[0][0]):
                    size = queue.popleft()[1]
                    self._bytes[peer] -= size
                    self._total -= size
            except OSError:
                self._lost(len(queue))
                self._total -= self._bytes[peer]
                queue.clear()
            if not queue:
                del self._waiting[peer], self._bytes[peer]
