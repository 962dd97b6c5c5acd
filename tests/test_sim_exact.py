"""Exact mode: the engine's records by hand, invariants, cuts, outages, the cloud's limits."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_world import CLOUD, EXIT, LOCAL, SPLIT, TABLE, evaluation, flat, scenario

from splitedge.engine import Engine, EngineSettings
from splitedge.estimate import ClockOffset
from splitedge.events import (
    Answer,
    Arrived,
    LinkChanged,
    Replied,
    Run,
    Send,
    Sent,
    Stage,
    StageDone,
    StageKind,
)
from splitedge.policies.static import Static
from splitedge.policy import Gate
from splitedge.power import power_profile
from splitedge.record import Record
from splitedge.sim.cloud import SimCloud
from splitedge.sim.curves import Rates
from splitedge.sim.edge import Edge
from splitedge.sim.exact import run_exact
from splitedge.sim.synth import lte_like
from splitedge.sim.traces import Trace

FIXED = tuple(
    replace(option, edge_s_q95=option.edge_s, cloud_s_q95=option.cloud_s) for option in (LOCAL, CLOUD)
)


def run(answers=None, up=None, policy=None, **tables):
    up = up or flat()
    if isinstance(policy, str):
        tables["policy"], policy = policy, None
    return run_exact(scenario(**tables), answers or evaluation(), up, up, policy=policy)


def test_a_run_is_what_a_hand_written_list_of_events_gives():
    """8 Mbit/s are 1 us a byte, 40 ms of RTT are 20 ms each way; seconds do not vary."""
    answers = evaluation(FIXED)
    simulated = run(
        answers,
        policy=Static("cloud"),
        work={"requests": 3, "rate_hz": 2.0},
        device={"power": "phone-lte"},
        engine={"ping_interval_s": 0.0},
        reasons=True,
    )
    limits = EngineSettings(ping_interval_s=0.0)
    engine = Engine(FIXED, Static("cloud"), settings=limits, power=power_profile("phone-lte"))
    engine.step(0.0, LinkChanged(True, "connected"))
    clocks = ClockOffset()
    encode, byte_s, way_s = Stage(StageKind.ENCODE, 1), 1e-6, 0.020
    for i, t in enumerate((0.0, 0.5, 1.0)):
        row = simulated["row"][i]
        nbytes, sure = int(answers.nbytes[1][row]), answers.confidence[1][row]
        assert engine.step(t, Arrived(i + 1, 1, 0.15)) == [Run(i + 1, encode)]
        ready = t + 0.002
        (send,) = engine.step(ready, StageDone(i + 1, encode, 0.0, 0.002, nbytes=nbytes))
        assert send == Send(i + 1, 1, 1, pytest.approx(0.148))
        assert engine.step(ready, Sent(i + 1, 1, nbytes)) == []
        at_cloud = ready + byte_s * nbytes + way_s
        done = at_cloud + 0.012
        replied = done + byte_s * 120 + way_s
        clocks.observe(ready, at_cloud, done, replied)
        ways = clocks.one_way(ready, at_cloud, done, replied)
        reply = Replied(i + 1, 1, *ways, 0.0, 0.0, 0.012, 120, sure)
        (answer,) = engine.step(replied, reply)
        assert isinstance(answer, Answer)
        for name in Record.__slots__:
            ours, theirs = simulated[name][i], getattr(answer.record, name)
            if isinstance(theirs, float):
                assert ours == pytest.approx(theirs, rel=1e-5, abs=1e-6, nan_ok=True), name
            else:
                assert ours == theirs, name


def test_the_same_seed_gives_the_same_rows_and_another_does_not():
    tables = {"work": {"requests": 300, "arrivals": "poisson"}, "device": {"count": 2}}
    first, again = run(up=lte_like(60, 1), seed=3, **tables), run(up=lte_like(60, 1), seed=3, **tables)
    other = run(up=lte_like(60, 1), seed=4, **tables)
    for name in first.columns:
        assert np.array_equal(first[name], again[name], equal_nan=first[name].dtype.kind == "f"), name
    assert not np.array_equal(first["t_s"], other["t_s"])
    assert not np.array_equal(first["row"], other["row"])


def test_another_policy_meets_the_same_requests():
    one = run(up=lte_like(60, 1), policy=Static("split"), work={"arrivals": "poisson"})
    other = run(up=lte_like(60, 1), policy=Static("local"), work={"arrivals": "poisson"})
    assert np.array_equal(one["t_s"], other["t_s"]) and np.array_equal(one["row"], other["row"])


def worlds():
    """Scenarios from idle to hopeless, with cuts, many devices, short deadlines, slow clouds."""
    cut = st.tuples(st.floats(0, 3), st.floats(0.05, 3)).map(lambda pair: (pair[0], pair[0] + pair[1]))
    return st.fixed_dictionaries(
        {
            "policy": st.sampled_from(["deadline", "latency", "confidence", "static:split", "static:cloud"]),
            "seed": st.integers(0, 5),
            "channel": st.fixed_dictionaries(
                {"cuts": st.lists(cut, max_size=2).map(tuple), "rtt_ms": st.floats(0, 200)}
            ),
            "device": st.fixed_dictionaries(
                {"count": st.integers(1, 4), "shared_cell": st.booleans(), "slower": st.floats(0.1, 5)}
            ),
            "cloud": st.fixed_dictionaries(
                {
                    "slower": st.floats(0.1, 20),
                    "executors": st.integers(1, 3),
                    "max_rows": st.integers(1, 8),
                    "max_wait_ms": st.sampled_from([0.0, 5.0]),
                    "queue_requests": st.sampled_from([1, 4, 1024]),
                }
            ),
            "work": st.fixed_dictionaries(
                {
                    "requests": st.integers(1, 60),
                    "rate_hz": st.floats(2, 100),
                    "deadline_ms": st.sampled_from([None, 20.0, 150.0, 1000.0]),
                    "arrivals": st.sampled_from(["fixed", "poisson"]),
                }
            ),
            "shell": st.sampled_from(
                [{}, {"stage_ms": 0.2, "send_ms": 0.3, "receive_ms": 0.1, "cloud_ms": 0.5}]
            ),
        }
    )


@settings(max_examples=60, deadline=None)
@given(tables=worlds(), mbps=st.floats(0.05, 50))
def test_every_request_ends_once_and_the_columns_add_up(tables, mbps):
    answers = evaluation()
    started = []
    taken = SimCloud._start

    def watch(cloud, now, now_ns, works):
        assert len(works) <= tables["cloud"]["max_rows"]
        assert len({job.lane for job in works}) == 1
        started.extend((job.session.account, job.request) for job in works)
        taken(cloud, now, now_ns, works)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SimCloud, "_start", watch)
        found = run(answers, up=flat(mbps), **tables)

    work, count = tables["work"], tables["device"]["count"]
    assert len(found) == work["requests"] * count
    assert len(set(zip(found["device"].tolist(), found["request"].tolist(), strict=True))) == len(found)
    assert np.all(np.diff(found["t_s"]) >= 0.0)
    assert len(set(started)) == len(started), "at most one execution of a request"

    answered = found["error"] == ""
    assert np.all((found["route"] != "") == answered)
    assert not np.any(found["right"] & ~answered)
    assert np.array_equal(found["met"], answered & (found["latency_s"] <= found["deadline_s"]))
    assert np.all(found["latency_s"] >= 0.0)
    limit = 30.0 if work["deadline_ms"] is None else work["deadline_ms"] / 1e3
    assert np.all(found["latency_s"] <= limit + 1e-9)

    names = [option.name for option in TABLE]
    for i in np.flatnonzero(answered):
        option, row = names.index(found["option"][i]), found["row"][i]
        assert found["right"][i] == answers.correct[option, row]
        assert found["confidence"][i] == answers.confidence[option, row]
        if TABLE[option].remote:
            assert found["bytes_up"][i] >= answers.nbytes[option, row]
            assert found["bytes_down"][i] == TABLE[option].bytes_down
            sending_s = 8 * answers.nbytes[option, row] / (mbps * 1e6)
            assert found["latency_s"][i] >= tables["channel"]["rtt_ms"] / 1e3 + sending_s - 1e-6
    never_sent = found["attempts"] == 0
    assert np.all(found["bytes_up"][never_sent] == 0)
    assert np.all(found["energy_j"] == 0.0)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 50), count=st.integers(1, 3))
def test_a_shared_cell_delivers_in_the_order_of_sending(seed, count):
    sent, taken = [], []
    transmit, infer = Edge._send, SimCloud.infer

    def sending(edge, now, action):
        sent.append((edge.index, action.request, action.attempt))
        transmit(edge, now, action)

    def taking(cloud, now, session, connection, request, attempt, *rest):
        taken.append((int.from_bytes(session.account, "big"), request, attempt))
        infer(cloud, now, session, connection, request, attempt, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Edge, "_send", sending)
        patch.setattr(SimCloud, "infer", taking)
        run(
            up=lte_like(20, seed), policy=Static("split"), seed=seed,
            device={"count": count, "shared_cell": True}, work={"requests": 50, "arrivals": "poisson"},
        )  # fmt: skip
    left = iter(sent)  # some are lost with a connection that a long outage ends
    assert all(message in left for message in taken) and len(taken) > 10


def test_a_cut_is_answered_from_the_device_and_the_link_comes_back():
    found = run(
        policy=Static("split"),
        channel={"cuts": ((2.0, 3.0),)},
        work={"requests": 200, "rate_hz": 20.0},
    )
    t, split = found["t_s"], found["route"] == "split"
    assert np.all(found["met"])
    assert np.all(split[(t < 1.8) | (t > 3.5)])
    assert not np.any(split[(t > 1.95) & (t < 3.0)])
    assert np.all(found["degraded"] == ~split)


def test_a_dead_channel_is_noticed_by_heartbeats_and_by_late_replies():
    """Nothing is carried after 1 s: the connection is up as far as TCP knows."""
    bits = Rates(np.array([0.0, 1.0]), np.array([8e6, 0.0]), 30.0)
    dead = Trace("dead after 1 s", "synthetic", bits, bits)
    found = run(up=dead, policy=Static("split"), work={"requests": 200, "rate_hz": 20.0}, reasons=True)
    late = found["t_s"] > 1.0
    assert np.all(found["met"]) and not np.any(found["route"][late] == "split")
    assert np.any(found["attempts"][late] > 0) and found["attempts"][-1] == 0
    assert any("nothing came from the cloud" in why for why in found["reason"][late])


def test_without_a_fall_back_a_full_cloud_says_busy():
    alone = (SPLIT,)
    found = run(
        evaluation(alone), policy=Static("split"), device={"count": 8},
        cloud={"slower": 50.0, "queue_requests": 1}, work={"requests": 20, "deadline_ms": 2000.0},
    )  # fmt: skip
    assert set(found["error"]) == {"", "CloudBusy"} and found.score().routes["error"] > 100


def test_executors_share_the_load_and_batches_save_what_per_row_says():
    def p95(**cloud):
        found = run(
            evaluation((SPLIT,)), policy=Static("split"),
            device={"count": 10}, cloud={"slower": 3.0, **cloud},
            work={"requests": 100, "deadline_ms": None, "arrivals": "poisson", "rate_hz": 4.0},
        )  # fmt: skip
        return found.score().p95_s

    alone = p95()
    assert p95(executors=4) < 0.8 * alone
    assert p95(per_row=0.0) < 0.8 * alone


def test_a_slower_device_and_its_shell_take_longer():
    tables = {"policy": Static("local"), "work": {"requests": 50, "rate_hz": 2.0, "deadline_ms": None}}
    quick, slow = run(**tables), run(**tables, device={"slower": 3.0})
    shell = run(**tables, shell={"stage_ms": 4.0})
    assert slow["head_s"] == pytest.approx(3.0 * quick["head_s"])
    assert shell["latency_s"] == pytest.approx(quick["latency_s"] + 0.004)
    assert shell["head_s"] == pytest.approx(quick["head_s"])


def test_stages_of_a_request_sum_up_to_the_option_they_lead_to():
    """The way to a split passes the exit: the exit's seconds are part of the split's."""
    passed = run(policy=Static("split"), work={"requests": 400, "rate_hz": 5.0})
    split = passed["route"] == "split"
    assert np.mean(passed["head_s"][split]) == pytest.approx(SPLIT.edge_s, rel=0.02)
    assert np.quantile(passed["head_s"][split], 0.95) == pytest.approx(SPLIT.edge_s_q95, rel=0.03)


def test_a_battery_drains_is_read_and_ends_the_device():
    part = {"power": "phone-lte", "battery_j": 40.0, "battery_interval_s": 1.0}
    found = run(policy=Static("local"), device=part, work={"requests": 1000, "rate_hz": 20.0})
    battery = found["battery"][~np.isnan(found["battery"])]
    assert np.all(np.diff(battery) <= 0.0) and battery[0] > 0.8
    dead = found["error"] == "Rejected"
    assert np.any(dead) and np.all(dead[np.argmax(dead) :])
    lived = found["t_s"][~dead].max()
    # idle 1 W, the radio's first tail of pings and 2.5 W of compute for 40 ms, 20 times a second
    spent = 1.0 * lived + found["energy_j"][~dead].sum()
    assert spent < 40.0 and spent > 20.0


def test_a_filter_keeps_its_rows_from_being_sent():
    gated = replace(SPLIT, gate=Gate(threshold=0.9, nothing=0))
    answers = evaluation((EXIT, gated))
    kept = answers.confidence[1] >= 0.9
    answers.nbytes[1][kept] = 0.0
    found = run(answers, policy=Static("split"), work={"requests": 200, "rate_hz": 5.0})
    filtered = found["option"] == "nothing"
    assert np.array_equal(filtered, kept[found["row"]])
    assert np.all(found["bytes_up"][filtered] == 0) and np.any(filtered) and not np.all(filtered)
    assert np.array_equal(found["right"], answers.correct[1][found["row"]])
