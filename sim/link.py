"""One direction of a channel: a FIFO queue before a replayed capacity, then a propagation delay.

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
    """

    capacity: Capacity
    rtt_s: float | Series = 0.0
    buffer_bytes: int = BUFFER_BYTES
    start_s: float = 0.0
    loop: bool = True

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
    ) -> Channel:
        """One direction of a trace. `rtt_s=None` takes the trace's own RTT, or 0 where it has none.

        Raises:
            TraceError: the trace has no capacity in that direction, or a number is out of range.
        """
        rtt: float | Series = rtt_s if rtt_s is not None else (trace.rtt or 0.0)
        return cls(trace.capacity(direction), rtt, buffer_bytes, start_s, loop)

    @property
    def ends_s(self) -> float:
        """Seconds after which nothing is carried any more; inf for a channel that loops."""
        return math.inf if self.loop else self.capacity.period_s - self.start_s


class Link:
    """The state of one direction: how far into the capacity the bytes sent so far have come.

    Times are seconds since the replay began, and must not fall from one `send` to the next.
    """

    def __init__(self, channel: Channel) -> None:
        self.channel = channel
        self._served = 0.0  # bits of capacity used up or let pass by all bytes so far
        self._last_arrival = 0.0

    def send(self, now: float, nbytes: int) -> float:
        """Queue `nbytes` and return when the last of them arrives; inf if the channel ends before.

        The queue is work-conserving and first in, first out: the bytes take the first capacity after
        `now` and after what is queued before them. The finite buffer does not change that moment, it
        only changes when a sender may hand its bytes over: see `room_at`.
        """
        start = max(self._served, self._offered(now))
        self._served = start + 8 * nbytes
        left = max(now, self._time_of(self._served))
        if left == math.inf:
            return math.inf
        # A falling RTT must not let later bytes overtake: a radio link delivers in order.
        self._last_arrival = max(self._last_arrival, left + self._one_way(left))
        return self._last_arrival

    def backlog(self, now: float) -> float:
        """Bytes that still wait in the queue."""
        return max(0.0, (self._served - self._offered(now)) / 8)

    def room_at(self, now: float, nbytes: int) -> float:
        """The first time, `now` or later, when the buffer has room for `nbytes` more.

        More bytes than the whole buffer find room when it is empty.
        """
        spare = max(0, self.channel.buffer_bytes - nbytes)
        return max(now, self._time_of(self._served - 8 * spare))

    def clear(self, now: float) -> None:
        """Forget what is queued (its connection is gone); capacity already used stays used."""
        self._served = min(self._served, self._offered(now))
        self._last_arrival = min(self._last_arrival, now)

    def rate_at(self, now: float) -> float:
        """Capacity in bits per second."""
        channel = self.channel
        return 0.0 if now >= channel.ends_s else channel.capacity.rate_at(now + channel.start_s)

    def _offered(self, now: float) -> float:
        return self.channel.capacity.bits_by(min(now, self.channel.ends_s) + self.channel.start_s)

    def _time_of(self, bits: float) -> float:
        channel = self.channel
        if not channel.loop and bits > channel.capacity.bits_per_period:
            return math.inf
        return channel.capacity.time_of(bits) - channel.start_s

    def _one_way(self, now: float) -> float:
        rtt = self.channel.rtt_s
        return 0.5 * (rtt.at(now + self.channel.start_s) if isinstance(rtt, Series) else rtt)
