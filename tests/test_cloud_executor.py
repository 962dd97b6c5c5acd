"""Batches through decoders and tails: rows come back to whom they belong, and a bad one fails alone."""

from __future__ import annotations

import math
import threading

import pytest
import torch

from splitedge.cloud.executor import Task, execute
from splitedge.cloud.service import ServiceTime
from splitedge.codec import TensorSpec, make_codec
from splitedge.wire import Lane
from splitedge.worker import Worker

LANE = Lane("b" * 64, "cut", "raw")


class Model:
    """A tail given as a function, over tensors sent raw."""

    batchable = True
    digest = "b" * 64
    lanes = (LANE,)

    def __init__(self, tail, reads, gives):
        self._tail, self._reads, self._gives = tail, reads, gives
        self.codec = make_codec("raw", reads)
        self.calls = []

    def cut_specs(self, lane):
        return self._reads

    def output_specs(self):
        return self._gives

    def max_bytes(self, lane, level, rows):
        return self.codec.max_bytes(level, rows)

    def decode(self, lane, data, max_rows):
        return self.codec.decode(data, max_rows=max_rows)

    def tail(self, lane, tensors):
        self.calls.append([tuple(t.shape) for t in tensors])
        return self._tail(*tensors)

    def task(self, *tensors):
        payload = self.codec.encode(tensors)
        return Task(memoryview(payload.data), payload.rows)


def test_rows_are_joined_and_split_along_each_tensors_own_dimension():
    reads = (TensorSpec((1, 2), "float32"), TensorSpec((3, 2), "int64", 1))
    gives = (
        TensorSpec((2, 1), "float32", 1),
        TensorSpec((4,), "int64", None),
        TensorSpec((2, 5), "float32", 0),
    )

    def tail(a, b):
        n = a.shape[0]
        assert b.shape == (3, 2 * n)
        return a.T + 1, torch.arange(4), a.sum(1).repeat_interleave(2)[:, None].expand(2 * n, 5)

    model = Model(tail, reads, gives)
    inputs = [(torch.full((n, 2), float(n)), torch.full((3, 2 * n), n)) for n in (1, 2, 4)]
    results = execute(model, LANE, [model.task(*i) for i in inputs])
    assert len(model.calls) == 1 and model.calls[0][0] == (7, 2)
    for (a, _), result in zip(inputs, results, strict=True):
        n = a.shape[0]
        first, second, third = result.tensors
        assert first.equal(a.T + 1)
        assert second.equal(torch.arange(4))
        assert third.shape == (2 * n, 5) and (third == 2 * n).all()


def test_a_batch_equals_its_requests_run_alone():
    torch.manual_seed(0)
    net = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3)).eval()
    model = Model(lambda x: (net(x),), (TensorSpec((1, 6), "float32"),), (TensorSpec((1, 3), "float32"),))
    inputs = [torch.randn(n, 6) for n in (1, 3, 2)]
    together = execute(model, LANE, [model.task(x) for x in inputs])
    for x, result in zip(inputs, together, strict=True):
        torch.testing.assert_close(result.tensors[0], net(x).detach(), atol=1e-6, rtol=0)


def poison(x):
    if (x == 13).any():
        raise RuntimeError("unlucky row in /secret/path/model.py")
    return (x * 2,)


ONE = (TensorSpec((1, 1), "float32"),)


def test_one_bad_input_does_not_fail_its_neighbours_and_no_row_succeeds_twice():
    model = Model(poison, ONE, ONE)
    results = execute(model, LANE, [model.task(torch.tensor([[float(v)]])) for v in (1, 13, 2)])
    assert [r.tensors and r.tensors[0].item() for r in results] == [2.0, None, 4.0]
    assert results[1].refusal == "failed"
    assert [shape[0][0] for shape in model.calls] == [3, 1, 1, 1]


