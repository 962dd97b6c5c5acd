"""`spinn` against sums over rows: what a threshold and a split come to, and which pair is best."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import CLOUD, EXIT1, EXIT2, LOCAL, SPLIT_A, SPLIT_B, TABLE, chosen, observe

from splitedge.errors import PolicyError
from splitedge.policies.designs import THRESHOLDS, Designs
from splitedge.policies.exit_shares import ExitShares
from splitedge.policies.spinn import Spinn
from splitedge.policy import joules, latency_mean, make_policy

ONE_EXIT = (EXIT1, LOCAL, SPLIT_A, SPLIT_B, CLOUD)
confidences = st.lists(st.floats(0, 1), min_size=1, max_size=30)


def by_rows(options, rows, obs):
    """(end, threshold, accuracy, latency, joules, cloud) of every pair, summed row by row."""
    found = []
    for end, option in enumerate(options):
        passes = option.cut is not None
        for threshold in THRESHOLDS if passes else (math.inf,):
            stops = [c >= threshold for c in rows]
            at = [EXIT1 if stop else option for stop in stops]
            right = np.mean(
                [
                    option.accuracy - (max(option.accuracy - c, 0.0) if stop else 0.0)
                    for c, stop in zip(rows, stops, strict=True)
                ]
            )
            found.append(
                (
                    end,
                    threshold,
                    right,
                    np.mean([latency_mean(o, obs) for o in at]),
                    np.mean([joules(o, obs) for o in at]),
                    np.mean([0.0 if o is EXIT1 else o.cloud_s for o in at]),
                )
            )
    return found


@given(confidences, st.floats(1e5, 1e8))
@settings(max_examples=60, deadline=None)
def test_what_a_pair_comes_to_is_the_sum_over_rows(rows, goodput):
    obs = observe(ONE_EXIT, goodput=goodput)
    designs = Designs(ONE_EXIT, {1: ExitShares(rows)})
    expected = by_rows(ONE_EXIT, rows, obs)
    assert [(int(e), t) for e, t in zip(designs.end, designs.threshold, strict=True)] == [
        pair[:2] for pair in expected
    ]
    numbers = np.array([pair[2:] for pair in expected])
    assert designs.accuracy == pytest.approx(numbers[:, 0])
    latency = designs.expected([latency_mean(o, obs) for o in ONE_EXIT])[:, 0]
    assert latency == pytest.approx(numbers[:, 1])
    spent = designs.expected([joules(o, obs) for o in ONE_EXIT])[:, 0]
    assert spent == pytest.approx(numbers[:, 2])
    assert designs.cloud_s == pytest.approx(numbers[:, 3])


@given(confidences, st.floats(1e5, 1e8), st.floats(0.005, 0.5), st.permutations(range(4)), st.floats(0, 0.2))
@settings(max_examples=100, deadline=None)
def test_the_order_of_objectives_is_kept(rows, goodput, deadline, order, slack):
    names = ("accuracy", "latency", "joules", "cloud")
    policy = Spinn("-".join(names[k] for k in order), slack)
    policy.see_exits({1: rows})
    obs = observe(ONE_EXIT, goodput=goodput, deadline_s=deadline)
    pairs = by_rows(ONE_EXIT, rows, obs)
    in_time = [pair for pair in pairs if pair[3] <= deadline]
    got = pairs[policy.decide(obs).why]
    if not in_time:
        assert got[3] == pytest.approx(min(pair[3] for pair in pairs))
        return
    left = in_time
    for k in order[:-1]:
        costs = [1 - pair[2] if k == 0 else pair[2 + k] for pair in left]
        bound = min(costs) + slack if k == 0 else min(costs) * (1 + slack)
        left = [pair for pair, cost in zip(left, costs, strict=True) if cost <= bound + 1e-8]
    k = order[-1]
    cost = 1 - got[2] if k == 0 else got[2 + k]
    assert got in left
    assert cost <= min(1 - pair[2] if k == 0 else pair[2 + k] for pair in left) + 1e-6


@given(confidences, st.tuples(*[st.sampled_from([0.0, 0.3, 1.0])] * 4).filter(any))
@settings(max_examples=60, deadline=None)
def test_weights_take_the_least_weighted_sum(rows, weights):
    policy = Spinn(**dict(zip(("accuracy", "latency", "joules", "cloud"), weights, strict=True)))
    policy.see_exits({1: rows})
    obs = observe(ONE_EXIT)
    pairs = np.array([(1 - p[2], *p[3:]) for p in by_rows(ONE_EXIT, rows, obs)])
    totals = (pairs / np.maximum(pairs.max(axis=0), 1e-9)) @ np.array(weights)
    assert totals[policy.decide(obs).why] == pytest.approx(totals.min(), abs=1e-6)


def test_an_exit_answers_from_the_threshold_of_the_pair_on():
    policy = Spinn("latency-accuracy", slack=0.2)
    rows = [0.55, 0.65, 0.92, 0.97]
    policy.see_exits({1: rows, 2: rows})
    start = observe(deadline_s=0.2)
    decision = policy.decide(start)
    threshold = float(policy.designs(TABLE).threshold[decision.why])
    assert threshold < 1.0
    for confidence, stops in ((threshold, True), (threshold - 0.01, False), (math.nan, False)):
        at_exit = observe(deadline_s=0.195, exit=1, confidence=confidence, sunk_s=0.004)
        answer = policy.decide(at_exit)
        assert answer.why == decision.why
        assert (TABLE[answer.option] is EXIT1) is stops
        if not stops:
            assert answer.option == decision.option
        assert "exit 1 is" in policy.explain(at_exit, answer)


def test_exits_of_which_more_are_sure_are_used_more():
    hard, easy = Spinn(), Spinn()
    hard.see_exits({1: [0.5] * 10, 2: [0.6] * 10})
    easy.see_exits({1: [0.99] * 10, 2: [0.99] * 10})
    obs = observe()
    at = [policy.designs(TABLE) for policy in (hard, easy)]
    assert at[0].goes_on[hard.decide(obs).why] == 1.0
    assert at[1].goes_on[easy.decide(obs).why] == 0.0
    assert easy.explain(obs, easy.decide(obs)).endswith("ms on average")


@given(st.floats(0, 1))
def test_what_is_assumed_of_an_exit_has_its_accuracy_as_mean(accuracy):
    shares = ExitShares.assumed(accuracy)
    mean = np.mean([shares.share(t) for t in (np.arange(1000) + 0.5) / 1000])
    assert mean == pytest.approx(min(max(accuracy, 0.05), 0.95), abs=0.02)


def test_the_deeper_exit_counts_only_what_the_first_let_pass():
    rows = {1: ExitShares([0.4, 0.6, 0.9, 0.95]), 2: ExitShares([0.7, 0.85, 0.9, 0.99])}
    options = (EXIT1, EXIT2, SPLIT_B)
    designs = Designs(options, rows)
    k = int(np.flatnonzero((designs.end == 2) & (designs.threshold == 0.8))[0])
    assert [float(share[k]) for _, share in designs.exits] == [0.5, 0.25]
    assert designs.goes_on[k] == 0.25


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("spinn:accuracy-speed", "joins some of accuracy, latency, joules, cloud"),
        ("spinn:latency-latency", "joins some of"),
        ("spinn:slack=2", r"slack must be in \[0, 1\]"),
        ("spinn:latency=-1", "weight of latency must be >= 0"),
        ("spinn:latency=nan", "weight of latency must be >= 0"),
        ("spinn:speed=1", "has no 'speed'"),
    ],
)
def test_objectives_that_make_no_sense_are_refused(spec, message):
    with pytest.raises(PolicyError, match=message):
        make_policy(spec, TABLE)


@pytest.mark.parametrize("rows", [[], [1.2], [math.nan]])
def test_confidences_that_are_none_are_refused(rows):
    with pytest.raises(PolicyError, match="confidences of an exit"):
        Spinn().see_exits({1: rows})


def test_all_here_is_a_choice_too():
    assert chosen(Spinn(), observe(link_up=False, deadline_s=0.5)) in (LOCAL, EXIT1, EXIT2)
