"""Means over many runs with confidence intervals, by a block bootstrap."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitedge.sim.digest import PARTS, SUMS, Digest
from splitedge.sim.grid import ORACLE
from splitedge.sim.sweep import SweepResult

Floats = npt.NDArray[np.float64]

DRAWS = 1000
LEVEL = 0.95


@dataclass(frozen=True, slots=True)
class Interval:
    """A mean and the ends of its 95% interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, eq=False)
class Means:
    """Means of each policy over all combinations of the other axes, each combination with the same weight.

    The intervals say how much another stretch of these very channels with other requests would change a mean:
    blocks of a 60th of a run are drawn again, with replacement, from all repetitions (Carlstein, Annals of
    Statistics 14, 1986), the same ones for every policy and trace, since they faced the same requests. They
    say nothing about other channels.

    Attributes:
        policies: names, as they came in the sweep.
        values: by name of `SUMS` (a request) and `regret`: one interval a policy.
    """

    policies: tuple[str, ...]
    values: dict[str, tuple[Interval, ...]]

    def of(self, name: str, policy: str) -> Interval:
        """One interval."""
        return self.values[name][self.policies.index(policy)]


def means(result: SweepResult, seed: int = 0) -> Means:
    """Means of all policies of a sweep; runs that failed are left out.

    Args:
        result: a sweep.
        seed: of the bootstrap's draws.
    """
    policies = tuple(dict.fromkeys(run.scenario.policy for run in result.runs))
    sums = _sums(result, policies)
    blocks = sums.shape[2]
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(blocks, np.full(blocks, 1.0 / blocks), size=DRAWS).astype(float)
    draws = np.concatenate([np.ones((1, blocks)), draws])  # the first is what was measured
    shares = [_shares(one, draws) for one in sums]
    values = {name: tuple(_interval(share[..., i]) for share in shares) for i, name in enumerate(SUMS)}
    if ORACLE in policies:
        i = SUMS.index("correct_in_time")
        best = shares[policies.index(ORACLE)][..., i]
        values["regret"] = tuple(_interval(best - share[..., i]) for share in shares)
    return Means(policies, values)


def pooled_latency(digests: Sequence[Digest]) -> Floats:
    """Quantiles of the latency of all requests of several runs, each run with the same weight.

    Sorted, seconds; inf for requests without an answer.
    """
    return np.sort(np.concatenate([one.latency_s for one in digests])) if digests else np.empty(0)


def _sums(result: SweepResult, policies: tuple[str, ...]) -> Floats:
    """(policies, combinations, repetitions * PARTS, SUMS); NaN where a run failed."""
    combinations = list(dict.fromkeys(run.setting[:-1] for run in result.runs))
    repetitions = 1 + max((run.repetition for run in result.runs), default=0)
    sums = np.full((len(policies), len(combinations), repetitions, PARTS, len(SUMS)), np.nan)
    for run, outcome in zip(result.runs, result.outcomes, strict=True):
        if outcome.digest is not None:
            at = policies.index(run.scenario.policy), combinations.index(run.setting[:-1]), run.repetition
            sums[at] = outcome.digest.sums
    return sums.reshape(len(policies), len(combinations), repetitions * PARTS, len(SUMS))


def _shares(sums: Floats, draws: Floats) -> Floats:
    """Mean a request of each sum over the blocks drawn, (draws, combinations, SUMS); NaN without requests."""
    totals = np.einsum("db,cbs->dcs", draws, np.nan_to_num(sums))
    shares: Floats = totals / np.where(totals[..., :1] > 0.0, totals[..., :1], np.nan)
    return shares


def _interval(drawn: Floats) -> Interval:
    """From (draws, combinations): averaged over the combinations that have a number."""
    known = ~np.isnan(drawn)
    count = known.sum(axis=1)
    mean = np.where(known, drawn, 0.0).sum(axis=1) / np.where(count > 0, count, np.nan)
    low, high = np.quantile(mean[1:], [0.5 * (1.0 - LEVEL), 0.5 * (1.0 + LEVEL)])
    return Interval(float(mean[0]), float(low), float(high))
