"""Framed bytes of the small messages between edge and cloud, as `wire` packs them (unencrypted)."""

from __future__ import annotations

from splitedge.events import Refusal
from splitedge.policy import Option
from splitedge.wire import Cancel, Hello, Lane, Message, Ping, Pong, Refuse, Welcome, framed_bytes, pack

_NS = 1 << 40  # of the size that real time stamps have
_ID = 1 << 20


def _bytes(message: Message) -> int:
    return framed_bytes(pack(message), encrypted=False)


PING = _bytes(Ping(_ID))
PONG = _bytes(Pong(_ID, _NS, _NS))
CANCEL = _bytes(Cancel(_ID))

#: ZMTP 3.1 (RFC 37): a heartbeat's PING (command name, TTL) and PONG; both greetings and READY commands.
BEAT, BEAT_BACK = 9, 7
GREETING = 64 + 44


def refuse(kind: Refusal, message: str) -> int:
    """Bytes of a refusal."""
    return _bytes(Refuse(_ID, 1, kind, message, 1))


def hello(options: tuple[Option, ...]) -> tuple[int, int]:
    """Bytes of the hello and of its welcome."""
    lanes = {Lane("0" * 64, o.cut or "", o.codec or "") for o in options if o.remote}
    greeting = Hello(bytes(8), tuple(lanes))
    welcome = Welcome(bytes(8), tuple(range(len(lanes))), "", 1 << 25)
    return _bytes(greeting), _bytes(welcome)
