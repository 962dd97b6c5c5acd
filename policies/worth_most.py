"""Which option is worth most, and of equals the cheapest: what `deadline` makes of `Prospects`."""

from __future__ import annotations

import math
from typing import Any, Final

from splitedge.policies.battery import Battery
from splitedge.policies.in_time import Expected, Prospects, price_of_device
from splitedge.policies.latency import known_accuracy
from splitedge.policies.saving import cheaper
from splitedge.policies.scout import scout, scouts_now
from splitedge.policy import Decision, Observation, where

#: Why an option was chosen.
FITS: Final = 0
NONE_FITS: Final = 1
SCOUTS: Final = 2
#: An option with a smaller chance than this is not predicted to answer in time.
_LIKELY: Final = 0.5


def worth_most(obs: Observation, usual: float, scout_s: float, battery: Battery) -> Decision:
    """The option worth most; of equals, the cheapest.

    Args:
        obs: what the policy sees.
        usual: of worth, within which options are equals.
        scout_s: seconds without a sending after which a request scouts.
        battery: what a low one changes.
    """
    prospects = Prospects(obs)
    price = price_of_device(obs)
    found = prospects.found
    values: list[Any] = []
    top: Any = -math.inf
    fits: Any = False
    for right, _, busy_s, _, chance in found:
        value = right - price * busy_s
        values.append(value)
        better = value > top
        if better is not False:
            top = where(better, value, top)
        if fits is not True:
            fits = fits | ((right >= 0.0) & (chance >= _LIKELY))
    tolerance = battery.tolerance(usual, obs.battery)
    low = tolerance > usual
    best = _cheapest(found, values, top - usual)
    if low is not False:  # what crowds the device is no reason to spend the last of a battery
        spared = _without_price(found, values, low, tolerance, top)
        good = [value >= top - tolerance for value in spared]
        spent, mean_s = [one[1] for one in found], [one[3] for one in found]
        best = where(low, cheaper(obs, spent, mean_s, good, best), best)
    if fits is not True:  # for one device something fits, as a rule
        best = where(fits, best, _fastest(obs, found))
    why = where(fits, FITS, NONE_FITS)
    due = prospects.device_answers & prospects.reach & scouts_now(obs, scout_s)
    if due is not False:
        due = where(battery.is_critical(obs.battery), False, due)
        rights = [known_accuracy(option, obs) for option in obs.options]
        sent = scout(obs, best, due, rights, top + tolerance)
        best, why = where(sent >= 0, sent, best), where(sent >= 0, SCOUTS, why)
    return Decision(best, why)


def _fastest(obs: Observation, found: list[Expected]) -> Any:
    """The option of the least mean latency in reach; of equals, a local one."""
    best: Any = -1
    best_s: Any = math.inf
    for local_first in (False, True):
        for i, option in enumerate(obs.options):
            if option.remote is local_first:
                right, _, _, mean_s, _ = found[i]
                mean = where(right >= 0.0, mean_s, math.inf)
                better = (mean < best_s) | (best < 0)
                best = where(better, i, best)
                best_s = where(better, mean, best_s)
    return best


def _without_price(found: list[Expected], values: list[Any], low: Any, tolerance: Any, top: Any) -> list[Any]:
    """Values that count an option as good enough where its chance to be right is, whatever the device's
    seconds are worth; only where the battery is `low`.
    """
    most: Any = -math.inf
    for right, _, _, _, _ in found:
        most = where(right > most, right, most)
    return [
        where(low & (one[0] >= most - tolerance) & (value < top), top, value)
        for one, value in zip(found, values, strict=True)
    ]


def _cheapest(found: list[Expected], values: list[Any], floor: Any) -> Any:
    """The option of least joules among those whose value is at least `floor`; of equals, the fastest."""
    best: Any = 0
    best_j: Any = math.inf
    best_s: Any = math.inf
    for i, (_, joules, _, mean_s, _) in enumerate(found):
        good = values[i] >= floor
        if good is False:
            continue
        cost, mean = where(good, joules, math.inf), where(good, mean_s, math.inf)
        better = (cost < best_j) | ((cost == best_j) & (mean < best_s))
        if better is False:
            continue
        best = where(better, i, best)
        best_j = where(better, cost, best_j)
        best_s = where(better, mean, best_s)
    return best
