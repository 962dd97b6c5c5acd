"""One device's connection to the cloud: heartbeats, cuts, and the way back up.

Modelled after what libzmq does with the settings of edge and cloud (`edge/link.py`, `cloud/server.py`).
Each side sends a heartbeat every `heartbeat_s`, and gives the connection up when three intervals pass
without anything from the other. The cloud's heartbeats also say how long the device may wait for what
follows (TTL). When the cloud gives up, the device hears of it behind what was sent before.

A new attempt begins after `reconnect_s`. It sends greetings in three parts, each at the other's part before
it, then CURVE's handshake, then hello and welcome: four and a half round trips. One that takes longer than
`HANDSHAKE_S` is given up, and the next begins after `reconnect_s`. TCP's own handshake takes no time, as
with the pacer.

A message under way on a connection that ended is lost, the capacity it was to use is not given back; a cut
also empties the queues, as the pacer does.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from splitedge.cloud.settings import ServerSettings
from splitedge.edge.settings import EdgeSettings
from splitedge.sim.link import Link
from splitedge.sim.sizes import BEAT, BEAT_BACK, GREETING_PARTS, HANDSHAKE

_DEFAULT = EdgeSettings()
HEARTBEAT_S = _DEFAULT.heartbeat_s
CLOUD_HEARTBEAT_S = ServerSettings().heartbeat_s
#: Intervals without a sign of life after which a connection is given up.
SILENT = 3.0
#: With a maximum set, libzmq adds no random part; it doubles only while no TCP connection comes about.
RECONNECT_S = _DEFAULT.reconnect_s
HELLO_S = _DEFAULT.hello_s
HANDSHAKE_S = 2.0
_EPS_S = 1e-9

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
        self._shaken = True  # the handshake is over
        self._heard_at = 0.0
        self._asked_at = math.inf  # the first heartbeat since something was heard
        self._told_at = -math.inf  # the cloud's last heartbeat, where nothing was heard since
        self._cloud_asked_at = math.inf
        self._cloud_left = False  # the cloud has closed its end
        later(HEARTBEAT_S, self._beat, 1)
        later(CLOUD_HEARTBEAT_S, self._cloud_beats, 1)
        for begin, _ in cuts:
            later(begin, self._cut, None)

    def heard(self, now: float) -> None:
        """Something came from the cloud on this connection."""
        self._heard_at = now
        self._asked_at = math.inf
        self._told_at = -math.inf

    def reached(self, number: int) -> bool:
        """Whether a message on connection `number`, at the cloud now, finds it open: a sign of life."""
        if number != self.number or self._cloud_left:
            return False
        self._cloud_asked_at = math.inf
        return True

    def returns(self, number: int) -> bool:
        """Whether the cloud can still send on connection `number`."""
        return number == self.number and not self._cloud_left

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
        if number != self.number:
            return
        if now - self._asked_at >= SILENT * HEARTBEAT_S - _EPS_S:
            self._lose_silent(now)
            return
        if self._asked_at == math.inf:
            self._asked_at = now
        self.up(now, BEAT, self._beat_at_cloud, number)
        self._later(now + HEARTBEAT_S, self._beat, number)

    def _beat_at_cloud(self, now: float, number: int) -> None:
        if self.reached(number):
            self.down(now, BEAT_BACK, self._beat_back, number)

    def _beat_back(self, now: float, number: int) -> None:
        if number == self.number:
            self.heard(now)

    def _cloud_beats(self, now: float, number: int) -> None:
        if not self.returns(number):
            return
        if now - self._cloud_asked_at >= SILENT * CLOUD_HEARTBEAT_S - _EPS_S:
            self._cloud_left = True
            self.down(now, 0, self._closed, number)
            return
        if self._cloud_asked_at == math.inf:
            self._cloud_asked_at = now
        self.down(now, BEAT, self._asked, number)
        self._later(now + CLOUD_HEARTBEAT_S, self._cloud_beats, number)

    def _asked(self, now: float, number: int) -> None:
        if number != self.number:
            return
        self.heard(now)
        self._told_at = now
        self._later(now + SILENT * CLOUD_HEARTBEAT_S, self._outlived, (number, now))
        self.up(now, BEAT_BACK, self._answered, number)

    def _answered(self, now: float, number: int) -> None:
        self.reached(number)

    def _outlived(self, now: float, what: tuple[int, float]) -> None:
        """The time that the cloud's heartbeat gave is over."""
        number, told_at = what
        if number == self.number and told_at == self._told_at:
            self._lose_silent(now)

    def _closed(self, now: float, number: int) -> None:
        if number == self.number:
            self._lose(now, "the cloud closed the connection: it heard nothing from here")

    def _lose_silent(self, now: float) -> None:
        self._lose(now, f"nothing came from the cloud for {now - self._heard_at:.1f} s")

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
        self._later(now + RECONNECT_S, self._connect, self.number)
        if self.is_up:
            self.is_up = False
            self._told(now, False, why)

    def _connect(self, now: float, number: int) -> None:
        if number != self.number:
            return
        self.number += 1
        if self._is_cut(now):
            self._later(now + RECONNECT_S, self._connect, self.number)
            return
        self._shaken = self._cloud_left = False
        self._asked_at = self._cloud_asked_at = math.inf
        self._later(now + HANDSHAKE_S, self._give_up, self.number)
        self.up(now, GREETING_PARTS[0], self._greets_cloud, (self.number, 0))
        self.down(now, GREETING_PARTS[0], self._greets_device, (self.number, 0))

    def _give_up(self, now: float, number: int) -> None:
        if number == self.number and not self._shaken:
            self.number += 1
            self._later(now + RECONNECT_S, self._connect, self.number)

    def _greets_cloud(self, now: float, what: tuple[int, int]) -> None:
        """A part of the device's greeting is there: the cloud's next one may go."""
        number, part = what
        if self.returns(number) and part < 2:
            self.down(now, GREETING_PARTS[part + 1], self._greets_device, (number, part + 1))

    def _greets_device(self, now: float, what: tuple[int, int]) -> None:
        number, part = what
        if number != self.number:
            return
        if part < 2:
            self.up(now, GREETING_PARTS[part + 1], self._greets_cloud, (number, part + 1))
        else:
            self.up(now, HANDSHAKE[0], self._shakes_cloud, (number, 0))

    def _shakes_cloud(self, now: float, what: tuple[int, int]) -> None:
        number, step = what
        if not self.returns(number):
            return
        self.down(now, HANDSHAKE[step + 1], self._shakes_device, (number, step + 1))
        if step == 2:
            self._later(now + CLOUD_HEARTBEAT_S, self._cloud_beats, number)

    def _shakes_device(self, now: float, what: tuple[int, int]) -> None:
        number, step = what
        if number != self.number:
            return
        if step == 1:
            self.up(now, HANDSHAKE[2], self._shakes_cloud, (number, 2))
            return
        self._shaken = True
        self.heard(now)
        self._later(now + HEARTBEAT_S, self._beat, number)
        self._say_hello(now, number)

    def _say_hello(self, now: float, number: int) -> None:
        """Now, and again until there is a welcome."""
        if number == self.number and not self.is_up:
            self.up(now, self._hello, self._hello_at_cloud, number)
            self._later(now + HELLO_S, self._say_hello, number)

    def _hello_at_cloud(self, now: float, number: int) -> None:
        if self.reached(number):
            self.down(now, self._welcome, self._welcomed, number)

    def _welcomed(self, now: float, number: int) -> None:
        if number != self.number:
            return
        self.heard(now)
        if not self.is_up:
            self.is_up = True
            self._told(now, True, "connected")
