"""A file of records as what a replay needs: who asked when, what was decided, what it came to."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitedge.errors import RecordError
from splitedge.policy import Option, Route
from splitedge.records import RecordTable

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Texts = npt.NDArray[np.str_]

#: Seconds of replayed time before the first request: the link connects and is pinged, as a daemon's is.
LEAD_S = 2.0
NONE = -1

_FINITE = ("t_s", "head_s", "encode_s", "uplink_s", "queue_s", "decode_s", "tail_s", "downlink_s", "energy_j")


@dataclass(frozen=True, eq=False)
class Decided:
    """What a policy decided and what it came to, for n requests; of a record or of a simulation.

    Attributes:
        planned: option wanted first, an index into the options, int (n,).
        target: option wanted last: after the exits on the way, and before any fall-back, int (n,).
        option: option that answered, int (n,); -1 where none did, or a filter's own class.
        degraded: answered by another than `target`, bool (n,).
        error: class name of the error, empty when answered, (n,).
        reason: one sentence each, (n,).
        latency_s: arrival to answer or error, (n,).
        met: answered within the deadline, bool (n,).
        nbytes: framed bytes, up and down, (n,).
        sent: framed bytes up, (n,).
        energy_j: modelled joules, (n,).
        confidence: calibrated probability that the answer is right; NaN where not known, 0 without one, (n,).
        right: whether the answer is right, (n,); NaN where not known.
    """

    planned: Ints
    target: Ints
    option: Ints
    degraded: Bools
    error: Texts
    reason: Sequence[str]
    latency_s: Floats
    met: Bools
    nbytes: Floats
    sent: Floats
    energy_j: Floats
    confidence: Floats
    right: Floats

    def __len__(self) -> int:
        return len(self.planned)


@dataclass(frozen=True, eq=False)
class Recorded:
    """The requests of a file of records in order of arrival.

    Attributes:
        table: the records themselves, in that order.
        t_s: arrival in replayed seconds; the first comes at `LEAD_S`, (n,).
        deadline_s: seconds allowed, inf for none, (n,).
        rows: rows of the request, (n,).
        forced: the route the caller named, None for none.
        cancelled: whether the caller went away (at `t_s + latency_s`), (n,).
        decided: what the recorded policy decided.
        isolated: nothing else was in flight from arrival to answer, (n,).
        left_out: requests that the edge refused before anything was decided.
        runs: runs of the daemon that the file holds.
    """

    table: RecordTable
    t_s: Floats
    deadline_s: Floats
    rows: Ints
    forced: Sequence[Route | None]
    cancelled: Bools
    decided: Decided
    isolated: Bools
    left_out: int
    runs: int

    def __len__(self) -> int:
        return len(self.t_s)

    @property
    def seconds(self) -> float:
        """From the first arrival to the last."""
        return float(self.t_s[-1] - self.t_s[0])


def recorded(table: RecordTable, options: Sequence[Option], source: str = "the records") -> Recorded:
    """Bring records in order and check that a replay can use them.

    Args:
        table: as `read_records` gives it.
        options: of the deployment that they were made with.
        source: for messages.

    Raises:
        RecordError: there are none, a number makes no sense, two runs overlap in time, or an option is not
            of this deployment.
    """
    runs = _runs(table, source)
    known = _take(table, np.flatnonzero(table["planned"] != ""))
    if not len(known):
        raise RecordError(f"{source}: no request was decided there, so there is nothing to replay")
    _check_numbers(known, source)
    known = _take(known, np.argsort(known["t_s"], kind="stable"))
    index = {option.name: i for i, option in enumerate(options)}
    planned = _indices(known["planned"], index, source)
    option = _indices(known["option"], index, source, but=("", "nothing"))
    t_s = known["t_s"] - known["t_s"][0] + LEAD_S
    ends = t_s + known["latency_s"]
    error = known["error"].astype(np.str_)
    decided = Decided(
        planned=planned,
        target=targets(planned, option, known["degraded"] | (error != ""), known["attempts"] > 0, options),
        option=option,
        degraded=known["degraded"],
        error=error,
        reason=known["reason"].tolist(),
        latency_s=known["latency_s"],
        met=known["met"],
        nbytes=(known["bytes_up"] + known["bytes_down"]).astype(float),
        sent=known["bytes_up"].astype(float),
        energy_j=known["energy_j"],
        confidence=np.where(error == "", known["confidence"], 0.0),
        right=np.where(error == "", np.nan, 0.0),
    )
    return Recorded(
        table=known,
        t_s=t_s,
        deadline_s=known["deadline_s"],
        rows=known["rows"],
        forced=_forced(known, decided, options),
        cancelled=error == "RequestCancelled",
        decided=decided,
        isolated=_isolated(t_s, ends),
        left_out=len(table) - len(known),
        runs=runs,
    )


def targets(planned: Ints, option: Ints, fell: Bools, sent: Bools, options: Sequence[Option]) -> Ints:
    """The option that was wanted last: the one that answered, unless the request fell back or failed.

    Then it is the planned one if that is remote. Else an exit came first and was not sure enough: what is
    usually wanted after it, a remote option if something was sent.

    Args:
        planned, option: indices, (n,).
        fell: answered by another option than wanted, or not at all, (n,).
        sent: something was sent, (n,).
        options: the table.
    """
    remote = np.array([o.remote for o in options])
    target = np.where(fell | (option == NONE), planned, option)
    unclear = fell & (planned != NONE) & ~remote[planned]
    for first in np.unique(planned[unclear]).tolist():
        for was_sent in (False, True):
            mine = unclear & (planned == first) & (sent == was_sent)
            seen = option[~fell & (option != NONE) & ((planned == first) | was_sent)]
            seen = seen[remote[seen]] if was_sent else seen
            if mine.any() and seen.size:
                target[mine] = Counter(seen.tolist()).most_common(1)[0][0]
    return target.astype(np.int64)


def _take(table: RecordTable, rows: npt.NDArray[np.intp]) -> RecordTable:
    return RecordTable({name: column[rows] for name, column in table.columns.items()}, table.torn)


def _runs(table: RecordTable, source: str) -> int:
    """How many runs of a daemon; each counts its requests from 1, and its clock may not run into the next."""
    number, t_s = table["request"], table["t_s"]
    if not len(table):
        raise RecordError(f"{source}: there is no record")
    starts = [0]
    seen: set[int] = set()
    for i, request in enumerate(number.tolist()):
        if request in seen:
            starts.append(i)
            seen = set()
        seen.add(request)
    edges = [*starts, len(table)]
    for begin, middle, end in zip(edges, edges[1:], edges[2:], strict=False):
        if not t_s[begin:middle].max() < t_s[middle:end].min():
            raise RecordError(
                f"{source}: the numbers of requests begin again at row {middle + 1}, but time does not go on "
                "there: the records of two runs, or of two devices; replay each in a file of its own"
            )
    return len(starts)


def _check_numbers(table: RecordTable, source: str) -> None:
    for name in _FINITE:
        wrong = ~np.isfinite(table[name]) | ((table[name] < 0.0) & (name != "t_s"))
        if wrong.any():
            _refuse(table, wrong, name, source)
    for name, wrong in (
        ("latency_s", ~(table["latency_s"] >= 0.0) | ~np.isfinite(table["latency_s"])),
        ("deadline_s", ~(table["deadline_s"] > 0.0)),
        ("rows", table["rows"] < 1),
        ("bytes_up", table["bytes_up"] < 0),
        ("bytes_down", table["bytes_down"] < 0),
        ("confidence", (table["confidence"] < 0.0) | (table["confidence"] > 1.0)),
    ):
        if wrong.any():
            _refuse(table, wrong, name, source)


def _refuse(table: RecordTable, wrong: Bools, name: str, source: str) -> None:
    row = int(np.flatnonzero(wrong)[0])
    raise RecordError(
        f"{source}: request {table['request'][row]} has {name} = {table[name][row]}; such records can not be "
        "replayed"
    )


def _indices(names: Texts, index: dict[str, int], source: str, but: tuple[str, ...] = ()) -> Ints:
    found, inverse = np.unique(names, return_inverse=True)
    for name in found.tolist():
        if name not in index and name not in but:
            raise RecordError(
                f"{source}: the option '{name}' is not one of this deployment, which has "
                f"{', '.join(index)}; name the deployment that the records were made with"
            )
    return np.array([index.get(str(name), NONE) for name in found.tolist()], np.int64)[inverse]


def _forced(table: RecordTable, decided: Decided, options: Sequence[Option]) -> list[Route | None]:
    return [
        options[planned].route if forced else None
        for forced, planned in zip(table["forced"].tolist(), decided.planned.tolist(), strict=True)
    ]


def _isolated(t_s: Floats, ends: Floats) -> Bools:
    """Whether a request was alone from its arrival to its end."""
    before = np.concatenate([[-np.inf], np.maximum.accumulate(ends)[:-1]])
    after = np.append(t_s[1:], np.inf)
    return (t_s >= before) & (ends <= after)
