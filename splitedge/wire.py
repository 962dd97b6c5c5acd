"""Messages between edge and cloud and their frames; the only parser of network bytes.

A message is one msgpack header of at most 64 KiB (an array that starts with protocol version and
kind), then raw buffers. Bundle, cut and codec are agreed on once a session as numbered lanes (`Hello`,
`Welcome`), so that a request costs about twenty bytes beside its payload.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

VERSION = 1


@dataclass(frozen=True, slots=True)
class Lane:
    """One kind of request a cloud can serve: a bundle, a cut ("" for the model's input) and a codec id.

    Edge and cloud agree on their lanes once a session; requests then name a lane by number.
    """

    bundle: str
    cut: str
    codec: str


@dataclass(slots=True)
class Hello:
    """Edge to cloud, first on every connection: who asks (8 random bytes a run), and for which lanes."""

    session: bytes
    lanes: tuple[Lane, ...]


@dataclass(slots=True)
class Welcome:
    """Cloud to edge: its lifetime (8 random bytes a start) and, for each lane asked for, its number or -1.

    `reason` says in words why a lane was refused (empty when none was).
    """

    epoch: bytes
    lanes: tuple[int, ...]
    reason: str
    max_message: int


@dataclass(slots=True)
class Infer:
    """Edge to cloud: run the tail on this payload. `deadline_ms` is what is left, 0 for none."""

    request: int
    attempt: int
    lane: int
    rows: int
    deadline_ms: int
    payload: bytes | memoryview


@dataclass(slots=True)
class Reply:
    """Cloud to edge: flat output tensors. Times in nanoseconds of the cloud's monotonic clock."""

    request: int
    attempt: int
    received_ns: int
    sent_ns: int
    queue_ns: int
    decode_ns: int
    tail_ns: int
    tensors: tuple[torch.Tensor, ...]


@dataclass(slots=True)
class Refuse:
    """Cloud to edge: no answer, and why (`kind` is an `events.Refusal`)."""

    request: int
    attempt: int
    kind: str
    message: str
    retry_after_ms: int


@dataclass(slots=True)
class Cancel:
    """Edge to cloud: nobody waits for this request any more."""

    request: int


@dataclass(slots=True)
class Ping:
    """Edge to cloud: `token` comes back."""

    token: int


@dataclass(slots=True)
class Pong:
    """Cloud to edge. Times in nanoseconds of the cloud's monotonic clock."""

    token: int
    received_ns: int
    sent_ns: int


Message = Hello | Welcome | Infer | Reply | Refuse | Cancel | Ping | Pong
