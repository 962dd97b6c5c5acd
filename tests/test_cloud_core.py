"""The cloud's core without sockets or threads: a virtual clock, a fake model, messages in and out."""

from __future__ import annotations

import random
from collections import Counter, defaultdict

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitedge.cloud.core import CloudCore
from splitedge.cloud.executor import execute
from splitedge.cloud.settings import ServerSettings
from splitedge.codec import HEADER, TensorSpec, make_codec
from splitedge.errors import ConfigError
from splitedge.wire import Cancel, Hello, Infer, Lane, Ping, Pong, Refuse, Reply, Welcome, pack, unpack

MS = 1_000_000
SPEC = (TensorSpec((1, 4), "float32"),)
RAW = make_codec("raw", SPEC)


class Double:
    """y = 2x; remembers every row it ran."""

    batchable = True

    def __init__(self, bundle="b" * 64, cuts=("early", "late")):
        self.digest = bundle
        self.lanes = tuple(Lane(bundle, cut, RAW.id) for cut in cuts)
        self.ran = []

    def cut_specs(self, lane):
        return SPEC

    def output_specs(self):
        return SPEC

    def max_bytes(self, lane, level, rows):
        return RAW.max_bytes(level, rows)

    def decode(self, lane, data, max_rows):
        return RAW.decode(data, max_rows=max_rows)

    def tail(self, lane, tensors):
        self.ran += tensors[0][:, 0].tolist()
        return (tensors[0] * 2,)


def rows_of(*values):
    """A payload whose rows begin with these numbers."""
    tensor = torch.zeros(len(values), 4)
    tensor[:, 0] = torch.tensor([float(v) for v in values])
    return RAW.encode((tensor,)).data


class Bench:
    """A core, its outbox, and a clock that only moves when told."""

    def __init__(self, *models, **settings):
        self.now = 10**12
        self.models = models or (Double(),)
        self.outbox = defaultdict(list)
        self.core = CloudCore(
            self.models,
            ServerSettings(**settings),
            lambda peer, frames: self.outbox[peer].append(unpack(frames)),
            lambda: self.now,
        )

    def say(self, message, peer=b"p", user=""):
        """Deliver a message and return what came back at once."""
        self.core.deliver(peer, pack(message), user)
        return self.read(peer)

    def read(self, peer=b"p"):
        box = self.outbox.pop(peer, [])
        return box[0] if len(box) == 1 else box

    def hello(self, peer=b"p", user="", session=b"session1", lanes=None):
        lanes = self.models[0].lanes if lanes is None else lanes
        return self.say(Hello(session, tuple(lanes)), peer, user)

    def infer(self, request, *values, peer=b"p", user="", lane=0, attempt=1, ms=0):
        data = rows_of(*(values or (request,)))
        return self.say(Infer(request, attempt, lane, len(values) or 1, ms, data), peer, user)

    def begin(self, index=0):
        return self.core.next_batch(index)

    def end(self, batch, takes_ms=0):
        self.now += takes_ms * MS
        self.core.finish(batch, execute(batch.model, batch.lane, batch.tasks))

    def run(self, takes_ms=0, index=0):
        """Run everything that waits."""
        while (batch := self.begin(index)) is not None:
            self.end(batch, takes_ms)

    def outcomes(self):
        """How requests ended, as /metrics would say."""
        counts = Counter()
        for family in self.core.metrics.requests.collect():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    counts[sample.labels["outcome"]] += int(sample.value)
        return {name: n for name, n in counts.items() if n}


def refused(reply, kind, words=""):
    assert isinstance(reply, Refuse) and reply.kind == kind, reply
    assert words in reply.message
    return reply


# Hello -------------------------------------------------------------------------------------------


def test_hello_numbers_the_lanes_it_can_serve_and_says_why_not_the_others():
    bench = Bench()
    early, late = bench.models[0].lanes
    asked = (
        late,
        Lane("c" * 64, "early", RAW.id),
        early,
        Lane("b" * 64, "nowhere", RAW.id),
        Lane("b" * 64, "late", "int8:0"),
    )
    welcome = bench.hello(lanes=asked)
    assert isinstance(welcome, Welcome) and welcome.lanes == (0, -1, 2, -1, -1)
    assert welcome.epoch == bench.core.epoch and welcome.max_message == bench.core.max_message
    assert "bundle cccccccccccc is not served here (served: bbbbbbbbbbbb)" in welcome.reason
    assert "has no cut 'nowhere' here" in welcome.reason
    assert "codec int8:0 at cut 'late' has other tables here" in welcome.reason


