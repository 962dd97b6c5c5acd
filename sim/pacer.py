"""A user-space TCP proxy that makes a fast network behave like a recorded channel. No root needed.

Bytes that reach the proxy go through `link.Link`, the exact model of a queue before a capacity that
changes over time, and are written out when the model says they arrive. All connections share one
bottleneck for each direction, as they would share one radio; they take turns chunk by chunk.

Why not a token bucket (`tc tbf`): its full bucket lets an isolated burst of 5 to 20 kB through 7 to 57%
too fast, and isolated bursts of that size are what split inference sends. Here a burst of n bytes takes
n / capacity, and what the proxy adds is only ever lateness: the event loop's and the kernel's, which
`stats` reports. With `precise_loop` (select, microseconds) it is a few tenths of a millisecond;
asyncio's usual loop (epoll) rounds every wait up to a whole millisecond.

What it does not do: delay TCP's own handshake, which each side does with the proxy. Packets are never
really lost: a loss (`Channel.loss`) is the stall that TCP makes of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import selectors
import socket
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from splitedge.errors import ConfigError, LinkError
from splitedge.sim.link import Channel, Link
from splitedge.sim.loss import FOLLOWERS
from splitedge.sim.medium import Medium

#: Bytes a connection may add to the queue before the next one has its turn.
CHUNK = 8192
#: Bytes that travel as one: a packet. A message's last byte waits at most for this much behind it.
PIECE = 1500
#: Bytes looked at to see what follows a chunk: enough to know whether a lost packet is a burst's tail.
AHEAD = CHUNK + FOLLOWERS * PIECE
#: Pieces due this close together are written at once, at the time of the last: never early.
GRAIN_S = 0.25e-3
#: Kernel buffers are kept small, or they would hide the queue from the sender.
KERNEL_BYTES = 64 * 1024
CONNECT_S = 5.0

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class WayStats:
    """One direction so far.

    Attributes:
        bytes_in: taken from senders.
        bytes_out: written to receivers.
        bytes_dropped: taken and never written, because the connection was cut or failed.
        backlog_bytes: waiting for capacity now.
        rate_bps: capacity now, bits per second.
        queued_max_s: longest time from taking a piece to its arrival, propagation included, as modelled.
        late_mean_s, late_max_s: how much after the modelled arrival pieces were written.
        lost_packets: packets lost and sent again, as modelled.
    """

    bytes_in: int
    bytes_out: int
    bytes_dropped: int
    backlog_bytes: int
    rate_bps: float
    queued_max_s: float
    late_mean_s: float
    late_max_s: float
    lost_packets: int


@dataclass(frozen=True, slots=True)
class PacerStats:
    """A pacer so far.

    Attributes:
        elapsed_s: seconds since it started.
        is_cut: whether the link is cut now.
        connections: open now.
        accepted, refused: connections taken, and turned away (the link was cut, or too many).
        unreachable: connections for which nobody answered at the far end.
        up, down: the two directions.
    """

    elapsed_s: float
    is_cut: bool
    connections: int
    accepted: int
    refused: int
    unreachable: int
    up: WayStats
    down: WayStats


def parse_address(address: str) -> tuple[str, int]:
    """Host and port of `tcp://host:port` (IPv6 in brackets).

    Raises:
        ConfigError: it is not of that form.
    """
    scheme, _, rest = address.rpartition("://")
    host, _, port = rest.rpartition(":")
    host = host[1:-1] if host.startswith("[") and host.endswith("]") else host
    if scheme not in ("", "tcp") or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(
            f"'{address}' is no address; write tcp://host:port, for example tcp://127.0.0.1:7071"
        )
    return host, int(port)


def precise_loop() -> asyncio.AbstractEventLoop:
    """An event loop whose timers are exact to microseconds, for up to about 500 connections."""
    return asyncio.SelectorEventLoop(selectors.SelectSelector())


class _Way:
    """One direction: the shared bottleneck and what is counted about it."""

    def __init__(self, channel: Channel, medium: Medium | None) -> None:
        self.link = Link(channel, medium)
        self.turn = asyncio.Lock()  # its waiters are served in order: connections take turns
        self.started = 0.0  # on the event loop's clock
        self.bytes_in = self.bytes_out = self.bytes_dropped = self.writes = 0
        self.queued_max_s = self.late_sum_s = self.late_max_s = 0.0

    def now(self) -> float:
        return asyncio.get_running_loop().time() - self.started

    async def sleep_until(self, when: float) -> None:
        while (left := when - self.now()) > 0.0:
            await asyncio.sleep(min(left, 3600.0))

    async def take(self, chunk: bytes, behind: int) -> list[tuple[float, memoryview]]:
        """Queue a chunk as soon as the buffer has room; its pieces with their times of arrival.

        `behind` bytes of the same burst are at hand already (as many as matter to the link).
        """
        async with self.turn:
            await self.sleep_until(self.link.room_at(self.now(), len(chunk)))
            now, view = self.now(), memoryview(chunk)
            timed = []
            for at in range(0, len(view), PIECE):
                piece = view[at : at + PIECE]
                after = max(0, len(view) - at - PIECE) + behind
                timed.append((self.link.send(now, len(piece), after), piece))
            self.bytes_in += len(chunk)
            if math.isfinite(timed[-1][0]):
                self.queued_max_s = max(self.queued_max_s, timed[-1][0] - now)
            return timed

    def wrote(self, nbytes: int, due: float) -> None:
        late = self.now() - due
        self.bytes_out += nbytes
        self.writes += 1
        self.late_sum_s += late
        self.late_max_s = max(self.late_max_s, late)

    def stats(self) -> WayStats:
        now = self.now()
        return WayStats(
            self.bytes_in,
            self.bytes_out,
            self.bytes_dropped,
            round(self.link.backlog(now)),
            self.link.rate_at(now),
            self.queued_max_s,
            self.late_sum_s / max(self.writes, 1),
            self.late_max_s,
            self.link.lost_packets,
        )


class _Pump:
    """One direction of one connection: reads at one end, writes at the other when the link says so."""

    def __init__(self, way: _Way, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        self._way, self._source, self._sink = way, source, sink
        self._queue: deque[tuple[float, memoryview]] = deque()
        self._more = asyncio.Event()
        self._flowing = asyncio.Event()  # cleared while the receiver does not read
        self._flowing.set()
        self._ended = False

    @property
    def queued(self) -> int:
        """Bytes taken and not yet written."""
        return sum(len(piece) for _, piece in self._queue)

    async def read(self) -> None:
        while ahead := await self._source.read(AHEAD):
            while ahead:
                chunk, ahead = ahead[:CHUNK], ahead[CHUNK:]
                self._queue.extend(await self._way.take(chunk, len(ahead)))
                self._more.set()
                await self._flowing.wait()
                if ahead:
                    ahead += await self._at_once(AHEAD - len(ahead))
        self._ended = True
        self._more.set()

    async def _at_once(self, most: int) -> bytes:
        """What more is here already, up to `most` bytes."""
        try:
            async with asyncio.timeout(0):
                return await self._source.read(most)
        except TimeoutError:
            return b""

    async def write(self) -> None:
        while True:
            while not self._queue:
                if self._ended:
                    if self._sink.can_write_eof():
                        self._sink.write_eof()
                    return
                self._more.clear()
                await self._more.wait()
            await self._way.sleep_until(self._next_due())
            batch, due = self._due()
            self._sink.write(b"".join(batch))
            self._way.wrote(sum(map(len, batch)), due)
            self._flowing.clear()
            await self._sink.drain()
            self._flowing.set()

    def _next_due(self) -> float:
        last = first = self._queue[0][0]
        for due, _ in self._queue:
            if due > first + GRAIN_S:
                break
            last = due
        return last

    def _due(self) -> tuple[list[memoryview], float]:
        now, batch, last = self._way.now(), [], 0.0
        while self._queue and self._queue[0][0] <= now:
            last, piece = self._queue.popleft()
            batch.append(piece)
        return batch, last


class Pacer:
    """A TCP proxy from `listen` to `to` with a replayed channel in each direction.

    ```
    async with Pacer("tcp://127.0.0.1:0", "tcp://127.0.0.1:7070", up, down) as pacer:
        ...  # connect to pacer.address
    ```

    Args:
        listen: `tcp://host:port` to accept connections on; port 0 takes a free one.
        to: `tcp://host:port` to connect each of them to.
        up: the channel from who connects to `to`.
        down: the channel back.
        cuts: (begin, end) in seconds since the start: in between, open connections are reset and new
            ones turned away, and what was queued is lost. An outage in the trace only stalls bytes.
        max_connections: at most so many at once; more are turned away.
        half_duplex: both directions share one medium: one of them sends at a time.

    Raises:
        ConfigError: an address or an interval is malformed.
    """

    def __init__(
        self,
        listen: str,
        to: str,
        up: Channel,
        down: Channel,
        *,
        cuts: Sequence[tuple[float, float]] = (),
        max_connections: int = 256,
        half_duplex: bool = False,
    ) -> None:
        self._listen, self._to = parse_address(listen), parse_address(to)
        self._channels = up, down
        medium = Medium() if half_duplex else None
        self._up, self._down = _Way(up, medium), _Way(down, medium)
        self._cuts = tuple(cuts)
        for begin, end in self._cuts:
            if not 0.0 <= begin < end:
                raise ConfigError(
                    f"a cut from {begin:g} s to {end:g} s; it begins at 0 or later and ends after that"
                )
        self._max_connections = max_connections
        self._server: asyncio.Server | None = None
        self._schedule: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._is_cut = False
        self._accepted = self._refused = self._unreachable = 0

    @property
    def started_s(self) -> float:
        """When the replay of the traces began, seconds of the monotonic clock."""
        return self._up.started

    async def start(self) -> None:
        """Listen; the replay of the traces begins now.

        Raises:
            LinkError: the address can not be listened on.
        """
        host, port = self._listen
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.create_server((host, port), family=family, backlog=128)
        except OSError as error:
            raise LinkError(f"can not listen on {host}:{port}: {error.strerror}; is it in use?") from error
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
        self._up.started = self._down.started = asyncio.get_running_loop().time()
        self._server = await asyncio.start_server(self._accept, sock=sock, limit=CHUNK)
        if self._cuts:
            self._schedule = asyncio.create_task(self._run_cuts())

    async def close(self) -> None:
        """Reset every connection and stop listening. May be called twice."""
        if self._server is None:
            return
        server, self._server = self._server, None
        server.close()
        tasks = [*self._tasks, *([self._schedule] if self._schedule else [])]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await server.wait_closed()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def address(self) -> str:
        """`tcp://host:port` as bound.

        Raises:
            LinkError: the pacer has not started.
        """
        if self._server is None:
            raise LinkError("the pacer is not listening; call start() first")
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"tcp://[{host}]:{port}" if ":" in host else f"tcp://{host}:{port}"

    def cut(self) -> None:
        """Lose the link: reset open connections, forget what is queued, turn new connections away."""
        self._is_cut = True
        for task in self._tasks:
            task.cancel()
        for way in (self._up, self._down):
            way.link.clear(way.now())

    def restore(self) -> None:
        """Accept connections again after `cut`."""
        self._is_cut = False

    def stats(self) -> PacerStats:
        """What happened so far."""
        return PacerStats(
            self._up.now(),
            self._is_cut,
            len(self._tasks),
            self._accepted,
            self._refused,
            self._unreachable,
            self._up.stats(),
            self._down.stats(),
        )

    async def ended(self) -> None:
        """Return when neither direction will carry anything more (never, if one loops)."""
        await self._up.sleep_until(max(channel.ends_s for channel in self._channels))

    async def _run_cuts(self) -> None:
        for begin, end in sorted(self._cuts):
            await self._up.sleep_until(begin)
            self.cut()
            await self._up.sleep_until(end)
            self.restore()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._is_cut or len(self._tasks) >= self._max_connections:
            self._refused += 1
            _reset(writer)
            return
        self._accepted += 1
        task = asyncio.get_running_loop().create_task(self._serve(reader, writer))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # A peer that goes away is no fault of ours (ENOTCONN is an OSError and no ConnectionError); anything
        # but a socket's error is, and is raised.
        with contextlib.suppress(OSError), _closing(writer):
            try:
                async with asyncio.timeout(CONNECT_S):
                    far_reader, far_writer = await asyncio.open_connection(*self._to, limit=CHUNK)
            except OSError:  # TimeoutError is one
                self._unreachable += 1
                return
            with _closing(far_writer):
                await self._relay(
                    _Pump(self._up, reader, far_writer),
                    _Pump(self._down, far_reader, writer),
                )

    async def _relay(self, up: _Pump, down: _Pump) -> None:
        """Run both directions until both have ended; the first failure ends both."""
        tasks = [asyncio.create_task(part()) for part in (up.read, up.write, down.read, down.write)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            self._up.bytes_dropped += up.queued
            self._down.bytes_dropped += down.queued


@contextlib.contextmanager
def _closing(writer: asyncio.StreamWriter) -> Iterator[None]:
    """Set up a socket; close it politely at the end, or with a reset after an error or while data waits."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, KERNEL_BYTES)
    polite = False
    try:
        yield
        polite = not writer.transport.get_write_buffer_size()
    finally:
        if polite:
            writer.close()
        else:
            _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    sock = writer.get_extra_info("socket")
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
    writer.transport.abort()
