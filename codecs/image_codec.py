"""What all image codecs share: the body, the ranges of float images, and decoding with care.

Body, row by row: one byte of flags; for an encoded row that is not the last, its length (u32); the
row's own range where it has one (float32 lo for each channel, then hi); then the file of the format,
or the bare pixels (channel by channel) where the file would not be smaller.
"""

from __future__ import annotations

import io
import struct
from abc import abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, ClassVar, Self

import numpy as np
import torch
from PIL import Image

from splitedge.codec import DTYPES, Codec, CodecState, Tensors, TensorSpec
from splitedge.codecs.affine import F32, U8, Affine, ranges_of
from splitedge.codecs.image_headers import Declared
from splitedge.codecs.layout import Reader
from splitedge.codecs.states import check_config, config_of
from splitedge.errors import CodecError

_OWN_RANGE, _PIXELS = 1, 2
_LENGTH = struct.Struct("<I")
# Above this Pillow itself warns of a decompression bomb; no warning is possible below it.
_MAX_PIXELS = 1 << 26

Range = tuple[float | Sequence[float], float | Sequence[float]]


class ImageCodec(Codec):
    """Images (N, C, H, W) with 1 or 3 channels, uint8 or float, as files of an image format.

    Float images are mapped to 0..255 between a least and a greatest value of each channel. These are
    static once `calibrate` has seen images or `value_range` is given; a row that leaves them by more
    than half a step carries its own range, so that nothing is clipped by more than that. Without
    static ranges each row carries its own.

    Args:
        reads: one spec of an image; the codec gives what it reads.
        value_range: (lo, hi), each a number or one for each channel: the static range of float images.

    Raises (constructor):
        CodecError: the specs are not one image.
    """

    version: ClassVar[int] = 1
    #: WebP knows no grey images: they are sent as colour, and one channel is read back.
    grey: ClassVar[bool] = True

    def __init__(
        self,
        reads: Sequence[TensorSpec],
        gives: Sequence[TensorSpec] | None = None,
        *,
        value_range: Range | None = None,
    ) -> None:
        super().__init__(reads, gives)
        _check_specs(self)
        _, self._channels, self._height, self._width = self.read_specs[0].shape
        self._float = self.read_specs[0].dtype != "uint8"
        self._pixels = self._channels * self._height * self._width
        self._range: tuple[F32, F32] | None = None
        self._affine: Affine | None = None
        if value_range is not None:
            self._set_range(*_given_range(value_range, self._channels, self.name))

    # What a format provides -----------------------------------------------------------------------

    @abstractmethod
    def _write(self, image: Image.Image, level: int) -> bytes:
        """The image as a file."""

    @staticmethod
    @abstractmethod
    def _declared(data: bytes) -> Declared:
        """What a file's header declares; CodecError when it is not one that `_write` makes."""

    @staticmethod
    @abstractmethod
    def _open(file: io.BytesIO) -> Image.Image:
        """A file whose header has been checked, its pixels not decoded yet."""

    # State ----------------------------------------------------------------------------------------

    def calibrate(self, batches: Iterable[Tensors]) -> None:
        """Take each channel's least and greatest value over sample batches as the static range.

        Raises:
            CodecError: no batches, or one that does not fit the specs or holds NaN or infinity.
        """
        lows, highs, seen = [], [], False
        for batch in batches:
            self.rows_of(batch)
            seen = True
            if self._float:
                lo, hi = ranges_of(self._floats(batch[0]), f"codec '{self.name}': an image")
                lows.append(lo.min(axis=0))
                highs.append(hi.max(axis=0))
        if not seen:
            raise CodecError(f"codec '{self.name}': no batches to calibrate on")
        if self._float:
            self._set_range(np.min(lows, axis=0), np.max(highs, axis=0))

    def _set_range(self, lo: F32, hi: F32) -> None:
        self._range = (lo, hi)
        self._affine = Affine(lo[None], hi[None], 255)
        self._id = None

    def state(self) -> CodecState:
        config = config_of(self.name, self.version, self.read_specs) | {"levels": list(self.levels)}
        if self._range is None:
            return CodecState(config)
        lo, hi = self._range
        return CodecState(config, {"lo": torch.from_numpy(lo.copy()), "hi": torch.from_numpy(hi.copy())})

    @classmethod
    def from_state(
        cls, state: CodecState, reads: Sequence[TensorSpec], gives: Sequence[TensorSpec] | None = None
    ) -> Self:
        check_config(state, cls.name, cls.version, reads)
        codec = cls(reads, gives, **cls._options(state.config))
        if list(codec.levels) != state.config.get("levels"):
            raise CodecError(f"codec '{cls.name}': unknown levels {state.config.get('levels')} in its state")
        if state.tensors:
            if set(state.tensors) != {"lo", "hi"} or not codec._float:
                raise CodecError(f"codec '{cls.name}': unknown tensors {sorted(state.tensors)} in its state")
            ends = (state.tensors["lo"].tolist(), state.tensors["hi"].tolist())
            codec._set_range(*_given_range(ends, codec._channels, cls.name))
        return codec

    @classmethod
    def _options(cls, config: dict[str, Any]) -> dict[str, Any]:
        """Options of the constructor from a state's config."""
        return {}

    # Encode ---------------------------------------------------------------------------------------

    def max_body(self, level: int, rows: int) -> int:
        own = 8 * self._channels if self._float else 0
        return rows * (1 + own + self._pixels)

    def _floats(self, tensor: torch.Tensor) -> F32:
        """Float32 of shape (rows, channels, height * width)."""
        values: F32 = tensor.detach().cpu().float().contiguous().numpy()
        return values.reshape(len(values), self._channels, -1)

    def _encode(self, tensors: Tensors, level: int, rows: int) -> bytes:
        parts: list[bytes] = []
        for row, (pixels, own) in enumerate(self._eight_bits(tensors[0])):
            parts += self._row(pixels, own, level, last=row == rows - 1)
        return b"".join(parts)

    def _eight_bits(self, tensor: torch.Tensor) -> Iterator[tuple[U8, bytes]]:
        """Row by row its pixels (C, H, W), and the range it brings (empty where it brings none)."""
        shape = (self._channels, self._height, self._width)
        if not self._float:
            for image in tensor.detach().cpu().contiguous().numpy():
                yield image, b""
            return
        floats = self._floats(tensor)
        lo, hi = ranges_of(floats, f"codec '{self.name}': an image")
        fits = self._fits(lo, hi)
        for row in range(len(floats)):
            at, own, affine = slice(row, row + 1), b"", self._affine
            if affine is None or not fits[row]:
                affine, own = Affine(lo[at], hi[at], 255), lo[at].tobytes() + hi[at].tobytes()
            pixels = np.empty(floats[at].shape, np.uint8)
            affine.codes(floats[at], pixels)
            yield pixels.reshape(shape), own

    def _fits(self, lo: F32, hi: F32) -> np.ndarray[Any, np.dtype[np.bool_]]:
        """Which rows the static range can take, half a step of clipping allowed."""
        if self._range is None:
            return np.zeros(len(lo), bool)
        least, most = (end.astype(np.float64) for end in self._range)
        half = (most - least) / 255 / 2
        fits: np.ndarray[Any, np.dtype[np.bool_]] = np.all((lo >= least - half) & (hi <= most + half), axis=1)
        return fits

    def _row(self, pixels: U8, own: bytes, level: int, *, last: bool) -> list[bytes]:
        """One row of the body: an image file, or bare pixels where the file would not be smaller."""
        flags = _OWN_RANGE if own else 0
        file = self._write(self._image(pixels), level)
        length = b"" if last else _LENGTH.pack(len(file))
        if len(length) + len(file) >= self._pixels:
            return [bytes((flags | _PIXELS,)), own, pixels.tobytes()]
        return [bytes((flags,)), length, own, file]

    def _image(self, pixels: U8) -> Image.Image:
        if self._channels == 1:
            grey = Image.fromarray(np.ascontiguousarray(pixels[0]))
            return grey if self.grey else grey.convert("RGB")
        return Image.fromarray(np.ascontiguousarray(pixels.transpose(1, 2, 0)))

    # Decode ---------------------------------------------------------------------------------------

    def _decode(self, body: memoryview, level: int, rows: int) -> Tensors:
        reader = Reader(body)
        # At least a byte of flags and one of data a row, before memory is taken for them.
        if body.nbytes < 2 * rows:
            raise CodecError(f"a body of {body.nbytes} bytes can not hold {rows} images")
        out = torch.empty(self.read_specs[0].shape_at(rows), dtype=DTYPES[self.read_specs[0].dtype])
        for row in range(rows):
            affine, pixels = self._read_row(reader, row == rows - 1)
            if affine is None:
                out[row] = torch.from_numpy(pixels)
            else:
                flat = pixels.reshape(1, self._channels, -1)
                affine.values(flat, out[row : row + 1].view(flat.shape))
        reader.close()
        return (out,)

    def _read_row(self, reader: Reader, last: bool) -> tuple[Affine | None, U8]:
        flags = reader.take(1, "the flags of an image")[0]
        if flags & ~(_OWN_RANGE | _PIXELS) or (flags & _OWN_RANGE and not self._float):
            raise CodecError(f"codec '{self.name}': unknown flags {flags:#x}")
        length = self._pixels
        if not flags & _PIXELS and not last:
            length = _LENGTH.unpack(reader.take(_LENGTH.size, "the length of an image"))[0]
        affine = self._affine
        if flags & _OWN_RANGE:
            affine = self._own_range(reader)
        elif self._float and affine is None:
            raise CodecError(f"codec '{self.name}' has no static range and the image brings none")
        if flags & _PIXELS:
            flat = np.frombuffer(reader.take(length, "pixels"), np.uint8).copy()
            return affine, flat.reshape(self._channels, self._height, self._width)
        return affine, self._read(bytes(reader.take(reader.left if last else length, "an image")))

    def _own_range(self, reader: Reader) -> Affine:
        size = 4 * self._channels
        lo = np.frombuffer(reader.take(size, "a range"), "<f4").reshape(1, -1)
        hi = np.frombuffer(reader.take(size, "a range"), "<f4").reshape(1, -1)
        if not (np.isfinite(lo).all() and np.isfinite(hi).all() and (lo <= hi).all()):
            raise CodecError("an image's own range is not finite or upside down")
        return Affine(lo, hi, 255)

    def _read(self, file: bytes) -> U8:
        """Pixels (C, H, W) of a file that declares just the size and channels of our spec."""
        if len(file) >= self._pixels:
            raise CodecError(f"{self.name} file of {len(file)} bytes for {self._pixels} bytes of pixels")
        channels = self._channels if self.grey else 3
        declared, wanted = self._declared(file), Declared(self._width, self._height, channels)
        if declared != wanted:
            raise CodecError(f"{self.name} declares {declared}, expected {wanted}")
        try:
            with self._open(io.BytesIO(file)) as image:
                if image.size != wanted[:2] or image.mode != ("RGB" if channels == 3 else "L"):
                    raise CodecError(f"{self.name} of size {image.size} and mode {image.mode}")
                pixels: U8 = np.array(image)
        except CodecError:
            raise
        except Exception as error:  # Pillow raises whatever its plug-ins and C libraries stumble over
            raise CodecError(f"{self.name} damaged: {error}") from error
        if channels == 1:
            return pixels[None]
        return pixels.transpose(2, 0, 1)[: self._channels].copy()


