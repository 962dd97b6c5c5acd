"""The store of records: appended as requests end, columnar when closed, readable as a table.

`RecordStore` writes JSON lines, flushed row by row, so that a killed process loses at most the line it
was writing. `close` writes the same rows as columns (`.npz`, no pickle) beside them. `read_records`
reads either and says how many torn lines it left out.
"""

from __future__ import annotations

import csv
import json
import math
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt
from rich.table import Table

from splitedge.errors import RecordError
from splitedge.record import Record

SCHEMA = "splitedge.record/1"
MAX_LINE = 64 * 1024  # bytes of one row; a longer line is damage
MAX_BYTES = 4 << 30  # bytes of a file, and of its columns unpacked

_NAMES = tuple(field.name for field in fields(Record))
_KINDS: dict[str, type] = {
    field.name: {"int": int, "float": float, "str": str, "bool": bool}[str(field.type)]
    for field in fields(Record)
}
_DTYPES: dict[type, npt.DTypeLike] = {int: np.int64, float: np.float64, bool: np.bool_}

Column = npt.NDArray[Any]


def _row(record: Record) -> dict[str, Any]:
    """A record as JSON values: numbers JSON has no word for become null (NaN) or "inf"."""
    row: dict[str, Any] = {}
    for name in _NAMES:
        value = getattr(record, name)
        if isinstance(value, float) and not math.isfinite(value):
            value = None if math.isnan(value) else ("inf" if value > 0 else "-inf")
        row[name] = value
    return row


def _record(row: object) -> Record:
    """The record of one parsed line. Raises ValueError naming the field that is wrong."""
    if not isinstance(row, dict):
        raise ValueError("not an object")
    unknown = row.keys() - _KINDS.keys()
    if unknown:
        raise ValueError(f"unknown field '{min(unknown)}'")
    values: dict[str, Any] = {}
    for name, value in row.items():
        kind = _KINDS[name]
        if kind is float:
            if value is None or value in ("inf", "-inf"):
                value = math.nan if value is None else float(value)
            elif isinstance(value, int) and not isinstance(value, bool):
                value = float(value)
        if type(value) is not kind or (isinstance(value, int) and abs(value) >= 1 << 63):
            raise ValueError(f"field '{name}' should be {kind.__name__}, got {str(value)[:40]!r}")
        values[name] = value
    if "request" not in values or "t_s" not in values:
        raise ValueError("'request' and 't_s' are missing")
    return Record(**values)


