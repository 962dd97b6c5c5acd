"""The two halves of a deployment as chains of segments, behind the protocols of `parts.py`.

A model is divided at boundaries in topological order: boundary 0 is the model's input, and segment i
runs from boundary i to boundary i + 1, the last one to the model's output. Exits read a boundary,
codecs send one. The edge holds the segments before its last cut, the cloud those behind its first.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from splitedge.calibration import Calibration
from splitedge.codec import DTYPE_NAMES, Codec, Tensors, TensorSpec, rows_of
from splitedge.errors import CodecError
from splitedge.events import Stage, StageKind
from splitedge.features import features_of
from splitedge.gating import nothing_logits, spare
from splitedge.parts import Flow, Outcome
from splitedge.placing import moved, placed, settle
from splitedge.policy import Gate, Option, Route
from splitedge.rows import as_flat
from splitedge.structure import LEAF, Structure, Tree
from splitedge.thresholds import Floats, as_floats
from splitedge.wire import Lane

#: Flat tensors in, a tuple of flat tensors out: a `partition.Program`, or a module wrapped by `segment_of`.
Segment = Callable[..., Tensors]
#: Containers whose children have names, so that one can be told to be the logits.
NAMED = ("dict", "output")


def confidence_of(logits: torch.Tensor, scale: Calibration | None) -> Floats:
    """Probability that each row's answer is right, of shape (rows,); before anything is calibrated, the
    largest softmax probability stands in.
    """
    if scale is not None:
        return scale.probability(logits)
    return as_floats(logits.float().softmax(-1).amax(-1))


@dataclass(frozen=True, slots=True)
class Boundary:
    """A place between two segments: the cut's name ("" for the model's input) and what crosses it."""

    name: str
    specs: tuple[TensorSpec, ...]


@dataclass(frozen=True, slots=True)
class Evidence:
    """What an exit said on rows that neither trained nor calibrated it: thresholds are chosen from this.

    Attributes:
        confidence: calibrated, one a row.
        correct: whether the answer was right.
    """

    confidence: tuple[float, ...]
    correct: tuple[bool, ...]


@dataclass(slots=True)
class ExitHead:
    """A classifier on the tensors of a boundary.

    Attributes:
        path: where the user asked for it.
        boundary: index of the boundary it reads.
        segment: the boundary's tensors to one tensor of logits, of shape (rows, classes).
        scale: calibration of its confidence; None before it is fitted.
        evidence: how right it is at which confidence; None before it is fitted.
    """

    path: str
    boundary: int
    segment: Segment
    scale: Calibration | None = None
    evidence: Evidence | None = None


@dataclass(slots=True)
class Local:
    """A complete model of its own that answers from the model's input."""

    segment: Segment
    scale: Calibration | None = None


