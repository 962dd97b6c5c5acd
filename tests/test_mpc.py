"""`mpc`: worth counts the answer behind a late one, a plan sees the queue it makes, and chances come true."""

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import (
    CLOUD,
    EXIT1,
    LOCAL,
    SPLIT_A,
    SPLIT_B,
    TABLE,
    chosen,
    device,
    observe,
    of_device,
    stacked,
)

from splitedge.errors import PolicyError
from splitedge.policies.chance import arrives, done, link_of
from splitedge.policies.deadline import Deadline
from splitedge.policies.in_time import accuracy_here
from splitedge.policies.mpc import Mpc
from splitedge.policies.plan_ahead import unbeaten, weigh
from splitedge.policy import Decision, Estimate, Option, Route, latency_q95, make_policy
from splitedge.record import Record

BIG = Option(
    Route.CLOUD, codec="webp", level=2, accuracy=0.95, edge_s=0.001, edge_s_q95=0.001, bytes_up=20_000,
    bytes_up_q95=20_000, bytes_down=80,
)  # fmt: skip
SMALL = dataclasses.replace(BIG, level=0, accuracy=0.90, bytes_up=4_000, bytes_up_q95=4_000)
WEAK = Option(Route.EXIT, exit=1, accuracy=0.50, edge_s=0.002, edge_s_q95=0.002)


def ended(obs, option, *, came, took_s=0.03, **more):
    """The record of a request that was sent, and what came of it."""
    return Record(
        0,
        obs.t_s,
        deadline_s=obs.deadline_s,
        planned=option.name,
        option=option.name if came else "exit:1",
        route=option.route.value if came else "exit",
        degraded=not came,
        met=True,
        latency_s=took_s + 0.05 if came else obs.deadline_s,
        uplink_s=took_s,
        bytes_up=int(option.bytes_up),
        attempts=1,
        rtt_s=0.04,
        **more,
    )


# Chances -------------------------------------------------------------------------------------------------


def test_chances_are_those_of_the_forecasts_quantiles():
    link = link_of(Estimate(4e6, 1e6, 8e6), 0.0, 0.0)
    for rate, chance in ((1e6, 0.9), (4e6, 0.5), (8e6, 0.1)):
        assert arrives(rate * 0.1, 0.1, link) == pytest.approx(chance, abs=1e-3)
    assert done(0.010, 0.010, 0.014) == pytest.approx(0.5)
    assert done(0.014, 0.010, 0.014) == pytest.approx(0.95, abs=1e-3)
    assert arrives(1e6, -0.1, link) == arrives(1e6, 0.0, link) == 0.0
    assert arrives(1e6, math.inf, link) > 0.995


@given(
    st.floats(1e2, 1e8),
    st.floats(0.001, 1.0),
    st.floats(1e4, 1e9),
    st.floats(0.05, 0.99),
    st.floats(1.01, 20.0),
)
@settings(max_examples=100, deadline=None)
def test_chances_fall_with_bits_and_rise_with_time(bits, free, rate, down, up):
    link = link_of(Estimate(rate, rate * down, rate * up), 0.0, 0.0)
    chance = arrives(bits, free, link)
    assert 0.0 <= arrives(2.0 * bits, free, link) <= chance <= arrives(bits, 2.0 * free, link) <= 1.0


@given(device, st.sampled_from([-1, 1, 2]))
@settings(max_examples=200, deadline=None)
def test_worth_is_a_probability_and_behind_a_late_answer_stands_the_devices(d, at_exit):
    obs = of_device({**d, "link_up": True}, exit=at_exit)
    for option, one in zip(obs.options, weigh(obs, link_of(obs.goodput, 0.0, 0.0)), strict=True):
        assert 0.0 <= one.value <= 1.0
        assert 0.0 <= one.chance <= 1.0
        if option.remote:
            low, high = sorted((one.fallback, accuracy_here(option, obs)))
            assert low - 1e-9 <= one.value <= high + 1e-9


# Decisions -----------------------------------------------------------------------------------------------


def test_a_fast_link_gives_the_most_accurate_and_a_dead_one_the_devices_best():
    assert chosen(Mpc(), observe(goodput=1e9, rtt=0.005, deadline_s=0.5)) in (CLOUD, SPLIT_A)
    assert chosen(Mpc(scout_s=math.inf), observe(goodput=1e4, deadline_s=0.2)) is LOCAL
    assert chosen(Mpc(), observe(deadline_s=0.2, link_up=False)) is LOCAL


def test_what_costs_no_answer_is_tried_where_a_hard_quantile_would_give_up():
    """In time with 80%, and the device can still answer if not: worth more than the device's answer alone."""
    obs = observe((EXIT1, SPLIT_A), goodput=2e6, rtt=0.02, deadline_s=0.066)
    assert latency_q95(SPLIT_A, obs) > obs.deadline_s
    assert chosen(Mpc(scout_s=math.inf), obs) is SPLIT_A


