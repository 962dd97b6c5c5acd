"""The least a model can be: one cut, the `raw` codec, and a tail that returns what it is given."""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from typing import Any

import torch

from splitedge.codec import Codec, Tensors, TensorSpec, make_codec, rows_of
from splitedge.events import Stage
from splitedge.parts import Outcome
from splitedge.policy import Option, Route
from splitedge.wire import Lane


def _digest(nbytes: int) -> str:
    return hashlib.sha256(b"identity %d" % nbytes).hexdigest()


def _codec(nbytes: int) -> Codec:
    return make_codec("raw", (TensorSpec((1, nbytes // 4), "float32"),))


@dataclass(slots=True)
class _Flow:
    tensors: Tensors
    rows: int


class IdentityHead:
    """An `EdgeModel` that sends its input of `nbytes` a row, encoded as it is."""

    def __init__(self, nbytes: int) -> None:
        self._codec = _codec(nbytes)
        self.digest = _digest(nbytes)
        self.options = (Option(Route.SPLIT, cut="cut", codec="raw", bytes_up=nbytes, bytes_down=nbytes),)

    def lane(self, option: int) -> Lane:
        """The one lane."""
        return Lane(self.digest, "cut", self._codec.id)

    def open(self, inputs: Any) -> _Flow:
        """Check the input as a real model does."""
        return _Flow((inputs,), rows_of(self._codec.read_specs, (inputs,), "the input"))

    def run(self, flow: _Flow, stage: Stage) -> Outcome:
        """Encode."""
        return Outcome(head_s=0.0, payload=self._codec.encode(flow.tensors))

    def output_specs(self) -> tuple[TensorSpec, ...]:
        """As what was sent."""
        return self._codec.give_specs

    def finish(self, tensors: Tensors, rows: int, option: int | None = None) -> tuple[torch.Tensor, float]:
        """The one tensor."""
        return tensors[0], math.nan


class IdentityTail:
    """A `CloudModel` whose tail returns what the decoder gave."""

    batchable = True

    def __init__(self, nbytes: int) -> None:
        self._codec = _codec(nbytes)
        self.digest = _digest(nbytes)
        self.lanes = (Lane(self.digest, "cut", self._codec.id),)

    def cut_specs(self, lane: Lane) -> tuple[TensorSpec, ...]:
        """As what was sent."""
        return self._codec.give_specs

    def output_specs(self) -> tuple[TensorSpec, ...]:
        """As what was sent."""
        return self._codec.give_specs

    def max_bytes(self, lane: Lane, level: int, rows: int) -> int:
        """Of a payload."""
        return self._codec.max_bytes(level, rows)

    def decode(self, lane: Lane, data: memoryview, max_rows: int) -> Tensors:
        """A payload, its CRC checked."""
        return self._codec.decode(data, max_rows=max_rows)

    def tail(self, lane: Lane, tensors: Tensors) -> Tensors:
        """Nothing."""
        return tensors
