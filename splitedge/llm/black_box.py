"""A client of any OpenAI-compatible endpoint: a cloud of which only text comes out.

The key is read from an environment variable when a request is made; only the variable's name is ever
configured. Redirects are not followed (they would carry the key elsewhere), responses are bounded, and
every way to fail is one of our errors.
"""

from __future__ import annotations

import email.utils
import json
import math
import os
import time
from collections.abc import AsyncGenerator, AsyncIterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from splitedge.edge.openai_settings import BlackBoxSettings
from splitedge.errors import (
    AuthenticationError,
    CloudBusy,
    CloudFailed,
    CloudUnavailable,
    ConfigError,
    LinkError,
    Rejected,
    RequestError,
)
from splitedge.llm.sampling import Sampling

_MAX_ERROR = 16 * 1024
_MAX_WAIT_S = 3600.0


@dataclass(frozen=True, slots=True)
class Asked:
    """A text that shall be gone on with.

    Attributes:
        prompt: in words. messages: the same as a chat; empty for a plain prompt.
        answer: what was written behind it so far.
        max_tokens: by the endpoint's own tokens.
        sampling: passed on; what comes of a seed is the endpoint's affair.
    """

    prompt: str
    messages: tuple[tuple[str, str], ...]
    answer: str
    max_tokens: int
    sampling: Sampling


@dataclass(frozen=True, slots=True)
class Piece:
    """Some text; `finish` is `stop` or `length` in the last one, else empty. `nbytes` of the body."""

    text: str
    finish: str
    nbytes: int


