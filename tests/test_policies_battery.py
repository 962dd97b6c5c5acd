"""A battery that runs low: what `deadline` and `energy` then do, and say."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import (
    CLOUD,
    EXIT1,
    EXIT2,
    LOCAL,
    SPLIT_A,
    SPLIT_A_LOW,
    TABLE,
    chosen,
    device,
    observe,
    of_device,
)

from splitedge.errors import PolicyError
from splitedge.policies.battery import Battery
from splitedge.policies.deadline import Deadline
from splitedge.policies.energy import Energy
from splitedge.policies.in_time import Prospects, price_of_device
from splitedge.policy import Estimate, accuracy, joules, make_policy


@pytest.mark.parametrize("policy", [Deadline(0.0), Energy(1.0)], ids=["deadline", "energy"])
def test_at_a_fifth_of_the_charge_points_are_given_for_joules_and_at_a_twentieth_more(policy):
    taken = [chosen(policy, observe(deadline_s=2.0, battery=b)) for b in (math.nan, 1.0, 0.21)]
    assert taken == [CLOUD] * 3  # on mains and while there is enough, the most accurate
    low = [chosen(policy, observe(deadline_s=2.0, battery=b)) for b in (0.20, 0.06)]
    assert low[0] is low[1]
    assert accuracy(low[0], observe()) >= CLOUD.accuracy - 0.05
    assert joules(low[0], observe()) < joules(SPLIT_A, observe()) < joules(CLOUD, observe())
    critical = [chosen(policy, observe(deadline_s=2.0, battery=b)) for b in (0.05, 0.0)]
    assert critical == [EXIT2] * 2  # the least joules within 20 points: EXIT1 is further off


@given(device, st.floats(0, 1), st.sampled_from([-1, 1]))
@settings(max_examples=200, deadline=None)
def test_a_low_battery_never_costs_joules_or_a_deadline(d, charge, exit):
    policy = Deadline(scout_s=math.inf)
    usual = of_device({**d, "battery": math.nan}, exit=exit)
    saving = usual._replace(battery=charge)
    before, after = chosen(policy, usual), chosen(policy, saving)
    worth = dict(zip(usual.options, Prospects(usual).worth, strict=True))
    one, other = worth[before], worth[after]
    if max(w.chance for w in worth.values() if w.right >= 0) < 0.5:
        assert after is before
        return
    assert other.joules <= one.joules
    spared = price_of_device(usual) * max(0.0, one.busy_s - other.busy_s)
    tolerance = 0.2 if charge <= 0.05 else 0.05 if charge <= 0.2 else 0.01
    assert one.right - other.right <= tolerance + spared + 1e-9


def test_the_sentence_says_that_it_is_the_battery():
    obs = observe(deadline_s=2.0, battery=0.12)
    for policy in (Deadline(), Energy(1.0)):
        told = policy.explain(obs, policy.decide(obs))
        assert told.endswith(
            "; the battery is low at 12%, so up to 5 points of accuracy are given up for joules"
        )
        critical = obs._replace(battery=0.04)
        told = policy.explain(critical, policy.decide(critical))
        assert "the battery is critically low at 4%, so up to 20 points" in told
        full = obs._replace(battery=0.9)
        assert "battery" not in policy.explain(full, policy.decide(full))
    assert "battery" not in Deadline(0.3).explain(obs, Deadline(0.3).decide(obs))  # no wider than it was


def test_thresholds_are_the_operators_to_set():
    spec = "deadline:0,low=0.5,low_tolerance=0.02,critical=0.3,critical_tolerance=1"
    policy = make_policy(spec, TABLE)
    taken = [chosen(policy, observe(deadline_s=2.0, battery=b)) for b in (0.51, 0.5, 0.3)]
    assert taken == [CLOUD, SPLIT_A_LOW, EXIT1]
    never = make_policy("deadline:0,low_tolerance=0,critical_tolerance=0", TABLE)
    assert chosen(never, observe(deadline_s=2.0, battery=0.01)) is CLOUD
    assert chosen(make_policy("energy:1,critical=0.9", TABLE), observe(battery=0.8)) is EXIT2


def test_a_critical_battery_sends_no_scouts():
    slow = observe((EXIT1, LOCAL, CLOUD), deadline_s=0.15, rtt=0.03, unsent_s=5.0)
    slow = slow._replace(goodput=Estimate(1e5, 9e4, 5e6))
    policy = Deadline(low_tolerance=0.0, critical_tolerance=0.0)
    assert chosen(policy, slow._replace(battery=0.06)).remote
    assert not chosen(policy, slow._replace(battery=0.05)).remote


def test_a_radio_that_sleeps_is_not_woken_by_a_low_battery():
    """Waking it costs a whole tail (here 6 J), sending while it is awake next to nothing."""
    policy = Deadline(0.0, low_tolerance=0.1)
    lte = {"deadline_s": 2.0, "tail_w": 0.6, "tail_s": 10.0}
    for unsent, battery, remote in ((math.inf, 0.1, False), (0.001, 0.1, True), (math.inf, 0.9, True)):
        obs = observe((EXIT1, LOCAL, SPLIT_A_LOW), unsent_s=unsent, battery=battery, **lte)
        assert chosen(policy, obs).remote is remote
    asleep = observe(unsent_s=math.inf, **lte)
    awake = observe(unsent_s=0.05, **lte)
    assert joules(CLOUD, asleep) - joules(CLOUD, awake) == pytest.approx(0.6 * 9.95)
    assert joules(LOCAL, asleep) == joules(LOCAL, awake)


@pytest.mark.parametrize("key", ["low", "low_tolerance", "critical", "critical_tolerance"])
@pytest.mark.parametrize("value", ["-0.1", "20", "nan"])
def test_fractions_that_are_none_are_refused(key, value):
    for name in ("deadline", "energy"):
        with pytest.raises(PolicyError, match=rf"policy '{name}': '{key}' must be in \[0, 1\]"):
            make_policy(f"{name}:{key}={value}", TABLE)


def test_the_widest_tolerance_counts():
    assert Battery("x").tolerance(0.1, 0.15) == 0.1
    assert Battery("x").tolerance(0.01, 0.15) == 0.05
    assert Battery("x", low=0.0, critical=0.5).tolerance(0.01, 0.4) == 0.2
