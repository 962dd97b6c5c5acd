"""The Policy interface: what a policy sees (Observation), what it may choose (Option), what it says.

Policies are written on numbers that may be Python floats or NumPy arrays of shape (N,): one device
and ten thousand simulated ones run the same lines. Loop over `obs.options`, compute with the numbers
of the observation, and select with `where`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, Self

import numpy as np

from splitedge.errors import PolicyError
from splitedge.registry import lookup

if TYPE_CHECKING:
    from splitedge.record import Record

GROUP = "splitedge.policies"

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
_EXIT, _SPLIT, _CLOUD = Route.EXIT, Route.SPLIT, Route.CLOUD


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


def where(condition: Any, yes: Any, no: Any) -> Any:
    """`yes if condition else no`, element by element when the condition is an array."""
    if condition is True:  # the usual case by far, and the quickest to tell
        return yes
    if condition is False:
        return no
    if isinstance(condition, np.ndarray):
        return np.where(condition, yes, no)
    return yes if condition else no


def latency_mean(option: Option, obs: Observation) -> Number:
    """Predicted mean seconds from now to the answer by `option`."""
    edge = obs.edge_wait_s + edge_left(option, obs, option.edge_s) * obs.rows
    if not option.remote:
        return edge
    return (
        edge
        + option.bytes_up * 8.0 * obs.rows / obs.goodput.mean
        + obs.rtt.mean
        + obs.queue.mean
        + option.cloud_s * obs.rows
        + option.bytes_down * 8.0 * obs.rows / obs.downlink.mean
    )


def latency_q95(option: Option, obs: Observation) -> Number:
    """Predicted 95th percentile of seconds to the answer: the 95th percentile of bytes and RTT over the
    10th of goodput. Summing quantiles errs on the careful side.
    """
    edge = obs.edge_wait_s + edge_left(option, obs, option.edge_s_q95) * obs.rows
    if not option.remote:
        return edge
    return (
        edge
        + option.bytes_up_q95 * 8.0 * obs.rows / obs.goodput.low
        + obs.rtt.high
        + obs.queue.high
        + option.cloud_s_q95 * obs.rows
        + option.bytes_down * 8.0 * obs.rows / obs.downlink.low
    )


def latency_hoped(option: Option, obs: Observation) -> Number:
    """Predicted seconds to the answer of a remote option if the link is as good as it ever is: mean RTT and
    queue, the 90th percentile of goodput.
    """
    bits_up, bits_down = option.bytes_up * 8.0 * obs.rows, option.bytes_down * 8.0 * obs.rows
    edge = obs.edge_wait_s + edge_left(option, obs, option.edge_s) * obs.rows
    cloud = obs.rtt.mean + obs.queue.mean + option.cloud_s * obs.rows
    return edge + bits_up / obs.goodput.high + cloud + bits_down / obs.downlink.high


def joules(option: Option, obs: Observation) -> Number:
    """Predicted joules the device spends on `option` from now on, idle power not counted: compute, bits, and
    the time by which a transfer keeps the radio awake longer (a whole tail for one that sleeps).
    """
    compute = edge_left(option, obs, option.edge_s) * obs.rows * obs.joules_per_edge_s
    if not option.remote:
        return compute
    up = option.bytes_up * 8.0 * obs.rows * obs.joules_per_bit_up
    return compute + up + option.bytes_down * 8.0 * obs.rows * obs.joules_per_bit_down + joules_of_tail(obs)


def joules_of_tail(obs: Observation) -> Number:
    """Predicted joules by which one more transfer keeps the radio awake."""
    if isinstance(obs.tail_w, float) and not obs.tail_w:
        return 0.0
    return obs.tail_w * where(obs.unsent_s < obs.tail_s, obs.unsent_s, obs.tail_s)


def accuracy(option: Option, obs: Observation) -> Number:
    """Probability that `option` answers right; the calibrated confidence for an exit already run."""
    if option.route is _EXIT and option.exit == obs.exit:
        return obs.confidence
    return option.accuracy


def edge_left(option: Option, obs: Observation, edge_s: float) -> Number:
    """Compute seconds still to spend: what the head already did is not paid again by a route through it."""
    if obs.exit < 0:
        return edge_s
    if option.route is _EXIT and option.exit is not None and option.exit <= obs.exit:
        return 0.0
    if option.route is _SPLIT or option.route is _EXIT:
        left = edge_s - obs.sunk_s / obs.rows
        return where(left > 0.0, left, 0.0)
    return edge_s


class Policy(ABC):
    """Chooses an option for each request. A pure function of its own state and the observation:
    no clock, no socket, no global, no random numbers but its own seeded ones.
    """

    name: ClassVar[str]
    #: Routes without which the policy makes no sense; `check` refuses a deployment that lacks them.
    needs: ClassVar[frozenset[Route]] = frozenset()
    #: Whether `Observation.features` shall be filled; they are computed for no policy that does not ask.
    wants_features: bool = False
    #: The policy that a wrapper asks; None for one that decides by itself.
    inner: Policy | None = None

    @abstractmethod
    def decide(self, obs: Observation) -> Decision:
        """Choose an option. Must return a remote option only where `obs.link_up`, if a local one exists."""

    @abstractmethod
    def explain(self, obs: Observation, decision: Decision) -> str:
        """One readable sentence: why this option. Called for scalar observations only."""

    def check(self, options: Sequence[Option]) -> None:
        """Refuse a deployment this policy can not work with.

        Raises:
            PolicyError: a route it needs is missing.
        """
        missing = self.needs - {option.route for option in options}
        if missing:
            have = ", ".join(sorted({o.route.value for o in options}))
            raise PolicyError(
                f"policy '{self.name}' needs the route{'s' if len(missing) > 1 else ''} "
                f"{', '.join(sorted(r.value for r in missing))}; this deployment has {have}"
            )

    def learn(self, record: Record) -> None:  # noqa: B027 - optional to override
        """Take the measured outcome of one request. Called once a request, in order of completion.

        For N devices at once the fields of `record` are arrays of shape (N,), strings as NumPy arrays of
        strings: one request of every device, those that failed with an empty `option`.
        """

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        """Make the policy from what stands behind the colon in `name:argument`.

        Raises:
            PolicyError: the argument is not understood.
        """
        if argument:
            raise PolicyError(f"policy '{cls.name}' takes no argument, got '{argument}'")
        return cls()


def wants_features(policy: Policy) -> bool:
    """Whether a policy, or one that it wraps, wants `Observation.features`."""
    asked: Policy | None = policy
    while asked is not None:
        if asked.wants_features:
            return True
        asked = asked.inner
    return False


def make_policy(spec: str | Policy, options: Sequence[Option]) -> Policy:
    """Make a registered policy from `name` or `name:argument` and check it against a deployment.

    Raises:
        UnknownName: no such policy.
        PolicyError: bad argument, or the deployment lacks a route the policy needs.
    """
    if isinstance(spec, Policy):
        policy = spec
    else:
        name, _, argument = spec.partition(":")
        policy = lookup(GROUP, name).parse(argument or None)
    policy.check(options)
    return policy
