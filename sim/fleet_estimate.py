"""The link estimator of `splitedge/estimate.py` for many devices: the same formulas on records.

The loops work on whatever has the fields of `Estimators`: a `World` does. Each device has four quantities
(uplink, downlink, round trip, cloud's queue). A window's samples are kept sorted by value in arrays,
estimates are blended as sums of logarithms. Only the kind `quantiles` exists.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np

from splitedge.errors import ConfigError
from splitedge.estimate import EstimatorSettings, Prior
from splitedge.sim.compiled import inner

UP, DOWN, RTT, QUEUE = 0, 1, 2, 3
QUANTITIES = 4

# The constants of `estimate.py`; tests/test_fleet_estimate.py holds the two files together.
_FRESH_S, _SPREAD_S, _CLUSTER_S, _LEAST_SHARE, _LEAST_WEIGHT = 0.02, 0.1, 0.04, 0.05, 0.05
_MTU, _BASE_WINDOW_S = 1500.0, 60.0
_Z90, _Z95 = 1.2816, 1.6449
_RATE, _SECONDS = (1e3, 1e12), (1e-6, 1e4)
_LN2 = math.log(2.0)
_EPOCH_S = 1000.0

#: One quantity of one device; logarithms where the name begins with `log`. What an estimate reads stands
#: first: two lines of the processor's cache.
QUANTITY = np.dtype(
    [
        ("at", "f8"),  # second of the estimate kept, -inf for none
        ("kept", "f8"),  # mean, low, high
        ("kept_low", "f8"),
        ("kept_high", "f8"),
        ("weight", "f8"),  # of the samples in the window
        ("newest", "f8"),
        ("stale", "i8"),  # whether the logs of the evidence are to be taken anew
        ("noise", "f8"),  # of the whole link, kept with the round trip
        ("log_mean", "f8"),  # the evidence alone
        ("log_low", "f8"),
        ("log_high", "f8"),
        ("log_usual", "f8"),
        ("log_usual_low", "f8"),
        ("log_usual_high", "f8"),
        ("min_last", "f8"),  # windows of the least delay: half a ping (RTT), one-packet messages (UP, DOWN)
        ("min_now", "f8"),
        ("min_since", "f8"),
        ("moving", "f8"),  # EWMA
        ("moving_weight", "f8"),
        ("epoch", "f8"),
        ("first", "i8"),  # place in the window of the oldest sample
        ("count", "i8"),
        ("usual_mean", "f8"),  # what is usual: log-normal
        ("usual_variance", "f8"),
        ("usual_weight", "f8"),
        ("usual_at", "f8"),
        ("least", "f8"),  # limits of a sample
        ("most", "f8"),
        ("z", "f8"),
        ("tail", "f8"),
    ],
    align=True,
)


#: What of `EstimatorSettings` the loops need.
SETTINGS = np.dtype(
    [
        ("samples", "i8"),
        ("window_s", "f8"),
        ("keep", "f8"),
        ("half_life_s", "f8"),
        ("memory", "f8"),
        ("prior_weight", "f8"),
        ("noise_s", "f8"),
        ("small_bytes", "f8"),
    ],
    align=True,
)


class Estimators(NamedTuple):
    """State of all estimators, and what `EstimatorSettings` says of them.

    Attributes:
        quantity: record array of `QUANTITY`, shape (devices * 4,).
        window: samples in a ring, the rows value, weight, second since `epoch`, float32: shape
            (devices * 4, 3, count). Single precision, for it is what the caches are too small for.
        order: places in the ring by rising value, uint16 (devices * 4, count).
        habits: record array of SETTINGS, shape (1,).
    """

    quantity: Any
    window: Any
    order: Any
    habits: Any


def estimators(devices: int, settings: EstimatorSettings) -> Estimators:
    """Estimators that have seen nothing.

    Raises:
        ConfigError: they are of a kind that fleet mode has not.
    """
    if settings.kind != "quantiles":
        raise ConfigError(
            f"fleet mode estimates links by 'quantiles', not by '{settings.kind}'; "
            "set link.kind to 'quantiles' or simulate in exact mode"
        )
    quantity = np.zeros((devices, QUANTITIES), QUANTITY)
    quantity["noise"] = settings.noise_s
    quantity["usual_weight"] = settings.prior_weight
    _begin(quantity[:, UP], settings.goodput_bps, _RATE, _Z90)
    _begin(quantity[:, DOWN], settings.downlink_bps, _RATE, _Z90)
    _begin(quantity[:, RTT], settings.rtt_s, _SECONDS, _Z95)
    _begin(quantity[:, QUEUE], settings.queue_s, _SECONDS, _Z95)
    habits = (
        settings.count,
        settings.window_s,
        1.0 - settings.alpha,
        settings.half_life_s,
        settings.memory,
        settings.prior_weight,
        settings.noise_s,
        settings.small_bytes,
    )
    return Estimators(
        quantity.reshape(-1).view(np.recarray),
        np.zeros((devices * QUANTITIES, 3, settings.count), np.float32),
        np.zeros((devices * QUANTITIES, settings.count), np.uint16),
        np.array([habits], SETTINGS).view(np.recarray),
    )


def _begin(column: Any, prior: Prior, limits: tuple[float, float], z: float) -> None:
    spread = 0.5 * (math.log(prior.high) - math.log(prior.low)) / z
    column["at"] = column["newest"] = column["usual_at"] = column["min_since"] = -np.inf
    column["min_last"] = column["min_now"] = np.inf
    column["usual_mean"] = column["log_usual"] = math.log(prior.mean)
    column["usual_variance"] = spread * spread
    column["log_usual_low"], column["log_usual_high"] = math.log(prior.low), math.log(prior.high)
    column["least"], column["most"] = limits
    column["z"], column["tail"] = z, 0.1 if z == _Z90 else 0.05


@inner
def _put(e: Any, at: int, now: float, value: float, weight: float) -> None:
    """A sample into the window; those too many or too old leave it."""
    q = e.quantity[at]
    values, weights, seconds = e.window[at, 0], e.window[at, 1], e.window[at, 2]
    order = e.order[at]
    room = e.habits[0].samples
    n, first = q.count, q.first
    if now - q.epoch > _EPOCH_S:
        for i in range(room):
            seconds[i] -= np.float32(now - q.epoch)
        q.epoch = now
    since = now - q.epoch - e.habits[0].window_s
    while n > 0 and (n == room or seconds[first] < since):
        rank = 0
        while order[rank] != first:
            rank += 1
        q.weight -= weights[first]
        n -= 1
        for i in range(rank, n):
            order[i] = order[i + 1]
        first += 1
        if first == room:
            first = 0
    place = first + n
    if place >= room:
        place -= room
    values[place], weights[place], seconds[place] = value, weight, now - q.epoch
    rank = n
    while rank > 0 and values[order[rank - 1]] > value:
        order[rank] = order[rank - 1]
        rank -= 1
    order[rank] = place
    q.count, q.first = n + 1, first
    q.weight = weights[place] + (0.0 if n == 0 else q.weight)


@inner
def _observe(e: Any, at: int, now: float, value: float, weight: float) -> None:
    """Take a sample of a quantity: what is usual, the window, the moving mean."""
    q = e.quantity[at]
    value = min(q.most, max(q.least, value))
    usual = weight * min(1.0, max(0.0, now - q.usual_at) / _SPREAD_S)
    q.usual_at = now
    if usual > 0.0:
        q.usual_weight = min(q.usual_weight + usual, e.habits[0].memory)
        share = usual / q.usual_weight
        step = math.log(value) - q.usual_mean
        q.usual_mean += share * step
        q.usual_variance = (1.0 - share) * (q.usual_variance + share * step * step)
        wide = q.z * math.sqrt(q.usual_variance)
        q.log_usual = q.usual_mean
        q.log_usual_low = q.usual_mean - wide
        q.log_usual_high = q.usual_mean + wide
    gap = max(0.0, now - q.newest)
    weight *= min(1.0, max(_LEAST_SHARE, gap / _CLUSTER_S))
    _put(e, at, now, value, weight)
    if q.moving_weight == 0.0:
        q.moving = value
    else:
        move = max(1.0 - e.habits[0].keep ** weight, weight / (q.moving_weight + weight))
        q.moving += move * (value - q.moving)
    q.moving_weight = min(q.moving_weight + weight, 32.0)  # an EWMA's own limit
    q.newest = now
    q.stale = 1
    q.at = -np.inf


@inner
def _summarise(e: Any, at: int) -> None:
    """Logarithms of mean, low and high of the evidence."""
    q = e.quantity[at]
    values, weights, order = e.window[at, 0], e.window[at, 1], e.order[at]
    share = q.tail * q.weight
    last = q.count - 1
    i, total = 0, weights[order[0]]
    while total < share and i < last:
        i += 1
        total += weights[order[i]]
    j, total = last, weights[order[last]]
    while total < share and j > 0:
        j -= 1
        total += weights[order[j]]
    q.log_mean = math.log(q.moving)
    q.log_low = math.log(min(values[order[i]], q.moving))
    q.log_high = math.log(max(values[order[j]], q.moving))
    q.stale = 0


@inner
def _trust(e: Any, q: Any, now: float) -> float:
    age = max(0.0, now - q.newest)
    return float(
        q.weight
        / (q.weight + e.habits[0].prior_weight)
        * math.exp(-_LN2 * min(1000.0, age / e.habits[0].half_life_s))
    )


@inner
def estimate(e: Any, at: int, now: float) -> tuple[float, float, float]:
    """Mean, low, high of quantity `at` (4 * device + which)."""
    q = e.quantity[at]
    if not 0.0 <= now - q.at < _FRESH_S:
        if q.weight <= 0.0:
            return math.exp(q.log_usual), math.exp(q.log_usual_low), math.exp(q.log_usual_high)
        if q.stale == 1:
            _summarise(e, at)
        trust = _trust(e, q, now)
        q.at = now
        q.kept = math.exp(q.log_usual + trust * (q.log_mean - q.log_usual))
        q.kept_low = math.exp(q.log_usual_low + trust * (q.log_low - q.log_usual_low))
        q.kept_high = math.exp(q.log_usual_high + trust * (q.log_high - q.log_usual_high))
    return q.kept, q.kept_low, q.kept_high


@inner
def _observe_least(q: Any, now: float, value: float) -> None:
    if now - q.min_since > _BASE_WINDOW_S:
        q.min_last, q.min_now, q.min_since = q.min_now, np.inf, now
    q.min_now = min(q.min_now, value)


@inner
def observe_rtt(e: Any, device: int, now: float, rtt_s: float) -> None:
    """A ping came back."""
    at = QUANTITIES * device + RTT
    q = e.quantity[at]
    _observe(e, at, now, rtt_s, 1.0)
    _observe_least(q, now, rtt_s)
    _, low, high = estimate(e, at, now)
    q.noise = max(e.habits[0].noise_s, 0.5 * (high - low))


@inner
def observe_exchange(
    e: Any, device: int, now: float, up_bytes: float, down_bytes: float, seconds: float
) -> None:
    """A request and its reply took `seconds` on the link: what transmission leaves is a round trip."""
    if seconds <= 0.0:
        return
    first = QUANTITIES * device
    q = e.quantity[first + RTT]
    bits_s = 8.0 * up_bytes / estimate(e, first + UP, now)[0]
    bits_s += 8.0 * down_bytes / estimate(e, first + DOWN, now)[0]
    share = bits_s / seconds
    least = min(q.min_now, q.min_last)
    if least < np.inf and share < 1.0:
        _observe(e, first + RTT, now, max(seconds - bits_s, least), (1.0 - share) ** 2)


@inner
def observe_queue(e: Any, device: int, now: float, seconds: float) -> None:
    """A request waited in the cloud."""
    at = QUANTITIES * device + QUEUE
    _observe(e, at, now, seconds, 1.0)


@inner
def observe_stall(e: Any, device: int, now: float, nbytes: float, elapsed: float) -> None:
    """A message is still under way."""
    if elapsed <= e.quantity[QUANTITIES * device + RTT].noise or nbytes <= 0.0:
        return
    at = QUANTITIES * device + UP
    bound = 8.0 * nbytes / elapsed
    if bound < estimate(e, at, now)[0]:
        _observe(e, at, now, bound, 1.0)


@inner
def observe_transfer(e: Any, device: int, way: int, now: float, nbytes: float, seconds: float) -> None:
    """A message of `nbytes` took `seconds` one way; `way` is UP or DOWN."""
    at = QUANTITIES * device + way
    q = e.quantity[at]
    if nbytes <= _MTU:
        _observe_least(q, now, seconds)
    ping = e.quantity[QUANTITIES * device + RTT]
    base = min(0.5 * min(ping.min_now, ping.min_last), min(q.min_now, q.min_last))
    transmission = max(0.0, seconds - base)
    if base == np.inf:
        transmission = seconds
    if transmission < e.habits[0].noise_s:
        bound = 8.0 * nbytes / e.habits[0].noise_s
        if bound > estimate(e, at, now)[0]:
            _observe(e, at, now, bound, nbytes / (nbytes + e.habits[0].small_bytes))
        return
    signal = transmission / ping.noise
    signal *= signal
    weight = nbytes / (nbytes + e.habits[0].small_bytes) * signal / (1.0 + signal)
    if weight >= _LEAST_WEIGHT:
        _observe(e, at, now, 8.0 * nbytes / transmission, weight)
