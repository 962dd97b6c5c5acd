"""A learned codec that learns nothing: keeps every fourth pixel of an image, for tests of the bench."""

from __future__ import annotations

import torch
from torch import nn

from splitedge.codec import CodecState
from splitedge.errors import CodecError
from splitedge.learning import LearnedCodec
from splitedge.partition import capture


class Shrink(nn.Module):
    def forward(self, x):
        return x[:, :, ::2, ::2] * 1.0


class Answer(nn.Module):
    """What the decoder adds: an upsampling, then the whole model."""

    def __init__(self, segments):
        super().__init__()
        self.segments = nn.ModuleList(segments)

    def forward(self, small):
        tensors = (nn.functional.interpolate(small, scale_factor=2.0, mode="nearest"),)
        for segment in self.segments:
            tensors = segment(*tensors)
        return tensors[0]


class Fake(LearnedCodec):
    name = "fake"
    gives = "output"
    trained = 0

    def __init__(self, reads, gives, encoder, decoder):
        super().__init__(reads, gives)
        self.encoder, self.decoder = encoder, decoder

    @property
    def levels(self):
        return ("rough", "fine")

    @property
    def unpacked_specs(self):
        spec = self.read_specs[0]
        n, c, h, w = spec.shape
        return (type(spec)((n, c, h // 2, w // 2), "float32"),)

    def max_body(self, level, rows):
        return rows * self.unpacked_specs[0].numel()

    def _encode(self, tensors, level, rows):
        steps = (15, 255)[level]
        (small,) = self.encoder(*tensors)
        return (small.clamp(0, 1) * steps).round().to(torch.uint8).numpy().tobytes()

    def _decode(self, body, level, rows):
        spec = self.unpacked_specs[0]
        if body.nbytes != spec.numel(rows):
            raise CodecError("length")
        q = torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(spec.shape_at(rows))
        return (q.float() / (15, 255)[level],)

    def expand(self, tensors):
        return tuple(self.decoder(*tensors))

    def state(self):
        return CodecState({"fake": 1}, {"table": torch.ones(4)}, self.encoder, self.decoder)

    @classmethod
    def from_state(cls, state, reads, gives=None):
        return cls(reads, gives, state.encoder, state.decoder)

    @classmethod
    def check(cls, reads, cut, *, refuse=False):
        if refuse:
            raise CodecError("asked to refuse")

    @classmethod
    def train(cls, task, schedule, *, refuse=False):
        cls.trained += 1
        x = task.val.first(2).inputs[0]
        (encoder,) = capture(Shrink(), x).segments([])
        (decoder,) = capture(Answer([*task.head, *task.tail]), encoder(x)[0]).segments([])
        return cls(task.reads, task.outputs.specs, encoder, decoder), (0.9, 0.9), (100.0, 100.0), 3
