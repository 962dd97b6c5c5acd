"""The oracle: what it scores was reached, and no run gets past the bound."""

import numpy as np
import pytest
from fake_simulate import OPTIONS
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.errors import ConfigError, PolicyError
from splitedge.evaluation import Evaluation
from splitedge.policy import Option, Route
from splitedge.sim.curves import Rates, Series, steady
from splitedge.sim.oracle import oracle_policies, upper_bound
from splitedge.sim.scenario import ChannelPart, DevicePart, Scenario, WorkPart
from splitedge.sim.simulate import simulate
from splitedge.sim.synth import lte_like
from splitedge.sim.traces import Trace

EXIT = Option(Route.EXIT, exit=0, accuracy=0.6, edge_s=0.004, edge_s_q95=0.005)
TABLE = (EXIT, *OPTIONS)


def evaluation(seed=0, table=TABLE, rows=100):
    rng = np.random.default_rng(seed)
    right = rng.random((len(table), rows)) < np.array([[option.accuracy] for option in table])
    nbytes = np.array([[option.bytes_up] for option in table]) * np.ones((1, rows))
    names = tuple(option.name for option in table)
    return Evaluation(names, right, np.full(right.shape, 0.7), nbytes, np.zeros(rows, np.int64), table)


def scenario(policy="oracle", deadline_ms=100.0, rate_hz=20.0, requests=200, **device):
    return Scenario(
        deployment="nowhere.npz",
        channel=ChannelPart(up="nowhere.csv"),
        policy=policy,
        device=DevicePart(power="phone-lte", **device),
        work=WorkPart(arrivals="poisson", rate_hz=rate_hz, requests=requests, deadline_ms=deadline_ms),
    )


def flat(mbps, rtt_s=0.02):
    rate = steady(1e6 * mbps)
    return Trace("flat", "csv", rate, rate, Series(np.zeros(1), np.full(1, rtt_s), 1.0))


def share(one, trace, ev):
    return simulate(one, evaluation=ev, up=trace).score().correct_in_time


@settings(max_examples=12, deadline=None)
@given(
    seed=st.integers(0, 99),
    deadline_ms=st.sampled_from([30.0, 60.0, 150.0]),
    rate_hz=st.sampled_from([5, 60]),
)
def test_between_every_policy_and_the_bound(seed, deadline_ms, rate_hz):
    ev, trace = evaluation(seed), lte_like(30, seed)
    asked = scenario(deadline_ms=deadline_ms, rate_hz=rate_hz)
    most = upper_bound(asked, ev, trace, trace)
    reached = share(asked, trace, ev)
    assert reached <= most
    for policy in ("static:local", "static:exit", "static:split", "deadline", "oracle:channel"):
        other = share(asked.model_copy(update={"policy": policy}), trace, ev)
        assert other <= most
        assert other <= reached + 1 / 200  # a request at most: the plan's model is simpler than the run


def test_alone_on_a_good_link_it_answers_all_that_can_be_right():
    ev, trace = evaluation(), flat(50)
    asked = scenario(deadline_ms=150.0, rate_hz=2.0, requests=100)
    run = simulate(asked, evaluation=ev, up=trace)
    can = ev.correct.any(axis=0)[run["row"]]
    assert np.array_equal(run["right"] & run["met"], can)
    assert upper_bound(asked, ev, trace, trace) == pytest.approx(can.mean())
    # Of what is right in time it takes the cheapest: the exit wherever the exit is right.
    assert np.all(run["option"][ev.correct[0][run["row"]]] == "exit:0")


def test_bound_by_hand():
    # 9000 bytes take 72 ms at 1 Mbit/s, with 8 ms before, 20 ms of RTT, 2 ms and 2.4 ms of reply: 104.4 ms.
    table = (Option(**{**_fields(OPTIONS[1]), "edge_s_q95": 0.0, "cloud_s_q95": 0.0}),)
    ev, trace = evaluation(table=table), flat(1)
    right = {}
    for deadline_ms in (104.3, 104.5):
        asked = scenario(deadline_ms=deadline_ms, requests=100)
        right[deadline_ms] = upper_bound(asked, ev, trace, trace)
    assert right[104.3] == 0.0
    assert right[104.5] == pytest.approx(ev.correct.mean())


