"""How likely an option is to answer in time, and what it is worth, given what the device does if it does not."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from splitedge.policies.latency import known_accuracy, within_reach
from splitedge.policy import Observation, Option, joules, latency_mean, latency_q95, where

#: Student's t with 2 degrees of freedom has its 95th percentile at 2.92 and a closed form.
_T95 = 2.92
_LEAST_S = 1e-6
#: Of accuracy: fall-backs that differ by less are as good as each other to the engine.
EQUAL = 0.02


def chance_in_time(option: Option, obs: Observation) -> Any:
    """Probability that `option` answers within the time left.

    The latency is taken to be its predicted mean with a heavy-tailed spread: Student's t with two degrees
    of freedom through the predicted 95th percentile, whose parts are added as independent ones (their
    squares). Recorded channels have such tails: a queue that never empties, an outage.
    """
    mean = latency_mean(option, obs)
    spread = latency_q95(option, obs) - mean
    if option.remote:
        bits = option.bytes_up * 8.0 * obs.rows
        most = option.bytes_up_q95 * 8.0 * obs.rows / obs.goodput.low - bits / obs.goodput.mean
        delay, queue = obs.rtt.high - obs.rtt.mean, obs.queue.high - obs.queue.mean
        rest = spread - most - delay - queue
        spread = (most * most + delay * delay + queue * queue + rest * rest) ** 0.5
    spread = where(spread > _LEAST_S, spread, _LEAST_S)
    t = _T95 * (obs.deadline_s - mean) / spread
    t = where(t < 1e9, t, 1e9)
    t = where(t > -1e9, t, -1e9)
    return 0.5 + 0.5 * t / (2.0 + t * t) ** 0.5


class Fallback:
    """What the device answers, and by when, if the cloud does not: its most accurate option that fits, and its
    fastest, which leaves more time.
    """

    def __init__(self, obs: Observation) -> None:
        best: Any = 0.0
        best_s: Any = math.inf
        best_j: Any = 0.0
        fast: Any = 0.0
        fast_s: Any = math.inf
        fast_j: Any = 0.0
        for option in obs.options:
            if option.remote:
                continue
            late, right, cost = latency_q95(option, obs), known_accuracy(option, obs), joules(option, obs)
            fits = late <= obs.deadline_s
            # As the engine does: of equals the fastest, the device is shared.
            better = fits & ((right > best + EQUAL) | ((right > best - EQUAL) & (late < best_s)))
            best, best_s = where(better, right, best), where(better, late, best_s)
            best_j = where(better, cost, best_j)
            faster = fits & (late < fast_s)
            fast, fast_s = where(faster, right, fast), where(faster, late, fast_s)
            fast_j = where(faster, cost, fast_j)
        self._best, self._best_s, self._best_j = best, best_s, best_j
        self._fast, self._fast_s, self._fast_j = fast, fast_s, fast_j

    def behind(self, option: Option, obs: Observation) -> tuple[Any, Any]:
        """Its accuracy and joules behind a remote option, whose own work on the device comes first; 0 and 0
        where none fits.
        """
        spent = option.edge_s_q95 * obs.rows
        best, fast = self._best_s + spent <= obs.deadline_s, self._fast_s + spent <= obs.deadline_s
        right = where(best, self._best, where(fast, self._fast, 0.0))
        return right, where(best, self._best_j, where(fast, self._fast_j, 0.0))


class Worth(NamedTuple):
    """What an option is worth: the probability of a right answer in time, and joules, fall-back included."""

    right: Any
    joules: Any


def worth(option: Option, obs: Observation, fallback: Fallback) -> Worth:
    """What becomes of a request sent by way of `option`; `right` is -1 out of reach."""
    chance = chance_in_time(option, obs)
    right, cost = known_accuracy(option, obs), joules(option, obs)
    if not option.remote:
        return Worth(chance * right, cost)
    spare, spare_j = fallback.behind(option, obs)
    value = chance * right + (1.0 - chance) * spare
    return Worth(where(within_reach(obs, True), value, -1.0), cost + (1.0 - chance) * spare_j)
