"""The Policy interface: what a policy sees (Observation), what it may choose (Option), what it says.

Policies are written on numbers that may be Python floats or NumPy arrays of shape (N,): one device
and ten thousand simulated ones run the same lines. Loop over `obs.options`, compute with the numbers
of the observation, and select with `where`.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Self

from splitedge.errors import PolicyError
from splitedge.option import REMOTE, Decision, Estimate, Gate, Number, Observation, Option, Route
from splitedge.predict import (
    accuracy,
    edge_left,
    joules,
    joules_of_tail,
    latency_hoped,
    latency_mean,
    latency_q95,
    where,
)
from splitedge.registry import lookup

if TYPE_CHECKING:
    from splitedge.record import Record

__all__ = [
    "GROUP",
    "REMOTE",
    "Decision",
    "Estimate",
    "Gate",
    "Number",
    "Observation",
    "Option",
    "Policy",
    "Route",
    "accuracy",
    "edge_left",
    "joules",
    "joules_of_tail",
    "latency_hoped",
    "latency_mean",
    "latency_q95",
    "make_policy",
    "wants_features",
    "where",
]

GROUP = "splitedge.policies"


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