def test_a_request_runs_on_the_lane_its_session_numbered():
    bench = Bench(Double(), Double("c" * 64, ("only",)))
    assert bench.hello(lanes=(bench.models[1].lanes[0], bench.models[0].lanes[1])).lanes == (0, 1)
    assert bench.infer(1, lane=0) == []
    bench.run(index=0)
    assert bench.read() == []
    bench.run(index=1)
    reply = bench.read()
    assert reply.tensors[0][0, 0] == 2.0 and bench.models[1].ran == [1.0]


def test_without_a_hello_or_on_an_unknown_lane_the_edge_is_told_to_say_hello():
    bench = Bench()
    refused(bench.infer(1), "unknown", "say hello again")
    bench.hello()
    refused(bench.infer(1, lane=7), "unknown", "lane 7 was not agreed on: say hello again")
    refused(bench.infer(1, peer=b"another connection"), "unknown")
    refused(bench.infer(1, user="another key"), "unknown")
    assert bench.core.in_flight == 0


def test_another_key_can_not_enter_a_session():
    bench = Bench()
    bench.hello(peer=b"p", user="alice", session=b"sesssess")
    bench.infer(1, user="alice")
    bench.hello(peer=b"q", user="mallory", session=b"sesssess")
    bench.infer(1, 99, peer=b"q", user="mallory")
    bench.run()
    assert bench.read(b"p").tensors[0][0, 0] == 2.0
    assert bench.read(b"q").tensors[0][0, 0] == 198.0


def test_two_models_can_not_serve_one_lane():
    with pytest.raises(ConfigError, match="two models serve bbbbbbbb/early/raw"):
        Bench(Double(), Double())


def test_a_session_goes_on_over_a_new_connection():
    bench = Bench()
    bench.hello(peer=b"old")
    bench.infer(1, peer=b"old")
    bench.hello(peer=b"new")
    refused(bench.infer(2, peer=b"old"), "unknown")
    assert bench.infer(1, peer=b"new", attempt=2) == []
    bench.run()
    reply = bench.read(b"new")
    assert (reply.request, reply.attempt) == (1, 2)
    assert bench.models[0].ran == [1.0]


# Replies -----------------------------------------------------------------------------------------


def test_a_reply_says_where_the_time_went():
    bench = Bench()
    bench.hello()
    bench.infer(1)
    arrived = bench.now
    bench.now += 3 * MS
    bench.end(bench.begin(), takes_ms=2)
    reply = bench.read()
    assert (reply.received_ns, reply.sent_ns, reply.queue_ns) == (arrived, arrived + 5 * MS, 3 * MS)
    assert reply.decode_ns > 0 and reply.tail_ns > 0


def test_requests_of_several_edges_share_a_batch_and_each_gets_its_own_rows():
    bench = Bench()
    for peer, session in ((b"p", b"sess-pp1"), (b"q", b"sess-qq1")):
        bench.hello(peer=peer, session=session)
    bench.infer(1, 10, 11, peer=b"p")
    bench.infer(1, 20, peer=b"q")
    batch = bench.begin()
    assert len(batch.tasks) == 2
    bench.end(batch)
    assert bench.read(b"p").tensors[0][:, 0].tolist() == [20.0, 22.0]
    assert bench.read(b"q").tensors[0][:, 0].tolist() == [40.0]


def test_ping_comes_back_with_the_clouds_clock():
    bench = Bench()
    pong = bench.say(Ping(77))
    assert pong == Pong(77, bench.now, bench.now)


# At most once ------------------------------------------------------------------------------------


def test_a_request_sent_a_hundred_times_runs_once():
    bench = Bench()
    bench.hello()
    for attempt in range(1, 51):
        bench.infer(1, attempt=attempt)
    batch = bench.begin()
    for attempt in range(51, 76):
        bench.infer(1, attempt=attempt)
    bench.end(batch)
    reply = bench.read()
    assert reply.attempt == 75
    for attempt in range(76, 101):
        again = bench.infer(1, attempt=attempt)
        assert again.attempt == attempt and again.tensors[0].equal(reply.tensors[0])
    assert bench.models[0].ran == [1.0] and bench.core.in_flight == 0
    assert bench.outcomes() == {"answered": 1, "repeated": 99}


