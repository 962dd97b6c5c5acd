"""Read what an image file declares before any decoder sees it, and refuse what we never write.

Decoders take memory by what a header says (a WebP decoder a whole canvas when it is opened), and image
formats carry far more than pixels: comments, profiles, animations. Our own encoders write none of
these, so a file that has them is not ours.
"""

from __future__ import annotations

import re
import struct
from typing import NamedTuple

from splitedge.errors import CodecError


class Declared(NamedTuple):
    """Size in pixels and colour channels (1 grey, 3 colours)."""

    width: int
    height: int
    channels: int


def png(data: bytes) -> Declared:
    """Header of a PNG of 8 bits a channel that has no chunks but IHDR, IDAT and IEND (W3C PNG, section 5).

    Raises:
        CodecError: it is not such a file.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n" or len(data) < 45 or data[8:16] != b"\x00\x00\x00\rIHDR":
        raise CodecError("png: signature or header chunk is missing")
    width, height, depth, colour, compression, filter_, interlace = struct.unpack_from(">IIBBBBB", data, 16)
    if depth != 8 or colour not in (0, 2) or compression or filter_ or interlace:
        raise CodecError(f"png: depth {depth}, colour type {colour}, interlace {interlace}: not one of ours")
    at, kind = 33, b"IHDR"
    while at + 12 <= len(data):
        size, kind = struct.unpack_from(">I4s", data, at)
        at += 12 + size
        if kind != b"IDAT":
            break
    if kind != b"IEND" or at != len(data):
        raise CodecError("png: chunks other than IHDR, IDAT and IEND, or bytes behind the last")
    return Declared(width, height, 1 if colour == 0 else 3)


def webp(data: bytes) -> Declared:
    """Header of a WebP in the simple lossy format, one VP8 key frame (RFC 9649 and RFC 6386, 9.1).

    Raises:
        CodecError: it is not such a file.
    """
    if len(data) < 30 or data[:4] != b"RIFF" or data[8:16] != b"WEBPVP8 ":
        raise CodecError("webp: not a file in the simple lossy format")
    riff, chunk = struct.unpack_from("<I", data, 4)[0], struct.unpack_from("<I", data, 16)[0]
    if riff + 8 != len(data) or chunk + (chunk & 1) + 20 != len(data):
        raise CodecError("webp: the sizes it declares are not those it has")
    if data[20] & 1 or data[23:26] != b"\x9d\x01\x2a":
        raise CodecError("webp: its frame is not a key frame")
    width, height = struct.unpack_from("<HH", data, 26)
    return Declared(width & 0x3FFF, height & 0x3FFF, 3)


# Quantisation and Huffman tables and the JFIF header: all that stands before the scan in our files.
_JPEG_TABLES = frozenset({0xE0, 0xDB, 0xC4})
_JPEG_FRAME, _JPEG_SCAN = 0xC0, 0xDA


def jpeg(data: bytes) -> Declared:
    """Header of a baseline JPEG of one scan, without comments or profiles (ITU-T T.81, annex B).

    Raises:
        CodecError: it is not such a file.
    """
    if data[:2] != b"\xff\xd8" or data[-2:] != b"\xff\xd9":
        raise CodecError("jpeg: start or end marker is missing")
    declared: Declared | None = None
    at = 2
    while at + 4 <= len(data):
        lead, marker, size = struct.unpack_from(">BBH", data, at)
        if lead != 0xFF or size < 2:
            break
        if marker == _JPEG_FRAME and declared is None:
            declared = _jpeg_frame(data, at, size)
        elif marker == _JPEG_SCAN:
            return _jpeg_scan(data, at + 2 + size, declared)
        elif marker not in _JPEG_TABLES:
            raise CodecError(f"jpeg: segment {marker:#04x}: not one of ours")
        at += 2 + size
    raise CodecError("jpeg: its segments end before the scan")


def _jpeg_frame(data: bytes, at: int, size: int) -> Declared:
    if size < 8 or at + 2 + size > len(data):
        raise CodecError("jpeg: frame header cut short")
    precision, height, width, components = struct.unpack_from(">BHHB", data, at + 4)
    if precision != 8 or components not in (1, 3):
        raise CodecError(f"jpeg: {components} components of {precision} bits: not one of ours")
    return Declared(width, height, components)


def _jpeg_scan(data: bytes, at: int, declared: Declared | None) -> Declared:
    if declared is None or at > len(data) - 2:
        raise CodecError("jpeg: no frame header before the scan, or no scan")
    if re.search(rb"\xff[^\x00]", data[at:-2]):
        raise CodecError("jpeg: markers within the scan: not one of ours")
    return declared
