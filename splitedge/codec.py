"""The Codec interface: tensors to bytes and back, with sizes checked before memory is taken.

A codec of a cut gives the cut's tensors back (`gives="cut"`: int8), or answers in the tail's place
(`gives="output"`: a learned bottleneck whose decoder was trained together with its tail). It reads the
cut's tensors or, where it replaces layers of the head, those of an earlier boundary, the model's input
at the earliest. An input codec (WebP) is the codec of the cut before the first layer.

Decoding has two steps: `unpack` undoes the entropy coding of one payload, `expand` is the network that a
learned codec runs behind it, on rows of any number of requests at once. Without one it does nothing.

Every payload starts with the same 8 bytes: format (u8), level (u8), rows (u16), CRC-32 (u32) over the
first four bytes and the body, all little-endian. Codec, tables and shapes are negotiated once a
session through `Codec.id`, never sent with a payload.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, Self

import torch

from splitedge.errors import CodecError
from splitedge.registry import lookup

GROUP = "splitedge.codecs"
HEADER = struct.Struct("<BBHI")
FORMAT = 1
MAX_ROWS = 0xFFFF

Gives = Literal["cut", "output"]
Tensors = tuple[torch.Tensor, ...]
#: A network of a learned codec: flat tensors in, a tuple of flat tensors out.
Network = Callable[..., Tensors]

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "float64": torch.float64,
    "uint8": torch.uint8,
    "int8": torch.int8,
    "int16": torch.int16,
    "int32": torch.int32,
    "int64": torch.int64,
    "bool": torch.bool,
}
DTYPE_NAMES: Mapping[torch.dtype, str] = {dtype: name for name, dtype in DTYPES.items()}


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor for one row of a batch.

    Attributes:
        shape: the shape at batch size 1.
        dtype: a key of `DTYPES`.
        batch_dim: the dimension that grows with the batch (its length at n rows is n times
            `shape[batch_dim]`), or None for a tensor that does not depend on the batch.
    """

    shape: tuple[int, ...]
    dtype: str
    batch_dim: int | None = 0

    def shape_at(self, rows: int) -> tuple[int, ...]:
        """The shape of a batch of `rows`."""
        if self.batch_dim is None:
            return self.shape
        d = self.batch_dim
        return (*self.shape[:d], self.shape[d] * rows, *self.shape[d + 1 :])

    def numel(self, rows: int = 1) -> int:
        """Elements in a batch of `rows`."""
        return math.prod(self.shape_at(rows))

    def nbytes(self, rows: int = 1) -> int:
        """Bytes, uncompressed, of a batch of `rows`."""
        return self.numel(rows) * DTYPES[self.dtype].itemsize

    def rows_of(self, tensor: torch.Tensor) -> int | None:
        """How many rows `tensor` holds; None when this tensor does not depend on the batch.

        Raises:
            CodecError: the tensor is not one of this spec.
        """
        if DTYPE_NAMES.get(tensor.dtype) != self.dtype or tensor.dim() != len(self.shape):
            raise CodecError(f"expected {self}, got {tensor.dtype} of shape {tuple(tensor.shape)}")
        if self.batch_dim is None:
            rows = None
        else:
            rows = tensor.shape[self.batch_dim] // max(self.shape[self.batch_dim], 1)
        if tuple(tensor.shape) != self.shape_at(rows or 1):
            raise CodecError(f"expected {self}, got {tensor.dtype} of shape {tuple(tensor.shape)}")
        return rows

    def __str__(self) -> str:
        dims = ["N" if i == self.batch_dim and n == 1 else str(n) for i, n in enumerate(self.shape)]
        if self.batch_dim is not None and self.shape[self.batch_dim] != 1:
            dims[self.batch_dim] = f"{self.shape[self.batch_dim]}N"
        return f"{self.dtype}({', '.join(dims)})"


@dataclass(frozen=True, slots=True)
class Payload:
    """What a codec made: `data` is all that crosses the link, its 8-byte header included."""

    codec: str
    level: int
    rows: int
    data: bytes

    @property
    def nbytes(self) -> int:
        """Bytes of the payload, header included, the frame's own header not."""
        return len(self.data)


@dataclass(frozen=True, slots=True)
class CodecState:
    """All that makes a codec.

    Attributes:
        config: JSON-able; a learned codec names the digests of its two networks here, so that the half
            that lacks one of them still has the same id.
        tensors: named, kept as safetensors on both sides.
        encoder: network of the edge; None for a codec without, and in the cloud.
        decoder: network of the cloud; None for a codec without, and on the edge.
    """

    config: dict[str, Any]
    tensors: dict[str, torch.Tensor] = field(default_factory=dict)
    encoder: Network | None = None
    decoder: Network | None = None

    def digest(self) -> str:
        """16 hex digits over config and tensors."""
        h = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        for name in sorted(self.tensors):
            tensor = self.tensors[name].detach().cpu().contiguous()
            h.update(f"{name}{tensor.dtype}{tuple(tensor.shape)}".encode())
            h.update(tensor.flatten().view(torch.uint8).numpy().tobytes())
        return h.hexdigest()[:16]


