"""What a caller gets back: the output, the route it took, why, and what it cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Self

from splitedge.policy import Route
from splitedge.record import Record


@dataclass(frozen=True, slots=True)
class Timing:
    """Where the time of one request went, in seconds. Zero where a part was not on its way.

    Attributes:
        head, encode: compute on the device.
        uplink, downlink: on the link, split by the estimated clock offset (their sum is exact).
        queue, decode, tail: in the cloud.
        total: arrival to answer; more than the sum by waiting and hand-over on the device.
    """

    head: float
    encode: float
    uplink: float
    queue: float
    decode: float
    tail: float
    downlink: float
    total: float


@dataclass(frozen=True, slots=True)
class Result:
    """One answer.

    Attributes:
        output: what the model would have returned; an exit gives its logits in the same place.
        route: where it was really computed.
        option: name of the option that answered (`split:layer2/int8:0`).
        level: the codec's rate level, -1 where nothing was sent.
        confidence: calibrated probability that the answer is right, the least over the rows; NaN where
            not known.
        degraded: whether the answer is not by the route the policy wanted.
        reason: one readable sentence: why this route.
        timing: where the time went.
        bytes_up, bytes_down: framed bytes, all attempts counted.
        energy_j: modelled joules of the device, idle not counted.
        record: the request's full row, as it is stored.
    """

    output: Any
    route: Route
    option: str
    level: int
    confidence: float
    degraded: bool
    reason: str
    timing: Timing
    bytes_up: int
    bytes_down: int
    energy_j: float
    record: Record

    @classmethod
    def of(cls, output: Any, record: Record) -> Self:
        """The answer that `record` describes.

        Raises:
            ValueError: the record is of a request that was not answered.
        """
        if not record.route:
            raise ValueError(
                f"request {record.request} has no answer ({record.error or 'no route'}); "
                "only answered requests make a Result"
            )
        r = record
        timing = Timing(
            r.head_s, r.encode_s, r.uplink_s, r.queue_s, r.decode_s, r.tail_s, r.downlink_s, r.latency_s
        )
        return cls(
            output=output,
            route=Route(r.route),
            option=r.option,
            level=r.level,
            confidence=r.confidence,
            degraded=r.degraded,
            reason=r.reason,
            timing=timing,
            bytes_up=r.bytes_up,
            bytes_down=r.bytes_down,
            energy_j=r.energy_j,
            record=r,
        )
