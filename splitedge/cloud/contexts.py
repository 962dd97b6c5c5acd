"""What a cloud keeps of language models' contexts: a copy that an edge can make anew, within a byte budget.

A context is rows: what an edge sent for each token (an id, or a hidden state as its codec wrote it), and
keys and values computed from them. Where memory is short the keys and values of contexts that nobody
waits for go first; rows are kept while there is room, and what is gone is asked for again ("need"). So the
budget costs time and never a text.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

from splitedge.llm.cache import KVCache, room_for
from splitedge.llm.hashing import EMPTY, rolled
from splitedge.wire import Ask

#: Bytes of hash and id of a token as Python keeps them.
_OF_A_ROW = 80
#: Bytes of memory for each byte of drafts' tables: 6 bytes of an entry become 16, and the message is kept.
_OF_TABLES = 4


class Key(NamedTuple):
    """Whose context it is: nobody reaches another's by guessing a number."""

    user: str
    session: bytes
    context: int
    lane: int


@dataclass(eq=False, slots=True)
class Context:
    """One text under way.

    Attributes:
        key: whose.
        width: bytes of a row.
        rows: payload of all tokens held, `width` bytes each.
        hashes: rolling hash behind each number of tokens; `hashes[n]` is that of the first n.
        ids: of the tokens, where the cloud knows them; else empty.
        epoch: of the last ask taken.
        cache: keys and values of the first `computed` tokens.
        computed: tokens whose keys and values are there.
        busy: whether a pass over it runs now.
        wanted: whether somebody waits for its tokens.
        used_s, lease_s: second of the last ask, and until when it is kept without another.
    """

    key: Key
    width: int
    rows: bytearray = field(default_factory=bytearray)
    hashes: list[int] = field(default_factory=lambda: [EMPTY])
    ids: list[int] = field(default_factory=list)
    epoch: int = 0
    cache: KVCache = field(default_factory=KVCache)
    computed: int = 0
    reserved: int = 0
    busy: bool = False
    wanted: bool = False
    used_s: float = 0.0
    lease_s: float = math.inf

    @property
    def held(self) -> int:
        """Tokens whose rows are here."""
        return len(self.hashes) - 1

    @property
    def nbytes(self) -> int:
        """Bytes of memory, buffers as they are."""
        return self.cache.nbytes + len(self.rows) + _OF_A_ROW * len(self.hashes)

    def append(self, payload: bytes | memoryview) -> None:
        """Take rows, `width` bytes each."""
        data = bytes(payload)
        for at in range(0, len(data), self.width):
            self.hashes.append(rolled(self.hashes[-1], data[at : at + self.width]))
        self.rows += data

    def crop(self, held: int) -> None:
        """Forget all tokens behind the first `held`."""
        del self.hashes[held + 1 :]
        del self.rows[held * self.width :]
        del self.ids[held:]
        if self.computed > held:
            self.cache.crop(held)
            self.computed = held

    def demote(self) -> int:
        """Drop keys and values, keep the rows; bytes freed."""
        freed = self.cache.nbytes
        self.cache.clear()
        self.computed = 0
        return freed


class Verdict(NamedTuple):
    """What became of an ask.

    Attributes:
        context: that took it; None where none did.
        need: tokens it holds, where the ask began behind them or said other ones; -1 else.
        busy: whether there was no room.
        stale: whether a newer ask of the context came before; nothing is to be said.
        wrong: why the ask makes no sense; empty where it does.
    """

    context: Context | None = None
    need: int = -1
    busy: bool = False
    stale: bool = False
    wrong: str = ""


