"""wire.py: every message survives the round trip; no bytes end in anything but a message or WireError."""

from __future__ import annotations

import math
import socket
import threading
import tracemalloc

import msgpack
import pytest
import torch
import zmq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitedge import wire
from splitedge.errors import WireError
from splitedge.wire import (
    Ask,
    Cancel,
    Hello,
    Infer,
    Lane,
    Limits,
    Ping,
    Pong,
    Refuse,
    Reply,
    Tell,
    Welcome,
    pack,
    unpack,
)

#: A busy machine is no failure of the code.
CALM = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

u16, u32, u64 = (st.integers(0, 2**n - 1) for n in (16, 32, 64))
text = st.text(max_size=40)
eight = st.binary(min_size=8, max_size=8)
payloads = st.one_of(st.binary(max_size=64), st.integers(0, 2 * wire.INLINE).map(lambda n: b"\x5a" * n))


@st.composite
def tensors(draw):
    dtype = draw(st.sampled_from(wire.DTYPES))
    shape = draw(st.lists(st.integers(1, 7), max_size=4))
    count = math.prod(shape) * dtype.itemsize
    raw = torch.arange(count, dtype=torch.int64).mul(37).remainder(2 if dtype is torch.bool else 251)
    return raw.to(torch.uint8).view(dtype).reshape(shape)


@st.composite
def asks(draw):
    count = draw(st.integers(1, 9000))
    drafts = draw(st.integers(0, min(count, 256)))
    return Ask(
        *(draw(n) for n in (u64, u16, u16, u32, u64, u32, u32, u64)),
        count,
        drafts,
        draw(u16),
        *(draw(st.integers(0, most)) for most in (100_000_000, 1_000_000, 2**32 - 1, 2**64 - 1)),
        tuple(draw(st.lists(u32, max_size=5))),
        draw(payloads),
        draw(st.sampled_from([b"", b"\x5a" * 4 * count])),
        draw(st.one_of(st.just(b""), payloads)) if drafts else b"",
        draw(st.integers(0, 21)),
    )


@st.composite
def tells(draw):
    count = draw(st.integers(0, 20))
    sure = draw(st.sampled_from([b"", b"\x5a" * 12 * count]))
    numbers = [draw(n) for n in (u64, u16, u64, u64, u64, u32, u32, u16, st.integers(0, 1), u64, u64)]
    return Tell(*numbers, b"\x01" * 4 * count, sure)


messages = st.one_of(
    st.builds(Hello, eight, st.lists(st.builds(Lane, text, text, text), max_size=5).map(tuple)),
    st.builds(Welcome, eight, st.lists(st.integers(-1, 2**16 - 1), max_size=5).map(tuple), text, u64),
    st.builds(Infer, u64, u16, u16, st.integers(1, 2**16 - 1), u32, payloads),
    st.builds(Reply, u64, u16, u64, u64, u64, u64, u64, st.lists(tensors(), max_size=3).map(tuple)),
    st.builds(Refuse, u64, u16, text, text, u32),
    st.builds(Cancel, u64),
    st.builds(Ping, u64),
    st.builds(Pong, u64, u64, u64),
    asks(),
    tells(),
)


def same(a, b):
    """Field by field, tensors and buffers by their bytes."""
    assert type(a) is type(b)
    for name in type(a).__slots__:
        x, y = getattr(a, name), getattr(b, name)
        if name in ("payload", "ids", "confidence"):
            assert bytes(x) == bytes(y)
        elif name == "tensors":
            assert len(x) == len(y)
            for s, t in zip(x, y, strict=True):
                assert s.dtype == t.dtype and s.shape == t.shape
                assert s.flatten().view(torch.uint8).equal(t.flatten().view(torch.uint8))
        else:
            assert x == y


@CALM
@given(messages)
def test_every_message_survives_the_round_trip(message):
    same(message, unpack(pack(message)))


@CALM
@given(messages)
def test_frames_may_be_bytes_views_or_zmq_frames(message):
    frames = pack(message)
    same(message, unpack([bytes(f) for f in frames]))
    same(message, unpack([zmq.Frame(bytes(f)) for f in frames]))


def test_a_small_request_is_one_frame_and_a_big_one_is_not_copied():
    assert len(pack(Infer(1, 1, 0, 1, 0, bytes(wire.INLINE - 1)))) == 1
    payload = bytes(wire.INLINE)
    frames = pack(Infer(1, 1, 0, 1, 0, payload))
    assert len(frames) == 2 and frames[1] is payload
    back = unpack(frames)
    assert back.payload.obj is payload


