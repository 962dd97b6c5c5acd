"""A request sent to measure a link that looks too slow to use."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from splitedge.errors import PolicyError
from splitedge.policy import Observation, latency_hoped, where


def scouts_now(obs: Observation, scout_s: float) -> Any:
    """Whether nothing was sent for `scout_s` seconds; never where those are inf."""
    return (obs.unsent_s >= scout_s) & (scout_s < math.inf)


def scout(obs: Observation, best: Any, due: Any, worth: Sequence[Any], floor: Any) -> Any:
    """The remote option to scout the link with in place of a local `best`, -1 for none.

    A link that looks too slow to use would look so for ever, since only use measures it. So where nothing was
    sent for some seconds, a remote option is tried that could make it on a good link. It can lose no
    deadline where the device can answer in time: the engine answers from there if the cloud does not.

    Args:
        obs: numbers, or arrays of shape (N,).
        best: the option chosen without scouting.
        due: whether scouting is safe, wanted and of use (`scouts_now`) and a remote option in reach.
        worth: of each option if it made it; the option of most worth scouts (it also has the most bytes, as
            a rule, and so tells most).
        floor: worth that a scout must be above.
    """
    found: Any = -1
    for i, option in enumerate(obs.options):
        if not option.remote:
            continue
        due = due & (best != i)
        chosen = (latency_hoped(option, obs) <= obs.deadline_s) & (worth[i] > floor)
        found = where(chosen, i, found)
        floor = where(chosen, worth[i], floor)
    return where(due, found, -1)


def check_scout(policy: str, scout_s: float) -> float:
    """The seconds, if they are above 0.

    Raises:
        PolicyError: they are not.
    """
    if not scout_s > 0.0:
        raise PolicyError(f"policy '{policy}': scout_s must be above 0 seconds, got {scout_s}")
    return scout_s
