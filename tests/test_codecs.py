"""What every codec keeps: round trips within the stated bound, ids, and hostile bytes."""

from __future__ import annotations

import tracemalloc
import zlib

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitedge.codec import (
    DTYPES,
    FORMAT,
    GROUP,
    HEADER,
    Codec,
    CodecState,
    TensorSpec,
    load_codec,
    make_codec,
)
from splitedge.errors import CodecError
from splitedge.registry import names

TENSOR_CODECS = ("raw", "fp16", "int8", "int4", "bounded")
IMAGE_CODECS = ("png", "webp", "jpeg")
WIDE = ("float32", "float64")
FLOATS = ("float32", "float16", "bfloat16", "float64")
ROUNDING = {"float32": 2.0**-23, "float64": 2.0**-23, "float16": 2.0**-10, "bfloat16": 2.0**-7}

many = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])


def sealed(level: int, rows: int, body: bytes) -> bytes:
    """A payload whose header and CRC are right, whatever its body is."""
    prefix = HEADER.pack(FORMAT, level, rows, 0)[:4]
    return HEADER.pack(FORMAT, level, rows, zlib.crc32(body, zlib.crc32(prefix))) + body


@st.composite
def specs(draw: st.DrawFn, dtypes: tuple[str, ...] = tuple(DTYPES)) -> TensorSpec:
    batch_dim = draw(st.sampled_from([0, 0, 0, 1, None]))
    least = 2 if batch_dim == 1 else 1
    shape = draw(st.lists(st.integers(1, 7), min_size=least, max_size=4))
    if batch_dim is not None:
        shape[batch_dim] = draw(st.sampled_from([1, 1, 1, 3]))
    return TensorSpec(tuple(shape), draw(st.sampled_from(dtypes)), batch_dim)


def sample(spec: TensorSpec, rows: int, seed: int, scale: float = 1.0, offset: float = 0.0) -> torch.Tensor:
    """Values as activations have them: half of them 0, one slice constant."""
    rng = np.random.default_rng(seed)
    shape = spec.shape_at(rows)
    if spec.dtype == "bool":
        return torch.from_numpy(rng.random(shape) < 0.5)
    dtype = DTYPES[spec.dtype]
    if not dtype.is_floating_point:
        ends = torch.iinfo(dtype)
        return torch.from_numpy(rng.integers(ends.min, ends.max, shape, np.int64, endpoint=True)).to(dtype)
    values = np.maximum(rng.standard_normal(shape), 0.0)
    values[..., 0] = 0.25
    return torch.from_numpy(np.asarray(values * scale + offset)).to(dtype)


def test_the_seven_first_codecs_are_registered() -> None:
    assert {*TENSOR_CODECS, *IMAGE_CODECS} <= set(names(GROUP))


@many
@given(st.lists(specs(), min_size=1, max_size=3), st.integers(1, 4), st.integers(0, 2**32 - 1))
def test_raw_returns_every_bit(reads: list[TensorSpec], rows: int, seed: int) -> None:
    codec = make_codec("raw", reads)
    tensors = [sample(spec, rows, seed) for spec in reads]
    rows = codec.rows_of(tensors)
    payload = codec.encode(tensors)
    assert payload.nbytes == HEADER.size + sum(spec.nbytes(rows) for spec in reads)
    for before, after in zip(tensors, codec.decode(payload), strict=True):
        assert after.is_contiguous()
        assert after.dtype == before.dtype
        assert torch.equal(before, after)


def test_raw_payload_is_eight_bytes_of_header_and_the_values() -> None:
    codec = make_codec("raw", [TensorSpec((1, 2), "float32"), TensorSpec((1,), "int16")])
    data = codec.encode([torch.tensor([[1.0, -2.0]]), torch.tensor([258], dtype=torch.int16)]).data
    assert data[8:].hex() == "0000803f" + "000000c0" + "0201"
    assert data[:4].hex() == "01" + "00" + "0100"  # format, level, rows
    assert data[4:8] == zlib.crc32(data[:4] + data[8:]).to_bytes(4, "little")
    assert data[4:8].hex() == GOLDEN_CRC


