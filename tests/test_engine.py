"""The engine's rules, one by one: a list of events in, actions out, a clock that is a number."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
from engine_bench import (
    CLOUD,
    EXIT1,
    EXIT2,
    LOCAL,
    RUN_EXIT1,
    RUN_EXIT2,
    RUN_LOCAL,
    SPLIT,
    Bench,
    Plan,
    only,
)

from splitedge.engine import Engine, EngineSettings
from splitedge.errors import (
    CloudUnavailable,
    ConfigError,
    DeadlineExceeded,
    PolicyError,
    Rejected,
)
from splitedge.events import (
    Answer,
    Arrived,
    BatteryRead,
    Cancelled,
    CancelRemote,
    Fail,
    LinkChanged,
    Refusal,
    Refused,
    Run,
    Send,
    Sent,
    Source,
    Stage,
    StageDone,
    StageKind,
    Tick,
)
from splitedge.policy import Gate, Option, Route
from splitedge.power import PowerModel

# The way of a request -----------------------------------------------------------------------------------


def test_cloud_route_from_arrival_to_record():
    bench = Bench(
        CLOUD, power=PowerModel(compute_w=10.0, j_per_bit_up=1e-6, j_per_bit_down=1e-7, tail_w=1, tail_s=2)
    )
    assert bench.at(1.0, Arrived(7, deadline_s=0.5)) == [Run(7, bench.encode(CLOUD))]
    assert bench.at(1.01, StageDone(7, bench.encode(CLOUD), 0.001, 0.002, nbytes=4000)) == [
        Send(7, 1, 4, pytest.approx(0.49))
    ]
    assert bench.at(1.02, Sent(7, 1, 4000)) == []
    answer = only(bench.replied(1.1, 7), Answer)
    record = answer.record
    assert (answer.request, answer.source) == (7, Source.CLOUD)
    assert (record.planned, record.option, record.route) == (CLOUD.name, CLOUD.name, "cloud")
    assert (record.codec, record.level, record.attempts, record.met) == ("webp", 0, 1, True)
    assert record.latency_s == pytest.approx(0.1)
    assert (record.bytes_up, record.bytes_down) == (4000, 150)
    assert (record.uplink_s, record.queue_s, record.tail_s) == (0.02, 0.001, 0.003)
    bits = 4000 * 8 * 1e-6 + 150 * 8 * 1e-7
    tail = 2.0 + (1.1 - 1.02)  # one wake-up, prolonged by the reply
    assert record.energy_j == pytest.approx(10.0 * 0.003 + bits + tail)
    assert not record.degraded
    assert record.reason == "the plan says cloud/webp:0"
    assert bench.engine.in_flight == 0
    assert bench.policy.learnt == [record]


def test_local_route_runs_the_model_and_answers():
    bench = Bench(LOCAL)
    assert bench.at(0.0, Arrived(1)) == [Run(1, RUN_LOCAL)]
    answer = only(bench.at(0.04, StageDone(1, RUN_LOCAL, 0.04, confidence=0.9)), Answer)
    assert (answer.source, answer.record.confidence, answer.record.degraded) == (Source.LOCAL, 0.9, False)


def test_split_passes_its_exits_and_asks_again_after_each():
    bench = Bench(SPLIT)
    assert bench.at(0.0, Arrived(1, deadline_s=1.0)) == [Run(1, RUN_EXIT1)]
    assert bench.at(0.005, StageDone(1, RUN_EXIT1, 0.005, confidence=0.4)) == [Run(1, RUN_EXIT2)]
    assert bench.at(0.009, StageDone(1, RUN_EXIT2, 0.004, confidence=0.5)) == [Run(1, bench.encode(SPLIT))]
    assert [obs.exit for obs in bench.policy.seen] == [-1, 1, 2]
    assert bench.policy.seen[2].confidence == 0.5
    assert bench.policy.seen[2].sunk_s == pytest.approx(0.009)
    assert isinstance(bench.encoded(0.012, 1, SPLIT)[0], Send)
    assert only(bench.replied(0.05, 1), Answer).record.route == "split"


def test_a_sure_exit_on_the_way_stops_the_request():
    bench = Bench(SPLIT, EXIT1)
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    answer = only(bench.at(0.005, StageDone(1, RUN_EXIT1, 0.005, confidence=0.99)), Answer)
    assert (answer.source, answer.exit) == (Source.EXIT, 1)
    assert not answer.record.degraded
    assert answer.record.planned == SPLIT.name


@pytest.mark.parametrize(
    ("gate", "option", "number"), [(Gate(0.9, nothing=0), "nothing", -1), (Gate(0.9, exit=1), EXIT1.name, 1)]
)
def test_a_filter_that_is_sure_answers_and_nothing_is_sent(gate, option, number):
    gated = replace(SPLIT, gate=gate)
    bench = Bench(gated, options=(gated,), power=PowerModel(j_per_bit_up=1.0, tail_w=1.0, tail_s=1.0))
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    answer = only(bench.at(0.01, StageDone(1, bench.encode(gated), 0.004, 0.002, 0.9, nbytes=900)), Answer)
    assert (answer.source, answer.exit) == (Source.FILTER, -1)
    record = answer.record
    assert (record.planned, record.option, record.route, record.exit) == (gated.name, option, "exit", number)
    assert (record.bytes_up, record.attempts, record.energy_j, record.confidence) == (0, 0, 0.0, 0.9)
    assert record.reason.startswith(f"filtered: {gate.claim}")
    assert record.met and not record.degraded
    assert bench.engine.in_flight == 0 and bench.policy.learnt == [record]


@pytest.mark.parametrize("confidence", [0.89, math.nan])
def test_a_filter_that_is_not_sure_lets_the_payload_go(confidence):
    gated = replace(SPLIT, gate=Gate(0.9, nothing=0))
    bench = Bench(gated, options=(gated,))
    bench.at(0.0, Arrived(1))
    (send,) = bench.at(0.01, StageDone(1, bench.encode(gated), 0.004, 0.002, confidence, nbytes=900))
    assert isinstance(send, Send)


def test_a_filter_does_not_judge_a_route_that_the_caller_forced():
    gated = replace(SPLIT, gate=Gate(0.9, nothing=0))
    bench = Bench(gated, options=(gated,))
    bench.at(0.0, Arrived(1, route=Route.SPLIT))
    (send,) = bench.at(0.01, StageDone(1, bench.encode(gated), 0.004, 0.002, 0.99, nbytes=900))
    assert isinstance(send, Send)


def test_a_filter_answers_without_a_link_where_nothing_else_can():
    gated = replace(SPLIT, gate=Gate(0.9, nothing=0))
    bench = Bench(gated, options=(gated,), up=False)
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    answer = only(bench.at(0.01, StageDone(1, bench.encode(gated), 0.004, 0.002, 0.95, nbytes=900)), Answer)
    assert answer.source is Source.FILTER and not answer.record.degraded


def test_an_exit_decided_at_arrival_is_reconsidered_with_its_confidence():
    bench = Bench(EXIT1, CLOUD)
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    assert bench.at(0.005, StageDone(1, RUN_EXIT1, 0.005, confidence=0.3)) == [Run(1, bench.encode(CLOUD))]


def test_a_cloud_route_passes_no_exit():
    bench = Bench(CLOUD)
    assert bench.at(0.0, Arrived(1)) == [Run(1, bench.encode(CLOUD))]


# Forced routes ------------------------------------------------------------------------------------------


def test_a_forced_route_takes_the_highest_level_that_fits():
    slow = Option(Route.CLOUD, codec="webp", level=2, accuracy=0.95, bytes_up=9e6, bytes_up_q95=9e6)
    fast = Option(Route.CLOUD, codec="webp", level=1, accuracy=0.93, bytes_up=900, bytes_up_q95=900)
    least = Option(Route.CLOUD, codec="webp", level=0, accuracy=0.90, bytes_up=90, bytes_up_q95=90)
    bench = Bench(EXIT1, options=(EXIT1, least, fast, slow))
    run = only(bench.at(0.0, Arrived(1, deadline_s=0.5, route=Route.CLOUD)), Run)
    assert run.stage == bench.encode(fast)
    bench.encoded(0.01, 1, fast)
    record = only(bench.replied(0.05, 1), Answer).record
    assert record.forced
    assert record.reason == "the caller asked for the route 'cloud'"
    assert bench.policy.seen == []


def test_a_forced_exit_is_not_reconsidered():
    bench = Bench(CLOUD)
    bench.at(0.0, Arrived(1, route=Route.EXIT))
    bench.at(0.005, StageDone(1, RUN_EXIT1, 0.005, confidence=0.1))
    answer = only(bench.at(0.01, StageDone(1, RUN_EXIT2, 0.004, confidence=0.2)), Answer)
    assert (answer.exit, answer.record.forced) == (2, True)


def test_a_forced_route_that_is_missing_is_refused_at_once():
    bench = Bench(EXIT1, options=(EXIT1, EXIT2))
    fail = only(bench.at(0.0, Arrived(1, route=Route.CLOUD)), Fail)
    assert isinstance(fail.error, Rejected)
    assert "no route 'cloud'; it has exit" in str(fail.error)


def test_a_forced_remote_route_waits_for_the_link():
    bench = Bench(EXIT1, up=False)
    bench.at(0.0, Arrived(1, deadline_s=1.0, route=Route.CLOUD))
    assert bench.encoded(0.01, 1) == []
    assert isinstance(bench.at(0.2, LinkChanged(True))[0], Send)


# Deadlines ----------------------------------------------------------------------------------------------


def test_the_guard_runs_the_best_exit_that_still_fits_and_the_reply_still_wins():
    bench = Bench(CLOUD)
    bench.at(0.0, Arrived(1, deadline_s=0.08))
    bench.encoded(0.003, 1)
    guard = bench.engine.wake_at
    assert guard == pytest.approx(0.08 - 0.004 - 0.050)  # the local model is the most accurate that fits
    assert bench.at(guard, Tick()) == [Run(1, RUN_LOCAL)]
    assert bench.at(0.07, StageDone(1, RUN_LOCAL, 0.04, confidence=0.8)) == []  # kept in hand
    answer = only(bench.replied(0.073, 1), Answer)
    assert (answer.source, answer.record.degraded) == (Source.CLOUD, False)


def test_of_fall_backs_that_are_as_good_as_each_other_the_faster_runs():
    """Half a point more for ten times the seconds would cost the requests behind more than it gives."""
    slow = replace(EXIT2, exit=3, accuracy=LOCAL.accuracy + 0.005, edge_s=0.4, edge_s_q95=0.4)
    for options, stage in (
        ((LOCAL, slow, CLOUD), RUN_LOCAL),
        ((EXIT1, slow, CLOUD), Stage(StageKind.EXIT, 3)),
    ):
        bench = Bench(CLOUD, options=options)
        bench.at(0.0, Arrived(1, deadline_s=1.0))
        bench.encoded(0.003, 1)
        ((_, run),) = bench.until(0.97)
        assert run == Run(1, stage)


def test_without_a_reply_the_fall_back_answers_before_the_deadline():
    bench = Bench(CLOUD, options=(EXIT1, CLOUD))
    bench.at(0.0, Arrived(1, deadline_s=0.08))
    bench.encoded(0.003, 1)
    assert bench.until(0.071) == [(pytest.approx(0.070), Run(1, RUN_EXIT1))]
    assert bench.at(0.0745, StageDone(1, RUN_EXIT1, 0.0045, confidence=0.8)) == []
    actions = bench.until(1.0)
    (when, answer), (_, cancel) = actions
    assert when == pytest.approx(0.076)
    assert (answer.source, answer.exit, answer.record.degraded, answer.record.met) == (
        Source.EXIT,
        1,
        True,
        True,
    )
    assert answer.record.reason == "the cloud's reply did not arrive within 0.076 s; answered by exit 1"
    assert cancel == CancelRemote(1)
    assert bench.replied(0.09, 1) == []  # too late: ignored


def test_the_guard_begins_early_enough_for_a_shell_that_is_woken_late():
    bench = Bench(CLOUD, options=(EXIT1, CLOUD), guard_slack_s=0.02)
    bench.at(0.0, Arrived(1, deadline_s=0.2))
    bench.encoded(0.003, 1)
    strict = Bench(CLOUD, options=(EXIT1, CLOUD))
    strict.at(0.0, Arrived(1, deadline_s=0.2))
    strict.encoded(0.003, 1)
    assert bench.engine.wake_at == pytest.approx(strict.engine.wake_at - 0.02)
    late = strict.engine.wake_at + 0.004  # 24 ms after the engine asked to be woken
    assert only(bench.at(late, Tick()), Run).stage == RUN_EXIT1
    answer = only(bench.at(late + 0.003, StageDone(1, RUN_EXIT1, 0.003, confidence=0.8)), Answer)
    assert answer.source is Source.EXIT
    assert answer.record.met


def test_a_tight_deadline_gets_the_cheaper_exit():
    bench = Bench(CLOUD)
    bench.at(0.0, Arrived(1, deadline_s=0.012))
    assert bench.engine.wake_at == pytest.approx(0.012 - 0.004 - 0.006)


def test_an_exit_in_hand_needs_no_guard():
    bench = Bench(SPLIT)
    bench.at(0.0, Arrived(1, deadline_s=0.1))
    bench.at(0.005, StageDone(1, RUN_EXIT1, 0.005, confidence=0.6))
    bench.at(0.009, StageDone(1, RUN_EXIT2, 0.004, confidence=0.5))
    bench.encoded(0.012, 1, SPLIT)
    actions = bench.until(1.0)
    assert [type(action) for _, action in actions] == [Answer, CancelRemote]
    assert actions[0][1].exit == 1  # its calibrated confidence is the higher one


def test_no_fall_back_ends_in_deadline_exceeded_at_the_deadline():
    bench = Bench(CLOUD, options=(CLOUD,))
    bench.at(0.0, Arrived(1, deadline_s=0.08))
    bench.encoded(0.003, 1)
    (when, fail), (_, cancel) = bench.until(1.0)
    assert when == pytest.approx(0.08)
    assert isinstance(fail.error, DeadlineExceeded)
    assert "0.080 s" in str(fail.error)
    assert (fail.record.error, fail.record.met) == ("DeadlineExceeded", False)
    assert cancel == CancelRemote(1)


def test_an_event_after_the_limit_ends_the_request_first():
    bench = Bench(CLOUD, options=(CLOUD,))
    bench.at(0.0, Arrived(1, deadline_s=0.08))
    bench.encoded(0.003, 1)
    actions = bench.replied(0.2, 1)  # the shell was busy and its tick is late
    assert isinstance(only(actions, Fail).error, DeadlineExceeded)


def test_a_deadline_in_the_past_is_refused():
    bench = Bench()
    for request, deadline in enumerate((0.0, -1.0, math.nan)):
        assert isinstance(
            only(bench.at(0.0, Arrived(request, deadline_s=deadline)), Fail).error, DeadlineExceeded
        )


def test_without_a_deadline_the_device_answers_after_a_while():
    bench = Bench(CLOUD, options=(EXIT1, CLOUD), patience_s=1.0, overdue_min_s=10.0)
    bench.at(0.0, Arrived(1))
    bench.encoded(0.003, 1)
    (run_at, run), *_ = bench.until(0.999)
    assert run == Run(1, RUN_EXIT1)
    bench.at(run_at + 0.005, StageDone(1, RUN_EXIT1, 0.005, confidence=0.8))
    answer = only([action for _, action in bench.until(30.0)], Answer)
    assert answer.record.latency_s == pytest.approx(1.0, abs=0.01)
    assert answer.record.met


def test_without_a_deadline_and_a_fall_back_the_default_timeout_rules():
    bench = Bench(CLOUD, options=(CLOUD,), up=False, default_timeout_s=5.0)
    bench.at(0.0, Arrived(1))
    assert bench.encoded(0.003, 1) == []
    ((when, fail),) = bench.until(60.0)
    assert when == pytest.approx(5.0)
    assert isinstance(fail.error, CloudUnavailable)
    assert "never connected" in str(fail.error)


# The device computes one thing at a time ----------------------------------------------------------------


def test_one_stage_at_a_time_and_the_earliest_deadline_first():
    bench = Bench(LOCAL)
    assert bench.at(0.0, Arrived(1, deadline_s=1.0)) == [Run(1, RUN_LOCAL)]
    assert bench.at(0.001, Arrived(2, deadline_s=5.0)) == []
    assert bench.at(0.002, Arrived(3, deadline_s=0.5)) == []
    assert bench.at(0.04, StageDone(1, RUN_LOCAL, 0.04))[-1] == Run(3, RUN_LOCAL)
    assert bench.at(0.08, StageDone(3, RUN_LOCAL, 0.04))[-1] == Run(2, RUN_LOCAL)


def test_the_queue_is_in_the_observation():
    bench = Bench(LOCAL)
    for request in range(3):
        bench.at(0.01, Arrived(request, deadline_s=1.0))
    waits = [obs.edge_wait_s for obs in bench.policy.seen]
    assert waits == pytest.approx([0.0, 0.04, 0.08])


def test_an_urgent_fall_back_overtakes_the_queue():
    bench = Bench(CLOUD, LOCAL, options=(EXIT1, LOCAL, CLOUD))
    bench.at(0.0, Arrived(1, deadline_s=0.5))
    bench.encoded(0.003, 1)
    bench.at(0.01, Arrived(2, deadline_s=0.4))
    bench.at(0.01, Arrived(3, deadline_s=0.45))
    bench.at(0.02, Refused(1, 1, Refusal.FAILED, "no"))
    assert bench.at(0.05, StageDone(2, RUN_LOCAL, 0.04))[-1].request == 1


def test_the_stage_of_an_ended_request_keeps_its_slot_until_reported():
    bench = Bench(LOCAL)
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    bench.at(0.01, Cancelled(1))
    assert bench.at(0.02, Arrived(2, deadline_s=1.0)) == []
    assert bench.at(0.04, StageDone(1, RUN_LOCAL, 0.04)) == [Run(2, RUN_LOCAL)]


def test_stages_nobody_ordered_are_ignored():
    bench = Bench(LOCAL)
    assert bench.at(0.0, StageDone(5, RUN_LOCAL, 0.04)) == []
    bench.at(0.0, Arrived(1))
    assert bench.at(0.0, StageDone(1, RUN_EXIT1, 0.04)) == []


# Set-up -------------------------------------------------------------------------------------------------


def test_battery_and_estimates_reach_the_policy_and_the_record():
    bench = Bench(LOCAL)
    bench.at(0.0, BatteryRead(0.42))
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    obs = bench.policy.seen[0]
    assert (obs.battery, obs.deadline_s, obs.rows) == (0.42, pytest.approx(1.0 - 0.004), 1)
    record = only(bench.at(0.04, StageDone(1, RUN_LOCAL, 0.04)), Answer).record
    assert (record.battery, record.goodput_bps) == (0.42, obs.goodput.mean)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "at least one option"),
        ((Option(Route.EXIT),), "without a number"),
        ((Option(Route.ASSIST),), "can not carry out"),
        ((EXIT1, EXIT1), "same exit"),
    ],
)
def test_options_that_can_not_be_carried_out(options, message):
    with pytest.raises(ConfigError, match=message):
        Engine(options, Plan(LOCAL))


def test_the_policy_is_checked_against_the_deployment():
    class Needy(Plan):
        needs = frozenset({Route.CLOUD})

    with pytest.raises(PolicyError, match="needs the route"):
        Engine((EXIT1,), Needy(EXIT1))


def test_unknown_settings_are_refused():
    with pytest.raises(ValueError, match="marginn_s"):
        EngineSettings(marginn_s=1.0)
