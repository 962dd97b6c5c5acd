"""The edge daemon: a runtime behind the Open Inference Protocol, with metrics, records and a dashboard.

A request's way: `oip.read_request` checks the body, `EdgeRuntime.infer` answers or raises, and
`oip.write_response` adds the route and the reason. Every error is `{"error": text}` with its status.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Awaitable, Callable

from aiohttp import web

from splitedge.edge import oip
from splitedge.edge.announcing import announce
from splitedge.edge.dashboard import HEADERS, PAGE
from splitedge.edge.link import Link
from splitedge.edge.metrics import CONTENT_TYPE, EdgeMetrics
from splitedge.edge.runtime import EdgeRuntime
from splitedge.edge.settings import EdgeSettings
from splitedge.edge.status import Status
from splitedge.engine import Engine
from splitedge.errors import (
    CloudBusy,
    CloudFailed,
    CloudUnavailable,
    CodecError,
    DeadlineExceeded,
    Rejected,
    SplitedgeError,
)
from splitedge.http_guard import HttpLimits, HttpServer, guarded_app
from splitedge.parts import EdgeModel
from splitedge.power import BatteryMeter, SystemBattery
from splitedge.records import RecordStore
from splitedge.until_signal import until_signal
from splitedge.version import VERSION

log = logging.getLogger(__name__)

_STATUS: tuple[tuple[type[SplitedgeError], int], ...] = (
    (CodecError, 400),
    (Rejected, 429),
    (CloudBusy, 429),
    (CloudFailed, 502),
    (CloudUnavailable, 503),
    (DeadlineExceeded, 504),
)
MAX_RECORDS = 1000
SWITCH_S = 0.0005  # the compute thread and the loop take turns; Python's default of 5 ms is a deadline's size
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class EdgeApi:
    """The HTTP face of one runtime.

    Args:
        runtime: answers; started elsewhere.
        settings: model name and caps.
    """

    def __init__(self, runtime: EdgeRuntime, settings: EdgeSettings) -> None:
        self._runtime = runtime
        self._settings = settings
        self._metrics = EdgeMetrics(runtime)
        self._status = Status(runtime, settings.name, settings.recent)
        model = runtime.model
        self._version = model.digest[:12]
        specs, out = model.input_specs(), model.output_specs()
        self._inputs = oip.ports(model.assemble(oip.blank(specs)), specs, "input")
        self._outputs = oip.ports(model.finish(oip.blank(out), 1)[0], out, "output")
        self._answers_alone = any(not option.remote for option in model.options)
        self._routes_here = {option.route for option in model.options}
        limits = HttpLimits(settings.receive_s, settings.max_connections, settings.max_body)
        app = guarded_app(limits)
        app.middlewares.insert(0, _json_errors)  # outside of the guard, whose errors it also puts in form
        self._routes(app)
        self.server = HttpServer(app, settings.http_host, settings.http_port, limits)

    def _routes(self, app: web.Application) -> None:
        get, post = app.router.add_get, app.router.add_post
        get("/", self._page)
        get("/status", self._summary)
        get("/records", self._records)
        get("/metrics", self._scrape)
        get("/v2", self._about)
        get("/v2/health/live", self._live)
        get("/v2/health/ready", self._ready)
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            get(model, self._metadata)
            get(f"{model}/ready", self._model_ready)
            post(f"{model}/infer", self._infer)

    # Health and metadata --------------------------------------------------------------------------

    def why_not_ready(self) -> str:
        """Why a request could not be answered now; empty when it can."""
        if self._runtime.draining:
            return "shutting down"
        remote = self._runtime.remote
        if self._answers_alone or (remote is not None and remote.up):
            return ""
        reason = remote.reason if remote is not None else "no cloud is configured"
        return f"this bundle answers only with the cloud, and there is none: {reason}"

    async def _live(self, request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        reason = self.why_not_ready()
        body = {"ready": not reason} if not reason else {"ready": False, "error": reason}
        return web.json_response(body, status=503 if reason else 200)

    async def _model_ready(self, request: web.Request) -> web.Response:
        self._check_name(request)
        reason = self.why_not_ready()
        body = {"name": self._settings.name, "ready": not reason}
        return web.json_response(body | ({"error": reason} if reason else {}), status=503 if reason else 200)

    async def _about(self, request: web.Request) -> web.Response:
        return web.json_response({"name": "splitedge", "version": VERSION, "extensions": oip.EXTENSIONS})

    async def _metadata(self, request: web.Request) -> web.Response:
        self._check_name(request)
        return web.json_response(
            {
                "name": self._settings.name,
                "versions": [self._version],
                "platform": "splitedge",
                "inputs": [port.metadata() for port in self._inputs],
                "outputs": [port.metadata() for port in self._outputs],
            }
        )

    def _check_name(self, request: web.Request) -> None:
        name, version = request.match_info["name"], request.match_info.get("version", self._version)
        if name != self._settings.name or version != self._version:
            raise oip.RequestInvalid(
                f"no model '{name[:64]}' version '{version[:64]}' here; "
                f"this edge runs '{self._settings.name}' version '{self._version}'",
                404,
            )

    # Inference ------------------------------------------------------------------------------------

    async def _infer(self, request: web.Request) -> web.Response:
        self._check_name(request)
        if self._runtime.draining:
            raise oip.RequestInvalid("Rejected: the edge is shutting down", 503)
        body = await request.read()
        asked = oip.read_request(body, request.headers.get(oip.HEADER_LENGTH), self._inputs)
        inputs = self._runtime.model.assemble(asked.tensors)
        try:
            result = await self._runtime.infer(inputs, asked.deadline_s, asked.route)
        except Rejected as error:
            if asked.route is None or asked.route in self._routes_here:
                raise
            raise oip.RequestInvalid(f"Rejected: {error}") from error  # no use in asking again later
        answer, json_length = oip.write_response(asked, result, self._settings.name, self._version)
        if json_length is None:
            return web.Response(body=answer, content_type="application/json")
        headers = {oip.HEADER_LENGTH: str(json_length)}
        return web.Response(body=answer, content_type="application/octet-stream", headers=headers)

    # People ---------------------------------------------------------------------------------------

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html", headers=HEADERS)

    async def _summary(self, request: web.Request) -> web.Response:
        return web.json_response(self._status.summary())

    async def _records(self, request: web.Request) -> web.Response:
        text = request.query.get("count", "100")
        if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) <= MAX_RECORDS):
            raise oip.RequestInvalid(f"'count' must be a number from 0 to {MAX_RECORDS}")
        return web.json_response({"records": self._status.records(int(text))})

    async def _scrape(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": CONTENT_TYPE})


@web.middleware
async def _json_errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error in the protocol's form."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        return _error(error.status, error.reason if error.text is None else error.text.strip())
    except oip.RequestInvalid as error:
        return _error(error.status, str(error))
    except SplitedgeError as error:
        status = next((code for kind, code in _STATUS if isinstance(error, kind)), 500)
        retry = getattr(error, "retry_after_s", 0.0) if status == 429 else 0.0
        return _error(status, f"{type(error).__name__}: {error}", retry)
    except Exception:  # what a client may not see, the log does
        log.exception("request %s %s failed", request.method, request.path)
        return _error(500, "internal error; the daemon's log has the details")


def _error(status: int, text: str, retry_after_s: float = 0.0) -> web.Response:
    headers = {"Retry-After": str(max(1, math.ceil(retry_after_s)))} if status == 429 else {}
    return web.json_response({"error": text}, status=status, headers=headers)


async def run_edge(
    model: EdgeModel,
    engine: Engine,
    link: Link | None,
    settings: EdgeSettings,
    ready: Callable[[str], None] | None = None,
    *,
    battery: BatteryMeter | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, then end what is in flight (`settings.drain_s`) and return.

    Args:
        model: the edge's half.
        engine: a fresh one, of the same options.
        link: to the cloud; None computes everything here.
        settings: address, caps, records.
        ready: called with `host:port` once HTTP is answered.
        battery: read for the policy; None reads the system's if `settings.battery` says so.

    Raises:
        ConfigError: the address can not be listened on.
        RecordError: the records can not be written.
        LinkError: the cloud's endpoint makes no sense.
    """
    records = RecordStore(settings.records) if settings.records is not None else None
    if battery is None and settings.battery:
        battery = SystemBattery()
    runtime = EdgeRuntime(model, engine, link, settings=settings, records=records, battery=battery)
    api = EdgeApi(runtime, settings)
    switch_s = sys.getswitchinterval()
    with until_signal() as told_to_end:
        sys.setswitchinterval(SWITCH_S)
        try:
            await runtime.start()
            await api.server.start()
            announce(api.server, settings, ready)
            await told_to_end()
            log.info("shutting down: %d requests in flight", runtime.in_flight)
            if not await runtime.drain(settings.drain_s):
                log.warning("%d requests had not ended after %g s", runtime.in_flight, settings.drain_s)
        finally:
            await api.server.close()
            await runtime.close()
            sys.setswitchinterval(switch_s)
