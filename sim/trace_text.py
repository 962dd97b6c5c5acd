"""The text of a trace file: read within limits, decompressed, line by line, with its place in every error."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from pathlib import Path

from splitedge.errors import TraceError

MAX_BYTES = 32 * 1024 * 1024
MAX_SAMPLES = 4_000_000
MAX_LINE = 1024

Lines = Iterator[tuple[int, str]]


def content(path: Path) -> bytes:
    """All of a file, decompressed where it is gzip, never more than the cap."""
    try:
        with path.open("rb") as raw:
            zipped = raw.read(2) == b"\x1f\x8b"
            raw.seek(0)
            source: io.BufferedIOBase = gzip.GzipFile(fileobj=raw) if zipped else raw
            data = source.read(MAX_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise TraceError(f"{path}: damaged or truncated gzip file ({error}); copy it again") from error
    except OSError as error:
        raise TraceError(f"{path}: can not be read: {error.strerror or error}") from error
    if len(data) > MAX_BYTES:
        raise TraceError(
            f"{path}: more than {MAX_BYTES >> 20} MiB of text; cut the trace into shorter ones (an hour "
            "in steps of 0.1 s is about 0.5 MiB)"
        )
    return data


def lines(path: Path, data: bytes) -> Lines:
    """Numbered lines that hold something; comments (#) and empty lines are left out."""
    start = 3 if data.startswith(b"\xef\xbb\xbf") else 0
    stream = io.BytesIO(data)
    stream.seek(start)
    for number, raw in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), start=1):
        if len(raw) > MAX_LINE:
            raise TraceError(f"{path}:{number}: a line of more than {MAX_LINE} bytes; this is no trace")
        try:
            line = raw.decode("ascii").strip()
        except UnicodeDecodeError:
            line = "\0"
        if not line.replace("\t", " ").isprintable():
            raise TraceError(f"{path}:{number}: binary data; a trace is text, or .gz of it")
        if line and not line.startswith("#"):
            yield number, line


def check_count(path: Path, number: int, count: int) -> None:
    if count > MAX_SAMPLES:
        raise TraceError(f"{path}:{number}: more than {MAX_SAMPLES} samples; cut the trace into shorter ones")


def short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[:most] + "..."
