"""An aiohttp server that slow or many clients can not hold: a receive deadline and a connection cap.

aiohttp by itself waits for ever for a header or a body that comes a byte at a time, and keeps an idle
connection for an hour. Here each connection has `receive_s` seconds for the whole header of its next
request (idle time included), as long again for the body, and connections over the cap are closed at once.
A handler whose client hangs up is cancelled.

    app = guarded_app(limits)
    app.router.add_get("/v2/health/live", live)
    server = HttpServer(app, "127.0.0.1", 8080, limits)
    await server.start()
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from aiohttp import web

from splitedge.errors import ConfigError

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class HttpLimits:
    """What one HTTP server gives its clients.

    Attributes:
        receive_s: seconds for a request's header to be complete, and again for its body.
        max_connections: open connections; more are closed as they come.
        max_body: bytes of a request's body.
    """

    receive_s: float = 10.0
    max_connections: int = 256
    max_body: int = 2**20


class _Guard:
    """The connections of one app, by transport."""

    def __init__(self, limits: HttpLimits) -> None:
        self.limits = limits
        self.connections: dict[asyncio.BaseTransport, _Guarded] = {}


_GUARD = web.AppKey("_GUARD", _Guard)


def guarded_app(limits: HttpLimits) -> web.Application:
    """An application whose requests are read whole, within the limits, before a handler sees them."""
    app = web.Application(middlewares=[_receive], client_max_size=limits.max_body)
    app[_GUARD] = _Guard(limits)
    return app


@web.middleware
async def _receive(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    guard = request.config_dict[_GUARD]
    transport = request.transport
    connection = guard.connections.get(transport) if transport is not None else None
    if connection is not None:
        connection.header_is_in()
    try:
        if request.can_read_body:
            async with asyncio.timeout(guard.limits.receive_s):
                await request.read()
        return await handler(request)
    except web.RequestPayloadError:
        raise web.HTTPBadRequest(
            text="the body is not what its Content-Encoding says\n", headers={"Connection": "close"}
        ) from None
    except TimeoutError:
        if request.content.is_eof():
            raise
        raise web.HTTPRequestTimeout(
            text=f"the body did not arrive within {guard.limits.receive_s:g} s\n",
            headers={"Connection": "close"},
        ) from None
    finally:
        if connection is not None:
            connection.await_header()


class _Guarded(asyncio.Protocol):
    """Stands between transport and aiohttp's protocol; closes the connection when a header is late."""

    def __init__(self, inner: asyncio.Protocol, guard: _Guard, loop: asyncio.AbstractEventLoop) -> None:
        self._inner = inner
        self._guard = guard
        self._loop = loop
        self._transport: asyncio.BaseTransport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        if len(self._guard.connections) >= self._guard.limits.max_connections:
            self._refused = True
            transport.close()
            return
        self._transport = transport
        self._guard.connections[transport] = self
        self.await_header()
        self._inner.connection_made(transport)

    def connection_lost(self, error: Exception | None) -> None:
        self.header_is_in()
        if self._transport is not None:
            del self._guard.connections[self._transport]
            self._transport = None
        if not self._refused:
            self._inner.connection_lost(error)

    def data_received(self, data: bytes) -> None:
        if not self._refused:
            self._inner.data_received(data)

    def eof_received(self) -> bool | None:
        return None if self._refused else self._inner.eof_received()

    def pause_writing(self) -> None:
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self._inner.resume_writing()

    def await_header(self) -> None:
        """The next request's header must be complete `receive_s` from now."""
        self.header_is_in()
        if self._transport is not None:
            self._timer = self._loop.call_later(self._guard.limits.receive_s, self._late)

    def header_is_in(self) -> None:
        """No header is awaited."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _late(self) -> None:
        if isinstance(self._transport, asyncio.WriteTransport):
            self._transport.abort()


class HttpServer:
    """Serves a guarded app on one address.

    Args:
        app: from `guarded_app`.
        host: address to listen on.
        port: port, 0 for any free one.
        limits: the ones given to `guarded_app`.
    """

    def __init__(self, app: web.Application, host: str, port: int, limits: HttpLimits) -> None:
        self._app = app
        self._host = host
        self._port = port
        self._limits = limits
        self._runner = web.AppRunner(
            app,
            access_log=None,
            keepalive_timeout=limits.receive_s,
            lingering_time=0.0,
            handle_signals=False,
            handler_cancellation=True,  # work ends when its client has left
            shutdown_timeout=2.0,
        )
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        """Listen.

        Raises:
            ConfigError: the address can not be listened on.
        """
        await self._runner.setup()
        serve = self._runner.server
        assert serve is not None, "AppRunner.setup makes the server"
        loop = asyncio.get_running_loop()
        guard = self._app[_GUARD]
        try:
            self._server = await loop.create_server(
                lambda: _Guarded(serve(), guard, loop), self._host, self._port, backlog=128
            )
        except OSError as error:
            await self._runner.cleanup()
            raise ConfigError(
                f"can not listen for HTTP on {self._host}:{self._port}: {error.strerror or error}"
            ) from None
        log.info("HTTP on %s", self.url)

    @property
    def port(self) -> int:
        """The port listened on."""
        if self._server is None:
            return self._port
        return int(self._server.sockets[0].getsockname()[1])

    @property
    def url(self) -> str:
        """`http://host:port`."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"http://{host}:{self.port}"

    @property
    def connections(self) -> int:
        """Open connections."""
        return len(self._app[_GUARD].connections)

    async def close(self) -> None:
        """Stop listening, let handlers finish for 2 s, close every connection."""
        if self._server is not None:
            self._server.close()
        await self._runner.cleanup()
        for transport in list(self._app[_GUARD].connections):
            transport.close()
        self._server = None