@dataclass(slots=True)
class Answers:
    """How flat tensors become the caller's output.

    Attributes:
        structure: of the model's output.
        scale: calibration of the whole model's confidence; None before it is fitted.
        coded: calibration of what is answered through a learned codec, by the option's name: its logits are
            not the whole model's.
        main: the task that confidence and accuracy are about, where the output is a dict of several tasks.
    """

    structure: Structure
    scale: Calibration | None = None
    coded: Mapping[str, Calibration] = field(default_factory=dict)
    main: str | None = None

    @property
    def specs(self) -> tuple[TensorSpec, ...]:
        """The model's flat output tensors."""
        return self.structure.specs

    @property
    def logits(self) -> int | None:
        """Which flat tensor holds the logits: the only one, or the one named so; None for no classifier."""
        tree, before = self._task()
        index = before if tree.kind == "tensor" else None
        if tree.kind in NAMED and "logits" in tree.keys:
            at = tree.keys.index("logits")
            if tree.items[at].kind == "tensor":
                index = before + sum(leaves(child) for child in tree.items[:at])
        if (
            index is None
            or len(self.specs[index].shape) != 2
            or not self.specs[index].dtype.startswith("float")
        ):
            return None
        return index

    @property
    def tails(self) -> dict[str, range]:
        """Which flat tensors each extra tail gives, by name; empty where there is one task."""
        found, end, tree = {}, 0, self.structure.tree
        for name, child in zip(tree.keys, tree.items, strict=True) if self.main is not None else ():
            start, end = end, end + leaves(child)
            if name != self.main:
                found[str(name)] = range(start, end)
        return found

    def of_tail(self, name: str) -> Answers:
        """An extra tail's own."""
        tree, tensors = self.structure.tree, self.tails[name]
        specs = self.specs[tensors.start : tensors.stop]
        return Answers(Structure(tree.items[tree.keys.index(name)], specs))

    def _task(self) -> tuple[Tree, int]:
        """The tree of the main task's output, and how many tensors stand before it."""
        tree = self.structure.tree
        if self.main is None:
            return tree, 0
        at = tree.keys.index(self.main)
        return tree.items[at], sum(leaves(child) for child in tree.items[:at])

    def scale_of(self, option: Option) -> Calibration | None:
        """The calibration of a remote option's answers."""
        return self.coded.get(option.name, self.scale)

    def whole(self, tensors: Tensors, scale: Calibration | None) -> tuple[Any, float]:
        """The model's output from its flat tensors, and the least confidence (NaN for no classifier)."""
        confidence = math.nan
        if self.logits is not None:
            confidence = float(confidence_of(tensors[self.logits], scale).min())
        return self.structure.unflatten(tensors), confidence

    def unsent(self, gate: Gate, confidence: Floats, exit_logits: torch.Tensor | None) -> torch.Tensor:
        """Logits of rows that a filter keeps from being sent: the exit's, or those of the class named.

        Args:
            gate: the filter's.
            confidence: that the class is right, of shape (rows,).
            exit_logits: where the gate names an exit.
        """
        if exit_logits is not None:
            return exit_logits
        assert self.logits is not None and gate.nothing is not None  # a gate names an exit or a class
        return nothing_logits(confidence, gate.nothing, self.specs[self.logits].shape[1])

    def partial(self, logits: torch.Tensor) -> Any:
        """The output of an exit: `{"logits": ...}` in the model's own type where its output names logits,
        else the bare tensor. Of several tasks an exit answers the main one only.
        """
        tree, _ = self._task()
        found: Any = logits
        if tree.kind in NAMED:
            only = Structure(Tree(tree.kind, (LEAF,), ("logits",), tree.name), (spec_of(logits),))
            found = only.unflatten([logits])
        return found if self.main is None else {self.main: found}


def leaves(tree: Tree) -> int:
    """Number of tensors in a tree."""
    return 1 if tree.kind == "tensor" else sum(leaves(child) for child in tree.items)


def spec_of(tensor: torch.Tensor) -> TensorSpec:
    """The spec of one row of a batch along dimension 0."""
    return TensorSpec((1, *tensor.shape[1:]), DTYPE_NAMES[tensor.dtype], 0)


@dataclass(slots=True)
class SegmentFlow:
    """One request in the edge's half: the tensors at every boundary that was reached, and the exits run."""

    inputs: Tensors
    rows: int
    reached: dict[int, Tensors] = field(default_factory=dict)
    exits: dict[int, torch.Tensor] = field(default_factory=dict)  # logits of those run, on the CPU


