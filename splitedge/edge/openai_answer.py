"""Answers of the OpenAI-compatible API: one text as JSON, or as events while it is written. No I/O."""

from __future__ import annotations

import json
import math
import secrets
import time
from dataclasses import dataclass, field
from typing import Any

from splitedge.edge.language import Stream
from splitedge.edge.openai_schema import Request
from splitedge.llm.detokenizing import Detokenizer, StopStrings
from splitedge.llm.generation import Tally
from splitedge.llm.logprobs import LogProbs
from splitedge.llm.modes import Mode, Way
from splitedge.llm.text_records import TextRecord, plain
from splitedge.llm.tokenizers import Tokenizer, plain_text
from splitedge.power import PowerModel


@dataclass
class Answer:
    """One text under way, as its client sees it.

    Args:
        request: what was asked.
        model: name of the model.
        tokenizer: of it.
        stop_ids: that end a text; their words are not shown.
        stream: of the runtime.
        way, why: how it is written.
        power: that joules are modelled with.
        first: what an answer of the device took that was not accepted (a cascade); it is counted.
    """

    request: Request
    model: str
    tokenizer: Tokenizer
    stop_ids: frozenset[int]
    stream: Stream
    way: Way
    why: str
    power: PowerModel
    arrived_s: float = field(default_factory=time.time)
    ids: list[int] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    finish: str = ""
    first: Tally | None = None

    def __post_init__(self) -> None:
        self._text = Detokenizer(self.tokenizer)
        self._stops = StopStrings(self.request.stops)
        self.id = ("chatcmpl-" if self.request.chat else "cmpl-") + secrets.token_hex(12)
        self.created = int(time.time())

    # Text -----------------------------------------------------------------------------------------

    @property
    def stopped(self) -> bool:
        """Whether a stop string has come."""
        return self._stops.found

    def take(self, tokens: tuple[int, ...], sources: tuple[str, ...]) -> str:
        """Text that can be shown now that these tokens are final. Nothing behind a stop string is taken."""
        shown = ""
        for token, source in zip(tokens, sources, strict=True):
            if self.stopped:
                break
            self.ids.append(token)
            self.sources.append(source)
            if token not in self.stop_ids:
                shown += self._stops.push(self._text.push([token]))
        return shown

    def end(self, reason: str) -> str:
        """Text that was held back: the text has ended."""
        rest = self._stops.push(self._text.push([], last=True), last=True)
        self.finish = "stop" if self.stopped else reason
        return rest

    # Answers --------------------------------------------------------------------------------------

    def usage(self) -> dict[str, Any]:
        """Tokens in and out."""
        prompt, written = self.stream.prompt, len(self.ids)
        return {"prompt_tokens": prompt, "completion_tokens": written, "total_tokens": prompt + written}

    def whole(self, text: str) -> dict[str, Any]:
        """The answer to a request that is not streamed."""
        kind = "chat.completion" if self.request.chat else "text_completion"
        choice: dict[str, Any] = {"index": 0, "finish_reason": self.finish, "logprobs": self._logprobs(0)}
        if self.request.chat:
            choice["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            choice["text"] = text
        return self._head(kind) | {
            "choices": [choice], "usage": self.usage(), "splitedge": self.extension()
        }  # fmt: skip

    def chunk(self, text: str, since: int, *, first: bool = False, last: bool = False) -> bytes:
        """One event.

        Args:
            text: that became final.
            since: tokens told of in earlier events.
            first, last: whether it is the first, or the last.
        """
        kind = "chat.completion.chunk" if self.request.chat else "text_completion"
        choice: dict[str, Any] = {
            "index": 0, "finish_reason": self.finish if last else None, "logprobs": self._logprobs(since)
        }  # fmt: skip
        if self.request.chat:
            delta: dict[str, Any] = {"role": "assistant"} if first else {}
            choice["delta"] = delta | ({"content": text} if text or first else {})
        else:
            choice["text"] = text
        body = self._head(kind) | {"choices": [choice]}
        if last:
            body["splitedge"] = self.extension()
        if self.request.usage:
            body["usage"] = None
        return event(body)

    def usage_chunk(self) -> bytes:
        """The event behind the last one, where usage was wanted."""
        kind = "chat.completion.chunk" if self.request.chat else "text_completion"
        return event(self._head(kind) | {"choices": [], "usage": self.usage()})

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def _logprobs(self, since: int) -> dict[str, Any] | None:
        if self.request.logprobs < 0:
            return None
        begin = self.stream.prompt
        told = [
            (token, self.stream.logprobs[begin + i, token]) for i, token in enumerate(self.ids) if i >= since
        ]
        if self.request.chat:
            content = [
                self._one(token, thought.chosen) | {"top_logprobs": [self._one(*t) for t in thought.top]}
                for token, thought in told
            ]
            return {"content": content, "refusal": None}
        return self._of_completion(told)

    def _of_completion(self, told: list[tuple[int, LogProbs]]) -> dict[str, Any]:
        words = [plain_text(self.tokenizer, [token]) for token, _ in told]
        return {
            "tokens": words,
            "token_logprobs": [thought.chosen for _, thought in told],
            "top_logprobs": [
                {plain_text(self.tokenizer, [i]): value for i, value in thought.top} for _, thought in told
            ],
        }

    def _one(self, token: int, value: float) -> dict[str, Any]:
        word = plain_text(self.tokenizer, [token])
        return {"token": word, "logprob": value, "bytes": list(word.encode())}

    # What it took ---------------------------------------------------------------------------------

    def record(self, error: Exception | None = None) -> TextRecord:
        """The row of this text."""
        tally, written = self.stream.tally, len(self.ids)
        tpot = (tally.ended_s - tally.first_token_s) / (written - 1) if written > 1 else math.nan
        before_s, compute_s = 0.0, tally.compute_s
        if self.first is not None:
            before_s, compute_s = self.first.ended_s, compute_s + self.first.compute_s
        return TextRecord(
            t_s=self.arrived_s,
            mode=str(self.way.mode),
            why=self.why,
            finish=self.finish if error is None else "",
            error="" if error is None else type(error).__name__,
            degraded=tally.degraded,
            reason=tally.reason[:1000],
            prompt_tokens=self.stream.prompt,
            tokens=written,
            cloud_calls=tally.asks,
            cloud_tokens=tally.cloud_tokens,
            proposed=tally.proposed,
            accepted=tally.accepted,
            bytes_up=tally.bytes_up,
            bytes_down=tally.bytes_down,
            ttft_s=before_s + tally.first_token_s,
            tpot_s=tpot,
            total_s=before_s + tally.ended_s,
            compute_s=compute_s,
            cloud_s=tally.cloud_s,
            energy_j=self.power.joules(compute_s, tally.bytes_up, tally.bytes_down),
        )

    def extension(self) -> dict[str, Any]:
        """The field `splitedge` of a response."""
        row = self.record()
        how = self.request.sampling
        found: dict[str, Any] = plain(
            {
                "mode": row.mode,
                "why": row.why,
                "lossless": self.stream.generation.way.lossless,
                "rule": self.stream.generation.way.rule if self.way.mode is Mode.SPEC else None,
                "degraded": row.degraded,
                "reason": row.reason,
                "seed": None if how.greedy else how.seed,
                "cloud_calls": row.cloud_calls,
                "cloud_tokens": row.cloud_tokens,
                "proposed": row.proposed,
                "accepted": row.accepted,
                "bytes_up": row.bytes_up,
                "bytes_down": row.bytes_down,
                "joules": row.energy_j,
                "ttft_s": row.ttft_s,
                "tpot_s": row.tpot_s,
                "total_s": row.total_s,
                "ids": list(self.ids),
                "sources": list(self.sources),
            }
        )
        return found


def event(body: dict[str, Any]) -> bytes:
    """A server-sent event."""
    return b"data: " + json.dumps(body, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


DONE = b"data: [DONE]\n\n"
