"""The store of records: nothing written is lost, nothing damaged is read."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import signal
import subprocess
import sys
import zipfile

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from splitedge.errors import RecordError
from splitedge.record import Record
from splitedge.records import RecordStore, RecordTable, format_summary, read_records


def record(i, **changes):
    base = {
        "request": i,
        "t_s": float(i),
        "deadline_s": 0.1,
        "route": "split",
        "latency_s": 0.01 * (i + 1),
        "met": True,
        "bytes_up": 100,
        "energy_j": 0.5,
        "attempts": 1,
        "reason": "because",
    }
    return Record(**{**base, **changes})


def write(path, count=10):
    with RecordStore(path) as store:
        for i in range(count):
            store.append(record(i))
    return path


def same(a, b):
    return repr(a) == repr(b)


def test_what_is_written_is_read(tmp_path):
    path = tmp_path / "run.jsonl"
    rows = [record(0), record(1, confidence=math.nan, deadline_s=math.inf, reason='a "quoted"\nline, ü')]
    with RecordStore(path) as store:
        for row in rows:
            store.append(row)
    for table in (read_records(path), read_records(tmp_path / "run.npz")):
        assert table.torn == 0
        assert all(same(a, b) for a, b in zip(table.rows(), rows, strict=True))
    assert read_records(path)["bytes_up"].dtype == np.int64


numbers = st.floats(allow_nan=True, allow_infinity=True)


@given(st.integers(0, 2**62), numbers, numbers, st.text(max_size=30), st.booleans())
@settings(max_examples=60, deadline=None)
def test_any_record_survives_the_way_to_disk(tmp_path_factory, request_id, t_s, joules, text, met):
    text = text.encode("utf-8", "ignore").decode()
    row = Record(request_id, t_s, energy_j=joules, reason=text.rstrip("\0"), met=met)
    path = tmp_path_factory.mktemp("r") / "x.jsonl"
    write_one(path, row)
    assert same(next(read_records(path).rows()), row)
    assert same(next(read_records(path.with_suffix(".npz")).rows()), row)


def write_one(path, row):
    with RecordStore(path) as store:
        store.append(row)


def test_rows_are_on_disk_before_append_returns_and_survive_a_kill(tmp_path):
    path = tmp_path / "killed.jsonl"
    code = (
        "import os, signal, sys\n"
        "from splitedge.record import Record\n"
        "from splitedge.records import RecordStore\n"
        "store = RecordStore(sys.argv[1])\n"
        "for i in range(50): store.append(Record(i, 0.0))\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], timeout=60, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(read_records(path)) == 50
    assert not path.with_suffix(".npz").exists()


@pytest.mark.parametrize("cut", [1, 20, 200])
def test_a_torn_last_line_is_left_out_counted_and_mended(tmp_path, cut):
    path = write(tmp_path / "torn.jsonl")
    os.truncate(path, path.stat().st_size - cut)
    table = read_records(path)
    assert (len(table), table.torn) == (9, 1)
    with RecordStore(path) as store:
        store.append(record(99))
    table = read_records(path)
    assert (len(table), table.torn, table["request"][-1]) == (10, 0, 99)


def test_a_torn_head_is_begun_anew(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"sch')
    with pytest.raises(RecordError, match="no file of records"):
        RecordStore(path)
    path.write_text("")
    write(path, 1)
    assert len(read_records(path)) == 1


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 3"),
        ("[1]", "not an object"),
        ('{"request": 1, "t_s": 0.0, "surprise": 1}', "unknown field 'surprise'"),
        ('{"request": "1", "t_s": 0.0}', "'request' should be int"),
        ('{"request": true, "t_s": 0.0}', "'request' should be int"),
        ('{"request": 99999999999999999999, "t_s": 0.0}', "'request' should be int"),
        ('{"request": 1, "t_s": "soon"}', "'t_s' should be float"),
        ('{"request": 1, "t_s": true}', "'t_s' should be float"),
        ('{"t_s": 0.0}', "missing"),
        ("[" * 5000, "line 3"),
    ],
)
def test_damage_in_the_middle_is_refused_with_its_line(tmp_path, line, message):
    path = write(tmp_path / "bad.jsonl", 3)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines[:2], line, *lines[2:]]) + "\n")
    with pytest.raises(RecordError, match=message):
        read_records(path)


def test_foreign_and_missing_files_are_refused(tmp_path):
    foreign = tmp_path / "foreign.jsonl"
    foreign.write_text('{"hello": 1}\n')
    for bad in (foreign, tmp_path / "none.jsonl", tmp_path / "none.npz"):
        with pytest.raises(RecordError):
            read_records(bad)
    with pytest.raises(RecordError, match=r"ends in \.jsonl"):
        RecordStore(tmp_path / "x.txt")
    with pytest.raises(RecordError, match="can not write"):
        RecordStore(tmp_path / "no" / "folder.jsonl")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_bit_flips_in_columns_never_get_past_as_something_else(tmp_path_factory, data):
    path = write(tmp_path_factory.mktemp("r") / "x.jsonl", 3).with_suffix(".npz")
    original = list(map(repr, read_records(path).rows()))
    raw = bytearray(path.read_bytes())
    raw[data.draw(st.integers(0, len(raw) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    path.write_bytes(bytes(raw[: data.draw(st.integers(1, len(raw)))] if data.draw(st.booleans()) else raw))
    try:
        rows = list(map(repr, read_records(path).rows()))
    except RecordError:
        return
    assert rows == original  # the flip hit a part that means nothing (a time stamp in the archive)


def test_columns_that_need_pickle_are_refused(tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, schema=np.array("splitedge.record/1"), request=np.array([object()], dtype=object))
    with pytest.raises(RecordError, match="damaged"):
        read_records(path)


def test_columns_of_unequal_length_are_refused(tmp_path):
    table = read_records(write(tmp_path / "x.jsonl"))
    table.columns["route"] = table.columns["route"][:-1]
    table.to_npz(tmp_path / "y.npz")
    with pytest.raises(RecordError, match="'route'"):
        read_records(tmp_path / "y.npz")


def test_a_closed_store_takes_nothing(tmp_path):
    store = RecordStore(tmp_path / "x.jsonl")
    store.close()
    store.close()
    with pytest.raises(RecordError, match="closed"):
        store.append(record(1))
    assert len(read_records(tmp_path / "x.jsonl")) == 0
    assert len(read_records(tmp_path / "x.npz")) == 0


def test_csv_and_json_lines(tmp_path):
    table = RecordTable.of([record(0, confidence=math.nan), record(1, confidence=0.5)])
    table.to_csv(tmp_path / "t.csv")
    with (tmp_path / "t.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["confidence"] for row in rows] == ["", "0.5"]
    assert rows[1]["route"] == "split"
    table.to_jsonl(tmp_path / "t.jsonl")
    lines = (tmp_path / "t.jsonl").read_text().splitlines()
    assert json.loads(lines[1])["confidence"] is None
    assert [repr(r) for r in read_records(tmp_path / "t.jsonl").rows()] == [repr(r) for r in table.rows()]


def test_summary_counts_what_happened():
    rows = [record(i, latency_s=0.01 * (i + 1)) for i in range(8)]
    rows.append(record(8, route="exit", degraded=True, met=False, latency_s=0.2, attempts=3))
    rows.append(record(9, route="", error="DeadlineExceeded", met=False))
    right = np.array([True] * 6 + [False] * 4)
    summary = RecordTable.of(rows).summary(right)
    assert (summary.requests, summary.answered, summary.failed) == (10, 9, 1)
    assert summary.errors == {"DeadlineExceeded": 1}
    assert summary.routes == {"exit": 1, "split": 8}
    assert summary.accuracy == pytest.approx(6 / 9)
    assert summary.p50_s == pytest.approx(0.05)
    assert summary.deadlines_met == pytest.approx(0.8)
    assert summary.degraded == pytest.approx(1 / 9)
    assert summary.joules == pytest.approx(0.5)
    assert summary.attempts == pytest.approx(1.2)
    assert math.isnan(RecordTable.of(rows).summary().accuracy)
    with pytest.raises(RecordError, match=r"\(10,\)"):
        RecordTable.of(rows).summary([True])


def test_an_empty_table_sums_up_to_nothing():
    summary = RecordTable.of([]).summary()
    assert summary.requests == 0
    assert math.isnan(summary.p95_s)
    assert math.isnan(summary.deadlines_met)
    assert summary.routes == {}


def test_the_summary_is_readable():
    rows = [record(0), record(1, route="", error="Rejected", met=False)]
    out = io.StringIO()
    Console(file=out, width=100).print(format_summary(RecordTable.of(rows).summary([True, False]), "a run"))
    text = out.getvalue()
    for part in ("a run", "requests", "1 Rejected", "1 split", "50.0%", "100.0%", "10.0 ms"):
        assert part in text


def test_a_column_that_is_not_there_is_named():
    with pytest.raises(RecordError, match="no column 'latency'"):
        RecordTable.of([])["latency"]


def test_a_header_that_asks_for_too_much_is_refused_before_memory_is_taken(tmp_path):
    path = tmp_path / "x.npz"
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000000000,), }"
    header = header.ljust(117) + b"\n"
    member = b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header
    np.savez(path, schema=np.array("splitedge.record/1"))
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("request.npy", member)
    with pytest.raises(RecordError, match="its header says"):
        read_records(path)