class EdgeSegments:
    """The edge's half (`parts.EdgeModel`). One thread at a time.

    Args:
        digest: of the bundle, 64 hex digits.
        options: the option table.
        inputs: structure of the model's input.
        boundaries: from the input to the last cut.
        segments: as many as there are boundaries to reach: `segments[i]` ends at boundary i + 1.
        exits: by number.
        local: the local model.
        encoders: codec by cut name, "" for the input codec.
        answers: how outputs are put together.
        batchable: whether a batch of several rows may be given.
        sources: boundary that a cut's encoder reads where it is not the cut's own, by cut name.
        device: where segments, exits and local model run; inputs are moved there, outputs are given on
            the CPU.
        filters: by cut name, for the options that have a gate; they run on the CPU.
    """

    def __init__(
        self,
        digest: str,
        options: Sequence[Option],
        inputs: Structure,
        boundaries: Sequence[Boundary],
        segments: Sequence[Segment],
        exits: Sequence[ExitHead],
        local: Local | None,
        encoders: Mapping[str, Codec],
        answers: Answers,
        batchable: bool = True,
        sources: Mapping[str, int] | None = None,
        device: torch.device | None = None,
        filters: Mapping[str, Segment] | None = None,
    ) -> None:
        self._digest = digest
        self._options = tuple(options)
        self._inputs = inputs
        self._boundaries = tuple(boundaries)
        self._device = device
        self._segments = tuple(placed(segment, device) for segment in segments)
        self._exits = tuple(replace(head, segment=placed(head.segment, device)) for head in exits)
        self._local = None if local is None else replace(local, segment=placed(local.segment, device))
        self._encoders = dict(encoders)
        if device is not None:
            for encoder in self._encoders.values():
                encoder.to(device)
        self._filters = dict(filters or {})
        self._answers = answers
        self._batchable = batchable
        self._source = {boundary.name: i for i, boundary in enumerate(self._boundaries)} | dict(sources or {})

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle."""
        return self._digest

    @property
    def options(self) -> tuple[Option, ...]:
        """The option table."""
        return self._options

    def lane(self, option: int) -> Lane:
        """The lane of a remote option."""
        cut = self._options[option].cut or ""
        return Lane(self._digest, cut, self._encoders[cut].id)

    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The flat tensors of the model's output."""
        return self._answers.specs

    def input_specs(self) -> tuple[TensorSpec, ...]:
        """The flat tensors of the model's input."""
        return self._boundaries[0].specs

    def assemble(self, tensors: Tensors) -> Any:
        """The model's input from its flat tensors."""
        return self._inputs.unflatten(tensors)

    def open(self, inputs: Any) -> SegmentFlow:
        """Check a caller's input and begin a flow.

        Raises:
            CodecError: number, dtype or shape do not fit the model, or a value is NaN.
        """
        tensors = as_flat(inputs, self._inputs)
        rows = rows_of(self._boundaries[0].specs, tensors, "the model's input")
        if any(t.is_floating_point() and bool(t.isnan().any()) for t in tensors):
            raise CodecError(
                "the model's input holds NaN: every answer to it would be noise; look at its source"
            )
        if rows < 1 or (rows > 1 and not self._batchable):
            most = "any number of rows from 1" if self._batchable else "exactly 1 row"
            raise CodecError(f"the model takes {most} at a time, got {rows}")
        return SegmentFlow(tensors, rows, {0: tensors})

    def features(self, flow: Flow) -> tuple[float, ...]:
        """Cheap numbers of the input, the mean over its rows."""
        if not isinstance(flow, SegmentFlow):
            raise TypeError(f"a flow comes from open(), got {type(flow).__name__}")
        dims = [spec.batch_dim for spec in self._inputs.specs]
        return tuple(features_of(flow.inputs, dims).mean(0).tolist())

    def run(self, flow: Flow, stage: Stage) -> Outcome:
        """Compute one stage; head segments already run for this flow are not run again."""
        if not isinstance(flow, SegmentFlow):
            raise TypeError(f"a flow comes from open(), got {type(flow).__name__}")
        with torch.inference_mode():
            if stage.kind is StageKind.LOCAL:
                return self._run_local(flow)
            if stage.kind is StageKind.EXIT:
                return self._run_exit(flow, stage.number)
            return self._run_encode(flow, self._options[stage.number])

    def finish(self, tensors: Tensors, rows: int, option: int | None = None) -> tuple[Any, float]:
        """The cloud's flat tensors as the model's output, with confidence as the option's answers have."""
        answers = self._answers
        scale = answers.scale if option is None else answers.scale_of(self._options[option])
        return answers.whole(tensors, scale)

    def _run_local(self, flow: SegmentFlow) -> Outcome:
        if self._local is None:
            raise CodecError("this bundle has no local model")
        start = time.perf_counter()
        tensors = self._local.segment(*moved(flow.inputs, self._device))
        tensors = tuple(tensor.cpu() for tensor in tensors)
        output, confidence = self._answers.whole(tensors, self._local.scale)
        return Outcome(time.perf_counter() - start, confidence=confidence, output=output)

    def _run_exit(self, flow: SegmentFlow, number: int) -> Outcome:
        start = time.perf_counter()
        logits = self._exit_logits(flow, number)
        confidence = float(confidence_of(logits, self._exits[number].scale).min())
        seconds = time.perf_counter() - start
        return Outcome(seconds, confidence=confidence, output=self._answers.partial(logits))

    def _exit_logits(self, flow: SegmentFlow, number: int) -> torch.Tensor:
        if number not in flow.exits:
            head = self._exits[number]
            (logits,) = head.segment(*moved(self._advance(flow, head.boundary), self._device))
            flow.exits[number] = logits.cpu()
        return flow.exits[number]

    def _run_encode(self, flow: SegmentFlow, option: Option) -> Outcome:
        if option.route not in (Route.SPLIT, Route.CLOUD):
            raise CodecError(f"option '{option.name}' sends nothing")
        cut = option.cut or ""
        start = time.perf_counter()
        tensors = self._advance(flow, self._source[cut])
        settle(self._device)
        middle = time.perf_counter()
        outcome = Outcome(middle - start, payload=self._encoders[cut].encode(tensors, option.level))
        if option.gate is not None:
            self._filter(flow, option, option.gate, outcome)
        outcome.encode_s = time.perf_counter() - middle
        return outcome

    def _filter(self, flow: SegmentFlow, option: Option, gate: Gate, outcome: Outcome) -> None:
        """Add what the option's filter would answer in place of sending, and how sure it is."""
        encoder, payload = self._encoders[option.cut or ""], outcome.payload
        if payload is None or payload.level != option.level:
            return  # its threshold is for the level asked for
        logits = None if gate.exit is None else self._exit_logits(flow, gate.exit)
        network = self._filters[option.cut or ""]
        confidence = spare(network, encoder.unpacked_specs, encoder.unpack(payload), logits)
        outcome.confidence = float(confidence.min())
        outcome.output = self._answers.partial(self._answers.unsent(gate, confidence, logits))

    def _advance(self, flow: SegmentFlow, boundary: int) -> Tensors:
        """The tensors at a boundary, running the segments that are still missing."""
        if boundary in flow.reached:
            return flow.reached[boundary]
        at = max(i for i in flow.reached if i < boundary)
        tensors = moved(flow.reached[at], self._device)
        for i in range(at, boundary):
            tensors = tuple(self._segments[i](*tensors))
            flow.reached[i + 1] = tensors
        return tensors


