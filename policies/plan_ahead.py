"""What a request sent by each option is worth, and what it does to the requests behind it."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from splitedge.policies.chance import Link, arrives, done
from splitedge.policies.in_time import accuracy_here
from splitedge.policy import Observation, Option, Route, joules, where

#: Weights of the 5th, 50th and 95th percentile in place of a distribution (Pearson and Tukey, Biometrika
#: 1965).
_WEIGHTS = (0.185, 0.63, 0.185)


#: What a request counts against the one before it.
_LATER = 0.8


class Worth(NamedTuple):
    """Of one option.

    Attributes:
        value: probability that the request is answered right and in time; -1 out of reach.
        chance: that of an answer by the option itself in time.
        fallback: probability of a right answer of the device in time, if the cloud's comes too late.
        edge_s, up_s: seconds until device and uplink are free again.
        joules: of the device, its own answer counted as far as it will be needed.
    """

    value: Any
    chance: Any
    fallback: Any
    edge_s: Any
    up_s: Any
    joules: Any


def left_of(option: Option, obs: Observation, depth_s: float) -> tuple[Any, Any]:
    """Compute seconds still to spend on an option, mean and 95th percentile.

    Args:
        option: it.
        obs: what is seen.
        depth_s: compute seconds of the exit at which the request stands, for one row; -1 on arrival.
    """
    edge, edge_q = option.edge_s * obs.rows, option.edge_s_q95 * obs.rows
    if depth_s < 0.0 or option.route not in (Route.SPLIT, Route.EXIT):
        return edge, edge_q
    if option.route is Route.EXIT and option.edge_s <= depth_s:
        return 0.0, 0.0
    edge, edge_q = edge - obs.sunk_s, edge_q - obs.sunk_s
    return where(edge > 0.0, edge, 0.0), where(edge_q > 0.0, edge_q, 0.0)


def weigh(obs: Observation, link: Link) -> list[Worth]:
    """What each option is worth now, with the device's answer behind it counted."""
    depth = max((o.edge_s for o in obs.options if obs.exit >= 0 and o.exit == obs.exit), default=-1.0)
    left = [left_of(option, obs, depth) for option in obs.options]
    right = [accuracy_here(option, obs) for option in obs.options]
    wait, deadline = obs.edge_wait_s, obs.deadline_s
    reach = obs.link_up if any(not option.remote for option in obs.options) else True
    busy_s = link.backlog / link.rate
    found = []
    for i, option in enumerate(obs.options):
        begins, begins_q = wait + left[i][0], wait + left[i][1]
        if not option.remote:
            chance = done(deadline, begins, begins_q)
            cost = joules(option, obs)
            found.append(Worth(chance * right[i], chance, 0.0, begins, busy_s, cost))
            continue
        chance, gone = _sent(option, obs, link, begins, begins_q)
        fallback: Any = 0.0
        spent: Any = 0.0
        for j, other in enumerate(obs.options):
            if other.remote:
                continue
            more = (0.0, 0.0) if _passes(option, other) else left[j]
            value = done(deadline, begins + more[0], begins_q + more[1]) * right[j]
            better = value > fallback
            fallback, spent = where(better, value, fallback), where(better, more[0], spent)
        value = chance * right[i] + (1.0 - chance) * fallback
        value = where(reach, value, -1.0)
        needed = (1.0 - chance) * spent
        cost = joules(option, obs) + needed * obs.joules_per_edge_s
        found.append(Worth(value, chance, fallback, begins + needed, gone, cost))
    return found


def _sent(option: Option, obs: Observation, link: Link, begins: Any, begins_q: Any) -> tuple[Any, Any]:
    """Probability that the cloud's answer comes in time, and seconds until the uplink is free again."""
    rows = obs.rows
    queued = link.backlog - link.rate * begins
    bits = option.bytes_up * 8.0 * rows + where(queued > 0.0, queued, 0.0)
    back = option.bytes_down * 8.0 * rows / obs.downlink.mean
    usual = obs.deadline_s - begins - option.cloud_s * rows - back
    slow = obs.deadline_s - begins_q - option.cloud_s_q95 * rows - back
    chance = (
        _WEIGHTS[0] * arrives(bits, usual - obs.rtt.low - obs.queue.low, link)
        + _WEIGHTS[1] * arrives(bits, usual - obs.rtt.mean - obs.queue.mean, link)
        + _WEIGHTS[2] * arrives(bits, slow - obs.rtt.high - obs.queue.high, link)
    )
    return chance, begins + bits / link.rate


