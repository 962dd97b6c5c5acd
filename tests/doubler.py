"""A deployment small enough to see through, for the tests of the edge: y = 2x, its first half on the edge.

The head adds 1, the tail subtracts it and doubles. An exit answers 2x + 100 and a local model 2x + 200, so
that an answer tells where it comes from.
"""

from __future__ import annotations

import math
import threading
import time
from dataclasses import dataclass

import torch

from splitedge.codec import TensorSpec, make_codec, rows_of
from splitedge.events import StageKind
from splitedge.parts import Outcome
from splitedge.policy import Option, Route
from splitedge.wire import Lane

SPEC = (TensorSpec((1, 8), "float32"),)
BUNDLE = "d0" * 32
SPLIT = Option(
    Route.SPLIT, "mid", None, "raw", 0, accuracy=0.9, edge_s=1e-5, edge_s_q95=1e-4, cloud_s=1e-5,
    cloud_s_q95=1e-4, bytes_up=80.0, bytes_up_q95=80.0, bytes_down=120.0,
)  # fmt: skip
EXIT = Option(Route.EXIT, exit=0, accuracy=0.7, edge_s=1e-5, edge_s_q95=1e-4)
LOCAL = Option(Route.LOCAL, accuracy=0.8, edge_s=1e-5, edge_s_q95=1e-4)


@dataclass
class Flow:
    x: torch.Tensor
    rows: int


class EdgeDouble:
    """The edge's half. `before(stage)` runs before each stage and may raise or wait."""

    digest = BUNDLE

    def __init__(self, options=(LOCAL, EXIT, SPLIT), before=None, codec="raw"):
        self.options = options
        self.codec = make_codec(codec, SPEC)
        self.before = before
        self.threads = []

    def lane(self, option):
        return Lane(self.digest, self.options[option].cut, self.codec.id)

    def input_specs(self):
        return SPEC

    def output_specs(self):
        return SPEC

    def assemble(self, tensors):
        return tensors[0]

    def open(self, inputs):
        return Flow(inputs, rows_of(SPEC, (inputs,), "the model's input"))

    def run(self, flow, stage):
        self.threads.append(threading.current_thread().name)
        if self.before is not None:
            self.before(stage)
        if stage.kind is StageKind.ENCODE:
            return Outcome(1e-5, 1e-5, payload=self.codec.encode((flow.x + 1,)))
        more = 100 if stage.kind is StageKind.EXIT else 200
        return Outcome(1e-5, confidence=0.75, output=flow.x * 2 + more)

    def finish(self, tensors, rows, option=None):
        return tensors[0], math.nan


class CloudDouble:
    """The cloud's half; `tail_s` seconds slow, `fail` raises, `executed` takes each row's first number."""

    digest = BUNDLE
    batchable = True

    def __init__(self, tail_s=0.0, fail=False, executed=None):
        self.codec = make_codec("raw", SPEC)
        self.lanes = (Lane(self.digest, "mid", self.codec.id),)
        self.tail_s = tail_s
        self.fail = fail
        self.executed = executed

    def cut_specs(self, lane):
        return SPEC

    def output_specs(self):
        return SPEC

    def max_bytes(self, lane, level, rows):
        return self.codec.max_bytes(level, rows)

    def decode(self, lane, data, max_rows):
        return self.codec.decode(data, max_rows=max_rows)

    def tail(self, lane, tensors):
        real = bool(tensors[0].any())  # a server warms up with zeros
        if self.executed is not None and real:
            self.executed(tensors[0])
        if self.tail_s:  # the warm-up too, or the server would take this tail for a short one
            time.sleep(self.tail_s)
        if self.fail and real:
            raise RuntimeError("the tail is broken")
        return ((tensors[0] - 1) * 2,)