def test_a_sure_exit_ends_the_request_and_an_unsure_one_goes_on():
    at_exit = {"exit": 1, "sunk_s": 0.004, "deadline_s": 0.5}
    assert chosen(Mpc(), observe(confidence=0.9999, **at_exit)) is EXIT1
    assert chosen(Mpc(), observe(confidence=0.5, **at_exit)).remote


def test_equals_are_told_apart_by_joules():
    obs = observe((SPLIT_B, SPLIT_A), goodput=1e9, deadline_s=1.0)
    assert chosen(Mpc(tolerance=0.02), obs) is SPLIT_B
    assert chosen(Mpc(tolerance=0.0), obs) is SPLIT_A


def test_a_low_battery_gives_accuracy_for_joules_and_a_critical_one_does_not_scout():
    obs = observe((EXIT1, SPLIT_A), goodput=1e9, deadline_s=1.0, joules_per_bit_up=1e-6)
    takes = [chosen(Mpc(), obs._replace(battery=charge)) for charge in (math.nan, 0.3, 0.04)]
    assert takes == [SPLIT_A, SPLIT_A, SPLIT_A]
    wide = [chosen(Mpc(critical_tolerance=0.3), obs._replace(battery=charge)) for charge in (0.3, 0.04)]
    assert wide == [SPLIT_A, EXIT1]
    slow = observe(deadline_s=0.15, rtt=0.03, unsent_s=9.0)._replace(goodput=Estimate(4e4, 2e4, 4e6))
    assert chosen(Mpc(), slow).remote
    assert not chosen(Mpc(), slow._replace(battery=0.04)).remote


def test_options_that_another_beats_in_everything_are_not_planned():
    worse = dataclasses.replace(SMALL, level=1, accuracy=0.89, bytes_up=5_000)
    assert unbeaten((BIG, SMALL, worse, WEAK)) == (0, 1, 3)
    assert unbeaten((SMALL, SMALL)) == (0, 1)


# The horizon ---------------------------------------------------------------------------------------------


def queued_run(policy, *, gap_s, rate=4e6, deadline_s=0.15, rtt_s=0.02, count=200):
    """Requests over a link of constant rate with a queue; share answered right and in time, where the device
    answers at the deadline what the cloud does not.
    """
    options = (WEAK, SMALL, BIG)
    free_at, total, told = 0.0, 0.0, []
    for k in range(count):
        t = k * gap_s
        for record in [r for at, r in told if at <= t]:
            policy.learn(record)
        told = [(at, r) for at, r in told if at > t]
        obs = observe(options, goodput=rate, rtt=rtt_s, deadline_s=deadline_s, t_s=t, unsent_s=0.0)
        obs = obs._replace(
            goodput=Estimate(rate, 0.8 * rate, 1.2 * rate), rtt=Estimate(rtt_s, 0.9 * rtt_s, 1.1 * rtt_s)
        )
        option = options[int(policy.decide(obs).option)]
        if not option.remote:
            total += option.accuracy
            continue
        begins = max(t + option.edge_s, free_at)
        free_at = begins + 8.0 * option.bytes_up / rate
        latency = free_at + rtt_s - t
        came = latency <= deadline_s
        total += option.accuracy if came else WEAK.accuracy
        told.append((t + min(latency, deadline_s), ended(obs, option, came=came, took_s=free_at - t)))
    return total / count


def test_a_plan_leaves_the_uplink_free_for_those_behind_where_greed_does_not():
    """A request every 20 ms; a large payload takes 40 ms of the uplink, a small one 8."""
    greedy, planned = (queued_run(policy, gap_s=0.02) for policy in (Deadline(), Mpc()))
    assert planned > greedy + 0.1
    assert planned > 0.88  # nearly all by small payloads, which are right in 90%


def test_a_plan_takes_the_best_where_nothing_queues():
    assert queued_run(Mpc(), gap_s=0.5) == pytest.approx(BIG.accuracy, abs=0.005)
    assert queued_run(Mpc(), gap_s=0.5) >= queued_run(Deadline(), gap_s=0.5) - 1e-9


# Learning ------------------------------------------------------------------------------------------------


def chance_of(policy, obs):
    text = policy.explain(obs, Decision(obs.options.index(SPLIT_A), 0))
    return float(text.split("in time with ")[1].split("%")[0]) / 100.0


def taught(came, count=60):
    policy = Mpc(horizon=1, scout_s=math.inf)
    for k in range(count):
        obs = observe((EXIT1, SPLIT_A), goodput=4e6, rtt=0.02, deadline_s=0.08, t_s=0.2 * k)
        if chosen(policy, obs).remote:
            policy.learn(ended(obs, SPLIT_A, came=came(k)))
    return chance_of(
        policy, observe((EXIT1, SPLIT_A), goodput=4e6, rtt=0.02, deadline_s=0.08, t_s=0.2 * count)
    )


