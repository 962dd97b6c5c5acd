"""Settings of an edge that serves a language model over an OpenAI-compatible API."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Literal
from urllib.parse import urlsplit

from pydantic import BaseModel, ConfigDict, Field, field_validator

if TYPE_CHECKING:
    from splitedge.edge.settings import EdgeSettings
    from splitedge.llm.generation import Patience


#: How a text may be asked to be written: a mode, or what chooses one.
WayName = Literal["auto", "route", "cascade", "local", "cloud_stream", "spec", "split", "exit", "assist"]


class BlackBoxSettings(BaseModel):
    """An OpenAI-compatible endpoint. Unknown names are refused.

    Attributes:
        url: base, up to and with `/v1`.
        model: its name there.
        key_env: name of the environment variable that holds the key; None for no key.
        api: `completions` goes on from a text exactly; `chat` sends a chat's messages, and what the device
            wrote before as an assistant's message, which not every server goes on from.
        connect_s: seconds to connect.
        idle_s: longest silence of a response, the wait for its beginning included.
        max_response: bytes of one response.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    url: str
    model: str = Field(min_length=1, max_length=200)
    key_env: str | None = Field(default=None, pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,127}$")
    api: Literal["completions", "chat"] = "completions"
    connect_s: float = Field(default=5.0, gt=0, le=600, allow_inf_nan=False)
    idle_s: float = Field(default=30.0, gt=0, le=3600, allow_inf_nan=False)
    max_response: int = Field(default=4 * 2**20, ge=1024, le=2**31)

    @field_validator("url")
    @classmethod
    def _address(cls, value: str) -> str:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("write the base as https://host/v1")
        if parts.username or parts.password or parts.query:
            raise ValueError("a key does not belong in the address; name its variable in key_env")
        return value.rstrip("/")


class LanguageEdgeSettings(BaseModel):
    """What an operator may turn. Unknown names are refused.

    Attributes:
        mode: how texts are written unless a request says otherwise: `auto`, `route` (by the query
            router), `cascade` (by the device, and anew by the cloud where a judge does not accept that),
            `local`, `cloud_stream`, `spec`, `split`, `exit` or `assist`.
        drafts: most drafts a round (`spec`); None for what is predicted best.
        rule: how drafts of a sampled text are verified (`spec`): `coupling` or `rejection`.
        on_loss: while the cloud is away `wait`, or go on by the device's model (`local`).
        deadline_s: seconds a text may take unless a request says otherwise; None for no limit.
        longest_wait_s: with `on_loss="wait"`, seconds without a word of the cloud after which a text fails.
        overdue_s: seconds after which an ask without a word is repeated.
        texts: written at once; more are refused with 429.
        max_tokens: of a completion that names no number (a chat's may fill the context).
        role: of the chat's answers in the plain template, for models without a template of their own.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    mode: Literal["auto", "route", "cascade", "local", "cloud_stream", "spec", "split", "exit", "assist"] = (
        "auto"
    )
    drafts: int | None = Field(default=None, ge=1, le=64)
    rule: Literal["coupling", "rejection"] = "coupling"
    on_loss: Literal["wait", "local"] = "wait"
    deadline_s: float | None = Field(default=None, gt=0, le=86400, allow_inf_nan=False)
    longest_wait_s: float = Field(default=30.0, gt=0, le=3600, allow_inf_nan=False)
    overdue_s: float = Field(default=2.0, gt=0, le=600, allow_inf_nan=False)
    texts: int = Field(default=64, ge=1, le=65536)
    max_tokens: int = Field(default=16, ge=1, le=1_000_000)
    role: str = Field(default="assistant", pattern=r"^[A-Za-z][A-Za-z ]{0,31}$")


def patience_of(edge: EdgeSettings) -> Patience:
    """When the cloud counts as silent, by the settings; a black box has its own time limits."""
    from splitedge.llm.generation import Patience

    language, box = edge.language, edge.black_box
    if box is None:
        return Patience(overdue_s=language.overdue_s, longest_wait_s=language.longest_wait_s)
    return black_box_patience(box.idle_s, language.longest_wait_s)


def black_box_patience(idle_s: float, longest_wait_s: float = 0.0) -> Patience:
    """An endpoint may be silent for `idle_s` before its first word; its client says when it gave up."""
    from splitedge.llm.generation import Patience

    return Patience(overdue_s=2 * idle_s, attempts=1, longest_wait_s=max(longest_wait_s, 3 * idle_s))


def seconds(value: float | None) -> float:
    """A limit that may be none."""
    return math.inf if value is None else value
