"""Requests of an OpenAI-compatible API to ours, and ours back. No I/O.

Every field is checked: what is not known or not supported is an error that names it, never ignored; a few
that change nothing here (`user`, `metadata`, `store`, ...) are let through. Beside the standard fields a
body may have `splitedge` (see `Extension`), and so have responses.
"""

from __future__ import annotations

import json
import math
import secrets
from dataclasses import dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from splitedge.edge.asking import Said
from splitedge.errors import SplitedgeError
from splitedge.llm.sampling import Sampling
from splitedge.wire import MAX_TOP

MAX_STOPS, MAX_STOP = 16, 256
MAX_MESSAGES = 4096


class ApiError(SplitedgeError):
    """What goes wrong, in OpenAI's words.

    Attributes:
        status: HTTP's. kind: `type`. code, param: as OpenAI's clients expect them.
        retry_after_s: seconds after which to come back; 0 for nothing to say.
    """

    def __init__(
        self,
        message: str,
        status: int = 400,
        kind: str = "invalid_request_error",
        code: str | None = None,
        param: str | None = None,
        retry_after_s: float = 0.0,
    ) -> None:
        self.status, self.kind, self.code, self.param = status, kind, code, param
        self.retry_after_s = retry_after_s
        super().__init__(message)

    def body(self) -> dict[str, Any]:
        """As JSON."""
        return {"error": {"message": str(self), "type": self.kind, "param": self.param, "code": self.code}}


class Extension(BaseModel):
    """The field `splitedge` of a request.

    Attributes:
        mode, drafts, on_loss, rule: as in `LanguageDeployment.stream`; None for the edge's own.
        deadline_ms: milliseconds that all of the text may take.
        top_k: only the k most likely tokens; 0 for all.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    mode: (
        Literal["auto", "route", "cascade", "local", "cloud_stream", "spec", "split", "exit", "assist"] | None
    ) = None
    drafts: int | None = Field(default=None, ge=1, le=64)
    on_loss: Literal["wait", "local"] | None = None
    rule: Literal["coupling", "rejection"] | None = None
    deadline_ms: int | None = Field(default=None, ge=1, le=86_400_000)
    top_k: int = Field(default=0, ge=0, le=2**31 - 1)


class _StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    include_usage: bool = False
    include_obfuscation: bool = False


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    type: Literal["text"]
    text: str


class _Message(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[_Part]
    name: str | None = None

    def text(self) -> str:
        """All of the content."""
        if isinstance(self.content, str):
            return self.content
        return "".join(part.text for part in self.content)


class _Body(BaseModel):
    """What both kinds of requests have. Fields that are not supported may be given at their default."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    model: str
    stream: bool | None = None
    stream_options: _StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=0)
    temperature: float | None = Field(default=None, ge=0, le=2, allow_inf_nan=False)
    top_p: float | None = Field(default=None, gt=0, le=1, allow_inf_nan=False)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    n: Literal[1] | None = None
    frequency_penalty: Literal[0] | float | None = None
    presence_penalty: Literal[0] | float | None = None
    logit_bias: dict[str, float] | None = None
    # These change nothing here.
    user: str | None = None
    metadata: dict[str, str] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    splitedge: Extension = Extension()


class _CompletionBody(_Body):
    prompt: str | list[str] | list[int]
    logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)
    best_of: Literal[1] | None = None
    echo: Literal[False] | None = None
    suffix: Literal[""] | None = None


class _ChatBody(_Body):
    messages: list[_Message] = Field(min_length=1, max_length=MAX_MESSAGES)
    max_completion_tokens: int | None = Field(default=None, ge=0)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MAX_TOP)


@dataclass(frozen=True, slots=True)
class Request:
    """One request, checked.

    Attributes:
        chat: whether it is one, else a completion.
        prompt: text or ids of a completion; empty for a chat.
        messages: (role, content) of a chat.
        max_tokens: None where nothing is said.
        sampling: as asked; a seed is drawn where none is given.
        stops: strings that end the text.
        logprobs: of so many tokens beside the chosen one; -1 for none.
        stream, usage: whether as events, and with usage in the last one.
        more: of ours.
    """

    chat: bool
    prompt: str | tuple[int, ...]
    messages: tuple[tuple[str, str], ...]
    max_tokens: int | None
    sampling: Sampling
    stops: tuple[str, ...]
    logprobs: int
    stream: bool
    usage: bool
    more: Extension

    @property
    def query(self) -> str:
        """What a chat's user said last; empty for a completion."""
        return next((text for role, text in reversed(self.messages) if role == "user"), "")

    @property
    def deadline_s(self) -> float:
        """Seconds for all of it; inf where nothing is said."""
        return math.inf if self.more.deadline_ms is None else self.more.deadline_ms / 1000


