"""`static:<route>` and `static:<option>`: always the same, the baseline of every comparison."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

from splitedge.errors import PolicyError
from splitedge.policy import Decision, Observation, Option, Policy, Route


class Static(Policy):
    """Always the same option: the one named, or the most accurate of a route (of equals, the one that sends
    least).

    It does not look at the link: while a remote route is out of reach it still names it, and the engine
    answers without the cloud (degraded) where the device can, or waits for the link where it can not.

    Args:
        choice: a route (`exit`, `local`, `split`, `cloud`) or an option's full name
            (`split:layer2/int8:0`).
    """

    name: ClassVar[str] = "static"

    def __init__(self, choice: str) -> None:
        self.choice = choice
        self._options: tuple[Option, ...] = ()
        self._index = -1

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        """Make it from what stands behind `static:`.

        Raises:
            PolicyError: nothing stands there.
        """
        if not argument:
            raise PolicyError("policy 'static' needs a route or an option, as in 'static:split'")
        return cls(argument)

    def check(self, options: Sequence[Option]) -> None:
        """Refuse a deployment without that route or option.

        Raises:
            PolicyError: it is missing; the message lists what there is.
        """
        if _find(self.choice, options) < 0:
            names = ", ".join(option.name for option in options)
            raise PolicyError(f"policy 'static' should take '{self.choice}'; this deployment has {names}")

    def decide(self, obs: Observation) -> Decision:
        """The same option for every device."""
        if obs.options is not self._options:
            self.check(obs.options)
            self._options, self._index = obs.options, _find(self.choice, obs.options)
        return Decision(self._index)

    def explain(self, obs: Observation, decision: Decision) -> str:
        """One sentence."""
        return f"the policy always takes {obs.options[decision.option].name}"


def _find(choice: str, options: Sequence[Option]) -> int:
    for i, option in enumerate(options):
        if option.name == choice:
            return i
    if choice not in set(Route):
        return -1
    mine = [i for i, option in enumerate(options) if option.route == choice]
    return max(mine, key=lambda i: (options[i].accuracy, -options[i].bytes_up), default=-1)
