"""How likely each option is to be in time, and what it is worth with what the device does if it is not."""

from __future__ import annotations

import math
from typing import Any, Final, NamedTuple

from splitedge.paths import EQUAL
from splitedge.policies.latency import known_accuracy
from splitedge.policies.terms import Local, Remote, terms_of
from splitedge.policy import Observation, Option, edge_left, joules_of_tail, where

#: Student's t with 2 degrees of freedom has its 95th percentile at 2.92 and a closed form.
_T95: Final = 2.92
#: A channel is seldom much faster than its mean: below it the spread is so many times narrower.
_EARLY: Final = 1.5
_FAR: Final = 1e9
_LEAST: Final = 1e-12  # seconds squared: a spread of nothing
_UNKNOWN = (math.nan,) * 5
#: Of accuracy: what a second of an idle device is worth to the requests behind, and how much more for every
#: second that is queued there already. Without the latter a policy fills a device that has no time left.
BUSY: Final = 0.1
CROWDED: Final = 20.0


def accuracy_here(option: Option, obs: Observation) -> Any:
    """Probability that an option answers right, given what an exit has said of this input.

    An input that the exit is sure of is easy for the whole model too: an option whose errors are half of the
    exit's on the whole is taken to err half as often on an input of any confidence. Comparing the exit's
    confidence with the mean accuracy instead would stop at exits whose surest answers are still worse than
    those that it forgoes. (On 8,000 CIFAR-10 images, where an exit of ResNet-56 was 95% sure and right in
    95%, the whole model behind WebP was right in 98%; in 93% of all.)
    """
    usual = known_accuracy(option, obs)
    if obs.exit < 0:
        return usual
    passed = terms_of(obs.options).exits.get(obs.exit)
    if passed is None or option is passed:
        return usual
    share = (1.0 - option.accuracy) / max(1.0 - passed.accuracy, _LEAST)
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


#: The fields of a `Worth`, as a plain tuple: they are made for every option of every decision.
Expected = tuple[Any, Any, Any, Any, Any]


