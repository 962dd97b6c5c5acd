"""`mpc[:horizon]`: plan a few requests ahead over a forecast of the uplink."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import numpy as np

from splitedge.errors import PolicyError
from splitedge.policies.battery import CRITICAL, CRITICAL_TOLERANCE, LOW, LOW_TOLERANCE, Battery
from splitedge.policies.chance import Link, link_of
from splitedge.policies.forecast import clip, make_forecast
from splitedge.policies.in_time import price_of_device
from splitedge.policies.plan_ahead import Ahead, Worth, most, some, unbeaten, weigh
from splitedge.policies.saving import cheaper
from splitedge.policies.scout import check_scout
from splitedge.policy import (
    Decision,
    Estimate,
    Observation,
    Option,
    Policy,
    Route,
    latency_hoped,
    where,
)
from splitedge.policy_argument import read_argument
from splitedge.record import Record

_WORTH, _SCOUTS = 0, 1
_KEPT = 64  # requests under way that are remembered
_ERRORS = 5  # forecasts whose worst error widens the next (Yin et al.)
_LONGEST_S = 10.0  # a gap between requests longer than this counts as this
_RATE = 0.1  # how fast the chances follow what came true
_SHIFT = (-3.0, 1.0)
_ALONE_S = 0.5  # a link to which nothing was sent for so long is left alone
_DOUBT_S = 3.0  # after which half of that is forgotten: a link that was left alone is as unknown as any
_FAR_S = 0.5  # seconds ahead that are forecast at most
_SAFE = 0.01  # probability that a scout may cost


@dataclass(slots=True, eq=False)
class _UnderWay:
    """What was said of a request when it was decided: seconds and bits."""

    t_s: Any
    ends_s: Any
    bits: Any
    chance: Any
    remote: Any


class Mpc(Policy):
    """Take the option whose plan answers most requests right and in time: this one and those behind it.

    A request sent by an option is worth P(the answer comes in time) x accuracy, plus the rest of that
    probability x what the device answers at the deadline instead (the engine falls back; see docs/engine.md).
    The probability comes from the forecast's distribution of goodput and the quantiles of round trip, queue
    and compute, not from one quantile that must hold. `horizon` - 1 more requests are planned behind it, at
    the pace they have come lately: a large payload leaves a queue on the uplink, a slow local model one on
    the device, and both make others late. Plans within `tolerance` are equals, the least joules
    win.

    The policy keeps its own account of bits under way, and learns from each record by how much its chances
    are too high or low: a shift, moved by the difference of what came true and the chance given (as logistic
    regression online), of which half is forgotten in 3 s without sending. An untrained forecast says where
    the goodput goes; how wide it is spread the engine's estimate says. (To measure the spread on single
    payloads was tried: the round trip's changes pass for slow links there.) Where nothing was sent for
    `scout_s` seconds and the device can answer in time, a remote option that could make it on a good link is
    taken, as in `deadline`.

    Source: robust MPC of Yin, Jindal, Sekar, Sinopoli, "A Control-Theoretic Approach for Dynamic Adaptive
    Video Streaming over HTTP", SIGCOMM 2015: a short horizon, replanned at each step, over a forecast whose
    lower side is divided by 1 + the worst of its last five errors. Here the errors are those of the forecast
    against what is seen next, and they widen a distribution.

    For N devices, give all of them at each arrival, in the same order; another number begins anew. At an exit
    some of them may be given: they are decided for by what is seen alone.

    Args:
        horizon: requests planned, this one included, at least 1.
        forecast: `holt`, `ewma`, `harmonic`, or a file that `splitedge policy fit forecast` wrote.
        tolerance: of probability, in [0, 1].
        scout_s: seconds; inf for never.
        low, low_tolerance, critical, critical_tolerance: see `Battery`; nothing scouts at a critical charge.

    Raises:
        PolicyError: a value out of range, no such forecast, or its file can not be read.
    """

    name: ClassVar[str] = "mpc"

    def __init__(
        self,
        horizon: int = 2,
        forecast: str = "holt",
        tolerance: float = 0.003,
        scout_s: float = 1.0,
        low: float = LOW,
        low_tolerance: float = LOW_TOLERANCE,
        critical: float = CRITICAL,
        critical_tolerance: float = CRITICAL_TOLERANCE,
    ) -> None:
        if not 1 <= horizon <= 20:
            raise PolicyError(f"policy 'mpc': the horizon must be 1 to 20 requests, got {horizon}")
        if not 0.0 <= tolerance <= 1.0:
            raise PolicyError(f"policy 'mpc': the tolerance must be in [0, 1], got {tolerance}")
        self.horizon, self.forecast, self.tolerance = horizon, forecast, tolerance
        self.scout_s = check_scout(self.name, scout_s)
        self.battery = Battery(self.name, low, low_tolerance, critical, critical_tolerance)
        self._shape: tuple[int, ...] | None = None
        self._options: tuple[Option, ...] = ()
        self._candidates: tuple[int, ...] = ()
        self._begin()

    @classmethod
    def parse(cls, argument: str | None) -> Self:
        """Make it from `mpc`, `mpc:5` or `mpc:forecast=link.json,tolerance=0.01`.

        Raises:
            PolicyError: an unknown key, or a value that is no number or out of range.
        """
        return cls(**read_argument(cls, argument, main="horizon"))

    def _begin(self) -> None:
        """Forget everything about the devices."""
        self._forecast = make_forecast(self.forecast)
        self._expected: Any = None  # the forecast's median at the last request
        self._errors: tuple[Any, ...] = (0.0,) * _ERRORS
        self._t: Any = None
        self._gap: Any = _LONGEST_S
        self._deadline: Any = math.inf
        self._backlog: Any = 0.0
        self._rate: Any = 0.0
        self._drained: Any = 0.0
        self._shift: Any = 0.0
        self._under_way: deque[_UnderWay] = deque(maxlen=_KEPT)

    # Deciding -----------------------------------------------------------------------------------------

    def decide(self, obs: Observation) -> Decision:
        """The first option of the best plan."""
        shape = _shape(obs)
        if obs.exit >= 0 and shape != self._shape:
            return self._apart(obs)
        if self._shape is not None and shape != self._shape:
            self._begin()  # other devices than before
        self._shape = shape
        self._watch(obs)
        link = link_of(self._robust(obs), self._backlog, self._shift)
        worth = weigh(obs, link)
        tolerance = self.battery.tolerance(self.tolerance, obs.battery)
        best = self._choose(obs, worth, self._totals(obs, link, worth, tolerance), tolerance)
        scouts = self._scout(obs, worth, best)
        option = where(scouts >= 0, scouts, best)
        self._book(obs, link, worth, option)
        return Decision(option, where(scouts >= 0, _SCOUTS, _WORTH))

    def _apart(self, obs: Observation) -> Decision:
        """Decide for some of the devices, which stand at an exit: which of them can not be told, so that what
        is kept of them is neither used nor changed.
        """
        worth = weigh(obs, link_of(obs.goodput, 0.0, 0.0))
        tolerance = self.battery.tolerance(self.tolerance, obs.battery)
        return Decision(self._choose(obs, worth, [one.value for one in worth], tolerance), _WORTH)

    def _choose(self, obs: Observation, worth: list[Worth], totals: list[Any], tolerance: Any) -> Any:
        """The option whose plan is best; while the battery is low, what is surely cheaper and good enough."""
        usual = _cheapest(worth, totals, self.tolerance)
        low = tolerance > self.tolerance
        if low is False:
            return usual
        top: Any = -math.inf
        for total in totals:
            top = where(total > top, total, top)
        good = [total >= top - tolerance for total in totals]
        spared = cheaper(obs, [one.joules for one in worth], [-total for total in totals], good, usual)
        return where(low, spared, usual)

    def _watch(self, obs: Observation) -> None:
        """Let time pass since the last call, and see what the link looks like now."""
        arrives = obs.exit < 0
        if self._t is not None:
            since = obs.t_s - self._drained
            since = where(since > 0.0, since, 0.0)
            backlog = self._backlog - self._rate * since
            self._backlog = where(backlog > 0.0, backlog, 0.0)
            alone = where(obs.unsent_s > _ALONE_S, since, 0.0)
            self._shift = self._shift * 0.5 ** (alone / _DOUBT_S)
            if arrives:
                gap = obs.t_s - self._t
                gap = where(gap > 0.0, gap, 0.0)
                gap = where(gap < _LONGEST_S, gap, _LONGEST_S)
                self._gap = where(self._gap >= _LONGEST_S, gap, self._gap + 0.2 * (gap - self._gap))
        self._drained = obs.t_s
        if not arrives:
            return
        self._t, self._deadline = obs.t_s, obs.deadline_s
        seen = obs.goodput.mean
        if self._expected is not None:
            self._errors = (*self._errors[1:], abs(self._expected - seen) / seen)
        self._forecast.observe(obs.t_s, seen, obs.rtt.mean)
        self._expected = self._forecast.predict(where(self._gap < _FAR_S, self._gap, _FAR_S)).mean

    def _robust(self, obs: Observation) -> Estimate:
        """The forecast, its lower side widened by the worst of the last errors."""
        if not self._forecast.started:  # a request first seen at an exit
            return obs.goodput
        horizon = where(obs.deadline_s < _FAR_S, obs.deadline_s, _FAR_S)
        middle, low, high = self._forecast.predict(where(horizon > 0.0, horizon, 0.0))
        if not self._forecast.knows_width:
            seen = obs.goodput
            low, high = middle * seen.low / seen.mean, middle * seen.high / seen.mean
        worst: Any = 0.0
        for error in self._errors:
            worst = where(error > worst, error, worst)
        bound = middle / (1.0 + worst)
        return Estimate(middle, where(low < bound, low, bound), high)

    def _totals(self, obs: Observation, link: Link, worth: list[Worth], tolerance: Any) -> list[Any]:
        """What each option's plan is worth; -1 out of reach."""
        price = price_of_device(obs)  # of what is left to do behind the horizon
        if self.horizon == 1:
            return [one.value - price * one.edge_s for one in worth]
        if obs.options is not self._options:
            self._options, self._candidates = obs.options, unbeaten(obs.options)
        gap, deadline = self._gap, self._deadline
        ahead = Ahead(obs, link, worth, self._candidates, gap, deadline, self.horizon - 1)
        best: Any = -math.inf
        totals: list[Any] = [-1.0] * len(worth)
        for i in sorted(range(len(worth)), key=lambda i: -most(worth[i].value)):
            one = worth[i]
            near = (one.value >= 0.0) & (one.value + ahead.most >= best - tolerance)
            if not some(near):
                continue  # whatever follows, another plan is better
            total = one.value - price * one.edge_s + ahead.value(one.edge_s, one.up_s)
            total = where(near, total, -1.0)
            totals[i] = total
            best = where(total > best, total, best)
        return totals

    def _scout(self, obs: Observation, worth: list[Worth], best: Any) -> Any:
        """The option to scout the link with in place of a local `best`, -1 for none.

        Nothing may be lost by it: the device's own answer behind the scout must be as good.
        """
        due = (obs.unsent_s >= self.scout_s) & obs.link_up & (self.scout_s < math.inf)
        due = where(self.battery.is_critical(obs.battery), False, due)
        if not some(due):
            return -1
        local: Any = 0.0
        for option, one in zip(obs.options, worth, strict=True):
            if not option.remote:
                local = where(one.value > local, one.value, local)
        found: Any = -1
        floor: Any = 0.0
        for i, option in enumerate(obs.options):
            if not option.remote:
                continue
            due = due & (best != i)
            safe = worth[i].fallback >= local - _SAFE
            chosen = (latency_hoped(option, obs) <= obs.deadline_s) & safe & (option.accuracy > floor)
            found = where(chosen, i, found)
            floor = where(chosen, option.accuracy, floor)
        return where(due, found, -1)

    # Accounts -----------------------------------------------------------------------------------------

    def _book(self, obs: Observation, link: Link, worth: list[Worth], option: Any) -> None:
        """Write down what is sent, in place of what was decided for the same request before."""
        t_s, ends_s = obs.t_s, obs.t_s + obs.deadline_s
        if obs.exit >= 0 and (before := self._take(lambda one: _same(one.ends_s, ends_s))) is not None:
            t_s = before.t_s
            backlog = self._backlog - before.bits
            self._backlog = where(backlog > 0.0, backlog, 0.0)
        bits: Any = 0.0
        chance: Any = 0.0
        remote: Any = False
        for i, one in enumerate(obs.options):
            if one.remote:
                mine = option == i
                bits = where(mine, 8.0 * one.bytes_up * obs.rows, bits)
                chance = where(mine, worth[i].chance, chance)
                remote = remote | mine
        self._backlog = self._backlog + bits
        self._rate = link.rate
        self._under_way.append(_UnderWay(t_s, ends_s, bits, chance, remote))

    def _take(self, is_it: Callable[[_UnderWay], bool]) -> _UnderWay | None:
        for i, one in enumerate(self._under_way):
            if is_it(one):
                del self._under_way[i]
                return one
        return None

    def learn(self, record: Record) -> None:
        """Set the chances and the account of the uplink right by what came of a request."""
        said = self._take(lambda one: bool(np.array_equal(one.t_s, record.t_s)))
        if said is None:
            return
        sent = said.remote & (record.attempts >= 1) & (record.forced == False)  # noqa: E712 - may be an array
        came = sent & ((record.route == Route.SPLIT) | (record.route == Route.CLOUD)) & record.met
        late = sent & (came == False)  # noqa: E712
        attempts = where(record.attempts > 1, record.attempts, 1)
        bits = 8.0 * record.bytes_up / attempts
        self._shift = clip(self._shift + where(sent, _RATE * (came - said.chance), 0.0), *_SHIFT)
        # Bytes leave in order: behind what has arrived only what was sent later can still be under way.
        later: Any = 0.0
        for one in self._under_way:
            later = later + where(one.t_s > said.t_s, one.bits, 0.0)
        self._backlog = where(came & (later < self._backlog), later, self._backlog)
        self._backlog = where(late & (bits > self._backlog), bits, self._backlog)

    def explain(self, obs: Observation, decision: Decision) -> str:
        """One sentence."""
        option = obs.options[decision.option]
        robust = self._robust(obs)
        worth = weigh(obs, link_of(robust, self._backlog, self._shift))[decision.option]
        left = "" if obs.deadline_s == math.inf else f" with {1e3 * obs.deadline_s:.1f} ms left"
        link = "the cloud is out of reach"
        if obs.link_up:
            link = f"uplink forecast {robust.low / 1e6:.2f} to {robust.high / 1e6:.2f} Mbit/s"
        if decision.why == _SCOUTS:
            unsent = f"nothing was sent for {obs.unsent_s:.1f} s"
            then = "the device answers if the cloud does not"
            return f"{unsent}: {option.name} scouts the link{left} ({link}); {then}"
        behind = ""
        if option.remote and worth.fallback > 0.0:
            behind = f", else the device's answer is right with {worth.fallback:.1%}"
        plan = f"the next {self.horizon} requests" if self.horizon > 1 else "this request"
        return (
            f"{option.name} begins the best plan of {plan}{left}: in time with {worth.chance:.1%}, right and "
            f"in time with {worth.value:.1%}{behind} ({link})"
            f"{self.battery.reason(self.tolerance, obs.battery)}"
        )


