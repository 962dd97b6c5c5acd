"""The cloud server's settings, with units, defaults and limits."""

from __future__ import annotations

from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field

MIB = 2**20


class LanguageLimits(BaseModel):
    """Bounds of all language models of a server together.

    Attributes:
        budget_bytes: memory of contexts: keys, values and rows.
        lease_s: seconds a context is kept without an ask.
        contexts: kept at most.
        per_user: of one user (one key), or of all edges without keys.
        pass_contexts, pass_tokens: that go through a model together.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    budget_bytes: int = Field(default=1024 * MIB, ge=MIB)
    lease_s: float = Field(default=600.0, gt=0, le=86400, allow_inf_nan=False)
    contexts: int = Field(default=4096, ge=1, le=1_000_000)
    per_user: int = Field(default=1024, ge=1, le=1_000_000)
    pass_contexts: int = Field(default=64, ge=1, le=4096)
    pass_tokens: int = Field(default=1024, ge=1, le=65536)


class ServerSettings(BaseModel):
    """What an operator may turn on the cloud server. Unknown names are refused.

    Attributes:
        listen: where edges connect, `tcp://HOST:PORT`; port 0 takes any free one.
        keys: key directory; needed to listen off loopback. None is plain text, on loopback only.
        key_name: which key pair of `keys` is the server's; None where it holds one.
        http: host:port of health and metrics, port 0 for any free one; empty for none.
        max_message_bytes: bytes of one message from an edge.
        max_rows: rows of one request.
        max_batch_rows: rows of one batch.
        max_wait_s: seconds a request may wait for others to join its batch while the compute thread is
            free; 0 runs whatever waits at once.
        queue_requests: requests waiting at once; more are refused as busy.
        queue_bytes: payload bytes waiting at once, all edges together.
        peer_queue_bytes: payload bytes waiting at once of one edge (one key, or one connection without
            keys).
        sessions: sessions remembered; the one idle longest is forgotten to make room.
        session_idle_s: seconds after which an idle session is forgotten.
        seen_requests: request ids remembered per session, so that none is executed twice.
        kept_reply_bytes: bytes of recent replies kept to be sent again, all sessions together.
        kept_reply_s: seconds a reply is kept to be sent again.
        inline_below_s: a lane whose service time is below this runs on the event loop's thread, which
            saves two thread hand-overs; 0 never.
        send_queue_messages: messages ZeroMQ may hold for one edge; more wait in the server, up to
            `peer_queue_bytes`, and then are dropped (the edge asks again within its deadline).
        heartbeat_s: seconds between heartbeats; a connection silent for three is closed.
        drain_s: seconds that requests in flight have to finish after SIGTERM.
        http_receive_s, http_connections: receive deadline and connection cap of `http`.
        language: memory and batches of language models.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    listen: str = "tcp://127.0.0.1:7070"
    keys: Path | None = None
    key_name: str | None = None
    http: str = "127.0.0.1:9090"
    max_message_bytes: int = Field(default=32 * MIB, ge=256 * 1024, le=2**31 - 1)
    max_rows: int = Field(default=64, ge=1, le=65535)
    max_batch_rows: int = Field(default=32, ge=1, le=65535)
    max_wait_s: float = Field(default=0.0, ge=0, le=1, allow_inf_nan=False)
    queue_requests: int = Field(default=1024, ge=1, le=1_000_000)
    queue_bytes: int = Field(default=256 * MIB, ge=MIB)
    peer_queue_bytes: int = Field(default=64 * MIB, ge=MIB)
    sessions: int = Field(default=4096, ge=1, le=1_000_000)
    session_idle_s: float = Field(default=600.0, gt=0, le=86400, allow_inf_nan=False)
    seen_requests: int = Field(default=4096, ge=16, le=1_000_000)
    kept_reply_bytes: int = Field(default=64 * MIB, ge=0)
    kept_reply_s: float = Field(default=30.0, ge=0, le=3600, allow_inf_nan=False)
    inline_below_s: float = Field(default=0.0003, ge=0, le=0.1, allow_inf_nan=False)
    send_queue_messages: int = Field(default=1000, ge=1, le=1_000_000)
    heartbeat_s: float = Field(default=0.5, gt=0, le=60, allow_inf_nan=False)
    drain_s: float = Field(default=10.0, ge=0, le=3600, allow_inf_nan=False)
    http_receive_s: float = Field(default=10.0, gt=0, le=600, allow_inf_nan=False)
    http_connections: int = Field(default=64, ge=1, le=65535)
    language: LanguageLimits = LanguageLimits()
