"""The engine's memory of one request in flight."""

from __future__ import annotations

import math
from typing import Final

from splitedge.errors import RequestError
from splitedge.events import Stage
from splitedge.policy import Decision, Observation, Route

NONE: Final = -1


class Request:
    """One request between arrival and its end. Seconds are of the shell's clock. Plain state, no rules.

    Attributes:
        timed: whether the caller gave a deadline.
        limit: it ends at this second whatever happened.
        answer_by: from this second on an answer in hand is given instead of waiting for a better one.
        guard_at: the fall-back must begin at this second, if there is none in hand; inf for never.
        target, planned: option the policy wants now, and wanted first.
        queued, running: stage waiting for the device, stage being computed.
        fallback: the stage run only so that there is an answer without the cloud.
        in_hand: options already computed here, each with its confidence.
        passed: stages that were run or failed and need not be run again.
        encoded: remote option whose payload is ready.
        remote_over: no reply is expected or wanted any more.
        flying: the last attempt is under way, as far as is known.
        awaited: the cloud may be working on it.
        broken: the policy failed on it.
        guarded_s: compute seconds reserved for its fall-back.
        trouble: what last went wrong, readable; `trouble_type` the error if nothing answers.
    """

    __slots__ = (
        "answer_by",
        "attempts",
        "awaited",
        "broken",
        "bytes_down",
        "bytes_up",
        "deadline_s",
        "decision",
        "decode_s",
        "downlink_s",
        "encode_s",
        "encoded",
        "exit",
        "fallback",
        "features",
        "flying",
        "forced",
        "guard_at",
        "guarded_s",
        "head_s",
        "id",
        "in_hand",
        "limit",
        "nbytes",
        "note",
        "obs",
        "order",
        "overdue_at",
        "passed",
        "planned",
        "pushed",
        "queue_s",
        "queued",
        "queued_s",
        "remote_over",
        "retry_after_s",
        "retry_at",
        "rows",
        "running",
        "sent_at",
        "sunk_s",
        "t",
        "tail_j",
        "tail_s",
        "target",
        "timed",
        "trouble",
        "trouble_type",
        "uplink_s",
    )

    def __init__(
        self, id: int, t: float, rows: int, deadline_s: float, limit: float, answer_by: float
    ) -> None:
        self.id = id
        self.t = t
        self.rows = rows
        self.deadline_s = deadline_s
        self.timed = deadline_s != math.inf
        self.limit = limit
        self.answer_by = answer_by
        self.guard_at = self.retry_at = self.overdue_at = self.pushed = math.inf
        self.forced: Route | None = None
        self.features: tuple[float, ...] | None = None
        self.obs: Observation | None = None
        self.decision: Decision | None = None
        self.target = self.planned = self.encoded = self.exit = NONE
        self.queued: Stage | None = None
        self.running: Stage | None = None
        self.fallback: Stage | None = None
        self.queued_s = self.guarded_s = self.sunk_s = self.sent_at = self.tail_j = self.retry_after_s = 0.0
        self.order = 0
        self.in_hand: list[tuple[int, float]] = []
        self.passed: list[Stage] = []
        self.remote_over = self.flying = self.awaited = self.broken = False
        self.nbytes = self.attempts = self.bytes_up = self.bytes_down = 0
        self.note = self.trouble = ""
        self.trouble_type: type[RequestError] | None = None
        self.head_s = self.encode_s = self.uplink_s = self.queue_s = 0.0
        self.decode_s = self.tail_s = self.downlink_s = 0.0

    def wake(self) -> float:
        """The second at which something must be done about it though no event comes."""
        wake = self.limit
        if self.in_hand and self.answer_by < wake:
            wake = self.answer_by
        if self.guard_at < wake:
            wake = self.guard_at
        if self.retry_at < wake:
            wake = self.retry_at
        if self.overdue_at < wake:
            wake = self.overdue_at
        return wake
