"""What another policy would have come to, request by request: the records where they can say, the simulation
where they can not.

This is a doubly robust estimate (Dudik, Langford and Li, "Doubly robust policy evaluation and learning", ICML
2011) for a recorded policy that does not decide at random. With Y what was recorded of a request, A its
simulated outcome under the recorded decisions and B that under the candidate:

- where the candidate decides as the records did, Y + (B - A): the record stands, and only what the simulation
  says of side effects (queues, what the link estimator has learnt) is added; the simulation's error cancels;
- where it decides otherwise, B minus the error that the simulation makes on that option, which is the mean of
  A - Y over the recorded requests that took it. An option the records never took is taken as simulated.

The second part is the direct method of that paper: nothing but the model speaks for it. How far it may be off
is part of the interval (`replay_stats.py`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from splitedge.sim.replay_records import Bools, Decided, Floats, Ints

#: Columns of an outcome, each (n,).
COLUMNS = ("met", "latency_s", "nbytes", "energy_j", "confidence", "sure_in_time", "failed")
#: An option that was recorded this often has an error of its own.
ENOUGH = 20
#: What is assumed of the simulation's mean error on requests that no record with that option is like:
#: standard deviations, as a share of the simulated mean or in the column's unit (docs/replay.md).
UNSEEN_SHARE = {"latency_s": 0.15, "nbytes": 0.02, "energy_j": 0.05}
UNSEEN = {"met": 0.02, "confidence": 0.02, "sure_in_time": 0.03, "failed": 0.01}


@dataclass(frozen=True, eq=False)
class Errors:
    """The simulation's error by option: simulated minus recorded, of each column.

    Attributes:
        mean: (columns, options); 0 where the option was recorded too seldom.
        deviation: how far the mean may be off for requests of another policy, a standard deviation,
            (columns, options).
        known: whether the option was recorded often enough, (options,).
    """

    mean: Floats
    deviation: Floats
    known: Bools


def columns_of(decided: Decided) -> Floats:
    """The columns of an outcome, (columns, n)."""
    met = decided.met.astype(float)
    confidence = np.where(np.isnan(decided.confidence), 0.0, decided.confidence)
    failed = (decided.error != "").astype(float)
    return np.stack(
        [met, decided.latency_s, decided.nbytes, decided.energy_j, confidence, confidence * met, failed]
    )


def recorded_columns(recorded: Decided, simulated: Decided) -> Floats:
    """What was recorded, (columns, n); an answer whose confidence was not recorded has that of its row."""
    found = columns_of(recorded)
    unknown = np.isnan(recorded.confidence)
    at = COLUMNS.index("confidence")
    found[at] = np.where(unknown, simulated.confidence, found[at])
    found[COLUMNS.index("sure_in_time")] = found[at] * found[0]
    return found


def same(one: Decided, other: Decided) -> Bools:
    """Where two policies decided alike, first and last, (n,)."""
    return np.asarray((one.planned == other.planned) & (one.target == other.target))


def errors(
    actual: Floats, simulated: Floats, target: Ints, count: int, candidate: Floats, aim: Ints
) -> Errors:
    """How far the simulation of the recorded decisions is from the records, option by option.

    A mean error of another policy's requests is taken to be within half of the error seen on the option's
    own requests, and within twice its standard error, as a standard deviation; for an option never recorded
    within the largest error seen on any option. To that comes what `UNSEEN` assumes, in proportion to the
    share of the recorded requests that did not take the option.

    Args:
        actual, simulated: outcomes under the recorded decisions, (columns, n).
        target: option wanted last in the records, (n,).
        count: of options.
        candidate, aim: outcomes of the candidate, (columns, n), and the options it wanted, (n,).
    """
    off = simulated - actual
    mean, deviation = np.zeros((len(off), count)), np.zeros((len(off), count))
    known = np.zeros(count, bool)
    for option in range(count):
        mine = off[:, target == option]
        if mine.shape[1] >= ENOUGH:
            known[option] = True
            mean[:, option] = mine.mean(axis=1)
            noise = 2.0 * mine.std(axis=1) / np.sqrt(mine.shape[1])
            deviation[:, option] = np.hypot(0.5 * mean[:, option], noise)
    largest = np.abs(mean[:, known]).max(axis=1) if known.any() else np.abs(off.mean(axis=1))
    deviation[:, ~known] = largest[:, None]
    for option in np.unique(aim[aim >= 0]).tolist():
        elsewhere = float((target != option).mean())  # the records tell little of those requests
        assumed = elsewhere * _assumed(candidate[:, aim == option].mean(axis=1))
        deviation[:, option] = np.hypot(deviation[:, option], assumed)
    return Errors(mean, deviation, known)


def _assumed(mean: Floats) -> Floats:
    """What `UNSEEN` assumes for a simulated mean, (columns,)."""
    shares = [UNSEEN_SHARE.get(name, 0.0) for name in COLUMNS]
    plain = [UNSEEN.get(name, 0.0) for name in COLUMNS]
    return np.asarray(shares * mean + np.array(plain))


def outcome(
    actual: Floats, simulated: Floats, candidate: Floats, alike: Bools, target: Ints, error: Errors
) -> Floats:
    """The candidate's outcome of every request, (columns, n); see the module's text."""
    kept = actual + (candidate - simulated)
    found = np.where(alike[None, :], kept, candidate - error.mean[:, target])
    latency = COLUMNS.index("latency_s")
    found[latency] = np.maximum(found[latency], 0.0)
    return found
