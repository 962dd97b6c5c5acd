"""Collects the records of a simulation as columns, so that millions of them fit."""

from __future__ import annotations

from dataclasses import fields
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from splitedge.record import Record
from splitedge.sim.simulation import Column

CHUNK = 256

_DTYPES: dict[str, npt.DTypeLike] = {"int": np.int64, "float": np.float64, "bool": np.bool_}
_TEXTS = tuple(field.name for field in fields(Record) if field.type == "str" and field.name != "reason")
_NUMBERS = {field.name: _DTYPES[str(field.type)] for field in fields(Record) if str(field.type) in _DTYPES}

_VALUE = {name: attrgetter(name) for name in (*_NUMBERS, *_TEXTS)}


class _Words(dict[str, int]):
    """Numbers of texts, in the order in which they were first asked for."""

    def __missing__(self, word: str) -> int:
        self[word] = number = len(self)
        return number


class RowsOut:
    """Takes records in order of completion, gives columns in order of arrival.

    Args:
        reasons: whether to keep the column `reason`, text of its own for every request.
    """

    def __init__(self, reasons: bool = False) -> None:
        self._records: list[Record] = []
        self._mine: list[tuple[int, int, bool]] = []
        self._chunks: dict[str, list[Column]] = {}
        self._words = _Words()
        self._reasons: list[str] | None = [] if reasons else None
        self.count = 0

    def add(self, device: int, record: Record, row: int, right: bool) -> None:
        """One request has ended."""
        self._records.append(record)
        self._mine.append((device, row, right))
        self.count += 1
        if len(self._records) >= CHUNK:
            self._flush()

    def columns(self) -> dict[str, Column]:
        """Every column of `Record` (`reason` only where asked for), `device`, `row` and `right`, sorted by
        arrival, then device, then request.
        """
        self._flush()
        joined = {name: np.concatenate(chunks) for name, chunks in self._chunks.items()}
        if not joined:
            return self._empty()
        order = np.lexsort((joined["request"], joined["device"], joined["t_s"]))
        words = np.array(list(self._words))
        found: dict[str, Column] = {}
        for name, values in joined.items():
            found[name] = words[values[order]] if name in _TEXTS else values[order]
        if self._reasons is not None:
            found["reason"] = np.array(self._reasons)[order]
        return found

    def _empty(self) -> dict[str, Column]:
        names = ["device", "row", "right", *_NUMBERS, *_TEXTS]
        return {name: np.zeros(0, str if name in _TEXTS else np.float64) for name in names}

    def _flush(self) -> None:
        records, words = self._records, self._words
        if not records:
            return
        count = len(records)
        for name, dtype in _NUMBERS.items():
            self._chunk(name, np.fromiter(map(_VALUE[name], records), dtype, count))
        for name in _TEXTS:
            numbers = map(words.__getitem__, map(_VALUE[name], records))
            self._chunk(name, np.fromiter(numbers, np.int32, count))
        device, row, right = zip(*self._mine, strict=True)
        self._chunk("device", np.array(device, np.int64))
        self._chunk("row", np.array(row, np.int64))
        self._chunk("right", np.array(right, np.bool_))
        if self._reasons is not None:
            self._reasons.extend(record.reason for record in records)
        self._records, self._mine = [], []

    def _chunk(self, name: str, values: Column) -> None:
        self._chunks.setdefault(name, []).append(values)