def _check_specs(codec: ImageCodec) -> None:
    specs, name = codec.read_specs, codec.name
    if len(specs) != 1:
        raise CodecError(
            f"codec '{name}' sends one image, this model takes {len(specs)} inputs; use 'raw' or 'int8'"
        )
    spec = specs[0]
    if codec.give_specs != specs:
        raise CodecError(f"codec '{name}' gives what it reads; the two lists of specs differ")
    image = len(spec.shape) == 4 and spec.batch_dim == 0 and spec.shape[0] == 1 and spec.shape[1] in (1, 3)
    if not image or spec.dtype not in ("uint8", "float16", "bfloat16", "float32", "float64"):
        other = "raw" if spec.dtype.startswith(("int", "uint", "bool")) else "int8"
        raise CodecError(
            f"codec '{name}' sends images (N, 1 or 3, H, W) of uint8 or float, not {spec}; use '{other}'"
        )
    height, width = spec.shape[2:]
    limit = 16383 if name == "webp" else 65535
    if not min(height, width) >= 1 or max(height, width) > limit or height * width > _MAX_PIXELS:
        raise CodecError(
            f"codec '{name}' takes sides of 1 to {limit} and {_MAX_PIXELS} pixels in all, got "
            f"{width} x {height}; use 'int8'"
        )


def _given_range(value_range: Range, channels: int, name: str) -> tuple[F32, F32]:
    try:
        lo, hi = (np.broadcast_to(np.asarray(end, np.float32), (channels,)).copy() for end in value_range)
    except (TypeError, ValueError) as error:
        raise CodecError(
            f"codec '{name}': value_range is (lo, hi), each a number or {channels} numbers; got {value_range}"
        ) from error
    if not (np.isfinite(lo).all() and np.isfinite(hi).all() and (lo <= hi).all()):
        raise CodecError(f"codec '{name}': value_range {value_range} is not finite or upside down")
    return lo, hi
