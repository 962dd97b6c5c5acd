"""Policies: the property that defines each, the same on a number and on an array, and what they say."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from splitedge.errors import PolicyError, UnknownName
from splitedge.policies.confidence import Confidence
from splitedge.policies.deadline import Deadline
from splitedge.policies.in_time import Prospects, accuracy_here
from splitedge.policies.latency import Latency
from splitedge.policies.static import Static
from splitedge.policy import (
    Decision,
    Estimate,
    Observation,
    Option,
    Route,
    joules,
    latency_mean,
    latency_q95,
    make_policy,
)

EXIT1 = Option(Route.EXIT, exit=1, accuracy=0.70, edge_s=0.004, edge_s_q95=0.005)
EXIT2 = Option(Route.EXIT, exit=2, accuracy=0.80, edge_s=0.009, edge_s_q95=0.011)
LOCAL = Option(Route.LOCAL, accuracy=0.85, edge_s=0.060, edge_s_q95=0.080)


def remote(route, cut, acc, up, edge=0.006):
    return Option(
        route,
        cut=cut,
        codec="int8" if cut else "webp",
        accuracy=acc,
        edge_s=edge,
        edge_s_q95=1.3 * edge,
        cloud_s=0.003,
        cloud_s_q95=0.004,
        bytes_up=up,
        bytes_up_q95=1.2 * up,
        bytes_down=80,
    )


SPLIT_A = remote(Route.SPLIT, "a", 0.930, 6000)
SPLIT_B = remote(Route.SPLIT, "b", 0.925, 1500, edge=0.015)
CLOUD = remote(Route.CLOUD, None, 0.934, 20_000, edge=0.002)
SURE = replace(remote(Route.SPLIT, "s", 0.85, 100), edge_s=0.001, edge_s_q95=0.001)
TABLE = (EXIT1, EXIT2, LOCAL, SPLIT_A, SPLIT_B, CLOUD)


def observe(options=TABLE, goodput=8e6, rtt=0.04, **more):
    return Observation(
        options,
        goodput=Estimate(goodput, 0.5 * goodput, 2 * goodput),
        downlink=Estimate(2 * goodput, goodput, 4 * goodput),
        rtt=Estimate(rtt, 0.8 * rtt, 1.5 * rtt),
        queue=Estimate(0.001, 0.0, 0.004),
        **{"joules_per_edge_s": 0.3, "joules_per_bit_up": 77e-9, "joules_per_bit_down": 12e-9, **more},
    )


def chosen(policy, obs):
    return obs.options[int(policy.decide(obs).option)]


# One device and many, the same lines ---------------------------------------------------------------------

POLICIES = [
    Static("split"),
    Static("exit:1"),
    Confidence(0.8, {1: 0.9, 2: 0.75}),
    Latency(),
    Latency(0.05),
    Deadline(),
    Deadline(0.1),
    Deadline(0.0),
]

device = st.fixed_dictionaries(
    {
        "goodput": st.floats(1e4, 1e9),
        "rtt": st.floats(1e-4, 1.0),
        "wait": st.floats(0, 0.2),
        "up": st.booleans(),
        "deadline": st.one_of(st.just(math.inf), st.floats(-0.01, 1.0)),
        "rows": st.integers(1, 4),
        "exit": st.sampled_from([-1, 1, 2]),
        "confidence": st.floats(0, 1),
        "sunk": st.floats(0, 0.02),
        "unsent": st.floats(0, 3.0),
    }
)


def of_device(d, options=TABLE):
    return observe(
        options,
        goodput=d["goodput"],
        rtt=d["rtt"],
        edge_wait_s=d["wait"],
        link_up=d["up"],
        deadline_s=d["deadline"],
        rows=d["rows"],
        exit=d["exit"],
        confidence=d["confidence"] if d["exit"] >= 0 else math.nan,
        sunk_s=d["sunk"] if d["exit"] >= 0 else 0.0,
        unsent_s=d["unsent"],
    )


def stacked(each):
    """The observation of many devices at the same exit: each other number an array of shape (N,)."""

    def column(read):
        return np.array([read(obs) for obs in each])

    def estimate(name):
        return Estimate(*(column(lambda obs, i=i: getattr(obs, name)[i]) for i in range(3)))

    numbers = ("edge_wait_s", "link_up", "deadline_s", "rows", "confidence", "sunk_s", "unsent_s")
    return each[0]._replace(
        **{name: estimate(name) for name in ("goodput", "downlink", "rtt", "queue")},
        **{name: column(lambda obs, name=name: getattr(obs, name)) for name in numbers},
    )


@pytest.mark.parametrize("options", [TABLE, (EXIT1, SPLIT_A, CLOUD), (EXIT1, EXIT2, LOCAL, SPLIT_B)])
@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.name}-{vars(p).get('tolerance', '')}")
@given(st.lists(device, min_size=1, max_size=12), st.sampled_from([-1, 1]))
@settings(max_examples=30, deadline=None)
def test_an_array_of_devices_decides_as_each_device_does(options, policy, devices, at_exit):
    if isinstance(policy, Static):
        assume(any(option.name == policy.choice or option.route == policy.choice for option in options))
    each = [of_device({**d, "exit": at_exit}, options) for d in devices]
    one_by_one = [policy.decide(obs) for obs in each]
    at_once = policy.decide(stacked(each))
    got = np.broadcast_to(np.asarray(at_once.option), (len(each),))
    assert got.tolist() == [int(decision.option) for decision in one_by_one]
    if not isinstance(policy, Static):
        why = np.broadcast_to(np.asarray(at_once.why), (len(each),))
        assert why.tolist() == [decision.why for decision in one_by_one]


@pytest.mark.parametrize("policy", POLICIES, ids=lambda p: f"{p.name}-{vars(p).get('tolerance', '')}")
@given(device)
@settings(max_examples=60, deadline=None)
def test_every_decision_can_be_explained_in_one_line(policy, d):
    obs = of_device(d)
    text = policy.explain(obs, policy.decide(obs))
    assert text
    assert "\n" not in text
    assert chosen(policy, obs).name in text or "confident" in text


@pytest.mark.parametrize("policy", POLICIES[2:], ids=lambda p: f"{p.name}-{vars(p).get('tolerance', '')}")
@given(device)
@settings(max_examples=60, deadline=None)
def test_no_remote_option_while_the_link_is_down(policy, d):
    obs = of_device({**d, "up": False})
    assert not chosen(policy, obs).remote


# deadline ------------------------------------------------------------------------------------------------


def reachable(obs):
    return [o for o in obs.options if obs.link_up or not o.remote]


@given(device)
@settings(max_examples=300, deadline=None)
def test_deadline_takes_nothing_that_another_of_its_side_beats_in_everything(d):
    obs = of_device(d)
    option = chosen(Deadline(0.0, scout_s=math.inf), obs)
    for other in reachable(obs):
        if other.remote is option.remote and accuracy_here(other, obs) > accuracy_here(option, obs):
            quicker = latency_mean(other, obs) < latency_mean(option, obs)
            surer = latency_q95(other, obs) < latency_q95(option, obs)
            lighter = other.edge_s <= option.edge_s and joules(other, obs) < joules(option, obs)
            assert not (quicker and surer and lighter)


@given(device)
@settings(max_examples=300, deadline=None)
def test_a_chance_is_one_and_rises_with_the_time_left(d):
    obs = of_device({**d, "deadline": min(d["deadline"], 1.0)})
    more = obs._replace(deadline_s=obs.deadline_s + 0.05)
    for option, now, then in zip(TABLE, Prospects(obs).worth, Prospects(more).worth, strict=True):
        early, late = now.chance, then.chance
        assert 0.0 <= early <= late <= 1.0
        left = obs.deadline_s - latency_mean(option, obs)
        assert abs(left) < 1e-9 or (early >= 0.5) is (left > 0.0)
        if left > 1e-5 and latency_q95(option, obs) <= obs.deadline_s:
            assert early >= 0.95 - 1e-6


def test_deadline_gives_up_accuracy_only_as_far_as_time_forces_it():
    names = [chosen(Deadline(0.005), observe(deadline_s=s)).route for s in (1.0, 0.060, 0.012, 0.006)]
    assert names == [Route.SPLIT, Route.SPLIT, Route.EXIT, Route.EXIT]


def test_deadline_stops_at_a_sure_exit_and_goes_on_from_an_unsure_one():
    at_exit = {"exit": 1, "sunk_s": 0.004, "deadline_s": 0.5}
    assert chosen(Deadline(), observe(confidence=0.9999, **at_exit)) is EXIT1
    assert chosen(Deadline(), observe(confidence=0.50, **at_exit)).remote


def test_deadline_within_the_tolerance_saves_energy():
    obs = observe(deadline_s=5.0)
    assert chosen(Deadline(0.0), obs) is CLOUD
    assert chosen(Deadline(0.005), obs) is SPLIT_A  # 0.4 points less, a third of the bytes
    assert chosen(Deadline(0.02), obs) is SPLIT_B  # 0.9 points less, a thirteenth of the bytes
    assert joules(SPLIT_B, obs) < joules(SPLIT_A, obs) < joules(CLOUD, obs)


def test_deadline_weighs_a_late_answer_by_what_the_device_has_then():
    """A remote option that makes it in half of the cases loses to one that always does, unless the device can
    still answer: then it has something to win and nothing to lose.
    """
    late = {"deadline_s": 0.068}
    assert 0.4 < Prospects(observe((SURE, CLOUD), **late)).worth[1].chance < 0.6
    assert chosen(Deadline(), observe((SURE, CLOUD), **late)) is SURE
    assert chosen(Deadline(), observe((EXIT1, CLOUD), **late)) is CLOUD
    assert chosen(Deadline(), observe((EXIT1, CLOUD), deadline_s=0.012)) is EXIT1


@pytest.mark.parametrize("rate", [1e2, 1e3, 1e4])
def test_deadline_sends_nothing_that_can_not_have_left_in_time(rate):
    obs = observe((EXIT1, SPLIT_B, CLOUD), goodput=rate, deadline_s=0.15)
    assert chosen(Deadline(0.0), obs) is EXIT1
    assert [one.chance for one in Prospects(obs).worth[1:]] == [0.0, 0.0]


def test_deadline_spares_the_device_for_the_requests_behind():
    slow, quick = (
        replace(SPLIT_A, edge_s=0.09, edge_s_q95=0.09),
        replace(SPLIT_B, edge_s=0.005, edge_s_q95=0.006),
    )
    assert chosen(Deadline(0.0), observe((slow, quick), deadline_s=5.0)) is quick  # half a point for 85 ms


def test_deadline_explains_with_numbers():
    obs = observe(deadline_s=0.5)
    policy = Deadline(0.005)
    text = policy.explain(obs, policy.decide(obs))
    assert text.startswith("split:a/int8:0 is worth most with 500.0 ms left, or as much for fewer joules")
    assert "right in 93.0%" in text
    assert "in time in 100.0%" in text
    assert "uplink 8.00 Mbit/s" in text
    late = observe(deadline_s=0.001)
    assert policy.explain(late, policy.decide(late)).startswith("nothing is likely to answer")


# latency -------------------------------------------------------------------------------------------------


@given(device)
@settings(max_examples=200, deadline=None)
def test_latency_takes_the_fastest_in_reach(d):
    obs = of_device(d)
    option = chosen(Latency(), obs)
    assert latency_mean(option, obs) == min(latency_mean(o, obs) for o in reachable(obs))


def test_latency_with_a_bounded_loss_moves_the_cut_with_the_bandwidth():
    table = (SPLIT_A, SPLIT_B, CLOUD)
    routes = [chosen(Latency(0.05), observe(table, goodput=rate)).name for rate in (1e5, 6e6, 1e9)]
    assert routes == ["split:b/int8:0", "split:a/int8:0", "cloud/webp:0"]


def test_latency_breaks_ties_by_accuracy():
    worse = Option(Route.LOCAL, accuracy=0.5, edge_s=0.01)
    better = Option(Route.EXIT, exit=1, accuracy=0.6, edge_s=0.01)
    assert chosen(Latency(), observe((worse, better))) is better
    assert chosen(Latency(), observe((better, worse))) is better


def test_latency_explains_itself():
    obs = observe((SPLIT_A, CLOUD), goodput=1e6)
    text = Latency().explain(obs, Latency().decide(obs))
    assert text.startswith("split:a/int8:0 has the least predicted latency, ")
    assert "uplink 1.00 Mbit/s, RTT 40 ms" in text


# confidence ----------------------------------------------------------------------------------------------


def test_confidence_runs_the_first_exit_then_goes_by_its_threshold():
    policy = Confidence(0.9)
    policy.configure({1: 0.8, 2: 0.6})
    assert chosen(policy, observe()) is EXIT1
    for confidence, expected in ((0.80, EXIT1), (0.79, CLOUD)):
        assert chosen(policy, observe(exit=1, confidence=confidence)) is expected
    assert chosen(policy, observe(exit=2, confidence=0.7)) is EXIT2
    unsure = observe(exit=1, confidence=0.1, link_up=False)
    assert chosen(policy, unsure) is LOCAL


def test_confidence_without_thresholds_takes_the_target():
    policy = Confidence(0.95)
    assert chosen(policy, observe(exit=1, confidence=0.94)) is CLOUD
    assert chosen(policy, observe(exit=1, confidence=0.95)) is EXIT1
    policy.configure({1: math.inf})
    assert chosen(policy, observe(exit=1, confidence=1.0)) is CLOUD


def test_confidence_that_is_not_known_is_not_sure():
    obs = observe((EXIT1, CLOUD), exit=1, confidence=math.nan)
    assert chosen(Confidence(), obs) is CLOUD
    assert chosen(Confidence(), obs._replace(link_up=False)) is EXIT1


def test_confidence_explains_itself():
    policy = Confidence(0.9, {1: 0.8})
    for confidence, text in (
        (0.85, "exit 1 is 85.0% confident, its threshold is 80.0%"),
        (
            0.5,
            "exit 1 is 50.0% confident, less than its threshold of 80.0%; "
            "cloud/webp:0 is the most accurate remote option",
        ),
    ):
        obs = observe(exit=1, confidence=confidence)
        assert policy.explain(obs, policy.decide(obs)) == text


@pytest.mark.parametrize("thresholds", [{1: math.nan}, {1: -0.1}])
def test_thresholds_that_make_no_sense_are_refused(thresholds):
    with pytest.raises(PolicyError, match="exit 1"):
        Confidence(0.9, thresholds)


# static --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "option"),
    [
        ("static:exit", EXIT2),
        ("static:exit:1", EXIT1),
        ("static:local", LOCAL),
        ("static:split", SPLIT_A),
        ("static:split:b/int8:0", SPLIT_B),
        ("static:cloud", CLOUD),
        ("static:cloud/webp:0", CLOUD),
    ],
)
def test_static_takes_what_it_is_told_link_or_not(spec, option):
    policy = make_policy(spec, TABLE)
    for up in (True, False):
        assert chosen(policy, observe(link_up=up)) is option
    assert option.name in policy.explain(observe(), policy.decide(observe()))


# Specs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("spec", "kind"),
    [
        ("deadline", Deadline),
        ("deadline:0.02", Deadline),
        ("latency:0.1", Latency),
        ("confidence:0.9", Confidence),
    ],
)
def test_specs_make_policies(spec, kind):
    assert isinstance(make_policy(spec, TABLE), kind)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("static", "needs a route or an option"),
        ("static:clowd", "this deployment has exit:1, exit:2, local"),
        ("deadline:soon", "takes a number"),
        ("deadline:2", r"in \[0, 1\]"),
        ("deadline:nan", r"in \[0, 1\]"),
        ("latency:-1", r"in \[0, 1\]"),
        ("confidence:0", r"in \(0, 1\]"),
        ("confidence:1.1", r"in \(0, 1\]"),
    ],
)
def test_bad_specs_are_refused(spec, message):
    with pytest.raises(PolicyError, match=message):
        make_policy(spec, TABLE)


def test_a_deployment_that_lacks_the_route_is_refused():
    with pytest.raises(PolicyError, match="needs the route exit; this deployment has cloud, split"):
        make_policy("confidence", (SPLIT_A, CLOUD))
    with pytest.raises(PolicyError, match="should take 'local'"):
        make_policy("static:local", (SPLIT_A, CLOUD))


def test_an_unknown_policy_names_those_there_are():
    with pytest.raises(UnknownName, match=r"Registered: .*confidence.* deadline.* static"):
        make_policy("guess", TABLE)


def test_a_policy_with_only_remote_options_still_decides():
    obs = observe((SPLIT_A, CLOUD), link_up=False, deadline_s=0.01)
    for policy in (Deadline(), Latency()):
        assert chosen(policy, obs).remote
    assert isinstance(Deadline().decide(obs), Decision)


# Scouting ------------------------------------------------------------------------------------------------


def slow_link(**more):
    """A link whose 10th percentile is far too slow for a deadline that its 90th would meet."""
    obs = observe(deadline_s=0.15, rtt=0.03, **more)
    return obs._replace(goodput=Estimate(4e4, 3.5e4, 4e6))


def test_a_request_scouts_a_link_that_looks_too_slow_once_nothing_was_sent_for_long():
    policy = Deadline()
    assert not chosen(policy, slow_link(unsent_s=0.5)).remote
    scout = policy.decide(slow_link(unsent_s=1.5))
    assert TABLE[int(scout.option)] is CLOUD  # the most accurate that the link at its best would carry
    sentence = policy.explain(slow_link(unsent_s=1.5), scout)
    assert "scouts the link" in sentence
    assert "1.5 s" in sentence


def test_nothing_scouts_without_an_answer_at_hand_or_a_hope_or_a_link():
    policy = Deadline()
    assert not chosen(policy, slow_link(unsent_s=9.0, link_up=False)).remote
    assert not chosen(policy, slow_link(unsent_s=9.0)._replace(rtt=Estimate(0.2, 0.1, 0.3))).remote
    remotes = (SPLIT_A, SPLIT_B, CLOUD)
    assert (
        policy.decide(slow_link(options=remotes, unsent_s=9.0)).why
        != policy.decide(slow_link(unsent_s=9.0)).why
    )
    for unsent in (9.0, math.inf):
        assert not chosen(Deadline(scout_s=math.inf), slow_link(unsent_s=unsent)).remote


def test_many_devices_scout_as_one_does():
    unsent = np.array([0.5, 1.5, 9.0, 0.0])
    up = np.array([True, True, False, True])
    together = Deadline().decide(slow_link(unsent_s=unsent, link_up=up))
    for n in range(4):
        alone = Deadline().decide(slow_link(unsent_s=float(unsent[n]), link_up=bool(up[n])))
        assert (int(together.option[n]), int(together.why[n])) == (alone.option, alone.why)