def _fields(option):
    return {name: getattr(option, name) for name in option.__dataclass_fields__}


def test_bound_counts_on_an_rtt_that_falls():
    """Bytes sent later may arrive earlier: the bound must not assume that the first moment is the best."""
    rate = steady(1e9)
    rtt = Series(np.array([0.0, 0.5]), np.array([0.4, 0.02]), 1.0)
    trace = Trace("falls", "csv", rate, rate, rtt)
    ev = evaluation(table=(OPTIONS[1],))
    asked = scenario(deadline_ms=None, requests=50)
    for deadline_ms in (100.0, 200.0, 300.0):
        asked = scenario("static:split", deadline_ms=deadline_ms, rate_hz=10.0)
        assert share(asked, trace, ev) <= upper_bound(asked, ev, trace, trace)


def test_looking_ahead_beats_the_best_of_the_moment():
    """One slow transfer would hold up ten requests: seen one by one each of them is worth it."""
    rate = Rates(np.array([0.0]), np.array([1.5e6]), 60.0)
    trace = Trace("slow", "csv", rate, rate, None)
    ev = evaluation(seed=3)
    asked = scenario(deadline_ms=150.0, rate_hz=50.0, requests=300)

    def reached(beam):
        from splitedge.sim.exact import run_exact

        policy = oracle_policies(asked, ev, trace, trace, beam)
        return run_exact(asked, ev, trace, trace, policy=policy).score().correct_in_time

    assert reached(12) >= reached(1)
    assert reached(12) > share(asked.model_copy(update={"policy": "deadline"}), trace, ev)


@pytest.mark.parametrize(
    "harder",
    [
        {"loss": 0.05},
        {"half_duplex": True},
        {"outages": ((2.0, 4.0),)},
        {"cuts": ((2.0, 4.0),)},
        {"down_start_s": 7.0},
        {"loop": False, "start_s": 24.0},
    ],
)
def test_bound_holds_whatever_the_channel_does(harder):
    ev, trace = evaluation(), lte_like(30, 2)
    asked = scenario(rate_hz=40.0)
    asked = asked.model_copy(update={"channel": ChannelPart(up="nowhere.csv", **harder)})
    most = upper_bound(asked, ev, trace, trace)
    for policy in ("oracle", "static:split", "deadline"):
        assert share(asked.model_copy(update={"policy": policy}), trace, ev) <= most


@pytest.mark.parametrize("shared_cell", [False, True])
def test_many_devices(shared_cell):
    ev, trace = evaluation(), lte_like(30, 5)
    asked = scenario(count=4, shared_cell=shared_cell, requests=50)
    reached = share(asked, trace, ev)
    assert share(asked.model_copy(update={"policy": "deadline"}), trace, ev) <= reached
    assert reached <= upper_bound(asked, ev, trace, trace)


def test_without_a_deadline_it_is_right_wherever_an_option_is():
    ev, trace = evaluation(), flat(20)
    run = simulate(scenario(deadline_ms=None, rate_hz=5.0), evaluation=ev, up=trace)
    assert np.mean(run["right"]) >= ev.correct.any(axis=0)[run["row"]].mean() - 0.02


def test_only_in_exact_mode_and_only_two_of_them():
    with pytest.raises(PolicyError, match="'oracle:channel', not 'oracle:moon'"):
        simulate(scenario("oracle:moon"), evaluation=evaluation(), up=flat(5))
    fleet = scenario().model_copy(update={"mode": "fleet"})
    with pytest.raises(ConfigError, match="exact mode only"):
        simulate(fleet, evaluation=evaluation(), up=flat(5))
