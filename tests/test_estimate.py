"""Link estimators on synthetic channels: they converge, cover, react, forget, and never break."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.estimate import (
    ClockOffset,
    EstimatorSettings,
    Ewma,
    HarmonicMean,
    LinkEstimator,
    SlidingQuantiles,
)

KINDS = ("quantiles", "ewma", "harmonic")
PROPAGATION = 0.020


def feed(link, rates, nbytes=20_000, start=0.0, gap=0.1, rng=None):
    """Send a message over each rate (bits/s), pinging as well; the time after the last."""
    now = start
    for rate in rates:
        jitter = rng.random() * 0.0005 if rng else 0.0
        link.observe_rtt(now, 2 * PROPAGATION + jitter)
        link.observe_uplink(now, nbytes, PROPAGATION + 8 * nbytes / rate + jitter)
        now += gap
    return now - gap


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rate", [3e5, 4e6, 8e7])
def test_converges_to_a_constant_rate(kind, rate):
    link = LinkEstimator(EstimatorSettings(kind=kind))
    now = feed(link, [rate] * 60, nbytes=50_000)
    seen = link.goodput(now)
    assert seen.mean == pytest.approx(rate, rel=0.15)
    assert 0.6 * rate < seen.low <= seen.mean <= seen.high < 1.6 * rate
    assert link.rtt(now).mean == pytest.approx(2 * PROPAGATION, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_low_and_high_cover_four_of_five_rates(kind):
    rng = random.Random(5)
    link = LinkEstimator(EstimatorSettings(kind=kind, count=128, window_s=100.0, alpha=0.05))
    rates = [5e6 * math.exp(0.4 * rng.gauss(0, 1)) for _ in range(600)]
    now = feed(link, rates[:200], rng=rng)
    inside = below = 0
    for rate in rates[200:]:
        seen = link.goodput(now)
        inside += seen.low <= rate <= seen.high
        below += rate < seen.low
        now = feed(link, [rate], start=now + 0.1, rng=rng)
    assert 0.7 < inside / 400 < 0.9
    assert 0.02 < below / 400 < 0.2


@pytest.mark.parametrize("kind", KINDS)
def test_a_drop_lowers_the_estimate_step_by_step(kind):
    link = LinkEstimator(EstimatorSettings(kind=kind))
    now = feed(link, [10e6] * 40)
    means, lows = [link.goodput(now).mean], [link.goodput(now).low]
    for _ in range(12):
        now = feed(link, [1e6], start=now + 0.1)
        means.append(link.goodput(now).mean)
        lows.append(link.goodput(now).low)
    assert means == sorted(means, reverse=True)
    assert lows[-1] < 2e6
    assert means[-1] < 0.5 * means[0]


def test_one_way_delay_is_not_taken_for_a_slow_link():
    far, near = LinkEstimator(), LinkEstimator()
    for i in range(40):
        for link, delay in ((far, 0.3), (near, 0.003)):
            link.observe_rtt(0.1 * i, 2 * delay)
            link.observe_uplink(0.1 * i, 30_000, delay + 30_000 * 8 / 8e6)
    assert far.goodput(4.0).mean == pytest.approx(8e6, rel=0.1)
    assert far.goodput(4.0).mean == pytest.approx(near.goodput(4.0).mean, rel=0.01)


def test_without_pings_small_messages_tell_the_delay():
    link = LinkEstimator()
    for i in range(40):
        link.observe_uplink(0.1 * i, 100, 0.05)
        link.observe_uplink(0.1 * i, 30_000, 0.05 + 30_000 * 8 / 8e6)
    assert link.goodput(4.0).mean == pytest.approx(8e6, rel=0.1)


def test_replies_end_what_a_single_slow_ping_says_of_the_round_trip():
    """After an outage pings would need seconds to say that it is over."""
    told, silent = LinkEstimator(), LinkEstimator()
    for link in (told, silent):
        for second in range(20):
            link.observe_rtt(float(second), 0.03)
        link.observe_rtt(23.0, 3.0)  # the ping that met the outage
    for i in range(10):
        told.observe_exchange(23.05 + 0.05 * i, 800, 100, 0.032)
    assert told.rtt(23.6).mean < 0.1 < silent.rtt(23.6).mean
    assert told.rtt(23.6).low == pytest.approx(0.03, rel=0.2)


def test_a_long_message_tells_nothing_on_the_round_trip():
    link = LinkEstimator()
    for second in range(20):
        link.observe_rtt(float(second), 0.03)
        link.observe_uplink(second + 0.5, 100_000, 0.815)  # 1 Mbit/s
    before = link.rtt(20.0)
    link.observe_exchange(20.0, 100_000, 100, 0.9)
    assert link.rtt(20.0).mean == pytest.approx(before.mean, rel=0.1)


def test_small_messages_say_nothing_on_goodput():
    link = LinkEstimator()
    before = link.goodput(0.0)
    rng = random.Random(1)
    for i in range(200):
        link.observe_rtt(0.1 * i, 0.04 + 0.02 * rng.random())
        link.observe_uplink(0.1 * i, 100, 0.02 + 0.02 * rng.random())
    assert link.goodput(20.0) == before


def test_a_transfer_faster_than_the_noise_is_a_lower_bound():
    link = LinkEstimator()
    now = 0.0
    for i in range(60):  # a loopback: 64 kB in 0.2 ms says "at least 512 Mbit/s" when the noise is 1 ms
        now = 0.05 * i
        link.observe_rtt(now, 0.0002)
        link.observe_uplink(now, 64_000, 0.0003)
    assert link.goodput(now).mean > 2e8
    link = LinkEstimator()
    link.observe_rtt(0.0, 0.0002)
    link.observe_uplink(0.0, 200, 0.0001)  # "at least 1.6 Mbit/s" is no news
    assert link.goodput(0.0) == LinkEstimator().goodput(0.0)


def test_a_stalled_transfer_is_evidence():
    link = LinkEstimator()
    now = feed(link, [10e6] * 40)
    healthy = link.goodput(now)
    link.observe_stall(now, 20_000, 0.001)  # too early to say anything
    assert link.goodput(now) == healthy
    seen = [healthy.mean]
    for i in range(1, 6):
        link.observe_stall(now + i, 20_000, float(i))
        seen.append(link.goodput(now + i).mean)
    assert seen == sorted(seen, reverse=True)
    assert seen[-1] < 0.3 * seen[0]


@pytest.mark.parametrize("kind", KINDS)
def test_uncertainty_grows_with_age_towards_what_is_usual(kind):
    settings = EstimatorSettings(kind=kind)
    link = LinkEstimator(settings)
    now = feed(link, [3e6] * 40)
    widths = []
    for age in (0.0, 1.0, 3.0, 10.0, 30.0, 120.0, 100_000.0):
        seen = link.goodput(now + age)
        widths.append(seen.high / seen.low)
    assert widths == sorted(widths)
    assert widths[-1] > 1.5 * widths[0]
    assert link.goodput(now + 100_000.0).mean == pytest.approx(3e6, rel=0.1)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_moment_is_doubted_after_seconds_though_nothing_is_sent(kind):
    link = LinkEstimator(EstimatorSettings(kind=kind))
    now = feed(link, [2e6] * 300)
    now = feed(link, [5e4] * 20, start=now, gap=0.02)
    bad, later = link.goodput(now), link.goodput(now + 10.0)
    assert bad.low < 2e5
    assert later.low > 4 * bad.low
    assert later.mean > 1e6


@pytest.mark.parametrize("kind", KINDS)
def test_a_link_that_is_always_slow_is_remembered_to_be(kind):
    link = LinkEstimator(EstimatorSettings(kind=kind))
    now = feed(link, [2e5] * 60, gap=10.0)
    assert link.goodput(now + 60.0).mean == pytest.approx(2e5, rel=0.2)


def test_the_prior_is_stated_and_rules_at_the_start():
    link = LinkEstimator(EstimatorSettings(goodput_bps=(1e6, 1e5, 1e7), rtt_s=(0.1, 0.05, 0.3)))
    assert tuple(link.goodput(0.0)) == (1e6, 1e5, 1e7)
    assert tuple(link.rtt(5.0)) == (0.1, 0.05, 0.3)


@pytest.mark.parametrize(
    "prior", [(0.0, 1.0, 2.0), (1.0, 2.0, 3.0), (1.0, 0.5, math.inf), (math.nan, 1.0, 2.0)]
)
def test_a_prior_that_makes_no_sense_is_refused(prior):
    with pytest.raises(ValueError, match="goodput_bps"):
        EstimatorSettings(goodput_bps=prior)


anything = st.floats(allow_nan=True, allow_infinity=True)
calls = st.tuples(
    st.sampled_from(["up", "down", "rtt", "queue", "stall"]), st.floats(0, 100), anything, anything
)


@given(st.sampled_from(KINDS), st.lists(calls, max_size=60))
@settings(max_examples=200, deadline=None)
def test_never_nan_infinite_or_negative(kind, script):
    link = LinkEstimator(EstimatorSettings(kind=kind))
    now = 0.0
    for what, step, a, b in script:
        now += step
        if what == "up":
            link.observe_uplink(now, a, b)
        elif what == "down":
            link.observe_downlink(now, a, b)
        elif what == "rtt":
            link.observe_rtt(now, a)
        elif what == "queue":
            link.observe_queue(now, a)
        else:
            link.observe_stall(now, a, b)
        for seen in (link.goodput(now), link.downlink(now), link.rtt(now), link.queue(now)):
            assert all(math.isfinite(value) and value > 0.0 for value in seen)
            assert seen.low <= seen.mean * (1 + 1e-9)
            assert seen.mean <= seen.high * (1 + 1e-9)


@given(st.lists(st.tuples(st.floats(1, 1e9), st.floats(0.05, 1)), min_size=1, max_size=80))
@settings(max_examples=100, deadline=None)
def test_window_quantiles_are_those_of_the_last_samples(samples):
    window = SlidingQuantiles(count=10, window_s=1e9, alpha=0.2)
    for i, (value, weight) in enumerate(samples):
        window.observe(float(i), value, weight)
    kept = sorted(samples[-10:])
    mean, low, high = window.summary()
    total = sum(weight for _, weight in kept)
    assert window.weight == pytest.approx(total)
    assert low <= mean <= high
    below = sum(weight for value, weight in kept if value < low)
    above = sum(weight for value, weight in kept if value > high)
    assert below <= 0.1 * total * (1 + 1e-9)
    assert above <= 0.1 * total * (1 + 1e-9)


def test_old_samples_leave_the_window():
    window = SlidingQuantiles(count=100, window_s=10.0, alpha=0.5)
    window.observe(0.0, 1.0)
    window.observe(20.0, 5.0)
    assert window.weight == 1.0
    assert window.summary()[2] == 5.0


def test_harmonic_mean_is_not_led_astray_by_one_fast_transfer():
    harmonic, ewma = HarmonicMean(20, 100.0), Ewma(0.25)
    for i, value in enumerate([1.0] * 9 + [100.0]):
        harmonic.observe(float(i), value)
        ewma.observe(float(i), value)
    assert harmonic.summary()[0] == pytest.approx(10 / (9 + 0.01))
    assert ewma.summary()[0] > 10.0


# Clocks -------------------------------------------------------------------------------------------------


def trip(sent, offset, up, down, work=0.001):
    received = sent + up + offset
    return sent, received, received + work, sent + up + work + down


def test_the_clock_offset_is_that_of_the_fastest_round_trip():
    clock, rng = ClockOffset(), random.Random(2)
    assert not clock.known
    assert clock.error_s(0.0) == math.inf
    for i in range(200):
        clock.observe(*trip(0.1 * i, 1234.5, 0.01 + 0.05 * rng.random(), 0.01 + 0.05 * rng.random()))
    assert clock.offset_s == pytest.approx(1234.5, abs=clock.error_s(20.0))
    assert clock.offset_s == pytest.approx(1234.5, abs=0.004)
    up, down = clock.one_way(*trip(30.0, 1234.5, 0.2, 0.01))
    assert up == pytest.approx(0.2, abs=0.005)
    assert up + down == pytest.approx(0.21)


def test_the_clock_offset_follows_drift():
    clock = ClockOffset(drift=200e-6)
    for i in range(600):
        now = float(i)
        clock.observe(*trip(now, 5.0 + 100e-6 * now, 0.010, 0.010))
    assert clock.offset_s == pytest.approx(5.0 + 100e-6 * 599, abs=2e-4)


def test_a_constant_asymmetry_can_not_be_seen_but_the_sum_is_exact():
    clock = ClockOffset()
    for i in range(50):
        clock.observe(*trip(float(i), 7.0, 0.030, 0.010))
    up, down = clock.one_way(*trip(60.0, 7.0, 0.030, 0.010))
    assert (up, down) == (pytest.approx(0.020), pytest.approx(0.020))


def test_a_restarted_cloud_has_another_clock():
    clock = ClockOffset()
    clock.observe(*trip(0.0, 7.0, 0.01, 0.01))
    clock.reset()
    assert not clock.known
    clock.observe(*trip(1.0, -900.0, 0.02, 0.02))
    assert clock.offset_s == pytest.approx(-900.0)


@given(st.lists(st.tuples(anything, anything, anything, anything), max_size=20))
@settings(deadline=None)
def test_clocks_survive_any_stamps(stamps):
    clock = ClockOffset()
    for quadruple in stamps:
        clock.observe(*quadruple)
        assert math.isfinite(clock.offset_s)
        if all(math.isfinite(value) and abs(value) < 1e12 for value in quadruple):
            up, down = clock.one_way(*quadruple)
            assert up >= 0.0
            assert down >= 0.0