class Codec(ABC):
    """Tensors to bytes and back. Subclasses give `levels`, `_encode`, `_decode`, `max_body`, `state`.

    A codec is bound at construction to the specs of what it reads and gives. Levels are numbered from
    the fewest bytes up. `encode` and `decode` may be called from one thread at a time.

    Attributes:
        name: it is registered by.
        gives: whether decoding ends with the cut's tensors or with the model's output.
        learned: whether it is made by training (`splitedge.learning.LearnedCodec`) and not by its name.
    """

    name: ClassVar[str]
    gives: ClassVar[Gives] = "cut"
    learned: ClassVar[bool] = False

    def __init__(self, reads: Sequence[TensorSpec], gives: Sequence[TensorSpec] | None = None) -> None:
        self.read_specs = tuple(reads)
        self.give_specs = tuple(reads if gives is None else gives)
        self._id: str | None = None

    # What a subclass provides -------------------------------------------------------------------

    @property
    @abstractmethod
    def levels(self) -> tuple[str, ...]:
        """Readable names of the rate levels, fewest bytes first; at least one."""

    @abstractmethod
    def _encode(self, tensors: Tensors, level: int, rows: int) -> bytes:
        """The body for `tensors`, whose specs and rows are already checked."""

    @abstractmethod
    def _decode(self, body: memoryview, level: int, rows: int) -> Tensors:
        """The tensors of `body` as `unpacked_specs` say; CRC, level, rows and length are checked."""

    @abstractmethod
    def max_body(self, level: int, rows: int) -> int:
        """The most bytes `_encode` can return for this level and number of rows."""

    @abstractmethod
    def state(self) -> CodecState:
        """All that `from_state` needs to make this codec again."""

    @classmethod
    @abstractmethod
    def from_state(
        cls, state: CodecState, reads: Sequence[TensorSpec], gives: Sequence[TensorSpec] | None = None
    ) -> Self:
        """Make a codec from what `state()` returned.

        Raises:
            CodecError: the state is not this codec's or does not fit the specs.
        """

    @property
    def unpacked_specs(self) -> tuple[TensorSpec, ...]:
        """What `unpack` gives and `expand` takes."""
        return self.give_specs

    def expand(self, tensors: Tensors) -> Tensors:
        """What `unpack` gave, of rows of any requests put together, as `give_specs` say.

        On the device of `tensors`, where the networks of the codec are too (`to`).
        """
        return tensors

    def to(self, device: torch.device) -> None:  # noqa: B027 - most codecs have no network
        """Move the networks of the codec to a device."""

    def calibrate(self, batches: Iterable[Tensors]) -> None:  # noqa: B027 - optional to override
        """Set static ranges from sample batches of what the codec reads. Changes `id`."""

    # What callers use ---------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """`name:digest`; both sides must have the same."""
        if self._id is None:
            self._id = f"{self.name}:{self.state().digest()}"
        return self._id

    def level_of(self, name: str) -> int:
        """The number of a level by its name."""
        if name not in self.levels:
            raise CodecError(f"codec '{self.name}' has no level '{name}'; it has {', '.join(self.levels)}")
        return self.levels.index(name)

    def rows_of(self, tensors: Sequence[torch.Tensor]) -> int:
        """Check tensors against `read_specs` and return their number of rows.

        Raises:
            CodecError: their number, dtype or shape is not what the codec was made for.
        """
        return rows_of(self.read_specs, tensors, f"codec '{self.name}'")

    def max_bytes(self, level: int, rows: int = 1) -> int:
        """The most bytes a payload of this level can have, header included."""
        self._check_level(level)
        return HEADER.size + self.max_body(level, rows)

    def encode(self, tensors: Sequence[torch.Tensor], level: int | None = None) -> Payload:
        """Encode one batch.

        Args:
            tensors: as `read_specs` say, any device.
            level: rate level; None is the highest. A body over the level's cap is made again at the
                next level below; the payload names the level it really has.

        Raises:
            CodecError: the tensors do not fit the specs, or there is no such level.
        """
        level = len(self.levels) - 1 if level is None else level
        self._check_level(level)
        rows = self.rows_of(tensors)
        if not 1 <= rows <= MAX_ROWS:
            raise CodecError(f"a payload holds 1 to {MAX_ROWS} rows, got {rows}")
        with torch.inference_mode():
            body = self._encode(tuple(tensors), level, rows)
            while level and len(body) > self.max_body(level, rows):
                # An unlikely input, or one made for it, can inflate what is entropy-coded.
                level -= 1
                body = self._encode(tuple(tensors), level, rows)
        return self._sealed(level, rows, body)

    def decode(self, data: bytes | memoryview | Payload, *, max_rows: int = MAX_ROWS) -> Tensors:
        """Decode the bytes of one payload into tensors as `give_specs` say: `expand` of `unpack`.

        Raises:
            CodecError: as `unpack` says.
        """
        with torch.inference_mode():
            return self.expand(self.unpack(data, max_rows=max_rows))

    def unpack(self, data: bytes | memoryview | Payload, *, max_rows: int = MAX_ROWS) -> Tensors:
        """Check and entropy-decode one payload into CPU tensors as `unpacked_specs` say.

        Never takes more memory than the decoded tensors of `max_rows` rows need (twice, at most).

        Raises:
            CodecError: the payload is damaged, truncated, oversized, of another format or level, or
                was made by a codec with another id.
        """
        level, rows, body = self._opened(data, max_rows)
        with torch.inference_mode():
            return self._decode(body, level, rows)

    def _sealed(self, level: int, rows: int, body: bytes) -> Payload:
        """A body with its header."""
        crc = zlib.crc32(body, zlib.crc32(HEADER.pack(FORMAT, level, rows, 0)[:4]))
        return Payload(self.id, level, rows, HEADER.pack(FORMAT, level, rows, crc) + body)

    def _opened(self, data: bytes | memoryview | Payload, max_rows: int) -> tuple[int, int, memoryview]:
        """Level, rows and body of a payload, checked as `unpack` says; nothing is decoded."""
        if isinstance(data, Payload):
            if data.codec != self.id:
                raise CodecError(
                    f"payload of codec {data.codec} given to {self.id}: the two sides have other tables; "
                    "load the same bundle on both"
                )
            data = data.data
        view = memoryview(data)
        if view.nbytes < HEADER.size:
            raise CodecError(f"payload of {view.nbytes} bytes is shorter than its {HEADER.size}-byte header")
        format_, level, rows, crc = HEADER.unpack_from(view)
        if format_ != FORMAT:
            raise CodecError(f"payload format {format_} is unknown; this version reads format {FORMAT}")
        if zlib.crc32(view[HEADER.size :], zlib.crc32(view[:4])) != crc:
            raise CodecError("payload damaged: its CRC does not match")
        self._check_level(level)
        if not 1 <= rows <= max_rows:
            raise CodecError(f"payload of {rows} rows; this side takes 1 to {max_rows}")
        cap = self.max_bytes(level, rows)
        if view.nbytes > cap:
            raise CodecError(f"payload of {view.nbytes} bytes; level {level} has at most {cap}")
        return level, rows, view[HEADER.size :]

    def _check_level(self, level: int) -> None:
        if not 0 <= level < len(self.levels):
            raise CodecError(f"codec '{self.name}' has levels 0 to {len(self.levels) - 1}, got {level}")