def test_a_reply_that_is_not_kept_any_more_is_refused_and_not_computed_again():
    bench = Bench(kept_reply_bytes=40)
    bench.hello()
    for request in (1, 2, 3):
        bench.infer(request)
    bench.run()
    bench.read()
    assert bench.infer(3, attempt=2).tensors[0][0, 0] == 6.0
    refused(bench.infer(1, attempt=2), "failed", "executed before")
    bench.now += 31 * 10**9
    bench.core.sweep()
    refused(bench.infer(3, attempt=3), "failed", "executed before")
    assert bench.models[0].ran == [1.0, 2.0, 3.0]


def test_an_id_that_fell_out_of_the_table_is_refused_too():
    bench = Bench(seen_requests=16)
    bench.hello()
    for request in range(1, 41):
        bench.infer(request)
        bench.run()
    bench.read()
    refused(bench.infer(5, attempt=2), "failed", "must increase")
    assert bench.infer(30, attempt=2).tensors[0][0, 0] == 60.0
    assert len(bench.models[0].ran) == 40


def test_what_was_refused_without_running_may_come_again():
    bench = Bench()
    bench.hello()
    bench.infer(1, ms=5)
    bench.now += 6 * MS
    bench.run()
    refused(bench.read(), "expired")
    bench.infer(1, attempt=2, ms=5)
    bench.run()
    assert bench.read().attempt == 2 and bench.models[0].ran == [1.0]


# Deadlines and cancelling ------------------------------------------------------------------------


def test_what_is_past_its_deadline_is_dropped_unstarted():
    bench = Bench()
    bench.hello()
    bench.infer(1, ms=10)
    bench.infer(2, ms=30)
    assert bench.core.wake_at() <= bench.now
    bench.now += 20 * MS
    bench.run()
    gone, answer = bench.read()
    refused(gone, "expired", "after 0.020 s in the queue; it was not run")
    assert answer.request == 2 and bench.models[0].ran == [2.0]


def test_a_waiting_request_is_refused_at_its_deadline_while_another_batch_runs():
    bench = Bench()
    bench.hello()
    bench.infer(1)
    batch = bench.begin()
    bench.infer(2, ms=10)
    assert bench.core.wake_at() == bench.now + 10 * MS
    bench.now += 10 * MS
    bench.core.expire()
    refused(bench.read(), "expired")
    bench.end(batch)
    assert bench.read().request == 1 and bench.core.in_flight == 0


def test_a_new_attempt_brings_its_own_deadline():
    bench = Bench()
    bench.hello()
    bench.infer(1, ms=10)
    bench.now += 8 * MS
    bench.infer(1, attempt=2, ms=10)
    bench.now += 8 * MS
    bench.run()
    assert bench.read().attempt == 2


def test_cancelled_work_is_not_run_and_its_answer_not_sent():
    bench = Bench()
    bench.hello()
    bench.infer(1)
    bench.infer(2)
    batch = bench.begin()
    bench.infer(3)
    bench.say(Cancel(1))
    bench.say(Cancel(3))
    bench.say(Cancel(99))
    bench.end(batch)
    bench.run()
    assert bench.read().request == 2 and bench.models[0].ran == [1.0, 2.0]
    assert bench.outcomes() == {"answered": 1, "cancelled": 2} and bench.core.in_flight == 0


# Admission ---------------------------------------------------------------------------------------


def test_a_full_queue_is_said_early():
    bench = Bench(queue_requests=4)
    for i in range(3):
        bench.hello(peer=b"%d" % i, session=b"session%d" % i)
    for i in range(3):
        assert bench.infer(1, peer=b"%d" % i) == []
    assert bench.infer(2, peer=b"0") == []
    busy = refused(bench.infer(3, peer=b"1"), "busy", "the queue is full: 4 requests")
    assert busy.retry_after_ms >= 1
    bench.run()
    bench.read(b"1")
    assert bench.infer(3, peer=b"1", attempt=2) == []