class BlackBox:
    """Asks one endpoint. Methods run on one event loop.

    Args:
        settings: where it is.
    """

    def __init__(self, settings: BlackBoxSettings) -> None:
        self.settings = settings
        self._session: aiohttp.ClientSession | None = None

    async def close(self) -> None:
        """Close connections."""
        session, self._session = self._session, None
        if session is not None:
            await session.close()

    def body(self, asked: Asked) -> bytes:
        """The request's body for what is asked."""
        how = asked.sampling
        body: dict[str, Any] = {
            "model": self.settings.model,
            "max_tokens": asked.max_tokens,
            "temperature": how.temperature,
            "top_p": how.top_p,
            "stream": True,
        }
        if not how.greedy:
            body["seed"] = how.seed % 2**31
        if self.settings.api == "completions":
            body["prompt"] = asked.prompt + asked.answer
        else:
            messages = asked.messages or (("user", asked.prompt),)
            said = [{"role": role, "content": text} for role, text in messages]
            body["messages"] = said + (
                [{"role": "assistant", "content": asked.answer}] if asked.answer else []
            )
        return json.dumps(body).encode()

    async def reach(self) -> None:
        """Ask for the list of models, to see whether somebody answers.

        Raises:
            CloudUnavailable: nobody does. AuthenticationError: the key is refused.
        """
        async with self._open("GET", "/models", None) as response:
            if response.status in (401, 403):
                raise self._refused(response.status, b"", response.headers)

    async def write(self, body: bytes) -> AsyncGenerator[Piece]:
        """Go on with a text: pieces as they come; the last one has a `finish`.

        Args:
            body: from `body`.

        Raises:
            CloudBusy: it has too much to do; `retry_after_s` as it says.
            AuthenticationError: it refuses the key.
            Rejected: it does not take the request.
            CloudFailed: it failed, or what came is no response.
            CloudUnavailable: it can not be reached, or fell silent.
        """
        path = "/completions" if self.settings.api == "completions" else "/chat/completions"
        async with self._open("POST", path, body) as response:
            if response.status != 200:
                said = await self._guarded(response.content.read(_MAX_ERROR))
                raise self._refused(response.status, said, response.headers)
            lines = self._lines(response)
            if response.content_type == "application/json":
                parts = [part async for part in lines]
                yield _piece(_json(b"".join(parts)), sum(map(len, parts)), whole=True)
                return
            async for line in lines:
                if not line.startswith(b"data:"):
                    continue  # comments and empty lines between events
                data = line[5:].strip()
                if data == b"[DONE]":
                    break
                piece = _piece(_json(data), len(line), whole=False)
                yield piece
                if piece.finish:
                    return
        raise CloudUnavailable("the endpoint's response ended in the middle")

    async def _lines(self, response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
        left = self.settings.max_response
        while True:
            try:
                line = await self._guarded(response.content.readline())
            except ValueError:
                raise CloudFailed("the endpoint sent a line without an end") from None
            if not line:
                return
            left -= len(line)
            if left < 0:
                raise CloudFailed(f"the endpoint sent more than {self.settings.max_response} bytes")
            yield line

    # Requests -------------------------------------------------------------------------------------

    def _open(self, method: str, path: str, body: bytes | None) -> _Opened:
        return _Opened(self, method, path, body)

    def _key(self) -> str:
        name = self.settings.key_env
        if name is None:
            return ""
        key = os.environ.get(name, "")
        if not key or not key.isascii() or not key.isprintable():
            raise AuthenticationError(f"the variable {name} holds no key for {self.settings.url}")
        parts = urlsplit(self.settings.url)
        if parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise ConfigError(f"a key is not sent in plain text to {parts.hostname}; take https://")
        return key

    def _client(self) -> aiohttp.ClientSession:
        if self._session is None:
            s = self.settings
            timeout = aiohttp.ClientTimeout(total=None, sock_connect=s.connect_s, sock_read=s.idle_s)
            self._session = aiohttp.ClientSession(timeout=timeout, auto_decompress=False)
        return self._session

    async def _guarded(self, job: Any) -> Any:
        """Await something of the connection; its errors as ours."""
        try:
            return await job
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            why = str(error) or type(error).__name__
            raise CloudUnavailable(f"no answer from {self.settings.url}: {self._clean(why)}") from None

    def _clean(self, text: str) -> str:
        """Short, and without the key, whoever put it there."""
        name = self.settings.key_env
        key = os.environ.get(name, "") if name is not None else ""
        return (text.replace(key, "***") if key else text)[:200]

    def _refused(self, status: int, said: bytes, headers: Any) -> RequestError | LinkError:
        why = self._clean(_message(said)) or f"status {status}"
        where = self.settings.url
        if status in (401, 403):
            name = self.settings.key_env
            held = f"the key in {name}" if name else "requests without a key (set key_env)"
            return AuthenticationError(f"{where} refuses {held}: {why}")
        if status == 429:
            return CloudBusy(f"{where} has too much to do: {why}", retry_after(headers.get("Retry-After")))
        if status >= 500:
            return CloudFailed(f"{where} failed: {why}")
        if 300 <= status < 400:
            return CloudFailed(f"{where} redirects, which is not followed; set the right address")
        return Rejected(f"{where} does not take this request: {why}")


class _Opened:
    """A response while it is read."""

    def __init__(self, box: BlackBox, method: str, path: str, body: bytes | None) -> None:
        self._box, self._method, self._path, self._body = box, method, path, body
        self._response: aiohttp.ClientResponse | None = None

    async def __aenter__(self) -> aiohttp.ClientResponse:
        box = self._box
        headers = {"Content-Type": "application/json", "Accept-Encoding": "identity"}
        key = box._key()
        if key:
            headers["Authorization"] = f"Bearer {key}"
        url = box.settings.url + self._path
        asked = box._client().request(
            self._method, url, data=self._body, headers=headers, allow_redirects=False
        )
        response: aiohttp.ClientResponse = await box._guarded(asked)
        self._response = response
        return response

    async def __aexit__(self, *_: object) -> None:
        if self._response is not None:
            self._response.close()


def retry_after(value: str | None) -> float:
    """Seconds of a `Retry-After` header, a number or a date; at most an hour, 1 where it says nothing."""
    if value is None:
        return 1.0
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except ValueError:
            return 1.0
    return min(max(seconds, 0.0), _MAX_WAIT_S) if math.isfinite(seconds) else 1.0


def _json(data: bytes) -> dict[str, Any]:
    try:
        found = json.loads(data)
    except (ValueError, RecursionError):
        raise CloudFailed("the endpoint sent something that is no JSON") from None
    if not isinstance(found, dict):
        raise CloudFailed("the endpoint sent something that is no completion")
    return found


def _message(said: bytes) -> str:
    try:
        found = json.loads(said)["error"]
        return str(found["message"] if isinstance(found, dict) else found)
    except (ValueError, KeyError, TypeError, RecursionError):
        return ""


def _piece(found: dict[str, Any], nbytes: int, whole: bool) -> Piece:
    if "error" in found:
        raise CloudFailed(f"the endpoint failed in the middle: {_message(json.dumps(found).encode())[:200]}")
    choices = found.get("choices")
    if not isinstance(choices, list) or not choices:
        return Piece("", "", nbytes)  # usage, say
    choice = choices[0] if isinstance(choices[0], dict) else {}
    part = choice.get("message" if whole else "delta")
    text = part.get("content") if isinstance(part, dict) else choice.get("text")
    finish = choice.get("finish_reason")
    if not isinstance(text, str | None) or not isinstance(finish, str | None):
        raise CloudFailed("the endpoint sent something that is no completion")
    if whole and not finish:
        raise CloudFailed("the endpoint sent a completion without its end")
    return Piece(text or "", finish or "", nbytes)