def read_request(body: bytes, chat: bool, model: str) -> Request:
    """Check a request.

    Args:
        body: JSON.
        chat: whether it came to the chat's address.
        model: the name of the one that is served.

    Raises:
        ApiError: it is none, asks for another model, or for what is not supported.
    """
    try:
        found = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError("the body is not JSON") from None
    if not isinstance(found, dict):
        raise ApiError("the body is not a JSON object")
    try:
        read = (_ChatBody if chat else _CompletionBody).model_validate(found)
    except ValidationError as error:
        raise _wrong(error) from None
    if read.model != model:
        raise ApiError(
            f"the model '{read.model[:100]}' does not exist here; this edge serves '{model}'",
            404,
            code="model_not_found",
            param="model",
        )
    for name in ("frequency_penalty", "presence_penalty"):
        if getattr(read, name):
            raise ApiError(f"{name} is not supported here: leave it out or give 0", param=name)
    if read.logit_bias:
        raise ApiError("logit_bias is not supported here", param="logit_bias")
    return _request(read)


def _wrong(error: ValidationError) -> ApiError:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if not str(part).startswith(("list[", "str", "int")))
    if first["type"] == "extra_forbidden":
        return ApiError(f"unrecognised argument: {where[:100]}", param=where[:100])
    shown = repr(first["input"])[:60]
    return ApiError(f"{where[:100]}: {first['msg']}, got {shown}", param=where[:100])


def _request(read: _CompletionBody | _ChatBody | _Body) -> Request:
    stop = [read.stop] if isinstance(read.stop, str) else list(read.stop or ())
    if len(stop) > MAX_STOPS or any(not 1 <= len(one) <= MAX_STOP for one in stop):
        raise ApiError(f"stop: at most {MAX_STOPS} strings of 1 to {MAX_STOP} characters", param="stop")
    temperature = 1.0 if read.temperature is None else read.temperature
    seed = secrets.randbits(31) if read.seed is None else read.seed % 2**64
    sampling = Sampling(temperature, read.splitedge.top_k, 1.0 if read.top_p is None else read.top_p, seed)
    prompt: str | tuple[int, ...] = ""
    messages: tuple[tuple[str, str], ...] = ()
    limit, logprobs = read.max_tokens, -1
    if isinstance(read, _ChatBody):
        messages = tuple((one.role, one.text()) for one in read.messages)
        if read.max_completion_tokens is not None:
            if limit is not None and limit != read.max_completion_tokens:
                raise ApiError("give max_completion_tokens or max_tokens, not both", param="max_tokens")
            limit = read.max_completion_tokens
        if read.top_logprobs is not None and not read.logprobs:
            raise ApiError("top_logprobs needs logprobs: true", param="top_logprobs")
        logprobs = (read.top_logprobs or 0) if read.logprobs else -1
    elif isinstance(read, _CompletionBody):
        prompt = _prompt(read.prompt)
        logprobs = -1 if read.logprobs is None else read.logprobs
    options = read.stream_options
    if options is not None and not read.stream:
        raise ApiError("stream_options needs stream: true", param="stream_options")
    return Request(
        chat=isinstance(read, _ChatBody),
        prompt=prompt,
        messages=messages,
        max_tokens=limit,
        sampling=sampling,
        stops=tuple(stop),
        logprobs=logprobs,
        stream=bool(read.stream),
        usage=options is not None and options.include_usage,
        more=read.splitedge,
    )


def _prompt(given: str | list[str] | list[int]) -> str | tuple[int, ...]:
    if isinstance(given, str):
        return given
    words = [one for one in given if isinstance(one, str)]
    if not words:
        return tuple(one for one in given if isinstance(one, int))
    if len(given) > 1:
        raise ApiError("one prompt a request; send several requests for several", param="prompt")
    return words[0]


# Prompts ----------------------------------------------------------------------------------------------


def prompt_of(request: Request, tokenizer: Any, role: str) -> tuple[list[int], Said]:
    """Ids of a request's prompt, and the prompt in words.

    A chat goes through the tokenizer's own template where it has one, else through a plain one:
    `user: hello`, a line for each message, and `assistant:` (`role`) behind them.

    Raises:
        ApiError: the template does not take these messages, or the tokenizer not this text.
    """
    try:
        if not request.chat:
            if isinstance(request.prompt, tuple):
                ids = list(request.prompt)
                return ids, Said(tokenizer.decode(ids) if _known(ids) else "")
            return list(tokenizer.encode(request.prompt)), Said(request.prompt)
        if getattr(tokenizer, "chat_template", None) is not None:
            listed = [{"role": r, "content": text} for r, text in request.messages]
            text = tokenizer.apply_chat_template(listed, tokenize=False, add_generation_prompt=True)
            ids = list(tokenizer.encode(text, add_special_tokens=False))
            return ids, Said(text, request.messages)
        text = "".join(f"{r}: {content}\n" for r, content in request.messages) + f"{role}:"
        return list(tokenizer.encode(text)), Said(text, request.messages)
    except ApiError:
        raise
    except Exception as error:  # a template raises what it likes
        where = "messages" if request.chat else "prompt"
        raise ApiError(f"the model's tokenizer does not take this: {str(error)[:200]}", param=where) from None


def _known(ids: list[int]) -> bool:
    return all(0 <= i < 2**31 for i in ids)
