"""What the runtime asks of a deployment's two halves. The edge runtime and the cloud server know these
protocols and no model; `segments.py` implements them over exported programs and codecs.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, Protocol

from splitedge.codec import Payload, Tensors, TensorSpec
from splitedge.events import Stage
from splitedge.policy import Option
from splitedge.wire import Lane


@dataclass(slots=True)
class Outcome:
    """What one stage gave: compute seconds, and a payload (ENCODE) or an output (EXIT, LOCAL).

    `output` has the structure of the model's own output; `confidence` is the calibrated probability
    that it is right, the least over the rows, NaN where not known. Where the option has a gate, ENCODE gives
    both as well: what its filter would answer in place of sending.
    """

    head_s: float
    encode_s: float = 0.0
    confidence: float = math.nan
    payload: Payload | None = None
    output: Any = None


class Flow(Protocol):
    """One request inside the edge's half: its inputs and how far the head has run."""

    @property
    def rows(self) -> int:
        """Rows of the batch."""
        ...


class EdgeModel(Protocol):
    """The edge's half: head segments, exits, encoders, and perhaps a local model.

    `run` is called from one thread at a time; the others change nothing and may be called meanwhile.
    """

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle, 64 hex digits: the same on both sides."""
        ...

    @property
    def options(self) -> tuple[Option, ...]:
        """The ways to answer a request, the table every policy chooses from."""
        ...

    def lane(self, option: int) -> Lane:
        """The lane a remote option's payloads are sent on."""
        ...

    def input_specs(self) -> tuple[TensorSpec, ...]:
        """The flat tensors of the model's input."""
        ...

    def assemble(self, tensors: Tensors) -> Any:
        """What `open` takes, from its flat tensors: the way in for callers that know no Python structure."""
        ...

    def open(self, inputs: Any) -> Flow:
        """Check a caller's input (tensor, tuple or dict, as the example inputs were) and begin a flow.

        Raises:
            CodecError: number, dtype or shape do not fit the model.
        """
        ...

    def features(self, flow: Flow) -> tuple[float, ...]:
        """Cheap numbers of the input (`features.NAMES`), the mean over its rows. Asked only for a policy
        that `wants_features`.
        """
        ...

    def run(self, flow: Flow, stage: Stage) -> Outcome:
        """Compute one stage. Stages of a flow may come in any order; head segments run at most once."""
        ...

    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The flat tensors of the model's output, as the cloud returns them."""
        ...

    def finish(self, tensors: Tensors, rows: int, option: int | None = None) -> tuple[Any, float]:
        """Put the cloud's flat output tensors back into the model's output structure; with confidence
        (NaN where the output is no classification) as the answers of the option they came by have it.
        """
        ...


class CloudModel(Protocol):
    """The cloud's half: decoders and tail segments. One thread at a time."""

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle."""
        ...

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """The kinds of request it can serve."""
        ...

    @property
    def batchable(self) -> bool:
        """Whether rows of several requests may be run as one batch."""
        ...

    def cut_specs(self, lane: Lane) -> tuple[TensorSpec, ...]:
        """The tensors that `decode` gives and `tail` takes."""
        ...

    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The flat tensors `tail` gives."""
        ...

    def max_bytes(self, lane: Lane, level: int, rows: int) -> int:
        """The most bytes a payload of this lane may have; checked before anything is decoded.

        Raises:
            CodecError: no such level.
        """
        ...

    def decode(self, lane: Lane, data: memoryview, max_rows: int) -> Tensors:
        """Decode one request's payload.

        Raises:
            CodecError: damaged, truncated or oversized.
        """
        ...

    def tail(self, lane: Lane, tensors: Tensors) -> Tensors:
        """Run the rest of the model on a batch, a learned codec's decoder first; flat outputs on the CPU."""
        ...
