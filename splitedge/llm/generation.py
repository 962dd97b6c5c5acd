"""One text, written by a device and a cloud: a state machine without clock, socket or thread.

The device owns the ids: what was emitted is final, what the cloud holds is a copy that can be made again.
So a lost link, a restarted cloud or a repeated message change when a lossless text arrives, never what it
says. Every generation ends in exactly one `Finish` or `Fail`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from splitedge.errors import (
    CloudFailed,
    CloudUnavailable,
    DeadlineExceeded,
    LinkError,
    RequestCancelled,
    RequestError,
)
from splitedge.llm.happenings import (
    Action,
    Cancelled,
    Compute,
    Denied,
    Emit,
    Enough,
    Event,
    Fail,
    Finish,
    Link,
    Needed,
    Proposed,
    Send,
    Sent,
    Tick,
    Told,
)
from splitedge.llm.modes import Mode, Pace, Way, goes_on


@dataclass(frozen=True, slots=True)
class Wish:
    """What a caller wants.

    Attributes:
        prompt: ids, at least one.
        max_tokens: at most so many behind them.
        stops: ids that end the text; the one that does is emitted.
        deadline_s: seconds for all of it; inf for none.
    """

    prompt: tuple[int, ...]
    max_tokens: int
    stops: frozenset[int] = frozenset()
    deadline_s: float = math.inf


@dataclass(frozen=True, slots=True)
class Patience:
    """When the cloud counts as silent.

    Attributes:
        overdue_s: seconds after which an ask without any word is repeated.
        attempts: sendings of one ask; then the cloud counts as out of reach.
        retry_s: seconds until it is tried again then, while the connection says that it stands.
        longest_wait_s: with `on_loss="wait"`, seconds without a word after which the text fails.
    """

    overdue_s: float = 2.0
    attempts: int = 3
    retry_s: float = 1.0
    longest_wait_s: float = 60.0


@dataclass(slots=True)
class Tally:
    """What it took. Bytes as framed, seconds of the shell's clock; NaN where it did not happen.

    `rejected` counts the first wrong draft of a round only: what stands behind it was never judged. So
    `accepted / (accepted + rejected)` estimates the probability that a draft behind right ones is right,
    whatever the length of rounds, and `accepted / proposed` does not.
    """

    asks: int = 0
    cloud_tokens: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    proposed: int = 0
    accepted: int = 0
    rejected: int = 0
    first_token_s: float = math.nan
    ended_s: float = math.nan
    compute_s: float = 0.0
    cloud_s: float = 0.0
    sources: list[str] = field(default_factory=list)
    degraded: bool = False
    reason: str = ""


class Generation:
    """One request of a language model.

    Args:
        now: seconds of the shell's clock.
        wish: what is wanted.
        way: the mode and its numbers.
        up: whether the cloud is connected. lost: why not, where it is not.
        patience: when it counts as silent.
        pace: asked at each draft for what things cost now.

    Attributes:
        ids: prompt and text so far, all final.
        tally: what it took.
        wake_at: second at which the shell shall feed `Tick()`; inf for never.
        done: whether it has ended.
    """

    def __init__(
        self,
        now: float,
        wish: Wish,
        way: Way,
        *,
        up: bool = True,
        lost: str = "the cloud was not connected",
        patience: Patience | None = None,
        pace: Callable[[], Pace] = Pace,
    ) -> None:
        self.ids = list(wish.prompt)
        self.tally = Tally()
        self.wake_at = math.inf
        self.done = False
        self.way = way
        self._wish, self._pace = wish, pace
        self._patience = patience if patience is not None else Patience()
        self._began, self._limit = now, now + wish.deadline_s
        self._up, self._lost = up, "" if up else lost
        self._held = 0  # tokens that the cloud is believed to hold
        self._epoch = self._asks = self._needs = 0
        self._drafts: list[int] = []
        self._sure: list[float] = []
        self._tables: list[bytes] = []  # of the drafts, where they are judged by rejection
        self._computing = -1  # ids the running Compute saw; -1 for none
        self._ask: Send | None = None  # the one that waits for its answer
        self._overdue = self._retry_at = math.inf
        self._word_at = now  # when the cloud last said something, or was first needed
        self._actions: list[Action] = []
        self._handlers: dict[type, Callable[[float, Any], None]] = {
            Proposed: self._proposed,
            Told: self._told,
            Needed: self._needed,
            Denied: self._denied,
            Sent: self._sent,
            Link: self._link,
            Tick: lambda now, event: None,
            Cancelled: lambda now, event: self._fail(now, RequestCancelled("the caller went away")),
            Enough: lambda now, event: self._finish(now, "stop"),
        }

    def begin(self, now: float) -> list[Action]:
        """The first actions. Call once."""
        self._actions = []
        if self._wish.max_tokens < 1:
            self._finish(now, "length")
        elif self._reachable and self.way.mode.proposes and self.way.mode is not Mode.LOCAL:
            self._push()
        self._go_on(now)
        return self._leave(now)

    def step(self, now: float, event: Event) -> list[Action]:
        """Take one event; give what is to be done, in order. Events after the end do nothing."""
        self._actions = []
        if not self.done:
            self._handlers[type(event)](now, event)
        if not self.done:
            self._due(now)
            self._go_on(now)
        return self._leave(now)

    # What comes next ------------------------------------------------------------------------------

    @property
    def _reachable(self) -> bool:
        return self._up and self._retry_at == math.inf

    def _go_on(self, now: float) -> None:
        """Begin whatever there is to do and is not under way."""
        if self.done or self._ask is not None:
            return
        mode = self.way.mode
        if mode is Mode.LOCAL:
            self._compute()
        elif not self._reachable:
            if self.way.on_loss == "local":
                self._commit_drafts(now)
                if not self.done:
                    self._compute()
        elif not mode.proposes:
            self._send(now, (), self._left if mode is Mode.STREAM else 1)
        elif mode is Mode.SPEC:
            room = self._left - 1 - len(self._drafts)
            full = len(self._drafts) >= self.way.drafts or room < 1
            ended = bool(self._drafts) and self._drafts[-1] in self._wish.stops
            full_rounds = self.way.rejects or not self.way.adapt
            worth = full_rounds or not self._drafts or goes_on(self._pace(), self._sure)
            if full or ended or not worth:
                if self._computing < 0:
                    self._send(now, tuple(self._drafts), 1)
            else:
                self._compute()
        else:
            self._compute()

    @property
    def _waits(self) -> bool:
        return self.way.mode is not Mode.LOCAL and self.way.on_loss == "wait"

    @property
    def _left(self) -> int:
        """Tokens that may still be emitted."""
        return self._wish.max_tokens - (len(self.ids) - len(self._wish.prompt))

    def _compute(self) -> None:
        if self._computing < 0:
            self._computing = len(self.ids) + len(self._drafts)
            self._actions.append(Compute((*self.ids, *self._drafts)))

    def _send(self, now: float, drafts: Sequence[int], want: int) -> None:
        """Ask the cloud, with every token it is not known to hold (and at least one)."""
        self._asks += 1
        start = min(self._held, len(self.ids) if drafts else len(self.ids) - 1)
        ids = (*self.ids[start:], *drafts)
        tables = b"".join(self._tables) if drafts else b""
        want = min(want, self._left)
        self._ask = Send(self._asks, 1, self._epoch, start, ids, len(drafts), want, tables)
        self.tally.asks += 1
        self.tally.proposed += len(drafts)
        self._overdue = now + self._patience.overdue_s
        self._actions.append(self._ask)

    def _push(self) -> None:
        """Let the cloud have what it does not hold, without waiting. If it is lost, the next ask says so."""
        if self._held < len(self.ids):
            self._asks += 1
            ids = tuple(self.ids[self._held :])
            self._actions.append(Send(self._asks, 1, self._epoch, self._held, ids, 0, 0))
            self._held = len(self.ids)

    # Events ---------------------------------------------------------------------------------------

    def _proposed(self, now: float, event: Proposed) -> None:
        if event.after != self._computing:
            return
        self._computing = -1
        self.tally.compute_s += event.seconds
        alone = not self._reachable and self.way.on_loss == "local"
        moved = event.after != len(self.ids) + len(self._drafts) or self._ask is not None
        if moved or not (alone or self.way.mode.proposes):
            return  # the text went another way meanwhile
        if self.way.mode is Mode.SPEC and not alone:
            self._drafts.append(event.token)
            self._sure.append(event.confidence)
            self._tables.append(event.table)
        elif alone or self.way.trusts(event.exit, event.confidence):
            if alone and self.way.mode is not Mode.LOCAL:
                self._degrade(f"written without the cloud: {self._lost}")
            self._emit(now, (event.token,), ("local" if event.exit < 0 else f"exit:{event.exit}",))
            if self.way.eager and not self.done and self.way.mode is not Mode.LOCAL and self._reachable:
                self._push()
        elif self._reachable:
            self._word_at = now
            self._send(now, (), self.way.burst)

    def _sent(self, now: float, event: Sent) -> None:
        self.tally.bytes_up += event.nbytes
        if self._ask is not None:  # a long prompt is sent in pieces: silence counts from the last one
            self._overdue = max(self._overdue, now + self._patience.overdue_s)

    def _told(self, now: float, event: Told) -> None:
        self.tally.bytes_down += event.nbytes
        if event.ask == 0:
            self._word_at = now  # a piece of a prompt arrived
        ask = self._ask
        if ask is None or event.ask != ask.ask:
            return  # a late word on what is settled
        self._word_at = now
        self.tally.cloud_s += event.compute_s
        self._overdue = now + self._patience.overdue_s
        right = ask.ids[len(ask.ids) - ask.drafts :][: event.accepted] if len(self._drafts) else ()
        if event.start != len(self.ids) + len(right):
            return  # a repeated attempt's, of tokens that are here already
        judged, self._drafts, self._sure, self._tables = bool(self._drafts), [], [], []
        self.tally.accepted += len(right)
        self.tally.rejected += judged and len(right) < ask.drafts
        self.tally.cloud_tokens += len(event.tokens)
        sources = ("draft",) * len(right) + ("cloud",) * len(event.tokens)
        self._emit(now, (*right, *event.tokens), sources)
        self._needs = 0
        self._held = len(self.ids) - (0 if self.way.keeps_told or not event.tokens else 1)
        if event.last:
            self._settled()

    def _needed(self, now: float, event: Needed) -> None:
        if self._ask is None or event.ask != self._ask.ask:
            return
        self._word_at = now
        self._held = max(0, min(event.held, len(self.ids)))
        drafts, want = self._ask.drafts, self._ask.want
        self._needs += 1
        if self._needs > self._patience.attempts:
            self._give_up(now, "the cloud keeps losing the context", self._patience.retry_s)
            return
        self._settled()
        self.tally.asks -= 1
        self.tally.proposed -= drafts
        self._send(now, tuple(self._drafts), want)

    def _denied(self, now: float, event: Denied) -> None:
        if self._ask is None or event.ask != self._ask.ask:
            return
        why = "it is busy" if event.error is None else str(event.error)
        if event.error is not None and not isinstance(event.error, CloudFailed | CloudUnavailable):
            self._fail(now, event.error)
            return
        self._give_up(now, f"the cloud gave no answer: {why}", max(event.retry_after_s, 0.01))

    def _link(self, now: float, event: Link) -> None:
        self._up = event.up
        if event.up:
            self._retry_at = math.inf
            self._word_at = now
            if self._ask is not None:
                self._again(now)
        else:
            self._lost = event.reason or "the link was lost"
            if self.way.on_loss == "local":
                self._withdraw()

    # The cloud's silence --------------------------------------------------------------------------

    def _due(self, now: float) -> None:
        if now >= self._limit:
            self._fail(now, DeadlineExceeded(f"deadline of {self._wish.deadline_s:.3f} s: {self._state()}"))
            return
        if self._waits and (self._ask is not None or not self._reachable):
            longest = self._patience.longest_wait_s
            if now >= self._word_at + longest:
                why = self._lost or "it did not answer"
                self._fail(
                    now, CloudUnavailable(f"nothing was heard from the cloud for {longest:g} s: {why}")
                )
                return
        if now >= self._retry_at:
            self._retry_at = math.inf
        if self._ask is not None and self._up and now >= self._overdue:
            if self._ask.attempt >= self._patience.attempts:
                self._give_up(now, "the cloud did not answer in time", self._patience.retry_s)
            else:
                self._again(now)

    def _again(self, now: float) -> None:
        """Send the ask under way once more, from where the text now stands."""
        assert self._ask is not None
        old = self._ask
        streamed = len(self.ids) - (old.start + len(old.ids) - old.drafts)
        start = old.start if streamed <= 0 else len(self.ids) - 1
        ids = old.ids if streamed <= 0 else (self.ids[-1],)
        want = old.want - max(0, streamed)
        drafts, tables = (old.drafts, old.tables) if streamed <= 0 else (0, b"")
        want = max(want, 1)
        self._ask = Send(old.ask, old.attempt + 1, self._epoch, start, tuple(ids), drafts, want, tables)
        self._overdue = now + self._patience.overdue_s
        self._actions.append(self._ask)

    def _give_up(self, now: float, why: str, retry_s: float) -> None:
        """The cloud is out of reach for now."""
        self._lost = why
        self._retry_at = now + retry_s
        self._withdraw()

    def _withdraw(self) -> None:
        """Forget the ask under way; what the cloud holds is no longer known to be what is here."""
        if self._ask is not None:
            self._epoch += 1
            self._held = min(self._held, len(self.ids))
            self._settled()

    def _settled(self) -> None:
        self._ask = None
        self._overdue = math.inf

    def _commit_drafts(self, now: float) -> None:
        """Without the cloud the device's drafts are its tokens."""
        drafts, self._drafts, self._sure, self._tables = tuple(self._drafts), [], [], []
        if drafts:
            self._degrade(f"written without the cloud: {self._lost}")
            self._emit(now, drafts, ("local",) * len(drafts))

    def _degrade(self, why: str) -> None:
        self.tally.degraded = True
        self.tally.reason = self.tally.reason or why

    # Ends -----------------------------------------------------------------------------------------

    def _emit(self, now: float, tokens: Sequence[int], sources: Sequence[str]) -> None:
        """Give tokens, up to the first that ends the text."""
        if self.done or not tokens:
            return
        ends = next((i for i, token in enumerate(tokens) if token in self._wish.stops), None)
        count = min(len(tokens), self._left, len(tokens) if ends is None else ends + 1)
        kept = tuple(tokens[:count])
        if math.isnan(self.tally.first_token_s):
            self.tally.first_token_s = now - self._began
        self.ids.extend(kept)
        self.tally.sources.extend(sources[:count])
        self._actions.append(Emit(kept, tuple(sources[:count])))
        if ends is not None and count == ends + 1:
            self._finish(now, "stop")
        elif self._left < 1:
            self._finish(now, "length")

    def _finish(self, now: float, reason: str) -> None:
        self.done = True
        self.tally.ended_s = now - self._began
        self._actions.append(Finish(reason))

    def _fail(self, now: float, error: RequestError | LinkError) -> None:
        self.done = True
        self.tally.ended_s = now - self._began
        self.tally.degraded, self.tally.reason = True, str(error)
        self._actions.append(Fail(error))

    def _state(self) -> str:
        if self._ask is not None:
            return f"waited for the cloud ({self._lost or 'no answer yet'})"
        return "the device was computing" if self._computing >= 0 else self._lost or "nothing was under way"

    def _leave(self, now: float) -> list[Action]:
        """What is to be done, and when to be woken."""
        if self.done:
            self.wake_at = math.inf
            return self._actions
        wait = math.inf
        if self._waits and (self._ask is not None or not self._reachable):
            wait = self._word_at + self._patience.longest_wait_s
        overdue = self._overdue if self._up else math.inf
        self.wake_at = min(self._limit, wait, overdue, self._retry_at)
        return self._actions