def test_chances_follow_what_came_true():
    always, half, never = taught(lambda k: True), taught(lambda k: k % 2 == 0), taught(lambda k: False)
    assert never < half < always
    assert half == pytest.approx(0.5, abs=0.2)


def test_a_link_that_disappointed_is_scouted_where_the_device_can_answer():
    def link(t, **more):
        obs = observe((EXIT1, SPLIT_A), rtt=0.02, deadline_s=0.06, t_s=t, **more)
        return obs._replace(goodput=Estimate(5e5, 2e5, 8e6))

    def disappointed(**arguments):
        policy = Mpc(tolerance=0.05, **arguments)
        for k in range(100):
            if chosen(policy, link(0.1 * k)).remote:
                policy.learn(ended(link(0.1 * k), SPLIT_A, came=False))
        return policy

    policy = disappointed()
    assert chosen(policy, link(10.0, unsent_s=0.2)) is EXIT1
    decision = policy.decide(link(10.1, unsent_s=1.5))
    assert decision.option == 1
    assert "scouts the link" in policy.explain(link(10.1, unsent_s=1.5), decision)
    assert chosen(disappointed(scout_s=math.inf), link(10.1, unsent_s=1.5)) is EXIT1


def test_a_request_decided_again_at_an_exit_counts_once():
    policy = Mpc()
    for k in range(5):
        arrives_at = observe((EXIT1, SPLIT_A), goodput=1e6, deadline_s=0.5, t_s=0.1 * k, rtt=0.02)
        policy.decide(arrives_at)
        again = arrives_at._replace(
            exit=1, confidence=0.4, sunk_s=0.004, t_s=0.1 * k + 0.004, deadline_s=0.496
        )
        assert chosen(policy, again) is SPLIT_A
        assert len(policy._under_way) == 1
        policy.learn(ended(arrives_at, SPLIT_A, came=True))
        assert not policy._under_way


@given(
    st.lists(st.lists(device, min_size=3, max_size=3), min_size=2, max_size=8),
    st.floats(0.005, 0.4),
    st.lists(st.booleans(), min_size=3, max_size=3),
)
@settings(max_examples=25, deadline=None)
def test_many_devices_plan_and_learn_as_each_does(steps, gap, came):
    fleet, alone = Mpc(), [Mpc() for _ in range(3)]
    names = (
        "t_s",
        "option",
        "route",
        "met",
        "latency_s",
        "uplink_s",
        "bytes_up",
        "attempts",
        "rtt_s",
        "forced",
    )
    for k, devices in enumerate(steps):
        each = [of_device(d, t_s=k * gap) for d in devices]
        many = fleet.decide(stacked(each))
        records = []
        for n, obs in enumerate(each):
            one = alone[n].decide(obs)
            assert int(one.option) == int(many.option[n])
            option = TABLE[int(one.option)]
            records.append(ended(obs, option, came=came[n]) if option.remote else Record(0, obs.t_s))
            alone[n].learn(records[-1])
        fleet.learn(Record(0, **{name: np.array([getattr(r, name) for r in records]) for name in names}))


def test_some_devices_at_an_exit_do_not_make_it_forget_all_of_them():
    fleet = Mpc()
    seen = observe((EXIT1, SPLIT_A), deadline_s=0.3, goodput=np.array([1e6, 2e6, 3e6]), t_s=np.zeros(3))
    for k in range(4):
        fleet.decide(seen._replace(t_s=np.full(3, 0.1 * k)))
    at = observe(
        (EXIT1, SPLIT_A), deadline_s=0.29, goodput=np.array([1e6, 3e6]), t_s=np.full(2, 0.31), exit=1
    )
    known = len(fleet._under_way)
    unsure = fleet.decide(at._replace(confidence=np.array([0.2, 0.9999]), sunk_s=0.004))
    assert unsure.option.tolist() == [1, 0]
    assert (len(fleet._under_way), fleet._shape) == (known, (3,))


# Specs ---------------------------------------------------------------------------------------------------


def test_specs():
    assert make_policy("mpc:5", TABLE).horizon == 5
    assert make_policy("mpc:forecast=ewma,tolerance=0.02", TABLE).tolerance == 0.02


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mpc:0", "1 to 20 requests"),
        ("mpc:3.5", "whole number"),
        ("mpc:tolerance=2", r"in \[0, 1\]"),
        ("mpc:scout_s=0", "above 0"),
        ("mpc:forecast=arima", "there are ewma, harmonic, holt"),
        ("mpc:forecast=none.json", "can not read the forecast"),
        ("mpc:horizons=2", "Did you mean 'horizon'"),
    ],
)
def test_bad_specs_are_refused(spec, message):
    with pytest.raises(PolicyError, match=message):
        make_policy(spec, TABLE)