def rows_of(specs: Sequence[TensorSpec], tensors: Sequence[torch.Tensor], what: str) -> int:
    """Check `tensors` against `specs`; return the number of rows they agree on (1 if none depends on it).

    Raises:
        CodecError: number, dtype, shape or rows do not agree.
    """
    if len(tensors) != len(specs):
        raise CodecError(f"{what} takes {len(specs)} tensors, got {len(tensors)}")
    found = {rows for spec, t in zip(specs, tensors, strict=True) if (rows := spec.rows_of(t)) is not None}
    if len(found) > 1:
        raise CodecError(f"{what}: the tensors disagree on the number of rows: {sorted(found)}")
    return found.pop() if found else 1


def make_codec(
    name: str, reads: Sequence[TensorSpec], gives: Sequence[TensorSpec] | None = None, **options: Any
) -> Codec:
    """Make a registered codec by name.

    Raises:
        UnknownName: no such codec.
        CodecError: the codec can not work on these specs.
    """
    codec: Codec = lookup(GROUP, name)(reads, gives, **options)
    return codec


def load_codec(
    name: str, state: CodecState, reads: Sequence[TensorSpec], gives: Sequence[TensorSpec] | None = None
) -> Codec:
    """Make a registered codec again from its saved state.

    Raises:
        UnknownName: no such codec is installed here.
        CodecError: the state does not fit.
    """
    codec: Codec = lookup(GROUP, name).from_state(state, reads, gives)
    return codec
