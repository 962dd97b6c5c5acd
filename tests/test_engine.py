"""The engine's rules, one by one: a list of events in, actions out, a clock that is a number."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from splitedge.engine import Engine, EngineSettings
from splitedge.errors import (
    CloudBusy,
    CloudFailed,
    CloudUnavailable,
    ConfigError,
    DeadlineExceeded,
    EdgeFailed,
    PolicyError,
    Rejected,
    RequestCancelled,
    SplitedgeError,
)
from splitedge.events import (
    Answer,
    Arrived,
    BatteryRead,
    Cancelled,
    CancelRemote,
    Draining,
    Fail,
    LinkChanged,
    Ping,
    Ponged,
    Refusal,
    Refused,
    Replied,
    Run,
    Send,
    SendFailed,
    Sent,
    Source,
    Stage,
    StageDone,
    StageFailed,
    StageKind,
    Tick,
)
from splitedge.policy import Decision, Option, Policy, Route
from splitedge.power import PowerModel

EXIT1 = Option(Route.EXIT, exit=1, accuracy=0.7, edge_s=0.005, edge_s_q95=0.006)
EXIT2 = Option(Route.EXIT, exit=2, accuracy=0.8, edge_s=0.009, edge_s_q95=0.010)
LOCAL = Option(Route.LOCAL, accuracy=0.85, edge_s=0.040, edge_s_q95=0.050)
SPLIT = Option(
    Route.SPLIT, cut="b", codec="int8", accuracy=0.93, edge_s=0.012, edge_s_q95=0.014, bytes_up=900
)
CLOUD = Option(Route.CLOUD, codec="webp", accuracy=0.92, edge_s=0.002, edge_s_q95=0.003, bytes_up=4000)
TABLE = (EXIT1, EXIT2, LOCAL, SPLIT, CLOUD)
RUN_EXIT1, RUN_EXIT2, RUN_LOCAL = Stage(StageKind.EXIT, 1), Stage(StageKind.EXIT, 2), Stage(StageKind.LOCAL)


class Plan(Policy):
    """Takes the options listed, one decision after the other, the last one for ever."""

    name = "plan"

    def __init__(self, *options):
        self.options = list(options)
        self.seen = []
        self.learnt = []

    def decide(self, obs):
        self.seen.append(obs)
        wanted = self.options.pop(0) if len(self.options) > 1 else self.options[0]
        return Decision(obs.options.index(wanted))

    def explain(self, obs, decision):
        return f"the plan says {obs.options[decision.option].name}"

    def learn(self, record):
        self.learnt.append(record)


class Bench:
    """An engine with its invariants checked after each step."""

    def __init__(self, *plan, options=TABLE, up=True, power=None, **limits):
        self.policy = Plan(*(plan or (CLOUD,)))
        limits = {"ping_interval_s": 0.0, "margin_s": 0.004, **limits}
        self.engine = Engine(options, self.policy, settings=EngineSettings(**limits), power=power)
        self.options = options
        self.now = 0.0
        if up:
            self.at(0.0, LinkChanged(True))

    def at(self, now, event):
        self.now = now
        actions = self.engine.step(now, event)
        self.engine.validate()
        return actions

    def until(self, now):
        """Tick whenever the engine wants it until `now`; all actions, with their time."""
        seen = []
        while self.engine.wake_at <= now:
            seen += [(self.now, action) for action in self.at(self.engine.wake_at, Tick())]
        return seen

    def encode(self, option):
        return Stage(StageKind.ENCODE, self.options.index(option))

    def encoded(self, now, request, option=CLOUD, nbytes=4000):
        return self.at(now, StageDone(request, self.encode(option), 0.0, 0.002, nbytes=nbytes))

    def replied(self, now, request, attempt=1):
        return self.at(now, Replied(request, attempt, 0.02, 0.01, 0.001, 0.002, 0.003, 150, 0.97))


def only(actions, kind):
    found = [action for action in actions if isinstance(action, kind)]
    assert len(found) == 1, actions
    return found[0]


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


# Retries ------------------------------------------------------------------------------------------------


def test_a_failed_sending_is_repeated_with_backoff_and_the_same_id():
    bench = Bench(CLOUD, retry_base_s=0.02, retry_jitter=0.5, breaker_failures=10)
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    bench.encoded(0.003, 1)
    assert bench.at(0.004, SendFailed(1, 1, "no connection")) == []
    ((when, send),) = bench.until(0.03)
    assert send == Send(1, 2, 4, pytest.approx(1.0 - when))
    assert 0.004 + 0.01 <= when <= 0.004 + 0.02
    bench.at(when, SendFailed(1, 2, "no connection"))
    ((later, send),) = bench.until(0.1)
    assert 0.02 <= later - when <= 0.04
    assert send.attempt == 3
    assert only(bench.replied(0.2, 1, attempt=3), Answer).record.attempts == 3


def test_attempts_are_bounded_and_then_the_exit_answers():
    bench = Bench(CLOUD, options=(EXIT1, CLOUD), max_attempts=2, breaker_failures=10)
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    bench.encoded(0.003, 1)
    bench.at(0.004, SendFailed(1, 1, "no room"))
    bench.until(0.05)
    assert bench.at(0.06, SendFailed(1, 2, "no room")) == [Run(1, RUN_EXIT1)]
    answer = only(bench.at(0.065, StageDone(1, RUN_EXIT1, 0.005, confidence=0.7)), Answer)
    assert answer.record.degraded
    assert "sending failed: no room" in answer.record.reason


def test_attempts_used_up_without_a_fall_back_is_cloud_unavailable():
    bench = Bench(CLOUD, options=(CLOUD,), max_attempts=1)
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    bench.encoded(0.003, 1)
    assert isinstance(only(bench.at(0.004, SendFailed(1, 1, "no room")), Fail).error, CloudUnavailable)


def test_a_connection_lost_and_found_repeats_the_sending():
    bench = Bench(CLOUD)
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    bench.encoded(0.003, 1)
    assert bench.at(0.01, LinkChanged(False, "reset by peer")) == []
    assert bench.at(0.05, LinkChanged(True)) == [Send(1, 2, 4, pytest.approx(0.95))]
    assert only(bench.replied(0.08, 1, attempt=1), Answer).record.attempts == 2  # of either sending


def test_busy_is_retried_when_the_cloud_says_so():
    bench = Bench(CLOUD)
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    bench.encoded(0.003, 1)
    bench.at(0.02, Refused(1, 1, Refusal.BUSY, "queue full", retry_after_s=0.1))
    ((when, send),) = bench.until(0.2)
    assert (when, send.attempt) == (pytest.approx(0.12), 2)


def test_busy_without_time_left_falls_back_at_once():
    bench = Bench(CLOUD, options=(EXIT1, CLOUD))
    bench.at(0.0, Arrived(1, deadline_s=0.1))
    bench.encoded(0.003, 1)
    assert bench.at(0.02, Refused(1, 1, Refusal.BUSY, "queue full", retry_after_s=0.5)) == [Run(1, RUN_EXIT1)]


def test_busy_without_time_left_and_fall_back_is_cloud_busy():
    bench = Bench(CLOUD, options=(CLOUD,))
    bench.at(0.0, Arrived(1, deadline_s=0.1))
    bench.encoded(0.003, 1)
    fail = only(bench.at(0.02, Refused(1, 1, Refusal.BUSY, "queue full", retry_after_s=0.5)), Fail)
    assert isinstance(fail.error, CloudBusy)
    assert fail.error.retry_after_s == 0.5


def test_an_overdue_reply_is_asked_for_again_with_growing_patience():
    bench = Bench(
        CLOUD, options=(CLOUD,), overdue_min_s=1.0, overdue_factor=1.0, max_attempts=3, breaker_failures=9
    )
    bench.at(0.0, Arrived(1, deadline_s=20.0))
    bench.encoded(0.0, 1)
    sends = [(when, action.attempt) for when, action in bench.until(19.0)]
    assert sends == [(pytest.approx(1.0), 2), (pytest.approx(3.0), 3)]


@pytest.mark.parametrize("kind", [Refusal.FAILED, Refusal.UNKNOWN, Refusal.BAD])
def test_a_final_refusal_falls_back_or_is_cloud_failed(kind):
    for options, expected in (((EXIT1, CLOUD), Run), ((CLOUD,), Fail)):
        bench = Bench(CLOUD, options=options)
        bench.at(0.0, Arrived(1, deadline_s=1.0))
        bench.encoded(0.003, 1)
        action = only(bench.at(0.02, Refused(1, 1, kind, "tail raised")), expected)
        if isinstance(action, Fail):
            assert isinstance(action.error, CloudFailed)
            assert "tail raised" in str(action.error)


def test_after_a_refusal_the_best_that_fits_answers_not_only_what_is_in_hand():
    bench = Bench(SPLIT)
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    bench.at(0.005, StageDone(1, RUN_EXIT1, 0.005, confidence=0.4))
    bench.at(0.009, StageDone(1, RUN_EXIT2, 0.004, confidence=0.5))
    bench.encoded(0.012, 1, SPLIT)
    assert bench.at(0.03, Refused(1, 1, Refusal.FAILED, "no")) == [Run(1, RUN_LOCAL)]
    answer = only(bench.at(0.07, StageDone(1, RUN_LOCAL, 0.04, confidence=0.9)), Answer)
    assert (answer.source, answer.record.degraded) == (Source.LOCAL, True)


def test_expired_in_the_cloud_is_deadline_exceeded():
    bench = Bench(CLOUD, options=(CLOUD,))
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    bench.encoded(0.003, 1)
    fail = only(bench.at(0.5, Refused(1, 1, Refusal.EXPIRED, "late")), Fail)
    assert isinstance(fail.error, DeadlineExceeded)


def test_duplicate_late_and_foreign_replies_are_ignored():
    bench = Bench(CLOUD)
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    bench.encoded(0.003, 1)
    assert bench.replied(0.05, 1, attempt=9) == []  # an attempt never made
    assert bench.replied(0.05, 99) == []  # a request never made
    only(bench.replied(0.06, 1), Answer)
    assert bench.replied(0.07, 1) == []
    assert bench.at(0.08, Refused(1, 1, Refusal.FAILED, "late")) == []


# The circuit breaker and pings --------------------------------------------------------------------------


def timeouts(bench, count, start=1.0):
    """Requests that the cloud never answers."""
    for i in range(count):
        begin = start + i
        bench.at(begin, Arrived(1000 + i, deadline_s=0.1))
        bench.encoded(begin + 0.003, 1000 + i)
        for when, action in bench.until(begin + 0.091):
            if isinstance(action, Run):
                bench.at(when + 0.003, StageDone(1000 + i, RUN_EXIT1, 0.003, confidence=0.8))
        bench.until(begin + 0.5)
    assert bench.engine.in_flight == 0


def test_timeouts_open_the_circuit_and_requests_stay_on_the_device():
    bench = Bench(CLOUD, options=(EXIT1, CLOUD), breaker_failures=3, probe_base_s=5.0)
    timeouts(bench, 3)
    assert bench.engine.circuit == "open"
    assert bench.at(4.0, Arrived(1, deadline_s=1.0)) == [Run(1, RUN_EXIT1)]
    assert not bench.policy.seen[-1].link_up
    answer = only(bench.at(4.005, StageDone(1, RUN_EXIT1, 0.005, confidence=0.8)), Answer)
    assert answer.record.degraded
    assert answer.record.reason == "the circuit to the cloud is open after 3 failures; answered by exit 1"


def test_the_circuit_probes_with_backoff_and_closes_on_a_pong():
    bench = Bench(
        CLOUD,
        options=(EXIT1, CLOUD),
        breaker_failures=1,
        probe_base_s=1.0,
        probe_max_s=3.0,
        ping_timeout_s=0.5,
    )
    timeouts(bench, 1, start=0.0)  # opens at 0.096
    pings = [when for when, action in bench.until(13.0) if isinstance(action, Ping)]
    steps = [later - earlier for earlier, later in zip([0.096, *pings], pings, strict=False)]
    assert steps == pytest.approx([1.0, 2.5, 3.5, 3.5])
    assert bench.engine.circuit in ("open", "half-open")
    bench.at(13.1, Ponged(0.02))
    assert (bench.engine.circuit, bench.engine.link_up) == ("closed", True)


def test_while_the_circuit_is_open_a_request_without_local_option_waits_for_it():
    bench = Bench(CLOUD, options=(CLOUD,), breaker_failures=1, probe_base_s=0.2)
    bench.at(0.0, Arrived(1, deadline_s=0.1))
    bench.encoded(0.003, 1)
    bench.until(0.1)
    assert bench.engine.circuit == "open"
    bench.at(0.15, Arrived(2, deadline_s=5.0))
    assert bench.encoded(0.16, 2) == []
    assert [action for _, action in bench.until(0.4)] == [Ping()]
    assert bench.at(0.45, Ponged(0.02)) == [Send(2, 1, 0, pytest.approx(4.7))]


def test_a_late_reply_is_a_sign_of_life():
    bench = Bench(CLOUD, options=(EXIT1, CLOUD), breaker_failures=1)
    timeouts(bench, 1)
    assert not bench.engine.link_up
    before = bench.engine.link.goodput(1.6).mean
    assert bench.at(1.6, Replied(1000, 1, 0.9, 0.01, 0.0, 0.0, 0.0, 100)) == []
    assert bench.engine.circuit == "closed"
    assert bench.engine.link.goodput(1.6).mean != before  # it teaches the estimator too


def test_the_cloud_being_alive_excuses_a_missed_deadline():
    bench = Bench(CLOUD, options=(EXIT1, CLOUD), breaker_failures=1)
    bench.at(0.0, Arrived(1, deadline_s=0.1))
    bench.encoded(0.003, 1)
    bench.at(0.05, Ponged(0.02))
    bench.until(0.2)
    assert bench.engine.circuit == "closed"


def test_reconnecting_probes_an_open_circuit_at_once():
    bench = Bench(CLOUD, breaker_failures=1, probe_base_s=60.0, probe_max_s=60.0)
    bench.at(0.0, LinkChanged(False, "gone"))
    assert bench.engine.circuit == "open"
    assert bench.at(1.0, LinkChanged(True)) == [Ping()]
    assert not bench.engine.link_up
    bench.at(1.02, Ponged(0.02))
    assert bench.engine.link_up


def test_an_idle_link_is_pinged_less_and_less():
    bench = Bench(ping_interval_s=1.0, ping_idle_max_s=8.0)  # the first ping follows the connection
    pings = []
    bench.at(0.02, Ponged(0.02))
    while bench.engine.wake_at < 40.0:
        if any(isinstance(action, Ping) for action in bench.at(bench.engine.wake_at, Tick())):
            pings.append(bench.now)
            bench.at(bench.now + 0.02, Ponged(0.02))
    gaps = [later - earlier for earlier, later in pairwise(pings)]
    assert gaps == pytest.approx([2.0, 4.0, 8.0, 8.0, 8.0, 8.0])
    bench.at(40.0, Arrived(1))
    assert bench.engine.wake_at == pytest.approx(41.0)


# Failing devices, policies, callers ---------------------------------------------------------------------


def test_a_failed_exit_on_the_way_is_left_out():
    bench = Bench(SPLIT)
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    assert bench.at(0.005, StageFailed(1, RUN_EXIT1, "boom")) == [Run(1, RUN_EXIT2)]


def test_a_failed_local_model_falls_back_to_an_exit():
    bench = Bench(LOCAL)
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    assert bench.at(0.01, StageFailed(1, RUN_LOCAL, "boom")) == [Run(1, RUN_EXIT2)]
    answer = only(bench.at(0.02, StageDone(1, RUN_EXIT2, 0.01, confidence=0.8)), Answer)
    assert answer.record.reason == "the device failed at the local model: boom; answered by exit 2"


def test_everything_failing_is_edge_failed():
    bench = Bench(EXIT1, options=(EXIT1,))
    bench.at(0.0, Arrived(1))
    fail = only(bench.at(0.01, StageFailed(1, RUN_EXIT1, "boom")), Fail)
    assert isinstance(fail.error, EdgeFailed)
    assert "exit 1: boom" in str(fail.error)


def test_a_failed_guard_tries_the_next_best():
    bench = Bench(CLOUD)
    bench.at(0.0, Arrived(1, deadline_s=0.2))
    bench.encoded(0.003, 1)
    ((when, run),) = bench.until(0.15)
    assert run == Run(1, RUN_LOCAL)
    assert bench.at(when + 0.01, StageFailed(1, RUN_LOCAL, "boom")) == [Run(1, RUN_EXIT2)]


def test_a_policy_that_fails_is_replaced_and_said_so():
    class Broken(Policy):
        name = "broken"

        def decide(self, obs):
            return Decision(99)

        def explain(self, obs, decision):
            return ""

    engine = Engine((EXIT1, CLOUD), Broken())
    assert engine.step(0.0, Arrived(1)) == [Run(1, RUN_EXIT1)]
    answer = only(engine.step(0.01, StageDone(1, RUN_EXIT1, 0.005, confidence=0.7)), Answer)
    assert answer.record.degraded
    assert answer.record.reason == "policy 'broken' failed (it chose option 99 of 2); answered by exit 1"


def test_a_caller_who_leaves_frees_everything():
    bench = Bench(CLOUD)
    bench.at(0.0, Arrived(1, deadline_s=1.0))
    bench.encoded(0.003, 1)
    fail, cancel = bench.at(0.01, Cancelled(1))
    assert isinstance(fail.error, RequestCancelled)
    assert cancel == CancelRemote(1)
    assert bench.engine.in_flight == 0
    assert bench.at(0.02, Cancelled(1)) == []


def test_draining_refuses_new_requests_and_ends_the_old():
    bench = Bench(LOCAL)
    bench.at(0.0, Arrived(1))
    bench.at(0.01, Draining())
    assert isinstance(only(bench.at(0.02, Arrived(2)), Fail).error, Rejected)
    only(bench.at(0.04, StageDone(1, RUN_LOCAL, 0.04)), Answer)
    assert bench.engine.in_flight == 0


def test_more_than_max_in_flight_is_rejected():
    bench = Bench(CLOUD, max_in_flight=2)
    for request in (1, 2):
        assert not any(isinstance(a, Fail) for a in bench.at(0.0, Arrived(request)))
    fail = only(bench.at(0.0, Arrived(3)), Fail)
    assert isinstance(fail.error, Rejected)
    assert "2 requests" in str(fail.error)


def test_an_id_in_use_is_an_error():
    bench = Bench(CLOUD)
    bench.at(0.0, Arrived(1))
    with pytest.raises(SplitedgeError, match="request 1 arrived"):
        bench.engine.step(0.0, Arrived(1))


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
