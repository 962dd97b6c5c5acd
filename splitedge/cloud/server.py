"""The cloud server: a ZeroMQ ROUTER before a `CloudHost`, health and metrics beside it.

The socket is read with non-blocking calls whenever its file descriptor wakes the loop; that is about
three times as fast as `zmq.asyncio`. The descriptor is edge-triggered: it tells of a change once, and
any send or receive may swallow that, so `EVENTS` is looked at again after each turn of work.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

import zmq

from splitedge.cloud.admin import admin_server
from splitedge.cloud.desk import LanguageHalf
from splitedge.cloud.host import CloudHost
from splitedge.cloud.metrics import CloudMetrics
from splitedge.cloud.outbox import Frames, Outbox
from splitedge.cloud.settings import ServerSettings
from splitedge.errors import ConfigError
from splitedge.http_guard import HttpLimits, HttpServer
from splitedge.keys import AllowList, Authenticator, load_keys, require_keys, secure_server
from splitedge.parts import CloudModel
from splitedge.until_signal import until_signal

log = logging.getLogger(__name__)

#: Messages read in one turn of the loop before timers and HTTP get theirs.
READ_AT_ONCE = 64
#: Copying is cheaper than counting references across threads below this.
_COPY_UP_TO = 65536
# plain integers: arithmetic on the library's flag enums costs a microsecond each time
_POLLIN = int(zmq.POLLIN)
_LAST, _MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)
#: After a drain, how long the last replies may take to leave the process.
FLUSH_MS = 500
#: How often a message that ZeroMQ had no room for is offered again.
FLUSH_EVERY_S = 0.002
REVOKE_S = 1.0


class CloudServer:
    """Serves models to edges.

    Args:
        models: what is served.
        settings: where, to whom, and how much.
        languages: language models served beside them.
    """

    def __init__(
        self,
        models: Sequence[CloudModel],
        settings: ServerSettings,
        languages: Sequence[LanguageHalf] = (),
    ) -> None:
        self.settings = settings
        self.metrics = CloudMetrics()
        self._outbox = Outbox(self._offer, settings.peer_queue_bytes, settings.queue_bytes, self._lost)
        self._flusher: asyncio.TimerHandle | None = None
        self.host = CloudHost(models, settings, self._outbox.send, self._look_again, self.metrics, languages)
        self._context: zmq.Context[zmq.Socket[bytes]] | None = None
        self._socket: zmq.Socket[bytes] | None = None
        self._fd = -1
        self._guard: Authenticator | None = None
        self._allow: AllowList | None = None
        self._revoked: set[str] = set()
        self._revoker: asyncio.TimerHandle | None = None
        self._again: asyncio.Handle | None = None
        self._admin: HttpServer | None = None
        self._endpoint = ""
        self._drained = False
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def endpoint(self) -> str:
        """Where edges connect, with the port really taken; empty before `start`."""
        return self._endpoint

    @property
    def http_url(self) -> str:
        """Where health and metrics are; empty without them."""
        return self._admin.url if self._admin is not None else ""

    async def start(self) -> None:
        """Warm up, prove the authenticator, then listen.

        Raises:
            ConfigError: a wrong setting, no keys off loopback, an address in use.
            AuthenticationError: the authenticator's self-test failed.
            BundleError: a tail can not run.
        """
        s = self.settings
        require_keys(s.listen, s.keys)
        self._loop = asyncio.get_running_loop()
        try:
            if s.http:
                limits = HttpLimits(s.http_receive_s, s.http_connections)
                self._admin = admin_server(s.http, self.metrics.registry, self.why_not_ready, limits)
                await self._admin.start()
            await self.host.start()
            self._context = zmq.Context()
            if s.keys is not None:
                await self._start_guard(self._context)
            self._bind(self._context)
        except BaseException:
            await self.stop()
            raise
        log.info("serving edges on %s", self._endpoint)

    def why_not_ready(self) -> str:
        """Why requests are not served now; empty when they are."""
        if not self.host.warm:
            return "models are warming up"
        if self._guard is not None and not self._guard.alive:
            return "the authenticator is not running"
        if self._socket is None:
            return "not listening"
        if self.host.core.draining:
            return "shutting down"
        return ""

    async def drain(self, timeout_s: float) -> bool:
        """Refuse new requests, let those in flight end; whether they did in time.

        The address stays bound meanwhile: to unbind it would cut the connections that replies leave on.
        """
        end = time.monotonic() + timeout_s
        self._drained = await self.host.drain(timeout_s)
        while self._outbox and time.monotonic() < end:
            await asyncio.sleep(FLUSH_EVERY_S)
        return self._drained

    async def stop(self) -> None:
        """Close everything. Requests in flight are not answered; `drain` first."""
        for handle in (self._revoker, self._again, self._flusher):
            if handle is not None:
                handle.cancel()
        self._revoker = self._again = self._flusher = None
        if self._socket is not None:
            if self._loop is not None and self._fd >= 0:
                self._loop.remove_reader(self._fd)
                self._fd = -1
            self._socket.close(linger=FLUSH_MS if self._drained else 0)
            self._socket = None
        await self.host.close()
        if self._guard is not None:
            await asyncio.to_thread(self._guard.stop)
            self._guard = None
        if self._context is not None:
            await asyncio.to_thread(self._context.term)
            self._context = None
        if self._admin is not None:
            await self._admin.close()
            self._admin = None

    # Start ---------------------------------------------------------------------------------------

    async def _start_guard(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        s = self.settings
        assert s.keys is not None, "only called with keys"
        pair = load_keys(s.keys, s.key_name)
        self._allow = AllowList(s.keys)
        if not len(self._allow):
            log.warning("nobody is trusted yet: run 'splitedge keys trust EDGE.key --dir %s'", s.keys)
        self._guard = Authenticator(context, pair, self._allow)
        await asyncio.to_thread(self._guard.start)
        self._revoke()

    def _bind(self, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        s = self.settings
        socket = context.socket(zmq.ROUTER)
        self._socket = socket
        depth = self._depth()
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.MAXMSGSIZE, self.host.core.max_message),
            (zmq.RCVHWM, depth),
            (zmq.SNDHWM, min(depth, s.send_queue_messages)),  # what it refuses waits in the outbox
            (zmq.HANDSHAKE_IVL, 2000),
            (zmq.HEARTBEAT_IVL, int(s.heartbeat_s * 1000)),
            (zmq.HEARTBEAT_TIMEOUT, int(s.heartbeat_s * 3000)),
            (zmq.HEARTBEAT_TTL, int(s.heartbeat_s * 3000)),
            (zmq.ROUTER_MANDATORY, 1),
            (zmq.IPV6, int("[" in s.listen)),
        ):
            socket.setsockopt(option, value)
        if s.keys is not None:
            secure_server(socket, load_keys(s.keys, s.key_name))
        try:
            socket.bind(s.listen)
        except zmq.ZMQError as error:
            raise ConfigError(f"can not listen on {s.listen}: {error.strerror}") from None
        endpoint = socket.getsockopt(zmq.LAST_ENDPOINT)
        assert isinstance(endpoint, bytes), "an option of bytes"
        self._endpoint = endpoint.rstrip(b"\0").decode()
        self._fd = int(socket.getsockopt(zmq.FD))
        assert self._loop is not None, "set by start"
        self._loop.add_reader(self._fd, self._readable)
        self._look_again()

    def _depth(self) -> int:
        """Messages libzmq may hold for one edge, so that they stay within its byte budget."""
        return max(2, min(1000, self.settings.peer_queue_bytes // self.host.core.max_message))

    # Messages ------------------------------------------------------------------------------------

    def _readable(self) -> None:
        """Read what there is, then run it. Reading first lets requests that came together share a batch."""
        self._again = None
        socket = self._socket
        if socket is None:
            return
        for _ in range(READ_AT_ONCE):
            try:
                frame = socket.recv(_LAST, copy=False)
                frames = [frame]
                while frame.more:  # the parts of a message arrive together
                    frame = socket.recv(_LAST, copy=False)
                    frames.append(frame)
            except zmq.Again:
                break
            try:
                self._take(frames)
            except Exception:  # a bug of ours must not leave the messages behind this one unread
                log.exception("a message was dropped")
            if not int(socket.getsockopt(zmq.EVENTS)) & _POLLIN:
                break  # asking costs less than the exception of a read that finds nothing
        self.host.pump()

    def _take(self, frames: list[zmq.Frame]) -> None:
        user = str(frames[-1]["User-Id"]) if self._guard is not None else ""
        if user not in self._revoked:
            self.host.core.deliver(frames[0].bytes, frames[1:], user)

    def _look_again(self) -> None:
        """The descriptor may have told of a message already; without this it could lie until the next."""
        socket = self._socket
        if socket is None or self._loop is None:
            return
        if self._outbox:
            self._outbox.flush()
            self._flush_later()
        if self._again is not None:
            return
        if int(socket.getsockopt(zmq.EVENTS)) & _POLLIN:
            self._again = self._loop.call_soon(self._readable)

    def _offer(self, peer: bytes, frames: Frames) -> bool:
        """Give a message to the socket; False where its queue to that edge is full."""
        socket = self._socket
        if socket is None:
            return True
        try:
            socket.send(peer, _MORE)
        except zmq.Again:
            return False
        except zmq.ZMQError as error:  # EHOSTUNREACH
            raise ConnectionError(str(error.strerror)) from None
        for frame in frames[:-1]:
            socket.send(frame, _MORE, copy=len(frame) <= _COPY_UP_TO)
        socket.send(frames[-1], _LAST, copy=len(frames[-1]) <= _COPY_UP_TO)
        return True

    def _flush_later(self) -> None:
        """What waits in the outbox is offered again after each turn, and after a moment without one."""
        if self._outbox and self._flusher is None and self._loop is not None:
            self._flusher = self._loop.call_later(FLUSH_EVERY_S, self._flush)

    def _flush(self) -> None:
        self._flusher = None
        self._look_again()

    def _lost(self, messages: int) -> None:
        self.metrics.unsent.inc(messages)
        log.info("%d messages were not sent: the edge is gone or does not read", messages)

    def _revoke(self) -> None:
        """Keys that are trusted no more lose their sessions, though their connection stands."""
        if self._allow is None or self._loop is None:
            return
        known = self.host.core.users | self._revoked
        revoked = {key.decode() for key in self._allow.not_trusted(user.encode() for user in known)}
        for user in revoked - self._revoked:
            log.warning("key %s is trusted no more: its sessions are dropped", user)
            self.host.core.forget_user(user)
        self._revoked = revoked
        self._revoker = self._loop.call_later(REVOKE_S, self._revoke)


async def serve(
    models: Sequence[CloudModel],
    settings: ServerSettings,
    ready: Callable[[str], None] | None = None,
    languages: Sequence[LanguageHalf] = (),
) -> None:
    """Serve until SIGTERM or SIGINT, then finish what is in flight (`settings.drain_s`) and return.

    Args:
        models: what is served.
        settings: where, to whom, and how much.
        ready: called with the endpoint once requests are served.
        languages: language models served beside them.

    Raises:
        ConfigError, AuthenticationError, BundleError: as `CloudServer.start`.
    """
    with until_signal() as told_to_end:
        server = CloudServer(models, settings, languages)
        try:
            await server.start()
            if ready is not None:
                ready(server.endpoint)
            await told_to_end()
            if not await server.drain(settings.drain_s):
                left = server.host.core.in_flight + server.host.core.desk.waiting
                log.warning("%d requests had not ended after %g s", left, settings.drain_s)
        finally:
            await server.stop()
