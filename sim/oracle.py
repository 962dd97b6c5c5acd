"""The oracle: a policy that knows the channel, every answer and every delay before they come; and a bound.

It brackets the best that can be done:

- `oracle` plans all requests of a run ahead, then runs the plan through exact mode, engine and all. What it
  scores **was reached**, so the best possible is no less. It is not the optimum itself: the plan is searched
  in a simpler model (`schedule.py`), for many devices one request at a time. Should a policy beat it, its
  regret is below 0.
- `oracle:channel` is the same without the answers: it knows the channel, the requests and the delays, but of
  an option no more than how often it is right. What the two differ by can not be had by looking at the link.
- `upper_bound` lets each request have the whole system to itself. **No schedule can do better**, and where
  requests queue none may reach it.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import ClassVar

from splitedge.errors import PolicyError
from splitedge.evaluation import Evaluation
from splitedge.policy import Decision, Observation, Option, Policy
from splitedge.sim.curves import Series
from splitedge.sim.future import Ask, Future
from splitedge.sim.link import Link
from splitedge.sim.scenario import Scenario
from splitedge.sim.schedule import BEAM, Scheduler
from splitedge.sim.traces import Trace

#: Sums of seconds are rounded: a bound may be a little too high, never too low.
_ROUNDING_S = 1e-9


class Oracle(Policy):
    """Takes the planned option of each request of one device.

    It knows a request by its time of arrival, after an exit by the moment its answer is due.

    Args:
        times: arrivals, seconds, never falling.
        plan: option of each.
        here: option of each where the cloud is out of reach.
        due_s: seconds from arrival to the moment the engine answers by; inf for no deadline.
    """

    name: ClassVar[str] = "oracle"

    def __init__(
        self, times: Sequence[float], plan: Sequence[int], here: Sequence[int], due_s: float = math.inf
    ) -> None:
        self._times = times
        self._plan = plan
        self._here = here
        self._due_s = due_s
        self._latest = -1

    def decide(self, obs: Observation) -> Decision:
        """The plan's option, or the best on the device while there is no link."""
        if obs.exit < 0:
            number = max(self._number(obs.t_s), self._latest + 1)
            self._latest = number = min(number, len(self._plan) - 1)
        elif self._due_s < math.inf:
            number = self._number(obs.t_s + obs.deadline_s - self._due_s)
        else:
            number = self._latest
        option = self._plan[number]
        if obs.options[option].remote and not obs.link_up:
            option = self._here[number]
        return Decision(option, number)

    def explain(self, obs: Observation, decision: Decision) -> str:
        """One sentence."""
        return f"request {decision.why} was planned ahead, knowing what comes"

    def _number(self, t_s: float) -> int:
        """The first request that arrives at `t_s` or, rounding aside, after it."""
        return min(bisect_left(self._times, t_s - 1e-7), len(self._times) - 1)


def oracle_policies(
    scenario: Scenario, evaluation: Evaluation, up: Trace, down: Trace, beam: int = BEAM
) -> Callable[[int], Oracle]:
    """The oracle of each device of a scenario, for `run_exact(policy=...)`.

    Args:
        scenario: what is to be simulated; its policy is `oracle` or `oracle:channel`.
        evaluation: of the deployment.
        up, down: the channel's traces.
        beam: schedules that the search keeps after each request.

    Raises:
        PolicyError: the policy has another argument.
    """
    _, _, argument = scenario.policy.partition(":")
    if argument not in ("", "channel"):
        raise PolicyError(f"the oracle is 'oracle' or 'oracle:channel', not '{scenario.policy}'")
    future = Future.of(scenario, evaluation, up, down, answers_known=not argument)
    plans = Scheduler(future, beam).plan()
    here = [[0] * len(plan) for plan in plans]
    for ask in future.asks:
        here[ask.device][ask.number] = _best_here(ask, future.options)
    deadline_ms = scenario.work.deadline_ms
    due_s = math.inf
    if deadline_ms is not None:
        due_s = max(0.0, deadline_ms / 1e3 - scenario.engine.margin_s)

    def of(device: int) -> Oracle:
        return Oracle(future.times[device].tolist(), plans[device], here[device], due_s)

    return of


def upper_bound(scenario: Scenario, evaluation: Evaluation, up: Trace, down: Trace) -> float:
    """Share of requests that some option answers right in time if the request is alone in the system.

    No policy and no schedule can answer more of these requests right in time: queues, batches, cuts and lost
    packets only delay.
    """
    future = Future.of(scenario, evaluation, up, down)
    links = [future.links(device) for device in range(scenario.device.count)]

    def in_time(ask: Ask, option: int) -> bool:
        return _alone(future, ask, option, links[ask.device]) <= ask.limit_s + _ROUNDING_S

    options = range(len(future.options))
    good = sum(any(in_time(ask, option) for option in options if ask.right[option]) for ask in future.asks)
    return good / len(future.asks) if future.asks else math.nan


def _alone(future: Future, ask: Ask, option: int, links: tuple[Link, Link]) -> float:
    """When the answer is there at the earliest, seconds of the run's clock."""
    shell = future.scenario.shell
    done = ask.t_s + ask.edge_s[option] + shell.stage_ms / 1e3
    if not future.options[option].remote or ask.nbytes[option] == 0:
        return done
    up, down = links
    sent = done + shell.send_ms / 1e3
    there = _earliest(up, sent, ask.nbytes[option], ask.limit_s)
    if there == math.inf:
        return math.inf
    answered = there + ask.cloud_s[option] + 2.0 * shell.cloud_ms / 1e3
    back = future.bytes_down[option]
    return _earliest(down, answered, back, ask.limit_s) + shell.receive_ms / 1e3


def _earliest(link: Link, now: float, nbytes: int, limit_s: float) -> float:
    """When the last byte can be there at the earliest on an empty link, whenever from `now` on it is sent.

    An RTT that falls lets bytes sent later arrive earlier: each step of it before the limit is tried.
    """
    channel = link.channel
    offered = channel.capacity.bits_by(now + channel.start_s)
    left = max(now, channel.capacity.time_of(offered + 8 * nbytes) - channel.start_s)
    if left > channel.ends_s or left > limit_s:
        return math.inf
    rtt = channel.rtt_s
    if not isinstance(rtt, Series):
        return left + 0.5 * rtt
    best = left + 0.5 * rtt.at(left + channel.start_s)
    lap, rest = divmod(left + channel.start_s, rtt.period_s)
    i = bisect_left(rtt.time_s, rest)
    while True:
        if i == len(rtt.time_s):
            lap, i = lap + 1.0, 0
        moment = lap * rtt.period_s + float(rtt.time_s[i]) - channel.start_s
        if moment >= best:
            return best
        best = min(best, moment + 0.5 * float(rtt.value[i]))
        i += 1


def _best_here(ask: Ask, options: tuple[Option, ...]) -> int:
    """The cheapest option on the device that is right; the cheapest where none is."""
    here = [i for i, option in enumerate(options) if not option.remote]
    return min(here, key=lambda i: (-ask.right[i], ask.edge_s[i]), default=0)
