"""Image codecs: what they keep, what they refuse, and what a hostile file can not do."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from splitedge.codec import DTYPES, FORMAT, HEADER, Codec, TensorSpec, make_codec
from splitedge.errors import CodecError

NAMES = ("png", "webp", "jpeg")
LOSSY = ("webp", "jpeg")


def picture(channels: int, side: int, rows: int = 1) -> torch.Tensor:
    """Smooth with an edge and a little noise, 0..1."""
    generator = torch.Generator().manual_seed(side)
    ramp = torch.linspace(0.1, 0.8, side)
    image = (ramp[:, None] + ramp).expand(rows, channels, side, side) / 2
    image = image + 0.02 * torch.rand(rows, channels, side, side, generator=generator)
    image[..., side // 4 : side // 2, side // 3 :] += 0.15
    return image


def codec_for(name: str, image: torch.Tensor, **options: object) -> Codec:
    dtype = {v: k for k, v in DTYPES.items()}[image.dtype]
    return make_codec(name, [TensorSpec((1, *image.shape[1:]), dtype)], **options)


def sealed(rows: int, body: bytes) -> bytes:
    prefix = HEADER.pack(FORMAT, 0, rows, 0)[:4]
    return HEADER.pack(FORMAT, 0, rows, zlib.crc32(body, zlib.crc32(prefix))) + body


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from([1, 3]),
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(1, 4),
    st.integers(0, 2**32 - 1),
)
def test_png_returns_uint8_exactly(channels: int, height: int, width: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    image = torch.from_numpy(
        rng.integers(0, 1 + rng.integers(0, 256), (rows, channels, height, width)).astype("u1")
    )
    codec = codec_for("png", image)
    payload = codec.encode([image])
    assert payload.nbytes <= codec.max_bytes(0, rows)
    assert torch.equal(codec.decode(payload)[0], image)


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(["float32", "float16", "bfloat16", "float64"]),
    st.sampled_from([1, 3]),
    st.integers(1, 20),
    st.integers(1, 3),
    st.sampled_from([(1.0, 0.0), (4.0, -2.0), (1e-6, 1.0), (0.0, 0.5)]),
    st.booleans(),
)
def test_png_returns_floats_to_half_a_step(
    dtype: str, channels: int, side: int, rows: int, scale: tuple[float, float], calibrated: bool
) -> None:
    image = (torch.rand(rows, channels, side, side) * scale[0] + scale[1]).to(DTYPES[dtype])
    codec = codec_for("png", image)
    if calibrated:
        codec.calibrate([(image,)])
    payload = codec.encode([image])
    assert payload.nbytes <= codec.max_bytes(0, rows)
    (back,) = codec.decode(payload)
    assert back.dtype == image.dtype
    x, y = image.double(), back.double()
    over = (0, 2, 3) if calibrated else (2, 3)
    half = (x.amax(over, keepdim=True) - x.amin(over, keepdim=True)) / 255 / 2
    rounding = {"float16": 2.0**-10, "bfloat16": 2.0**-7}.get(dtype, 2.0**-22) * x.abs()
    assert bool(((x - y).abs() <= half * 1.001 + rounding).all())


def test_calibrated_on_eight_bit_images_png_is_exact_but_for_rounding() -> None:
    image = ((picture(3, 32, 8) * 255).round() / 255 - 0.45) / 0.22
    codec = codec_for("png", image, value_range=(-0.45 / 0.22, 0.55 / 0.22))
    assert float((codec.decode(codec.encode([image]))[0] - image).abs().max()) < 1e-6


def test_a_row_outside_the_static_range_brings_its_own_and_the_others_do_not() -> None:
    image = picture(3, 24, 3)
    codec = codec_for("png", image, value_range=((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)))
    within = codec.encode([image])
    wild = image.clone()
    wild[1] = wild[1] * 100 - 20
    payload = codec.encode([wild])
    (back,) = codec.decode(payload)
    for row, top in ((0, 1.0), (1, float(wild[1].max() - wild[1].min())), (2, 1.0)):
        assert float((back[row] - wild[row]).abs().max()) <= top / 255 / 2 * 1.001
    assert payload.nbytes < within.nbytes + 24 + 0.2 * within.nbytes
    edge = image.clamp(0, 1)
    edge[0, 0, 0, 0] = 1.0 + 0.4 / 255  # less than half a step outside is no reason for a range
    assert float((codec.decode(codec.encode([edge]))[0] - edge).abs().max()) <= 0.5 / 255 * 1.001


@pytest.mark.parametrize("name", LOSSY)
@pytest.mark.parametrize("dtype", ["uint8", "float32"])
@pytest.mark.parametrize("channels", [1, 3])
def test_levels_cost_more_and_lose_less(name: str, dtype: str, channels: int) -> None:
    image = picture(channels, 64, 2)
    if dtype == "uint8":
        image = (image * 255).round().to(torch.uint8)
    codec = codec_for(name, image)
    payloads = [codec.encode([image], level) for level in range(len(codec.levels))]
    errors = [float((codec.decode(p)[0].double() - image.double()).abs().mean()) for p in payloads]
    assert [p.nbytes for p in payloads] == sorted(p.nbytes for p in payloads)
    assert errors[-1] < errors[0]
    assert errors[-1] < 0.03 * (255 if dtype == "uint8" else 1)
    assert all(p.nbytes <= codec.max_bytes(level, 2) for level, p in enumerate(payloads))
    assert codec.encode([image]).data == payloads[-1].data


@pytest.mark.parametrize("name", LOSSY)
def test_qualities_are_an_option_that_the_state_keeps(name: str) -> None:
    image = picture(3, 32)
    codec = codec_for(name, image, qualities=(5, 50), value_range=(0.0, 1.0))
    assert codec.levels == ("q5", "q50")
    again = type(codec).from_state(codec.state(), codec.read_specs)
    assert (again.id, again.levels) == (codec.id, codec.levels)
    assert again.id != codec_for(name, image, value_range=(0.0, 1.0)).id
    for bad in ((), (50, 5), (0,), (101,)):
        with pytest.raises(CodecError, match="qualities"):
            codec_for(name, image, qualities=bad)


@pytest.mark.parametrize("name", NAMES)
def test_tiny_images_are_sent_as_pixels_where_a_file_is_larger(name: str) -> None:
    image = (torch.rand(2, 1, 3, 3) * 255).to(torch.uint8)
    codec = codec_for(name, image)
    payload = codec.encode([image])
    assert payload.nbytes == HEADER.size + 2 * (1 + 9)
    assert torch.equal(codec.decode(payload)[0], image)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("reads", "message"),
    [
        ([TensorSpec((1, 64), "float32")], "use 'int8'"),
        ([TensorSpec((1, 64), "int64")], "use 'raw'"),
        ([TensorSpec((1, 4, 8, 8), "float32")], "use 'int8'"),
        ([TensorSpec((1, 3, 8, 8), "int16")], "use 'raw'"),
        ([TensorSpec((3, 3, 8, 8), "float32", None)], "use 'int8'"),
        ([TensorSpec((1, 3, 8, 8), "float32"), TensorSpec((1, 2), "float32")], "takes 2 inputs"),
        ([TensorSpec((1, 3, 8, 70000), "uint8")], "sides of"),
        ([TensorSpec((1, 3, 16000, 16000), "uint8")], "sides of"),
    ],
)
def test_what_is_no_image_is_refused_with_a_way_out(name: str, reads: list[TensorSpec], message: str) -> None:
    with pytest.raises(CodecError, match=message):
        make_codec(name, reads)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("bad", [(1.0, 0.0), (0.0, float("nan")), ((0.0, 0.0), 1.0), (0.0,), "range"])
def test_a_wrong_value_range_is_refused(name: str, bad: object) -> None:
    with pytest.raises(CodecError, match="value_range"):
        codec_for(name, picture(3, 8), value_range=bad)


@pytest.mark.parametrize("name", NAMES)
def test_images_without_a_range_are_refused(name: str) -> None:
    image = picture(3, 8)
    image[0, 0, 0, 0] = float("nan")
    with pytest.raises(CodecError, match="NaN"):
        codec_for(name, image).encode([image])


# Hostile files ----------------------------------------------------------------------------------------


def file_of(format_: str, size: tuple[int, int] = (32, 32), mode: str = "RGB", **options: object) -> bytes:
    out = io.BytesIO()
    pixels = np.arange(size[0] * size[1] * 3, dtype=np.uint32).reshape(size[1], size[0], 3) // 37 % 256
    Image.fromarray(pixels.astype(np.uint8)).convert(mode).save(out, format_, **options)
    return out.getvalue()


def refused(name: str, file: bytes, message: str) -> None:
    codec = make_codec(name, [TensorSpec((1, 3, 32, 32), "uint8")])
    with pytest.raises(CodecError, match=message):
        codec.decode(sealed(1, b"\0" + file))


def test_only_the_format_expected_is_read() -> None:
    files = {name: file_of(name.upper()) for name in NAMES}
    for name in NAMES:
        codec = make_codec(name, [TensorSpec((1, 3, 32, 32), "uint8")])
        assert codec.decode(sealed(1, b"\0" + files[name]))[0].shape == (1, 3, 32, 32)
        for other in NAMES:
            if other != name:
                refused(name, files[other], name)
        refused(name, file_of("GIF"), name)


@pytest.mark.parametrize("name", NAMES)
def test_another_size_or_mode_is_refused_before_pixels_are_decoded(name: str) -> None:
    refused(name, file_of(name.upper(), (31, 32)), "declares|file of")
    refused(name, file_of(name.upper(), (32, 16)), "declares")
    if name != "webp":
        refused(name, file_of(name.upper(), mode="L"), "declares")


@pytest.mark.parametrize("name", NAMES)
def test_a_file_that_declares_a_giant_costs_nothing(name: str) -> None:
    file = bytearray(file_of(name.upper()))
    if name == "png":
        file[16:24] = struct.pack(">II", 60_000, 60_000)
        file[29:33] = struct.pack(">I", zlib.crc32(file[12:29]))
    elif name == "webp":
        file[26:30] = struct.pack("<HH", 16_383, 16_383)
    else:
        at = file.index(b"\xff\xc0")
        file[at + 5 : at + 9] = struct.pack(">HH", 65_000, 65_000)
    refused(name, bytes(file), "declares")


@pytest.mark.parametrize("name", NAMES)
def test_bytes_behind_a_file_are_refused(name: str) -> None:
    refused(name, file_of(name.upper()) + b"\0\0", name)


def test_what_our_encoders_never_write_is_refused() -> None:
    refused("png", file_of("PNG", mode="RGBA"), "colour type")
    refused("png", file_of("PNG", mode="P"), "colour type")
    chunk = b"tEXtComment\0" + b"x" * 40
    text = struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
    plain = file_of("PNG")
    refused("png", plain[:33] + text + plain[33:], "chunks other")
    refused("webp", file_of("WEBP", lossless=True), "simple lossy")
    refused("webp", file_of("WEBP", mode="RGBA", exif=b"Exif\0\0abc"), "simple lossy")
    refused("jpeg", file_of("JPEG", progressive=True), "segment")
    refused("jpeg", file_of("JPEG", comment=b"hello"), "segment")
    refused("jpeg", file_of("JPEG", mode="CMYK"), "components|segment")


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(NAMES), st.data())
def test_damaged_files_end_in_an_error_or_in_an_image(name: str, data: st.DataObject) -> None:
    file = bytearray(file_of(name.upper()))
    for _ in range(data.draw(st.integers(1, 5))):
        file[data.draw(st.integers(0, len(file) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.sampled_from([len(file)] * 3 + [len(file) // 2, 40, 20]))
    codec = make_codec(name, [TensorSpec((1, 3, 32, 32), "uint8")])
    try:
        (image,) = codec.decode(sealed(1, b"\0" + bytes(file[:cut])))
    except CodecError:
        return
    assert image.shape == (1, 3, 32, 32)
    assert image.dtype == torch.uint8


def test_rows_that_are_not_there_take_no_memory() -> None:
    codec = make_codec("png", [TensorSpec((1, 3, 1000, 1000), "float32")])
    with pytest.raises(CodecError, match="can not hold"):
        codec.decode(sealed(60_000, b"\0\0"))


def test_flags_and_lengths_of_a_row_are_checked() -> None:
    codec = make_codec("png", [TensorSpec((1, 1, 4, 4), "float32")])
    uncalibrated = b"\2" + bytes(16)
    upside_down = b"\3" + struct.pack("<ff", 1.0, 0.0) + bytes(16)
    for body, message in (
        (uncalibrated, "no static range"),
        (upside_down, "upside down"),
        (b"\4" + bytes(16), "unknown flags"),
        (b"\3" + struct.pack("<ff", 0.0, 1.0) + bytes(15), "ends early"),
        (b"\3" + struct.pack("<ff", 0.0, 1.0) + bytes(17), "left over|at most"),
    ):
        with pytest.raises(CodecError, match=message):
            codec.decode(sealed(1, body))
    good = b"\3" + struct.pack("<ff", 0.0, 1.0) + bytes((0, 255)) * 8
    assert codec.decode(sealed(1, good))[0].flatten()[:2].tolist() == [0.0, 1.0]
    with pytest.raises(CodecError, match="unknown flags"):
        make_codec("png", [TensorSpec((1, 1, 4, 4), "uint8")]).decode(sealed(1, good[:17]))
