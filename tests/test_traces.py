"""Traces: both formats read alike, recordings give the numbers of their manifest, bad files are refused."""

import csv
import gzip
import json
import os
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from splitedge.errors import SplitedgeError, TraceError
from splitedge.sim import commands, trace_text
from splitedge.sim.curves import Opportunities, Rates
from splitedge.sim.formats import read_trace, write_csv, write_mahimahi
from splitedge.sim.synth import LteLike, lte_like
from splitedge.sim.traces import Trace, summarise

DATA = Path(os.environ.get("SPLITEDGE_DATA", Path(__file__).resolve().parents[1] / ".." / "shared" / "data"))
needs_data = pytest.mark.skipif(
    not (DATA / "traces").is_dir(), reason="no recorded traces beside the checkout"
)


def write(folder: Path, text: str | bytes, name: str = "t") -> Path:
    path = folder / name
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# Reading --------------------------------------------------------------------------------------------


def test_one_capacity_serves_both_ways(tmp_path):
    trace = read_trace(write(tmp_path, "t_s,mbps\n0,8\n0.5,0\n2,4\n"))
    assert trace.kind == "csv" and trace.up is trace.down and trace.rtt is None
    assert isinstance(trace.up, Rates)
    assert trace.up.bps.tolist() == [8e6, 0, 4e6]
    assert trace.duration_s == 2 + 1.0  # the last sample lasts the median step: (0.5 + 1.5) / 2


def test_both_capacities_and_an_rtt_with_gaps(tmp_path):
    text = "# a comment\n\nspeed,T_S,up_mbps,down_mbps,rtt_ms\n9,5,1,2,\n9,6,3,4,50\n9,7,5,6,\n"
    trace = read_trace(write(tmp_path, text))
    assert trace.up.time_s.tolist() == [0, 1, 2] and trace.up.bps.tolist() == [1e6, 3e6, 5e6]
    assert trace.down.bps.tolist() == [2e6, 4e6, 6e6]
    assert [trace.rtt.at(t) for t in (0, 1.5, 2.5, 3.0)] == [0.05] * 4


def test_an_rtt_alone_has_no_capacity(tmp_path):
    trace = read_trace(write(tmp_path, "t_s,rtt_ms\n0,20\n1,30\n"))
    assert trace.rtt.at(1.2) == 0.03
    with pytest.raises(TraceError, match="no capacity for the uplink"):
        trace.capacity("up")


def test_mahimahi_plain_and_gzipped_and_with_windows_line_ends(tmp_path):
    for name, data in {
        "plain": b"0\n2\n2\n10\n",
        "zipped": gzip.compress(b"0\n2\n2\n10\n"),
        "windows": b"\xef\xbb\xbf0\r\n2\r\n2\r\n10\r\n",
    }.items():
        trace = read_trace(write(tmp_path, data, name))
        assert trace.kind == "mahimahi" and isinstance(trace.up, Opportunities)
        assert trace.up.time_s.tolist() == [0, 0.002, 0.002, 0.01] and trace.duration_s == 0.01


