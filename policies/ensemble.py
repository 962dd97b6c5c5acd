"""`ensemble:<policy>[,hold=2][,margin=0.1]`: another policy's choices, without flapping."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from splitedge.errors import PolicyError
from splitedge.policies.latency import within_reach
from splitedge.policy import (
    GROUP,
    Decision,
    Estimate,
    Observation,
    Option,
    Policy,
    Route,
    latency_q95,
    where,
)
from splitedge.policy_argument import read_argument
from splitedge.record import Record
from splitedge.registry import lookup

_AGREES, _HOLDS, _UNSURE, _GOES_ON = 0, 1, 2, 3


class Kept(NamedTuple):
    """A code of the guard, what the guarded policy wanted and why, and seconds since the last change."""

    code: Any
    wanted: Any
    why: Any
    since_s: Any


class Ensemble(Policy):
    """Guards another policy with a minimal dwell and hysteresis.

    A *way* is a route with its cut, exit and codec; a change of level alone is no change of way and is always
    let through. When requests arrive, the way of the last one is kept until the guarded policy wants another
    and

    - it must change: the link is down, or the way kept is predicted to miss the deadline (95th percentile)
      while the wanted one is not, or is faster by more than `margin`; or
    - it may change: `hold` seconds have passed since the last change, and the policy would leave the way kept
      also if goodput were `margin` lower and round trip and queue `margin` longer, and if they were as much
      better (hysteresis).

    So of two changes less than `hold` seconds apart the second is always one that must be: without outages
    and without deadlines in danger, the way changes at most once in any `hold` seconds.

    At an exit the guarded policy decides freely whether the answer in hand is good enough, since that
    depends on the input. If it goes on, it goes on the way kept, under the same rule.

    For N devices, give all of them in each call, in the same order; a call with another number of devices
    begins a new history. A policy that learns from or decides by each input (`router`, say) should not be
    guarded: its changes are meant.

    Source: dwell time and hysteresis of switched systems, Liberzon, "Switching in Systems and Control",
    Birkhäuser 2003 (dwell time: section 3.2; hysteresis: chapter 6).

    Args:
        policy: the guarded policy, or its name with an argument; in brackets if that has a comma.
        hold: seconds, at least 0.
        margin: fraction by which the link may be better or worse than estimated, in [0, 1).
    """

    name: ClassVar[str] = "ensemble"

    def __init__(self, policy: Policy | str = "deadline", hold: float = 2.0, margin: float = 0.1) -> None:
        if not 0.0 <= hold < float("inf"):
            raise PolicyError(f"policy 'ensemble': 'hold' must be at least 0 seconds, got {hold}")
        if not 0.0 <= margin < 1.0:
            raise PolicyError(f"policy 'ensemble': the margin must be in [0, 1), got {margin}")
        self.inner: Policy = _made(policy)
        self.wants_features = bool(getattr(self.inner, "wants_features", False))
        self.hold = hold
        self.margin = margin
        self._shape: tuple[int, ...] | None = None
        self._held: Any = -1
        self._since: Any = -np.inf
        self._options: tuple[Option, ...] = ()
        self._ways = np.zeros(0, int)

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        """Make it from `ensemble`, `ensemble:latency,hold=5` or `ensemble:(energy:0.05,v=20),hold=5`.

        Raises:
            UnknownName: no such policy to guard.
            PolicyError: an unknown key, a value that is no number or out of range, or a bad argument of the
                guarded policy.
        """
        return cls(**read_argument(cls, argument, main="policy"))

    def check(self, options: Sequence[Option]) -> None:
        """Refuse a deployment that the guarded policy can not work with.

        Raises:
            PolicyError: a route it needs is missing.
        """
        self.inner.check(options)

    def decide(self, obs: Observation) -> Decision:
        """The guarded policy's choice, or the way kept."""
        if obs.options is not self._options:
            self._options, self._ways, self._shape = obs.options, _ways(obs.options), None
        wanted = self.inner.decide(obs)
        if obs.exit >= 0:
            return self._at_exit(obs, wanted)
        shape = _shape(obs, wanted)
        if shape != self._shape:
            self._shape, self._held, self._since = shape, wanted.option, -np.inf
        held, t = self._held, obs.t_s
        leaves = self._ways[held] != self._ways[wanted.option]
        must = leaves & self._must(obs, held, wanted.option)
        over = (t - self._since >= self.hold) | (t < self._since)
        may = leaves & over & np.logical_not(must)
        unsure = may & False
        if self.margin > 0.0 and np.any(may):
            unsure = may & np.logical_not(self._clearly(obs, held))
        changes = must | (may & np.logical_not(unsure))
        option = where(leaves & np.logical_not(changes), held, wanted.option)
        code = where(leaves & np.logical_not(changes), where(unsure, _UNSURE, _HOLDS), _AGREES)
        since = t - self._since
        self._since = where(changes, t, self._since)
        self._held = option
        return Decision(option, Kept(code, wanted.option, wanted.why, since))

    def learn(self, record: Record) -> None:
        """The guarded policy learns."""
        self.inner.learn(record)

    def explain(self, obs: Observation, decision: Decision) -> str:
        """One sentence."""
        why: Kept = decision.why
        option, other = obs.options[decision.option], obs.options[why.wanted]
        if why.code == _AGREES:
            return self.inner.explain(obs, Decision(decision.option, why.why))
        wants = f"{option.name} is kept although policy '{self.inner.name}' would take {other.name}"
        late = f"({1e3 * latency_q95(option, obs):.1f} ms at the 95th percentile)"
        if why.code == _HOLDS:
            return f"{wants} {late}: the way last changed {why.since_s:.1f} s ago"
        if why.code == _GOES_ON:
            return f"{wants} {late}: what exit {obs.exit} is not sure of goes the way of the last arrival"
        return f"{wants} {late}: it would not if the link were {self.margin:.0%} better or worse"

    # The rule -----------------------------------------------------------------------------------------

    def _must(self, obs: Observation, held: Any, wanted: Any) -> Any:
        """Whether the way kept can not be taken: out of reach, or late where the wanted one is not."""
        remote = np.array([option.remote for option in obs.options])
        lost = remote[held] & np.logical_not(within_reach(obs, True))
        held_s, wanted_s = _late(obs, held), _late(obs, wanted)
        in_time = wanted_s <= obs.deadline_s
        faster = wanted_s * (1.0 + self.margin) < held_s
        return lost | ((held_s > obs.deadline_s) & (in_time | faster))

    def _clearly(self, obs: Observation, held: Any) -> Any:
        """Whether the guarded policy leaves the way kept on a link that is `margin` worse, and better.

        Copies of it are asked, so that one with a history sees each request once and as it was.
        """
        clearly: Any = True
        for rate in (1.0 - self.margin, 1.0 / (1.0 - self.margin)):
            asked = copy.deepcopy(self.inner, {id(obs.options): obs.options})
            option = asked.decide(_scaled(obs, rate)).option
            clearly = clearly & (self._ways[option] != self._ways[held])
        return clearly

    def _at_exit(self, obs: Observation, wanted: Decision) -> Decision:
        if _shape(obs, wanted) != self._shape:
            return Decision(wanted.option, Kept(_AGREES, wanted.option, wanted.why, 0.0))
        held, done = self._held, _in_hand(obs)
        goes_on = np.logical_not(done[wanted.option] | done[held])
        leaves = self._ways[held] != self._ways[wanted.option]
        keeps = goes_on & leaves & np.logical_not(self._must(obs, held, wanted.option))
        why = Kept(where(keeps, _GOES_ON, _AGREES), wanted.option, wanted.why, obs.t_s - self._since)
        return Decision(where(keeps, held, wanted.option), why)


