"""The link model is the integral of capacity, whatever the capacity and whoever sends."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.errors import TraceError
from splitedge.sim.curves import Opportunities, Rates, Series, steady
from splitedge.sim.link import Channel, Link
from splitedge.sim.traces import Trace


def rates(*mbps: float, step: float = 1.0) -> Rates:
    return Rates(np.arange(len(mbps)) * step, np.array(mbps) * 1e6, len(mbps) * step)


def arrival_by_small_steps(channel: Channel, sends, step: float = 1e-4) -> list[float]:
    """The same queue simulated tick by tick, with nothing clever."""
    waiting, arrivals, index, t = [], [], 0, 0.0
    curve = channel.capacity
    while len(arrivals) < len(sends):
        while index < len(sends) and sends[index][0] <= t + 1e-12:
            waiting.append(8.0 * sends[index][1])
            index += 1
        budget = step * curve.rate_at(t + channel.start_s + step / 2)
        while waiting and budget > 0:
            used = min(budget, waiting[0])
            budget -= used
            waiting[0] -= used
            if waiting[0] <= 1e-6:
                waiting.pop(0)
                arrivals.append(t + step)
        t += step
    return arrivals


def test_a_burst_takes_its_bytes_over_the_capacity():
    for nbytes in (5_000, 20_000, 100_000):
        link = Link(Channel(steady(5e6), rtt_s=0.04))
        assert link.send(3.0, nbytes) == pytest.approx(3.0 + 8 * nbytes / 5e6 + 0.02)


def test_bytes_wait_for_those_before_them_and_idle_capacity_is_lost():
    link = Link(Channel(steady(8e6)))
    assert link.send(0.0, 1_000_000) == pytest.approx(1.0)
    assert link.send(0.5, 500_000) == pytest.approx(1.5)
    assert link.backlog(0.5) == pytest.approx(1_000_000)
    assert link.backlog(1.6) == 0
    assert link.send(10.0, 1_000) == pytest.approx(10.001)


def test_an_outage_stalls_bytes_and_a_burst_that_fits_exactly_does_not_wait_for_it():
    channel = Channel(rates(8, 0, 8))
    assert Link(channel).send(0.0, 1_000_000) == pytest.approx(1.0)
    assert Link(channel).send(0.0, 1_000_001) == pytest.approx(2.000001)
    assert Link(channel).send(1.5, 0) == 1.5
    assert Link(channel).send(1.5, 1000) == pytest.approx(2.001)


def test_a_trace_loops_or_ends():
    looping, ending = Link(Channel(rates(8, 4))), Link(Channel(rates(8, 4), loop=False))
    assert looping.send(0.0, 1_750_000) == pytest.approx(2.25)
    assert ending.send(0.0, 1_500_000) == pytest.approx(2.0)
    assert ending.send(0.0, 1) == math.inf
    assert (looping.rate_at(2.5), ending.rate_at(2.5)) == (8e6, 0.0)


def test_far_into_a_replay_nothing_has_drifted():
    link = Link(Channel(rates(3, 0, 7, step=0.1)))
    laps = 10_000_000
    assert link.send(laps * 0.3, 3_000) == pytest.approx(laps * 0.3 + 8 * 3_000 / 3e6, abs=1e-6)


def test_a_replay_may_begin_inside_the_trace():
    assert Link(Channel(rates(8, 0, 4), start_s=2.0)).send(0.0, 1000) == pytest.approx(0.002, abs=1e-6)


def test_a_channel_that_carries_nothing_delivers_nothing():
    link = Link(Channel(rates(0, 0)))
    assert link.send(1.0, 1) == math.inf and link.backlog(50.0) == 1


def test_packets_leave_at_their_opportunities_only():
    channel = Channel(Opportunities(np.array([0.002, 0.002, 0.005]), 0.010))
    assert Link(channel).send(0.0, 1) == 0.002
    assert Link(channel).send(0.002, 3000) == 0.002  # an opportunity at this instant can be taken
    assert Link(channel).send(0.0, 3001) == 0.005
    assert Link(channel).send(0.0021, 1500) == 0.005
    assert Link(channel).send(0.006, 4501) == pytest.approx(0.022)
    link = Link(channel)
    assert [link.send(0.0, n) for n in (1000, 500, 1501)] == [0.002, 0.002, 0.005]


def test_a_full_buffer_makes_the_sender_wait():
    link = Link(Channel(steady(8e6), buffer_bytes=100_000))
    assert link.room_at(1.0, 100_000) == 1.0
    link.send(1.0, 100_000)
    assert link.room_at(1.0, 10_000) == pytest.approx(1.01)
    assert link.room_at(1.0, 500_000) == pytest.approx(1.1)  # more than the buffer: when it is empty
    assert link.room_at(2.0, 10_000) == 2.0


def test_what_is_queued_can_be_forgotten():
    link = Link(Channel(steady(8e6)))
    link.send(0.0, 1_000_000)
    link.clear(0.25)
    assert link.backlog(0.25) == 0
    assert link.send(0.25, 1000) == pytest.approx(0.251)


def test_a_falling_rtt_lets_nothing_overtake():
    rtt = Series(np.array([0.0, 1.0]), np.array([0.5, 0.1]), 2.0)
    link = Link(Channel(steady(8e6), rtt_s=rtt))
    first, second = link.send(0.95, 1000), link.send(1.05, 1000)
    assert first == pytest.approx(0.951 + 0.25) and second == first
    assert link.send(1.5, 1000) == pytest.approx(1.501 + 0.05)


def test_a_channel_from_a_trace_takes_its_rtt_unless_told():
    trace = Trace("x", "csv", rates(1), None, Series(np.zeros(1), np.full(1, 0.08), 1.0))
    assert Link(Channel.of(trace, "up")).send(0.0, 0) == pytest.approx(0.04)
    assert Link(Channel.of(trace, "up", rtt_s=0.0)).send(0.0, 0) == 0.0
    with pytest.raises(TraceError, match="downlink"):
        Channel.of(trace, "down")


@pytest.mark.parametrize(
    "wrong",
    [
        {"buffer_bytes": 0},
        {"start_s": -1.0},
        {"rtt_s": -0.1},
        {"rtt_s": math.nan},
        {"start_s": 5.0, "loop": False},
    ],
)
def test_a_channel_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(TraceError, match=next(iter(wrong))):
        Channel(rates(1, 2), **wrong)


levels = st.lists(st.sampled_from([0.0, 0.5, 2.0, 11.0, 40.0]), min_size=1, max_size=5).filter(any)
bursts = st.lists(st.tuples(st.floats(0, 0.4), st.integers(1, 20_000)), min_size=1, max_size=6)


@settings(max_examples=40, deadline=None)
@given(levels, bursts, st.sampled_from([0.0, 0.07]))
def test_it_agrees_with_a_simulation_by_small_steps(mbps, sends, start):
    sends = sorted(sends)
    channel = Channel(rates(*mbps, step=0.1), start_s=start)
    link = Link(channel)
    exact = [link.send(now, nbytes) for now, nbytes in sends]
    assert exact == pytest.approx(arrival_by_small_steps(channel, sends), abs=8e-4)


@settings(max_examples=100, deadline=None)
@given(levels, bursts, st.integers(1, 7))
def test_dividing_a_burst_changes_nothing(mbps, sends, parts):
    whole, divided = Link(Channel(rates(*mbps, step=0.1))), Link(Channel(rates(*mbps, step=0.1)))
    for now, nbytes in sorted(sends):
        expected = whole.send(now, nbytes * parts)
        got = [divided.send(now, nbytes) for _ in range(parts)]
        assert got == sorted(got) and got[-1] == pytest.approx(expected, abs=1e-6)


@settings(max_examples=100, deadline=None)
@given(
    st.one_of(
        levels.map(lambda mbps: rates(*mbps, step=0.1)),
        st.lists(st.integers(0, 40), min_size=1, max_size=20).map(
            lambda ms: Opportunities(np.array(sorted(ms)) / 1e3, (max(ms) + 1) / 1e3)
        ),
    ),
    st.floats(1, 1e6),
)
def test_offered_by_and_time_of_are_inverse(curve, bits):
    t = curve.time_of(bits)
    assert curve.bits_by(t + 1e-6) >= bits - 1
    assert curve.bits_by(t - 1e-6 if t > 1e-6 else 0.0) <= bits + 1
