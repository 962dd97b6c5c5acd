"""Framed bytes of the small messages between edge and cloud, as `wire` packs and CURVE encrypts them."""

from __future__ import annotations

from splitedge.events import Refusal
from splitedge.policy import Option
from splitedge.wire import Cancel, Hello, Lane, Message, Ping, Pong, Refuse, Welcome, framed_bytes, pack

_NS = 1 << 40  # of the size that real time stamps have
_ID = 1 << 20


def _bytes(message: Message) -> int:
    return framed_bytes(pack(message))


PING = _bytes(Ping(_ID))
PONG = _bytes(Pong(_ID, _NS, _NS))
CANCEL = _bytes(Cancel(_ID))

#: ZMTP 3.1 (RFC 37): a heartbeat's PING (command name, TTL) and PONG, each in a CURVE message.
BEAT, BEAT_BACK = 42, 40
#: A greeting: the signature at once, the version when the other's signature is there, and then the rest.
GREETING_PARTS = 10, 1, 53
#: CURVE (RFC 26): HELLO and WELCOME, INITIATE and READY; the last two with socket type and identity.
HANDSHAKE = 202, 170, 301, 67


def refuse(kind: Refusal, message: str) -> int:
    """Bytes of a refusal."""
    return _bytes(Refuse(_ID, 1, kind, message, 1))


def hello(options: tuple[Option, ...]) -> tuple[int, int]:
    """Bytes of the hello and of its welcome."""
    lanes = {Lane("0" * 64, o.cut or "", o.codec or "") for o in options if o.remote}
    greeting = Hello(bytes(8), tuple(lanes))
    welcome = Welcome(bytes(8), tuple(range(len(lanes))), "", 1 << 25)
    return _bytes(greeting), _bytes(welcome)
