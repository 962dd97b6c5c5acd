"""Read and write channel traces: Mahimahi packet-delivery files and CSV, plain or gzipped.

- **Mahimahi**: one whole number a line, milliseconds, never falling; each is an opportunity to deliver
  one 1500-byte packet. The file repeats after its last number.
- **CSV**: a header with `t_s` and any of `mbps` (both ways), `up_mbps`, `down_mbps`, and `rtt_ms` or
  `ping_ms`; other columns are ignored. A sample holds until the next one. An empty RTT means "not
  measured here" and takes the last one measured.

Which of the two a file is, its content says, not its name. A file is read at most to `MAX_BYTES`
uncompressed, so a gzip bomb costs no more than a large trace; every refusal names file and line.
"""

from __future__ import annotations

import gzip
import io
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from splitedge.errors import TraceError
from splitedge.sim.curves import PACKET_BITS, Capacity, Floats, Opportunities, Rates, Series
from splitedge.sim.traces import BIN_S, Trace

MAX_BYTES = 32 * 1024 * 1024
MAX_SAMPLES = 4_000_000
MAX_LINE = 1024
MAX_TIME_S = 1e7
MAX_MBPS = 1e6
MAX_RTT_MS = 600_000.0

_CAPACITY = ("mbps", "up_mbps", "down_mbps")
_RTT = ("rtt_ms", "ping_ms")

Lines = Iterator[tuple[int, str]]


def read_trace(path: str | Path) -> Trace:
    """Read a trace; its content says which format it is in.

    Raises:
        TraceError: the file is missing, too large, damaged or not a trace; the message names file and
            line, what was found there and what was expected.
    """
    path = Path(path)
    lines = _lines(path, _content(path))
    first = next(lines, None)
    if first is None:
        raise TraceError(f"{path}: the file is empty; a trace has at least one line of data")
    number, line = first
    if "," not in line and line.lstrip("-").isdigit():
        return _mahimahi(path, _chain(first, lines))
    columns = [name.strip().lower() for name in line.split(",")]
    if "t_s" not in columns:
        raise TraceError(
            f"{path}:{number}: '{_short(line)}' begins neither a Mahimahi trace (one whole number of "
            "milliseconds a line) nor a CSV (a header such as 't_s,mbps' or 't_s,up_mbps,down_mbps,rtt_ms')"
        )
    return _csv(path, number, columns, lines)


def write_csv(trace: Trace, path: str | Path, bin_s: float = BIN_S) -> None:
    """Write a trace as CSV; packet opportunities are averaged over bins of `bin_s` seconds.

    Raises:
        TraceError: its parts do not share their times, or it has no capacity.
    """
    parts: list[tuple[str, Rates | Series, Floats]] = []
    up_name, down = ("mbps", None) if trace.up is trace.down else ("up_mbps", trace.down)
    for name, curve in ((up_name, trace.up), ("down_mbps", down)):
        if curve is not None:
            rates = curve.binned(bin_s) if isinstance(curve, Opportunities) else curve
            parts.append((name, rates, rates.bps / 1e6))
    if not parts:
        raise TraceError(f"{trace.source}: nothing to write, the trace has no capacity")
    time_s = parts[0][1].time_s
    if trace.rtt is not None:
        rtt_ms = np.array([trace.rtt.at(t) for t in time_s.tolist()]) * 1e3
        parts.append(("rtt_ms", trace.rtt, rtt_ms))
    if any(isinstance(part, Rates) and not np.array_equal(part.time_s, time_s) for _, part, _ in parts):
        raise TraceError(f"{trace.source}: up and down have other times; write them to two files")
    rows = zip(time_s.tolist(), *(values.tolist() for _, _, values in parts), strict=True)
    text = "".join(",".join(f"{value:.6g}" for value in row) + "\n" for row in rows)
    Path(path).write_text("t_s," + ",".join(name for name, _, _ in parts) + "\n" + text, encoding="ascii")


