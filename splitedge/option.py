"""What a policy sees (`Observation`), what it may choose (`Option`) and what it says (`Decision`).

Plain data; `policy` has all of it too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final, NamedTuple

# A float for one device, an array of shape (N,) for N devices.
Number = Any


class Route(StrEnum):
    """Where a request is computed."""

    LOCAL = "local"
    EXIT = "exit"
    SPLIT = "split"
    CLOUD = "cloud"
    ASSIST = "assist"


REMOTE = frozenset({Route.SPLIT, Route.CLOUD})

# A member read off its class costs 0.3 us in Python 3.11, ten times a global: too much for every option of
# every decision.
_EXIT: Final = Route.EXIT
_SPLIT: Final = Route.SPLIT
_CLOUD: Final = Route.CLOUD


class Estimate(NamedTuple):
    """A measured quantity with its uncertainty: mean, low and high quantile (see each field's use)."""

    mean: Number
    low: Number
    high: Number


@dataclass(frozen=True, slots=True)
class Gate:
    """A filter behind an encoder: from `threshold` on, nothing is sent and the device answers.

    Attributes:
        threshold: the confidence of the filter's answer that is needed.
        nothing: the class that is answered; None where an exit answers.
        exit: number of the exit whose answer is kept; None where a class is answered.
    """

    threshold: float
    nothing: int | None = None
    exit: int | None = None

    @property
    def claim(self) -> str:
        """What the filter is asked whether it is true, in words."""
        if self.exit is not None:
            return f"exit {self.exit} is right"
        return f"nothing is there (class {self.nothing})"


@dataclass(frozen=True, slots=True)
class Option:
    """One way to answer a request: a route with its cut, codec and level, and what it costs a row.

    Attributes:
        route: where it is computed.
        cut: name of the cut (SPLIT), else None.
        exit: number of the exit (EXIT), else None.
        codec: name of the codec whose payload is sent (SPLIT, CLOUD), else None.
        level: the codec's rate level.
        accuracy: probability that the answer is right, from validation data; before `fit` an
            assumed order (see `accuracy_measured`).
        edge_s, edge_s_q95: compute seconds on the device, up to the payload or the answer.
        cloud_s, cloud_s_q95: seconds of decode and tail on the server, without queueing.
        bytes_up, bytes_up_q95, bytes_down: framed bytes of one row.
        gate: the filter that may keep its payload from being sent; None for none.
    """

    route: Route
    cut: str | None = None
    exit: int | None = None
    codec: str | None = None
    level: int = 0
    accuracy: float = 1.0
    accuracy_measured: bool = False
    edge_s: float = 0.0
    edge_s_q95: float = 0.0
    cloud_s: float = 0.0
    cloud_s_q95: float = 0.0
    bytes_up: float = 0.0
    bytes_up_q95: float = 0.0
    bytes_down: float = 0.0
    gate: Gate | None = None

    @property
    def remote(self) -> bool:
        """Whether the cloud computes any of it."""
        return self.route is _SPLIT or self.route is _CLOUD

    @property
    def name(self) -> str:
        """`local`, `exit:1`, `split:layer2/int8:0`, `cloud/webp:3`."""
        if self.route is _EXIT:
            return f"exit:{self.exit}"
        if self.route is _SPLIT:
            return f"split:{self.cut}/{self.codec}:{self.level}"
        if self.route is _CLOUD:
            return f"cloud/{self.codec}:{self.level}"
        return self.route.value


class Observation(NamedTuple):
    """What a policy decides from. Numbers are floats, or arrays of shape (N,) for N devices.

    `decide` is called when a request arrives (`exit == -1`, `confidence` NaN) and again after each
    exit that was run on the way (`exit` its number, `confidence` the calibrated probability that its
    answer is right).
    """

    options: tuple[Option, ...]
    goodput: Estimate  # uplink, bits/s: mean, 10th percentile, 90th percentile
    downlink: Estimate  # bits/s, likewise
    rtt: Estimate  # seconds, without transmission time: mean, 5th, 95th percentile
    queue: Estimate  # seconds a request waits in the cloud: mean, 5th, 95th percentile
    edge_wait_s: Number = 0.0  # seconds until the device's compute is free
    link_up: Any = True  # bool, or array of bool: may a remote route be tried now
    deadline_s: Number = math.inf  # seconds left
    rows: Number = 1
    exit: int = -1
    confidence: Number = math.nan
    sunk_s: Number = 0.0  # compute seconds of the head already spent on this request
    battery: Number = math.nan  # fraction of charge, NaN on mains
    joules_per_edge_s: Number = 0.0  # marginal watts of computing on the device
    joules_per_bit_up: Number = 0.0
    joules_per_bit_down: Number = 0.0
    unsent_s: Number = 0.0  # seconds since a request was last sent; inf if none was
    t_s: Number = 0.0  # seconds of the shell's clock, for policies that keep a history
    features: Any = None  # cheap features of the input, shape (F,) or (N, F); None where none are taken
    tail_w: Number = 0.0  # watts above sleep of a radio that stays awake after a transfer ...
    tail_s: Number = 0.0  # ... for so many seconds


class Decision(NamedTuple):
    """What a policy says: the index into `obs.options`, and a code that `Policy.explain` makes readable."""

    option: Any
    why: Any = ""
