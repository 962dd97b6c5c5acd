"""The batcher as a state machine: nothing lost, nothing twice, nobody starved."""

from __future__ import annotations

from collections import Counter

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from splitedge.cloud.batcher import Batcher, Entry

MS = 1_000_000


def entry(lane="a", peer="p", rows=1, at=0, deadline=None):
    return Entry(lane, peer, rows, at, deadline)


def filled(batcher, *entries):
    for one in entries:
        batcher.add(one)
    return batcher


def test_whatever_waits_is_the_batch_up_to_its_size():
    waiting = [entry(rows=2) for _ in range(5)]
    batcher = filled(Batcher(max_rows=5), *waiting)
    assert batcher.take(0) == waiting[:2]
    assert batcher.take(0) == waiting[2:4]
    assert batcher.take(0) == waiting[4:]
    assert batcher.take(0) is None and len(batcher) == 0


def test_a_request_larger_than_a_batch_runs_alone():
    big = entry(rows=50)
    batcher = filled(Batcher(max_rows=8), entry(), big, entry(peer="q"))
    assert [len(batcher.take(0)), batcher.take(0), batcher.take(0)] == [2, [big], None]


def test_a_model_that_takes_no_batches_gets_one_at_a_time():
    batcher = filled(Batcher(max_rows=8, max_wait_ns=MS, batchable=False), entry(), entry())
    assert [len(batcher.take(0)), len(batcher.take(0)), batcher.take(0)] == [1, 1, None]


def test_company_is_waited_for_until_the_age_or_the_size_is_reached():
    batcher = filled(Batcher(max_rows=3, max_wait_ns=5 * MS), entry(at=0), entry(at=2 * MS))
    assert batcher.wake_at() == 5 * MS
    assert batcher.take(5 * MS - 1) is None
    batcher.add(entry(at=3 * MS))
    assert batcher.wake_at() == 0
    assert len(batcher.take(3 * MS)) == 3
    batcher.add(entry(at=4 * MS))
    assert len(batcher.take(9 * MS)) == 1
    assert batcher.wake_at() is None


def test_lanes_never_share_a_batch_and_take_turns():
    flood = [entry(lane="a") for _ in range(40)]
    batcher = filled(Batcher(max_rows=8), *flood, entry(lane="b"), entry(lane="c"))
    assert [batcher.take(0)[0].lane for _ in range(4)] == ["a", "b", "c", "a"]


def test_a_flood_of_one_edge_does_not_keep_another_waiting():
    flood = [entry(peer="greedy") for _ in range(1000)]
    batcher = filled(Batcher(max_rows=4), *flood, entry(peer="x"), entry(peer="y"))
    assert Counter(e.peer for e in batcher.take(0)) == {"greedy": 2, "x": 1, "y": 1}


def test_expired_and_removed_entries_are_never_taken():
    late, gone, good = entry(deadline=5), entry(), entry(deadline=50)
    batcher = filled(Batcher(max_rows=8), late, gone, good)
    assert batcher.remove(gone) and not batcher.remove(gone)
    assert batcher.expire(4) == [] and batcher.expire(5) == [late]
    assert batcher.take(6) == [good]


def test_a_deadline_can_only_be_extended():
    one = entry(deadline=10)
    batcher = filled(Batcher(max_rows=8), one)
    batcher.extend(one, 5)
    assert one.deadline_ns == 10
    batcher.extend(one, 20)
    assert batcher.expire(10) == [] and batcher.wake_at() == 0
    assert batcher.expire(20) == [one]
    two = entry(deadline=10)
    batcher.add(two)
    batcher.extend(two, None)
    assert batcher.expire(10**12) == [] and batcher.take(10**12) == [two]


def test_entries_that_left_are_not_kept_alive_by_their_deadlines():
    batcher = Batcher(max_rows=1)
    for _ in range(5000):
        batcher.add(entry(deadline=10**15))
        assert len(batcher.take(0)) == 1
    assert len(batcher._deadlines) < 200