def test_many_small_tensors_never_pass_the_headers_cap():
    tensors = tuple(torch.full((wire.INLINE - 100,), i, dtype=torch.uint8) for i in range(20))
    frames = pack(Reply(1, 1, 0, 0, 0, 0, 0, tensors))
    assert len(frames) == 20 and len(frames[0]) < wire.MAX_HEADER
    assert all(a.equal(b) for a, b in zip(tensors, unpack(frames).tensors, strict=True))


def test_a_big_tensor_shares_memory_both_ways():
    tensor = torch.arange(wire.INLINE, dtype=torch.float32)
    frames = pack(Reply(1, 1, 0, 0, 0, 0, 0, (tensor,)))
    tensor[5] = -1.0
    back = unpack(frames).tensors[0]
    assert back[5] == -1.0
    assert back.data_ptr() == tensor.data_ptr()


def test_an_unaligned_tensor_is_copied_to_an_aligned_place():
    header, body = pack(Reply(1, 1, 0, 0, 0, 0, 0, (torch.arange(wire.INLINE, dtype=torch.float64),)))
    backing = bytearray(len(body) + 1)
    backing[1:] = body
    back = unpack([header, memoryview(backing)[1:]]).tensors[0]
    assert back.data_ptr() % 8 == 0
    assert back.equal(torch.arange(wire.INLINE, dtype=torch.float64))


@pytest.mark.parametrize("tensor", [torch.zeros(0, 3), torch.zeros(2, dtype=torch.complex64)])
def test_a_tensor_that_can_not_be_carried_is_refused_when_packing(tensor):
    with pytest.raises(WireError, match="can not carry"):
        pack(Reply(1, 1, 0, 0, 0, 0, 0, (tensor,)))


def test_a_message_too_big_for_a_header_is_refused_when_packing():
    with pytest.raises(WireError, match="at most 65536"):
        pack(Hello(bytes(8), tuple(Lane("b" * 400, "c", "d") for _ in range(256))))


# Hostile frames ---------------------------------------------------------------------------------

SMALL = Limits(max_message=2**18)


def refused(frames, match, limits=SMALL):
    with pytest.raises(WireError, match=match):
        unpack(frames, limits)


def header(*fields):
    return [msgpack.packb([wire.VERSION, *fields])]


def test_lying_shapes_and_lengths_are_refused():
    times = (0, 0, 0, 0, 0)
    refused(header(3, 1, 1, *times, 0, 2, 2**33, 2**33, b""), "has 295147905179352825856 bytes, got 0")
    refused(header(3, 1, 1, *times, 0, 1, 0, b""), "'dim' must be an integer from 1")
    refused(header(3, 1, 1, *times, 0, 1, -4, b""), "'dim' must be")
    refused(header(3, 1, 1, *times, 0, 1, 2, b"1234"), "has 8 bytes, got 4")
    refused(header(3, 1, 1, *times, 10, 1, 2, b"1234"), "'dtype' must be")
    refused(header(3, 1, 1, *times, "float32", 1, 1, b"1234"), "'dtype' must be")
    refused(header(3, 1, 1, *times, 0, 9, *[1] * 9, b"1234"), "'dims' must be")
    refused([*header(2, 1, 1, 0, 1, 0, 5000), bytes(4999)], "declares 5000 bytes, its frame has 4999")
    refused(header(2, 1, 1, 0, 1, 0, 5000), "there is none")
    refused([*header(2, 1, 1, 0, 1, 0, b"x"), bytes(10)], "1 frames too many")


def test_unknown_version_and_kind_say_what_to_do():
    refused([msgpack.packb([2, 5, 1])], "install the same splitedge on both sides")
    refused(header(10, 1), "unknown kind of message 10")


@pytest.mark.parametrize(
    "fields", [(5, -1), (5, 2**64 - 1, 0), (5, True), (5, 1.0), (5, None), (5,), (5, "1"), (0, b"1234567")]
)
def test_every_field_is_typed(fields):
    refused(header(*fields), None)


def test_caps_are_checked_before_parsing():
    refused([b"\x00" * (wire.MAX_HEADER + 1)], "header of 65537 bytes")
    refused([b"\x90"] + [b""] * 65, "1 to 65 frames, got 66")
    refused([b"\x90", bytes(2**18)], "message of 262145 bytes")
    refused([], "frames, got 0")
    with pytest.raises(ValueError, match="at least"):
        Limits(max_message=1000)


