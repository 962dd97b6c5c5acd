"""What an option is predicted to take and to cost under an observation; `policy` has all of it too.

Written on numbers that may be Python floats or NumPy arrays of shape (N,); select with `where`.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np

from splitedge.option import Number, Observation, Option, Route

_EXIT: Final = Route.EXIT
_SPLIT: Final = Route.SPLIT


def where(condition: Any, yes: Any, no: Any) -> Any:
    """`yes if condition else no`, element by element when the condition is an array."""
    if condition is True:  # the usual case by far, and the quickest to tell
        return yes
    if condition is False:
        return no
    if isinstance(condition, np.ndarray):
        return np.where(condition, yes, no)
    return yes if condition else no


def latency_mean(option: Option, obs: Observation) -> Number:
    """Predicted mean seconds from now to the answer by `option`."""
    edge = obs.edge_wait_s + edge_left(option, obs, option.edge_s) * obs.rows
    if not option.remote:
        return edge
    return (
        edge
        + option.bytes_up * 8.0 * obs.rows / obs.goodput.mean
        + obs.rtt.mean
        + obs.queue.mean
        + option.cloud_s * obs.rows
        + option.bytes_down * 8.0 * obs.rows / obs.downlink.mean
    )


def latency_q95(option: Option, obs: Observation) -> Number:
    """Predicted 95th percentile of seconds to the answer: the 95th percentile of bytes and RTT over the
    10th of goodput. Summing quantiles errs on the careful side.
    """
    edge = obs.edge_wait_s + edge_left(option, obs, option.edge_s_q95) * obs.rows
    if not option.remote:
        return edge
    return (
        edge
        + option.bytes_up_q95 * 8.0 * obs.rows / obs.goodput.low
        + obs.rtt.high
        + obs.queue.high
        + option.cloud_s_q95 * obs.rows
        + option.bytes_down * 8.0 * obs.rows / obs.downlink.low
    )


def latency_hoped(option: Option, obs: Observation) -> Number:
    """Predicted seconds to the answer of a remote option if the link is as good as it ever is: mean RTT and
    queue, the 90th percentile of goodput.
    """
    bits_up, bits_down = option.bytes_up * 8.0 * obs.rows, option.bytes_down * 8.0 * obs.rows
    edge = obs.edge_wait_s + edge_left(option, obs, option.edge_s) * obs.rows
    cloud = obs.rtt.mean + obs.queue.mean + option.cloud_s * obs.rows
    return edge + bits_up / obs.goodput.high + cloud + bits_down / obs.downlink.high


def joules(option: Option, obs: Observation) -> Number:
    """Predicted joules the device spends on `option` from now on, idle power not counted: compute, bits, and
    the time by which a transfer keeps the radio awake longer (a whole tail for one that sleeps).
    """
    compute = edge_left(option, obs, option.edge_s) * obs.rows * obs.joules_per_edge_s
    if not option.remote:
        return compute
    up = option.bytes_up * 8.0 * obs.rows * obs.joules_per_bit_up
    return compute + up + option.bytes_down * 8.0 * obs.rows * obs.joules_per_bit_down + joules_of_tail(obs)


def joules_of_tail(obs: Observation) -> Number:
    """Predicted joules by which one more transfer keeps the radio awake."""
    if isinstance(obs.tail_w, float) and not obs.tail_w:
        return 0.0
    return obs.tail_w * where(obs.unsent_s < obs.tail_s, obs.unsent_s, obs.tail_s)


def accuracy(option: Option, obs: Observation) -> Number:
    """Probability that `option` answers right; the calibrated confidence for an exit already run."""
    if option.route is _EXIT and option.exit == obs.exit:
        return obs.confidence
    return option.accuracy


def edge_left(option: Option, obs: Observation, edge_s: float) -> Number:
    """Compute seconds still to spend: what the head already did is not paid again by a route through it."""
    if obs.exit < 0:
        return edge_s
    if option.route is _EXIT and option.exit is not None and option.exit <= obs.exit:
        return 0.0
    if option.route is _SPLIT or option.route is _EXIT:
        left = edge_s - obs.sunk_s / obs.rows
        return where(left > 0.0, left, 0.0)
    return edge_s
