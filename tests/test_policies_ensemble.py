"""`ensemble`: two changes less than `hold` apart, and the second one had to be."""

import itertools
import math

import numpy as np
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
    SPLIT_B,
    TABLE,
    chosen,
    observe,
    stacked,
)

from splitedge.errors import PolicyError, UnknownName
from splitedge.policies.confidence import Confidence
from splitedge.policies.deadline import Deadline
from splitedge.policies.ensemble import Ensemble
from splitedge.policies.latency import Latency
from splitedge.policies.static import Static
from splitedge.policy import Decision, Policy, latency_q95, make_policy
from splitedge.record import Record

moments = st.lists(
    st.fixed_dictionaries(
        {
            "gap": st.floats(0.0, 1.5),
            "goodput": st.floats(1e4, 1e8),
            "rtt": st.floats(1e-3, 0.3),
            "link_up": st.sampled_from([True, True, True, False]),
            "deadline_s": st.sampled_from([math.inf, 0.3, 0.1, 0.05]),
        }
    ),
    min_size=2,
    max_size=40,
)


def way(option):
    return option.route, option.cut, option.exit, option.codec


def walk(moments):
    t = 100.0
    for moment in moments:
        t += moment["gap"]
        yield t, observe(t_s=t, **{key: value for key, value in moment.items() if key != "gap"})


@pytest.mark.parametrize("guarded", ["deadline", "latency", "dads", "spinn", "energy:0.003"])
@given(moments, st.sampled_from([0.5, 2.0]), st.sampled_from([0.0, 0.2]))
@settings(max_examples=60, deadline=None)
def test_of_two_changes_in_less_than_hold_the_second_had_to_be(guarded, moments, hold, margin):
    policy = make_policy(f"ensemble:{guarded},hold={hold},margin={margin}", TABLE)
    last, changed = None, -math.inf
    for t, obs in walk(moments):
        option = chosen(policy, obs)
        if last is not None and way(option) != way(last):
            down = last.remote and not obs.link_up
            late = latency_q95(last, obs) > obs.deadline_s
            faster = latency_q95(option, obs) * (1 + margin) < latency_q95(last, obs)
            had_to = down or (late and (latency_q95(option, obs) <= obs.deadline_s or faster))
            assert had_to or t - changed >= hold
            changed = t
        last = option


@given(moments)
@settings(max_examples=60, deadline=None)
def test_on_a_link_that_stays_up_and_without_deadlines_it_changes_once_in_hold_at_most(moments):
    policy = make_policy("ensemble:latency,hold=3,margin=0", TABLE)
    ways, times = [], []
    for t, obs in walk([{**m, "link_up": True, "deadline_s": math.inf} for m in moments]):
        ways.append(way(chosen(policy, obs)))
        times.append(t)
    changes = [t for t, a, b in zip(times[1:], ways, ways[1:], strict=False) if a != b]
    assert all(b - a >= 3 for a, b in itertools.pairwise(changes))


def test_a_link_about_a_crossing_does_not_make_it_flap():
    table = (SPLIT_A, SPLIT_B)
    rates = [3.9e6, 4.1e6] * 20  # the two cuts take as long at about 4 Mbit/s

    def changes(policy):
        names = [chosen(policy, observe(table, goodput=r, t_s=10.0 * k)).name for k, r in enumerate(rates)]
        return sum(a != b for a, b in itertools.pairwise(names))

    assert changes(Latency()) == len(rates) - 1
    assert changes(make_policy("ensemble:latency,hold=0,margin=0", table)) == len(rates) - 1
    guarded = make_policy("ensemble:latency,hold=0,margin=0.1", table)
    assert changes(guarded) == 0
    near = observe(table, goodput=4.1e6, t_s=1e3)
    decision = guarded.decide(near)
    assert "it would not if the link were 10% better or worse" in guarded.explain(near, decision)
    assert chosen(guarded, observe(table, goodput=2e7, t_s=2e3)) is SPLIT_A  # a clear case does change it


def test_a_change_must_wait_and_then_is_let_through():
    policy = make_policy("ensemble:(latency:0.02),hold=5", TABLE)
    fast, slow = {"goodput": 1e9, "rtt": 0.001}, {"goodput": 5e5}
    first = chosen(policy, observe(t_s=0.0, **fast))
    assert first is CLOUD
    assert chosen(policy, observe(t_s=1.0, **slow)) is SPLIT_B  # the first change need not wait
    early = observe(t_s=3.0, **fast)
    decision = policy.decide(early)
    assert TABLE[decision.option] is SPLIT_B
    text = policy.explain(early, decision)
    assert "split:b/int8:0 is kept although policy 'latency' would take cloud/webp:0" in text
    assert "the way last changed 2.0 s ago" in text
    assert chosen(policy, observe(t_s=6.0, **fast)) is CLOUD


