"""Link estimators: goodput, round-trip time and the cloud's queue, each with its uncertainty.

The evidence comes from real transfers.

Three estimators of one quantity stand behind one interface: `Ewma`, `HarmonicMean` (the usual choice of
throughput prediction since Jiang et al., "FESTIVE", CoNEXT 2012) and `SlidingQuantiles`. Each keeps the
evidence; `LinkEstimator` decides what counts as evidence, how much, and how fast it is forgotten.

**Start and age.** An estimate is the recent evidence blended, in the logarithm, with what is usual, with
the weight `c = w / (w + prior_weight) * 0.5 ** (age / half_life_s)`, where `w` is the weight of the
evidence kept and `age` the seconds since the newest of it. What is usual is the log-normal of everything
seen in the long run (`Usual`), which starts as a stated prior. So the prior rules at the start, evidence
takes over within a few transfers, and after a few seconds without any the estimate goes back to what this
link usually is. (That is wanted: a policy which stopped sending because the link was bad for a moment must
come to doubt it soon; and a link which is always slow must not be forgotten to be.)
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Iterable
from typing import Any, Final

from splitedge.estimate_settings import EstimatorSettings, Prior
from splitedge.policy import Estimate

__all__ = [
    "ClockOffset",
    "Estimator",
    "EstimatorSettings",
    "Ewma",
    "HarmonicMean",
    "LinkEstimator",
    "Prior",
    "SlidingQuantiles",
    "Usual",
    "make_estimator",
]

#: An estimate without new evidence is made anew after this long; its age changes it by far less.
_FRESH_S: Final = 0.02
#: Samples closer together than this count as one for what is usual.
_SPREAD_S: Final = 0.1
#: Transfers that ended together saw the same moment: those closer than this share one sample's weight.
_CLUSTER_S: Final = 0.04
_LEAST_SHARE: Final = 0.05
_Z90: Final = 1.2816  # standard normal quantiles
_Z95: Final = 1.6449

_inf: Final = math.inf
_new: Final[Any] = tuple.__new__  # a named tuple's own constructor is a Python function, four times as slow


class Estimator(ABC):
    """Keeps the evidence on one positive quantity.

    Attributes:
        weight: of the evidence kept, in samples; 0 when there is none.
        newest: second of the newest sample, -inf when there is none.
    """

    __slots__ = ("newest", "weight")

    def __init__(self) -> None:
        self.weight = 0.0
        self.newest = -math.inf

    @abstractmethod
    def observe(self, now: float, value: float, weight: float = 1.0) -> None:
        """Take a sample at second `now`; `value` > 0, `weight` in (0, 1]."""

    @abstractmethod
    def summary(self) -> tuple[float, float, float]:
        """Mean, low and high by the evidence alone. Only asked when there is some."""


def _log_normal(mean: float, variance: float, z: float) -> tuple[float, float, float]:
    """Mean and the quantiles at -z, +z of the log-normal with this mean and variance; always positive."""
    s2 = math.log1p(variance / (mean * mean))
    s = math.sqrt(s2)
    middle = mean * math.exp(-0.5 * s2)
    return mean, min(mean, middle * math.exp(-z * s)), max(mean, middle * math.exp(z * s))


class Ewma(Estimator):
    """Exponentially weighted mean and variance.

    A sample of weight w counts as w samples: it moves the mean by `1 - (1 - alpha) ** w`. At most `count`
    samples count as kept.
    """

    __slots__ = ("_count", "_keep", "_mean", "_variance", "_z")

    def __init__(self, alpha: float, z: float = _Z90, count: int = 32) -> None:
        super().__init__()
        self._keep = 1.0 - alpha
        self._count = count
        self._z = z
        self._mean = 0.0
        self._variance = 0.0

    @property
    def mean(self) -> float:
        """The mean; 0 before the first sample."""
        return self._mean

    def observe(self, now: float, value: float, weight: float = 1.0) -> None:
        """Take a sample."""
        if self.weight == 0.0:
            self._mean = value
        else:
            # Never below the plain average: the first samples must not weigh more than later ones.
            a, plain = 1.0 - math.pow(self._keep, weight), weight / (self.weight + weight)
            if plain > a:
                a = plain
            step = value - self._mean
            self._mean += a * step
            self._variance = (1.0 - a) * (self._variance + a * step * step)
        kept = self.weight + weight
        self.weight = kept if kept < self._count else self._count
        self.newest = now

    def summary(self) -> tuple[float, float, float]:
        """Mean, low, high."""
        return _log_normal(self._mean, self._variance, self._z)


class HarmonicMean(Estimator):
    """Weighted harmonic mean of the last samples: robust to single fast transfers."""

    __slots__ = ("_count", "_samples", "_window", "_z")

    def __init__(self, count: int, window_s: float, z: float = _Z90) -> None:
        super().__init__()
        self._samples: deque[tuple[float, float, float]] = deque()
        self._count = count
        self._window = window_s
        self._z = z

    def observe(self, now: float, value: float, weight: float = 1.0) -> None:
        """Take a sample."""
        samples = self._samples
        samples.append((now, value, weight))
        while len(samples) > self._count or samples[0][0] < now - self._window:
            samples.popleft()
        self.weight = sum(w for _, _, w in samples)
        self.newest = now

    def summary(self) -> tuple[float, float, float]:
        """Mean, low, high."""
        mean = self.weight / sum(w / v for _, v, w in self._samples)
        variance = sum(w * (v - mean) ** 2 for _, v, w in self._samples) / self.weight
        return _log_normal(mean, variance, self._z)


class SlidingQuantiles(Estimator):
    """EWMA mean, with weighted quantiles of the samples in a window bounded in count and in time."""

    __slots__ = ("_count", "_mean", "_order", "_sorted", "_summary", "_tail", "_window")

    def __init__(self, count: int, window_s: float, alpha: float, tail: float = 0.1) -> None:
        super().__init__()
        self._sorted: list[tuple[float, float, float]] = []  # (value, weight, second)
        self._order: deque[tuple[float, float, float]] = deque()
        self._mean = Ewma(alpha)
        self._count = count
        self._window = window_s
        self._tail = tail
        self._summary: tuple[float, float, float] | None = None

    def observe(self, now: float, value: float, weight: float = 1.0) -> None:
        """Take a sample."""
        sample = (value, weight, now)
        kept, order, since = self._sorted, self._order, now - self._window
        insort(kept, sample)
        order.append(sample)
        self.weight += weight
        while order[0][2] < since or len(order) > self._count:
            old = order.popleft()
            del kept[bisect_left(kept, old)]
            self.weight -= old[1]
        if len(order) == 1:
            self.weight = weight  # sheds the rounding of a long run of sums
        self._mean.observe(now, value, weight)
        self.newest = now
        self._summary = None

    def summary(self) -> tuple[float, float, float]:
        """Mean, low, high; low <= mean <= high also when the mean has run ahead of the window."""
        if self._summary is None:
            mean = self._mean.mean
            share = self._tail * self.weight
            low = _reach(self._sorted, share)
            high = _reach(reversed(self._sorted), share)
            self._summary = (mean, low if low < mean else mean, high if high > mean else mean)
        return self._summary


def _reach(samples: Iterable[tuple[float, float, float]], share: float) -> float:
    """The value at which the weights summed from the beginning first reach `share`, else the last."""
    total = value = 0.0
    for value, weight, _ in samples:
        total += weight
        if total >= share:
            return value
    return value


def make_estimator(settings: EstimatorSettings, tail: float = 0.1) -> Estimator:
    """The estimator `settings.kind` names, for low and high at the quantiles `tail` and 1 - `tail`."""
    z = _Z90 if tail == 0.1 else _Z95
    if settings.kind == "ewma":
        return Ewma(settings.alpha, z, settings.count)
    if settings.kind == "harmonic":
        return HarmonicMean(settings.count, settings.window_s, z)
    return SlidingQuantiles(settings.count, settings.window_s, settings.alpha, tail)


class Usual:
    """What a quantity is in the long run: a log-normal, averaged slowly over samples spread in time.

    It starts as the prior, which counts as `prior_weight` samples. Samples closer together than 0.1 s count
    for less, so that the many transfers of one bad second do not pass for the rule.
    """

    __slots__ = ("_at", "_keep", "_mean", "_variance", "_weight", "_z", "prior")

    def __init__(self, prior: Prior, prior_weight: float, memory: int, z: float) -> None:
        self._mean = math.log(prior.mean)
        spread = 0.5 * (math.log(prior.high) - math.log(prior.low)) / z
        self._variance = spread * spread
        self._weight = prior_weight
        self._keep = float(memory)
        self._z = z
        self._at = -math.inf
        self.prior = prior

    def observe(self, now: float, value: float, weight: float) -> None:
        """Take a sample at second `now`; `value` > 0, `weight` in (0, 1]."""
        gap = now - self._at
        if gap < _SPREAD_S:
            weight *= (gap if gap > 0.0 else 0.0) / _SPREAD_S
        self._at = now
        if weight <= 0.0:
            return
        kept = self._weight + weight
        self._weight = kept if kept < self._keep else self._keep
        share = weight / self._weight
        mean, variance = self._mean, self._variance
        step = math.log(value) - mean
        self._mean = mean = mean + share * step
        self._variance = variance = (1.0 - share) * (variance + share * step * step)
        wide = self._z * math.sqrt(variance)
        self.prior = _new(Prior, (math.exp(mean), math.exp(mean - wide), math.exp(mean + wide)))


class _Quantity:
    """One quantity with what is usual for it, its limits and recent evidence."""

    __slots__ = ("_cached", "_cached_at", "_evidence", "_half", "_max", "_min", "_usual", "_w0")

    def __init__(
        self, settings: EstimatorSettings, prior: Prior, limits: tuple[float, float], tail: float
    ) -> None:
        self._evidence = make_estimator(settings, tail)
        z = _Z90 if tail == 0.1 else _Z95
        self._usual = Usual(prior, settings.prior_weight, settings.memory, z)
        self._min, self._max = limits
        self._half = settings.half_life_s
        self._w0 = settings.prior_weight
        self._cached = Estimate(*prior)
        self._cached_at = -math.inf

    def observe(self, now: float, value: float, weight: float = 1.0) -> None:
        if 0.0 <= value < _inf and -_inf < now < _inf:
            if value < self._min:
                value = self._min
            elif value > self._max:
                value = self._max
            self._usual.observe(now, value, weight)
            share = (now - self._evidence.newest) / _CLUSTER_S
            if share < 1.0:
                weight *= share if share > _LEAST_SHARE else _LEAST_SHARE
            self._evidence.observe(now, value, weight)
            self._cached_at = -_inf

    def estimate(self, now: float) -> Estimate:
        if 0.0 <= now - self._cached_at < _FRESH_S:
            return self._cached
        evidence = self._evidence
        weight = evidence.weight
        if weight <= 0.0:
            return Estimate(*self._usual.prior)
        age = (now - evidence.newest) / self._half
        forgotten = 1.0 if age <= 0.0 else math.pow(0.5, age if age < 1000.0 else 1000.0)
        trust = weight / (weight + self._w0) * forgotten
        mean, low, high = evidence.summary()
        p_mean, p_low, p_high = self._usual.prior
        found: Estimate = _new(
            Estimate,
            (
                p_mean * math.pow(mean / p_mean, trust),
                p_low * math.pow(low / p_low, trust),
                p_high * math.pow(high / p_high, trust),
            ),
        )
        self._cached, self._cached_at = found, now
        return found


class _WindowMin:
    """Least value of the last one to two windows, in constant memory.

    Attributes:
        value: it; inf before the first.
    """

    __slots__ = ("_last", "_now", "_since", "_window", "value")

    def __init__(self, window_s: float) -> None:
        self._window = window_s
        self._since = -math.inf
        self._last = self._now = self.value = math.inf

    def observe(self, now: float, value: float) -> None:
        if now - self._since > self._window:
            self._last, self._now, self._since = self._now, _inf, now
        if value < self._now:
            self._now = value
        self.value = self._now if self._now < self._last else self._last


_RATE: Final = (1e3, 1e12)  # bits/s
_SECONDS: Final = (1e-6, 1e4)
_MTU: Final = 1500.0  # bytes: a message this short leaves in one packet
_LEAST_WEIGHT: Final = 0.05
_BASE_WINDOW_S: Final = 60.0


class LinkEstimator:
    """What is known about the link between this device and the cloud. Fed by the engine.

    A transfer of n bytes takes `propagation + 8 n / goodput`, and queueing. So the least delay seen (half
    the least ping of the last minute or two, or the least one-way delay of a one-packet message if that is
    less) is taken off, and what remains is transmission time. A short message says almost nothing on
    goodput: a sample weighs `n / (n + small_bytes)`, times `s**2 / (1 + s**2)` where s is the transmission
    time over the timing noise (`noise_s`, or half the spread of the pings if that is more), and samples
    below a weight of 0.05 are left out. Transmission times below `noise_s` and transfers still under way
    (`observe_stall`) are bounds: they count only where they contradict the mean.

    All methods take the shell's time `now` in seconds. Inputs that are not finite or negative are ignored.
    """

    __slots__ = ("_down", "_noise", "_one_way", "_queue", "_rtt", "_rtt_min", "_small", "_up", "settings")

    def __init__(self, settings: EstimatorSettings | None = None) -> None:
        self.settings = s = settings if settings is not None else EstimatorSettings()
        self._up = _Quantity(s, s.goodput_bps, _RATE, 0.1)
        self._down = _Quantity(s, s.downlink_bps, _RATE, 0.1)
        self._rtt = _Quantity(s, s.rtt_s, _SECONDS, 0.05)
        self._queue = _Quantity(s, s.queue_s, _SECONDS, 0.05)
        self._rtt_min = _WindowMin(_BASE_WINDOW_S)
        self._one_way = (_WindowMin(_BASE_WINDOW_S), _WindowMin(_BASE_WINDOW_S))
        self._noise = s.noise_s
        self._small = s.small_bytes

    def observe_uplink(self, now: float, nbytes: float, seconds: float) -> None:
        """A message of `nbytes` framed bytes took `seconds` one way to the cloud."""
        self._transfer(self._up, 0, now, nbytes, seconds)

    def observe_downlink(self, now: float, nbytes: float, seconds: float) -> None:
        """A message of `nbytes` framed bytes took `seconds` one way from the cloud."""
        self._transfer(self._down, 1, now, nbytes, seconds)

    def observe_rtt(self, now: float, rtt_s: float) -> None:
        """A ping of negligible size came back after `rtt_s` seconds."""
        if math.isfinite(rtt_s) and rtt_s >= 0.0 and math.isfinite(now):
            self._rtt.observe(now, rtt_s)
            self._rtt_min.observe(now, rtt_s)
            spread = self._rtt.estimate(now)
            self._noise = max(self.settings.noise_s, 0.5 * (spread.high - spread.low))

    def observe_exchange(self, now: float, up_bytes: float, down_bytes: float, seconds: float) -> None:
        """A request and its reply of so many framed bytes took `seconds` on the link, both ways together.

        What transmission (as estimated) leaves of that is a round trip, measured far more often than pings
        measure it, so that an outage is forgotten as soon as it is over. It weighs less the more of the
        time transmission takes.
        """
        if not (0.0 < seconds < _inf and -_inf < now < _inf):
            return
        bits_s = (
            8.0 * up_bytes / self._up.estimate(now).mean + 8.0 * down_bytes / self._down.estimate(now).mean
        )
        share, least = bits_s / seconds, self._rtt_min.value
        if least < _inf and share < 1.0:
            rest = seconds - bits_s
            self._rtt.observe(now, rest if rest > least else least, (1.0 - share) ** 2)

    def observe_queue(self, now: float, seconds: float) -> None:
        """A request waited `seconds` in the cloud before its work began."""
        self._queue.observe(now, seconds)

    def observe_stall(self, now: float, nbytes: float, elapsed: float) -> None:
        """A message of `nbytes` has been under way for `elapsed` seconds without an answer.

        Goodput is then at most `8 nbytes / elapsed`: counted if that is below the mean.
        """
        if not (math.isfinite(elapsed) and math.isfinite(nbytes)) or elapsed <= self._noise or nbytes <= 0:
            return
        bound = 8.0 * nbytes / elapsed
        if bound < self._up.estimate(now).mean:
            self._up.observe(now, bound, 1.0)

    def goodput(self, now: float) -> Estimate:
        """Uplink, bits/s: mean, 10th and 90th percentile."""
        return self._up.estimate(now)

    def downlink(self, now: float) -> Estimate:
        """Downlink, bits/s: mean, 10th and 90th percentile."""
        return self._down.estimate(now)

    def rtt(self, now: float) -> Estimate:
        """Round-trip seconds without transmission time: mean, 5th and 95th percentile."""
        return self._rtt.estimate(now)

    def queue(self, now: float) -> Estimate:
        """Seconds a request waits in the cloud: mean, 5th and 95th percentile."""
        return self._queue.estimate(now)

    def _transfer(self, quantity: _Quantity, way: int, now: float, nbytes: float, seconds: float) -> None:
        if not (0.0 <= seconds < _inf and 0.0 < nbytes < _inf and -_inf < now < _inf):
            return
        least = self._one_way[way]
        if nbytes <= _MTU:
            least.observe(now, seconds)
        base = 0.5 * self._rtt_min.value
        if least.value < base:
            base = least.value
        transmission = seconds - base if base < seconds else 0.0
        if base == _inf:
            transmission = seconds  # no delay known yet: the careful reading
        floor = self.settings.noise_s
        if transmission < floor:
            bound = 8.0 * nbytes / floor
            if bound > quantity.estimate(now).mean:
                quantity.observe(now, bound, nbytes / (nbytes + self._small))
            return
        signal = transmission / self._noise
        signal *= signal
        weight = nbytes / (nbytes + self._small) * signal / (1.0 + signal)
        if weight >= _LEAST_WEIGHT:
            quantity.observe(now, 8.0 * nbytes / transmission, weight)


class ClockOffset:
    """Offset between the edge's and the cloud's monotonic clocks, from four time stamps of a round trip.

    As NTP does it (RFC 5905, section 8): offset = ((received - sent) + (sent_back - received_back)) / 2,
    wrong by at most half the round trip's delay. So the round trip of least delay is trusted, and its
    bound grows by `drift` for every second of age until a fresher one is better.

    **Limit.** A constant difference between the two directions' delays can not be seen from round trips:
    half of it goes into the offset, and so from one direction's seconds to the other's. Their sum is exact.
    """

    __slots__ = ("_at", "_delay", "_drift", "_offset")

    def __init__(self, drift: float = 100e-6) -> None:
        self._drift = drift
        self.reset()

    def reset(self) -> None:
        """Forget everything: the cloud restarted, its clock is another."""
        self._offset = 0.0
        self._delay = math.inf
        self._at = -math.inf

    @property
    def known(self) -> bool:
        """Whether a round trip has been seen."""
        return self._delay < math.inf

    @property
    def offset_s(self) -> float:
        """Cloud's clock minus edge's clock, seconds; 0 before the first round trip."""
        return self._offset

    def error_s(self, now: float) -> float:
        """Bound on the offset's error at `now` of the edge's clock; inf before the first round trip."""
        return 0.5 * self._delay + self._drift * max(0.0, now - self._at) if self.known else math.inf

    def observe(self, sent: float, received: float, sent_back: float, received_back: float) -> None:
        """Take a round trip, in seconds: the first and last stamp by the edge's clock, the others by the
        cloud's. Stamps that make no sense are ignored.
        """
        delay = (received_back - sent) - (sent_back - received)
        offset = 0.5 * ((received - sent) + (sent_back - received_back))
        if not (0.0 <= delay < _inf and -_inf < offset < _inf) or sent_back < received:
            return
        if 0.5 * delay <= self.error_s(received_back):
            self._offset, self._delay, self._at = offset, delay, received_back

    def one_way(
        self, sent: float, received: float, sent_back: float, received_back: float
    ) -> tuple[float, float]:
        """Seconds up and down of a round trip; both >= 0, their sum the round trip's delay."""
        there = sent_back - received
        delay = (received_back - sent) - (there if there > 0.0 else 0.0)
        if delay < 0.0:
            delay = 0.0
        if self._delay == _inf:
            return 0.5 * delay, 0.5 * delay
        up = received - self._offset - sent
        if up < 0.0:
            up = 0.0
        elif up > delay:
            up = delay
        return up, delay - up
