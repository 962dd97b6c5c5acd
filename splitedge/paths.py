"""Which stages lead to an option, and which options answer without the cloud."""

from __future__ import annotations

import math
from typing import Final

from splitedge.errors import ConfigError
from splitedge.events import Stage, StageKind
from splitedge.policy import Observation, Option, Route, latency_q95
from splitedge.request import NONE, Request

_EPS: Final = 1e-9  # seconds: a guard set for an option must find that it fits, rounding or not
EQUAL: Final = 0.02  # of accuracy: fall-backs that differ by less are as good as each other


class Paths:
    """Derived once from a deployment's options; indices are those of `options`.

    The order of the exits is that of their compute seconds. A split passes the exits that cost no more
    than it does; an exit passes those before it.

    Attributes:
        options: the table.
        names, routes: of the options, as text.
        on_head: for each option, whether its seconds on the device begin with the head's.
        remote: for each option, whether the cloud computes any of it.
        final: for each option, the stage after which it can answer, or its payload is ready.
        stages: for each option, all its stages in order, exits on the way included.
        fallbacks: options that need no cloud, the most accurate first.
        owner: the option of each EXIT and LOCAL stage.
        longest_s: mean compute seconds of the longest way to an option, for one row.
        depth: for each exit's number, its place in the order of exits.
    """

    __slots__ = (
        "_seconds",
        "depth",
        "fallbacks",
        "final",
        "longest_s",
        "names",
        "on_head",
        "options",
        "owner",
        "remote",
        "routes",
        "stages",
    )

    def __init__(self, options: tuple[Option, ...]) -> None:
        if not options:
            raise ConfigError("an engine needs at least one option to answer by")
        self.options = options
        self.names = tuple(option.name for option in options)
        self.routes = tuple(option.route.value for option in options)
        self.on_head = tuple(option.route in (Route.SPLIT, Route.EXIT) for option in options)
        self.remote = tuple(option.remote for option in options)
        self.final = tuple(_final(option, i) for i, option in enumerate(options))
        self._seconds = {
            stage: (option.edge_s, option.edge_s_q95, on_head)
            for stage, option, on_head in zip(self.final, options, self.on_head, strict=True)
        }
        self.longest_s = max(option.edge_s for option in options)
        exits = sorted((o.edge_s, o.exit, i) for i, o in enumerate(options) if o.route is Route.EXIT)
        self.depth = {int(number or 0): place for place, (_, number, _) in enumerate(exits)}
        self.owner = {self.final[i]: i for i in range(len(options)) if not self.remote[i]}
        if len(self.owner) != len(options) - sum(self.remote):
            raise ConfigError("two options of the deployment have the same exit, or both are local models")
        self.stages = tuple(
            self._stages(i, tuple(place for _, _, place in exits)) for i in range(len(options))
        )
        local = [i for i in range(len(options)) if not self.remote[i]]
        self.fallbacks = tuple(sorted(local, key=lambda i: (-options[i].accuracy, options[i].edge_s)))

    def of_route(self, route: Route, obs: Observation) -> int:
        """The option a forced route means: the highest level whose 95th percentile meets the deadline, then
        the most accurate; the fastest where none does. -1 when the deployment has none of that route.
        """
        mine = [i for i, option in enumerate(self.options) if option.route is route]
        if not mine:
            return -1
        seconds = {i: latency_q95(self.options[i], obs) for i in mine}
        fits = [i for i in mine if seconds[i] <= obs.deadline_s]
        if not fits:
            return min(mine, key=lambda i: float(seconds[i]))
        return max(fits, key=lambda i: (self.options[i].level, self.options[i].accuracy, -seconds[i]))

    def cost_s(self, r: Request, stage: Stage, *, quantile: bool) -> float:
        """Predicted compute seconds of a stage (mean, or 95th percentile), less what the head already ran."""
        mean_s, most_s, on_head = self._seconds[stage]
        seconds = (most_s if quantile else mean_s) * r.rows
        if not on_head:
            return seconds
        return seconds - r.sunk_s if seconds > r.sunk_s else 0.0

    def can_fall_back(self, r: Request) -> bool:
        """Whether something on the device has answered or may still answer."""
        return bool(r.in_hand) or any(self.final[i] not in r.passed for i in self.fallbacks)

    def least_s(self, r: Request) -> float:
        """The 95th percentile of the seconds of the cheapest option that needs no cloud."""
        least = math.inf
        for i in self.fallbacks:
            seconds = self.cost_s(r, self.final[i], quantile=True)
            if seconds < least:
                least = seconds
        return least if least < math.inf else 0.0

    def best_fallback(self, r: Request, left_s: float) -> int:
        """The most accurate option that answers without the cloud in `left_s` seconds, what is in hand
        included; of those within `EQUAL` of it, the fastest: the device is shared, and a second of it for
        half a point is one that other requests miss. The fastest where none fits; -1 where the device can
        not answer.
        """
        top, fitting, fastest, fastest_s = -1.0, [], NONE, math.inf
        for option in self.fallbacks:
            confidence, seconds = held(r, option), 0.0
            if confidence is None:
                if self.final[option] in r.passed:
                    continue  # it failed
                seconds = self.cost_s(r, self.final[option], quantile=True)
                if seconds < fastest_s:
                    fastest, fastest_s = option, seconds
                if seconds > left_s + _EPS:
                    continue
            accuracy = self._accuracy(option, confidence)
            fitting.append((option, accuracy, seconds))
            if accuracy > top:
                top = accuracy
        best, least_s = NONE, math.inf
        for option, accuracy, seconds in fitting:
            if accuracy >= top - EQUAL and seconds < least_s:
                best, least_s = option, seconds
        return best if best != NONE else fastest

    def best_in_hand(self, r: Request) -> tuple[int, float]:
        """The option in hand that is most likely right, with its confidence."""
        return max(r.in_hand, key=lambda held: self._accuracy(held[0], held[1]))

    def _accuracy(self, option: int, confidence: float | None) -> float:
        """The calibrated confidence where there is one, else the option's accuracy."""
        if confidence is None or math.isnan(confidence):
            return self.options[option].accuracy
        return confidence

    def _stages(self, index: int, exits: tuple[int, ...]) -> tuple[Stage, ...]:
        option = self.options[index]
        before: list[Stage] = []
        if option.route is Route.SPLIT:
            before = [self.final[i] for i in exits if self.options[i].edge_s <= option.edge_s]
        elif option.route is Route.EXIT:
            before = [self.final[i] for i in exits[: exits.index(index)]]
        return (*before, self.final[index])


def held(r: Request, option: int) -> float | None:
    """Confidence of an answer that is in hand, None where there is none by that option."""
    for index, confidence in r.in_hand:
        if index == option:
            return confidence
    return None


def _final(option: Option, index: int) -> Stage:
    if option.route is Route.EXIT:
        if option.exit is None:
            raise ConfigError(f"option {index} is an exit without a number")
        return Stage(StageKind.EXIT, option.exit)
    if option.route is Route.LOCAL:
        return Stage(StageKind.LOCAL)
    if option.route in (Route.SPLIT, Route.CLOUD):
        return Stage(StageKind.ENCODE, index)
    raise ConfigError(f"option {index} has the route '{option.route}', which the engine can not carry out")
