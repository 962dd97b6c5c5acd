"""One device's connection to the cloud: heartbeats, cuts, and the way back up.

Modelled after what libzmq does with the edge's settings (`edge/link.py`): a heartbeat every `heartbeat_s`;
the connection is given up when three intervals pass without anything from the cloud; a new attempt after
`reconnect_s` and up to as much again; greeting and READY cross the link, then hello and welcome. A message
under way on a connection that ended is lost, the capacity it was to use is not given back; a cut also
empties the queues, as the pacer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from splitedge.edge.settings import EdgeSettings
from splitedge.sim.link import Link
from splitedge.sim.sizes import BEAT, BEAT_BACK, GREETING

_DEFAULT = EdgeSettings()
HEARTBEAT_S = _DEFAULT.heartbeat_s
#: libzmq waits `reconnect_s` and a random part of as much again: the mean of that.
RECONNECT_S = 1.5 * _DEFAULT.reconnect_s
HANDSHAKE_S = 2.0

Later = Callable[[float, Callable[[float, Any], None], Any], None]
Told = Callable[[float, bool, str], None]


class Connection:
    """Up at second 0; tells of every change.

    Args:
        up, down: the link's two directions.
        hello: bytes of hello and welcome.
        cuts: (begin, end) seconds in which there is no link.
        later: schedules a call.
        told: called with each change and why.

    Attributes:
        number: of the connection; what was sent on an earlier one is lost.
        is_up: whether there is a session with the cloud.
    """

    def __init__(
        self,
        up: Link,
        down: Link,
        hello: tuple[int, int],
        cuts: tuple[tuple[float, float], ...],
        later: Later,
        told: Told,
    ) -> None:
        self.number = 1
        self.is_up = True
        self._up, self._down = up, down
        self._hello, self._welcome = hello
        self._cuts = cuts
        self._later, self._told = later, told
        self._heard_at = 0.0
        self._asked_at = math.inf  # the first heartbeat since something was heard
        self._attempt = 0
        later(HEARTBEAT_S, self._beat, 1)
        for begin, _ in cuts:
            later(begin, self._cut, None)

    def heard(self, now: float) -> None:
        """Something came from the cloud on this connection."""
        self._heard_at = now
        self._asked_at = math.inf

    def up(self, now: float, nbytes: int, then: Callable[[float, Any], None], what: Any) -> None:
        """Send bytes to the cloud; `then(second, what)` when the last has arrived, if ever."""
        self._over(self._up, now, nbytes, then, what)

    def down(self, now: float, nbytes: int, then: Callable[[float, Any], None], what: Any) -> None:
        """Send bytes to the device."""
        self._over(self._down, now, nbytes, then, what)

    def _over(
        self, link: Link, now: float, nbytes: int, then: Callable[[float, Any], None], what: Any
    ) -> None:
        arrives = link.send(now, nbytes)
        if arrives < math.inf:
            self._later(arrives, then, what)

    # Heartbeats -----------------------------------------------------------------------------------

    def _beat(self, now: float, number: int) -> None:
        if number != self.number or not self.is_up:
            return
        if now - self._asked_at >= 3.0 * HEARTBEAT_S - 1e-9:
            self._lose(now, f"nothing came from the cloud for {now - self._heard_at:.1f} s")
            return
        if self._asked_at == math.inf:
            self._asked_at = now
        self.up(now, BEAT, self._beat_at_cloud, number)
        self._later(now + HEARTBEAT_S, self._beat, number)

    def _beat_at_cloud(self, now: float, number: int) -> None:
        if number == self.number:
            self.down(now, BEAT_BACK, self._beat_back, number)

    def _beat_back(self, now: float, number: int) -> None:
        if number == self.number:
            self.heard(now)

    # Down and up again ----------------------------------------------------------------------------

    def _is_cut(self, now: float) -> bool:
        return any(begin <= now < end for begin, end in self._cuts)

    def _cut(self, now: float, _: None) -> None:
        self._up.clear(now)
        self._down.clear(now)
        if self.is_up:
            self._lose(now, "the connection was reset")
        else:
            self.number += 1  # an attempt under way fails with it
            self._later(now + RECONNECT_S, self._connect, self.number)

    def _lose(self, now: float, why: str) -> None:
        self.number += 1
        self.is_up = False
        self._later(now + RECONNECT_S, self._connect, self.number)
        self._told(now, False, why)

    def _connect(self, now: float, number: int) -> None:
        if number != self.number:
            return
        self.number += 1
        if self._is_cut(now):
            self._later(now + RECONNECT_S, self._connect, self.number)
            return
        self._later(now + HANDSHAKE_S, self._give_up, self.number)
        self.up(now, GREETING, self._greeted, self.number)

    def _give_up(self, now: float, number: int) -> None:
        if number == self.number and not self.is_up:
            self._later(now, self._connect, number)

    def _greeted(self, now: float, number: int) -> None:
        if number == self.number:
            self.down(now, GREETING, self._say_hello, number)

    def _say_hello(self, now: float, number: int) -> None:
        if number == self.number:
            self.up(now, self._hello, self._hello_at_cloud, number)

    def _hello_at_cloud(self, now: float, number: int) -> None:
        if number == self.number:
            self.down(now, self._welcome, self._welcomed, number)

    def _welcomed(self, now: float, number: int) -> None:
        if number != self.number:
            return
        self.is_up = True
        self.heard(now)
        self._later(now + HEARTBEAT_S, self._beat, number)
        self._told(now, True, "connected")
