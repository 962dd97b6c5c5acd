"""Input codecs: `png` (lossless), `webp` and `jpeg` with quality levels. See `image_codec` for the body."""

from __future__ import annotations

import io
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar

from PIL import Image, JpegImagePlugin, PngImagePlugin, WebPImagePlugin

from splitedge.codec import TensorSpec
from splitedge.codecs import image_headers
from splitedge.codecs.image_codec import ImageCodec, Range
from splitedge.errors import CodecError


class Png(ImageCodec):
    """Lossless: one level.

    Error bound: uint8 comes back exactly; floats to half a step, (hi - lo) / 255 / 2 of the channel's
    range, and the rounding of their dtype.
    """

    name: ClassVar[str] = "png"

    @property
    def levels(self) -> tuple[str, ...]:
        return ("lossless",)

    def _write(self, image: Image.Image, level: int) -> bytes:
        return _saved(image, "PNG", optimize=False, compress_level=6)

    _declared = staticmethod(image_headers.png)

    @staticmethod
    def _open(file: io.BytesIO) -> Image.Image:
        return PngImagePlugin.PngImageFile(file)


class _Lossy(ImageCodec):
    """A codec whose levels are qualities, least first."""

    def __init__(
        self,
        reads: Sequence[TensorSpec],
        gives: Sequence[TensorSpec] | None = None,
        *,
        qualities: Sequence[int] = (10, 30, 50, 75, 90),
        value_range: Range | None = None,
    ) -> None:
        self._qualities = tuple(qualities)
        rising = all(a < b for a, b in pairwise(qualities))
        if not qualities or not rising or min(qualities) < 1 or max(qualities) > 100:
            raise CodecError(f"codec '{self.name}': qualities {tuple(qualities)} must rise, from 1 to 100")
        super().__init__(reads, gives, value_range=value_range)

    @property
    def levels(self) -> tuple[str, ...]:
        return tuple(f"q{quality}" for quality in self._qualities)

    @classmethod
    def _options(cls, config: dict[str, Any]) -> dict[str, Any]:
        try:
            return {"qualities": tuple(int(str(level).removeprefix("q")) for level in config["levels"])}
        except (KeyError, TypeError, ValueError) as error:
            raise CodecError(f"codec '{cls.name}': its state names no levels") from error


class Webp(_Lossy):
    """Lossy WebP at a choice of qualities.

    Error bound: what the quality gives, nothing is promised for a pixel; but no value leaves the range
    (0..255, or the channel's own), and rows whose file is not smaller than their pixels are lossless.
    """

    name: ClassVar[str] = "webp"
    grey: ClassVar[bool] = False

    def _write(self, image: Image.Image, level: int) -> bytes:
        return _saved(image, "WEBP", quality=self._qualities[level], method=4)

    _declared = staticmethod(image_headers.webp)

    @staticmethod
    def _open(file: io.BytesIO) -> Image.Image:
        return WebPImagePlugin.WebPImageFile(file)


class Jpeg(_Lossy):
    """Baseline JPEG at a choice of qualities, Huffman tables made for each image.

    Error bound: as `webp`.
    """

    name: ClassVar[str] = "jpeg"

    def _write(self, image: Image.Image, level: int) -> bytes:
        return _saved(image, "JPEG", quality=self._qualities[level], optimize=True)

    _declared = staticmethod(image_headers.jpeg)

    @staticmethod
    def _open(file: io.BytesIO) -> Image.Image:
        return JpegImagePlugin.JpegImageFile(file)


def _saved(image: Image.Image, format_: str, **options: Any) -> bytes:
    file = io.BytesIO()
    try:
        image.save(file, format_, **options)
    except (OSError, ValueError) as error:
        raise CodecError(f"this image can not be written as {format_}: {error}") from error
    return file.getvalue()
