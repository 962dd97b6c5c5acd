"""How likely each option is to be in time, and what it is worth with what the device does if it is not."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

from splitedge.paths import EQUAL
from splitedge.policies.latency import known_accuracy, within_reach
from splitedge.policy import Observation, Option, edge_left, joules, where

#: Student's t with 2 degrees of freedom has its 95th percentile at 2.92 and a closed form.
_T95 = 2.92
#: A channel is seldom much faster than its mean: below it the spread is so many times narrower.
_EARLY = 1.5
_FAR = 1e9
_LEAST = 1e-12  # seconds squared: a spread of nothing
#: Of accuracy: what a second of an idle device is worth to the requests behind, and how much more for every
#: second that is queued there already. Without the latter a policy fills a device that has no time left.
BUSY, CROWDED = 0.1, 20.0


def accuracy_here(option: Option, obs: Observation) -> Any:
    """Probability that an option answers right, given what an exit has said of this input.

    An input that the exit is sure of is easy for the whole model too: an option whose errors are half of the
    exit's on the whole is taken to err half as often on an input of any confidence. Comparing the exit's
    confidence with the mean accuracy instead would stop at exits whose surest answers are still worse than
    those that it forgoes. (On 8,000 CIFAR-10 images, where an exit of ResNet-56 was 95% sure and right in
    95%, the whole model behind WebP was right in 98%; in 93% of all.)
    """
    usual = known_accuracy(option, obs)
    exits = [o for o in obs.options if o.exit is not None and o.exit == obs.exit]
    if obs.exit < 0 or not exits or option is exits[0]:
        return usual
    share = (1.0 - option.accuracy) / max(1.0 - exits[0].accuracy, _LEAST)
    here = 1.0 - (1.0 - obs.confidence) * min(share, 1.0)
    return where(here == here, here, usual)


def price_of_device(obs: Observation) -> Any:
    """Of accuracy: what a second of the device costs the requests behind."""
    return BUSY + CROWDED * obs.edge_wait_s


class Worth(NamedTuple):
    """What an option is worth.

    Attributes:
        right: probability of a right answer in time, by the device where the cloud is late; -1 out of reach.
        joules: expected, the device's answer included where it has to give one.
        busy_s: seconds the device is expected to be busy with it, likewise.
        mean_s: predicted mean seconds.
        chance: probability that the option itself answers in time.
    """

    right: Any
    joules: Any
    busy_s: Any
    mean_s: Any
    chance: Any


class Prospects:
    """What can be expected of every option of an observation. Numbers are floats or of shape (N,).

    The latency of an option is its predicted mean with a heavy-tailed spread: Student's t with two degrees of
    freedom through the 95th percentile, whose parts (transmission, round trip, queue, compute) are added as
    independent ones: their squares. Recorded channels have such tails: queues that do not empty, outages.
    Over seven recorded uplinks and six deadlines, of the requests given a chance of 30 to 50%, 50 to 70%, 70
    to 85%, 85 to 95% and more, 33, 70, 83, 91 and 99% were in time.

    What the device answers if the cloud is late is its most accurate option that still fits when the remote
    option's own work on the device is done; of equals the fastest, as the engine takes them.

    Args:
        obs: what the policy sees.
    """

    def __init__(self, obs: Observation) -> None:
        rows, up, down, rtt, queue = obs.rows, obs.goodput, obs.downlink, obs.rtt, obs.queue
        self._obs = obs
        self._up, self._up_most = 8.0 * rows / up.mean, 8.0 * rows / up.low
        self._down, self._down_most = 8.0 * rows / down.mean, 8.0 * rows / down.low
        self._link = rtt.mean + queue.mean
        delay, wait = rtt.high - rtt.mean, queue.high - queue.mean
        self._squares = delay * delay + wait * wait
        self._reach = within_reach(obs, True)
        # What the device answers: how often right, its 95th percentile, what it costs, and right in time.
        self._right: Any = 0.0
        self._late: Any = math.inf
        self._cost: Any = 0.0
        self._busy: Any = 0.0
        self._surely: Any = 0.0
        found = [None if option.remote else self._here(option) for option in obs.options]
        #: What each option is worth, in the order of the options.
        self.worth = [
            self._there(option) if one is None else one
            for option, one in zip(obs.options, found, strict=True)
        ]

    @property
    def device_answers(self) -> Any:
        """Whether an option of the device fits, at the 95th percentile."""
        return self._late < math.inf

    def _here(self, option: Option) -> Worth:
        """Of an option that needs no cloud; the fall-back from now on, if it is the best so far."""
        obs = self._obs
        edge, most, right = self._device(option)
        more = most - edge
        mean, late = obs.edge_wait_s + edge, obs.edge_wait_s + most
        chance = self._chance(mean, more * more)
        worth = Worth(chance * right, edge * obs.joules_per_edge_s, edge, mean, chance)
        best = self._right
        better = (right > best + EQUAL) | ((right > best - EQUAL) & (late < self._late))
        better = better & (late <= obs.deadline_s) & (late < math.inf)
        if better is not False:
            self._right = where(better, right, best)
            self._late = where(better, late, self._late)
            self._cost = where(better, worth.joules, self._cost)
            self._busy = where(better, edge, self._busy)
            self._surely = where(better, worth.right, self._surely)
        return worth

    def _there(self, option: Option) -> Worth:
        """Of a remote option, with the fall-back behind it."""
        obs = self._obs
        edge, most, right = self._device(option)
        more, cloud = most - edge, option.cloud_s * obs.rows
        sent, back = option.bytes_up * self._up, option.bytes_down * self._down
        mean = obs.edge_wait_s + edge + sent + back + self._link + cloud
        up = option.bytes_up_q95 * self._up_most - sent
        down, slow = option.bytes_down * self._down_most - back, option.cloud_s_q95 * obs.rows - cloud
        chance = self._chance(mean, more * more + up * up + down * down + slow * slow + self._squares)
        spare = (1.0 - chance) * (self._late + most <= obs.deadline_s)
        value = where(self._reach, chance * right + spare * self._surely, -1.0)
        cost = joules(option, obs) + spare * self._cost
        return Worth(value, cost, edge + spare * self._busy, mean, chance)

    def _device(self, option: Option) -> tuple[Any, Any, Any]:
        """Seconds of the device still to come, mean and 95th percentile, and how often it is right."""
        obs = self._obs
        if obs.exit < 0:
            return option.edge_s * obs.rows, option.edge_s_q95 * obs.rows, option.accuracy
        edge = edge_left(option, obs, option.edge_s) * obs.rows
        return edge, edge_left(option, obs, option.edge_s_q95) * obs.rows, accuracy_here(option, obs)

    def _chance(self, mean: Any, squares: Any) -> Any:
        t = _T95 * (self._obs.deadline_s - mean) / (squares + _LEAST) ** 0.5
        t = where(t < 0.0, _EARLY * t, t)
        t = where(t < _FAR, t, _FAR)
        return 0.5 + 0.5 * t / (2.0 + t * t) ** 0.5