GOLDEN_CRC = "eb409f0e"


@many
@given(
    st.lists(specs(), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
    st.sampled_from([1e-9, 1.0, 3e4, 1e30]),
)
def test_fp16_keeps_eleven_bits_or_eight(reads: list[TensorSpec], rows: int, seed: int, scale: float) -> None:
    codec = make_codec("fp16", reads)
    tensors = [sample(spec, rows, seed, scale if spec.dtype in WIDE else 1.0) for spec in reads]
    payload = codec.encode(tensors)
    assert payload.nbytes <= codec.max_bytes(0, codec.rows_of(tensors))
    for before, after in zip(tensors, codec.decode(payload), strict=True):
        assert after.dtype == before.dtype
        if before.dtype not in (torch.float32, torch.float64):
            assert torch.equal(before, after)
            continue
        wide = max(float(t.abs().max()) for t in tensors if t.is_floating_point()) > 65504
        bound = before.double().abs() * (2.0**-8 if wide else 2.0**-11) + 2.0**-25
        assert bool(((before.double() - after.double()).abs() <= bound).all())


def test_fp16_leaves_infinity_and_nan_what_they_are_and_refuses_what_bfloat16_can_not_hold() -> None:
    codec = make_codec("fp16", [TensorSpec((1, 4), "float64")])
    odd = torch.tensor([[float("inf"), -float("inf"), float("nan"), 1e6]], dtype=torch.float64)
    (back,) = codec.decode(codec.encode([odd]))
    assert back[0, :2].tolist() == [float("inf"), -float("inf")]
    assert bool(back[0, 2].isnan())
    assert abs(float(back[0, 3]) - 1e6) <= 1e6 * 2.0**-8
    with pytest.raises(CodecError, match="use 'raw'"):
        codec.encode([torch.full((1, 4), 1e39, dtype=torch.float64)])


def ranges(spec: TensorSpec, tensor: torch.Tensor, own: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Least and greatest value of each channel (all but the widest, of the entry, where it is small)."""
    front = tensor.double() if spec.batch_dim is None else tensor.double().movedim(spec.batch_dim, 0)
    if spec.batch_dim is None:
        front = front[None]
    channels = front.reshape(front.shape[0], front.shape[1] if front.dim() > 1 else 1, -1)
    lo, hi = channels.amin(2), channels.amax(2)
    if own and channels.shape[2] < 32:
        lo, hi = lo.amin(1, keepdim=True).expand_as(lo), hi.amax(1, keepdim=True).expand_as(hi)
    return lo, hi


def quantised(spec: TensorSpec, tensor: torch.Tensor) -> torch.Tensor:
    front = tensor.double() if spec.batch_dim is None else tensor.double().movedim(spec.batch_dim, 0)
    front = front[None] if spec.batch_dim is None else front
    return front.reshape(front.shape[0], front.shape[1] if front.dim() > 1 else 1, -1)


SCALES = st.sampled_from([(1.0, 0.0), (1e-3, 5.0), (1e4, -1e4), (1e-42, 0.0), (1e37, 0.0), (0.0, 3.0)])


@many
@given(
    st.sampled_from(["int8", "int4"]),
    st.lists(specs(), min_size=1, max_size=3),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
    SCALES,
)
def test_quantised_within_half_a_step(
    name: str, reads: list[TensorSpec], rows: int, seed: int, scale: tuple[float, float]
) -> None:
    codec = make_codec(name, reads)
    tensors = [
        sample(spec, rows, seed, *(scale if spec.dtype in ("float32", "float64") else (1.0, 0.5)))
        for spec in reads
    ]
    payload = codec.encode(tensors)
    assert payload.nbytes <= codec.max_bytes(0, codec.rows_of(tensors))
    steps = 255 if name == "int8" else 15
    for spec, before, after in zip(reads, tensors, codec.decode(payload), strict=True):
        assert after.dtype == before.dtype
        if spec.dtype not in FLOATS:
            assert torch.equal(before, after)
            continue
        lo, hi = ranges(spec, before, own=True)
        bound = (
            (hi - lo) / steps / 2 * 1.001 + torch.maximum(lo.abs(), hi.abs()) * ROUNDING[spec.dtype] + 1e-44
        )
        error = (quantised(spec, before) - quantised(spec, after)).abs()
        assert bool((error <= bound[..., None]).all())


@many
@given(
    st.sampled_from(["int8", "int4"]),
    specs(FLOATS),
    st.integers(1, 6),
    st.integers(0, 2**32 - 1),
    st.lists(st.sampled_from([1.0, 1.02, 50.0]), min_size=6, max_size=6),
)
def test_calibrated_rows_keep_the_bound_inside_and_outside_their_ranges(
    name: str, spec: TensorSpec, rows: int, seed: int, stretch: list[float]
) -> None:
    codec = make_codec(name, [spec])
    seen = sample(spec, 5, seed)
    codec.calibrate([(seen,)])
    tensor = sample(spec, rows, seed + 1)
    front = tensor if spec.batch_dim is None else tensor.movedim(spec.batch_dim, 0)
    for entry in range(len(front)):
        front[entry] *= stretch[entry % 6]
    payload = codec.encode([tensor])
    assert payload.nbytes <= codec.max_bytes(0, codec.rows_of([tensor]))
    (back,) = codec.decode(payload)
    steps = 255 if name == "int8" else 15
    lo, hi = (end.amin(0) if k == 0 else end.amax(0) for k, end in enumerate(ranges(spec, seen, own=False)))
    own_lo, own_hi = ranges(spec, tensor, own=True)
    static, own = (hi - lo) / steps / 2 + (hi - lo).max() / 16, (own_hi - own_lo) / steps / 2
    bound = torch.maximum(static.expand_as(own), own) * 1.001
    bound = bound + torch.maximum(own_lo.abs(), own_hi.abs()) * ROUNDING[spec.dtype] * 2
    error = (quantised(spec, tensor) - quantised(spec, back)).abs()
    assert bool((error <= bound[..., None]).all())


@pytest.mark.parametrize("name", ["int8", "int4"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("calibrated", [False, True])
def test_quantising_refuses_what_has_no_range(name: str, bad: float, calibrated: bool) -> None:
    codec = make_codec(name, [TensorSpec((1, 4), "float32")])
    if calibrated:
        codec.calibrate([(torch.randn(8, 4),)])
    with pytest.raises(CodecError, match="NaN, infinity"):
        codec.encode([torch.tensor([[0.0, 1.0, bad, 2.0]])])
    with pytest.raises(CodecError, match="NaN, infinity"):
        codec.calibrate([(torch.tensor([[0.0, 1.0, bad, 2.0]]),)])


@pytest.mark.parametrize("name", ["int8", "int4"])
def test_constant_channels_come_back_exactly(name: str) -> None:
    codec = make_codec(name, [TensorSpec((1, 3, 8, 8), "float32")])
    x = torch.tensor([0.0, 1 / 3, -7e9]).view(1, 3, 1, 1).expand(2, 3, 8, 8)
    assert torch.equal(codec.decode(codec.encode([x]))[0], x)
    codec.calibrate([(x,)])
    assert torch.equal(codec.decode(codec.encode([x]))[0], x)


def test_zstd_stands_only_where_it_helps() -> None:
    codec = make_codec("int8", [TensorSpec((1, 4, 32, 32), "float32")])
    dense, sparse = (
        torch.rand(1, 4, 32, 32, generator=torch.Generator().manual_seed(0)),
        torch.zeros(1, 4, 32, 32),
    )
    sparse[..., 0] = 1.0
    assert codec.encode([dense]).nbytes == codec.max_bytes(0, 1)
    assert codec.encode([dense]).data[8] == 0
    assert codec.encode([sparse]).nbytes < 0.1 * codec.max_bytes(0, 1)
    assert codec.encode([sparse]).data[8] == 1


def test_static_ranges_save_their_bytes_and_more_bits_cost_more() -> None:
    spec, x = TensorSpec((1, 16, 8, 8), "float32"), torch.rand(1, 16, 8, 8)
    sizes = {}
    for name in TENSOR_CODECS:
        codec = make_codec(name, [spec])
        codec.calibrate([(torch.rand(64, 16, 8, 8),)])
        sizes[name] = codec.encode([x]).nbytes
    assert sizes["int4"] < sizes["int8"] < sizes["fp16"] < sizes["raw"]
    assert make_codec("int8", [spec]).encode([x]).nbytes == sizes["int8"] + 16 * 8 - 1


# Ids and states ---------------------------------------------------------------------------------------


def bound_codec(name: str, seed: int = 0) -> tuple[Codec, list[torch.Tensor]]:
    """A calibrated codec and a batch of two rows for it."""
    if name in IMAGE_CODECS:
        reads = [TensorSpec((1, 3, 24, 24), "float32")]
        ramp = torch.linspace(0, 1, 24)
        image = (ramp[:, None] * ramp).expand(2, 3, 24, 24).clone()
        image[:, :, 4:12, 6:18] += 0.3
        batch = [image + 0.01 * seed]
    else:
        reads = [TensorSpec((1, 4, 6, 6), "float32"), TensorSpec((1, 5), "int64")]
        generator = torch.Generator().manual_seed(seed)
        batch = [torch.rand(2, 4, 6, 6, generator=generator), torch.arange(10).view(2, 5)]
    codec = make_codec(name, reads)
    codec.calibrate([tuple(batch)])
    return codec, batch


@pytest.mark.parametrize("name", ["int8", "int4", "bounded", *IMAGE_CODECS])
def test_id_changes_with_calibration_and_survives_saving(name: str) -> None:
    first, batch = bound_codec(name)
    second, _ = bound_codec(name, seed=1)
    fresh = make_codec(name, first.read_specs)
    assert len({first.id, second.id, fresh.id}) == 3
    for codec in (first, second, fresh):
        again = load_codec(name, codec.state(), codec.read_specs)
        assert again.id == codec.id
        assert again.encode(batch).data == codec.encode(batch).data
    with pytest.raises(CodecError, match="other tables"):
        second.decode(first.encode(batch))


@pytest.mark.parametrize("name", [*TENSOR_CODECS, *IMAGE_CODECS])
def test_state_of_another_codec_version_or_cut_is_refused(name: str) -> None:
    codec, _ = bound_codec(name)
    state, reads = codec.state(), codec.read_specs
    other = "raw" if name != "raw" else "fp16"
    with pytest.raises(CodecError, match="given to"):
        load_codec(other, state, reads)
    with pytest.raises(CodecError, match="version"):
        load_codec(name, CodecState(state.config | {"version": 99}, state.tensors), reads)
    grown = (TensorSpec((1, *(2 * n for n in reads[0].shape[1:])), "float32"), *reads[1:])
    if name not in IMAGE_CODECS:
        with pytest.raises(CodecError, match="was saved for"):
            load_codec(name, state, grown)


@pytest.mark.parametrize("name", ["int8", "int4", *IMAGE_CODECS])
def test_damaged_tables_are_refused(name: str) -> None:
    codec, _ = bound_codec(name)
    state = codec.state()
    for key in state.tensors:
        for bad in (torch.full_like(state.tensors[key], float("nan")), torch.zeros(17)):
            with pytest.raises(CodecError):
                load_codec(name, CodecState(state.config, state.tensors | {key: bad}), codec.read_specs)
        rest = {k: v for k, v in state.tensors.items() if k != key}
        with pytest.raises(CodecError):
            load_codec(name, CodecState(state.config, rest), codec.read_specs)
    low = {k: v + 1e6 for k, v in state.tensors.items() if k.startswith("lo")}
    with pytest.raises(CodecError, match="upside down"):
        load_codec(name, CodecState(state.config, state.tensors | low), codec.read_specs)


@pytest.mark.parametrize("name", ["int8", "png"])
def test_calibrating_on_nothing_is_refused(name: str) -> None:
    codec, _ = bound_codec(name)
    with pytest.raises(CodecError, match="no batches"):
        codec.calibrate([])


def test_bools_are_checked() -> None:
    codec = make_codec("raw", [TensorSpec((1, 3), "bool")])
    with pytest.raises(CodecError, match="bool"):
        codec.decode(sealed(0, 1, b"\x01\x02\x00"))


# Hostile bytes ----------------------------------------------------------------------------------------


def outcome(codec: Codec, data: bytes, rows: int) -> None:
    """Decoding ends in a CodecError or in tensors as the specs say, nothing else."""
    try:
        tensors = codec.decode(data, max_rows=8)
    except CodecError:
        return
    assert codec.rows_of(tensors) == rows


ALL = [*TENSOR_CODECS, *IMAGE_CODECS]


@pytest.mark.parametrize("name", ALL)
def test_any_damage_on_the_way_is_noticed(name: str) -> None:
    codec, batch = bound_codec(name)
    data = codec.encode(batch).data
    for end in range(0, len(data), max(len(data) // 50, 1)):
        with pytest.raises(CodecError):
            codec.decode(data[:end])
    with pytest.raises(CodecError):
        codec.decode(data + b"\0")
    for bit in range(0, 8 * len(data), max(len(data) // 25, 1)):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CodecError):
            codec.decode(bytes(flipped))


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=120, deadline=None)
@given(st.data())
def test_a_hostile_body_behind_a_right_crc(name: str, data: st.DataObject) -> None:
    codec, batch = bound_codec(name)
    level = data.draw(st.integers(0, len(codec.levels) - 1))
    body = bytearray(codec.encode(batch, level).data[HEADER.size :])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(body)))
        kind = data.draw(st.sampled_from(["flip", "cut", "insert", "none"]))
        if kind == "flip" and at < len(body):
            body[at] ^= data.draw(st.integers(1, 255))
        elif kind == "cut":
            del body[at : at + data.draw(st.integers(1, 40))]
        elif kind == "insert":
            body[at:at] = data.draw(st.binary(min_size=1, max_size=20))
    rows = data.draw(st.sampled_from([1, 2, 2, 2, 3, 8]))
    outcome(codec, sealed(level, rows, bytes(body)), rows)


@pytest.mark.parametrize("name", ALL)
@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=300), rows=st.integers(1, 8))
def test_random_bodies_behind_a_right_crc(name: str, body: bytes, rows: int) -> None:
    codec, _ = bound_codec(name)
    outcome(codec, sealed(0, rows, body), rows)


@pytest.mark.parametrize("name", TENSOR_CODECS)
def test_extended_and_truncated_bodies_behind_a_right_crc_are_refused(name: str) -> None:
    codec, batch = bound_codec(name)
    body = codec.encode(batch).data[HEADER.size :]
    for bad in (body + b"\0", body[:-1], b""):
        with pytest.raises(CodecError):
            codec.decode(sealed(0, 2, bad))


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", TENSOR_CODECS)
def test_decoding_takes_little_beside_its_result(name: str, dtype: str) -> None:
    spec = TensorSpec((1, 64, 128, 128), dtype)
    codec = make_codec(name, [spec])
    data = codec.encode([torch.rand(1, 64, 128, 128).to(DTYPES[dtype])]).data
    tracemalloc.start()
    try:
        codec.decode(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # What torch allocates (the result) is not traced; the rest must stay below its size, but for small
    # objects.
    assert peak <= spec.nbytes() + 64 * 1024
