"""A channel rebuilt from the transfers of one's own records, and how much of it the records support.

Each request that the cloud answered says when its bytes were sent, how many they were and how long they took
one way. The link is first in, first out, so message i was transmitted between
`begin = max(sent, end of the one before)` and `end = arrival - propagation`, and the capacity over that
time was `8 n / (end - begin)` on average. That is all. What the records do **not** hold:

- **Times without traffic are unknown.** The last rate is held until the next evidence; `known_share` says
  how much of the time was really under transmission, `longest_gap_s` the longest time without. An outage
  between two requests leaves no trace.
- **A small message only bounds the rate from below**: what it took is mostly delay and timing noise. Messages
  under `SMALL_BYTES` or under `NOISE_S` of transmission raise the rate where they prove it higher and never
  lower it. Where a direction has no larger one (replies are small), the whole curve is such a bound
  (`up_bound_only`, `down_bound_only`): it gives small messages the time they took, larger ones too much.
- **A message that was never answered bounds the rate from above** while it was awaited, and lowers it until
  better evidence. (It may have been the cloud's fault; the careful reading is the link's.) Leaving these out
  would forget just the worst moments.
- **Rates are means over a message**, so the fluctuation within one is gone; a mean over a long message that
  straddles an outage spreads it.
- Requests that were sent several times and answered are left out: a record sums the bytes of all attempts.
  So are those whose parts take longer than the whole.
- One-way times come from an estimated clock offset; a difference between the two directions' delays goes
  from one to the other (`splitedge.estimate.ClockOffset`).

The RTT is the daemon's estimate at each decision, from pings, without queueing.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from splitedge.errors import TraceError
from splitedge.records import RecordTable
from splitedge.sim.curves import Floats, Rates, Series
from splitedge.sim.traces import Trace

#: Messages smaller than this only bound the rate from below.
SMALL_BYTES = 4096
#: So do transmissions shorter than this: one-way times are no better.
NOISE_S = 0.001
#: Propagation is half the least round trip of this many seconds before.
BASE_WINDOW_S = 60.0

_LIMITS = 1e3, 1e12  # bits/s

Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class Transfers:
    """The messages of one direction in the order of their transmission.

    Attributes:
        begin_s, end_s: when their bytes were transmitted, seconds since the first request, shape (k,).
        nbytes: framed bytes, shape (k,).
        kind: -1 where the rate is at most, 0 where it is, 1 where it is at least `bps`, shape (k,).
        bps: bits per second, shape (k,).
    """

    begin_s: Floats
    end_s: Floats
    nbytes: Floats
    kind: NDArray[np.int8]
    bps: Floats


@dataclass(frozen=True, eq=False)
class RecordedChannel:
    """A channel rebuilt from records.

    Attributes:
        trace: capacity up and down and RTT; a direction without any transfer is None.
        up, down: the evidence.
        origin_s: the records' time at which the trace begins.
        known_share: share of the time in which bytes of a measuring message went up.
        longest_gap_s: the longest time between two of those.
        up_bound_only, down_bound_only: no message was large enough to measure, the curve is a lower bound.
        used, left_out: requests that gave evidence; requests that were sent and gave none.
    """

    trace: Trace
    up: Transfers
    down: Transfers
    origin_s: float
    known_share: float
    longest_gap_s: float
    up_bound_only: bool
    down_bound_only: bool
    used: int
    left_out: int


def channel_from_records(table: RecordTable, source: str = "records") -> RecordedChannel:
    """Rebuild the channel that the requests of a run went through.

    Args:
        table: as `splitedge.records.read_records` gives it.
        source: for messages and titles.

    Raises:
        TraceError: no record went over the link and was answered.
    """
    remote_s = (
        table["uplink_s"] + table["downlink_s"] + table["queue_s"] + table["decode_s"] + table["tail_s"]
    )
    sent_over = (table["attempts"] >= 1) & (table["bytes_up"] > 0) & np.isfinite(table["latency_s"])
    timed = (table["uplink_s"] > 0.0) & (table["downlink_s"] > 0.0)
    fits = remote_s <= table["latency_s"] + NOISE_S
    answered = sent_over & (table["attempts"] == 1) & timed & fits
    lost = sent_over & (table["uplink_s"] <= 0.0)
    if not answered.any():
        raise TraceError(
            f"{source}: none of {len(table)} requests went to the cloud once and came back, so nothing "
            "was measured of the channel"
        )
    origin = float(table["t_s"].min())
    t_s = table["t_s"] - origin
    done = t_s + table["latency_s"]
    back = done - table["downlink_s"]
    there = done - remote_s + table["uplink_s"]
    base = _propagation(t_s, table["rtt_s"], np.where(answered, table["uplink_s"], np.inf), table["bytes_up"])
    sent = np.where(answered, there - table["uplink_s"], t_s + table["head_s"] + table["encode_s"])
    up = _transfers(sent, np.where(answered, there - base, done), table["bytes_up"], answered, lost)
    down = _transfers(back, done - base, table["bytes_down"], answered, np.zeros_like(lost))
    period = float(max(done[answered | lost].max(), t_s.max())) + NOISE_S
    rtt = _rtt(t_s, table["rtt_s"], period)
    trace = Trace(source, "records", _curve(up, period), _curve(down, period), rtt)
    used = int((answered | lost).sum())
    left_out = int(sent_over.sum()) - used
    weak = _bound_only(up), _bound_only(down)
    return RecordedChannel(trace, up, down, origin, *_coverage(up, period), *weak, used, left_out)


def _propagation(t_s: Floats, rtt_s: Floats, uplink_s: Floats, nbytes: Floats) -> Floats:
    """One-way delay at each request: the least half ping or small message of the window before it, (n,)."""
    small = np.where(nbytes <= SMALL_BYTES, uplink_s, np.inf)
    least = np.minimum(np.where(np.isfinite(rtt_s), 0.5 * rtt_s, np.inf), small)
    order = np.argsort(t_s, kind="stable")
    first = np.searchsorted(t_s[order], t_s[order] - BASE_WINDOW_S).tolist()
    base = np.empty_like(t_s)
    base[order] = [least[order][i : k + 1].min() for k, i in enumerate(first)]
    # A message can not have been under way for less than nothing.
    base = np.minimum(base, uplink_s)
    return np.where(np.isfinite(base), base, 0.0)


def _transfers(sent: Floats, left: Floats, nbytes: Floats, answered: Bools, lost: Bools) -> Transfers:
    """When each message was transmitted, behind those before it, and what that says of the rate."""
    at = np.flatnonzero((answered | lost) & (nbytes > 0) & (left >= sent))
    at = at[np.argsort(sent[at], kind="stable")]
    free = np.maximum.accumulate(np.where(answered[at], left[at], -np.inf))
    begin = np.maximum(np.maximum(sent[at], np.concatenate([[-np.inf], free[:-1]])), 0.0)
    seconds = left[at] - begin
    bits = 8.0 * nbytes[at].astype(np.float64)
    bps = np.clip(bits / np.maximum(seconds, NOISE_S), *_LIMITS)
    weak = (nbytes[at] < SMALL_BYTES) | (seconds < NOISE_S)
    kind = np.where(answered[at], np.where(weak, 1, 0), -1).astype(np.int8)
    # One that waited behind others until the end was given up says nothing of the rate.
    keep = answered[at] | (seconds > NOISE_S)
    end = begin + np.maximum(seconds, 0.0)
    return Transfers(begin[keep], end[keep], nbytes[at][keep].astype(np.float64), kind[keep], bps[keep])


def _bound_only(transfers: Transfers) -> bool:
    return not bool(np.any(transfers.kind == 0))


def _curve(transfers: Transfers, period_s: float) -> Rates | None:
    """Each evidence holds until the next; bounds count only where they contradict what is held."""
    if not len(transfers.bps):
        return None
    measured = np.flatnonzero(transfers.kind == 0)
    level = float(transfers.bps[measured[0]] if len(measured) else transfers.bps[transfers.kind > 0].min())
    values = []
    for kind, bps in zip(transfers.kind.tolist(), transfers.bps.tolist(), strict=True):
        level = bps if kind == 0 else max(level, bps) if kind > 0 else min(level, bps)
        values.append(level)
    time_s = transfers.begin_s.copy()
    time_s[0] = 0.0  # before the first evidence, the first rate is held
    return Rates(time_s, np.array(values), period_s)


def _rtt(t_s: Floats, rtt_s: Floats, period_s: float) -> Series | None:
    known = np.flatnonzero(np.isfinite(rtt_s))
    if not len(known):
        return None
    known = known[np.argsort(t_s[known], kind="stable")]
    time_s = t_s[known].copy()
    time_s[0] = 0.0
    return Series(time_s, rtt_s[known], period_s)


def _coverage(transfers: Transfers, period_s: float) -> tuple[float, float]:
    """Share of the time under a measuring transmission, and the longest time without one, seconds."""
    measured = transfers.kind == 0
    begin, end = transfers.begin_s[measured], transfers.end_s[measured]
    gaps = np.concatenate([begin, [period_s]]) - np.concatenate([[0.0], end])
    return float((end - begin).sum() / period_s), float(gaps.max())
