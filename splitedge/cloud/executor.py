"""Run batches of requests through a model's decoders and tail.

At most one row of a request is ever executed successfully: a batch whose tail raises has given no
answer to anybody, and only then are its requests run one by one, so that a bad one fails alone.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from splitedge.codec import Tensors, TensorSpec, rows_of
from splitedge.errors import CodecError
from splitedge.events import Refusal
from splitedge.parts import CloudModel
from splitedge.wire import Lane

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Task:
    """One request of a batch: its payload and how many rows it says it has."""

    payload: memoryview
    rows: int


@dataclass(slots=True)
class Result:
    """What became of one task: its flat output tensors, or why there are none.

    Attributes:
        decode_ns, tail_ns: time spent; `tail_ns` is that of the whole batch, which each of its requests
            waited for.
        tensors: the output, None where `refusal` says why not.
        message: for the edge to read; names no path and no line of code.
    """

    decode_ns: int
    tail_ns: int = 0
    tensors: Tensors | None = None
    refusal: Refusal | None = None
    message: str = ""


@dataclass(slots=True)
class _Decoded:
    index: int
    rows: int
    tensors: Tensors


def execute(model: CloudModel, lane: Lane, tasks: Sequence[Task]) -> list[Result]:
    """Decode, run and split one batch. Never raises for what a payload or a tail does."""
    with torch.inference_mode():
        results = [Result(0) for _ in tasks]
        decoded = [d for i, task in enumerate(tasks) if (d := _decode(model, lane, task, i, results[i]))]
        for group in _groups(model.cut_specs(lane), decoded):
            _run(model, lane, group, results)
        return results


def _decode(model: CloudModel, lane: Lane, task: Task, index: int, result: Result) -> _Decoded | None:
    begin = time.perf_counter_ns()
    try:
        tensors = model.decode(lane, task.payload, task.rows)
        rows = rows_of(model.cut_specs(lane), tensors, "the tail")
        if rows != task.rows:
            raise CodecError(f"the request says {task.rows} rows, its payload has {rows}")
    except CodecError as error:
        result.refusal, result.message = Refusal.BAD, str(error)
        return None
    except Exception as error:
        log.exception("decoding for lane %s failed", lane)
        result.refusal, result.message = Refusal.FAILED, _safe("the decoder", error)
        return None
    finally:
        result.decode_ns = time.perf_counter_ns() - begin
    return _Decoded(index, task.rows, tensors)


def _groups(specs: Sequence[TensorSpec], decoded: list[_Decoded]) -> list[list[_Decoded]]:
    """Requests that can be one batch: those that agree on every tensor that has no batch dimension."""
    shared = [i for i, spec in enumerate(specs) if spec.batch_dim is None]
    if not shared:
        return [decoded] if decoded else []
    groups: list[list[_Decoded]] = []
    for one in decoded:
        for group in groups:
            if all(torch.equal(one.tensors[i], group[0].tensors[i]) for i in shared):
                group.append(one)
                break
        else:
            groups.append([one])
    return groups


def _run(model: CloudModel, lane: Lane, group: list[_Decoded], results: list[Result]) -> None:
    begin = time.perf_counter_ns()
    try:
        parts = _tail(model, lane, group)
    except Exception as error:
        if len(group) > 1:
            log.warning("a batch of %d on lane %s failed (%s); one by one", len(group), lane, error)
            for one in group:
                _run(model, lane, [one], results)
            return
        log.exception("the tail of lane %s failed", lane)
        result = results[group[0].index]
        result.refusal, result.message = Refusal.FAILED, _safe("the tail", error)
        result.tail_ns = time.perf_counter_ns() - begin
        return
    spent = time.perf_counter_ns() - begin
    for one, tensors in zip(group, parts, strict=True):
        results[one.index].tensors, results[one.index].tail_ns = tensors, spent


def _tail(model: CloudModel, lane: Lane, group: list[_Decoded]) -> list[Tensors]:
    """The tail's output for each request of the group."""
    if len(group) == 1:
        outputs = model.tail(lane, group[0].tensors)
        _check(model, outputs, group[0].rows)
        return [outputs]
    inputs = tuple(
        group[0].tensors[i]
        if spec.batch_dim is None
        else torch.cat([d.tensors[i] for d in group], spec.batch_dim)
        for i, spec in enumerate(model.cut_specs(lane))
    )
    outputs = model.tail(lane, inputs)
    _check(model, outputs, sum(d.rows for d in group))
    parts: list[Tensors] = []
    start = 0
    for one in group:
        parts.append(_rows(model.output_specs(), outputs, start, one.rows))
        start += one.rows
    return parts


def _check(model: CloudModel, outputs: Tensors, rows: int) -> None:
    specs = model.output_specs()
    got = rows_of(specs, outputs, "the model's output")
    if got != rows and any(spec.batch_dim is not None for spec in specs):
        raise CodecError(f"the tail gave {got} rows for {rows}")


def _rows(specs: Sequence[TensorSpec], outputs: Tensors, start: int, rows: int) -> Tensors:
    return tuple(
        t
        if s.batch_dim is None
        else t.narrow(s.batch_dim, start * s.shape[s.batch_dim], rows * s.shape[s.batch_dim])
        for s, t in zip(specs, outputs, strict=True)
    )


def _safe(what: str, error: Exception) -> str:
    """What an edge may know of an error here: its kind. The rest is in the cloud's log."""
    return f"{what} raised {type(error).__name__}; the cloud's log says more"
