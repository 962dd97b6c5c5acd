"""What the engine does when the cloud, the link, the device or a policy fails."""

from __future__ import annotations

from itertools import pairwise

import pytest
from engine_bench import (
    CLOUD,
    EXIT1,
    LOCAL,
    RUN_EXIT1,
    RUN_EXIT2,
    RUN_LOCAL,
    SPLIT,
    Bench,
    only,
)

from splitedge.engine import Engine
from splitedge.errors import (
    CloudBusy,
    CloudFailed,
    CloudUnavailable,
    DeadlineExceeded,
    EdgeFailed,
    Rejected,
    RequestCancelled,
    SplitedgeError,
)
from splitedge.events import (
    Answer,
    Arrived,
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
    Source,
    StageDone,
    StageFailed,
    Tick,
)
from splitedge.policy import Decision, Policy

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


def test_requests_under_way_together_count_as_one_failure():
    bench = Bench(CLOUD, options=(CLOUD,), breaker_failures=2, probe_base_s=60.0, probe_max_s=60.0)
    for request in range(5):
        bench.at(0.0, Arrived(request, deadline_s=0.1))
        bench.encoded(0.003, request)
    bench.until(0.2)
    assert (bench.engine.in_flight, bench.engine.circuit) == (0, "closed")
    bench.at(0.2, Arrived(9, deadline_s=0.1))
    bench.encoded(0.21, 9)
    bench.until(0.4)
    assert bench.engine.circuit == "open"


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