def _passes(option: Option, other: Option) -> bool:
    """Whether the way to a split leads through an exit, whose answer is then in hand."""
    return option.route is Route.SPLIT and other.route is Route.EXIT and other.edge_s <= option.edge_s


class Ahead:
    """What the requests that follow are worth, by what the device and the uplink are still busy with.

    All of them are planned by the one remote option that is best for them, or by the device where that is
    worth more by then: a blocked plan, as is usual where it is made anew at every step. Each counts `_LATER`
    times the one before: of two plans that use the uplink as much, the one that uses it now is better, or it
    would be put off for ever.

    Args:
        obs: what is seen now; they see the same link.
        link: the uplink.
        worth: of each option now, for the device's answer behind a late one.
        candidates: options that may be planned (`unbeaten`).
        gap_s: seconds between requests.
        deadline_s: of each.
        count: how many follow.
    """

    def __init__(
        self,
        obs: Observation,
        link: Link,
        worth: list[Worth],
        candidates: tuple[int, ...],
        gap_s: Any,
        deadline_s: Any,
        count: int,
    ) -> None:
        self._link, self._gap, self._deadline, self._count = link, gap_s, deadline_s, count
        self._reach = obs.link_up if any(not option.remote for option in obs.options) else True
        delay = obs.rtt.mean + obs.queue.mean
        self._local = [obs.options[i] for i in candidates if not obs.options[i].remote]
        sent = [i for i in candidates if obs.options[i].remote]
        plans = []
        for i in sent or candidates[:1]:
            option = obs.options[i]
            rest = option.cloud_s + delay + 8.0 * option.bytes_down / obs.downlink.mean
            free = self._follow(option, rest, worth[i].fallback, 0.0, 0.0)
            plans.append((free, option, rest, worth[i].fallback))
        # Nothing is worth more than on an idle device and link: the best there are tried first, and a plan is
        # not looked at where even that is less than what was found.
        self._plans = sorted(plans, key=lambda plan: -float(np.max(plan[0])))
        self.most: Any = -math.inf
        for plan in plans:
            self.most = where(plan[0] > self.most, plan[0], self.most)

    def value(self, edge_s: Any, up_s: Any) -> Any:
        """Sum of the probabilities to be right and in time, by the best plan; never more than `most`."""
        if not (some(edge_s > self._gap) or some(up_s > self._gap)):
            return self.most
        best: Any = -math.inf
        for free, option, rest_s, behind in self._plans:
            if some(free > best):
                total = self._follow(option, rest_s, behind, edge_s, up_s)
                best = where(total > best, total, best)
        return best

    def _follow(self, option: Option, rest_s: Any, behind: Any, edge: Any, up: Any) -> Any:
        link, deadline = self._link, self._deadline
        total: Any = 0.0
        weight = 1.0
        bits = 8.0 * option.bytes_up
        for _ in range(self._count):
            weight *= _LATER
            edge, up = edge - self._gap, up - self._gap
            edge, up = where(edge > 0.0, edge, 0.0), where(up > 0.0, up, 0.0)
            best: Any = 0.0
            busy: Any = edge
            for other in self._local:
                value = done(deadline, edge + other.edge_s, edge + other.edge_s_q95) * other.accuracy
                better = value > best
                best, busy = where(better, value, best), where(better, edge + other.edge_s, busy)
            if option.remote:
                begins = edge + option.edge_s
                queued = where(up > begins, up - begins, 0.0)
                chance = arrives(bits + queued * link.rate, deadline - begins - rest_s, link)
                here = done(deadline, begins, edge + option.edge_s_q95)
                value = where(self._reach, chance * option.accuracy + (1.0 - chance) * behind * here, 0.0)
                better = value > best
                best, busy = where(better, value, best), where(better, begins, busy)
                up = where(better, begins + queued + bits / link.rate, up)
            total, edge = total + weight * best, busy
        return total


def unbeaten(options: tuple[Option, ...]) -> tuple[int, ...]:
    """Options that no other of their kind (local or remote) beats in bytes, device seconds and accuracy at
    once.
    """
    costs = [(o.bytes_up, o.edge_s, -o.accuracy) for o in options]
    return tuple(
        i
        for i, mine in enumerate(costs)
        if not any(
            options[j].remote is options[i].remote
            and theirs != mine
            and all(a <= b for a, b in zip(theirs, mine, strict=True))
            for j, theirs in enumerate(costs)
        )
    )


def some(condition: Any) -> bool:
    """Whether it holds for any device."""
    return bool(condition.any()) if isinstance(condition, np.ndarray) else bool(condition)


def most(number: Any) -> float:
    """The greatest of all devices."""
    return float(number.max()) if isinstance(number, np.ndarray) else float(number)
