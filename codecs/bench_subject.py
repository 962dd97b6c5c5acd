"""What a rate-distortion bench runs on: a model that is a classifier, its data, and places to cut it."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn

from splitedge.codec import Codec, Tensors, make_codec
from splitedge.codecs.contenders import Contender, Place
from splitedge.codecs.image_codec import Range
from splitedge.codecs.macs import macs
from splitedge.errors import CodecError, ConfigError
from splitedge.learning import LearnedCodec, Task
from splitedge.partition import capture
from splitedge.pieces import Pieces, divide
from splitedge.plan import Plan
from splitedge.rows import LabelledRows
from splitedge.segments import Answers
from splitedge.tasks import task_of

#: Rows that a plain codec's static ranges come from.
CALIBRATION_ROWS = 256


@dataclass(frozen=True, slots=True)
class Subject:
    """One model with labelled rows, in three parts that share none.

    Attributes:
        name: for people and for what is kept on disk.
        model: takes one tensor, gives logits of shape (N, classes); in eval mode.
        train: to train and calibrate on.
        val: chooses when a codec's training stops.
        test: results are reported on it and nothing is chosen by it.
        cuts: module path of each place; `input` needs none.
        raw_bytes: of one row as it comes from the sensor.
        value_range: of float images, as the image codecs take it; None where they are uint8.
    """

    name: str
    model: nn.Module
    train: LabelledRows
    val: LabelledRows
    test: LabelledRows
    cuts: Mapping[Place, str]
    raw_bytes: int
    value_range: Range | None = None

    def digest(self) -> str:
        """8 hex digits over the weights and labels: results of another subject are not taken for these."""
        h = hashlib.sha256(self.name.encode())
        for name, tensor in sorted(self.model.state_dict().items()):
            h.update(name.encode())
            h.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
        for rows in (self.train, self.val, self.test):
            h.update(rows.labels.numpy().tobytes())
        return h.hexdigest()[:8]


class Divided:
    """A subject's model in pieces at all its places.

    Attributes:
        subject: it was made from.
        pieces: boundary 0 is the input.
        logits: which flat output holds them.
        model_macs: multiply-accumulates of the whole model on one row.
        model_kib: weights and buffers of the whole model.

    Raises (constructor):
        PartitionError: the model can not be captured, or has no such module.
        ConfigError: it is no classifier.
    """

    def __init__(self, subject: Subject) -> None:
        self.subject = subject
        graph = capture(subject.model, subject.train.first(2).inputs[0], dynamic_batch="auto")
        self.pieces: Pieces = divide(graph, [graph.cut(path) for path in subject.cuts.values()])
        logits = Answers(self.pieces.outputs).logits
        if logits is None:
            raise ConfigError(f"subject '{subject.name}': the bench needs a classifier that gives logits")
        self.logits = logits
        self._places = {
            place: self.pieces.index[graph.cut(path).name] for place, path in subject.cuts.items()
        }
        self._places["input"] = 0
        self._tasks: dict[tuple[int, int], Task] = {}
        self.model_macs = macs(self.between(0, None), self.pieces.inputs.specs)
        self.model_kib = sum(map(kib, self.between(0, None)))

    def boundary(self, place: Place) -> int:
        """Number of the boundary of a place.

        Raises:
            ConfigError: the subject names no such place.
        """
        if place not in self._places:
            raise ConfigError(f"subject '{self.subject.name}' has no cut '{place}'")
        return self._places[place]

    def between(self, start: int, stop: int | None) -> list[nn.Module]:
        """Segments from one boundary to another, None for the output."""
        end = len(self.pieces.boundaries) if stop is None else stop
        found = [self.pieces.segments[i] for i in range(start, end)]
        return [segment for segment in found if isinstance(segment, nn.Module)]

    def source(self, contender: Contender, kind: type[LearnedCodec] | None) -> int:
        """The boundary that a contender's encoder reads."""
        if kind is None or kind.reads_cut:
            return self.boundary(contender.cut)
        return 0

    def task(self, source: int, cut: int) -> Task:
        """What a learned codec is trained on; the same for the same places."""
        if (source, cut) in self._tasks:
            return self._tasks[source, cut]
        pieces, subject = self.pieces, self.subject
        plan = Plan(pieces.inputs, Answers(pieces.outputs), pieces.boundaries, pieces.segments, (), {})
        task = self._tasks[source, cut] = task_of(plan, cut, source, subject.train, subject.val)
        return task

    def plain(self, contender: Contender) -> Codec:
        """A codec that needs no training, its static ranges from training rows.

        Raises:
            CodecError: it can not work on these tensors.
            UnknownName: no such codec is installed.
        """
        boundary = self.boundary(contender.cut)
        options = dict(contender.options)
        image = contender.cut == "input" and self.subject.value_range is not None
        if image:
            options["value_range"] = self.subject.value_range
        try:
            codec = make_codec(contender.codec, self.pieces.boundaries[boundary].specs, **options)
        except TypeError as error:
            raise CodecError(f"contender '{contender.name}': {error}") from None
        if not image:
            codec.calibrate([self.run(self.subject.train.first(CALIBRATION_ROWS).inputs, 0, boundary)])
        return codec

    def run(self, tensors: Tensors, start: int, stop: int | None) -> Tensors:
        """Tensors at one boundary to those at another, None for the output."""
        with torch.inference_mode():
            for segment in self.between(start, stop):
                tensors = tuple(segment(*tensors))
        return tensors


def kib(module: object) -> float:
    """Weights and buffers of a network, KiB."""
    if not isinstance(module, nn.Module):
        return 0.0
    held = [*module.parameters(), *module.buffers()]
    return sum(tensor.numel() * tensor.element_size() for tensor in held) / 1024