def test_what_an_edge_is_told_of_an_error_names_no_path():
    model = Model(poison, ONE, ONE)
    (result,) = execute(model, LANE, [model.task(torch.tensor([[13.0]]))])
    assert result.message == "the tail raised RuntimeError; the cloud's log says more"


def test_a_tail_that_gives_other_shapes_than_it_promised_fails():
    model = Model(lambda x: (torch.zeros(3, 1),), ONE, ONE)
    (result,) = execute(model, LANE, [model.task(torch.tensor([[1.0]]))])
    assert result.refusal == "failed" and result.tensors is None


def test_nan_and_infinity_pass_through_and_touch_nobody_else():
    model = Model(lambda x: (x * 2,), ONE, ONE)
    values = [math.nan, 1.0, math.inf]
    results = execute(model, LANE, [model.task(torch.tensor([[v]])) for v in values])
    got = [r.tensors[0].item() for r in results]
    assert math.isnan(got[0]) and got[1:] == [2.0, math.inf]


def test_requests_that_differ_in_a_tensor_without_a_batch_dimension_run_apart():
    reads = (TensorSpec((1, 1), "float32"), TensorSpec((2,), "float32", None))
    model = Model(lambda x, scale: (x * scale[0],), reads, ONE)
    scales = [2.0, 3.0, 2.0, math.nan, math.nan]
    tasks = [model.task(torch.tensor([[1.0]]), torch.full((2,), s)) for s in scales]
    results = execute(model, LANE, tasks)
    assert [r.tensors[0].item() for r in results[:3]] == [2.0, 3.0, 2.0]
    assert all(math.isnan(r.tensors[0].item()) for r in results[3:])
    assert [shapes[0][0] for shapes in model.calls] == [2, 1, 1, 1]


def test_nothing_tracks_gradients():
    weight = torch.nn.Parameter(torch.ones(1, 1))
    model = Model(lambda x: (x @ weight,), ONE, ONE)
    (result,) = execute(model, LANE, [model.task(torch.tensor([[5.0]]))])
    assert not result.tensors[0].requires_grad


def test_a_worker_runs_jobs_in_order_on_one_thread_and_survives_one_that_raises():
    worker, seen, done = Worker("test"), [], threading.Event()

    def raises():
        raise ValueError("a bug")

    for i in range(3):
        worker.submit(lambda i=i: seen.append((i, threading.get_ident())))
        worker.submit(raises)
    worker.submit(done.set)
    assert done.wait(5) and worker.close(5)
    assert [i for i, _ in seen] == [0, 1, 2] and len({t for _, t in seen}) == 1


def test_service_time_learns_run_and_row():
    service = ServiceTime()
    assert service.predict(4) == 0.0
    for rows in (1, 8, 2, 16, 4, 32) * 10:
        service.observe(rows, 0.010 + 0.002 * rows)
    per_run, per_row = service.line()
    assert per_run == pytest.approx(0.010, rel=0.05) and per_row == pytest.approx(0.002, rel=0.05)


def test_service_time_is_never_negative():
    service = ServiceTime()
    for rows, seconds in ((1, 0.5), (64, 0.001), (2, 0.5), (64, 0.001)):
        service.observe(rows, seconds)
        assert min(service.line()) >= 0.0


def test_quick_is_not_said_of_what_was_slow_a_moment_ago_or_only_waits():
    service = ServiceTime()
    assert not service.quick(3e-4)
    for _ in range(50):
        service.observe(1, 1e-4)
    assert service.quick(3e-4) and not service.quick(1e-4) and not service.quick(0.0)
    service.observe(1, 0.02)
    service.observe(1, 1e-4)
    assert not service.quick(3e-4)
    for _ in range(50):
        service.observe(1, 1e-4)
    assert service.quick(3e-4)
    service.observe(1, 0.004, 1e-4)
    assert service.quick(3e-4), "the machine was busy with something else"
    for _ in range(50):
        service.observe(1, 0.004, 1e-4)
    assert not service.quick(3e-4), "it waits for something"
