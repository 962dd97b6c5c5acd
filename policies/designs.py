"""All ways to answer requests by exits at a threshold and a last part somewhere: the choices of `spinn`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from splitedge.policies.exit_shares import ExitShares
from splitedge.policy import Option, Route

Array = npt.NDArray[Any]

#: Confidences tried as the threshold of all exits; inf passes every exit.
THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9, 0.95, math.inf)


class Designs:
    """Pairs of an end and a threshold, and what they come to whatever the link.

    Args:
        options: of the deployment. Each is an end; a split, and an exit, is reached past the exits that cost
            the device no more, as the engine goes.
        seen: confidences of the exits, by their numbers; those that lack are assumed.

    Attributes:
        end: the option that answers what no exit does, int (pairs,).
        threshold: confidence from which exits answer, (pairs,).
        accuracy: expected, (pairs,).
        cloud_s: expected seconds of the server, (pairs,).
        goes_on: share of requests that reach the end, (pairs,).
        exits: (option, share of requests that end there (pairs,)) of each exit.
    """

    def __init__(self, options: Sequence[Option], seen: Mapping[int, ExitShares]) -> None:
        exits = sorted((o.edge_s, i) for i, o in enumerate(options) if o.route is Route.EXIT)
        known = {
            i: seen.get(options[i].exit or 0) or ExitShares.assumed(options[i].accuracy) for _, i in exits
        }
        ends, thresholds, accuracies, shares = [], [], [], []
        for end, option in enumerate(options):
            way: list[int] = []
            if option.route in (Route.SPLIT, Route.EXIT):
                way = [i for seconds, i in exits if seconds <= option.edge_s and i != end]
            for threshold in THRESHOLDS if way else (math.inf,):
                share, lost = _stops(way, known, threshold, option.accuracy)
                ends.append(end)
                thresholds.append(threshold)
                accuracies.append(option.accuracy - lost)
                shares.append([share.get(i, 0.0) for _, i in exits])
        self.end = np.array(ends)
        self.threshold = np.array(thresholds)
        self.accuracy = np.array(accuracies)
        parts = np.array(shares).reshape(len(ends), len(exits))
        self.goes_on = 1.0 - parts.sum(axis=1)
        self.exits = [(i, parts[:, column]) for column, (_, i) in enumerate(exits)]
        self.cloud_s = self.goes_on * np.array([options[end].cloud_s for end in ends])

    def expected(self, costs: Sequence[Any]) -> Array:
        """The expected cost of each pair from the cost of each option: (pairs, N), N = 1 for scalars."""
        each = _columns(costs)
        total: Array = self.goes_on[:, None] * each[self.end]
        for i, share in self.exits:
            total = total + share[:, None] * each[i]
        return total

    def at_end(self, values: Sequence[Any]) -> Array:
        """The value of each pair's end: (pairs, N), N = 1 for scalars."""
        found: Array = _columns(values)[self.end]
        return found


def _columns(values: Sequence[Any]) -> Array:
    """(options, N) from a scalar or an array (N,) of each option."""
    shapes = [value.shape for value in values if isinstance(value, np.ndarray)]
    if not shapes:
        return np.array(values).reshape(-1, 1)
    shape = np.broadcast_shapes((1,), *shapes)
    return np.array([np.broadcast_to(value, shape) for value in values])


def _stops(
    way: Sequence[int], known: Mapping[int, ExitShares], threshold: float, accuracy: float
) -> tuple[dict[int, float], float]:
    """Shares of requests that end at each exit on the way, and the accuracy lost by it. A row sure at one
    exit counts as sure at the deeper ones.
    """
    reached, lost, shares = 0.0, 0.0, {}
    for i in way:
        share = known[i].share(threshold)
        if share > reached:
            shares[i] = share - reached
            lost += known[i].loss(threshold, accuracy) * (share - reached) / share
            reached = share
    return shares, lost
