"""One row a text: what was asked, how it was written, what it took. Appended as JSON lines.

The sibling of `splitedge.record` for language models; `splitedge records summary FILE` reads both.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from rich.table import Table

from splitedge.errors import RecordError
from splitedge.records import mend

SCHEMA = "splitedge.text/1"
MAX_LINE = 64 * 1024


@dataclass(frozen=True, slots=True)
class TextRecord:
    """One text, from request to end. Seconds, framed bytes, joules; NaN where not known.

    Attributes:
        t_s: arrival, seconds since 1970.
        mode: it was written in. why: how that was chosen.
        finish: `stop` or `length`; empty for one that failed. error: class name of the error, else empty.
        degraded, reason: whether, and why, it is not by the mode wanted, all of it.
        prompt_tokens, tokens: in, and out.
        cloud_calls: messages to the cloud that waited for an answer. cloud_tokens: chosen by the cloud.
        proposed, accepted: drafts.
        bytes_up, bytes_down: framed.
        ttft_s, tpot_s, total_s: first token, each further one, all.
        compute_s, cloud_s: of the device, and of the cloud.
        energy_j: modelled.
    """

    t_s: float
    mode: str
    why: str = ""
    finish: str = ""
    error: str = ""
    degraded: bool = False
    reason: str = ""
    prompt_tokens: int = 0
    tokens: int = 0
    cloud_calls: int = 0
    cloud_tokens: int = 0
    proposed: int = 0
    accepted: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    ttft_s: float = math.nan
    tpot_s: float = math.nan
    total_s: float = math.nan
    compute_s: float = 0.0
    cloud_s: float = 0.0
    energy_j: float = 0.0


_KINDS = {
    field.name: {"int": int, "float": float, "str": str, "bool": bool}[str(field.type)]
    for field in fields(TextRecord)
}


def plain(value: Any) -> Any:
    """The same with null for numbers JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: plain(inner) for key, inner in value.items()}
    return [plain(inner) for inner in value] if isinstance(value, list) else value


class TextRecordStore:
    """Appends records to a file of JSON lines, each handed to the system before `append` returns.

    Args:
        path: ends in `.jsonl`. An existing file is continued; a torn last line is cut off.

    Raises:
        RecordError: the path has another ending, its folder is missing, or the file is no such file.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if self.path.suffix != ".jsonl":
            raise RecordError(f"a record file ends in .jsonl, got '{self.path}'")
        try:
            old = self.path.exists() and self.path.stat().st_size > 0
            if old and schema_of(self.path) != SCHEMA:
                raise RecordError(f"'{self.path}' holds no records of texts; take another file")
            if old:
                mend(self.path)
            self._file = self.path.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise RecordError(f"can not write records to '{self.path}': {error.strerror}") from error
        if not old:
            self._write({"schema": SCHEMA})

    def append(self, record: TextRecord) -> None:
        """Write one row."""
        self._write(plain(asdict(record)))

    def _write(self, row: dict[str, Any]) -> None:
        try:
            self._file.write(json.dumps(row, allow_nan=False, separators=(",", ":")) + "\n")
            self._file.flush()
        except (OSError, ValueError) as error:
            raise RecordError(f"can not write records to '{self.path}': {error}") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def schema_of(path: Path | str) -> str:
    """What a file of JSON lines says it holds; empty where it says nothing."""
    try:
        with Path(path).open("rb") as file:
            head = json.loads(file.readline(MAX_LINE))
    except (OSError, ValueError, RecursionError):
        return ""
    found = head.get("schema") if isinstance(head, dict) else None
    return found if isinstance(found, str) else ""


def read_texts(path: Path | str) -> list[TextRecord]:
    """Records of a file; a line that a killed process left torn is left out.

    Raises:
        RecordError: it is no such file, or a line of it is damaged.
    """
    if schema_of(path) != SCHEMA:
        raise RecordError(f"'{path}' holds no records of texts: it should begin with the schema {SCHEMA}")
    found = []
    with Path(path).open("rb") as file:
        file.readline(MAX_LINE)
        for number, line in enumerate(iter(lambda: file.readline(MAX_LINE), b""), start=2):
            if not line.endswith(b"\n") and len(line) < MAX_LINE:
                continue  # torn by a kill
            try:
                row = json.loads(line)
            except (ValueError, RecursionError):
                raise RecordError(f"'{path}', line {number}: no JSON") from None
            found.append(_record(row, path, number))
    return found


def _record(row: Any, path: Path | str, number: int) -> TextRecord:
    if not isinstance(row, dict) or not row.keys() <= _KINDS.keys() or not {"t_s", "mode"} <= row.keys():
        raise RecordError(f"'{path}', line {number}: no record of a text")
    values: dict[str, Any] = {}
    for name, value in row.items():
        kind = _KINDS[name]
        if kind is float:
            value = math.nan if value is None else float(value) if type(value) in (int, float) else value
        if type(value) is not kind:
            raise RecordError(f"'{path}', line {number}: '{name}' should be {kind.__name__}")
        values[name] = value
    return TextRecord(**values)


def summary_of(records: Sequence[TextRecord]) -> dict[str, Any]:
    """What records amount to: counts, medians, means a text; null where there is nothing."""
    done = [r for r in records if not r.error]
    tokens = sum(r.tokens for r in done)

    def median(values: list[float]) -> float | None:
        known = sorted(v for v in values if math.isfinite(v))
        return known[len(known) // 2] if known else None

    def each(total: float) -> float | None:
        return total / len(done) if done else None

    proposed = sum(r.proposed for r in done)
    return {
        "texts": len(records),
        "failed": len(records) - len(done),
        "errors": dict(Counter(r.error for r in records if r.error)),
        "modes": dict(Counter(r.mode for r in done)),
        "degraded": sum(r.degraded for r in done),
        "tokens": tokens,
        "cloud_tokens": sum(r.cloud_tokens for r in done),
        "ttft_s": median([r.ttft_s for r in done]),
        "tpot_s": median([r.tpot_s for r in done]),
        "total_s": median([r.total_s for r in done]),
        "cloud_calls": each(sum(r.cloud_calls for r in done)),
        "acceptance": sum(r.accepted for r in done) / proposed if proposed else None,
        "bytes_up": each(sum(r.bytes_up for r in done)),
        "bytes_down": each(sum(r.bytes_down for r in done)),
        "joules": each(sum(r.energy_j for r in done)),
    }


def summary_table(found: dict[str, Any]) -> Table:
    """A summary for people."""
    table = Table(show_header=False)
    for name, value in found.items():
        shown = f"{value:.4g}" if isinstance(value, float) else str(value)
        table.add_row(name, "-" if value is None else shown)
    return table
