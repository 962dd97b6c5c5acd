"""One direction of a channel: a FIFO queue before a replayed capacity, then a propagation delay.

Off unless asked for: outages laid over the capacity (`outages.py`), packets that are lost and sent again
(`loss.py`), and a medium that both directions share (`medium.py`).

Pure arithmetic: no clock, no socket. The user-space pacer (`pacer.py`) asks this model when each piece
of a real byte stream is to arrive, and a simulator asks the very same object under its virtual clock;
that is why the two cannot drift apart.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from splitedge.errors import TraceError
from splitedge.sim.curves import Capacity, Series
from splitedge.sim.loss import Loss, Packets
from splitedge.sim.medium import TURN_S, Booked, Medium
from splitedge.sim.outages import Outages
from splitedge.sim.traces import Trace

Direction = Literal["up", "down"]

#: Queue of a cellular base station in bytes: deep, as measurements of bufferbloat keep finding.
BUFFER_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Channel:
    """What one direction of a channel is made of.

    Attributes:
        capacity: bits per second over time, or delivery opportunities.
        rtt_s: round-trip time without queueing, seconds: a number or a series; half goes to each way.
        buffer_bytes: room in the queue; what does not fit waits at the sender.
        start_s: where in the trace the replay begins.
        loop: begin again at the end of the trace; otherwise nothing is carried after it.
        loss: how packets are lost and sent again; None loses none.
        outages: (begin, end) seconds of the replay in which bytes stall.
    """

    capacity: Capacity
    rtt_s: float | Series = 0.0
    buffer_bytes: int = BUFFER_BYTES
    start_s: float = 0.0
    loop: bool = True
    loss: Loss | None = None
    outages: tuple[tuple[float, float], ...] = ()

    def __post_init__(self) -> None:
        if self.buffer_bytes < 1:
            raise TraceError(f"buffer_bytes is {self.buffer_bytes}; a queue needs room for at least 1 byte")
        if not (self.start_s >= 0.0 and math.isfinite(self.start_s)):
            raise TraceError(f"start_s is {self.start_s}; give seconds into the trace, 0 or more")
        if not self.loop and self.start_s >= self.capacity.period_s:
            raise TraceError(
                f"start_s is {self.start_s:g} and the trace ends at {self.capacity.period_s:g} s; "
                "start earlier or let it loop"
            )
        if isinstance(self.rtt_s, float | int) and not (self.rtt_s >= 0.0 and math.isfinite(self.rtt_s)):
            raise TraceError(f"rtt_s is {self.rtt_s}; give seconds, 0 or more")
        Outages(self.outages, lambda t: t)  # refuses what is no interval

    @classmethod
    def of(
        cls,
        trace: Trace,
        direction: Direction,
        *,
        rtt_s: float | None = None,
        buffer_bytes: int = BUFFER_BYTES,
        start_s: float = 0.0,
        loop: bool = True,
        loss: Loss | None = None,
        outages: tuple[tuple[float, float], ...] = (),
    ) -> Channel:
        """One direction of a trace. `rtt_s=None` takes the trace's own RTT, or 0 where it has none.

        Raises:
            TraceError: the trace has no capacity in that direction, or a number is out of range.
        """
        rtt: float | Series = rtt_s if rtt_s is not None else (trace.rtt or 0.0)
        return cls(trace.capacity(direction), rtt, buffer_bytes, start_s, loop, loss, outages)

    @property
    def ends_s(self) -> float:
        """Seconds after which nothing is carried any more; inf for a channel that loops."""
        return math.inf if self.loop else self.capacity.period_s - self.start_s


class Link:
    """The queue of one direction, as a function from sendings to arrivals.

    Times are seconds since the replay began, and must not fall from one `send` to the next (with a
    shared medium, from one `send` of either direction to the next).

    Args:
        channel: what the direction is made of.
        medium: shared with the other direction, where only one can send at a time.
    """

    def __init__(self, channel: Channel, medium: Medium | None = None) -> None:
        self.channel = channel
        self._served = 0.0  # bits of capacity used up or let pass by all bytes so far
        self._last_arrival = 0.0
        self._bits_by, self._at = channel.capacity.bits_by, channel.capacity.time_of
        self._start_s, self._ends_s = channel.start_s, channel.ends_s
        self._most = math.inf if channel.loop else channel.capacity.bits_per_period
        rtt = channel.rtt_s
        self._rtt_at = rtt.at if isinstance(rtt, Series) else None
        self._half_s = 0.0 if isinstance(rtt, Series) else 0.5 * rtt
        self._outages = Outages(channel.outages, self._of_curve) if channel.outages else None
        self._packets = Packets(channel.loss) if channel.loss and channel.loss.rate > 0.0 else None
        self._medium = medium
        self._booked = Booked()  # kept for a shared medium only

    def send(self, now: float, nbytes: int, after: int = 0) -> float:
        """Queue `nbytes` and return when the last of them arrives; inf if the channel ends before.

        The queue is work-conserving and first in, first out: the bytes take the first capacity after
        `now` and after what is queued before them. The finite buffer does not change that moment, it
        only changes when a sender may hand its bytes over: see `room_at`.

        Args:
            now: seconds since the replay began.
            nbytes: bytes handed over.
            after: bytes of the same burst that are handed over right behind these; they matter to the
                recovery of lost packets only.
        """
        offered = self._offered(now)
        start = self._served if self._served > offered else offered
        medium = self._medium if nbytes else None
        if medium is not None and medium.user is not self:
            start = max(start, self._offered(medium.free_at + TURN_S))
        again, filled = self._losses(start, nbytes, after) if self._packets is not None else (0.0, 0.0)
        self._served = served = start + 8 * nbytes + again
        left = self._time_of(served)
        if left < now:
            left = now
        if medium is not None:
            self._booked.add(start, served, offered)
        if left == math.inf:
            return math.inf
        if medium is not None:
            medium.free_at, medium.user = left, self
        # A falling RTT must not let later bytes overtake: a radio link delivers in order.
        arrives = left + self._one_way(left)
        if arrives < filled:
            arrives = filled
        if arrives > self._last_arrival:
            self._last_arrival = arrives
        return self._last_arrival

    @property
    def lost_packets(self) -> int:
        """Packets lost and sent again so far."""
        return self._packets.lost if self._packets is not None else 0

    def backlog(self, now: float) -> float:
        """Bytes that still wait in the queue, retransmissions included."""
        if self._medium is not None:
            return self._booked.waiting(self._offered(now)) / 8
        return max(0.0, (self._served - self._offered(now)) / 8)

    def room_at(self, now: float, nbytes: int) -> float:
        """The first time, `now` or later, when the buffer has room for `nbytes` more.

        More bytes than the whole buffer find room when it is empty.
        """
        spare = 8 * max(0, self.channel.buffer_bytes - nbytes)
        mark = self._served - spare if self._medium is None else self._booked.mark_of(spare)
        return max(now, self._time_of(mark))

    def clear(self, now: float) -> None:
        """Forget what is queued (its connection is gone); capacity already used stays used."""
        self._served = min(self._served, self._offered(now))
        self._last_arrival = min(self._last_arrival, now)
        self._booked.clear()
        if self._packets is not None:
            self._packets.forget()
        if self._medium is not None:
            self._medium.free_at = min(self._medium.free_at, now)

    def rate_at(self, now: float) -> float:
        """Capacity in bits per second."""
        channel = self.channel
        if now >= channel.ends_s or (self._outages is not None and self._outages.at(now)):
            return 0.0
        return channel.capacity.rate_at(now + channel.start_s)

    def _losses(self, start: float, nbytes: int, after: int) -> tuple[float, float]:
        """Bits sent again, and when the last gap that losses leave is filled (0 for none)."""
        assert self._packets is not None
        again, filled = 0.0, 0.0
        for part in self._packets.send(nbytes, after):
            again += 8 * part.times * part.size
            left = self._time_of(start + 8 * part.end + again)
            if left == math.inf:
                continue
            one_way = self._one_way(left)
            wait = self._packets.loss.recovery_s(part.times, part.followed, 2 * one_way)
            filled = max(filled, left + one_way + wait)
        return again, filled

    def _offered(self, now: float) -> float:
        if self._outages is not None:
            return self._outages.carried_by(now)
        return self._bits_by((now if now < self._ends_s else self._ends_s) + self._start_s)

    def _of_curve(self, now: float) -> float:
        return self._bits_by((now if now < self._ends_s else self._ends_s) + self._start_s)

    def _time_of(self, bits: float) -> float:
        if self._outages is not None:
            bits = self._outages.bits_offered(bits)
        return self._at(bits) - self._start_s if bits <= self._most else math.inf

    def _one_way(self, now: float) -> float:
        return self._half_s if self._rtt_at is None else 0.5 * self._rtt_at(now + self._start_s)