BAD = {
    "empty": (b"", "empty"),
    "only comments": (b"# nothing\n\n", "empty"),
    "header only": (b"t_s,mbps\n", "no data"),
    "no known column": (b"t_s,speed\n0,1\n", "no column to replay"),
    "not a trace": (b"hello\n", "neither a Mahimahi trace"),
    "no header": (b"0.0,5.0\n", "neither a Mahimahi trace"),
    "same column twice": (b"t_s,mbps,mbps\n0,1,1\n", "'mbps' stands 2 times"),
    "ambiguous": (b"t_s,mbps,up_mbps\n0,1,1\n", "both ways"),
    "unsorted csv": (b"t_s,mbps\n0,1\n2,1\n1,1\n", ":4: t_s is 1 after 2"),
    "standing still": (b"t_s,mbps\n0,1\n0,1\n0,1\n", "half of the times"),
    "negative": (b"t_s,mbps\n0,-1\n", ":2: mbps is '-1'"),
    "nan": (b"t_s,mbps\n0,1\n1,nan\n", ":3: mbps is 'nan'"),
    "infinite": (b"t_s,mbps\n0,inf\n", ":2: mbps is 'inf'"),
    "huge": (b"t_s,mbps\n0,1e300\n", ":2: mbps is '1e300'"),
    "underscore": (b"t_s,mbps\n0,1_0\n", ":2: mbps is '1_0'"),
    "empty cell": (b"t_s,mbps\n0,\n", ":2: mbps is ''"),
    "truncated row": (b"t_s,mbps\n0,1\n1", ":3: 1 columns where the header has 2"),
    "empty rtt column": (b"t_s,rtt_ms\n0,\n1,\n", "RTT column is empty"),
    "unsorted mahimahi": (b"1\n5\n4\n", ":3: 4 ms after 5 ms"),
    "negative mahimahi": (b"-3\n", ":1: '-3'"),
    "fraction in mahimahi": (b"1\n2.5\n", ":2: '2.5'"),
    "many digits": (b"1\n" + b"9" * 900 + b"\n", ":2: '999"),
    "pensieve with three columns": (b"0 1\n1 2 3\n", ":2: '1 2 3'"),
    "pensieve of one line": (b"0.5 1.5\n", "lasts no time"),
    "unsorted pensieve": (b"0 1\n2 1\n1 1\n", ":3: 1 s after 2 s"),
    "negative pensieve": (b"0 1\n1 -1\n", ":2: the rate is '-1'"),
    "nan pensieve": (b"0 1\nnan 1\n", ":2: the time is 'nan'"),
    "huge pensieve": (b"0 1\n1 1e9\n", ":2: the rate is '1e9'"),
    "truncated pensieve": (b"0 1\n1", ":2: '1'"),
    "damaged records": (b'{"schema":"splitedge.record/1"}\n{"request":x}\n', "line 2"),
    "foreign records": (b'{"schema":"splitedge.record/99"}\n', "schema"),
    "records of nothing": (b'{"schema":"splitedge.record/1"}\n', "nothing was measured"),
    "a zip that is none": (b"PK\x03\x04" + b"\x00" * 60, "record"),
    "lasts no time": (b"0\n0\n", "lasts no time"),
    "binary": (b"1\n2\n\x89PNG\x00\x01\n", ":3: binary data"),
    "utf-16": ("t_s,mbps\n0,1\n".encode("utf-16"), ":1: binary data"),
    "long line": (b"1\n" + b"1" * 5000 + b"\n", ":2: a line of more than"),
    "truncated gzip": (gzip.compress(b"1\n" * 5000)[:-10], "gzip"),
    "damaged gzip": (b"\x1f\x8b" + b"\x00" * 50, "gzip"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_file_is_refused_by_name_and_line(tmp_path, name):
    data, message = BAD[name]
    path = write(tmp_path, data, "bad.trace")
    with pytest.raises(TraceError) as caught:
        read_trace(path)
    assert str(path) in str(caught.value) and message in str(caught.value)


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(TraceError, match="can not be read"):
            read_trace(path)


def test_a_gzip_bomb_costs_no_more_than_the_cap(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_text, "MAX_BYTES", 1 << 20)
    path = write(tmp_path, gzip.compress(b"1\n" * (8 << 20)))
    with pytest.raises(TraceError, match="more than 1 MiB"):
        read_trace(path)


def test_too_many_samples_are_refused_while_reading(tmp_path, monkeypatch):
    monkeypatch.setattr(trace_text, "MAX_SAMPLES", 10)
    for text in ("t_s,mbps\n" + "".join(f"{i},1\n" for i in range(20)), "".join(f"{i}\n" for i in range(20))):
        with pytest.raises(TraceError, match="more than 10 samples"):
            read_trace(write(tmp_path, text))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=300),
        st.binary(max_size=200).map(lambda tail: b"t_s,mbps\n0,1\n" + tail),
        st.text("0123456789.,-\n eE+t_smbpinfa", max_size=200).map(
            lambda tail: ("t_s,mbps\n" + tail).encode()
        ),
        st.text("0123456789\n", max_size=200).map(str.encode),
        st.text("0123456789.-e \t\n", max_size=200).map(lambda tail: b"0 1\n" + tail.encode()),
        st.binary(max_size=200).map(lambda tail: b'{"schema":"splitedge.record/1"}\n' + tail),
        st.binary(max_size=80).map(lambda tail: b"\x1f\x8b\x08\x00" + tail),
    )
)
def test_any_bytes_are_a_trace_or_a_trace_error(tmp_path, data):
    try:
        trace = read_trace(write(tmp_path, data))
    except TraceError:
        return
    for part in (trace.up, trace.down, trace.rtt):
        if part is not None:
            numbers = summarise(part)
            assert np.isfinite([numbers.mean, numbers.low, numbers.high, numbers.duration_s]).all()
            assert 0 <= numbers.low <= numbers.mean * (1 + 1e-9) + 1e-12 and numbers.duration_s > 0


