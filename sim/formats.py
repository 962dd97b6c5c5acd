"""Read and write channel traces. Which format a file is in, its content says, not its name.

- **CSV**: a header with `t_s` and any of `mbps` (both ways), `up_mbps`, `down_mbps`, and `rtt_ms` or
  `ping_ms`; other columns are ignored. A sample holds until the next one. An empty RTT means "not
  measured here" and takes the last one measured.
- **Mahimahi**: one whole number a line, milliseconds, never falling; each is an opportunity to deliver
  one 1500-byte packet. The file repeats after its last number.
- **Pensieve-cooked** (Mao et al., SIGCOMM 2017, and most work on adaptive video since): two numbers a line,
  seconds and Mbit/s. A rate holds for the interval that *ends* at its time, as Pensieve's simulator reads
  it; the first line only says where the first interval begins.
- **Records** of splitedge (JSON lines or .npz): what the transfers in them measured (`from_records.py`).

All but .npz may be gzipped. A file is read at most to `trace_text.MAX_BYTES` uncompressed, so a gzip bomb
costs no more than a large trace; every refusal names file and line.
"""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np

from splitedge.errors import RecordError, TraceError
from splitedge.records import read_records
from splitedge.sim.curves import PACKET_BITS, Capacity, Floats, Opportunities, Rates, Series
from splitedge.sim.from_records import channel_from_records
from splitedge.sim.trace_csv import MAX_MBPS, MAX_TIME_S, limited, read_csv
from splitedge.sim.trace_text import MAX_SAMPLES, Lines, check_count, content, lines, short
from splitedge.sim.traces import BIN_S, Trace


def read_trace(path: str | Path) -> Trace:
    """Read a trace; its content says which format it is in.

    Raises:
        TraceError: the file is missing, too large, damaged or not a trace; the message names file and
            line, what was found there and what was expected.
    """
    path = Path(path)
    data = content(path)
    if data.startswith((b"PK\x03\x04", b'{"schema":"splitedge.record')):
        return _records(path)
    rest = lines(path, data)
    first = next(rest, None)
    if first is None:
        raise TraceError(f"{path}: the file is empty; a trace has at least one line of data")
    number, line = first
    if "," not in line and line.lstrip("-").isdigit():
        return _mahimahi(path, _chain(first, rest))
    if "," not in line and len(line.split()) == 2 and line[0] in "+-.0123456789":
        return _pensieve(path, _chain(first, rest))
    columns = [name.strip().lower() for name in line.split(",")]
    if "t_s" not in columns:
        raise TraceError(
            f"{path}:{number}: '{short(line)}' begins neither a Mahimahi trace (one whole number of "
            "milliseconds a line), nor a Pensieve one (seconds and Mbit/s with a blank between), nor a CSV "
            "(a header such as 't_s,mbps' or 't_s,up_mbps,down_mbps,rtt_ms')"
        )
    return read_csv(path, number, columns, rest)


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
    text = "".join(f"{t:.10g}," + ",".join(f"{value:.6g}" for value in row) + "\n" for t, *row in rows)
    _write(path, "t_s," + ",".join(name for name, _, _ in parts) + "\n" + text)


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
    _write(path, "".join(f"{mark}\n" for mark in marks))


def write_pensieve(curve: Capacity, path: str | Path, bin_s: float = BIN_S) -> None:
    """Write one direction as Pensieve reads it; packet opportunities are averaged over bins.

    Raises:
        TraceError: the file can not be written.
    """
    rates = curve.binned(bin_s) if isinstance(curve, Opportunities) else curve
    mbps = (rates.bps / 1e6).tolist()
    ends = [*rates.time_s.tolist()[1:], rates.period_s]
    text = f"0 {mbps[0]:.6g}\n" + "".join(
        f"{end:.10g} {rate:.6g}\n" for end, rate in zip(ends, mbps, strict=True)
    )
    _write(path, text)


def _write(path: str | Path, text: str) -> None:
    try:
        Path(path).write_text(text, encoding="ascii")
    except OSError as error:
        raise TraceError(f"{path}: can not be written: {error.strerror or error}") from error


# Reading --------------------------------------------------------------------------------------------


def _records(path: Path) -> Trace:
    try:
        return channel_from_records(read_records(path), str(path)).trace
    except RecordError as error:
        raise TraceError(str(error)) from error


def _chain(first: tuple[int, str], rest: Lines) -> Lines:
    yield first
    yield from rest


def _mahimahi(path: Path, rows: Lines) -> Trace:
    marks: list[int] = []
    last = 0
    for number, line in rows:
        if not (line.isdigit() and len(line) <= 11 and int(line) <= MAX_TIME_S * 1e3):
            raise TraceError(
                f"{path}:{number}: '{short(line)}'; each line of a Mahimahi trace is one whole number of "
                f"milliseconds from 0 to {MAX_TIME_S * 1e3:.0f}"
            )
        mark = int(line)
        if mark < last:
            raise TraceError(f"{path}:{number}: {mark} ms after {last} ms; times must never fall")
        marks.append(mark)
        last = mark
        check_count(path, number, len(marks))
    if last == 0:
        raise TraceError(f"{path}: the last time is 0 ms, so the trace lasts no time and can not repeat")
    curve = Opportunities(np.array(marks, dtype=np.float64) / 1e3, last / 1e3)
    return Trace(str(path), "mahimahi", curve, curve)


def _pensieve(path: Path, rows: Lines) -> Trace:
    ends: list[float] = []
    mbps: list[float] = []
    time, rate = limited(MAX_TIME_S), limited(MAX_MBPS)
    for number, line in rows:
        cells = line.split()
        if len(cells) != 2:
            raise TraceError(
                f"{path}:{number}: '{short(line)}'; each line of a Pensieve trace is two numbers, seconds "
                "and Mbit/s"
            )
        ends.append(time(path, number, "the time", cells[0]))
        mbps.append(rate(path, number, "the rate", cells[1]))
        if len(ends) > 1 and ends[-1] < ends[-2]:
            raise TraceError(f"{path}:{number}: {ends[-1]:g} s after {ends[-2]:g} s; times must never fall")
        check_count(path, number, len(ends))
    if ends[-1] <= ends[0]:
        raise TraceError(
            f"{path}: the trace lasts no time; each rate holds for the interval that ends at its time, so "
            "there are at least two lines with times that grow"
        )
    time_s = np.array(ends) - ends[0]
    # An interval of no length carries nothing: its rate was never in force.
    some = np.diff(time_s) > 0.0
    curve = Rates(time_s[:-1][some], np.array(mbps[1:])[some] * 1e6, float(time_s[-1]))
    return Trace(str(path), "pensieve", curve, curve)
