"""A scenario's channel as two directions: for the simulator (`links_of`) and the pacer (`channels_of`)."""

from __future__ import annotations

from splitedge.sim.formats import read_trace
from splitedge.sim.link import Channel, Link
from splitedge.sim.loss import Loss
from splitedge.sim.medium import Medium
from splitedge.sim.scenario import ChannelPart
from splitedge.sim.traces import Trace


def read_traces(part: ChannelPart) -> tuple[Trace, Trace]:
    """The traces of the uplink and of the downlink; the same object twice where one file serves both.

    Raises:
        TraceError: a file is missing or no trace.
    """
    up = read_trace(part.up)
    return up, up if part.down is None else read_trace(part.down)


def channels_of(part: ChannelPart, up: Trace, down: Trace, seed: int = 0) -> tuple[Channel, Channel]:
    """Up and down with every option of `part`. `cuts` are the caller's: a cut ends connections.

    Both directions take the RTT of the uplink's trace where `part` gives none: there is one path.

    Args:
        part: the options.
        up, down: traces, as `read_traces` gives them.
        seed: of the losses; each direction draws its own.

    Raises:
        TraceError: a trace lacks its direction, or a number is out of range.
    """
    rtt = up.rtt or 0.0 if part.rtt_ms is None else part.rtt_ms / 1e3
    down_start_s = part.start_s if part.down_start_s is None else part.down_start_s

    def one(trace: Trace, way: int, start_s: float) -> Channel:
        loss = Loss(part.loss, part.loss_burst, part.rto_ms / 1e3, 2 * seed + way) if part.loss else None
        return Channel(
            trace.capacity("down" if way else "up"),
            rtt,
            part.buffer_kb * 1000,
            start_s,
            part.loop,
            loss,
            part.outages,
        )

    return one(up, 0, part.start_s), one(down, 1, down_start_s)


def links_of(part: ChannelPart, up: Trace, down: Trace, seed: int = 0) -> tuple[Link, Link]:
    """Fresh links up and down, on one medium where `part.half_duplex` says so. See `channels_of`."""
    medium = Medium() if part.half_duplex else None
    one, other = channels_of(part, up, down, seed)
    return Link(one, medium), Link(other, medium)