def test_two_packets_months_apart_cost_no_bin_for_every_tenth_of_a_second(tmp_path):
    trace = read_trace(write(tmp_path, "1\n9999999999\n"))
    assert summarise(trace.up).zero_share > 0.99
    assert len(trace.up.binned(0.1).bps) <= 1_000_000


# Writing --------------------------------------------------------------------------------------------


def test_csv_comes_back_as_written(tmp_path):
    trace = lte_like(20, seed=3)
    write_csv(trace, tmp_path / "t.csv")
    again = read_trace(tmp_path / "t.csv")
    assert np.allclose(again.up.bps, trace.up.bps, rtol=1e-5) and np.allclose(
        again.down.bps, trace.down.bps, rtol=1e-5
    )
    assert again.duration_s == pytest.approx(20) and again.rtt.at(7.05) == pytest.approx(trace.rtt.at(7.05))


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.floats(0, 40), min_size=1, max_size=40).filter(lambda rates: sum(rates) > 1))
def test_packets_hold_the_same_bytes_by_the_same_time(tmp_path, mbps):
    rates = Rates(np.arange(len(mbps)) * 0.25, np.array(mbps) * 1e6, len(mbps) * 0.25)
    write_mahimahi(rates, tmp_path / "t")
    packets = read_trace(tmp_path / "t").up
    assert packets.bits_per_period == pytest.approx(rates.bits_per_period, abs=12001)
    for t in np.linspace(0.05, rates.period_s, 9):
        # A packet counts when it is whole and its millisecond has passed.
        if t < packets.period_s:
            late = rates.bits_by(t) - packets.bits_by(t)
            assert -1 <= late <= 12000 + max(mbps) * 1e6 * 1.01e-3


def test_packets_to_csv_keep_every_byte(tmp_path):
    packets = Opportunities(np.array([0.0, 0.03, 0.05, 0.2501, 0.2999, 0.3]), 0.3)
    write_csv(Trace("x", "mahimahi", packets, packets), tmp_path / "t.csv")
    rates = read_trace(tmp_path / "t.csv").up
    assert rates.bits_per_period == pytest.approx(6 * 12000, rel=1e-5)
    assert rates.bps.tolist() == pytest.approx([3 * 12e4, 0, 3 * 12e4], rel=1e-5)


def test_what_can_not_be_written_says_why(tmp_path):
    slow = Rates(np.zeros(1), np.full(1, 100.0), 1.0)
    with pytest.raises(TraceError, match="offers 0 packets"):
        write_mahimahi(slow, tmp_path / "t")
    fast = Rates(np.array([0.0, 1.0]), np.full(2, 1e6), 2.0)
    with pytest.raises(TraceError, match="other times"):
        write_csv(Trace("x", "csv", slow, fast), tmp_path / "t")
    with pytest.raises(TraceError, match="no capacity"):
        write_csv(Trace("x", "csv", None, None), tmp_path / "t")


# Recordings -----------------------------------------------------------------------------------------