BOMBS = {
    "empty maps": b"\xdd\x00\x00\xff\xf0" + b"\x80" * 0xFFF0,
    "empty lists": b"\xdd\x00\x00\xff\xf0" + b"\x90" * 0xFFF0,
    "lists of lists": (b"\xdc\x03\xff" + b"\x90" * 1023) * 60,
    "deep lists": b"\x91" * 0xFFFF,
    "deep maps": b"\x81" * 0xFFFF,
    "huge list": b"\xdd\xff\xff\xff\xff",
    "huge string": b"\xdb\xff\xff\xff\xff",
    "huge bin": b"\x92\x01\xc6\xff\xff\xff\xff",
    "huge map": b"\xdf\xff\xff\xff\xff",
    "extension": b"\x92\x01\xd6\xff\x00\x00\x00\x00",
    "wide strings": b"\xdc\x03\xff" + (b"\xd9\x3c" + b"a" * 56 + "\U0001f600".encode()) * 1023,
    "nothing": b"",
}


def peak_of(frames):
    """The most bytes taken while the frames are refused."""
    tracemalloc.start()
    try:
        with pytest.raises(WireError):
            unpack(frames, SMALL)
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", BOMBS)
def test_no_header_costs_more_memory_than_twice_the_cap(name):
    assert peak_of([BOMBS[name]]) < 2 * SMALL.max_message


def outcome(frames):
    """A message or a WireError; anything else fails the test."""
    try:
        return type(unpack(frames, SMALL))
    except WireError:
        return WireError


@settings(CALM, max_examples=300)
@given(st.lists(st.binary(max_size=200), max_size=5))
def test_random_bytes_end_in_a_message_or_a_wire_error(frames):
    outcome(frames)


things = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.binary() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    max_leaves=12,
)


@settings(CALM, max_examples=150)
@given(st.integers(0, 10), st.lists(things, max_size=12), st.lists(st.binary(max_size=20), max_size=3))
def test_well_formed_msgpack_of_anything_ends_in_a_message_or_a_wire_error(kind, fields, rest):
    outcome([msgpack.packb([wire.VERSION, kind, *fields]), *rest])


@settings(CALM, max_examples=300)
@given(messages, st.data())
def test_mutated_frames_end_in_a_message_or_a_wire_error(message, data):
    frames = [bytearray(f) for f in pack(message)]
    for _ in range(data.draw(st.integers(1, 4))):
        frame = frames[data.draw(st.integers(0, len(frames) - 1))]
        change = data.draw(st.sampled_from(["flip", "cut", "add", "drop", "double"]))
        if change == "flip" and frame:
            frame[data.draw(st.integers(0, min(len(frame), 200) - 1))] ^= 1 << data.draw(st.integers(0, 7))
        elif change == "cut":
            del frame[data.draw(st.integers(0, len(frame))) :]
        elif change == "add":
            frame += data.draw(st.binary(max_size=9))
        elif change == "drop" and len(frames) > 1:
            frames.pop()
        elif change == "double":
            frames.append(bytearray(frame))
    outcome([bytes(f) for f in frames])


# Bytes as framed --------------------------------------------------------------------------------


def counted_on_the_connection(frames, encrypted):
    """Send the frames through a TCP relay that counts, twice; the difference is what one sending costs."""
    context = zmq.Context()
    keys = [zmq.curve_keypair(), zmq.curve_keypair()]
    server, client = context.socket(zmq.PULL), context.socket(zmq.PUSH)
    if encrypted:
        server.curve_server, server.curve_publickey, server.curve_secretkey = True, *keys[0]
        client.curve_publickey, client.curve_secretkey = keys[1]
        client.curve_serverkey = keys[0][0]
    port = server.bind_to_random_port("tcp://127.0.0.1")
    listener = socket.create_server(("127.0.0.1", 0))
    counts = [0]

    def relay(source, sink, count):
        try:
            while data := source.recv(65536):
                if count:
                    counts[0] += len(data)
                sink.sendall(data)
        except OSError:
            pass

    client.connect(f"tcp://127.0.0.1:{listener.getsockname()[1]}")
    down, _ = listener.accept()
    up = socket.create_connection(("127.0.0.1", port))
    threads = [
        threading.Thread(target=relay, args=(down, up, True)),
        threading.Thread(target=relay, args=(up, down, False)),
    ]
    for thread in threads:
        thread.start()
    seen = []
    for _ in range(2):
        client.send_multipart(frames)
        assert server.poll(5000)
        server.recv_multipart()
        seen.append(counts[0])
    context.destroy(linger=0)
    for end in (down, up, listener):
        end.close()
    for thread in threads:
        thread.join(5)
    return seen[1] - seen[0]


@pytest.mark.parametrize("encrypted", [True, False])
@pytest.mark.parametrize("size", [10, 150, 300, 5000, 50_000])
def test_framed_bytes_is_what_crosses_the_connection(size, encrypted):
    frames = pack(Infer(7, 1, 0, 1, 100, bytes(size)))
    assert wire.framed_bytes(frames, encrypted=encrypted) == counted_on_the_connection(frames, encrypted)
