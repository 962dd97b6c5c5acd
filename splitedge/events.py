"""What goes into the engine (events) and what comes out (actions). Plain data, no behaviour.

The engine has no clock, socket or thread: a shell (the edge daemon, the simulator, a test) feeds it
events with the time, and carries out the actions. All seconds are those of the shell's one clock.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import NamedTuple

from splitedge.errors import RequestError
from splitedge.policy import Route
from splitedge.record import Record

# Events ---------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Arrived:
    """A caller asks. `deadline_s` is seconds from now; `route` forces one instead of the policy's.
    `features` are cheap numbers of the input, for policies that want them.
    """

    request: int
    rows: int = 1
    deadline_s: float | None = None
    route: Route | None = None
    features: tuple[float, ...] | None = None


class StageKind(StrEnum):
    """The three things a device computes."""

    EXIT = "exit"  # run the head on to exit `number` and classify there
    ENCODE = "encode"  # run the head on to the cut of option `number` (or nothing), then its codec
    LOCAL = "local"  # run the local model

    __hash__ = str.__hash__  # stages are looked up all the time, and an Enum's own hash is a Python function


class Stage(NamedTuple):
    """One piece of work for the device: `number` is an exit's number or an option's index."""

    kind: StageKind
    number: int = 0


@dataclass(slots=True)
class StageDone:
    """The device finished a stage.

    Attributes:
        head_s, encode_s: compute seconds of the two parts.
        confidence: calibrated probability of being right (EXIT, LOCAL, and of what a filter would answer in
            place of sending: ENCODE), the least over the rows.
        nbytes: bytes of the framed message that `Send` would put on the link (ENCODE).
    """

    request: int
    stage: Stage
    head_s: float
    encode_s: float = 0.0
    confidence: float = math.nan
    nbytes: int = 0


@dataclass(slots=True)
class StageFailed:
    """A stage raised; `error` is readable."""

    request: int
    stage: Stage
    error: str


@dataclass(slots=True)
class Sent:
    """The transport took the message of attempt `attempt`; `nbytes` framed bytes."""

    request: int
    attempt: int
    nbytes: int


@dataclass(slots=True)
class Replied:
    """The cloud's answer is here, decoded and checked.

    Attributes:
        attempt: which sending it answers.
        uplink_s, downlink_s: one-way seconds, split by the estimated clock offset.
        queue_s, decode_s, tail_s: seconds in the cloud.
        nbytes: framed bytes received.
        confidence: probability that the answer is right where it is known, else NaN.
    """

    request: int
    attempt: int
    uplink_s: float
    downlink_s: float
    queue_s: float
    decode_s: float
    tail_s: float
    nbytes: int
    confidence: float = math.nan


class Refusal(StrEnum):
    """Why the cloud gave no answer."""

    BUSY = "busy"  # no room now; try again after `retry_after_s`
    EXPIRED = "expired"  # the deadline passed before the work started
    FAILED = "failed"  # the tail raised
    UNKNOWN = "unknown"  # no such bundle, cut or codec there
    BAD = "bad"  # the request was refused as malformed
    NEED = "need"  # a context is not what the ask says; the message is how many tokens of it are here


@dataclass(slots=True)
class Refused:
    """The cloud gave no answer to attempt `attempt`, and says why."""

    request: int
    attempt: int
    kind: Refusal
    message: str
    retry_after_s: float = 0.0


@dataclass(slots=True)
class SendFailed:
    """The transport could not take the message (no connection, byte budget used up)."""

    request: int
    attempt: int
    error: str


@dataclass(slots=True)
class LinkChanged:
    """The connection came up (handshake and hello done) or went down."""

    up: bool
    reason: str = ""


@dataclass(slots=True)
class Ponged:
    """A ping came back: `rtt_s` for a message of negligible size."""

    rtt_s: float


@dataclass(slots=True)
class BatteryRead:
    """A reading of the battery: fraction of charge, NaN on mains."""

    fraction: float


@dataclass(slots=True)
class Cancelled:
    """The caller went away."""

    request: int


@dataclass(slots=True)
class Tick:
    """`Engine.wake_at` has come."""


@dataclass(slots=True)
class Draining:
    """No new requests are accepted from here on; those in flight end as usual."""


Event = (
    Arrived
    | StageDone
    | StageFailed
    | Sent
    | Replied
    | Refused
    | SendFailed
    | LinkChanged
    | Ponged
    | BatteryRead
    | Cancelled
    | Tick
    | Draining
)

# Actions --------------------------------------------------------------------------------------------


@dataclass(slots=True)
class Run:
    """Compute a stage of a request; report `StageDone` or `StageFailed`. One stage at a time, in order."""

    request: int
    stage: Stage


@dataclass(slots=True)
class Send:
    """Send the payload that the ENCODE stage of `option` made; the same request id at every attempt."""

    request: int
    attempt: int
    option: int
    deadline_s: float  # seconds left; inf for none


class Source(StrEnum):
    """Whose output answers the caller."""

    LOCAL = "local"
    EXIT = "exit"
    CLOUD = "cloud"
    FILTER = "filter"  # what the last ENCODE stage would answer in place of sending


@dataclass(slots=True)
class Answer:
    """Give the caller the output of `source` (`exit` its number) and end the request."""

    request: int
    source: Source
    exit: int
    record: Record


@dataclass(slots=True)
class Fail:
    """Give the caller this error and end the request."""

    request: int
    error: RequestError
    record: Record


@dataclass(slots=True)
class CancelRemote:
    """Tell the cloud that nobody waits for this request any more."""

    request: int


@dataclass(slots=True)
class Ping:
    """Probe the link with a small message; report `Ponged` when it comes back."""


Action = Run | Send | Answer | Fail | CancelRemote | Ping
