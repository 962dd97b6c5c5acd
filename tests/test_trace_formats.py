"""Pensieve-cooked traces, and channels rebuilt from records."""

import gzip
import math

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitedge.errors import TraceError
from splitedge.record import Record
from splitedge.records import RecordStore, RecordTable
from splitedge.sim.curves import Opportunities, Rates, steady
from splitedge.sim.formats import read_trace, write_pensieve
from splitedge.sim.from_records import channel_from_records
from splitedge.sim.link import Channel, Link

# Pensieve -------------------------------------------------------------------------------------------


def test_a_rate_holds_for_the_interval_that_ends_at_its_time(tmp_path):
    for data in (b"3 9\n4 1.5\n6\t0\n6 7\n6.5  2.5\n", gzip.compress(b"3 9\n4 1.5\n6 0\n6.5 2.5\n")):
        (tmp_path / "t").write_bytes(data)
        trace = read_trace(tmp_path / "t")
        assert trace.kind == "pensieve" and trace.up is trace.down and trace.duration_s == 3.5
        assert trace.up.time_s.tolist() == [0, 1, 3] and trace.up.bps.tolist() == [1.5e6, 0, 2.5e6]


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.floats(0.01, 5), st.floats(0, 1000)), min_size=1, max_size=30))
def test_pensieve_comes_back_as_written(tmp_path, parts):
    steps, mbps = (np.array(column) for column in zip(*parts, strict=True))
    time_s = np.concatenate([[0.0], np.cumsum(steps)])
    rates = Rates(time_s[:-1], mbps * 1e6, float(time_s[-1]))
    write_pensieve(rates, tmp_path / "t")
    again = read_trace(tmp_path / "t").up
    assert again.period_s == pytest.approx(rates.period_s)
    assert again.time_s == pytest.approx(rates.time_s) and again.bps == pytest.approx(rates.bps, rel=1e-5)


def test_packets_are_binned_for_pensieve_and_a_folder_is_no_file(tmp_path):
    write_pensieve(Opportunities(np.array([0.05, 0.15, 0.15]), 0.2), tmp_path / "t", bin_s=0.1)
    assert read_trace(tmp_path / "t").up.bps.tolist() == pytest.approx([12e4, 24e4])
    with pytest.raises(TraceError, match="can not be written"):
        write_pensieve(steady(1e6), tmp_path)


# Records --------------------------------------------------------------------------------------------


def request(number, t_s, uplink_s, bytes_up=20_000, **more):
    """A request that the cloud answered: 2 ms of head, 1 of queue, 3 of tail, 11 back."""
    times = {"head_s": 0.002, "queue_s": 0.001, "tail_s": 0.003, "downlink_s": 0.011}
    latency = 0.002 + uplink_s + 0.001 + 0.003 + 0.011
    fields = {"attempts": 1, "bytes_up": bytes_up, "bytes_down": 300, "rtt_s": 0.02, "latency_s": latency}
    return Record(number, t_s, uplink_s=uplink_s, route="split", **{**times, **fields, **more})


def through(link, arrivals, nbytes):
    """Records of requests over a link whose propagation is 10 ms."""
    return [request(i, t, link.send(t + 0.002, nbytes) - (t + 0.002), nbytes) for i, t in enumerate(arrivals)]


def test_sent_again_over_the_rebuilt_channel_messages_take_what_they_took():
    rng = np.random.default_rng(2)
    truth = Rates(np.arange(60) * 0.5, rng.uniform(2e6, 20e6, 60), 30.0)
    arrivals = np.cumsum(rng.exponential(0.04, 600)).tolist()  # overlapping: they wait for each other
    records = through(Link(Channel(truth, rtt_s=0.02)), arrivals, 20_000)
    rebuilt = channel_from_records(RecordTable.of(records))
    assert not rebuilt.up_bound_only and rebuilt.down_bound_only and rebuilt.used == 600
    again = Link(Channel.of(rebuilt.trace, "up", rtt_s=0.02))
    for record in records:
        sent = record.t_s + 0.002
        assert again.send(sent - rebuilt.origin_s, 20_000) == pytest.approx(
            sent - rebuilt.origin_s + record.uplink_s, abs=2e-3
        )
    assert 0.3 < rebuilt.known_share < 1.0 and rebuilt.longest_gap_s < 0.5
    assert rebuilt.trace.rtt.at(3.0) == 0.02


def test_small_messages_bound_the_rate_from_below_and_missing_answers_from_above():
    records = [
        request(0, 10.0, 0.010 + 0.016),  # 20 kB in 16 ms: 10 Mbit/s
        request(1, 11.0, 0.010 + 0.016, 500),  # 0.25 Mbit/s at least: says nothing
        request(2, 12.0, 0.010 + 0.001, 3000),  # 24 Mbit/s at least: it was faster
        request(3, 13.0, 0.0, 20_000, latency_s=0.202, queue_s=0.0, tail_s=0.0, downlink_s=0.0),
        request(4, 14.0, 0.010 + 0.032),  # 5 Mbit/s
        request(5, 15.0, 0.010 + 0.001, attempts=2),
        Record(6, 16.0, latency_s=0.01, route="local"),
    ]
    rebuilt = channel_from_records(RecordTable.of(records))
    rate = rebuilt.trace.up.rate_at
    assert [rate(t) / 1e6 for t in (0.5, 1.5, 2.5)] == pytest.approx([10, 10, 24])
    assert rate(3.1) == pytest.approx(8 * 20_000 / 0.2) and rate(4.5) == pytest.approx(5e6)
    assert (rebuilt.used, rebuilt.left_out, rebuilt.origin_s) == (5, 1, 10.0)
    assert rebuilt.up.kind.tolist() == [0, 1, 1, -1, 0]
    assert rebuilt.longest_gap_s == pytest.approx(4.0, abs=0.05)


def test_records_in_a_file_are_a_trace_like_any_other(tmp_path):
    records = through(Link(Channel(steady(8e6), rtt_s=0.02)), np.arange(20.0).tolist(), 10_000)
    with RecordStore(tmp_path / "r.jsonl") as store:
        for record in records:
            store.append(record)
    for name in ("r.jsonl", "r.npz"):
        trace = read_trace(tmp_path / name)
        assert trace.kind == "records" and trace.up.bps == pytest.approx(8e6, rel=1e-6)


def test_records_that_never_went_over_the_link_are_no_channel():
    for record in (Record(0, 0.0), request(0, 0.0, 0.0), request(0, 0.0, 0.01, latency_s=math.nan)):
        with pytest.raises(TraceError, match="nothing was measured"):
            channel_from_records(RecordTable.of([record]))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.floats(0, 100), st.floats(0, 2), st.integers(0, 50_000), st.integers(0, 3), st.floats(0, 3)
        ),
        max_size=20,
    )
)
def test_any_records_give_a_channel_or_an_error(rows):
    records = [
        Record(i, t, uplink_s=up, downlink_s=0.01, bytes_up=n, bytes_down=n // 9, attempts=a, latency_s=lat)
        for i, (t, up, n, a, lat) in enumerate(rows)
    ]
    try:
        rebuilt = channel_from_records(RecordTable.of(records))
    except TraceError:
        return
    for curve in (rebuilt.trace.up, rebuilt.trace.down):
        if curve is not None:
            assert np.isfinite(curve.bps).all() and (curve.bps > 0).all()
            assert curve.time_s[0] == 0 and (np.diff(curve.time_s) >= 0).all()
            assert curve.time_s[-1] < curve.period_s
    assert 0 <= rebuilt.known_share <= 1
