"""A row of the evaluation for each recorded request, as hard as that request was."""

from __future__ import annotations

import numpy as np

from splitedge.errors import ConfigError
from splitedge.evaluation import Evaluation
from splitedge.sim.replay_records import NONE, Floats, Ints, Recorded

_ENOUGH = 5


def matched_rows(
    recorded: Recorded, evaluation: Evaluation, rng: np.random.Generator, close: int = 8
) -> Ints:
    """A row of the evaluation for each request, as hard as that request was: (n,).

    Among the rows whose confidence by the option that answered is nearest to the recorded one, any. Where an
    exit was run and not taken, only rows of which it is less sure than of the others. Where a filter
    ended the request, only rows that it keeps from being sent. A request without an answer gets any row.
    """
    decided = recorded.decided
    count = evaluation.confidence.shape[1]
    if count == 0:
        raise ConfigError("the evaluation has no rows; evaluate the deployment on some")
    found = rng.integers(0, count, len(recorded))
    routes = [option.exit for option in evaluation.table]
    asked = np.where(
        (decided.planned != decided.target) & np.array([e is not None for e in routes])[decided.planned],
        decided.planned,
        NONE,
    )
    filtered = np.array([reason.startswith("filtered") for reason in decided.reason])
    for by in np.unique(decided.option).tolist():
        for first in np.unique(asked[decided.option == by]).tolist():
            for unsent in (False, True):
                mine = np.flatnonzero((decided.option == by) & (asked == first) & (filtered == unsent))
                if not mine.size:
                    continue
                rows = np.arange(count)
                if unsent:
                    rows = _kept_by_filter(evaluation, decided.planned[mine])
                elif first != NONE:
                    rows = _unsure(recorded, evaluation, first)
                if by == NONE or (unsent and not rows.size):
                    found[mine] = rng.choice(rows if rows.size else np.arange(count), mine.size)
                else:
                    found[mine] = _near(evaluation.confidence[by], rows, decided.confidence[mine], close, rng)
    return found


def _kept_by_filter(evaluation: Evaluation, planned: Ints) -> Ints:
    return np.flatnonzero(evaluation.nbytes[int(planned[0])] == 0.0)


def _unsure(recorded: Recorded, evaluation: Evaluation, exit_option: int) -> Ints:
    """Rows of which an exit is least sure: as large a share of all as was asked and not taken in the records.

    Not those below the answers it gave: it also gave some because the cloud was out of reach.
    """
    decided = recorded.decided
    asked = decided.planned == exit_option
    sure = evaluation.confidence[exit_option]
    share = float((decided.target[asked] != exit_option).mean())
    rows = np.flatnonzero(sure <= np.quantile(sure, share))
    return rows if len(rows) >= _ENOUGH else np.arange(len(sure))


def _near(confidence: Floats, rows: Ints, wanted: Floats, close: int, rng: np.random.Generator) -> Ints:
    """One of the `close` rows nearest in confidence, ties and all; any row where none is wanted."""
    order = rows[np.argsort(confidence[rows], kind="stable")]
    values = confidence[order]
    low = np.searchsorted(values, wanted - 0.002, "left")
    high = np.searchsorted(values, wanted + 0.002, "right")
    middle = np.searchsorted(values, wanted)
    few = high - low < close
    low = np.where(few, np.clip(middle - close // 2, 0, max(0, len(values) - close)), low)
    high = np.where(few, np.minimum(low + close, len(values)), high)
    known = np.isfinite(wanted)
    low, high = np.where(known, low, 0), np.where(known, high, len(values))
    return order[rng.integers(low, np.maximum(high, low + 1))]