def test_one_edge_can_not_fill_the_queue():
    bench = Bench(queue_requests=8)
    bench.hello(peer=b"greedy", session=b"greedy!!")
    bench.hello(peer=b"modest", session=b"modest!!")
    answers = [bench.infer(i, peer=b"greedy") for i in range(8)]
    assert answers[:4] == [[]] * 4
    refused(answers[4], "busy", "this edge's share of the queue is used up: 4 requests")
    assert bench.infer(1, peer=b"modest") == []


def test_bytes_waiting_are_bounded_in_all_and_for_each_edge():
    class Wide(Double):
        def max_bytes(self, lane, level, rows):
            return 2**20

    bench = Bench(Wide(), queue_bytes=2**21, peer_queue_bytes=2**20)
    big = bytes(RAW.encode((torch.zeros(1, 4),)).data) + bytes(700_000)
    for peer in (b"a", b"b", b"c"):
        bench.hello(peer=peer, session=b"session" + peer)
    assert bench.say(Infer(1, 1, 0, 1, 0, big), b"a") == []
    refused(bench.say(Infer(2, 1, 0, 1, 0, big), b"a"), "busy", "this edge's share")
    assert bench.say(Infer(1, 1, 0, 1, 0, big), b"b") == []
    refused(bench.say(Infer(1, 1, 0, 1, 0, big), b"c"), "busy", "the queue is full")
    assert bench.core.held_bytes == 2 * len(big)
    bench.run()
    assert bench.core.held_bytes == 0 and bench.core.in_flight == 0


def test_work_that_would_start_too_late_is_refused_at_once_with_a_time_to_come_back():
    bench = Bench()
    bench.hello()
    bench.infer(1)
    bench.run(takes_ms=100)
    bench.read()
    bench.infer(2)
    batch = bench.begin()
    assert bench.infer(3, ms=1000) == []
    bench.now += 40 * MS
    busy = refused(bench.infer(4, ms=50), "busy", "s, 0.050 s are left")
    assert 60 <= busy.retry_after_ms <= 400
    bench.end(batch, takes_ms=60)
    bench.run()
    assert bench.models[0].ran == [1.0, 2.0, 3.0]


def test_a_slow_first_run_does_not_lock_requests_out():
    bench = Bench()
    bench.hello()
    bench.infer(1)
    bench.run(takes_ms=60_000)
    bench.read()
    assert bench.infer(2, ms=50) == []


def test_payloads_are_checked_before_they_are_queued():
    bench = Bench(max_rows=4)
    bench.hello()
    refused(bench.infer(1, *range(5)), "bad", "this cloud takes 4 in a request")
    refused(bench.say(Infer(1, 1, 0, 1, 0, b"short")), "bad", "shorter than a codec's header")
    refused(bench.say(Infer(1, 1, 0, 1, 0, HEADER.pack(1, 9, 1, 0))), "bad", "levels 0 to")
    refused(bench.say(Infer(1, 1, 0, 1, 0, rows_of(1, 2))), "bad", "has at most")
    assert bench.core.in_flight == 0 and bench.models[0].ran == []


def test_a_payload_found_damaged_when_decoded_fails_alone():
    bench = Bench()
    bench.hello()
    bench.infer(1)
    damaged = bytearray(rows_of(2))
    damaged[-1] ^= 1
    bench.say(Infer(2, 1, 0, 1, 0, bytes(damaged)))
    bench.say(Infer(3, 1, 0, 2, 0, rows_of(3)))
    bench.infer(4)
    bench.run()
    answers = {m.request: m for m in bench.read()}
    refused(answers[2], "bad", "CRC")
    refused(answers[3], "bad", "the request says 2 rows, its payload has 1")
    assert isinstance(answers[1], Reply) and isinstance(answers[4], Reply)


def test_draining_refuses_new_work_and_ends_the_old():
    bench = Bench()
    bench.hello()
    bench.infer(1)
    bench.core.drain()
    busy = refused(bench.infer(2), "busy", "shutting down")
    assert busy.retry_after_ms == 1000
    bench.run()
    assert bench.read().request == 1 and bench.core.in_flight == 0


# Bounds ------------------------------------------------------------------------------------------


