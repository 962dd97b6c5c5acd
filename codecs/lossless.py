"""Zstandard where it helps: one flag byte, then the content as it is or as one checked zstd frame.

The library's own caps can not be trusted with hostile frames (it allocates whatever a frame declares),
so the frame's header is read first and refused unless it is one that `Zstd.pack` could have written.
"""

from __future__ import annotations

import zstandard

from splitedge.errors import CodecError

STORED = 0
ZSTD = 1
_MAGIC = b"\x28\xb5\x2f\xfd"
# A frame costs 4 bytes of magic, a checksum of 4 and at least 3 of headers: nothing below can win.
_LEAST = 24
_SMALLEST_WINDOW = 1 << 10


class Zstd:
    """Packs bytes behind a flag byte and reads them back. Not thread-safe, like the codecs that own it."""

    def __init__(self, level: int = 1) -> None:
        self._compress = zstandard.ZstdCompressor(
            level=level, write_checksum=True, write_content_size=True, write_dict_id=False
        ).compress
        self._decompress = zstandard.ZstdDecompressor().decompress

    def pack(self, content: bytes, flags: int = 0) -> bytes:
        """One flag byte and `content`, compressed where that makes it smaller.

        Args:
            content: what to pack.
            flags: further bits for the flag byte; bit 0 is this class's own.

        Returns:
            At most `len(content) + 1` bytes.
        """
        if len(content) >= _LEAST:
            frame = self._compress(content)
            if len(frame) < len(content):
                return bytes((flags | ZSTD,)) + frame
        return bytes((flags | STORED,)) + content

    def unpack(self, body: memoryview, cap: int) -> tuple[memoryview, int]:
        """The content of a packed body of at most `cap` bytes of content, and the other flag bits.

        Takes at most `cap` bytes of memory, whatever the frame declares.

        Raises:
            CodecError: no flag byte, or a zstd frame that is damaged, of unknown or too large a size,
                without a checksum, or with bytes behind it.
        """
        if not body.nbytes:
            raise CodecError("empty body: its flag byte is missing")
        flags, packed = body[0], body[1:]
        if not flags & ZSTD:
            if packed.nbytes > cap:
                raise CodecError(f"stored content of {packed.nbytes} bytes; this codec has at most {cap}")
            return packed, flags
        self._check_frame(packed, cap)
        try:
            # The declared size is known to be within the cap, and is all that this call allocates.
            content = self._decompress(packed, max_output_size=cap, allow_extra_data=False)
        except zstandard.ZstdError as error:
            raise CodecError(f"zstd frame damaged: {error}") from error
        return memoryview(content), flags & ~ZSTD

    @staticmethod
    def _check_frame(frame: memoryview, cap: int) -> None:
        if bytes(frame[:4]) != _MAGIC:
            raise CodecError("not a zstd frame: its magic number is missing")
        try:
            seen = zstandard.get_frame_parameters(frame)
        except zstandard.ZstdError as error:
            raise CodecError(f"zstd frame header damaged: {error}") from error
        if seen.content_size == zstandard.CONTENTSIZE_UNKNOWN or not 0 < seen.content_size <= cap:
            raise CodecError(f"zstd frame declares {seen.content_size} bytes of content, not 1 to {cap}")
        if seen.window_size > max(seen.content_size, _SMALLEST_WINDOW):
            raise CodecError(f"zstd frame asks for a window of {seen.window_size} bytes, beyond its content")
        if not seen.has_checksum or seen.dict_id:
            raise CodecError("zstd frame without a checksum or with a dictionary: not one of ours")
