"""What carries messages to the cloud: the `Link` interface and the ZeroMQ one.

`ZmqLink` drives a raw DEALER socket from the event loop by its file descriptor. libzmq signals that
descriptor on changes only, so after every wake-up the socket is drained, and after every send its state
is looked at again. A monitor socket tells when the connection comes and goes, and why a handshake failed.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol, cast

import zmq
from zmq.utils.monitor import recv_monitor_message

from splitedge.edge.settings import EdgeSettings
from splitedge.errors import AuthenticationError, LinkDown, LinkError
from splitedge.keys import KeyPair, require_keys, secure_client

log = logging.getLogger(__name__)

Frames = Sequence[bytes | memoryview]
_DRAIN_AT_ONCE = 64  # messages taken before other callbacks of the loop get their turn
_COPY_UP_TO = 65536  # copying is cheaper than reference counting across threads below this
_STORM = 3  # handshakes failing without a detail, in a row, before the keys are suspected
_HANDSHAKE_S = 2.0  # libzmq gives up a handshake that takes longer
_EVENTS = (
    zmq.EVENT_CONNECTED
    | zmq.EVENT_HANDSHAKE_SUCCEEDED
    | zmq.EVENT_HANDSHAKE_FAILED_AUTH
    | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
    | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
    | zmq.EVENT_DISCONNECTED
    | zmq.EVENT_CLOSED
)


@dataclass(frozen=True, slots=True)
class LinkState:
    """A change of the connection: up or not, why, and the error where the reason is one."""

    connected: bool
    reason: str = ""
    error: LinkError | None = None


# plain integers: arithmetic on the library's flag enums costs a microsecond each time
_POLLIN = int(zmq.POLLIN)
_LAST, _MORE = int(zmq.NOBLOCK), int(zmq.NOBLOCK | zmq.SNDMORE)

OnMessage = Callable[[Sequence[bytes | zmq.Frame]], None]
OnState = Callable[[LinkState], None]


class Link(Protocol):
    """Carries whole messages, in order, while it is connected; knows nothing of what is in them.

    All methods and callbacks run on the event loop's thread.
    """

    @property
    def encrypted(self) -> bool:
        """Whether frames are encrypted on the way (it changes how their bytes are counted)."""
        ...

    def start(self, loop: asyncio.AbstractEventLoop, on_message: OnMessage, on_state: OnState) -> None:
        """Connect, and call back from now on."""
        ...

    def send(self, frames: Frames) -> None:
        """Hand over one message; never blocks.

        Raises:
            LinkDown: there is no connection, or it takes no more for now. Nothing was sent.
        """
        ...

    def close(self) -> None:
        """Let go of the connection; what is unsent is dropped. May be called twice."""
        ...


class ZmqLink:
    """A ZeroMQ DEALER connected to one cloud.

    Args:
        endpoint: `tcp://host:port`, `ipc://...` or `inproc://...`.
        keys: this device's key pair, and `server_key` the cloud's public key; both or none.
        settings: heartbeats, backoff and caps.
        context: ZeroMQ context to use (needed for inproc); None makes one of its own.

    Raises:
        ConfigError: plain text to another machine.
    """

    def __init__(
        self,
        endpoint: str,
        keys: KeyPair | None = None,
        server_key: bytes | None = None,
        settings: EdgeSettings | None = None,
        context: zmq.Context[zmq.Socket[bytes]] | None = None,
    ) -> None:
        if (keys is None) != (server_key is None):
            raise LinkError("a link needs both this device's keys and the cloud's public key, or neither")
        require_keys(endpoint, None if keys is None else "given")
        self._endpoint = endpoint
        self._keys = keys
        self._server_key = server_key
        self._settings = settings or EdgeSettings()
        self._own_context = context is None
        self._context = context
        self._socket: zmq.Socket[bytes] | None = None
        self._monitor: zmq.Socket[bytes] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._drain_soon = False
        self._connected = False
        self._failures = 0
        self._began = 0.0  # when the handshake under way began, by the loop's clock
        self._retry: asyncio.TimerHandle | None = None

    @property
    def encrypted(self) -> bool:
        """Whether CURVE is on."""
        return self._keys is not None

    @property
    def endpoint(self) -> str:
        """Where the cloud is."""
        return self._endpoint

    def start(self, loop: asyncio.AbstractEventLoop, on_message: OnMessage, on_state: OnState) -> None:
        """Connect in the background; `on_state` tells when it is done."""
        if self._socket is not None:
            raise LinkError("this link was started already")
        self._loop, self._on_message, self._on_state = loop, on_message, on_state
        self._context = self._context or zmq.Context()
        socket = self._socket = self._context.socket(zmq.DEALER)
        self._configure(socket)
        monitor = self._monitor = socket.get_monitor_socket(_EVENTS)
        loop.add_reader(monitor.fileno(), self._watch)
        loop.add_reader(socket.fileno(), self._drain)
        try:
            socket.connect(self._endpoint)
        except zmq.ZMQError as error:
            self.close()
            raise LinkError(f"can not connect to '{self._endpoint}': {error}") from None
        if self._endpoint.startswith("inproc://"):  # no handshake there, so no event tells
            loop.call_soon(self._set, LinkState(True, "connected"))
        loop.call_soon(self._watch)

    def _configure(self, socket: zmq.Socket[bytes]) -> None:
        s = self._settings
        heartbeat = int(s.heartbeat_s * 1000)
        socket.setsockopt(zmq.LINGER, 0)
        socket.setsockopt(zmq.IMMEDIATE, 1)  # no queue for a connection that is not there
        socket.setsockopt(zmq.HEARTBEAT_IVL, heartbeat)
        socket.setsockopt(zmq.HEARTBEAT_TIMEOUT, 3 * heartbeat)
        socket.setsockopt(zmq.HANDSHAKE_IVL, int(_HANDSHAKE_S * 1000))
        socket.setsockopt(zmq.CONNECT_TIMEOUT, 5000)
        socket.setsockopt(zmq.RECONNECT_IVL, int(s.reconnect_s * 1000))
        socket.setsockopt(zmq.RECONNECT_IVL_MAX, int(s.reconnect_max_s * 1000))
        socket.setsockopt(zmq.MAXMSGSIZE, s.max_message)
        socket.setsockopt(zmq.SNDHWM, 16384)  # bytes are bounded by the session's budget, not here
        if self._keys is not None and self._server_key is not None:
            secure_client(socket, self._keys, self._server_key)

    def send(self, frames: Frames) -> None:
        """Hand over one message.

        Raises:
            LinkDown: no connection, or libzmq's queue is full. Nothing was sent.
        """
        socket = self._socket
        if socket is None:
            raise LinkDown(f"the link to {self._endpoint} is closed")
        last = len(frames) - 1
        try:
            # libzmq rolls back the parts before one that it refuses, so a message is sent whole or not
            for i, frame in enumerate(frames):
                socket.send(frame, _LAST if i == last else _MORE, len(frame) <= _COPY_UP_TO)
        except zmq.Again:
            self._look_again()
            raise LinkDown(f"no connection to {self._endpoint}") from None
        except zmq.ZMQError as error:
            raise LinkDown(f"the link to {self._endpoint} failed: {error}") from None
        self._look_again()

    def _look_again(self) -> None:
        """Sending may swallow the signal that a message has come; then nobody else would read it."""
        assert self._socket is not None and self._loop is not None
        if not self._drain_soon and _readable(self._socket):
            self._drain_soon = True
            self._loop.call_soon(self._drain)

    def _drain(self) -> None:
        self._drain_soon = False
        for _ in range(_DRAIN_AT_ONCE):
            socket = self._socket
            if socket is None or not _readable(socket):
                return
            try:
                frame = socket.recv(_LAST, copy=False)
                frames = [frame]
                while frame.more:  # the parts of a message arrive together
                    frame = socket.recv(_LAST, copy=False)
                    frames.append(frame)
            except zmq.Again:
                return
            self._on_message(frames)
        if self._loop is not None and not self._drain_soon:
            self._drain_soon = True
            self._loop.call_soon(self._drain)

    def _watch(self) -> None:
        """Read what the monitor has to tell."""
        while self._monitor is not None and _readable(self._monitor):
            self._take(recv_monitor_message(self._monitor, zmq.NOBLOCK)["event"])

    def _take(self, event: int) -> None:
        assert self._loop is not None, "set by start"
        if event == zmq.EVENT_CONNECTED:
            self._began = self._loop.time()
        elif event == zmq.EVENT_HANDSHAKE_SUCCEEDED:
            self._failures = 0
            self._set(LinkState(True, f"connected to {self._endpoint}"))
        elif event == zmq.EVENT_HANDSHAKE_FAILED_AUTH:
            name = "" if self._keys is None else f" (key '{self._keys.name}')"
            self._fail(
                f"the cloud at {self._endpoint} refused this device's key{name}; "
                "run `splitedge keys trust` there"
            )
        elif event == zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL:
            self._fail(self._other_protocol())
        elif event == zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL:
            self._unshaken(self._loop.time() - self._began)
        elif self._connected:
            self._set(LinkState(False, f"connection to {self._endpoint} lost"))

    def _unshaken(self, seconds: float) -> None:
        """A handshake failed after so long, libzmq does not say why: a refusal is quick, a bad link slow."""
        if seconds > 0.5 * _HANDSHAKE_S:
            self._failures = 0
            self._set(
                LinkState(False, f"no handshake with {self._endpoint} in {_HANDSHAKE_S:g} s: slow or stalled")
            )
            return
        self._failures += 1
        if self._failures >= _STORM:
            # without keys there is nothing to mismatch: libzmq gave the same cause without its detail
            self._fail(self._key_mismatch() if self._keys is not None else self._other_protocol())

    def _other_protocol(self) -> str:
        return (
            f"{self._endpoint} does not speak this protocol: one side has keys and the other none, "
            "or it is no splitedge cloud"
        )

    def _key_mismatch(self) -> str:
        return (
            f"handshakes with {self._endpoint} keep failing: key mismatch? check that the trusted "
            "cloud key here is the one the cloud runs with"
        )

    def _fail(self, message: str) -> None:
        self._set(LinkState(False, message, AuthenticationError(message)))
        if self._loop is not None and self._retry is None:
            self._retry = self._loop.call_later(self._settings.reconnect_max_s, self._connect_again)

    def _connect_again(self) -> None:
        """libzmq gives a connection up for good when its key was refused; the operator may trust it yet."""
        self._retry = None
        if self._socket is not None and not self._connected:
            with contextlib.suppress(zmq.ZMQError):  # already given up
                self._socket.disconnect(self._endpoint)
            self._socket.connect(self._endpoint)

    def _set(self, state: LinkState) -> None:
        if self._socket is not None:
            self._connected = state.connected
            self._on_state(state)

    def close(self) -> None:
        """Drop the connection and everything unsent."""
        if self._retry is not None:
            self._retry.cancel()
        socket, monitor, loop = self._socket, self._monitor, self._loop
        self._socket = self._monitor = None
        if socket is not None and monitor is not None and loop is not None:
            loop.remove_reader(socket.fileno())
            loop.remove_reader(monitor.fileno())
            socket.disable_monitor()
            monitor.close(0)
            socket.close(0)
        if self._own_context and self._context is not None:
            self._context.term()
            self._context = None


def _readable(socket: zmq.Socket[bytes]) -> bool:
    """Whether a message waits. Asking also makes libzmq take note of what its own thread did."""
    return bool(cast(int, socket.getsockopt(zmq.EVENTS)) & _POLLIN)