class Prospects:
    """What can be expected of every option of an observation. Numbers are floats or of shape (N,).

    The latency of an option is its predicted mean with a heavy-tailed spread: Student's t with two degrees of
    freedom through the 95th percentile, whose parts (transmission, round trip, queue, compute) are added as
    independent ones: their squares. Recorded channels have such tails: queues that do not empty, outages.
    Over seven recorded uplinks and six deadlines, of the requests given a chance of 30 to 50%, 50 to 70%, 70
    to 85%, 85 to 95% and more, 33, 70, 83, 91 and 99% were in time.

    The tail is as heavy to the quick side, where no link is: a payload that would not have left in time at
    the 90th percentile of goodput has no chance. (It would have some percent at 1 kbit/s.)

    What the device answers if the cloud is late is its most accurate option that still fits when the remote
    option's own work on the device is done; of equals the fastest, as the engine takes them.

    Args:
        obs: what the policy sees.

    Attributes:
        found: what each option is worth, in the order of the options.
        device_answers: whether an option of the device fits, at the 95th percentile.
        reach: whether a remote option may be chosen.
    """

    __slots__ = ("device_answers", "found", "reach")

    def __init__(self, obs: Observation) -> None:
        terms = terms_of(obs.options)
        self.found: list[Expected] = [_UNKNOWN] * len(obs.options)
        self.reach = obs.link_up if terms.local else True
        fallback = self._here(terms.local, obs)
        self.device_answers = fallback[1] < math.inf
        if terms.remote:
            self._there(terms.remote, obs, fallback)

    @property
    def worth(self) -> list[Worth]:
        """`found` with names."""
        return [Worth(*one) for one in self.found]

    def _here(self, local: tuple[Local, ...], obs: Observation) -> Expected:
        """Of the options that need no cloud; gives what the best of them that fits is as a fall-back: how
        often right, its 95th percentile, what it costs, its seconds of the device, and right in time.
        """
        rows, wait, left, watts = obs.rows, obs.edge_wait_s, obs.deadline_s, obs.joules_per_edge_s
        best: Any = 0.0
        least: Any = math.inf
        cost: Any = 0.0
        busy: Any = 0.0
        surely: Any = 0.0
        for i, option, edge_s, most_s, usual in local:
            right: Any = usual
            if obs.exit < 0:
                edge, most = edge_s * rows, most_s * rows
            else:
                edge, most, right = _after_exit(option, obs)
            more = most - edge
            mean, late = wait + edge, wait + most
            chance = _chance(left - mean, more * more)
            sure, spent = chance * right, edge * watts
            self.found[i] = (sure, spent, edge, mean, chance)
            better = (right > best + EQUAL) | ((right > best - EQUAL) & (late < least))
            better = better & (late <= left) & (late < math.inf)
            if better is not False:
                best = where(better, right, best)
                least = where(better, late, least)
                cost = where(better, spent, cost)
                busy = where(better, edge, busy)
                surely = where(better, sure, surely)
        return best, least, cost, busy, surely

    def _there(
        self, remote: tuple[Remote, ...], obs: Observation, fallback: tuple[Any, Any, Any, Any, Any]
    ) -> None:
        """Of the remote options, with the fall-back behind each."""
        _, late, cost, busy, surely = fallback
        rows, wait, left, reach = obs.rows, obs.edge_wait_s, obs.deadline_s, self.reach
        bits = 8.0 * rows
        (up, up_least, _), (down, down_least, _) = obs.goodput, obs.downlink
        quickest = up / obs.goodput.high
        up, up_most, down, down_most = bits / up, bits / up_least, bits / down, bits / down_least
        (rtt, _, rtt_most), (queue, _, queue_most) = obs.rtt, obs.queue
        link, delay, queued = rtt + queue, rtt_most - rtt, queue_most - queue
        squares = delay * delay + queued * queued
        watts, j_up, j_down = obs.joules_per_edge_s, obs.joules_per_bit_up, obs.joules_per_bit_down
        tail = joules_of_tail(obs)
        for i, option, edge_s, most_s, usual, cloud_s, slow_s, bytes_up, bytes_most, bytes_down in remote:
            right: Any = usual
            if obs.exit < 0:
                edge, most = edge_s * rows, most_s * rows
            else:
                edge, most, right = _after_exit(option, obs)
            cloud, sent, back = cloud_s * rows, bytes_up * up, bytes_down * down
            mean = wait + edge + sent + back + link + cloud
            more, more_up = most - edge, bytes_most * up_most - sent
            more_down, slow = bytes_down * down_most - back, slow_s * rows - cloud
            spread = more * more + more_up * more_up + more_down * more_down + slow * slow + squares
            chance = _chance(left - mean, spread)
            leaves = wait + edge + sent * quickest <= left
            if leaves is not True:
                chance = where(leaves, chance, 0.0)
            spare = (1.0 - chance) * (late + most <= left)
            value = chance * right + spare * surely
            spent = edge * watts + bytes_up * 8.0 * rows * j_up + bytes_down * 8.0 * rows * j_down + tail
            self.found[i] = (
                value if reach is True else where(reach, value, -1.0),
                spent + spare * cost,
                edge + spare * busy,
                mean,
                chance,
            )


def _after_exit(option: Option, obs: Observation) -> tuple[Any, Any, Any]:
    """Seconds of the device still to come, mean and 95th percentile, and how often an option is right."""
    edge, most = edge_left(option, obs, option.edge_s), edge_left(option, obs, option.edge_s_q95)
    return edge * obs.rows, most * obs.rows, accuracy_here(option, obs)


def _chance(spare_s: Any, squares: Any) -> Any:
    """Probability to be in time with so many seconds more than the mean, at a spread of these squares."""
    t = _T95 * spare_s / (squares + _LEAST) ** 0.5
    early = t < 0.0
    if early is not False:
        t = where(early, _EARLY * t, t)
    near = t < _FAR
    if near is not True:
        t = where(near, t, _FAR)
    return 0.5 + 0.5 * t / (2.0 + t * t) ** 0.5