class Machine(RuleBasedStateMachine):
    """Any order of adds, takes, removals and time; compared with plain sets."""

    @initialize(rows=st.integers(1, 6), wait=st.sampled_from([0, 3]), batchable=st.booleans())
    def begin(self, rows, wait, batchable):
        self.max_rows, self.batchable, self.wait = rows, batchable, wait if batchable else 0
        self.batcher = Batcher(rows, wait, batchable)
        self.now = 0
        self.waiting = []
        self.gone = set()
        self.skipped = Counter()

    @rule(
        lane=st.sampled_from("ab"),
        peer=st.sampled_from("xyz"),
        rows=st.integers(1, 8),
        life=st.none() | st.integers(1, 9),
    )
    def add(self, lane, peer, rows, life):
        one = entry(lane, peer, rows, self.now, None if life is None else self.now + life)
        self.batcher.add(one)
        self.waiting.append(one)

    @rule(by=st.integers(1, 5))
    def time_passes(self, by):
        self.now += by

    @rule(data=st.data())
    def remove(self, data):
        if self.waiting:
            one = data.draw(st.sampled_from(self.waiting))
            assert self.batcher.remove(one)
            self.leave([one])

    @rule(data=st.data(), by=st.none() | st.integers(0, 20))
    def extend(self, data, by):
        if self.waiting:
            one = data.draw(st.sampled_from(self.waiting))
            before = one.deadline_ns
            self.batcher.extend(one, None if by is None else self.now + by)
            assert one.deadline_ns is None or one.deadline_ns >= before

    @rule()
    def take(self):
        expired = self.batcher.expire(self.now)
        assert all(e.deadline_ns <= self.now for e in expired)
        self.leave(expired)
        assert all(e.deadline_ns is None or e.deadline_ns > self.now for e in self.waiting)
        batch = self.batcher.take(self.now)
        if batch is None:
            assert all(self.now - e.arrived_ns < self.wait for e in self.waiting)
            return
        assert len({e.lane for e in batch}) == 1
        assert len(batch) == 1 or (self.batchable and sum(e.rows for e in batch) <= self.max_rows)
        self.in_order(batch)
        self.leave(batch)
        self.nobody_is_starved(batch)

    def in_order(self, batch):
        """An edge's entries of a lane leave in the order they came."""
        for one in batch:
            mine = [e for e in self.waiting if (e.lane, e.peer) == (one.lane, one.peer)]
            took = [e for e in batch if e.peer == one.peer]
            assert mine[: len(took)] == took

    def nobody_is_starved(self, batch):
        """Two lanes and three edges: whoever could be next is, after at most six batches without it."""
        served = {(e.lane, e.peer) for e in batch}
        ready = {
            (e.lane, e.peer)
            for e in self.waiting
            if not self.wait
            or any(self.now - o.arrived_ns >= self.wait for o in self.waiting if o.lane == e.lane)
        }
        for key in list(self.skipped):
            if key in served or key not in ready:
                del self.skipped[key]
        for key in ready - served:
            self.skipped[key] += 1
            assert self.skipped[key] <= 6

    def leave(self, entries):
        for one in entries:
            assert one not in self.gone
            self.gone.add(one)
            self.waiting.remove(one)

    @invariant()
    def the_counts_agree(self):
        if not hasattr(self, "batcher"):
            return
        assert len(self.batcher) == len(self.waiting)
        assert self.batcher.rows == sum(e.rows for e in self.waiting)
        assert self.batcher.peers == len({e.peer for e in self.waiting})
        assert all(e.waiting for e in self.waiting) and not any(e.waiting for e in self.gone)
        assert (self.batcher.wake_at() is None) == (not self.waiting)


Machine.TestCase.settings = settings(
    max_examples=100, stateful_step_count=40, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
TestBatcherMachine = Machine.TestCase