def _made(policy: Policy | str) -> Policy:
    """The policy to guard, not yet checked against a deployment."""
    if isinstance(policy, Policy):
        return policy
    name, _, argument = policy.partition(":")
    made: Policy = lookup(GROUP, name).parse(argument or None)
    return made


def _ways(options: tuple[Option, ...]) -> Any:
    """For each option a number, the same for options that differ in level alone."""
    keys = [(option.route, option.cut, option.exit, option.codec) for option in options]
    return np.array([keys.index(key) for key in keys])


def _in_hand(obs: Observation) -> Any:
    """For each option, whether it is an exit no deeper than the one just run."""
    depth = max((o.edge_s for o in obs.options if o.exit == obs.exit), default=-1.0)
    return np.array([o.route is Route.EXIT and o.edge_s <= depth for o in obs.options])


def _late(obs: Observation, index: Any) -> Any:
    """The 95th percentile of latency of the option of that index, element by element."""
    if not isinstance(index, np.ndarray):
        return latency_q95(obs.options[index], obs)
    late: Any = np.inf
    for i in np.unique(index):
        late = where(index == i, latency_q95(obs.options[i], obs), late)
    return late


def _scaled(obs: Observation, rate: float) -> Observation:
    """The same on a link of `rate` times the goodput, whose round trip and queue take 1 / `rate` times."""

    def times(estimate: Estimate, factor: float) -> Estimate:
        return Estimate(estimate.mean * factor, estimate.low * factor, estimate.high * factor)

    return obs._replace(
        goodput=times(obs.goodput, rate),
        downlink=times(obs.downlink, rate),
        rtt=times(obs.rtt, 1.0 / rate),
        queue=times(obs.queue, 1.0 / rate),
    )


def _shape(obs: Observation, wanted: Decision) -> tuple[int, ...]:
    """() for one device, (N,) for N."""
    numbers = (wanted.option, obs.goodput.mean, obs.rtt.mean, obs.link_up, obs.deadline_s, obs.t_s)
    for number in numbers:
        if isinstance(number, np.ndarray) and number.ndim:
            return tuple(number.shape)
    return ()
