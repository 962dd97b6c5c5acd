"""Language models at a cloud's core: asks in, tells out, contexts of all of them in one budget. No I/O."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import numpy as np

from splitedge.cloud.contexts import ContextStore, Key
from splitedge.cloud.language import LanguageBatcher, No, Pass, Word
from splitedge.cloud.settings import LanguageLimits
from splitedge.llm.cloud_model import CloudLanguageModel, Logits
from splitedge.llm.hashing import id_bytes
from splitedge.wire import MAX_TABLES, Ask, Lane, Message, Refuse, Tell


class LanguageHalf(Protocol):
    """The cloud's half of a language deployment."""

    @property
    def digest(self) -> str:
        """SHA-256 of the bundle."""
        ...

    @property
    def models(self) -> dict[Lane, CloudLanguageModel]:
        """What computes each lane: ids, or hidden states at a cut by a codec."""
        ...


@dataclass(slots=True)
class _Served:
    lane: Lane
    batcher: LanguageBatcher


@dataclass(slots=True)
class _Where:
    """The connection a context's edge speaks on, and when its last ask came."""

    peer: bytes
    received_ns: int


class LanguageDesk:
    """Takes asks of sessions that the core knows, and says what came of them.

    Args:
        halves: what is served.
        limits: of memory and passes.
        post: called with a connection and a message for it; must not raise.
        clock_ns: monotonic nanoseconds.
    """

    def __init__(
        self,
        halves: Sequence[LanguageHalf],
        limits: LanguageLimits,
        post: Callable[[bytes, Message], None],
        clock_ns: Callable[[], int],
    ) -> None:
        self.store = ContextStore(limits.budget_bytes, limits.lease_s, limits.contexts, limits.per_user)
        self._post, self._clock = post, clock_ns
        self._where: dict[Key, _Where] = {}
        self.served: list[_Served] = []
        for half in halves:
            for lane, model in half.models.items():
                number = len(self.served)
                batcher = LanguageBatcher(
                    model,
                    self.store,
                    partial(self._say, number),
                    max_contexts=limits.pass_contexts,
                    max_tokens=limits.pass_tokens,
                )
                self.served.append(_Served(lane, batcher))

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """Lanes in the order of their numbers here."""
        return tuple(served.lane for served in self.served)

    @property
    def largest(self) -> int:
        """Bytes of the largest ask: a whole context at once with its ids, and tables of all drafts."""
        models = [served.batcher.model for served in self.served]
        return max(((model.width + 4) * model.anatomy.context + MAX_TABLES for model in models), default=0)

    @property
    def waiting(self) -> int:
        """Asks that wait for tokens."""
        return sum(served.batcher.waiting for served in self.served)

    def ask(self, peer: bytes, user: str, session: bytes, number: int, ask: Ask) -> None:
        """Take an ask on the lane `number`."""
        now = self._clock()
        key = Key(user, session, ask.context, number)
        self._where[key] = _Where(peer, now)
        self.served[number].batcher.take(key, ask, now)

    def model(self, number: int) -> CloudLanguageModel:
        """What computes a lane."""
        return self.served[number].batcher.model

    def next_pass(self, number: int) -> Pass | None:
        """The next pass of a lane; hand it to `finish`. None where one runs or nothing waits."""
        return self.served[number].batcher.next_pass(self._clock())

    def finish(self, number: int, done: Pass, logits: Sequence[Logits] | Exception) -> None:
        """Say what came of a pass."""
        self.served[number].batcher.finish(done, logits, self._clock())

    def cancel(self, user: str, session: bytes, context: int) -> None:
        """Nobody waits for a context's tokens any more."""
        for number, served in enumerate(self.served):
            served.batcher.cancel(Key(user, session, context, number))

    def sweep(self) -> None:
        """Drop contexts whose lease is over; call it about once a second."""
        self.store.expire(self._clock() / 1e9)
        for key in [key for key in self._where if self.store.find(key) is None]:
            del self._where[key]

    def forget_user(self, user: str) -> None:
        """Drop all contexts of a key that is trusted no more."""
        for served in self.served:
            for key in [key for key in self._where if key.user == user]:
                served.batcher.cancel(key)
        self.store.close(lambda key: key.user == user)

    def _say(self, number: int, word: Word | No) -> None:
        where = self._where.get(word.key)
        if where is None:
            return
        ask = word.ask
        if isinstance(word, No):
            refuse = Refuse(ask.request, ask.attempt, word.kind, word.message[:200], word.retry_after_ms)
            self._post(where.peer, refuse)
            return
        now = self._clock()
        self._post(
            where.peer,
            Tell(
                ask.request, ask.attempt, where.received_ns, now, ask.context, ask.epoch, word.start,
                word.accepted, int(word.last), word.queue_ns, word.compute_ns, id_bytes(word.tokens),
                word.logprobs,
            ),
        )  # fmt: skip


def ids_of(tell: Tell) -> tuple[int, ...]:
    """Ids that a tell carries."""
    return tuple(np.frombuffer(bytes(tell.ids), "<i4").tolist())