class RecordStore:
    """Appends records to a file of JSON lines. One process, one thread.

    Args:
        path: ends in `.jsonl`. An existing file is continued; a torn last line is cut off first.

    Raises:
        RecordError: the path has another ending, its folder is missing, or the file is no record file.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.suffix != ".jsonl":
            raise RecordError(f"a record file ends in .jsonl, got '{self.path}'")
        try:
            fresh = not self.path.exists() or self.path.stat().st_size == 0
            if not fresh:
                _check_head(self.path)
                mend(self.path)
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise RecordError(f"can not write records to '{self.path}': {error.strerror}") from error
        if fresh:
            self._write({"schema": SCHEMA})

    @property
    def columns_path(self) -> Path:
        """Where `close` puts the columns."""
        return self.path.with_suffix(".npz")

    def append(self, record: Record) -> None:
        """Write one row and hand it to the operating system before returning."""
        self._write(_row(record))

    def close(self) -> None:
        """Close the file and write its columns beside it. Closing twice does nothing."""
        if self._file.closed:
            return
        self._file.close()
        read_records(self.path).to_npz(self.columns_path)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _write(self, row: dict[str, Any]) -> None:
        if self._file.closed:
            raise RecordError(f"the record store '{self.path}' is closed")
        try:
            self._file.write(json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n")
            self._file.flush()
        except OSError as error:
            raise RecordError(f"can not write records to '{self.path}': {error.strerror}") from error


def _check_head(path: Path) -> None:
    with path.open("rb") as file:
        line = file.readline(MAX_LINE)
    try:
        head = json.loads(line)
    except (ValueError, RecursionError):
        head = None
    schema = head.get("schema") if isinstance(head, dict) else None
    if schema != SCHEMA:
        raise RecordError(f"'{path}' is no file of records: it should begin with the schema {SCHEMA}")


def mend(path: Path) -> None:
    """Cut off a last line without its end: the process that wrote it was killed."""
    with path.open("r+b") as file:
        size = file.seek(0, 2)
        start = max(0, size - MAX_LINE)
        file.seek(start)
        tail = file.read()
        if not tail.endswith(b"\n"):
            end = tail.rfind(b"\n")
            if end < 0:
                raise RecordError(f"'{path}' has no line end in its last {MAX_LINE} bytes; it is damaged")
            file.truncate(start + end + 1)


@dataclass(frozen=True)
class Summary:
    """What a set of records amounts to. Seconds, bytes, joules; NaN where there is nothing to count.

    Attributes:
        requests: rows of the table.
        answered: requests that ended in an answer.
        failed: requests that ended in an error.
        errors: how many of each error.
        accuracy: share of right answers; NaN unless truth was given to `RecordTable.summary`.
        p50_s, p95_s, p99_s: quantiles of the latency of answered requests.
        deadlines_met: share of all requests answered in time; one without a deadline is met by an answer.
        bytes_up, bytes_down: mean framed bytes a request.
        joules: mean modelled joules a request, idle not counted.
        routes: answers by route.
        degraded: share of answers by another route than the policy wanted.
        attempts: mean sendings a request.
    """

    requests: int
    answered: int
    failed: int
    errors: dict[str, int]
    accuracy: float
    p50_s: float
    p95_s: float
    p99_s: float
    deadlines_met: float
    bytes_up: float
    bytes_down: float
    joules: float
    routes: dict[str, int]
    degraded: float
    attempts: float


@dataclass(frozen=True)
class RecordTable:
    """Records as columns.

    Attributes:
        columns: one array of shape (n,) for each field of `Record`: int64, float64, bool, or str.
        torn: lines left out because the process was killed while it wrote them (0 or 1).
    """

    columns: dict[str, Column]
    torn: int = 0

    def __len__(self) -> int:
        return len(self.columns["request"])

    def __getitem__(self, name: str) -> Column:
        """A column by the name of its field."""
        if name not in self.columns:
            raise RecordError(f"records have no column '{name}'; there are {', '.join(_NAMES)}")
        return self.columns[name]

    def rows(self) -> Iterator[Record]:
        """The records, one by one."""
        lists = [self.columns[name].tolist() for name in _NAMES]
        for values in zip(*lists, strict=True):
            yield Record(*values)

    @classmethod
    def of(cls, records: Iterable[Record], torn: int = 0) -> RecordTable:
        """The table of some records."""
        kept = list(records)
        columns: dict[str, Column] = {}
        for name in _NAMES:
            values = [getattr(record, name) for record in kept]
            columns[name] = np.array(values, dtype=_DTYPES.get(_KINDS[name], np.str_))
        return cls(columns, torn)

    def to_csv(self, path: str | Path) -> None:
        """Write a CSV file with a head line; NaN is an empty cell."""
        with Path(path).open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(_NAMES)
            for record in self.rows():
                row = [getattr(record, name) for name in _NAMES]
                writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in row])

    def to_jsonl(self, path: str | Path) -> None:
        """Write JSON lines as `RecordStore` does."""
        with Path(path).open("w", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps({"schema": SCHEMA}, separators=(",", ":")) + "\n")
            for record in self.rows():
                file.write(json.dumps(_row(record), allow_nan=False, separators=(",", ":")) + "\n")

    def to_npz(self, path: str | Path) -> None:
        """Write the columns as NumPy arrays in a compressed archive; nothing is pickled."""
        arrays: dict[str, Any] = dict(self.columns)
        np.savez_compressed(Path(path), schema=np.array(SCHEMA), **arrays)

    def summary(self, right: npt.ArrayLike | None = None) -> Summary:
        """Count it all up.

        Args:
            right: shape (n,), whether each answer was right; leave out where truth is not known.

        Raises:
            RecordError: `right` has another length.
        """
        done = self["error"] == ""
        latency = self["latency_s"][done]
        quantiles = np.quantile(latency, [0.5, 0.95, 0.99]) if latency.size else np.full(3, math.nan)
        return Summary(
            requests=len(self),
            answered=int(done.sum()),
            failed=int((~done).sum()),
            errors=_counts(self["error"][~done]),
            accuracy=self._accuracy(right, done),
            p50_s=float(quantiles[0]),
            p95_s=float(quantiles[1]),
            p99_s=float(quantiles[2]),
            deadlines_met=_mean(self["met"]),
            bytes_up=_mean(self["bytes_up"]),
            bytes_down=_mean(self["bytes_down"]),
            joules=_mean(self["energy_j"]),
            routes=_counts(self["route"][done]),
            degraded=_mean(self["degraded"][done]),
            attempts=_mean(self["attempts"]),
        )

    def _accuracy(self, right: npt.ArrayLike | None, done: Column) -> float:
        if right is None:
            return math.nan
        truth = np.asarray(right, dtype=bool)
        if truth.shape != (len(self),):
            raise RecordError(
                f"'right' should have shape ({len(self)},), one for a record, got {truth.shape}"
            )
        return _mean(truth[done])


def _mean(values: Column) -> float:
    return float(values.mean()) if values.size else math.nan


def _counts(values: Column) -> dict[str, int]:
    names, counts = np.unique(values, return_counts=True)
    return {str(name): int(count) for name, count in zip(names, counts, strict=True)}


def read_records(path: str | Path) -> RecordTable:
    """Read a file of records: JSON lines (`.jsonl`) or columns (`.npz`).

    Raises:
        RecordError: missing, foreign or damaged; the message says where. Only a last line without its
            end is tolerated, and counted in `torn`.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_BYTES:
            raise RecordError(f"'{path}' has more than {MAX_BYTES} bytes")
        return _read_columns(path) if path.suffix == ".npz" else _read_lines(path)
    except OSError as error:
        raise RecordError(f"can not read records from '{path}': {error.strerror or error}") from error


