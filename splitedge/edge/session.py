"""The edge's side of a session: the greeting, the numbers of the lanes, what is on its way. No I/O."""

from __future__ import annotations

import os
from collections.abc import Iterable

from splitedge.errors import LinkError
from splitedge.wire import Hello, Lane, Welcome


class Session:
    """Who we are to the cloud, and which lanes it gave us.

    The session's 8 random bytes last for the whole run, over reconnects: with them the cloud recognises
    a request that it has seen. The cloud's epoch tells one of its lifetimes from the next.

    Args:
        lanes: all that this edge may send on.
    """

    def __init__(self, lanes: Iterable[Lane]) -> None:
        self._lanes = tuple(dict.fromkeys(lanes))
        self._numbers: dict[Lane, int] = {}
        self.id = os.urandom(8)
        self.epoch = b""
        self.max_message = 0

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The lanes asked for, each once."""
        return self._lanes

    def hello(self) -> Hello:
        """What to say first on a connection."""
        return Hello(self.id, self._lanes)

    def lost(self) -> None:
        """The connection is gone; lane numbers hold for one connection only."""
        self._numbers = {}
        self.max_message = 0

    def welcome(self, message: Welcome) -> bool:
        """Take the cloud's answer; returns whether it is another lifetime of the cloud than before.

        Raises:
            LinkError: it does not serve a lane, or its answer does not fit the question.
        """
        self.lost()
        if len(message.lanes) != len(self._lanes):
            raise LinkError(
                f"the cloud answered for {len(message.lanes)} lanes, {len(self._lanes)} were asked for; "
                "install the same splitedge on both sides"
            )
        refused = [lane for lane, n in zip(self._lanes, message.lanes, strict=True) if n < 0]
        if refused:
            raise LinkError(_refusal(refused, message.reason))
        changed = message.epoch != self.epoch
        self.epoch = message.epoch
        self._numbers = dict(zip(self._lanes, message.lanes, strict=True))
        self.max_message = message.max_message
        return changed

    def number(self, lane: Lane) -> int | None:
        """The lane's number on this connection; None where there is no welcome yet."""
        return self._numbers.get(lane)


def _refusal(lanes: list[Lane], reason: str) -> str:
    lane = lanes[0]
    where = f"cut '{lane.cut}'" if lane.cut else "the model's input"
    more = f" and {len(lanes) - 1} more" if len(lanes) > 1 else ""
    return (
        f"the cloud does not serve bundle {lane.bundle[:12]}, {where}, codec {lane.codec}{more}"
        f"{': ' + reason if reason else ''}; serve the same bundle there"
    )


class Unanswered:
    """Bytes handed to the link and not yet known to have arrived, oldest first.

    A connection delivers in order, so an answer to one message says that all before it arrived, also
    those whose request has ended meanwhile.

    Args:
        budget: bytes that may be unanswered.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        self._sent: dict[tuple[int, int], int] = {}
        self.nbytes = 0

    def fits(self, nbytes: int) -> bool:
        """Whether so many bytes more are within the budget. One message always fits an empty link."""
        return not self._sent or self.nbytes + nbytes <= self._budget

    def sent(self, key: tuple[int, int], nbytes: int) -> None:
        """A message was handed over; `key` (request, attempt) is new each time."""
        self._sent[key] = nbytes
        self.nbytes += nbytes

    def arrived(self, key: tuple[int, int]) -> None:
        """The message `key` was answered."""
        if key not in self._sent:
            return
        for old in list(self._before(key)):
            self.nbytes -= self._sent.pop(old)

    def _before(self, key: tuple[int, int]) -> Iterable[tuple[int, int]]:
        for old in self._sent:
            yield old
            if old == key:
                return

    def clear(self) -> None:
        """The connection is gone, and with it all that was under way."""
        self._sent.clear()
        self.nbytes = 0