def _cheapest(worth: list[Worth], totals: list[Any], tolerance: Any) -> Any:
    """The option of least joules among those within `tolerance` of the best; of equals, the best."""
    top: Any = -math.inf
    for total in totals:
        top = where(total > top, total, top)
    best: Any = 0
    best_j: Any = math.inf
    best_total: Any = -math.inf
    for i, one in enumerate(worth):
        cost = where(totals[i] >= top - tolerance, one.joules, math.inf)
        better = (cost < best_j) | ((cost == best_j) & (cost < math.inf) & (totals[i] > best_total))
        best = where(better, i, best)
        best_j = where(better, cost, best_j)
        best_total = where(better, totals[i], best_total)
    return best


def _shape(obs: Observation) -> tuple[int, ...]:
    """() for one device, (N,) for N."""
    numbers = (obs.goodput.mean, obs.rtt.mean, obs.deadline_s, obs.edge_wait_s, obs.link_up, obs.t_s)
    return next((n.shape for n in numbers if isinstance(n, np.ndarray) and n.ndim), ())


def _same(one: Any, other: Any) -> bool:
    """Whether two times are the same but for rounding."""
    if isinstance(one, np.ndarray) or isinstance(other, np.ndarray):
        return bool(np.shape(one) == np.shape(other) and np.allclose(one, other, rtol=0.0, atol=1e-6))
    return bool(one == other or abs(one - other) < 1e-6)
