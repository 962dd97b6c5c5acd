"""An edge daemon's HTTP server is up: say where, and warn if others than this machine reach it."""

from __future__ import annotations

import logging
from collections.abc import Callable

from splitedge.edge.settings import EdgeSettings
from splitedge.http_guard import HttpServer
from splitedge.keys import is_loopback

log = logging.getLogger(__name__)


def announce(server: HttpServer, settings: EdgeSettings, ready: Callable[[str], None] | None) -> None:
    """Call `ready` with `host:port`, if anybody wants to know."""
    if not is_loopback(f"tcp://{settings.http}"):
        log.warning(
            "HTTP on %s can be reached from other machines and asks nobody who they are", settings.http
        )
    if ready is not None:
        ready(server.url.removeprefix("http://"))
