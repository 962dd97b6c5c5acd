"""`dads` against the minimum cut of the network's graph, and against exhaustive search."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from policy_cases import EXIT1, EXIT2, LOCAL, SPLIT_A, SPLIT_B, TABLE, chosen, observe

from splitedge.errors import PolicyError
from splitedge.mincut import Value, cheapest
from splitedge.policies.dads import Dads, slowest_stage
from splitedge.policies.pace import Pace
from splitedge.policy import Estimate, Option, Route, latency_mean, make_policy
from splitedge.record import Record

seconds = st.floats(0.0, 0.1)


@st.composite
def networks(draw):
    """A network of up to 5 nodes: seconds of each here and there, and who reads the value of whom."""
    count = draw(st.integers(1, 5))
    edge = draw(st.lists(seconds, min_size=count, max_size=count))
    cloud = draw(st.lists(seconds, min_size=count, max_size=count))
    nbytes = draw(st.lists(st.integers(1, 50_000), min_size=count + 1, max_size=count + 1))
    reads = [{-1}]
    for i in range(1, count):
        reads.append(draw(st.sets(st.integers(-1, i - 1), min_size=1, max_size=2)))
    return edge, cloud, nbytes, reads


def consumers(reads, producer):
    return tuple(i for i, sources in enumerate(reads) if producer in sources)


def deployed(network):
    """Every division whose edge side needs nothing from the cloud, as an option."""
    edge, cloud, nbytes, reads = network
    options = []
    for bits in itertools.product([False, True], repeat=len(edge)):
        here = {i for i, bit in enumerate(bits) if bit}
        if any(source >= 0 and source not in here for i in here for source in reads[i]):
            continue
        crossing = [p for p in range(-1, len(edge)) if p == -1 or p in here]
        crossing = [p for p in crossing if set(consumers(reads, p)) - here]
        kind = Route.LOCAL if len(here) == len(edge) else Route.SPLIT if here else Route.CLOUD
        options.append(
            Option(
                kind,
                cut="-".join(map(str, sorted(here))) if kind is Route.SPLIT else None,
                codec=None if kind is Route.LOCAL else "raw",
                edge_s=sum(edge[i] for i in sorted(here)),
                cloud_s=sum(cloud[i] for i in range(len(edge)) if i not in here),
                bytes_up=sum(nbytes[p + 1] for p in crossing),
            )
        )
    return tuple(options)


@given(networks(), st.floats(1e5, 1e8))
@settings(max_examples=150, deadline=None)
def test_under_light_load_it_is_the_minimum_cut_of_the_graph(network, goodput):
    edge, cloud, nbytes, reads = network
    options = deployed(network)
    obs = observe(options, goodput=goodput)._replace(
        rtt=Estimate(0.0, 0.0, 0.0), queue=Estimate(0.0, 0.0, 0.0)
    )
    values = [
        Value(p, consumers(reads, p), 8 * nbytes[p + 1] / goodput)
        for p in range(-1, len(edge))
        if consumers(reads, p)
    ]
    here = cheapest(edge, cloud, values)
    least = sum(edge[i] for i in here) + sum(cloud[i] for i in range(len(edge)) if i not in here)
    least += sum(value.send_s for value in values if _crosses(value, here))
    got = latency_mean(chosen(Dads(), obs), obs)
    assert got == pytest.approx(least, abs=1e-9)
    assert got == min(latency_mean(option, obs) for option in options)


def _crosses(value, here):
    made_here = value.producer < 0 or value.producer in here
    return made_here and any(consumer not in here for consumer in value.consumers)


@given(networks(), st.floats(1e5, 1e8), st.floats(0.1, 1000.0))
@settings(max_examples=150, deadline=None)
def test_the_load_chooses_between_a_fast_frame_and_a_fast_pipeline(network, goodput, rate):
    options = deployed(network)
    obs = observe(options, goodput=goodput)
    policy = Dads(rate=rate)
    decision = policy.decide(obs)
    got = options[decision.option]
    fastest = min(options, key=lambda o: latency_mean(o, obs))
    if rate * slowest_stage(fastest, obs) < 1.0:
        assert latency_mean(got, obs) == latency_mean(fastest, obs)
        assert "is the cut of least latency" in policy.explain(obs, decision)
    else:
        bottlenecks = [
            max(o.edge_s, 8 * o.bytes_up / goodput if o.remote else 0.0, o.cloud_s) for o in options
        ]
        assert slowest_stage(got, obs) == pytest.approx(min(bottlenecks))
        assert f"gets most of {rate:.1f} frames/s through" in policy.explain(obs, decision)


def test_the_load_is_measured_from_the_records():
    here = Option(Route.LOCAL, edge_s=0.030)
    piped = Option(Route.SPLIT, cut="a", codec="int8", edge_s=0.018, cloud_s=0.018, bytes_up=1000)
    obs = observe((here, piped), goodput=1e7, rtt=0.02)
    policy = make_policy("dads", (here, piped))
    assert chosen(policy, obs) is here  # least latency, and no load yet
    for k in range(200):
        policy.learn(Record(k, k / 50))
    assert chosen(policy, obs) is piped  # 30 ms a frame do not keep up with one each 20 ms
    for k in range(200):
        policy.learn(Record(k, 4.0 + k / 10))
    assert chosen(policy, obs) is here


@given(st.floats(1e-3, 50.0), st.integers(2, 50))
def test_a_steady_pace_is_measured_exactly(gap, count):
    pace = Pace()
    assert pace.rate() == 0.0
    for k in range(count):
        pace.count(k * gap)
    assert pace.rate() == pytest.approx(1 / gap, rel=1e-6)


def test_a_pace_out_of_order_counts_every_arrival():
    pace = Pace()
    for t in (0.0, 0.2, 0.1, 0.3, 0.4, 0.5):
        pace.count(t)
    assert 9 < pace.rate() < 13
    many = Pace()
    for t in (0.0, 0.1, 0.2):
        many.count(np.array([t, 2 * t]))
    assert many.rate() == pytest.approx([10.0, 5.0])


def test_exits_are_no_cuts():
    obs = observe()
    assert chosen(Dads(), obs).route not in (Route.EXIT, Route.LOCAL)
    assert chosen(Dads(), obs._replace(link_up=False)) is LOCAL
    table = (EXIT1, EXIT2, SPLIT_A)
    policy = Dads()
    away = observe(table, link_up=False)
    assert chosen(policy, away) is EXIT2  # the most accurate that is left
    assert "most accurate left" in policy.explain(away, policy.decide(away))


def test_a_bounded_loss_keeps_to_the_accurate_cuts():
    slow = observe(goodput=1e5)
    assert chosen(Dads(), slow) is LOCAL
    assert chosen(make_policy("dads:0.02", TABLE), slow) is SPLIT_B


@pytest.mark.parametrize("rate", [0.0, -1.0, math.inf])
def test_a_load_that_makes_no_sense_is_refused(rate):
    with pytest.raises(PolicyError, match="the rate must be above 0"):
        Dads(rate=rate)
