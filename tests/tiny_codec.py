"""A learned codec small enough for tests: a linear latent of 6 values, one byte each, two levels.

`register` makes it findable as an installed plug-in is: by an entry point.
"""

from __future__ import annotations

import hashlib
from importlib.metadata import EntryPoint

import torch
from torch import nn

from splitedge import registry
from splitedge.codec import GROUP, CodecState, TensorSpec
from splitedge.errors import CodecError
from splitedge.learning import LearnedCodec
from splitedge.partition import capture

VALUES = 6


def register(monkeypatch, name="tiny", kind="Tiny"):
    monkeypatch.setitem(registry._table(GROUP), name, EntryPoint(name, f"tiny_codec:{kind}", GROUP))


def install(directory):
    """What a wheel would leave, for other processes with `directory` on their path."""
    info = directory / "tiny-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 0\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\ntiny = tiny_codec:Tiny\n")


class Squeeze(nn.Module):
    def __init__(self, reads):
        super().__init__()
        self.layer = nn.Linear(reads[0].numel(), VALUES)

    def forward(self, x):
        return torch.sigmoid(self.layer(x.float().flatten(1)))


class Widen(nn.Module):
    def __init__(self, cut):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(VALUES, 64), nn.ReLU(), nn.Linear(64, cut[0].numel()))
        self.shape = cut[0].shape[1:]

    def forward(self, z):
        return self.layers(z).reshape(-1, *self.shape)


class Whole(nn.Module):
    """The decoder and the tail behind it: what answers in the tail's place."""

    def __init__(self, widen, tail):
        super().__init__()
        self.widen, self.tail = widen, nn.ModuleList(tail)

    def forward(self, z):
        tensors = (self.widen(z),)
        for program in self.tail:
            tensors = program(*tensors)
        return tensors[0]


def digest(network):
    return hashlib.sha256(b"".join(network.to_bytes())).hexdigest()[:16]


class Tiny(LearnedCodec):
    """6 bytes a row, or 6 values of 4 bits in a byte each at level 0."""

    name = "tiny"
    gives = "output"

    def __init__(self, reads, gives=None, *, config, encoder, decoder):
        super().__init__(reads, gives)
        self._config, self._encoder, self._decoder = config, encoder, decoder

    levels = ("4 bits", "8 bits")

    @property
    def unpacked_specs(self):
        return (TensorSpec((1, VALUES), "float32"),)

    @classmethod
    def check(cls, reads, cut, *, steps=30, rate=0.01):
        if len(reads) != 1 or len(cut) != 1 or cut[0].dtype != "float32":
            raise CodecError("tiny takes one tensor")

    @classmethod
    def train(cls, task, schedule, *, steps=30, rate=0.01):
        torch.manual_seed(schedule.seed)
        squeeze, widen = Squeeze(task.reads), Widen(task.cut)
        target = task.train.inputs
        with torch.no_grad():
            for program in task.before:
                target = program(*target)
            (reads,) = target
            for program in task.head:
                target = program(*target)
        networks = nn.ModuleList([squeeze, widen])
        optimiser = torch.optim.Adam(networks.parameters(), rate)
        epochs = steps if schedule.epochs is None else schedule.epochs
        for _ in range(epochs):
            for rows in torch.randperm(len(reads)).split(128):
                optimiser.zero_grad()
                loss = ((widen(squeeze(reads[rows])) - target[0][rows]) ** 2).mean()
                loss.backward()
                optimiser.step()
        whole = widen if cls.gives == "cut" else Whole(widen, task.tail)
        (encoder,) = capture(squeeze.eval(), reads[:4], dynamic_batch="auto").segments([])
        (decoder,) = capture(whole.eval(), torch.rand(4, VALUES), dynamic_batch="auto").segments([])
        config = {"encoder": digest(encoder), "decoder": digest(decoder)}
        gives = task.cut if cls.gives == "cut" else task.outputs.specs
        codec = cls(task.reads, gives, config=config, encoder=encoder, decoder=decoder)
        return codec, (0.5, 0.5), (14.0, 14.0), epochs

    def state(self):
        return CodecState(dict(self._config), {}, self._encoder, self._decoder)

    @classmethod
    def from_state(cls, state, reads, gives=None):
        for network, key in ((state.encoder, "encoder"), (state.decoder, "decoder")):
            if network is not None and digest(network) != state.config[key]:
                raise CodecError(f"the {key} is another one")
        return cls(reads, gives, config=state.config, encoder=state.encoder, decoder=state.decoder)

    def _encode(self, tensors, level, rows):
        if self._encoder is None:
            raise CodecError("this half has no encoder")
        (z,) = self._encoder(*tensors)
        step = 17 if level == 0 else 1
        return ((z * 255 / step).round() * step).to(torch.uint8).numpy().tobytes()

    def _decode(self, body, level, rows):
        if len(body) != rows * VALUES:
            raise CodecError("not 6 bytes a row")
        return (torch.frombuffer(bytearray(body), dtype=torch.uint8).reshape(rows, VALUES) / 255,)

    def expand(self, tensors):
        if self._decoder is None:
            raise CodecError("this half has no decoder")
        return self._decoder(*tensors)

    def max_body(self, level, rows):
        return rows * VALUES


class TinyCut(Tiny):
    """The same, giving the cut's tensors back."""

    name = "tiny-cut"
    gives = "cut"
