"""The OpenAI-compatible HTTP face of a language runtime: `/v1/models`, `/v1/completions`,
`/v1/chat/completions`, with health, status and metrics beside them.

A request's way: `openai_schema` checks it, `Writer.decide` says how it is written, the runtime writes, and
`openai_answer` puts what became final in form. A client that hangs up ends its text, in the cloud too.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict
from typing import Any, Protocol

from aiohttp import web

from splitedge.edge.dashboard import HEADERS
from splitedge.edge.language import LanguageRuntime, Stream
from splitedge.edge.language_dashboard import PAGE
from splitedge.edge.language_metrics import LanguageEdgeMetrics
from splitedge.edge.openai_answer import DONE, Answer, event
from splitedge.edge.openai_cascade import CASCADE, Judging, cascade
from splitedge.edge.openai_schema import ApiError, Request, prompt_of, read_request
from splitedge.edge.settings import EdgeSettings
from splitedge.errors import (
    AuthenticationError,
    CloudBusy,
    CloudFailed,
    CloudUnavailable,
    ConfigError,
    DeadlineExceeded,
    LinkError,
    Rejected,
    RequestCancelled,
    SplitedgeError,
)
from splitedge.http_guard import HttpLimits, HttpServer, guarded_app
from splitedge.llm.generation import Tally, Wish
from splitedge.llm.happenings import Emit
from splitedge.llm.modes import Mode, OnLoss, Way
from splitedge.llm.text_records import TextRecord, TextRecordStore, plain
from splitedge.llm.tokenizers import Tokenizer
from splitedge.power import PowerModel
from splitedge.version import VERSION

log = logging.getLogger(__name__)

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
RETRY_S = 2.0
AUTO, ROUTE = "auto", "route"
MAX_RECORDS = 1000
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

#: How our errors are told: status, OpenAI's type and code.
_TOLD: tuple[tuple[type[SplitedgeError], int, str, str | None], ...] = (
    (Rejected, 400, "invalid_request_error", None),
    (ConfigError, 400, "invalid_request_error", None),
    (CloudBusy, 429, "rate_limit_error", "rate_limit_exceeded"),
    (DeadlineExceeded, 504, "timeout_error", "deadline_exceeded"),
    (CloudUnavailable, 503, "server_error", "cloud_unavailable"),
    (CloudFailed, 502, "server_error", "cloud_failed"),
    (AuthenticationError, 502, "server_error", "cloud_refused_key"),
    (LinkError, 502, "server_error", "cloud_failed"),
)


class Writer(Judging, Protocol):
    """What decides how a text is written: `LanguageDeployment`."""

    tokenizer: Tokenizer

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle."""
        ...

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Modes that it can write in."""
        ...

    @property
    def power(self) -> PowerModel:
        """That joules are modelled with."""
        ...

    @property
    def stops(self) -> frozenset[int]:
        """Ids that end a text."""
        ...

    def decide_query(
        self, prompt: str | Sequence[int], drafts: int | None, on_loss: OnLoss
    ) -> tuple[Way, str]:
        """How the query router has a prompt answered, and why."""
        ...


class OpenAiApi:
    """The HTTP face of one runtime.

    Args:
        writer: decides.
        runtime: writes; started elsewhere.
        settings: model name and caps.
        records: gets a row a text; None for none.
    """

    def __init__(
        self,
        writer: Writer,
        runtime: LanguageRuntime,
        settings: EdgeSettings,
        records: TextRecordStore | None = None,
    ) -> None:
        self._writer, self._runtime, self._settings, self._records = writer, runtime, settings, records
        self._metrics = LanguageEdgeMetrics(runtime, writer.digest)
        self._recent: deque[TextRecord] = deque(maxlen=settings.recent)
        self._created = int(time.time())
        self._under_way = 0
        self.draining = False
        limits = HttpLimits(settings.receive_s, settings.max_connections, settings.max_body)
        app = guarded_app(limits)
        app.middlewares.insert(0, _errors)
        get, post = app.router.add_get, app.router.add_post
        get("/", self._page)
        get("/status", self._status)
        get("/records", self._rows)
        get("/metrics", self._scrape)
        get("/v2/health/live", self._live)
        get("/v2/health/ready", self._ready)
        get("/v1/models", self._models)
        get("/v1/models/{name}", self._model)
        post("/v1/completions", self._completions)
        post("/v1/chat/completions", self._chat)
        self.server = HttpServer(app, settings.http_host, settings.http_port, limits)

    @property
    def in_flight(self) -> int:
        """Requests that are being answered."""
        return self._under_way

    # Health, models -------------------------------------------------------------------------------

    def why_not_ready(self) -> str:
        """Why a text could not be written now; empty when it can."""
        if self.draining:
            return "shutting down"
        if Mode.LOCAL in self._writer.modes or self._runtime.up:
            return ""
        remote = self._runtime.remote
        reason = "no cloud is configured" if remote is None else remote.reason
        return f"this bundle writes only with the cloud, and there is none: {reason}"

    async def _live(self, request: web.Request) -> web.Response:
        return web.json_response({"live": True})

    async def _ready(self, request: web.Request) -> web.Response:
        reason = self.why_not_ready()
        body = {"ready": not reason} | ({"error": reason} if reason else {})
        return web.json_response(body, status=503 if reason else 200)

    async def _page(self, request: web.Request) -> web.Response:
        return web.Response(text=PAGE, content_type="text/html", headers=HEADERS)

    async def _status(self, request: web.Request) -> web.Response:
        runtime, remote = self._runtime, self._runtime.remote
        reason = "no cloud is configured" if remote is None else remote.reason
        return web.json_response(
            plain(
                {
                    "model": self._settings.name,
                    "bundle": self._writer.digest,
                    "version": VERSION,
                    "modes": [str(mode) for mode in self._writer.modes],
                    "mode": self._settings.language.mode,
                    "context": runtime.language.context,
                    "draining": self.draining,
                    "in_flight": runtime.in_flight,
                    "cloud": {"configured": remote is not None, "up": runtime.up, "reason": reason},
                    "acceptance": runtime.acceptance,
                    "draft_s": runtime.draft_s,
                    "head_s": runtime.head_s,
                }
            )
        )

    async def _rows(self, request: web.Request) -> web.Response:
        text = request.query.get("count", "100")
        if not (text.isascii() and text.isdigit() and len(text) < 6 and int(text) <= MAX_RECORDS):
            raise ApiError(f"'count' must be a number from 0 to {MAX_RECORDS}", param="count")
        newest = list(self._recent)[-int(text) :] if int(text) else []
        return web.json_response({"records": [plain(asdict(record)) for record in reversed(newest)]})

    async def _scrape(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.scrape(), headers={"Content-Type": CONTENT_TYPE})

    def _about(self) -> dict[str, Any]:
        return {
            "id": self._settings.name,
            "object": "model",
            "created": self._created,
            "owned_by": "splitedge",
            "splitedge": {
                "bundle": self._writer.digest,
                "context": self._runtime.language.context,
                "modes": [str(mode) for mode in self._writer.modes],
            },
        }

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._about()]})

    async def _model(self, request: web.Request) -> web.Response:
        if request.match_info["name"] != self._settings.name:
            raise ApiError(
                f"the model '{request.match_info['name'][:100]}' does not exist here; this edge serves "
                f"'{self._settings.name}'", 404, code="model_not_found", param="model",
            )  # fmt: skip
        return web.json_response(self._about())

    # Texts ----------------------------------------------------------------------------------------

    async def _completions(self, request: web.Request) -> web.StreamResponse:
        return await self._write(request, chat=False)

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        return await self._write(request, chat=True)

    async def _write(self, request: web.Request, chat: bool) -> web.StreamResponse:
        asked = read_request(await request.read(), chat, self._settings.name)
        if self.draining:
            raise ApiError("the edge is shutting down", 503, "server_error", "shutting_down", None, RETRY_S)
        if self._under_way >= self._settings.language.texts:
            raise ApiError(
                f"{self._under_way} texts are being written, which is the most at once", 429,
                "rate_limit_error", "rate_limit_exceeded", None, 1.0,
            )  # fmt: skip
        self._under_way += 1
        try:
            answer = await self._begin(asked)
            try:
                if asked.stream:
                    return await self._events(request, answer)
                return await self._whole(answer)
            finally:
                self._runtime.cancel(answer.stream)  # a client that left: nobody waits any more
                self._ended(answer)
        finally:
            self._under_way -= 1

    async def _begin(self, asked: Request) -> Answer:
        """Decide how, and begin."""
        writer, language = self._writer, self._settings.language
        ids, said = prompt_of(asked, writer.tokenizer, language.role)
        context = self._runtime.language.context
        room = context - len(ids)
        if not ids:
            raise ApiError("the prompt is empty", param="messages" if asked.chat else "prompt")
        count = asked.max_tokens
        if count is None:
            count = max(1, room) if asked.chat else min(language.max_tokens, max(1, room))
        if count > room:
            raise ApiError(
                f"This model's maximum context length is {context} tokens; the prompt has {len(ids)} and "
                f"{count} are to be written", code="context_length_exceeded",
                param="messages" if asked.chat else "prompt",
            )  # fmt: skip
        mode = asked.more.mode or language.mode
        on_loss = asked.more.on_loss or language.on_loss
        chosen_later = mode in (AUTO, ROUTE, CASCADE)
        if chosen_later and self.why_not_ready():
            raise ApiError(self.why_not_ready(), 503, "server_error", "cloud_unavailable", None, RETRY_S)
        if not chosen_later and mode not in writer.modes:
            have = ", ".join(writer.modes)
            raise ApiError(
                f"this edge can not write in the mode '{mode}'; it has {have}", param="splitedge.mode"
            )
        if asked.logprobs >= 0 and mode != "local" and self._runtime.language.text_only:
            raise ApiError(
                "a black box of a cloud tells text, not probabilities: logprobs can be had with "
                "splitedge: {mode: 'local'}", param="logprobs",
            )  # fmt: skip
        drafts = asked.more.drafts or language.drafts
        limit = math.inf if language.deadline_s is None else language.deadline_s
        deadline = asked.deadline_s if asked.more.deadline_ms is not None else limit
        wish = Wish(tuple(ids), count, writer.stops, deadline)
        if mode == CASCADE:
            found = await cascade(
                writer,
                self._runtime,
                wish,
                drafts=drafts,
                on_loss=on_loss,
                sampling=asked.sampling,
                said=said,
            )
            return self._answer(asked, found.stream, found.way, found.why, found.first)
        if mode == ROUTE:  # a router may have the device's model read the prompt: not on the loop's thread
            query = asked.query or said.text
            way, why = await asyncio.to_thread(writer.decide_query, query, drafts, on_loss)
        else:
            rule = asked.more.rule or language.rule
            way, why = writer.decide(len(ids), count, mode, drafts, on_loss, rule=rule)
        stream = self._runtime.write(wish, way, asked.sampling, said=said, logprobs=asked.logprobs)
        return self._answer(asked, stream, way, why)

    def _answer(
        self, asked: Request, stream: Stream, way: Way, why: str, first: Tally | None = None
    ) -> Answer:
        writer, name = self._writer, self._settings.name
        return Answer(
            asked, name, writer.tokenizer, writer.stops, stream, way, why, writer.power, first=first
        )

    async def _next(self, answer: Answer) -> Emit | None:
        """The next tokens; None at the end, after which `answer.stream.reason` says how.

        Raises:
            RequestError, LinkError: the text could not be completed.
        """
        item = await answer.stream.queue.get()
        if isinstance(item, Emit):
            return item
        answer.stream.queue.put_nowait(item)  # whoever looks again sees the end too
        if answer.stream.error is not None:
            raise answer.stream.error
        return None

    async def _pieces(self, answer: Answer) -> str | None:
        """Text that became final, maybe empty; None at the end."""
        if answer.finish:
            return None
        emitted = await self._next(answer)
        if emitted is None:
            return answer.end(answer.stream.reason)
        shown = answer.take(emitted.tokens, emitted.sources)
        if answer.stopped:
            self._runtime.finish(answer.stream)
            return shown + answer.end("stop")
        return shown

    async def _whole(self, answer: Answer) -> web.Response:
        text = ""
        while (piece := await self._pieces(answer)) is not None:
            text += piece
        return web.json_response(answer.whole(text))

    async def _events(self, request: web.Request, answer: Answer) -> web.StreamResponse:
        piece = await self._pieces(answer)  # what fails before the first token has a status of its own
        response = web.StreamResponse(
            headers={
                "Content-Type": "text/event-stream; charset=utf-8",
                "Cache-Control": "no-cache",
                "X-Accel-Buffering": "no",
            }
        )
        await response.prepare(request)
        told, first = 0, True
        try:
            while piece is not None:
                last = bool(answer.finish)
                if piece or first or last or answer.request.logprobs >= 0:
                    chunk = answer.chunk(piece, told, first=first, last=last)
                    told, first = len(answer.ids), False
                    await self._send(response, chunk)
                piece = await self._pieces(answer)
            if answer.request.usage:
                await self._send(response, answer.usage_chunk())
            await self._send(response, DONE)
        except SplitedgeError as error:
            await self._send(response, event(_told(error).body()))
        await response.write_eof()
        return response

    async def _send(self, response: web.StreamResponse, chunk: bytes) -> None:
        """Write; a client that does not read for `receive_s` has left."""
        try:
            async with asyncio.timeout(self._settings.receive_s):
                await response.write(chunk)
        except TimeoutError:
            raise asyncio.CancelledError from None

    def _ended(self, answer: Answer) -> None:
        error = answer.stream.error
        if error is None and not answer.finish:
            error = RequestCancelled("the caller went away")
        record = answer.record(error)
        self._recent.append(record)
        self._metrics.text(record, answer.sources)
        if self._records is not None:
            try:
                self._records.append(record)
            except SplitedgeError as failed:
                log.error("a record was not written: %s", failed)


def _told(error: SplitedgeError) -> ApiError:
    """An error of ours as the API tells it."""
    if isinstance(error, ApiError):
        return error
    for kind, status, word, code in _TOLD:
        if isinstance(error, kind):
            retry = getattr(error, "retry_after_s", 0.0) or (RETRY_S if status in (429, 503) else 0.0)
            return ApiError(f"{type(error).__name__}: {error}", status, word, code, None, retry)
    return ApiError(f"{type(error).__name__}: {error}", 500, "server_error")


@web.middleware
async def _errors(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Every error in OpenAI's form."""
    try:
        return await handler(request)
    except web.HTTPException as error:
        if error.status < 400:
            raise
        text = error.reason if error.text is None else error.text.strip()
        kind = "server_error" if error.status >= 500 else "invalid_request_error"
        return _response(ApiError(text, error.status, kind))
    except SplitedgeError as error:
        return _response(_told(error))
    except Exception:  # what a client may not see, the log does
        log.exception("request %s %s failed", request.method, request.path)
        return _response(ApiError("internal error; the edge's log has the details", 500, "server_error"))


def _response(error: ApiError) -> web.Response:
    headers = {"Retry-After": str(max(1, math.ceil(error.retry_after_s)))} if error.retry_after_s else {}
    return web.json_response(error.body(), status=error.status, headers=headers)
