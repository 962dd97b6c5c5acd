"""Measure what every stage of a plan costs on this device: seconds at batch 1, and real framed bytes."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch

from splitedge import wire
from splitedge.codec import Payload, Tensors, TensorSpec
from splitedge.gating import spare
from splitedge.plan import Plan
from splitedge.segments import confidence_of
from splitedge.thresholds import Floats

#: Seconds by stage: ("segment", i), ("exit", n), ("local", 0), ("encode" or "decode", boundary, level).
Took = dict[tuple[str | int, ...], float]
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Effort:
    """How much to measure: `rows` example rows for bytes, `repeats` runs for seconds after `warm_up`."""

    rows: int = 16
    repeats: int = 15
    warm_up: int = 3


def split_rows(tensors: Tensors, specs: Sequence[TensorSpec], most: int) -> list[Tensors]:
    """The first rows of a batch, each as a batch of one."""
    rows = next(
        (spec.rows_of(t) or 1 for spec, t in zip(specs, tensors, strict=True) if spec.batch_dim is not None),
        1,
    )
    return [
        tuple(_row(t, spec, i) for t, spec in zip(tensors, specs, strict=True))
        for i in range(min(rows, most))
    ]


def _row(tensor: torch.Tensor, spec: TensorSpec, i: int) -> torch.Tensor:
    if spec.batch_dim is None:
        return tensor
    width = spec.shape[spec.batch_dim]
    return tensor.narrow(spec.batch_dim, i * width, width).contiguous()


def timed(took: Took, key: tuple[str | int, ...], run: Callable[..., T], *args: Any) -> T:
    """The result of `run(*args)`; its seconds go into `took`."""
    start = time.perf_counter()
    result = run(*args)
    took[key] = time.perf_counter() - start
    return result


def framed_up(payload: bytes) -> int:
    """Bytes on the link of a request with this payload."""
    message = wire.Infer(1 << 20, 1, 1, 1, 1000, payload)
    return wire.framed_bytes(wire.pack(message))


def framed_down(tensors: Tensors) -> int:
    """Bytes on the link of a reply with these tensors. Times are of the size that real ones have."""
    ns = 1 << 40
    return wire.framed_bytes(wire.pack(wire.Reply(1 << 20, 1, ns, ns, ns, ns, ns, tensors)))


@dataclass(slots=True)
class Costs:
    """Raw measurements. Seconds are of shape (repeats,), bytes of shape (rows,); keys as in `Plan`.

    Attributes:
        segments: by segment.
        exits: by exit, its classifier alone.
        local: the local model, or empty.
        encode, decode, nbytes: by (boundary, level); encoding with the option's filter, and the exit that it
            judges.
        down: framed bytes of a reply.
    """

    segments: dict[int, Floats]
    exits: dict[int, Floats]
    local: Floats
    encode: dict[tuple[int, int], Floats]
    decode: dict[tuple[int, int], Floats]
    nbytes: dict[tuple[int, int], Floats]
    down: float

    def head(self, boundary: int) -> Floats:
        """Seconds from the input to a boundary."""
        return self._between(0, boundary)

    def tail(self, boundary: int) -> Floats:
        """Seconds from a boundary to the output."""
        return self._between(boundary, len(self.segments))

    def _between(self, start: int, stop: int) -> Floats:
        total: Floats = np.zeros(len(next(iter(self.segments.values()))))
        for i in range(start, stop):
            total = total + self.segments[i]
        return total


def measure(plan: Plan, inputs: Tensors, effort: Effort = Effort()) -> Costs:
    """Run every stage of a plan on example rows.

    Args:
        plan: with all its segments.
        inputs: flat input tensors of at least one row.
        effort: how much to measure.
    """
    rows = split_rows(inputs, plan.boundaries[0].specs, effort.rows)
    runs = effort.warm_up + effort.repeats
    with torch.inference_mode():
        passes = [_one_pass(plan, rows[i % len(rows)]) for i in range(runs)][effort.warm_up :]
        sizes = _sizes(plan, rows)
        down = framed_down(_forward(plan, rows[0])[-1])
    return Costs(
        segments={i: _column(passes, ("segment", i)) for i in range(len(plan.boundaries))},
        exits={i: _column(passes, ("exit", i)) for i in range(len(plan.exits))},
        local=_column(passes, ("local", 0)) if plan.local else np.zeros(0),
        encode={key: _column(passes, ("encode", *key)) for key in sizes},
        decode={key: _column(passes, ("decode", *key)) for key in sizes},
        nbytes=sizes,
        down=float(down),
    )


def _column(passes: Sequence[Took], key: tuple[str | int, ...]) -> Floats:
    return np.array([one[key] for one in passes])


def _forward(plan: Plan, row: Tensors) -> list[Tensors]:
    """The tensors at every boundary, and the output last."""
    at = [row]
    for i in range(len(plan.boundaries)):
        at.append(tuple(plan.segments[i](*at[-1])))
    return at


def _one_pass(plan: Plan, row: Tensors) -> Took:
    """Seconds of every stage on one row."""
    took: Took = {}
    at = [row]
    for i in range(len(plan.boundaries)):
        at.append(tuple(timed(took, ("segment", i), plan.segments[i], *at[-1])))
    for number, head in enumerate(plan.exits):
        timed(
            took,
            ("exit", number),
            lambda *tensors, head=head: confidence_of(head.segment(*tensors)[0], head.scale),
            *at[head.boundary],
        )
    if plan.local is not None:
        timed(took, ("local", 0), plan.local.segment, *row)
    for boundary in plan.cuts:
        codec = plan.codecs[boundary]
        for level in range(len(codec.levels)):
            payload = timed(took, ("encode", boundary, level), _encode, plan, boundary, level, at)
            timed(took, ("decode", boundary, level), codec.decode, payload.data)
    return took


def _encode(plan: Plan, boundary: int, level: int, at: Sequence[Tensors]) -> Payload:
    """The payload of one row, looked at by its filter where it has one."""
    codec, gate = plan.codecs[boundary], plan.gate(boundary, level)
    payload = codec.encode(at[plan.source(boundary)], level)
    if gate is not None:
        logits = None
        if gate.exit is not None:
            head = plan.exits[gate.exit]
            (logits,) = head.segment(*at[head.boundary])
        spare(plan.filters[boundary], codec.unpacked_specs, codec.unpack(payload), logits)
    return payload


def _sizes(plan: Plan, rows: Sequence[Tensors]) -> dict[tuple[int, int], Floats]:
    """Framed bytes of every row, for every boundary and level."""
    found: dict[tuple[int, int], list[float]] = {}
    for row in rows:
        at = _forward(plan, row)
        for boundary in plan.cuts:
            for level in range(len(plan.codecs[boundary].levels)):
                data = plan.codecs[boundary].encode(at[plan.source(boundary)], level).data
                found.setdefault((boundary, level), []).append(float(framed_up(data)))
    return {key: np.array(values) for key, values in found.items()}
