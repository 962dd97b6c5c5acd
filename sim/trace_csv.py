"""Traces as CSV: a header with `t_s` and the columns it may have, then a line a sample."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np

from splitedge.errors import TraceError
from splitedge.sim.curves import Floats, Rates, Series
from splitedge.sim.trace_text import Lines, check_count, short
from splitedge.sim.traces import Trace

MAX_TIME_S = 1e7
MAX_MBPS = 1e6
MAX_RTT_MS = 600_000.0

_CAPACITY = ("mbps", "up_mbps", "down_mbps")
_RTT = ("rtt_ms", "ping_ms")

#: Reads one cell of (file, line, column's name, text).
Check = Callable[[Path, int, str, str], float]


def read_csv(path: Path, header: int, columns: list[str], lines: Lines) -> Trace:
    """Read the lines behind a header.

    Args:
        path: for messages.
        header: its line.
        columns: names in the header, in small letters.
        lines: what follows, numbered.

    Raises:
        TraceError: names file and line.
    """
    wanted = _wanted(path, header, columns)
    rows: dict[str, list[float]] = {name: [] for name in wanted}
    times = rows["t_s"]
    for number, line in lines:
        cells = line.split(",")
        if len(cells) != len(columns):
            raise TraceError(
                f"{path}:{number}: {len(cells)} columns where the header has {len(columns)}: '{short(line)}'"
            )
        for name, (column, check) in wanted.items():
            rows[name].append(check(path, number, name, cells[column].strip()))
        if len(times) > 1 and times[-1] < times[-2]:
            raise TraceError(
                f"{path}:{number}: t_s is {times[-1]:g} after {times[-2]:g}; times must never fall"
            )
        check_count(path, number, len(times))
    if not times:
        raise TraceError(f"{path}: a header and no data; a trace has at least one sample")
    return _assemble(path, {name: np.array(values) for name, values in rows.items()})


def _wanted(path: Path, header: int, columns: list[str]) -> dict[str, tuple[int, Check]]:
    """Which columns to read, where they stand, and how."""
    for name in ("t_s", *_CAPACITY, *_RTT):
        if columns.count(name) > 1:
            raise TraceError(f"{path}:{header}: column '{name}' stands {columns.count(name)} times")
    if "mbps" in columns and ("up_mbps" in columns or "down_mbps" in columns):
        raise TraceError(
            f"{path}:{header}: 'mbps' is for both ways; it can not stand beside up_ or down_mbps"
        )
    wanted: dict[str, tuple[int, Check]] = {"t_s": (columns.index("t_s"), limited(MAX_TIME_S))}
    for name in _CAPACITY:
        if name in columns:
            wanted[name] = columns.index(name), limited(MAX_MBPS)
    rtt = next((name for name in _RTT if name in columns), None)
    if rtt is not None:
        wanted[rtt] = columns.index(rtt), limited(MAX_RTT_MS, empty=math.nan)
    if len(wanted) == 1:
        raise TraceError(
            f"{path}:{header}: no column to replay; beside t_s give one of {', '.join((*_CAPACITY, *_RTT))}, "
            f"the header has {short(', '.join(columns))}"
        )
    return wanted


def limited(most: float, empty: float | None = None) -> Check:
    """A reader of one cell: a number from 0 to `most`; `empty` is what an empty cell stands for."""

    def read(path: Path, number: int, name: str, cell: str) -> float:
        if not cell and empty is not None:
            return empty
        try:
            value = float(cell) if "_" not in cell else math.nan
        except ValueError:
            value = math.nan
        if not 0.0 <= value <= most:  # false for NaN as well
            raise TraceError(f"{path}:{number}: {name} is '{short(cell)}'; give a number from 0 to {most:g}")
        return value

    return read


def _assemble(path: Path, rows: dict[str, Floats]) -> Trace:
    time_s = rows["t_s"] - rows["t_s"][0]
    # A sample lasts as long as samples usually do; one alone lasts for ever, so its length is free.
    step = float(np.median(np.diff(time_s))) if len(time_s) > 1 else 1.0
    period_s = float(time_s[-1]) + step
    if step <= 0.0:
        raise TraceError(f"{path}: more than half of the times are equal; t_s must grow")
    curves = {name: Rates(time_s, rows[name] * 1e6, period_s) for name in _CAPACITY if name in rows}
    both = curves.get("mbps")
    rtt = next((_series(time_s, rows[name], period_s) for name in _RTT if name in rows), None)
    trace = Trace(str(path), "csv", curves.get("up_mbps", both), curves.get("down_mbps", both), rtt)
    if trace.up is None and trace.down is None and rtt is None:
        raise TraceError(f"{path}: the RTT column is empty and there is no capacity; nothing to replay")
    return trace


def _series(time_s: Floats, rtt_ms: Floats, period_s: float) -> Series | None:
    """RTT with gaps filled by the last value measured (the first one, before it); None if all are."""
    known = np.flatnonzero(~np.isnan(rtt_ms))
    if not len(known):
        return None
    at = np.maximum(np.searchsorted(known, np.arange(len(rtt_ms)), side="right") - 1, 0)
    return Series(time_s, rtt_ms[known[at]] / 1e3, period_s)
