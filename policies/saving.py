"""What a low battery takes in place of the usual choice: only what is surely cheaper.

Looking one request ahead overrates what an answer of the device saves. Simulated drives showed two reasons:

- **The radio's tail.** A request kept on the device saves the tail only if the radio then falls asleep, which
  takes ten seconds without any transfer. Where other requests are sent anyway, nothing is saved, and the
  device's compute comes on top: up to 36% more joules than with a full battery were seen.
- **Exits on the way.** A split request often ends at an exit that it passes, long before it has cost what is
  predicted for it with the cloud's reply late. What takes its place must be cheaper than the request's own
  compute and bits, without the answer that the device may have to give after all.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from splitedge.policy import Observation, joules, where

#: A radio used so recently is in use: the next request will use it again, whatever this one does.
IN_USE_S = 2.0
#: In the last `REST_S` of every `PERIOD_S`, longer than a tail, a part of its tail is counted all the same,
#: so that it falls asleep if only requests keep it awake that need not be sent, where that saves much.
PERIOD_S, REST_S, PART = 120.0, 12.0, 0.5


def tail_joules(obs: Observation) -> Any:
    """Joules of the radio's tail that sending adds, in the long run: none while it is in use, as a rule."""
    gap = where(obs.unsent_s < obs.tail_s, obs.unsent_s, obs.tail_s)
    rests = obs.t_s % PERIOD_S >= PERIOD_S - REST_S
    share = where(obs.unsent_s < IN_USE_S, where(rests, PART, 0.0), 1.0)
    return share * obs.tail_w * gap


def cheaper(
    obs: Observation, spent: Sequence[Any], order: Sequence[Any], good: Sequence[Any], usual: Any
) -> Any:
    """The option of least expected joules that is surely cheaper than the usual one; else that.

    Args:
        obs: numbers, or arrays of shape (N,).
        spent: expected joules of each option, the device's answer behind a late reply and the radio's tail
            (`joules`) in them.
        order: what decides between options of equal joules: the least.
        good: whether each is good enough.
        usual: index of the choice with a full battery.
    """
    gap = where(obs.unsent_s < obs.tail_s, obs.unsent_s, obs.tail_s)
    extra = tail_joules(obs) - obs.tail_w * gap  # in place of the tail that `joules` counts
    cost = [one + extra if option.remote else one for option, one in zip(obs.options, spent, strict=True)]
    own: Any = 0.0
    whole: Any = 0.0
    for i, option in enumerate(obs.options):
        alone = joules(option, obs) + extra if option.remote else cost[i]
        own = where(usual == i, alone, own)
        # of two that may both need the device after all, the whole expectations are compared
        whole = where(usual == i, cost[i], whole)
    best: Any = usual
    least: Any = math.inf
    first: Any = math.inf
    for i, option in enumerate(obs.options):
        limit = whole if option.remote else own
        leads = (cost[i] < least) | ((cost[i] == least) & (order[i] < first))
        better = good[i] & (cost[i] <= limit) & leads
        best = where(better, i, best)
        least = where(better, cost[i], least)
        first = where(better, order[i], first)
    return best