def test_sessions_are_bounded_and_a_greedy_key_pays_first():
    bench = Bench(sessions=4)
    for i in range(3):
        bench.hello(peer=b"g%d" % i, user="greedy", session=b"greedy-%d" % i)
    bench.hello(peer=b"m", user="modest", session=b"modest!!")
    bench.now += 1
    bench.hello(peer=b"g9", user="greedy", session=b"greedy-9")
    refused(bench.infer(1, peer=b"g0", user="greedy"), "unknown")
    assert bench.infer(1, peer=b"m", user="modest") == []
    assert bench.core.metrics.sessions.collect()[0].samples[0].value == 4


def test_busy_sessions_are_never_forgotten():
    bench = Bench(sessions=1)
    bench.hello(peer=b"a", session=b"aaaaaaaa")
    bench.infer(1, peer=b"a")
    refused(bench.hello(peer=b"b", session=b"bbbbbbbb"), "busy", "no room for another session")
    bench.run()
    assert isinstance(bench.hello(peer=b"b", session=b"bbbbbbbb"), Welcome)


def test_idle_sessions_are_forgotten():
    bench = Bench(session_idle_s=10)
    bench.hello()
    bench.now += 11 * 10**9
    bench.core.sweep()
    refused(bench.infer(1), "unknown")


def test_a_key_that_is_trusted_no_more_loses_sessions_and_waiting_work():
    bench = Bench()
    bench.hello(peer=b"p", user="alice")
    bench.infer(1, user="alice")
    batch = bench.begin()
    bench.infer(2, user="alice")
    assert bench.core.users == {"alice"}
    bench.core.forget_user("alice")
    bench.end(batch)
    bench.run()
    assert bench.read() == [] and bench.models[0].ran == [1.0]
    assert bench.core.users == set() and bench.core.in_flight == 0


def test_hostile_frames_are_counted_and_answered_with_the_reason():
    bench = Bench()
    bench.core.deliver(b"p", [b"\xff\x00nonsense"])
    refused(bench.read(), "bad", "header")
    bench.core.deliver(b"p", [])
    refused(bench.read(), "bad")
    refused(bench.say(Welcome(bytes(8), (), "", 0)), "bad", "a cloud takes no Welcome")
    assert bench.core.metrics.malformed._value.get() == 3


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.integers(0, 2**32))
def test_any_order_of_events_ends_each_request_once_and_leaves_nothing_behind(seed):
    """Random requests, repeats, cancels and time; the value of each row names its request and edge."""
    rng = random.Random(seed)
    bench = Bench(queue_requests=12, max_batch_rows=4)
    for edge in range(3):
        bench.hello(peer=b"%d" % edge, session=b"session%d" % edge)
    batch, newest = None, 0

    def send(edge, request, attempt):
        data = rows_of(request * 10 + edge)
        infer = Infer(request, attempt, rng.randrange(2), 1, rng.choice([0, 3, 50]), data)
        bench.core.deliver(b"%d" % edge, pack(infer))

    for _ in range(120):
        edge, what = rng.randrange(3), rng.random()
        if what < 0.5:
            newest += 1
            send(edge, newest, 1)
        elif what < 0.6:
            send(edge, rng.randint(max(0, newest - 5), newest), 2)
        elif what < 0.65:
            bench.core.deliver(b"%d" % edge, pack(Cancel(rng.randint(0, newest))))
        elif what < 0.8 and batch is None:
            batch = bench.begin()
        elif what < 0.95 and batch is not None:
            bench.end(batch, takes_ms=rng.randint(0, 4))
            batch = None
        else:
            bench.now += rng.randint(0, 5) * MS
        assert bench.core.in_flight <= 12
    if batch is not None:
        bench.end(batch)
    bench.run()
    ran = bench.models[0].ran
    assert len(ran) == len(set(ran)), "executed twice"
    for peer, box in bench.outbox.items():
        for reply in box:
            if isinstance(reply, Reply):
                assert reply.tensors[0][0, 0] == 2 * (reply.request * 10 + int(peer)), (
                    "somebody else's answer"
                )
    assert bench.core.in_flight == 0 and bench.core.held_bytes == 0 and bench.core.wake_at() is None
    assert bench.core.metrics.in_flight.collect()[0].samples[0].value == 0