class CloudSegments:
    """The cloud's half (`parts.CloudModel`). One thread at a time.

    Args:
        digest: of the bundle.
        boundaries: all of the model's.
        segments: by the boundary they start from, up to the output; a missing one is never needed.
        decoders: codec by cut name, "" for the input codec.
        output_specs: flat tensors of the model's output.
        batchable: whether rows of several requests may run as one batch.
        device: where the tail runs; its segments are moved there.
    """

    def __init__(
        self,
        digest: str,
        boundaries: Sequence[Boundary],
        segments: Mapping[int, Segment],
        decoders: Mapping[str, Codec],
        output_specs: Sequence[TensorSpec],
        batchable: bool,
        device: torch.device | None = None,
    ) -> None:
        self._digest = digest
        self._index = {boundary.name: i for i, boundary in enumerate(boundaries)}
        self._last = len(boundaries)
        self._device = device
        self._segments = {i: placed(segment, device) for i, segment in segments.items()}
        if device is not None:
            for codec in decoders.values():
                codec.to(device)
        self._output_specs = tuple(output_specs)
        self._batchable = batchable
        self._decoders = {Lane(digest, cut, codec.id): codec for cut, codec in decoders.items()}

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle."""
        return self._digest

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """One lane a cut (and one for the model's input)."""
        return tuple(self._decoders)

    @property
    def batchable(self) -> bool:
        """Whether rows of several requests may run as one batch."""
        return self._batchable

    def cut_specs(self, lane: Lane) -> tuple[TensorSpec, ...]:
        """What is unpacked from the lane's payloads."""
        return self._decoder(lane).unpacked_specs

    def output_specs(self) -> tuple[TensorSpec, ...]:
        """The flat tensors `tail` gives."""
        return self._output_specs

    def max_bytes(self, lane: Lane, level: int, rows: int) -> int:
        """The most bytes a payload may have."""
        return self._decoder(lane).max_bytes(level, rows)

    def decode(self, lane: Lane, data: memoryview, max_rows: int) -> Tensors:
        """Unpack one request's payload; the network of a learned codec runs with the tail, on a batch."""
        return self._decoder(lane).unpack(data, max_rows=max_rows)

    def tail(self, lane: Lane, tensors: Tensors) -> Tensors:
        """Run what lies between a payload's tensors and the output."""
        decoder = self._decoder(lane)
        with torch.inference_mode():
            tensors = decoder.expand(moved(tensors, self._device))
            if decoder.gives == "output":
                return tuple(tensor.cpu().contiguous() for tensor in tensors)
            for i in range(self._index[lane.cut], self._last):
                tensors = tuple(self._segments[i](*tensors))
            return tuple(tensor.cpu().contiguous() for tensor in tensors)

    def _decoder(self, lane: Lane) -> Codec:
        codec = self._decoders.get(lane)
        if codec is None:
            raise CodecError(f"no lane for cut '{lane.cut}' with codec {lane.codec} in this bundle")
        return codec