def test_what_must_be_does_not_wait():
    policy = make_policy("ensemble:(deadline:0,scout_s=inf),hold=60", TABLE)
    assert chosen(policy, observe(deadline_s=0.5, t_s=0.0)) is CLOUD
    assert chosen(policy, observe(deadline_s=0.5, t_s=1.0, link_up=False)) is LOCAL
    assert chosen(policy, observe(deadline_s=0.5, t_s=2.0)) is LOCAL  # the link is back: that can wait
    assert chosen(policy, observe(deadline_s=0.012, t_s=3.0)) is EXIT2  # 60 ms are not in 12 ms


def test_a_change_of_level_is_no_change_of_way():
    class Levels(Policy):
        name = "levels"

        def decide(self, obs):
            return Decision(TABLE.index(SPLIT_A if obs.goodput.mean > 1e6 else SPLIT_A_LOW))

        def explain(self, obs, decision):
            return obs.options[decision.option].name

    policy = Ensemble(Levels(), hold=100)
    taken = [chosen(policy, observe(goodput=r, t_s=k)) for k, r in enumerate((2e6, 5e5, 2e6))]
    assert taken == [SPLIT_A, SPLIT_A_LOW, SPLIT_A]


def test_the_guarded_policy_sees_each_request_once():
    class Remembers(Latency):
        def decide(self, obs):
            self.seen = [*getattr(self, "seen", []), obs.goodput.mean]
            return super().decide(obs)

    policy = Ensemble(Remembers(0.02), hold=0)
    rates = [3.9e6, 4.1e6, 1e5, 1e9]
    for k, rate in enumerate(rates):
        policy.decide(observe(goodput=rate, t_s=k))
    assert policy.inner.seen == rates


def test_an_exit_that_is_sure_answers_and_what_goes_on_goes_the_way_kept():
    policy = Ensemble(Deadline(0.0, scout_s=math.inf), hold=60)
    start = observe(deadline_s=0.2, goodput=1e6)
    assert chosen(policy, start) is SPLIT_A
    at_exit = observe(deadline_s=0.19, exit=1, sunk_s=0.004, t_s=1.0, goodput=1e8)
    assert chosen(policy, at_exit._replace(confidence=1.0)) is EXIT1
    unsure = at_exit._replace(confidence=0.1)
    assert chosen(Deadline(0.0), unsure) is CLOUD
    decision = policy.decide(unsure)
    assert TABLE[decision.option] is SPLIT_A
    assert "what exit 1 is not sure of goes the way of the last arrival" in policy.explain(unsure, decision)
    late = unsure._replace(goodput=start.goodput, deadline_s=0.13)
    assert chosen(policy, late) is SPLIT_B  # the way kept would be late
    confident = Ensemble(Confidence(0.9), hold=60)
    assert chosen(confident, observe()) is EXIT1
    assert chosen(confident, observe(exit=1, confidence=0.2)) is CLOUD


def test_many_devices_keep_their_own_ways():
    fleet, alone = make_policy("ensemble:latency,hold=1", TABLE), []
    rng = np.random.default_rng(0)
    alone = [make_policy("ensemble:latency,hold=1", TABLE) for _ in range(50)]
    for k in range(30):
        each = [
            observe((SPLIT_A, SPLIT_B, CLOUD), goodput=float(r), t_s=0.3 * k, link_up=bool(up))
            for r, up in zip(10 ** rng.uniform(5, 9, 50), rng.random(50) < 0.9, strict=True)
        ]
        each = [obs._replace(options=each[0].options) for obs in each]
        many = fleet.decide(stacked(each))
        assert many.option.tolist() == [int(a.decide(o).option) for a, o in zip(alone, each, strict=True)]


def test_it_stands_for_what_it_guards():
    policy = make_policy("ensemble:confidence:0.8", TABLE)
    assert isinstance(policy.inner, Confidence)
    assert policy.inner.target == 0.8
    seen = []

    class Learns(Static):
        def learn(self, record):
            seen.append(record)

    Ensemble(Learns("split")).learn(Record(3, 0.0))
    assert [record.request for record in seen] == [3]
    with pytest.raises(PolicyError, match="should take 'local'"):
        make_policy("ensemble:static:local", (SPLIT_A, CLOUD))


@pytest.mark.parametrize(
    ("spec", "error", "message"),
    [
        ("ensemble:guess", UnknownName, "no 'guess'"),
        ("ensemble:deadline,hold=-1", PolicyError, "'hold' must be at least 0"),
        ("ensemble:deadline,hold=nan", PolicyError, "'hold' must be at least 0"),
        ("ensemble:deadline,margin=1", PolicyError, r"margin must be in \[0, 1\)"),
        ("ensemble:deadline,holds=1", PolicyError, "Did you mean 'hold'"),
        ("ensemble:deadline:much", PolicyError, "'deadline' takes a number"),
        ("ensemble:(deadline", PolicyError, "brackets"),
    ],
)
def test_guards_that_make_no_sense_are_refused(spec, error, message):
    with pytest.raises(error, match=message):
        make_policy(spec, TABLE)
