"""Points of one codec: every test row really encoded alone, framed, decoded and answered."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from statistics import median

import numpy as np
import torch
from torch import nn

from splitedge.codec import Codec, Payload, Tensors
from splitedge.codecs.bench_subject import Divided, kib
from splitedge.codecs.contenders import Contender
from splitedge.codecs.macs import macs
from splitedge.codecs.rate_distortion import Bools, Point
from splitedge.costs import framed_up, split_rows
from splitedge.rows import LabelledRows

BATCH = 250
TIMED_ROWS = 40
SWITCHES = 60
WARM_UP = 5


@dataclass(frozen=True, slots=True)
class Placed:
    """A codec where it stands in a divided model.

    Attributes:
        codec: ready to encode.
        source: boundary it reads.
        cut: boundary whose tensors its decoder gives, where it gives a cut's.
        train_s: seconds of training.
        epochs: of training.
        val_accuracy: by level, after training.
    """

    codec: Codec
    source: int
    cut: int
    train_s: float = 0.0
    epochs: int = 0
    val_accuracy: tuple[float, ...] = ()


def measure(
    contender: Contender,
    placed: Placed,
    divided: Divided,
    rows: LabelledRows,
    advance: Callable[[int], None] = lambda rows: None,
) -> list[Point]:
    """One point a level; `advance` is told how many rows are done."""
    codec = placed.codec
    size, work = _edge(placed, divided)
    points = []
    for level, name in enumerate(codec.levels):
        payload, framed, correct = _answered(placed, level, divided, rows, advance)
        times = _times(placed, level, divided, rows)
        points.append(
            Point(
                name=contender.name,
                family=contender.family,
                kind=contender.kind,
                cut=divided.pieces.boundaries[placed.cut].name,
                level=name,
                payload=np.array(payload, dtype=np.int64),
                framed=np.array(framed, dtype=np.int64),
                correct=correct,
                encoder_kib=size,
                encoder_macs=work,
                macs_share=work / max(divided.model_macs, 1),
                encode_s=times.head + times.encode,
                decode_s=times.unpack + times.expand,
                pack_s=max(times.encode - times.network, 0.0),
                unpack_s=times.unpack,
                switch_s=_switch_s(placed, level, divided, rows),
                train_s=placed.train_s,
                epochs=placed.epochs,
                val_accuracy=placed.val_accuracy[level] if placed.val_accuracy else float("nan"),
            )
        )
    return points


def teacher(divided: Divided, rows: LabelledRows) -> Bools:
    """Which rows the whole model answers right, uncompressed."""
    found = [_right(divided, divided.run(batch.inputs, 0, None), batch) for batch in rows.batches(BATCH)]
    return np.concatenate(found)


def _edge(placed: Placed, divided: Divided) -> tuple[float, int]:
    """KiB and multiply-accumulates of what the edge holds and runs before the payload is packed."""
    head, state = divided.between(0, placed.source), placed.codec.state()
    tables = sum(t.numel() * t.element_size() for t in state.tensors.values()) / 1024
    size = sum(map(kib, head)) + kib(state.encoder) + tables
    networks = [*head, *([state.encoder] if isinstance(state.encoder, nn.Module) else [])]
    return size, macs(networks, divided.pieces.inputs.specs) if networks else 0


def _answered(
    placed: Placed, level: int, divided: Divided, rows: LabelledRows, advance: Callable[[int], None]
) -> tuple[list[int], list[int], Bools]:
    """Bytes of every payload and frame, and which rows are right. As a server does, each payload is
    unpacked alone and a batch of them goes through the networks together.
    """
    codec = placed.codec
    payload: list[int] = []
    framed: list[int] = []
    correct = []
    for batch in rows.batches(BATCH):
        at = divided.run(batch.inputs, 0, placed.source)
        sent = [codec.encode(row, level) for row in split_rows(at, codec.read_specs, most=BATCH)]
        payload += [one.nbytes for one in sent]
        framed += [framed_up(one.data) for one in sent]
        with torch.inference_mode():
            out = codec.expand(_joined(codec, sent))
        if codec.gives == "cut":
            out = divided.run(out, placed.cut, None)
        correct.append(_right(divided, out, batch))
        advance(len(batch))
    return payload, framed, np.concatenate(correct)


def _joined(codec: Codec, sent: list[Payload]) -> Tensors:
    unpacked = [codec.unpack(one.data) for one in sent]
    return tuple(
        unpacked[0][i] if spec.batch_dim is None else torch.cat([one[i] for one in unpacked], spec.batch_dim)
        for i, spec in enumerate(codec.unpacked_specs)
    )


def _right(divided: Divided, out: Tensors, batch: LabelledRows) -> Bools:
    found: Bools = (out[divided.logits].argmax(-1) == batch.labels).numpy()
    return found


@dataclass(frozen=True, slots=True)
class _Times:
    """Median seconds of one row; `network` is the part of `encode` that the encoder's network takes."""

    head: float
    encode: float
    network: float
    unpack: float
    expand: float


def _times(placed: Placed, level: int, divided: Divided, rows: LabelledRows) -> _Times:
    codec, network = placed.codec, placed.codec.state().encoder
    head = divided.between(0, placed.source)
    taken: list[tuple[float, ...]] = []
    specs = divided.pieces.inputs.specs
    with one_thread(), torch.inference_mode():
        for row in split_rows(rows.first(TIMED_ROWS + WARM_UP).inputs, specs, TIMED_ROWS + WARM_UP):
            marks = [time.perf_counter()]
            at = row
            for segment in head:
                at = tuple(segment(*at))
            marks.append(time.perf_counter())
            data = codec.encode(at, level).data
            marks.append(time.perf_counter())
            if network is not None:
                network(*at)
            marks.append(time.perf_counter())
            unpacked = codec.unpack(data)
            marks.append(time.perf_counter())
            codec.expand(unpacked)
            marks.append(time.perf_counter())
            taken.append(tuple(b - a for a, b in pairwise(marks)))
    return _Times(*(median(column) for column in zip(*taken[WARM_UP:], strict=True)))


def _switch_s(placed: Placed, level: int, divided: Divided, rows: LabelledRows) -> float:
    """Median over pairs of requests on the same row: behind one of another level, less behind its own."""
    codec = placed.codec
    others = [other for other in range(len(codec.levels)) if other != level]
    if not others:
        return 0.0

    def request(at: Tensors, level: int) -> float:
        start = time.perf_counter()
        codec.decode(codec.encode(at, level).data)
        return time.perf_counter() - start

    longer = []
    specs = divided.pieces.inputs.specs
    with one_thread(), torch.inference_mode():
        for i, row in enumerate(split_rows(rows.first(SWITCHES + WARM_UP).inputs, specs, SWITCHES + WARM_UP)):
            at = divided.run(row, 0, placed.source)
            other, took = others[i % len(others)], {}
            for before in (level, other) if i % 2 else (other, level):
                request(at, before)
                took[before == level] = request(at, level)
            longer.append(took[False] - took[True])
    return median(longer[WARM_UP:])


@contextmanager
def one_thread() -> Iterator[None]:
    """Torch on one thread, as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
