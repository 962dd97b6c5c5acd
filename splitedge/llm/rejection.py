"""Rejection sampling of drafts (Leviathan et al., ICML 2023; Chen et al., 2023), with numbered randomness.

A draft x that was drawn from q is kept with probability min(1, p(x) / q(x)); the first one that is not is
replaced by a draw from (p - q)+, normalised; behind drafts that were all kept stands a draw from p. What
comes out has the law p at each place, whatever q is. Each place has random numbers of its own, by seed,
position and purpose: the same round, asked again after a lost link, gives the same tokens.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from splitedge.llm.draft_tables import DraftTable
from splitedge.llm.sampling import Floats, Sampling, choose, log_probabilities, uniform

#: Which of a position's random numbers; `gumbel` has 0, `draft_tables.DRAFT` 1.
KEEP, REPLACE = 2, 3


def acceptance(p: Floats, table: DraftTable) -> Floats:
    """Probability with which each token of a table is kept where it was drafted.

    Args:
        p: probabilities by the cloud's model, float64 (vocabulary,).
        table: that the draft was drawn from.

    Returns:
        float64 (entries,).
    """
    kept: Floats = np.minimum(1.0, p[table.ids] / table.probabilities)
    return kept


def replacement(p: Floats, table: DraftTable) -> Floats:
    """Law of the token in place of a draft that was not kept, float64 (vocabulary,); see `acceptance`."""
    left = p.copy()
    left[table.ids] = np.maximum(0.0, p[table.ids] - table.probabilities)
    total = left.sum()
    # p equals q but for rounding: then a draft is refused about once in 1e16 times, and p is as right.
    found: Floats = left / total if total > 0.0 else p
    return found


def verify(
    logits: npt.NDArray[np.floating],
    drafts: Sequence[int],
    tables: Sequence[DraftTable],
    first: int,
    sampling: Sampling,
) -> tuple[int, int]:
    """How many drafts are kept, and the token behind them.

    Args:
        logits: of the cloud's model, (drafts + 1, vocabulary); row i is of the token at `first + i`.
        drafts: tokens, each in its table.
        tables: that they were drawn from.
        first: position of the first draft, counted from the beginning of the context.
        sampling: how tokens are drawn; not greedy.

    Raises:
        ConfigError: no logit is finite.
    """
    for i, (draft, table) in enumerate(zip(drafts, tables, strict=True)):
        p = np.exp(log_probabilities(logits[i], sampling))
        if uniform(sampling.seed, first + i, KEEP) >= acceptance(p, table)[table.find(draft)]:
            return i, _draw(replacement(p, table), sampling.seed, first + i)
    return len(drafts), choose(logits[len(drafts)], first + len(drafts), sampling)


def _draw(law: Floats, seed: int, position: int) -> int:
    reached = np.cumsum(law)
    at = uniform(seed, position, REPLACE) * reached[-1]
    # `at` is below the last sum, at which no token without probability begins.
    return int(np.searchsorted(reached, at, side="right"))
