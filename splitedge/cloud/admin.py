"""Health and metrics of a cloud server over HTTP, for people and for Prometheus."""

from __future__ import annotations

from collections.abc import Callable

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest

from splitedge.errors import ConfigError
from splitedge.http_guard import HttpLimits, HttpServer, guarded_app

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"


def split_address(address: str) -> tuple[str, int]:
    """`host:port` in two.

    Raises:
        ConfigError: it is not of that form.
    """
    host, colon, port = address.rpartition(":")
    if not colon or not host or not port.isdigit() or int(port) > 65535:
        raise ConfigError(f"'{address}' is no HTTP address; write HOST:PORT, 127.0.0.1:9090 say")
    return host.strip("[]"), int(port)


def admin_server(
    address: str, registry: CollectorRegistry, why_not_ready: Callable[[], str], limits: HttpLimits
) -> HttpServer:
    """`/v2/health/live`, `/v2/health/ready` and `/metrics`.

    Args:
        address: `host:port`; port 0 for any free one.
        registry: what `/metrics` shows.
        why_not_ready: empty when requests are served, else the reason in words (status 503).
        limits: receive deadline and connection cap.
    """
    host, port = split_address(address)

    async def live(request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def ready(request: web.Request) -> web.Response:
        reason = why_not_ready()
        if reason:
            return web.json_response({"ready": False, "reason": reason}, status=503)
        return web.json_response({"ready": True})

    async def metrics(request: web.Request) -> web.Response:
        return web.Response(body=generate_latest(registry), headers={"Content-Type": METRICS_TYPE})

    app = guarded_app(limits)
    app.router.add_get("/v2/health/live", live)
    app.router.add_get("/v2/health/ready", ready)
    app.router.add_get("/metrics", metrics)
    return HttpServer(app, host, port, limits)