def _read_lines(path: Path) -> RecordTable:
    _check_head(path)
    records: list[Record] = []
    torn = 0
    with path.open("rb") as file:
        file.readline()
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), start=2):
            if not line.endswith(b"\n"):
                if len(line) >= MAX_LINE:
                    raise RecordError(f"'{path}', line {number}: longer than {MAX_LINE} bytes")
                torn += 1
                continue
            try:
                records.append(_record(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise RecordError(f"'{path}', line {number}: {error}") from error
    return RecordTable.of(records, torn)


def _read_columns(path: Path) -> RecordTable:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(info.file_size for info in archive.infolist()) > MAX_BYTES:
                raise RecordError(f"'{path}' would unpack to more than {MAX_BYTES} bytes")
            schema = str(_member(archive, "schema")) if "schema.npy" in archive.namelist() else "none"
            if schema != SCHEMA:
                raise RecordError(f"'{path}' is no file of records: its schema is {schema}, not {SCHEMA}")
            columns = {name: _member(archive, name) for name in _NAMES}
    except _DAMAGE as error:
        raise RecordError(f"'{path}' is damaged: {error}") from error
    size = columns["request"].shape
    for name, column in columns.items():
        expected = _DTYPES.get(_KINDS[name])
        kind_fits = column.dtype == expected if expected is not None else column.dtype.kind == "U"
        if column.shape != size or column.ndim != 1 or not kind_fits:
            raise RecordError(f"'{path}': column '{name}' is {column.dtype}{column.shape}, not {size} rows")
    return RecordTable(columns)


# What zipfile, zlib and NumPy's header parser raise on damaged bytes.
_DAMAGE = (
    ValueError,
    KeyError,
    EOFError,
    RuntimeError,
    zlib.error,
    zipfile.BadZipFile,
    zipfile.LargeZipFile,
)


def _member(archive: zipfile.ZipFile, name: str) -> Column:
    """One array of the archive; its shape is held against its bytes before any are unpacked.

    `np.load` would take the memory that the header asks for first.
    """
    info = archive.getinfo(f"{name}.npy")
    with archive.open(info) as file:
        if np.lib.format.read_magic(file) != (1, 0):
            raise ValueError(f"column '{name}' has another version of the array format")
        shape, _, dtype = np.lib.format.read_array_header_1_0(file)
        nbytes = math.prod(shape) * dtype.itemsize
        if dtype.kind not in "ifbU" or nbytes != info.file_size - file.tell():
            raise ValueError(f"column '{name}' has {info.file_size} bytes, its header says {dtype}{shape}")
        data = file.read()  # to the end, which verifies the archive's CRC
    if len(data) != nbytes:
        raise ValueError(f"column '{name}' ends after {len(data)} of {nbytes} bytes")
    return np.frombuffer(data, dtype).reshape(shape) if nbytes else np.empty(shape, dtype)


def format_summary(summary: Summary, title: str = "records") -> Table:
    """The summary as a table for `rich`."""
    table = Table(title=title, show_header=False)
    table.add_column("what")
    table.add_column("value", justify="right")
    for name, value in _lines(summary):
        table.add_row(name, value)
    return table


def _lines(s: Summary) -> Iterator[tuple[str, str]]:
    yield "requests", str(s.requests)
    yield "answered", str(s.answered)
    yield "failed", str(s.failed) + "".join(f"\n{count} {name}" for name, count in s.errors.items())
    if not math.isnan(s.accuracy):
        yield "accuracy", f"{s.accuracy:.1%}"
    yield "latency p50 / p95 / p99", f"{_ms(s.p50_s)} / {_ms(s.p95_s)} / {_ms(s.p99_s)}"
    yield "deadlines met", _share(s.deadlines_met)
    yield "bytes up / down a request", f"{_number(s.bytes_up)} / {_number(s.bytes_down)}"
    yield "joules a request (modelled)", "-" if math.isnan(s.joules) else f"{s.joules:.4g}"
    yield "routes", "\n".join(f"{count} {route}" for route, count in s.routes.items()) or "-"
    yield "degraded", _share(s.degraded)
    yield "sendings a request", "-" if math.isnan(s.attempts) else f"{s.attempts:.2f}"


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1e3 * seconds:.1f} ms"


def _share(share: float) -> str:
    return "-" if math.isnan(share) else f"{share:.1%}"


def _number(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:,.0f}"