@needs_data
def test_every_recording_gives_the_numbers_of_its_manifest():
    with (DATA / "traces" / "MANIFEST.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) > 100
    for row in rows:
        trace = read_trace(DATA / row["path"])
        if row["kind"] == "rtt":
            assert trace.up is None and trace.down is None
            if "lost" not in row["columns"]:  # with losses, gaps are filled and the numbers differ
                assert summarise(trace.rtt).high == pytest.approx(float(row["max"]), rel=1e-3), row["id"]
            continue
        curve = trace.capacity("down" if "down_mbps" in row["columns"].split("|")[1] else "up")
        assert len(curve.time_s) == int(row["n"]), row["id"]
        assert trace.duration_s == pytest.approx(float(row["duration_s"]), rel=2e-3, abs=0.11), row["id"]
        if row["columns"].startswith("t_s|mbps"):
            mbps = curve.bps / 1e6
            expected = [float(row[name]) for name in ("min", "mean", "max")]
            numbers = [mbps.min(), mbps.mean(), mbps.max()]
            assert numbers == pytest.approx(expected, rel=2e-3, abs=2e-3), row["id"]
            assert np.mean(mbps == 0) == pytest.approx(float(row["zero_frac"]), abs=1e-3), row["id"]


@needs_data
def test_the_core_recordings_are_in_the_manifest_and_summed_up_over_time():
    with (DATA / "traces" / "MANIFEST.csv").open() as file:
        rows = {row["id"]: row for row in csv.DictReader(file)}
    names = (DATA / "traces" / "CORE.txt").read_text().split()
    assert names
    for name in names:
        row = rows[name]
        trace = read_trace(DATA / row["path"])
        part = trace.rtt if row["kind"] == "rtt" else trace.up or trace.down
        numbers = summarise(part)
        assert numbers.samples == int(row["n"]), name
        even = row["columns"] == "t_s|mbps" and np.ptp(np.diff(part.time_s)) < 1e-6
        if even:  # samples of one length: the mean over time is the mean over samples
            assert numbers.mean == pytest.approx(float(row["mean"]), rel=2e-3, abs=2e-3), name
            assert numbers.zero_share == pytest.approx(float(row["zero_frac"]), abs=1e-3), name
            if numbers.samples >= 1000:  # the manifest takes the mean of the two in the middle
                assert numbers.p50 == pytest.approx(float(row["p50"]), rel=0.02, abs=0.02), name


@needs_data
def test_packets_of_a_recording_agree_with_its_bins():
    folder = DATA / "traces" / "mahimahi"
    for name in ("TMobile-LTE-short.up", "Verizon-LTE-short.down"):
        packets = read_trace(folder / "raw" / f"{name}.gz").up
        bins = read_trace(folder / f"{name}.csv").up
        binned = packets.binned(0.1).bps / 1e6
        count = min(len(binned), len(bins.bps)) - 1
        assert np.allclose(binned[:count], bins.bps[:count] / 1e6, atol=1e-3)


# Synthetic ------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_channel():
    one, same, other = lte_like(30, 5), lte_like(30, 5), lte_like(30, 6)
    assert np.array_equal(one.up.bps, same.up.bps) and np.array_equal(one.rtt.value, same.rtt.value)
    assert not np.array_equal(one.up.bps, other.up.bps)
    assert not np.array_equal(one.up.bps, one.down.bps)


def test_the_synthetic_channel_has_the_statistics_it_documents():
    traces = [lte_like(900, seed) for seed in range(4)]
    rates = np.concatenate([trace.up.bps for trace in traces])
    zero = rates == 0
    assert 0.01 < zero.mean() < 0.08
    assert 0.7 < np.log(rates[~zero]).std() < 1.1
    logs = np.log(np.maximum(rates, 1e5))

    def correlation(lag):
        return np.corrcoef(logs[:-lag], logs[lag:])[0, 1]

    assert correlation(1) > 0.7 and 0.2 < correlation(10) < 0.65 and correlation(50) < 0.4
    assert all(np.array_equal(trace.up.bps == 0, trace.down.bps == 0) for trace in traces)
    assert max(summarise(trace.up).longest_zero_s for trace in traces) > 0.7


def test_outages_do_not_change_the_fading():
    calm = lte_like(60, 1, LteLike(outage_s=0.0)).up.bps
    rough = lte_like(60, 1).up.bps
    assert (calm > 0).all() and (rough == 0).any()
    assert np.array_equal(calm[rough > 0], rough[rough > 0])


@pytest.mark.parametrize(
    "wrong",
    [{"step_s": 0.0}, {"sigma": -1.0}, {"coverage": ()}, {"coverage": (2.0,)}, {"up_mbps": float("nan")}],
)
def test_parameters_that_make_no_channel_are_refused(wrong):
    with pytest.raises(TraceError, match=next(iter(wrong))):
        lte_like(10, 0, LteLike(**wrong))
    with pytest.raises(TraceError, match="seconds"):
        lte_like(1e12, 0)
    with pytest.raises(TraceError, match="seed"):
        lte_like(10, -1)


# The verb -------------------------------------------------------------------------------------------


def test_the_verb_makes_shows_draws_and_converts(tmp_path):
    made, drawn, packets, again = (str(tmp_path / name) for name in ("a.csv", "a.png", "a.up", "b.csv"))

    def run(*arguments):
        result = CliRunner().invoke(commands.trace, arguments, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    run("synth", made, "--seconds", "12", "--seed", "4", "--rtt-ms", "30")
    shown = json.loads(run("info", made, "--json"))
    assert (
        shown["kind"] == "csv" and shown["up"]["samples"] == 120 and shown["rtt"]["low"] == pytest.approx(30)
    )
    assert "down, Mbit/s" in run("info", made)
    run("plot", made, "--out", drawn)
    assert Path(drawn).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    run("convert", made, packets, "--direction", "down")
    run("convert", packets, again)
    converted = json.loads(run("info", again, "--json"))
    assert converted["both_ways"]["mean"] == pytest.approx(shown["down"]["mean"], rel=0.02)


def test_the_verb_raises_the_readers_error(tmp_path):
    with pytest.raises(SplitedgeError, match="neither a Mahimahi"):
        CliRunner().invoke(commands.trace, ["info", str(write(tmp_path, "x y\n"))], catch_exceptions=False)
