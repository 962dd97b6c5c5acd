"""Half duplex, outages and losses: nothing overtakes, capacity is used once, division changes nothing."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.errors import TraceError
from splitedge.sim.channel import channels_of, links_of
from splitedge.sim.curves import Opportunities, Rates, steady
from splitedge.sim.link import Channel, Link
from splitedge.sim.loss import Loss, Packets
from splitedge.sim.medium import Medium
from splitedge.sim.outages import Outages
from splitedge.sim.scenario import ChannelPart
from splitedge.sim.traces import Trace


def rates(*mbps, step=0.1):
    return Rates(np.arange(len(mbps)) * step, np.array(mbps) * 1e6, len(mbps) * step)


def pair(up, down):
    medium = Medium()
    return Link(up, medium), Link(down, medium)


# Outages --------------------------------------------------------------------------------------------


def test_an_outage_stalls_what_a_trace_would_carry():
    link = Link(Channel(steady(8e6), outages=((1.0, 2.0), (1.5, 2.5))))
    assert link.send(0.9, 100_000) == pytest.approx(1.0)  # fits exactly before it
    assert link.send(0.9, 1_000) == pytest.approx(2.501)
    assert [link.rate_at(t) for t in (0.5, 1.2, 2.4, 2.6)] == [8e6, 0, 0, 8e6]
    assert link.backlog(2.0) == pytest.approx(1000)
    with pytest.raises(TraceError, match="outage from 3 s to 2 s"):
        Channel(steady(1e6), outages=((3.0, 2.0),))


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.sampled_from([0.5, 2.0, 11.0]), min_size=10, max_size=10),
    st.sets(st.integers(0, 9), max_size=6),
    st.lists(st.tuples(st.floats(0, 0.9), st.integers(1, 20_000)), min_size=1, max_size=6),
)
def test_outages_over_a_trace_are_the_same_as_outages_in_it(mbps, silent, sends):
    # The second lap is quiet nowhere, so a trace of two laps says the same.
    carved = [0.0 if i in silent else value for i, value in enumerate(mbps)] + mbps * 9
    inside = Link(Channel(rates(*carved)))
    over = Link(Channel(rates(*mbps), outages=tuple((i / 10, (i + 1) / 10) for i in silent)))
    for now, nbytes in sorted(sends):
        assert over.send(now, nbytes) == pytest.approx(inside.send(now, nbytes), abs=1e-6)
        assert over.backlog(now + 0.05) == pytest.approx(inside.backlog(now + 0.05), abs=1e-3)


def test_a_packet_opportunity_in_an_outage_is_lost():
    curve = Opportunities(np.array([0.001, 0.002, 0.003]), 0.003)
    link = Link(Channel(curve, outages=((0.002, 0.003),)))
    assert [link.send(0.0, 1500) for _ in range(3)] == pytest.approx([0.001, 0.003, 0.004])
    assert Outages((), lambda t: t).carried_by(3.0) == 3.0


# Half duplex ----------------------------------------------------------------------------------------


def test_a_shared_medium_serves_one_direction_at_a_time():
    up, down = pair(Channel(steady(8e6), rtt_s=0.02), Channel(steady(16e6), rtt_s=0.02))
    assert up.send(0.0, 100_000) == pytest.approx(0.11)
    assert down.send(0.05, 100_000) == pytest.approx(0.1 + 0.05 + 0.01)  # behind the uplink's bytes
    assert up.send(0.05, 100_000) == pytest.approx(0.25 + 0.01)
    assert up.backlog(0.05) == pytest.approx(150_000) and up.backlog(0.12) == pytest.approx(100_000)
    assert down.backlog(0.05) == pytest.approx(100_000) and down.backlog(0.125) == pytest.approx(50_000)
    assert up.send(1.0, 1000) == pytest.approx(1.011)  # alone again
    assert up.send(2.0, 0) == pytest.approx(2.01)


def test_the_buffer_of_a_shared_medium_holds_own_bytes_only():
    up, down = pair(Channel(steady(8e6), buffer_bytes=10_000), Channel(steady(8e6)))
    down.send(0.0, 100_000)
    assert up.room_at(0.0, 10_000) == 0.0
    up.send(0.0, 10_000)
    assert up.room_at(0.0, 5_000) == pytest.approx(0.105)
    assert up.room_at(0.0, 20_000) == pytest.approx(0.11)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.4), st.booleans(), st.integers(1, 20_000)), min_size=1, max_size=12),
    st.sampled_from([1.0, 3.0]),
)
def test_a_shared_medium_of_one_rate_is_one_queue(sends, mbps):
    one = Link(Channel(steady(mbps * 1e6)))
    up, down = pair(Channel(steady(mbps * 1e6)), Channel(steady(mbps * 1e6)))
    for now, goes_up, nbytes in sorted(sends):
        expected = one.send(now, nbytes)
        assert (up if goes_up else down).send(now, nbytes) == pytest.approx(expected, abs=1e-6)
        assert up.backlog(now) + down.backlog(now) == pytest.approx(one.backlog(now), abs=1.0)


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.floats(0, 0.4), st.booleans(), st.integers(1, 20_000)), min_size=1, max_size=12),
    st.floats(0.5, 30),
    st.floats(0.5, 30),
)
def test_a_shared_medium_is_never_idle_while_bytes_wait_and_serves_in_order(sends, up_mbps, down_mbps):
    up, down = pair(Channel(steady(up_mbps * 1e6)), Channel(steady(down_mbps * 1e6)))
    free = 0.0
    for now, goes_up, nbytes in sorted(sends):
        free = max(free, now) + 8 * nbytes / ((up_mbps if goes_up else down_mbps) * 1e6)
        assert (up if goes_up else down).send(now, nbytes) == pytest.approx(free, abs=1e-6)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.booleans(), min_size=1, max_size=12))
def test_one_packet_opportunity_serves_one_direction(ways):
    curve = Opportunities(np.arange(1, 21) / 1e3, 0.02)
    up, down = pair(Channel(curve), Channel(curve))
    got = [(up if goes_up else down).send(0.0, 1500) for goes_up in ways]
    assert got == pytest.approx([(i + 1) / 1e3 for i in range(len(ways))])


def test_what_a_shared_medium_queues_can_be_forgotten():
    up, down = pair(Channel(steady(8e6)), Channel(steady(8e6)))
    up.send(0.0, 1_000_000)
    down.send(0.0, 1_000_000)
    for link in (up, down):
        link.clear(0.25)
    assert up.backlog(0.25) == down.backlog(0.25) == 0
    assert down.send(0.25, 1000) == pytest.approx(0.251)


# Losses ---------------------------------------------------------------------------------------------


class Chosen(Packets):
    """Loses the packets whose numbers it is given, once each."""

    def __init__(self, loss, numbers):
        super().__init__(loss)
        self._numbers, self._next = numbers, 0

    def _begin(self, nbytes):
        self._times, self._room = int(self._next in self._numbers), 1500
        self.lost += self._times
        self._next += 1


def losing(channel, *numbers):
    link = Link(channel)
    link._packets = Chosen(channel.loss, numbers)
    return link


def test_a_lost_packet_costs_a_round_trip_and_those_behind_it_wait():
    channel = Channel(steady(12e6), rtt_s=0.04, loss=Loss(0.1))  # a packet a millisecond
    link = losing(channel, 1)
    # Packets 1 to 10, the second twice: 11 ms of capacity; it arrives a round trip after its second turn.
    assert link.send(0.0, 15_000) == pytest.approx(0.003 + 0.04 + 0.02)
    assert link.send(0.02, 1500) == pytest.approx(0.063)  # ready at 41 ms, but in order
    assert link.send(0.1, 1500) == pytest.approx(0.121)
    assert link.lost_packets == 1


def test_a_lost_tail_waits_for_the_timer():
    channel = Channel(steady(12e6), rtt_s=0.04, loss=Loss(0.1, rto_s=0.2))
    assert losing(channel, 7).send(0.0, 15_000) == pytest.approx(0.009 + 0.04 + 0.2 + 0.02)
    assert losing(channel, 6).send(0.0, 15_000) == pytest.approx(0.008 + 0.04 + 0.02)  # three follow
    assert losing(channel, 0).send(0.0, 900) == pytest.approx(2 * 0.0006 + 0.24 + 0.02)
    # Told that more of the burst is coming, it is not the tail.
    assert losing(channel, 0).send(0.0, 1500, after=4500) == pytest.approx(0.002 + 0.04 + 0.02)


def test_a_timer_doubles_up_to_its_limit():
    loss = Loss(0.1, rto_s=0.2)
    assert loss.recovery_s(1, True, 0.1) == pytest.approx(0.1)
    assert loss.recovery_s(2, True, 0.1) == pytest.approx(0.1 + 0.3)
    assert loss.recovery_s(3, False, 0.1) == pytest.approx(0.3 + 0.6 + 1.2)
    assert loss.recovery_s(40, False, 0.1) == pytest.approx(40 * 120, rel=0.3)


@pytest.mark.parametrize(("rate", "burst"), [(0.02, None), (0.1, 4.0), (0.5, None), (0.01, 30.0)])
def test_losses_have_the_rate_and_the_runs_they_are_asked_for(rate, burst):
    packets, lost = Packets(Loss(rate, burst, seed=3)), []
    for _ in range(60_000):
        lost.append(bool(list(packets.send(1500, 0))))
    lost = np.array(lost)
    edges = np.flatnonzero(np.diff(np.concatenate([[0], lost.astype(int), [0]])))
    runs = edges[1::2] - edges[::2]
    assert lost.mean() == pytest.approx(rate, rel=0.25)
    assert runs.mean() == pytest.approx(burst or 1 / (1 - rate), rel=0.2)


bursts = st.lists(st.tuples(st.floats(0, 0.4), st.integers(1, 9_000)), min_size=1, max_size=6)
losses = st.builds(
    Loss, st.sampled_from([0.0, 0.05, 0.3]), st.sampled_from([None, 2.0]), seed=st.integers(0, 99)
)


@settings(max_examples=150, deadline=None)
@given(bursts, losses, st.integers(1, 2000), st.booleans())
def test_dividing_a_burst_loses_the_same_packets(sends, loss, piece, silent):
    channel = Channel(rates(3, 9, 1), rtt_s=0.03, loss=loss, outages=((0.1, 0.2),) if silent else ())
    whole, divided = Link(channel), Link(channel)
    for now, nbytes in sorted(sends):
        expected = whole.send(now, nbytes)
        parts = [min(piece, nbytes - at) for at in range(0, nbytes, piece)]
        left = nbytes
        got = []
        for part in parts:
            left -= part
            got.append(divided.send(now, part, left))
        assert got == sorted(got)
        assert divided.lost_packets == whole.lost_packets
        assert got[-1] == pytest.approx(expected, abs=2e-6)
        assert divided.backlog(now) == pytest.approx(whole.backlog(now), abs=0.1)


@settings(max_examples=150, deadline=None)
@given(bursts, losses, st.floats(1.0, 4.0))
def test_in_order_never_earlier_for_losses_and_never_later_for_capacity(sends, loss, factor):
    slow, clean = Channel(rates(3, 0, 1), rtt_s=0.03, loss=loss), Channel(rates(3, 0, 1), rtt_s=0.03)
    fast = Channel(rates(3 * factor, 0, factor), rtt_s=0.03, loss=loss)
    links = [Link(channel) for channel in (slow, clean, fast)]
    last = 0.0
    for now, nbytes in sorted(sends):
        arrival, without, quicker = (link.send(now, nbytes) for link in links)
        assert math.isfinite(arrival) and arrival >= max(last, without - 1e-9) >= now
        assert quicker <= arrival + 1e-6
        last = arrival
    # Every byte and every retransmission took its bits once: the capacity is never idle while some wait.
    again = 8 * 1500 * links[0].lost_packets
    assert links[0]._served - links[1]._served <= again + 1e-3


def test_the_same_seed_loses_the_same_packets_and_each_direction_its_own():
    trace = Trace("x", "csv", steady(5e6), steady(9e6))
    part = ChannelPart(up=Path("x"), loss=0.2, rtt_ms=30)

    def arrivals(seed):
        up, down = links_of(part, trace, trace, seed)
        return [(up.send(t, 9000), down.send(t, 9000)) for t in np.arange(20.0).tolist()]

    assert arrivals(1) == arrivals(1) != arrivals(2)
    up, down = channels_of(part, trace, trace, 1)
    assert up.loss.seed != down.loss.seed


@pytest.mark.parametrize(
    "wrong", [{"rate": 0.6}, {"rate": math.nan}, {"rate": 0.1, "burst": 0.5}, {"rate": 0.1, "rto_s": -1.0}]
)
def test_a_loss_that_makes_no_sense_is_refused(wrong):
    with pytest.raises(TraceError, match=list(wrong)[-1]):
        Loss(**wrong)


# From a scenario ------------------------------------------------------------------------------------


def test_a_scenarios_channel_makes_the_links_and_options_are_off_by_default():
    trace = Trace("x", "csv", rates(8, 4), rates(2, 6))
    up, down = links_of(ChannelPart(up=Path("x"), rtt_ms=40), trace, trace)
    plain = Link(Channel.of(trace, "up", rtt_s=0.04)), Link(Channel.of(trace, "down", rtt_s=0.04))
    for link, expected in zip((up, down), plain, strict=True):
        assert [link.send(t, 9000) for t in (0, 0.1)] == [expected.send(t, 9000) for t in (0, 0.1)]

    part = ChannelPart(up=Path("x"), half_duplex=True, outages=((0.5, 1.0),), down_start_s=0.1, buffer_kb=9)
    up, down = links_of(part, trace, trace)
    assert up.send(0.0, 10_000) == pytest.approx(0.01)
    assert down.send(0.0, 10_000) == pytest.approx(0.01 + 8e4 / 6e6)  # after the uplink, at its own 0.1 s on
    assert up.send(0.7, 0) == 0.7 and up.send(0.7, 1000) == pytest.approx(1.001)
    assert up.channel.buffer_bytes == 9000
