"""Which way of writing a text wins is arithmetic, and it is done right."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.errors import ConfigError
from splitedge.llm.measured import StepSeconds
from splitedge.llm.modes import Mode
from splitedge.llm.plan import Costs, Objective, best_drafts, break_even_rtt, choose_mode, forecast

BASE = Costs(
    rtt_s=0.02, up_bps=10e6, down_bps=10e6, decode_s=0.03, prefill_s=0.001, draft_s=0.01, survival=(0.8, 0.64)
)
ALL = (Mode.LOCAL, Mode.STREAM, Mode.SPEC)


def test_tokens_a_round_follow_the_survival_curve():
    assert BASE.expected(2) == pytest.approx(2.44)
    assert BASE.survives(4) == pytest.approx(0.8**4)
    assert BASE.expected(8) == pytest.approx((1 - 0.8**9) / 0.2)


def test_the_break_even_round_trip_is_that_of_the_formula():
    free = replace(BASE, up_bps=1e15, down_bps=1e15)
    for k in (1, 2, 4, 8):
        wanted = free.expected(k) * 0.03 - k * 0.01 - 0.03 * (1 + 0.03 * k)
        assert break_even_rtt(free, k) == pytest.approx(wanted, abs=1e-9)
        for off, faster in ((-0.002, Mode.SPEC), (0.002, Mode.STREAM)):
            at = replace(free, rtt_s=max(0.0, wanted + off))
            spec, stream = forecast(at, Mode.SPEC, 1, 1000, k), forecast(at, Mode.STREAM, 1, 1000)
            if wanted > 0.002:
                assert (spec.tpot_s < stream.tpot_s) is (faster is Mode.SPEC)


def test_streaming_wins_where_the_round_trip_is_long():
    near = choose_mode(replace(BASE, rtt_s=0.002), ALL, 50, 200)
    far = choose_mode(replace(BASE, rtt_s=0.3), ALL, 50, 200)
    assert near.best.mode is Mode.SPEC and far.best.mode is Mode.STREAM
    assert "RTT 300 ms" in far.why and "cloud_stream" in far.why
    assert near.best.total_s == min(f.total_s for f in near.others if f.disagreement == 0.0)


def test_drafts_grow_slowly_with_the_round_trip():
    counts = [best_drafts(replace(BASE, rtt_s=r)) for r in (0.001, 0.01, 0.1, 1.0)]
    assert counts == sorted(counts) and counts[-1] < 30
    assert best_drafts(replace(BASE, draft_s=math.inf)) == 0


def test_what_may_differ_and_what_charge_is_left_decide_too():
    costs = replace(BASE, disagreement=((Mode.LOCAL, 0.3),), compute_w=2.0, j_per_bit_up=1e-6, draft_s=0.002)
    exact = choose_mode(costs, ALL, 50, 200)
    loose = choose_mode(costs, ALL, 50, 200, objective=Objective(most_disagreement=0.5))
    assert exact.best.mode is not Mode.LOCAL and loose.best.mode is Mode.LOCAL
    heavy = replace(costs, compute_w=50.0, rtt_s=0.002)
    assert choose_mode(heavy, ALL, 50, 200, battery=0.9).best.mode is Mode.SPEC
    assert choose_mode(heavy, ALL, 50, 200, battery=0.04).best.mode is Mode.STREAM
    away = choose_mode(costs, ALL, 50, 200, up=False)
    assert away.best.mode is Mode.LOCAL and "out of reach" in away.why


def test_no_mode_left_is_said():
    with pytest.raises(ConfigError, match="out of reach"):
        choose_mode(BASE, (Mode.STREAM,), 5, 5, up=False)
    with pytest.raises(ConfigError, match="local does in 100"):
        choose_mode(BASE, (Mode.LOCAL,), 5, 5)
    with pytest.raises(ConfigError, match="above 0"):
        replace(BASE, up_bps=0.0)


@settings(deadline=None)
@given(
    st.sampled_from(list(Mode)),
    st.floats(0.0, 0.5),
    st.floats(1e4, 1e8),
    st.integers(1, 500),
    st.integers(1, 300),
    st.integers(1, 16),
)
def test_forecasts_are_sane(mode, rtt, bps, prompt, tokens, drafts):
    costs = replace(BASE, rtt_s=rtt, up_bps=bps, down_bps=bps, head_s=0.004, calls=0.3)
    found = forecast(costs, mode, prompt, tokens, drafts)
    assert 0.0 < found.ttft_s <= found.total_s + 1e-9 and found.tpot_s > 0.0
    slower = forecast(replace(costs, rtt_s=rtt + 0.1, up_bps=bps / 2), mode, prompt, tokens, drafts)
    assert slower.total_s >= found.total_s
    assert found.bytes_up >= 0.0 and (mode is not Mode.LOCAL or found.bytes_up == 0.0)


def test_a_device_that_was_slow_for_a_moment_gets_another_chance():
    step = StepSeconds()
    assert math.isnan(step.at(0.0))
    for i in range(50):
        step.observe(0.01 * i, 0.01)
    assert step.at(0.5) == pytest.approx(0.01)
    step.observe(0.6, 5.0)  # a single one says little
    assert step.at(0.6) < 0.012
    for i in range(20):
        step.observe(1.0 + 0.1 * i, 0.1)
    slow = step.at(2.9)
    assert slow > 0.05
    assert step.at(22.9) < slow / 1.5 and step.at(300.0) < 0.035  # not done since: back to what is usual
    for i in range(400):
        step.observe(400.0 + 0.1 * i, 0.1)
    assert step.at(1000.0) == pytest.approx(0.1, rel=0.01)  # slow for good
