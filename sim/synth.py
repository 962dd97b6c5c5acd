"""Synthetic channels with documented statistics, for tests and demos that must not need a recording.

`lte_like` is a Markov-modulated rate with Gauss-Markov fading and Gilbert-Elliott outages:

    log rate(t) = log median(coverage(t)) + sigma * x(t)       0 while the outage chain is "out"

- *Coverage* (good, fair, edge of the cell) is a Markov chain. It gives the slow part: how long a
  vehicle stays behind a building or near a mast.
- *Fading* x is a first-order Gauss-Markov process of unit variance: correlation exp(-dt / tau).
- *Outages* are a two-state Gilbert-Elliott chain with exponential stays: handovers and dead spots.

The defaults follow what was measured on public drive recordings of LTE (the Mahimahi set of AT&T,
Verizon and T-Mobile, in steps of 0.1 s): log rates with a standard deviation of 0.8 to 1.0 where there is
capacity; a correlation of about 0.8 at 0.1 s, 0.5 at 1 s and 0.2 at 5 s; outages of 0.2 to 0.4 s on
average, one every 3 to 15 s, 2 to 10% of the time; and uplinks at 0.4 to 1 of the downlink. Up and down
share coverage and outages (one radio, one place) and fade apart (they use other frequencies).

Sources: Gilbert (1960) and Elliott (1963) for the outages; Gauss-Markov fading in the log domain after
Gudmundson, "Correlation model for shadow fading in mobile radio systems" (1991).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from splitedge.errors import TraceError
from splitedge.sim.curves import Floats, Rates, Series
from splitedge.sim.traces import Trace

MAX_SAMPLES = 4_000_000


@dataclass(frozen=True, slots=True)
class LteLike:
    """Parameters of `lte_like`; the module's text says why these defaults.

    Attributes:
        step_s: seconds between samples.
        up_mbps, down_mbps: median rates in good coverage.
        coverage: the rate in each state of coverage as a share of the rate in good coverage.
        stay_s: mean seconds in a state of coverage.
        sigma: standard deviation of the fading of the log rate.
        tau_s: correlation time of the fading.
        outage_every_s, outage_s: mean seconds between outages and mean seconds of one; 0 for
            `outage_s` turns them off.
        rtt_s: RTT without queueing in good coverage; it grows by a third in each worse state
            (retransmissions and scheduling requests).
    """

    step_s: float = 0.1
    up_mbps: float = 6.0
    down_mbps: float = 12.0
    coverage: tuple[float, ...] = (1.0, 0.5, 0.2)
    stay_s: float = 6.0
    sigma: float = 0.6
    tau_s: float = 0.7
    outage_every_s: float = 12.0
    outage_s: float = 0.35
    rtt_s: float = 0.045

    def check(self) -> None:
        """Refuse numbers that make no channel.

        Raises:
            TraceError: names the parameter.
        """
        for name in ("step_s", "up_mbps", "down_mbps", "stay_s", "tau_s", "outage_every_s"):
            value = getattr(self, name)
            if not (value > 0.0 and math.isfinite(value)):
                raise TraceError(f"{name} is {value}; give a number above 0")
        for name in ("sigma", "outage_s", "rtt_s"):
            value = getattr(self, name)
            if not (value >= 0.0 and math.isfinite(value)):
                raise TraceError(f"{name} is {value}; give a number of 0 or more")
        if not self.coverage or not all(0.0 < share <= 1.0 for share in self.coverage):
            raise TraceError(f"coverage is {self.coverage}; give shares above 0, up to 1")


def lte_like(seconds: float, seed: int, parameters: LteLike | None = None) -> Trace:
    """A channel like LTE from a moving vehicle, the same for the same seed and parameters.

    Args:
        seconds: length of the trace.
        seed: of the random numbers, 0 or more.
        parameters: statistics of the channel; the defaults are documented above.

    Raises:
        TraceError: a parameter makes no sense, or the trace would be too long.
    """
    p = parameters or LteLike()
    p.check()
    if seed < 0:
        raise TraceError(f"seed is {seed}; give a whole number of 0 or more")
    if not p.step_s <= seconds <= MAX_SAMPLES * p.step_s:
        raise TraceError(f"seconds is {seconds}; give from {p.step_s:g} to {MAX_SAMPLES * p.step_s:g}")
    count = round(seconds / p.step_s)
    # One stream of random numbers for each process: a longer outage must not change the fading.
    streams = [np.random.default_rng([seed, part]) for part in range(4)]
    state = _coverage(count, p, streams[0])
    out = _outages(count, p, streams[1])
    time_s = np.arange(count, dtype=np.float64) * p.step_s
    period_s = count * p.step_s
    share = np.array(p.coverage)[state]
    up, down = (
        Rates(time_s, np.where(out, 0.0, 1e6 * mbps * share * np.exp(p.sigma * fading)), period_s)
        for mbps, fading in (
            (p.up_mbps, _fading(count, p, streams[2])),
            (p.down_mbps, _fading(count, p, streams[3])),
        )
    )
    rtt = Series(time_s, p.rtt_s * (1.0 + state / 3.0), period_s)
    return Trace(f"lte_like(seconds={seconds:g}, seed={seed})", "synthetic", up, down, rtt)


def _coverage(count: int, p: LteLike, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.int64]]:
    """State of coverage at each step: stays are exponential, moves go to a neighbouring state."""
    most = len(p.coverage) - 1
    states = np.empty(count, dtype=np.int64)
    state = int(rng.integers(0, most + 1))
    begin = 0
    while begin < count:
        stay = max(1, round(float(rng.exponential(p.stay_s)) / p.step_s))
        states[begin : begin + stay] = state
        begin += stay
        step = 1 if rng.random() < 0.5 else -1
        # At either end there is one neighbour only; with one state there is none.
        state = min(max(state + step if 0 <= state + step <= most else state - step, 0), most)
    return states


def _fading(count: int, p: LteLike, rng: np.random.Generator) -> Floats:
    """A Gauss-Markov process of mean 0 and variance 1."""
    keep = math.exp(-p.step_s / p.tau_s)
    noise = rng.standard_normal(count)
    noise[1:] *= math.sqrt(1.0 - keep * keep)
    values = np.empty(count)
    level = 0.0
    for i, shock in enumerate(noise.tolist()):
        level = keep * level + shock
        values[i] = level
    return values


def _outages(count: int, p: LteLike, rng: np.random.Generator) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Where the channel carries nothing: the bad state of a Gilbert-Elliott chain."""
    out = np.zeros(count, dtype=np.bool_)
    if p.outage_s == 0.0:
        return out
    at = float(rng.exponential(p.outage_every_s))
    while at < count * p.step_s:
        length = float(rng.exponential(p.outage_s))
        # An outage shorter than a step still costs one: rounding it away would leave too few of them.
        first = int(at / p.step_s)
        out[first : first + max(1, round(length / p.step_s))] = True
        at += length + float(rng.exponential(p.outage_every_s))
    return out