def write_mahimahi(curve: Capacity, path: str | Path) -> None:
    """Write one direction as Mahimahi packet opportunities, each at the first millisecond by which its
    1500 bytes were offered.

    The file ends at the last whole packet, so it repeats up to one packet's time early.

    Raises:
        TraceError: the capacity does not offer one packet, or too many of them.
    """
    count = int(curve.bits_per_period // PACKET_BITS)
    if not 1 <= count <= MAX_SAMPLES:
        raise TraceError(f"{path}: the trace offers {count} packets; the format can hold 1 to {MAX_SAMPLES}")
    marks = (math.ceil(curve.time_of(k * PACKET_BITS) * 1e3 - 1e-6) for k in range(1, count + 1))
    Path(path).write_text("".join(f"{mark}\n" for mark in marks), encoding="ascii")


# Reading --------------------------------------------------------------------------------------------


def _content(path: Path) -> bytes:
    """All of a file, decompressed where it is gzip, never more than the cap."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            source: io.BufferedIOBase = gzip.GzipFile(fileobj=raw) if zipped else raw
            data = source.read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: damaged or truncated gzip file ({error}); copy it again") from error
    except OSError as error:
        raise TraceError(f"{path}: can not be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise TraceError(
            f"{path}: more than {MAX_BYTES >> 20} MiB of text; cut the trace into shorter ones (an hour "
            "in steps of 0.1 s is about 0.5 MiB)"
        )
    return data


def _lines(path: Path, data: bytes) -> Lines:
    """Numbered lines that hold something; comments (#) and empty lines are left out."""
    start = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    stream = io.BytesIO(data)
    stream.seek(start)
    for number, raw in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), start=1):
        if len(raw) > MAX_LINE:
            raise TraceError(f"{path}:{number}: a line of more than {MAX_LINE} bytes; this is no trace")
        try:
            line = raw.decode("ascii").strip()
        except UnicodeDecodeError:
            line = "\0"
        if not line.replace("\t", " ").isprintable():
            raise TraceError(f"{path}:{number}: binary data; a trace is text (Mahimahi or CSV, or .gz of it)")
        if line and not line.startswith("#"):
            yield number, line


def _chain(first: tuple[int, str], rest: Lines) -> Lines:
    yield first
    yield from rest


def _mahimahi(path: Path, lines: Lines) -> Trace:
    marks: list[int] = []
    last = 0
    for number, line in lines:
        if not (line.isdigit() and len(line) <= 11 and int(line) <= MAX_TIME_S * 1e3):
            raise TraceError(
                f"{path}:{number}: '{_short(line)}'; each line of a Mahimahi trace is one whole number of "
                f"milliseconds from 0 to {MAX_TIME_S * 1e3:.0f}"
            )
        mark = int(line)
        if mark < last:
            raise TraceError(f"{path}:{number}: {mark} ms after {last} ms; times must never fall")
        marks.append(mark)
        last = mark
        _check_count(path, number, len(marks))
    if last == 0:
        raise TraceError(f"{path}: the last time is 0 ms, so the trace lasts no time and can not repeat")
    curve = Opportunities(np.array(marks, dtype=np.float64) / 1e3, last / 1e3)
    return Trace(str(path), "mahimahi", curve, curve)


def _csv(path: Path, header: int, columns: list[str], lines: Lines) -> Trace:
    wanted = _wanted(path, header, columns)
    rows: dict[str, list[float]] = {name: [] for name in wanted}
    times = rows["t_s"]
    for number, line in lines:
        cells = line.split(",")
        if len(cells) != len(columns):
            raise TraceError(
                f"{path}:{number}: {len(cells)} columns where the header has {len(columns)}: '{_short(line)}'"
            )
        for name, (column, check) in wanted.items():
            rows[name].append(check(path, number, name, cells[column].strip()))
        if len(times) > 1 and times[-1] < times[-2]:
            raise TraceError(
                f"{path}:{number}: t_s is {times[-1]:g} after {times[-2]:g}; times must never fall"
            )
        _check_count(path, number, len(times))
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
    wanted: dict[str, tuple[int, Check]] = {"t_s": (columns.index("t_s"), _limited(MAX_TIME_S))}
    for name in _CAPACITY:
        if name in columns:
            wanted[name] = columns.index(name), _limited(MAX_MBPS)
    rtt = next((name for name in _RTT if name in columns), None)
    if rtt is not None:
        wanted[rtt] = columns.index(rtt), _limited(MAX_RTT_MS, empty=math.nan)
    if len(wanted) == 1:
        raise TraceError(
            f"{path}:{header}: no column to replay; beside t_s give one of {', '.join((*_CAPACITY, *_RTT))}, "
            f"the header has {_short(', '.join(columns))}"
        )
    return wanted


Check = Callable[[Path, int, str, str], float]


def _limited(most: float, empty: float | None = None) -> Check:
    """A reader of one cell: a number from 0 to `most`; `empty` is what an empty cell stands for."""

    def read(path: Path, number: int, name: str, cell: str) -> float:
        if not cell and empty is not None:
            return empty
        try:
            value = float(cell) if "_" not in cell else math.nan
        except ValueError:
            value = math.nan
        if not 0.0 <= value <= most:  # false for NaN as well
            raise TraceError(f"{path}:{number}: {name} is '{_short(cell)}'; give a number from 0 to {most:g}")
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


def _check_count(path: Path, number: int, count: int) -> None:
    if count > MAX_SAMPLES:
        raise TraceError(f"{path}:{number}: more than {MAX_SAMPLES} samples; cut the trace into shorter ones")


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[:most] + "..."
