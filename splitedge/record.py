"""One row per request: what was seen, what was decided, what it cost."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Record:
    """One request, from arrival to answer or error. Seconds, bytes, joules, bits/s; NaN where not known.

    Attributes:
        request: number of the request in its run.
        t_s: arrival, seconds of the run's clock.
        rows: rows in the batch.
        deadline_s: seconds allowed, inf for none.
        planned: name of the option the policy chose first (`Option.name`).
        option: name of the option that answered; `nothing` where a filter did by a class of its own; empty
            when none did.
        route: the route really taken; empty when the request failed.
        cut, codec, level, exit: of the option that answered ("" and -1 where they do not apply).
        forced: whether the caller named the route.
        degraded: whether the answer is not by the route the policy wanted.
        reason: one readable sentence: why this route.
        error: class name of the error, empty when answered.
        confidence: calibrated probability that the answer is right.
        latency_s: arrival to answer.
        met: whether the answer came within the deadline.
        head_s, encode_s, uplink_s, queue_s, decode_s, tail_s, downlink_s: where the time went.
        bytes_up, bytes_down: framed bytes, all attempts counted.
        attempts: how often the request was sent.
        energy_j: modelled joules of the device for this request, idle not counted.
        goodput_bps, goodput_low_bps, rtt_s, rtt_high_s: the estimates at the decision.
        battery: fraction of charge at the decision.
    """

    request: int
    t_s: float
    rows: int = 1
    deadline_s: float = float("inf")
    planned: str = ""
    option: str = ""
    route: str = ""
    cut: str = ""
    codec: str = ""
    level: int = -1
    exit: int = -1
    forced: bool = False
    degraded: bool = False
    reason: str = ""
    error: str = ""
    confidence: float = float("nan")
    latency_s: float = float("nan")
    met: bool = False
    head_s: float = 0.0
    encode_s: float = 0.0
    uplink_s: float = 0.0
    queue_s: float = 0.0
    decode_s: float = 0.0
    tail_s: float = 0.0
    downlink_s: float = 0.0
    bytes_up: int = 0
    bytes_down: int = 0
    attempts: int = 0
    energy_j: float = 0.0
    goodput_bps: float = float("nan")
    goodput_low_bps: float = float("nan")
    rtt_s: float = float("nan")
    rtt_high_s: float = float("nan")
    battery: float = float("nan")
