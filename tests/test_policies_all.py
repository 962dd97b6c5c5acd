"""What holds for every policy there is: one device and many decide alike, and none leaves the ground."""

import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import EXIT1, EXIT2, LOCAL, SPLIT_A, SPLIT_B, TABLE, device, of_device, stacked

from splitedge.errors import PolicyError
from splitedge.policy import GROUP, joules, make_policy
from splitedge.record import Record
from splitedge.registry import names

#: How to make a policy that makes no sense without an argument.
WITH_ARGUMENT = {"static": "static:split"}
MORE = [
    "dads:0.01,rate=40",
    "spinn:joules-accuracy,slack=0.1",
    "spinn:accuracy=1,latency=0.3,joules=0.1",
    "energy:0.002,v=5",
    "energy:hours=1,battery_wh=2,idle_w=0.5",
    "ensemble:latency,hold=0.4,margin=0.3",
    "ensemble:(energy:0.002,v=5),hold=0",
    "deadline:0.05,low=0.3,low_tolerance=0.1",
]
SPECS = [WITH_ARGUMENT.get(name, name) for name in names(GROUP)] + MORE
TABLES = [TABLE, (EXIT1, EXIT2, LOCAL, SPLIT_B), (EXIT1, SPLIT_A, SPLIT_B)]


def make(spec, options=TABLE):
    try:
        return make_policy(spec, options)
    except PolicyError as error:
        if spec in names(GROUP):
            pytest.skip(f"{spec} does not stand alone: {error}")
        raise


def flat(why):
    """The numbers of a `why`, whatever it is made of."""
    return [number for part in why for number in flat(part)] if isinstance(why, tuple) else [why]


def nth(value, n):
    return value[n] if np.ndim(value) else value


def same(one, many, n):
    assert int(one.option) == int(nth(many.option, n))
    for a, b in zip(flat(one.why), flat(many.why), strict=True):
        np.testing.assert_equal(a, nth(b, n))


@pytest.mark.parametrize("options", TABLES, ids=["all", "one-split", "no-local"])
@pytest.mark.parametrize("spec", SPECS)
@given(devices=st.lists(device, min_size=1, max_size=8), exit=st.sampled_from([-1, 1]))
@settings(max_examples=20, deadline=None)
def test_many_devices_decide_as_each_does(spec, options, devices, exit):
    made = make(spec, options)
    each = [of_device(d, options, exit) for d in devices]
    many = copy.deepcopy(made).decide(stacked(each))
    for n, obs in enumerate(each):
        same(copy.deepcopy(made).decide(obs), many, n)


def outcome(obs, option, t_s):
    """The record of a request that took an option: joules as predicted, and a fifth more."""
    spent = 1.2 * joules(option, obs)
    return Record(0, t_s, option=option.name, route=option.route.value, energy_j=spent, battery=obs.battery)


@pytest.mark.parametrize(
    "spec", [s for s in SPECS if s.split(":")[0] in ("dads", "spinn", "energy", "ensemble")]
)
@given(
    steps=st.lists(st.lists(device, min_size=3, max_size=3), min_size=2, max_size=12), gap=st.floats(0, 0.5)
)
@settings(max_examples=20, deadline=None)
def test_many_devices_learn_as_each_does(spec, steps, gap):
    fleet, alone = make(spec), [make(spec) for _ in range(3)]
    for k, devices in enumerate(steps):
        each = [of_device(d, t_s=k * gap) for d in devices]
        many = fleet.decide(stacked(each))
        records = []
        for n, obs in enumerate(each):
            one = alone[n].decide(obs)
            same(one, many, n)
            records.append(outcome(obs, TABLE[int(one.option)], obs.t_s))
            alone[n].learn(records[-1])
        fields = ("t_s", "option", "route", "energy_j", "battery")
        fleet.learn(Record(0, **{name: np.array([getattr(r, name) for r in records]) for name in fields}))


@pytest.mark.parametrize("spec", [spec for spec in SPECS if not spec.startswith("static")])
@given(device, st.sampled_from([-1, 1, 2]))
@settings(max_examples=40, deadline=None)
def test_nothing_is_sent_while_the_link_is_down(spec, d, exit):
    policy = make(spec)
    policy.decide(of_device({**d, "link_up": True}))  # a history that may tempt it
    obs = of_device({**d, "link_up": False}, exit=exit, t_s=0.01)
    decision = policy.decide(obs)
    assert not TABLE[int(decision.option)].remote
    assert "\n" not in policy.explain(obs, decision)


@pytest.mark.parametrize("spec", SPECS)
@given(device, st.sampled_from([-1, 1, 2]))
@settings(max_examples=40, deadline=None)
def test_every_decision_is_explained_in_one_line_with_a_number(spec, d, exit):
    policy = make(spec)
    obs = of_device(d, exit=exit)
    decision = policy.decide(obs)
    text = policy.explain(obs, decision)
    assert "\n" not in text
    assert TABLE[int(decision.option)].name in text or "confident" in text
    if spec not in ("static:split", "confidence"):  # these two have only names to tell on arrival
        assert any(sign.isdigit() for sign in text.replace(TABLE[int(decision.option)].name, ""))


@pytest.mark.parametrize(
    ("spec", "lacks", "options"),
    [
        ("dads", "split", (EXIT1, LOCAL)),
        ("spinn", "exit", (LOCAL, SPLIT_A)),
        ("spinn", "split", (EXIT1, LOCAL)),
        ("ensemble:spinn", "exit", (LOCAL, SPLIT_A)),
        ("confidence", "exit", (LOCAL, SPLIT_A)),
    ],
)
def test_a_deployment_that_lacks_a_route_is_refused(spec, lacks, options):
    with pytest.raises(PolicyError, match=f"needs the route {lacks}; this deployment has"):
        make_policy(spec, options)
