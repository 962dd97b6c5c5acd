"""Which counterfactuals the records can support, and why not the others.

A request that the candidate would have decided as it was decided is supported by its own record. One that it
would have answered on the device needs nothing of the channel. One that it would have sent needs a channel
that was measured: near in time, and by transfers not much smaller than what is to be sent.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from splitedge.errors import RecordError
from splitedge.policy import Option
from splitedge.sim.replay_conditions import Conditions
from splitedge.sim.replay_measure import Measured
from splitedge.sim.replay_records import Bools, Decided, Floats, Recorded

#: A transfer measures the channel for requests this near, seconds.
REACH_S = 10.0
#: A message may have this many times the bytes of the largest transfer near it.
TIMES_LARGER = 4.0
#: Share of requests that must be supported.
LEAST_SHARE = 0.8


class Unsupported(RecordError):
    """Too few of the requests can be judged from these records."""


@dataclass(frozen=True, slots=True)
class Gap:
    """One kind of thing that the records can not tell.

    Attributes:
        what: `uplink_unknown` or `payload_too_large`, which leave a request unsupported, or `never_ran`,
            `no_joules`, `battery`, which are only to be known.
        requests: how many it concerns.
        text: one sentence.
    """

    what: str
    requests: int
    text: str


@dataclass(frozen=True, eq=False)
class Support:
    """What the records can say of a candidate's requests.

    Attributes:
        recorded: decided as in the records, (n,).
        unsupported: the channel that it needs was not measured, (n,).
        gaps: in words; first what is unsupported.
        reach_s: how near a transfer must be.
    """

    recorded: Bools
    unsupported: Bools
    gaps: Sequence[Gap]
    reach_s: float

    @property
    def share(self) -> float:
        """Share of requests that are supported."""
        return float(1.0 - self.unsupported.mean())


def support(
    recorded: Recorded,
    candidate: Decided,
    alike: Bools,
    up: Measured,
    conditions: Conditions,
    options: Sequence[Option],
    reach_s: float = REACH_S,
) -> Support:
    """Judge every request of a simulated candidate.

    Args:
        recorded: the requests.
        candidate: what it decided in one simulation.
        alike: where it decided as in the records, (n,).
        up: what the uplink was measured by.
        conditions: which options the records saw.
        options: the table.
        reach_s: how near in time a transfer must be.
    """
    remote = np.array([option.remote for option in options])[candidate.target]
    needs = remote & ~alike & ~recorded.cancelled
    age, largest = _nearest(recorded.t_s, up, reach_s)
    far = needs & (age > reach_s)
    size = np.where(candidate.sent > 0.0, candidate.sent, 0.0)
    large = needs & ~far & (size > TIMES_LARGER * largest)
    gaps = [
        *_far(recorded, far, age, reach_s, up),
        *_large(candidate, large, size, largest, options),
        *_never_ran(candidate, alike, conditions, options),
        *_others(recorded, conditions),
    ]
    return Support(alike, far | large, gaps, reach_s)


def _nearest(t_s: Floats, up: Measured, reach_s: float) -> tuple[Floats, Floats]:
    """Seconds to the nearest answered transfer, and bytes of the largest within reach, (n,) each."""
    known = up.answered()
    age, largest = np.full(len(t_s), np.inf), np.zeros(len(t_s))
    if not len(known):
        return age, largest
    after = np.searchsorted(known.begin, t_s)
    for at in (np.clip(after - 1, 0, len(known) - 1), np.clip(after, 0, len(known) - 1)):
        apart = np.maximum(np.maximum(known.begin[at] - t_s, t_s - known.end[at]), 0.0)
        age = np.minimum(age, apart)
    first = np.searchsorted(known.begin, t_s - reach_s)
    last = np.searchsorted(known.begin, t_s + reach_s, "right")
    for i, (a, b) in enumerate(zip(first.tolist(), last.tolist(), strict=True)):
        if b > a:
            largest[i] = known.nbytes[a:b].max()
    return age, largest


def _far(recorded: Recorded, far: Bools, age: Floats, reach_s: float, up: Measured) -> list[Gap]:
    if not far.any():
        return []
    n = int(far.sum())
    if not len(up.answered()):
        text = "nothing in these records was sent and answered, so nothing is known of the uplink"
    else:
        t_s = recorded.t_s - recorded.t_s[0]
        stretches = _stretches(t_s, far)
        begin, end = max(stretches, key=lambda stretch: stretch[1] - stretch[0])
        text = (
            f"the candidate sends where the records sent nothing within {reach_s:g} s, so the uplink is "
            f"unknown there; the longest such time is from {begin:.0f} s to {end:.0f} s"
        )
    return [Gap("uplink_unknown", n, text)]


def _stretches(t_s: Floats, where: Bools) -> list[tuple[float, float]]:
    edges = np.flatnonzero(np.diff(np.concatenate([[False], where, [False]]).astype(int)))
    return [(float(t_s[a]), float(t_s[b - 1])) for a, b in zip(edges[::2], edges[1::2], strict=True)]


def _large(
    candidate: Decided, large: Bools, size: Floats, largest: Floats, options: Sequence[Option]
) -> list[Gap]:
    found = []
    for option in np.unique(candidate.target[large]).tolist():
        mine = large & (candidate.target == option)
        text = (
            f"{options[option].name} sends {np.median(size[mine]):,.0f} bytes; the largest transfers "
            f"measured near those requests had {np.median(largest[mine]):,.0f}, and small ones say little of "
            "large ones"
        )
        found.append(Gap("payload_too_large", int(mine.sum()), text))
    return found


def _never_ran(
    candidate: Decided, alike: Bools, conditions: Conditions, options: Sequence[Option]
) -> list[Gap]:
    found = []
    for option in np.unique(candidate.target[~alike]).tolist():
        if option < 0 or conditions.ran[option]:
            continue
        n = int((~alike & (candidate.target == option)).sum())
        text = (
            f"{options[option].name} hardly ran in these records: its seconds are the profile's, and its "
            "confidence is drawn from the evaluation"
        )
        found.append(Gap("never_ran", n, text))
    return found


def _others(recorded: Recorded, conditions: Conditions) -> list[Gap]:
    found = []
    n = len(recorded)
    if not conditions.power_known:
        text = "no power profile gives the joules of these records; name theirs with --power to have joules"
        found.append(Gap("no_joules", n, text))
    battery = recorded.table["battery"]
    if np.isfinite(battery).any():
        text = (
            "the battery's charge is as recorded; that another policy spends more or less is not carried on"
        )
        found.append(Gap("battery", int(np.isfinite(battery).sum()), text))
    return found
