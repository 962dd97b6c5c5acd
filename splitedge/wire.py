"""Messages between edge and cloud and their frames; the only parser of network bytes.

A message is one msgpack header of at most 64 KiB, then raw buffers. The header is one flat array that
starts with protocol version and kind (nothing nests, so a hostile header can not be made to cost more
memory than its own length); buffers under 32 KiB travel inside it, bigger ones as a frame of their own
that is neither copied when sent nor when received. Bundle, cut and codec are agreed on once a session
as numbered lanes (`Hello`, `Welcome`), so that a request costs about twenty bytes beside its payload.
Numbers are little-endian. docs/wire.md lists every field.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import msgpack
import torch

from splitedge.errors import WireError

if TYPE_CHECKING:
    import zmq

VERSION = 1
MAX_HEADER = 64 * 1024
INLINE = 32768  # bytes in one header; a frame of its own costs about 40 bytes and 20 µs under CURVE
MAX_FIELDS = 1024  # of the header's flat array

MAX_DRAFTS = 256  # tokens verified by one ask
MAX_STOPS = 64  # ids that end a text
MAX_TABLES = 64 * 1024  # bytes of the laws that the drafts of one ask were drawn from

MAX_TOP = 20  # of the likeliest tokens told beside a chosen one
LOGPROB_BYTES = 4 + 8 * MAX_TOP  # of a token, at most

U16, U32, U64 = 0xFFFF, 0xFFFF_FFFF, 0xFFFF_FFFF_FFFF_FFFF

#: Dtypes a reply may carry; the code on the wire is the index. Append only.
DTYPES: tuple[torch.dtype, ...] = (
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float64,
    torch.uint8,
    torch.int8,
    torch.int16,
    torch.int32,
    torch.int64,
    torch.bool,
)
_CODES = {dtype: code for code, dtype in enumerate(DTYPES)}


@dataclass(frozen=True, slots=True)
class Limits:
    """What this side takes from the network, all checked before memory is taken.

    Attributes:
        max_message: bytes of all frames of one message; at least 256 KiB, four times the header's cap.
        max_tensors: tensors in one reply.
        max_dims: dimensions of one tensor.
        max_lanes: lanes in one hello.
        max_text: UTF-8 bytes of one string.
    """

    max_message: int = 32 * 2**20
    max_tensors: int = 64
    max_dims: int = 8
    max_lanes: int = 256
    max_text: int = 1024

    def __post_init__(self) -> None:
        if self.max_message < 4 * MAX_HEADER:
            raise ValueError(f"max_message must be at least {4 * MAX_HEADER} bytes, got {self.max_message}")


DEFAULT_LIMITS = Limits()


@dataclass(frozen=True, slots=True)
class Lane:
    """One kind of request a cloud can serve: a bundle, a cut ("" for the model's input) and a codec id.

    Edge and cloud agree on their lanes once a session; requests then name a lane by number.
    """

    bundle: str
    cut: str
    codec: str


@dataclass(slots=True)
class Hello:
    """Edge to cloud, first on every connection: who asks (8 random bytes a run), and for which lanes."""

    session: bytes
    lanes: tuple[Lane, ...]


@dataclass(slots=True)
class Welcome:
    """Cloud to edge: its lifetime (8 random bytes a start) and, for each lane asked for, its number or -1.

    `reason` says in words why a lane was refused (empty when none was).
    """

    epoch: bytes
    lanes: tuple[int, ...]
    reason: str
    max_message: int


@dataclass(slots=True)
class Infer:
    """Edge to cloud: run the tail on this payload. `deadline_ms` is what is left, 0 for none."""

    request: int
    attempt: int
    lane: int
    rows: int
    deadline_ms: int
    payload: bytes | memoryview


@dataclass(slots=True)
class Reply:
    """Cloud to edge: flat output tensors. Times in nanoseconds of the cloud's monotonic clock."""

    request: int
    attempt: int
    received_ns: int
    sent_ns: int
    queue_ns: int
    decode_ns: int
    tail_ns: int
    tensors: tuple[torch.Tensor, ...]


@dataclass(slots=True)
class Refuse:
    """Cloud to edge: no answer, and why (`kind` is an `events.Refusal`)."""

    request: int
    attempt: int
    kind: str
    message: str
    retry_after_ms: int


@dataclass(slots=True)
class Cancel:
    """Edge to cloud: nobody waits for this request any more."""

    request: int


@dataclass(slots=True)
class Ping:
    """Edge to cloud: `token` comes back."""

    token: int


@dataclass(slots=True)
class Pong:
    """Cloud to edge. Times in nanoseconds of the cloud's monotonic clock."""

    token: int
    received_ns: int
    sent_ns: int


@dataclass(slots=True)
class Ask:
    """Edge to cloud: go on with a context of a language model. Safe to repeat: the cloud keeps the first
    `start` tokens it has if their rolling hash is `before`, forgets what lies behind, and takes these.

    Attributes:
        request, attempt, lane, deadline_ms: as in `Infer`.
        context: the edge's number of the context.
        epoch: raised by the edge whenever it takes tokens back; older asks are dropped.
        start: tokens before those of this message.
        before: rolling hash of their payload rows (`splitedge.llm.hashing`).
        count: tokens of this message, drafts included.
        drafts: how many at its end are drafts to be verified.
        want: tokens asked for behind them; 0 for none (only keep these).
        temperature, top_p: in millionths; 0 is greedy.
        top_k: 0 for all.
        seed: of the noise by which tokens are drawn.
        stops: ids that end the text.
        payload: the tokens as the lane's codec writes them: ids (int32, little-endian), or a row of hidden
            state at its cut for each.
        ids: the same tokens' ids where the payload holds hidden states and the cloud may know them (it
            must where drafts are to be verified); else empty.
        tables: laws that the drafts were drawn from, for verification by rejection sampling; empty for
            the shared-seed coupling. Left out of the frame where empty.
        logprobs: logarithms of probabilities that are wanted of each token: 0 for none, 1 of the token
            itself, 1 + n also of the n likeliest. Left out where 0.
    """

    request: int
    attempt: int
    lane: int
    deadline_ms: int
    context: int
    epoch: int
    start: int
    before: int
    count: int
    drafts: int
    want: int
    temperature: int
    top_p: int
    top_k: int
    seed: int
    stops: tuple[int, ...]
    payload: bytes | memoryview
    ids: bytes | memoryview = b""
    tables: bytes | memoryview = b""
    logprobs: int = 0

    @property
    def payload_bytes(self) -> int:
        """Length of the payload."""
        return memoryview(self.payload).nbytes


@dataclass(slots=True)
class Tell:
    """Cloud to edge: tokens of a context; one `Ask` may be answered by several, the last with `last`.

    Attributes:
        request, attempt, received_ns, sent_ns: as in `Reply`.
        context, epoch: of the ask.
        start: number of the first token told, counted from the beginning of the context.
        accepted: drafts that were right; the first told token stands behind them.
        last: 1 where nothing more comes, else 0.
        queue_ns, compute_ns: waited and computed since the tell before.
        ids: tokens, int32 little-endian.
        logprobs: of the accepted drafts and these tokens, as `llm.logprobs` packs them; empty where not
            asked for.
    """

    request: int
    attempt: int
    received_ns: int
    sent_ns: int
    context: int
    epoch: int
    start: int
    accepted: int
    last: int
    queue_ns: int
    compute_ns: int
    ids: bytes | memoryview
    logprobs: bytes | memoryview = b""


Message = Hello | Welcome | Infer | Reply | Refuse | Cancel | Ping | Pong | Ask | Tell


def framed_bytes(frames: Sequence[bytes | memoryview | zmq.Frame], *, encrypted: bool = True) -> int:
    """Bytes these frames take on the connection: ZMTP 3.1 framing and, if `encrypted`, CURVE's part of it.

    TCP and IP headers are not counted. A frame costs 1 byte of flags and 1 or 8 of length; CURVE wraps it
    in 33 bytes more (RFC 26/CURVEZMQ: command name 8, nonce 8, MAC 16, flags 1).
    """
    total = 0
    for frame in frames:
        n = _view(frame).nbytes + (33 if encrypted else 0)
        total += n + (2 if n <= 255 else 9)
    return total


def _view(frame: bytes | memoryview | zmq.Frame) -> memoryview:
    return memoryview(frame)  # type: ignore[arg-type]  # a zmq.Frame is a buffer, its stub does not say so


# Packing ------------------------------------------------------------------------------------------


def pack(message: Message) -> list[bytes | memoryview]:
    """The frames of a message. Buffers of 32 KiB and more are passed on without a copy.

    Raises:
        WireError: the message can not be sent (a header over 64 KiB, a tensor of a dtype without a code).
    """
    kind, write = _WRITERS[type(message)]
    frames: list[bytes | memoryview] = [b""]
    fields: list[Any] = [VERSION, kind]
    write(message, fields, frames)
    try:
        header: bytes = msgpack.packb(fields)
    except (ValueError, TypeError, OverflowError) as error:
        raise WireError(f"{type(message).__name__} can not be sent: {error}") from None
    if len(header) > MAX_HEADER or len(fields) > MAX_FIELDS:
        raise WireError(
            f"{type(message).__name__} needs a header of {len(header)} bytes and {len(fields)} fields; "
            f"at most {MAX_HEADER} and {MAX_FIELDS} can be sent"
        )
    frames[0] = header
    return frames


def _put(data: bytes | memoryview, fields: list[Any], frames: list[bytes | memoryview]) -> None:
    """A small buffer goes into the header as bin, a big one into a frame with its length in the header."""
    size = len(data) if isinstance(data, bytes) else data.nbytes
    if size < INLINE and size + sum(len(field) for field in fields if type(field) is bytes) < INLINE:
        fields.append(data if isinstance(data, bytes) else bytes(data))
    else:
        fields.append(size)
        frames.append(data)


def _write_hello(m: Hello, fields: list[Any], frames: list[bytes | memoryview]) -> None:
    fields.append(m.session)
    for lane in m.lanes:
        fields += (lane.bundle, lane.cut, lane.codec)


def _write_welcome(m: Welcome, fields: list[Any], frames: list[bytes | memoryview]) -> None:
    fields += (m.epoch, m.reason, m.max_message, *m.lanes)


def _write_infer(m: Infer, fields: list[Any], frames: list[bytes | memoryview]) -> None:
    fields += (m.request, m.attempt, m.lane, m.rows, m.deadline_ms)
    _put(m.payload, fields, frames)


def _write_reply(m: Reply, fields: list[Any], frames: list[bytes | memoryview]) -> None:
    fields += (m.request, m.attempt, m.received_ns, m.sent_ns, m.queue_ns, m.decode_ns, m.tail_ns)
    for tensor in m.tensors:
        code = _CODES.get(tensor.dtype)
        if code is None or tensor.numel() == 0:
            raise WireError(f"a reply can not carry {tensor.dtype} of shape {tuple(tensor.shape)}")
        fields += (code, tensor.dim(), *tensor.shape)
        _put(_bytes_of(tensor), fields, frames)


def _bytes_of(tensor: torch.Tensor) -> memoryview:
    """A tensor's values in order; its own memory where it lies on the CPU in that order already."""
    if tensor.requires_grad or tensor.is_cuda or not tensor.is_contiguous():
        tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype is torch.bfloat16 or not tensor.dim():  # NumPy has no such type; a view needs a dimension
        tensor = tensor.reshape(-1).view(torch.uint8)
    return tensor.numpy().data.cast("B")


def _write_refuse(m: Refuse, fields: list[Any], frames: list[bytes | memoryview]) -> None:
    fields += (m.request, m.attempt, m.kind, m.message, m.retry_after_ms)


def _write_cancel(m: Cancel, fields: list[Any], frames: list[bytes | memoryview]) -> None:
    fields.append(m.request)


def _write_ping(m: Ping, fields: list[Any], frames: list[bytes | memoryview]) -> None:
    fields.append(m.token)


def _write_pong(m: Pong, fields: list[Any], frames: list[bytes | memoryview]) -> None:
    fields += (m.token, m.received_ns, m.sent_ns)


def _write_ask(m: Ask, fields: list[Any], frames: list[bytes | memoryview]) -> None:
    fields += (m.request, m.attempt, m.lane, m.deadline_ms, m.context, m.epoch, m.start, m.before)
    fields += (m.count, m.drafts, m.want, m.temperature, m.top_p, m.top_k, m.seed, len(m.stops), *m.stops)
    _put(m.payload, fields, frames)
    _put(m.ids, fields, frames)
    if len(m.tables) or m.logprobs:
        _put(m.tables, fields, frames)
    if m.logprobs:
        fields.append(m.logprobs)


def _write_tell(m: Tell, fields: list[Any], frames: list[bytes | memoryview]) -> None:
    fields += (m.request, m.attempt, m.received_ns, m.sent_ns, m.context, m.epoch, m.start, m.accepted)
    fields += (m.last, m.queue_ns, m.compute_ns)
    _put(m.ids, fields, frames)
    _put(m.logprobs, fields, frames)


_WRITERS: dict[type, tuple[int, Callable[[Any, list[Any], list[bytes | memoryview]], None]]] = {
    Hello: (0, _write_hello),
    Welcome: (1, _write_welcome),
    Infer: (2, _write_infer),
    Reply: (3, _write_reply),
    Refuse: (4, _write_refuse),
    Cancel: (5, _write_cancel),
    Ping: (6, _write_ping),
    Pong: (7, _write_pong),
    Ask: (8, _write_ask),
    Tell: (9, _write_tell),
}


# Unpacking ----------------------------------------------------------------------------------------


def unpack(frames: Sequence[bytes | memoryview | zmq.Frame], limits: Limits = DEFAULT_LIMITS) -> Message:
    """The message of these frames. Big payloads and tensors share memory with their frame.

    Raises:
        WireError: they are no message of this protocol version, or pass a limit. Nothing else is raised,
            and no more than twice `limits.max_message` bytes are taken, whatever the frames hold.
    """
    if not 1 <= len(frames) <= 1 + limits.max_tensors:
        raise WireError(f"a message has 1 to {1 + limits.max_tensors} frames, got {len(frames)}")
    views = [_view(frame) for frame in frames]
    total = sum(view.nbytes for view in views)
    if total > limits.max_message:
        raise WireError(f"message of {total} bytes; this side takes {limits.max_message}")
    fields = _Fields(_parse(views[0]), views, limits)
    version = fields.uint("version", 0xFF)
    if version != VERSION:
        raise WireError(
            f"peer speaks protocol version {version}, this side {VERSION}; "
            "install the same splitedge on both sides"
        )
    kind = fields.uint("kind", 0xFF)
    if kind >= len(_READERS):
        raise WireError(f"unknown kind of message {kind}; this version knows 0 to {len(_READERS) - 1}")
    message = _READERS[kind](fields)
    fields.end()
    return message


def _parse(header: memoryview) -> list[Any]:
    """The header's flat array.

    msgpack calls the hook when a list is complete, inner ones first: the second call can only mean that
    something nests, and is refused before more is built.
    """
    if header.nbytes > MAX_HEADER:
        raise WireError(f"header of {header.nbytes} bytes; at most {MAX_HEADER}")
    lists = 0

    def flat(items: list[Any]) -> list[Any]:
        nonlocal lists
        lists += 1
        if lists > 1:
            raise WireError("header is not a flat array")
        return items

    try:
        fields = msgpack.unpackb(
            header, list_hook=flat, max_array_len=MAX_FIELDS, max_map_len=0, max_ext_len=0
        )
    except (ValueError, TypeError, OverflowError, msgpack.UnpackException) as error:
        raise WireError(f"header is not msgpack: {type(error).__name__}") from None
    if type(fields) is not list:
        raise WireError("header is not an array")
    return fields


class _Fields:
    """Reads a header's fields in order; every one is typed and bounded."""

    __slots__ = ("_at", "_fields", "_frame", "_views", "limits")

    def __init__(self, fields: list[Any], views: list[memoryview], limits: Limits) -> None:
        self._fields = fields
        self._views = views
        self._at = 0
        self._frame = 1
        self.limits = limits

    def left(self) -> int:
        return len(self._fields) - self._at

    def _next(self, name: str) -> Any:
        at = self._at
        if at >= len(self._fields):
            raise WireError(f"header ends before '{name}'")
        self._at = at + 1
        return self._fields[at]

    def uint(self, name: str, most: int, least: int = 0) -> int:
        value = self._next(name)
        if type(value) is not int or not least <= value <= most:
            raise WireError(f"'{name}' must be an integer from {least} to {most}, got {_show(value)}")
        return value

    def text(self, name: str) -> str:
        value = self._next(name)
        if type(value) is not str or len(value) > self.limits.max_text:
            raise WireError(f"'{name}' must be a string of at most {self.limits.max_text} characters")
        return value

    def token(self, name: str, size: int) -> bytes:
        value = self._next(name)
        if type(value) is not bytes or len(value) != size:
            raise WireError(f"'{name}' must be {size} bytes, got {_show(value)}")
        return value

    def buffer(self, name: str) -> memoryview:
        """A buffer from the header or, where the header has its length, from the next frame."""
        value = self._next(name)
        if type(value) is bytes:
            return memoryview(value)
        if type(value) is not int:
            raise WireError(f"'{name}' must be bytes or the length of a frame, got {_show(value)}")
        if self._frame >= len(self._views):
            raise WireError(f"'{name}' needs a frame of {value} bytes, there is none")
        view = self._views[self._frame]
        self._frame += 1
        if view.nbytes != value:
            raise WireError(f"'{name}' declares {value} bytes, its frame has {view.nbytes}")
        return view

    def end(self) -> None:
        if self.left() or self._frame != len(self._views):
            frames = len(self._views) - self._frame
            raise WireError(f"{self.left()} fields and {frames} frames too many in the message")


def _show(value: object) -> str:
    """A value from the network in an error message: its type, and never more than a few digits of it."""
    if type(value) is int:
        return str(value)
    size = f" of {len(value)}" if isinstance(value, bytes | str | list) else ""
    return f"{type(value).__name__}{size}"


def _read_hello(f: _Fields) -> Hello:
    session = f.token("session", 8)
    count, odd = divmod(f.left(), 3)
    if odd or count > f.limits.max_lanes:
        raise WireError(
            f"a hello names at most {f.limits.max_lanes} lanes of 3 fields, got {f.left()} fields"
        )
    lanes = tuple(Lane(f.text("bundle"), f.text("cut"), f.text("codec")) for _ in range(count))
    return Hello(session, lanes)


def _read_welcome(f: _Fields) -> Welcome:
    epoch, reason, most = f.token("epoch", 8), f.text("reason"), f.uint("max_message", U64)
    if f.left() > f.limits.max_lanes:
        raise WireError(f"a welcome numbers at most {f.limits.max_lanes} lanes, got {f.left()}")
    return Welcome(epoch, tuple(f.uint("lane", U16, -1) for _ in range(f.left())), reason, most)


def _read_infer(f: _Fields) -> Infer:
    return Infer(
        f.uint("request", U64),
        f.uint("attempt", U16),
        f.uint("lane", U16),
        f.uint("rows", U16, 1),
        f.uint("deadline_ms", U32),
        f.buffer("payload"),
    )


def _read_reply(f: _Fields) -> Reply:
    request, attempt = f.uint("request", U64), f.uint("attempt", U16)
    received, sent = f.uint("received_ns", U64), f.uint("sent_ns", U64)
    queue, decode, tail = f.uint("queue_ns", U64), f.uint("decode_ns", U64), f.uint("tail_ns", U64)
    return Reply(request, attempt, received, sent, queue, decode, tail, tuple(_tensors(f)))


def _tensors(f: _Fields) -> Iterator[torch.Tensor]:
    count = 0
    while f.left():
        count += 1
        if count > f.limits.max_tensors:
            raise WireError(f"a reply carries at most {f.limits.max_tensors} tensors")
        dtype = DTYPES[f.uint("dtype", len(DTYPES) - 1)]
        dims = f.uint("dims", f.limits.max_dims)
        shape = [f.uint("dim", U64, 1) for _ in range(dims)]
        yield _tensor(f.buffer("tensor"), dtype, shape)


def _tensor(data: memoryview, dtype: torch.dtype, shape: list[int]) -> torch.Tensor:
    """A tensor over `data`; copied only where the buffer is read-only or not aligned."""
    size = math.prod(shape) * dtype.itemsize
    if size != data.nbytes:
        raise WireError(f"a tensor of {dtype} and shape {shape} has {size} bytes, got {data.nbytes}")
    if data.readonly:
        return torch.frombuffer(bytearray(data), dtype=dtype).view(shape)
    tensor = torch.frombuffer(data, dtype=dtype).view(shape)
    return tensor if tensor.data_ptr() % dtype.itemsize == 0 else tensor.clone()


def _read_refuse(f: _Fields) -> Refuse:
    return Refuse(
        f.uint("request", U64),
        f.uint("attempt", U16),
        f.text("kind"),
        f.text("message"),
        f.uint("retry_after_ms", U32),
    )


def _read_cancel(f: _Fields) -> Cancel:
    return Cancel(f.uint("request", U64))


def _read_ping(f: _Fields) -> Ping:
    return Ping(f.uint("token", U64))


def _read_pong(f: _Fields) -> Pong:
    return Pong(f.uint("token", U64), f.uint("received_ns", U64), f.uint("sent_ns", U64))


def _read_ask(f: _Fields) -> Ask:
    ask = Ask(
        f.uint("request", U64),
        f.uint("attempt", U16),
        f.uint("lane", U16),
        f.uint("deadline_ms", U32),
        f.uint("context", U64),
        f.uint("epoch", U32),
        f.uint("start", U32),
        f.uint("before", U64),
        count := f.uint("count", U16, 1),
        f.uint("drafts", min(count, MAX_DRAFTS)),
        f.uint("want", U16),
        f.uint("temperature", 100_000_000),
        f.uint("top_p", 1_000_000),
        f.uint("top_k", U32),
        f.uint("seed", U64),
        tuple(f.uint("stop", U32) for _ in range(f.uint("stops", MAX_STOPS))),
        f.buffer("payload"),
        ids := f.buffer("ids"),
        f.buffer("tables") if f.left() else b"",
        f.uint("logprobs", MAX_TOP + 1) if f.left() else 0,
    )
    most = MAX_TABLES if ask.drafts else 0
    if len(ask.tables) > most:
        raise WireError(f"'tables' of {ask.drafts} drafts have at most {most} bytes, got {len(ask.tables)}")
    if ids.nbytes not in (0, 4 * count):
        raise WireError(f"'ids' of {count} tokens must be empty or {4 * count} bytes, got {ids.nbytes}")
    return ask


def _read_tell(f: _Fields) -> Tell:
    tell = Tell(
        f.uint("request", U64),
        f.uint("attempt", U16),
        f.uint("received_ns", U64),
        f.uint("sent_ns", U64),
        f.uint("context", U64),
        f.uint("epoch", U32),
        f.uint("start", U32),
        f.uint("accepted", U16),
        f.uint("last", 1),
        f.uint("queue_ns", U64),
        f.uint("compute_ns", U64),
        ids := f.buffer("ids"),
        logprobs := f.buffer("logprobs"),
    )
    if ids.nbytes % 4 or ids.nbytes > 4 * U16:
        raise WireError(f"'ids' must be at most {U16} numbers of 4 bytes, got {ids.nbytes} bytes")
    most = (tell.accepted + ids.nbytes // 4) * LOGPROB_BYTES
    if logprobs.nbytes > most:
        raise WireError(f"'logprobs' of these tokens have at most {most} bytes, got {logprobs.nbytes}")
    return tell


_READERS: tuple[Callable[[_Fields], Message], ...] = (
    _read_hello,
    _read_welcome,
    _read_infer,
    _read_reply,
    _read_refuse,
    _read_cancel,
    _read_ping,
    _read_pong,
    _read_ask,
    _read_tell,
)