class ContextStore:
    """All contexts of a cloud.

    Args:
        budget_bytes: of memory for all of them.
        lease_s: seconds that a context is kept without an ask.
        most: contexts kept at most.
        per_user: contexts of one user at most.
    """

    def __init__(
        self, budget_bytes: int, lease_s: float = 600.0, most: int = 4096, per_user: int = 1024
    ) -> None:
        self.budget_bytes, self._lease_s, self._most, self._per_user = budget_bytes, lease_s, most, per_user
        self._contexts: dict[Key, Context] = {}
        self.demoted = self.dropped = 0

    def __len__(self) -> int:
        return len(self._contexts)

    def __iter__(self) -> Iterator[Context]:
        return iter(self._contexts.values())

    @property
    def nbytes(self) -> int:
        """Bytes held, or reserved where more are on their way."""
        return sum(max(context.nbytes, context.reserved) for context in self._contexts.values())

    def find(self, key: Key) -> Context | None:
        """The context of a key."""
        return self._contexts.get(key)

    def take(self, key: Key, ask: Ask, width: int, token_bytes: int, limit: int, now: float) -> Verdict:
        """Bring a context to what an ask says. Not while a pass over it runs.

        Args:
            key: whose.
            ask: as it came.
            width: bytes of a row in its lane.
            token_bytes: of keys and values of one token.
            limit: tokens a context may have.
            now: seconds.
        """
        self.expire(now)
        if ask.payload_bytes != ask.count * width:
            return Verdict(
                wrong=f"{ask.count} tokens take {ask.count * width} bytes, got {ask.payload_bytes}"
            )
        if ask.start + ask.count + ask.want > limit:
            return Verdict(wrong=f"more tokens than the model's context of {limit}")
        context = self._contexts.get(key)
        if context is not None and ask.epoch < context.epoch:
            return Verdict(stale=True)
        held = 0 if context is None else context.held
        if ask.start > held:
            return Verdict(need=held)
        if context is not None and context.hashes[ask.start] != ask.before:
            return Verdict(need=0)
        if context is None and ask.before != EMPTY:
            return Verdict(need=0)
        tokens = ask.start + ask.count + ask.want
        reserved = room_for(tokens) * token_bytes + tokens * (width + _OF_A_ROW)
        reserved += _OF_TABLES * len(ask.tables)
        if not self._room(key, context, reserved, now):
            return Verdict(busy=True)
        if context is None:
            context = self._contexts[key] = Context(key, width)
        context.crop(ask.start)
        context.append(ask.payload)
        context.epoch, context.used_s, context.lease_s = ask.epoch, now, now + self._lease_s
        context.reserved = reserved
        return Verdict(context)

    def _room(self, key: Key, context: Context | None, nbytes: int, now: float) -> bool:
        """Make room for a context of so many bytes, if there can be."""
        if context is None and (
            len(self._contexts) >= self._most
            or sum(1 for other in self._contexts if other.user == key.user) >= self._per_user
        ):
            idle = [c for c in self._contexts.values() if self._spare(c, key)]
            if not idle:
                return False
            self._drop(min(idle, key=lambda c: c.used_s))
        have = 0 if context is None else max(context.nbytes, context.reserved)
        over = self.nbytes - have + nbytes - self.budget_bytes
        if over <= 0:
            return True
        spare = sorted(
            (c for c in self._contexts.values() if c is not context and self._spare(c, key)),
            key=lambda c: -c.nbytes * (now - c.used_s + 1.0),
        )
        if sum(max(c.nbytes, c.reserved) for c in spare) < over:
            return False
        for shed in (self._demote, self._drop):
            for other in spare:
                if over <= 0:
                    return True
                before = max(other.nbytes, other.reserved)
                shed(other)
                over -= before - (max(other.nbytes, other.reserved) if other.key in self._contexts else 0)
        return over <= 0

    def _spare(self, context: Context, key: Key) -> bool:
        return not context.busy and not context.wanted and context.key != key

    def _demote(self, context: Context) -> None:
        if context.demote():
            self.demoted += 1
        context.reserved = 0

    def _drop(self, context: Context) -> None:
        context.demote()
        del self._contexts[context.key]
        self.dropped += 1

    def settle(self, context: Context) -> None:
        """Nobody waits for a context any more: it holds what it holds."""
        context.wanted = False
        context.reserved = 0

    def release(self, context: Context) -> None:
        """Its text has ended: nothing will go on from it."""
        context.demote()
        self._contexts.pop(context.key, None)

    def expire(self, now: float) -> None:
        """Drop contexts whose lease is over."""
        over = [c for c in self._contexts.values() if c.lease_s <= now and not c.busy and not c.wanted]
        for context in over:
            self._drop(context)

    def close(self, mine: Callable[[Key], bool]) -> None:
        """Drop all contexts of which `mine` says so (a session that ended)."""
        for context in [c for c in self._contexts.values() if mine(c.key) and not c.busy]:
            self._drop(context)
