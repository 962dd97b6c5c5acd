"""Lost packets as what a reliable transport makes of them: delay, and capacity used twice.

TCP (and so ZeroMQ) loses no byte. A packet that the radio loses is sent again, and everything behind it
waits until the gap is filled (head-of-line blocking). This model says by how much:

- *Which packets*: runs of delivered and of lost packets with geometric lengths, which is the two-state
  chain of Gilbert ("Capacity of a burst-noise channel", 1960) with every packet lost in its bad state.
  With the mean run of independent losses, 1 / (1 - rate), it is exactly Bernoulli loss.
- *How long, with company*: when at least three more packets of the same burst follow, their duplicate
  acknowledgements start a fast retransmit (RFC 5681, section 3.2): one round trip.
- *How long, at the tail*: otherwise the retransmission timer has to run out: one round trip and
  `rto_s`, 200 ms as Linux's least (RFC 6298 recommends a second). No tail-loss probe.
- *A retransmission that is lost too* (each independently, with the mean rate) waits for that timer, doubled
  each time up to `MAX_RTO_S` (RFC 6298, section 5).
- *Capacity*: each retransmission takes its packet's bytes again, booked directly behind the packet.

Left out: the congestion window that TCP halves after a loss, so a bulk transfer over a lossy link is
slower in truth than here; packets of later messages that could end a tail's wait early; and that other
connections over the same link need not wait for the gap of this one.
"""

from __future__ import annotations

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

from splitedge.errors import TraceError
from splitedge.sim.curves import PACKET_BYTES

#: A burst's packet is recovered fast when at least this many follow it (three duplicate acknowledgements).
FOLLOWERS = 3
#: No timer grows beyond this (Linux).
MAX_RTO_S = 120.0
MAX_RATE = 0.5


@dataclass(frozen=True, slots=True)
class Loss:
    """How one direction loses packets.

    Attributes:
        rate: share of packets lost, 0 to 0.5.
        burst: mean number of packets lost in a row, 1 or more; None for independent losses.
        rto_s: what the retransmission timer allows beyond a round trip, seconds.
        seed: of the random numbers: the same seed loses the same packets.
    """

    rate: float
    burst: float | None = None
    rto_s: float = 0.2
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0.0 <= self.rate <= MAX_RATE:
            raise TraceError(f"loss rate is {self.rate}; give a share of packets from 0 to {MAX_RATE}")
        if self.burst is not None and not 1.0 <= self.burst <= 1e6:
            raise TraceError(f"loss burst is {self.burst}; give a mean of 1 packet or more")
        if not (self.rto_s >= 0.0 and math.isfinite(self.rto_s)):
            raise TraceError(f"rto_s is {self.rto_s}; give seconds, 0 or more")

    def recovery_s(self, times: int, followed: bool, rtt_s: float) -> float:
        """Seconds that a packet lost `times` times arrives later than it would have."""
        timer = rtt_s + self.rto_s
        total, timer = (rtt_s, timer) if followed else (timer, 2.0 * timer)
        for _ in range(times - 1):
            total += min(timer, MAX_RTO_S)
            timer = min(2.0 * timer, MAX_RTO_S)
        return total


@dataclass(frozen=True, slots=True)
class LostPart:
    """Bytes of one lost packet in what is being sent.

    Attributes:
        end: bytes of this sending up to the end of the part.
        size: bytes of the part.
        times: how often it was lost.
        followed: whether enough packets come behind it for a fast retransmit.
    """

    end: int
    size: int
    times: int
    followed: bool


class Packets:
    """The packets of one direction in order, and which of them are lost."""

    def __init__(self, loss: Loss) -> None:
        self.loss = loss
        self.lost = 0  # packets lost so far, each counted as often as it was
        self._random = random.Random(loss.seed)
        self._mean_bad = loss.burst if loss.burst is not None else 1.0 / (1.0 - loss.rate)
        self._mean_good = self._mean_bad * (1.0 - loss.rate) / loss.rate if loss.rate > 0.0 else math.inf
        self._good = self._bad = 0
        self._room = 0  # bytes that still fit into the packet begun
        self._times = 0  # how often the packet begun is lost
        if self._random.random() < loss.rate:
            self._bad = self._run(self._mean_bad)
        else:
            self._good = self._run(self._mean_good)

    def send(self, nbytes: int, after: int) -> Iterator[LostPart]:
        """Divide `nbytes` into packets, of which `after` more bytes of the same burst follow at once.

        However a burst is divided into sendings, its packets and their losses are the same.
        """
        at = 0
        while at < nbytes:
            if self._room == 0:
                self._begin(nbytes - at)
            size = min(self._room, nbytes - at)
            at += size
            self._room -= size
            if self._times:
                behind = nbytes - at + after - self._room
                yield LostPart(at, size, self._times, behind > (FOLLOWERS - 1) * PACKET_BYTES)
        if not after:
            self._room = 0

    def forget(self) -> None:
        """The packet begun will not be completed."""
        self._room = 0

    def _begin(self, nbytes: int) -> None:
        """Begin the next packet, or as many delivered ones as `nbytes` and the run allow, as one."""
        if self._good:
            count = min(self._good, max(1, -(-nbytes // PACKET_BYTES)))
            self._good -= count
            self._times = 0
            self._room = count * PACKET_BYTES
            if not self._good:
                self._bad = self._run(self._mean_bad)
            return
        self._bad -= 1
        if not self._bad:
            self._good = self._run(self._mean_good)
        self._times = 1
        while self._random.random() < self.loss.rate:
            self._times += 1
        self._room = PACKET_BYTES
        self.lost += self._times

    def _run(self, mean: float) -> int:
        """A geometric length of at least 1."""
        if mean <= 1.0:
            return 1
        if math.isinf(mean):
            return 1 << 62
        return 1 + int(math.log(1.0 - self._random.random()) / math.log1p(-1.0 / mean))
