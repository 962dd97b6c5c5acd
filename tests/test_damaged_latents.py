"""What happens to a learned codec's payload on the way: noticed, whatever it is, and in little memory."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch

from splitedge.codec import Codec, CodecState, TensorSpec
from splitedge.codecs.range_coder import RangeCoder
from splitedge.codecs.tables import Tables
from splitedge.codecs.uniform import Uniform
from splitedge.errors import CodecError

CHANNELS, INNER = 6, 64
WIDTHS = (2, 6)


class Latent(Codec):
    """As the learned codecs do it, without a network: quantiser and coder, two widths for levels."""

    name: ClassVar[str] = "latent"

    def __init__(self, tables: Tables, inner: int = INNER) -> None:
        super().__init__([TensorSpec((1, tables.channels, inner), "float32")])
        k = tables.channels
        self.quantiser = Uniform(np.full(k, -3.0, np.float32), np.full(k, 0.4, np.float32), 15)
        self.coder = RangeCoder(tables, inner)

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(f"{width} channels" for width in WIDTHS)

    def _encode(self, tensors, level, rows):
        return self.coder.encode(self.quantiser.codes(tensors[0].numpy()), WIDTHS[level])

    def _decode(self, body, level, rows):
        codes = self.coder.decode(body, rows, WIDTHS[level])
        out = torch.zeros(rows, CHANNELS, self.coder.inner)
        out[:, : WIDTHS[level]] = torch.from_numpy(self.quantiser.values(codes))
        return (out,)

    def max_body(self, level, rows):
        return self.coder.max_bytes(rows, WIDTHS[level])

    def state(self):
        return CodecState({"codec": self.name}, self.coder.tables.tensors())

    @classmethod
    def from_state(cls, state, reads, gives=None):
        return cls(Tables.from_tensors(state.tensors))


def latent_codec(inner: int = INNER) -> Latent:
    sample = np.random.default_rng(0).standard_normal((200, CHANNELS, 16)).astype(np.float32)
    codes = np.clip(np.rint((sample + 3.0) / 0.4), 0, 15).astype(np.uint8)
    return Latent(Tables.of(codes, 16), inner)


def mutations(rng: np.random.Generator) -> list[Callable[[bytearray, bytes], bytearray]]:
    def flip(data: bytearray, _: bytes) -> bytearray:
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(len(data))] ^= 1 << int(rng.integers(8))
        return data

    def truncate(data: bytearray, _: bytes) -> bytearray:
        return data[: rng.integers(len(data))]

    def extend(data: bytearray, _: bytes) -> bytearray:
        return data + rng.bytes(int(rng.integers(1, 40)))

    def splice(data: bytearray, other: bytes) -> bytearray:
        at = rng.integers(len(data))
        return data[:at] + other[at:]

    def swap(data: bytearray, _: bytes) -> bytearray:
        a, b = rng.integers(len(data), size=2)
        n = int(rng.integers(1, 5))
        data[a : a + n], data[b : b + n] = data[b : b + n], data[a : a + n]
        return data

    return [flip, truncate, extend, splice, swap]


def test_a_hundred_thousand_mutations_are_noticed():
    n = 100_000
    codec, rng = latent_codec(), np.random.default_rng(n)
    kinds = mutations(rng)
    payloads = []
    for i in range(40):
        x = torch.from_numpy(rng.standard_normal((1 + i % 3, CHANNELS, INNER)).astype(np.float32))
        payloads.append(codec.encode([x], i % 2).data)
    whole, changed, accepted = set(payloads), 0, 0
    while changed < n:
        data, other = (payloads[k] for k in rng.integers(len(payloads), size=2))
        hurt = bytes(kinds[changed % len(kinds)](bytearray(data), other))
        if hurt in whole:
            continue
        changed += 1
        try:
            codec.decode(hurt)
            accepted += 1
        except CodecError:
            pass
    assert accepted == 0


def test_a_narrow_level_gives_the_first_channels_of_a_wide_one():
    codec = latent_codec()
    x = torch.randn(2, CHANNELS, INNER, generator=torch.Generator().manual_seed(0))
    narrow, wide = (codec.encode([x], level) for level in (0, 1))
    assert narrow.nbytes < wide.nbytes
    assert torch.equal(codec.decode(narrow)[0][:, :2], codec.decode(wide)[0][:, :2])


def test_an_input_made_to_inflate_takes_its_packed_size_at_most():
    codec = latent_codec()
    rare = int(codec.coder.tables.frequencies[0].argmin())
    x = torch.full((1, CHANNELS, INNER), -3.0 + 0.4 * rare)
    payload = codec.encode([x])
    assert payload.level == 1 and payload.nbytes == 8 + CHANNELS * INNER // 2 == codec.max_bytes(1)
    assert (codec.decode(payload)[0] - x).abs().max() <= 0.2


def test_decoding_takes_at_most_as_much_again_as_it_gives():
    codec = latent_codec(12_000)
    rng = np.random.default_rng(0)
    x = torch.from_numpy(rng.standard_normal((1, CHANNELS, 12_000)).astype(np.float32))
    good = codec.encode([x]).data
    rare = torch.full_like(x, -3.0)
    packed = codec.encode([rare]).data
    for data in (good, packed, good[:20], good + bytes(50), packed[:-1]):
        tracemalloc.start()
        try:
            codec.decode(data)
        except CodecError:
            pass
        finally:
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert peak <= 2 * x.numel() * 4
