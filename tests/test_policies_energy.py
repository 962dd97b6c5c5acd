"""`energy`: the budget holds whatever happens, and what it buys is near the best mix."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import CLOUD, EXIT1, LOCAL, TABLE, chosen, device, observe, of_device, reachable
from scipy.optimize import linprog

from splitedge.errors import PolicyError
from splitedge.policies.energy import Energy
from splitedge.policy import Estimate, accuracy, joules, latency_mean, latency_q95, make_policy
from splitedge.record import Record

LINKS = (3e5, 2e6, 8e6, 4e7)  # bits/s that a wandering link may have


def utility(option, obs):
    if latency_q95(option, obs) <= obs.deadline_s:
        return accuracy(option, obs)
    return 0.5 * accuracy(option, obs) if latency_mean(option, obs) <= obs.deadline_s else 0.0


def best_mix(states, budget):
    """Greatest mean utility of any mix of options, chosen for each state, that spends the budget at most."""
    value = np.array([[utility(o, obs) for o in TABLE] for obs in states])
    cost = np.array([[joules(o, obs) for o in TABLE] for obs in states])
    each = np.kron(np.eye(len(states)), np.ones(len(TABLE)))
    found = linprog(
        -value.ravel() / len(states),
        A_ub=[cost.ravel() / len(states)],
        b_ub=[budget],
        A_eq=each,
        b_eq=np.ones(len(states)),
    )
    return -found.fun


@pytest.mark.parametrize("budget", [0.0015, 0.003, 0.006])
def test_over_a_long_run_the_budget_is_met_and_used_nearly_as_well_as_can_be(budget):
    states = [observe(goodput=rate, deadline_s=0.15) for rate in LINKS]
    rng = np.random.default_rng(1)
    policy = make_policy(f"energy:{budget}", TABLE)
    spent, gained, n = 0.0, 0.0, 8000
    for k, state in enumerate(rng.integers(len(states), size=n)):
        obs = states[state]
        option = chosen(policy, obs)
        cost = joules(option, obs)
        spent, gained = spent + cost, gained + utility(option, obs)
        policy.learn(Record(k, 0.05 * k, option=option.name, energy_j=cost))
    assert spent / n <= 1.02 * budget
    best = best_mix(states, budget)
    assert best - 0.02 <= gained / n <= best + 0.01
    greedy = np.mean([max(utility(o, obs) for o in TABLE) for obs in states])
    assert greedy > gained / n  # the budget did bind


def test_a_share_of_the_best_does_not_grow_while_the_radio_sleeps():
    """What always sending would cost is no more for a device that has kept everything for itself."""
    usual = []
    for unsent_s in (0.1, 3600.0):
        policy = make_policy("energy:share=0.5", TABLE)
        for k in range(50):
            obs = observe(deadline_s=5.0, tail_w=1.0, tail_s=10.0)._replace(unsent_s=unsent_s, t_s=0.1 * k)
            chosen(policy, obs)
            if k > 0:
                policy.learn(Record(k, 0.1 * k, energy_j=0.0))
        usual.append(policy.budget.usual())
    assert usual[0] == pytest.approx(usual[1])
    assert usual[0] < 0.5 * joules(CLOUD, observe(deadline_s=5.0)) + 0.06


@given(
    st.lists(st.tuples(device, st.floats(0.1, 3.0)), min_size=1, max_size=60),
    st.floats(0.0013, 0.05),
    st.floats(1, 30),
)
@settings(max_examples=100, deadline=None)
def test_whatever_happens_no_more_is_spent_than_the_budget_and_what_is_owed(steps, budget, v):
    policy = Energy(budget, v=v)
    spent, dearest, cheapest = 0.0, 0.0, 0.0
    for d, factor in steps:
        obs = of_device({**d, "rows": 1, "battery": math.nan})._replace(unsent_s=0.0)
        option = chosen(policy, obs)
        cost = factor * joules(option, obs)  # what it really took
        spent += cost
        policy.learn(Record(0, 0.0, energy_j=cost))
        assert spent <= len(steps) * budget + policy.owed + 1e-9
        dearest = max(dearest, 3.0 * max(joules(o, obs) for o in TABLE))
        cheapest = max(cheapest, min(joules(o, obs) for o in TABLE))
    if all(factor <= 1.0 for _, factor in steps) and cheapest < budget:
        # Owing that much, V * utility (at most V) buys nothing dearer than the budget.
        assert policy.owed <= v * budget**2 / (budget - cheapest) + dearest


@given(device, st.sampled_from([-1, 1]), st.floats(0, 0.5), st.floats(1, 100))
@settings(max_examples=200, deadline=None)
def test_each_choice_is_the_greatest_drift_plus_penalty(d, exit, owed, v):
    budget = 0.003
    policy = Energy(budget, v=v, scout_s=math.inf)
    policy.learn(Record(0, 0.0, energy_j=owed + budget))
    obs = of_device({**d, "battery": math.nan}, exit=exit)
    scores = {
        o.name: v * utility(o, obs) - (owed / budget) * (joules(o, obs) / budget) for o in reachable(obs)
    }
    assert scores[chosen(policy, obs).name] == pytest.approx(max(scores.values()), rel=1e-9, abs=1e-9)


def test_a_share_of_what_the_best_would_cost_is_spent():
    rng = np.random.default_rng(2)
    policy = make_policy("energy:share=0.4,v=20", TABLE)
    spent = best = 0.0
    for k in range(4000):
        obs = observe(goodput=float(rng.choice(LINKS)), deadline_s=0.3)
        best += joules(max(TABLE, key=lambda o: (utility(o, obs), -joules(o, obs))), obs)
        cost = joules(chosen(policy, obs), obs)
        spent += cost
        policy.learn(Record(k, 0.0, energy_j=cost))
    assert 0.3 < spent / best <= 0.41


@pytest.mark.parametrize("gauge", [True, False])
def test_a_battery_lasts_as_long_as_wanted(gauge):
    full = 0.002 * 3600  # joules
    policy = make_policy("energy:hours=1,battery_wh=0.002,idle_w=0.0005,v=10,low=0,critical=0", TABLE)
    left, t, died = full, 0.0, math.inf
    while t < 3600 and left > 0:
        charge = left / full if gauge else math.nan
        option = chosen(policy, observe(deadline_s=0.3, battery=charge))
        cost = joules(option, observe())
        left -= cost + 0.0005 * 1.0
        t += 1.0
        policy.learn(Record(0, t, energy_j=cost, battery=charge))
        if left <= 0:
            died = t
    assert died > 3590
    assert left < 0.1 * full  # and is used
    greedy = full / (joules(CLOUD, observe()) + 0.0005)
    assert greedy < 1800  # the best option alone would have emptied it in half the time


def test_what_is_owed_moves_it_to_cheaper_options_and_back():
    policy = Energy(0.003)
    obs = observe(deadline_s=0.5)
    assert chosen(policy, obs) is CLOUD
    for _ in range(200):
        policy.learn(Record(0, 0.0, energy_j=0.013))
    assert chosen(policy, obs) is EXIT1
    for _ in range(2000):
        policy.learn(Record(0, 0.0, energy_j=0.001))
    assert chosen(policy, obs) is CLOUD


def test_it_tells_what_is_allowed_and_owed():
    policy = Energy(0.003)
    obs = observe(deadline_s=0.5)
    policy.learn(Record(0, 0.0, energy_j=0.010))
    text = policy.explain(obs, policy.decide(obs))
    assert "where 3 mJ are allowed, 7 mJ are owed" in text
    free = obs._replace(joules_per_edge_s=0.0, joules_per_bit_up=0.0, joules_per_bit_down=0.0)
    assert "no power profile is set, so no joules are charged" in policy.explain(free, policy.decide(free))


def test_a_slow_link_is_scouted_where_the_budget_would_buy_it():
    slow = observe(deadline_s=0.09, rtt=0.02)._replace(goodput=Estimate(2e5, 1e5, 8e6))
    policy = Energy(0.05)
    assert not chosen(policy, slow._replace(unsent_s=0.5)).remote
    due = slow._replace(unsent_s=1.5)
    decision = policy.decide(due)
    assert TABLE[decision.option].remote
    assert "scouts the link" in policy.explain(due, decision)
    assert not chosen(policy, due._replace(battery=0.04)).remote
    for _ in range(1000):
        policy.learn(Record(0, 0.0, energy_j=0.1))
    assert not chosen(policy, due).remote


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("energy:0", "budget must be above 0"),
        ("energy:lots", "takes a number for 'budget'"),
        ("energy:0.01,v=0", "'v' must be above 0"),
        ("energy:share=1.5", r"share must be in \(0, 1\]"),
        ("energy:0.01,hours=2,battery_wh=3", "not both"),
        ("energy:hours=2", "needs hours and battery_wh"),
        ("energy:hours=0,battery_wh=3", "'hours' must be above 0"),
        ("energy:hours=2,battery_wh=3,idle_w=-1", "'idle_w' must be at least 0"),
        ("energy:scout_s=0", "scout_s must be above 0"),
    ],
)
def test_budgets_that_make_no_sense_are_refused(spec, message):
    with pytest.raises(PolicyError, match=message):
        make_policy(spec, TABLE)


def test_without_time_for_anything_it_takes_what_is_nearest_or_cheapest():
    assert chosen(Energy(0.003), observe(deadline_s=0.001)) is EXIT1
    assert chosen(Energy(0.003), observe((LOCAL, CLOUD), deadline_s=0.001, link_up=False)) is LOCAL
