"""Zstandard frames that lie, burst or lack their checksum."""

from __future__ import annotations

import tracemalloc

import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.codecs.lossless import Zstd
from splitedge.errors import CodecError

CAP = 1 << 16


def frame(content: bytes, **options: bool) -> bytes:
    return zstandard.ZstdCompressor(**({"write_checksum": True} | options)).compress(content)


def behind_flag(data: bytes) -> memoryview:
    return memoryview(b"\x01" + data)


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=500), st.integers(0, 40))
def test_content_comes_back_and_never_grows_by_more_than_the_flag(content: bytes, repeat: int) -> None:
    content = content * repeat
    zstd = Zstd()
    packed = zstd.pack(content, 4)
    assert len(packed) <= len(content) + 1
    back, flags = zstd.unpack(memoryview(packed), len(content))
    assert (bytes(back), flags) == (content, 4)


def bomb(declare: bool) -> bytes:
    """256 MiB of zeros as a frame of some kB."""
    size = 256 << 20
    compressor = zstandard.ZstdCompressor(write_checksum=True)
    chunks = compressor.compressobj(size=size if declare else -1)
    zeros = bytes(1 << 20)
    return b"".join(chunks.compress(zeros) for _ in range(256)) + chunks.flush()


@pytest.mark.parametrize("declare", [True, False])
def test_a_bomb_costs_nothing(declare: bool) -> None:
    data = behind_flag(bomb(declare))
    zstd = Zstd()
    tracemalloc.start()
    try:
        with pytest.raises(CodecError, match="declares"):
            zstd.unpack(data, CAP)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 2 * CAP


@pytest.mark.parametrize("declared", [255, 257, 301, 40_000, CAP])
def test_a_frame_that_lies_about_its_size(declared: int) -> None:
    honest = frame(bytes(range(256)) + bytes(44))
    assert honest[4] & 0xE0 == 0x60  # a single segment whose size stands in the next two bytes, less 256
    lying = honest[:5] + ((declared - 256) % 65536).to_bytes(2, "little") + honest[7:]
    with pytest.raises(CodecError):
        Zstd().unpack(behind_flag(lying), CAP)


def test_frames_that_are_not_ours_are_refused() -> None:
    good = frame(b"abc" * 50)
    bad = {
        "checksum": frame(b"abc" * 50, write_checksum=False),
        "declares": frame(b"abc" * 50, write_content_size=False),
        "magic": b"\x50\x2a\x4d\x18\x04\x00\x00\x00abcd" + good,  # a skippable frame first
        "damaged": good + b"\0",
    }
    for message, data in bad.items():
        with pytest.raises(CodecError, match=message):
            Zstd().unpack(behind_flag(data), CAP)
    with pytest.raises(CodecError, match="damaged"):
        Zstd().unpack(behind_flag(good + good), CAP)
    with pytest.raises(CodecError, match="declares 0"):
        Zstd().unpack(behind_flag(frame(b"")), CAP)
    with pytest.raises(CodecError, match="flag byte"):
        Zstd().unpack(memoryview(b""), CAP)
    with pytest.raises(CodecError, match="at most 3"):
        Zstd().unpack(memoryview(b"\0abcd"), 3)


def test_a_huge_window_is_refused() -> None:
    options = zstandard.ZstdCompressionParameters(window_log=27, write_content_size=1, write_checksum=1)
    chunks = zstandard.ZstdCompressor(compression_params=options).compressobj(size=100)
    data = chunks.compress(bytes(100)) + chunks.flush()
    # The library shrinks the window to the content; put the large one back into the header by hand.
    assert data[4] & 0x20
    windowed = (
        data[:4] + bytes((data[4] & ~0x20 & 0x3F | 0x80, 0x88)) + (100).to_bytes(4, "little") + data[6:]
    )
    assert zstandard.get_frame_parameters(windowed).window_size >= 1 << 27
    with pytest.raises(CodecError, match="window"):
        Zstd().unpack(behind_flag(windowed), CAP)


def test_every_single_bit_flip_is_noticed() -> None:
    content = bytes(i * i % 251 for i in range(400)) * 2
    data = bytearray(Zstd().pack(content))
    assert data[0] == 1
    accepted = 0
    for bit in range(8, 8 * len(data)):
        data[bit // 8] ^= 1 << bit % 8
        try:
            back, _ = Zstd().unpack(memoryview(bytes(data)), len(content))
            accepted += bytes(back) != content
        except CodecError:
            pass
        data[bit // 8] ^= 1 << bit % 8
    assert accepted == 0
