"""Who said hello, on which lanes, and which request ids each has used. Bounded in every direction."""

from __future__ import annotations

from collections import Counter, OrderedDict
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from splitedge.cloud.batcher import Entry
from splitedge.events import Refusal
from splitedge.wire import Reply

W = TypeVar("W", bound=Entry)


@dataclass(slots=True)
class Done:
    """A request that was executed: its reply while that is kept, or why it failed."""

    reply: Reply | None = None
    kept_bytes: int = 0
    until_ns: int = 0
    failure: tuple[Refusal, str] | None = None


@dataclass(slots=True, eq=False)
class Session(Generic[W]):
    """One run of one edge.

    Attributes:
        user: public key of the edge as the authenticator gave it; empty without keys.
        id: 8 bytes the edge drew for this run.
        peer: the connection it spoke on last.
        lanes: index into the core's table of lanes by the session's own number; -1 where refused.
        seen: request ids waiting, running or done, oldest first.
        floor: the highest id forgotten; ids of a session increase, so what is not above it was seen.
        active: requests waiting or running.
    """

    user: str
    id: bytes
    peer: bytes
    used_ns: int
    lanes: tuple[int, ...] = ()
    seen: OrderedDict[int, W | Done] = field(default_factory=OrderedDict)
    floor: int = -1
    active: int = 0

    @property
    def account(self) -> str | bytes:
        """Whose share of the queue it uses: its key's, or its own where there are no keys."""
        return self.user or self.id


class Sessions(Generic[W]):
    """The sessions of a server.

    Args:
        limit: sessions remembered.
        idle_ns: an idle session is forgotten after this long.
        seen: request ids remembered per session.
        kept_bytes: bytes of replies kept, all sessions together.
        kept_ns: how long a reply is kept.
    """

    def __init__(self, limit: int, idle_ns: int, seen: int, kept_bytes: int, kept_ns: int) -> None:
        self._limit = limit
        self._idle = idle_ns
        self._seen = seen
        self._kept_limit = kept_bytes
        self._kept_ns = kept_ns
        self._by_id: dict[tuple[str, bytes], Session[W]] = {}
        self._by_peer: dict[bytes, Session[W]] = {}
        self._per_user: Counter[str] = Counter()
        self._kept: OrderedDict[int, Done] = OrderedDict()  # by identity, oldest first
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._by_id)

    @property
    def kept_bytes(self) -> int:
        """Bytes of replies kept."""
        return self._kept_bytes

    def users(self) -> set[str]:
        """Keys with a session."""
        return set(self._per_user)

    def of(self, peer: bytes, user: str) -> Session[W] | None:
        """The session that said hello on this connection, with this key."""
        session = self._by_peer.get(peer)
        return session if session is not None and session.user == user else None

    def hello(self, peer: bytes, user: str, id_: bytes, now_ns: int) -> Session[W] | None:
        """Begin a session or continue it on a new connection; None where there is no room."""
        session = self._by_id.get((user, id_))
        if session is None:
            if len(self._by_id) >= self._limit and not self._make_room():
                return None
            session = Session(user, id_, peer, now_ns)
            self._by_id[user, id_] = session
            self._per_user[user] += 1
        other = self._by_peer.get(peer)
        if other is not None and other is not session:
            other.peer = b""
        if session.peer != peer:
            self._by_peer.pop(session.peer, None)
        session.peer, session.used_ns = peer, now_ns
        self._by_peer[peer] = session
        return session

    def done(self, session: Session[W], request: int, done: Done, size: int, now_ns: int) -> None:
        """Remember that a request was executed, and keep its reply while there is room."""
        session.seen[request] = done
        if done.reply is not None:
            done.kept_bytes, done.until_ns = size, now_ns + self._kept_ns
            self._kept[id(done)] = done
            self._kept_bytes += size
        while self._kept and (
            self._kept_bytes > self._kept_limit or next(iter(self._kept.values())).until_ns <= now_ns
        ):
            self._drop_reply(next(iter(self._kept.values())))
        while len(session.seen) > self._seen and self._forget_oldest(session):
            pass

    def sweep(self, now_ns: int) -> None:
        """Forget idle sessions and old replies."""
        while self._kept and next(iter(self._kept.values())).until_ns <= now_ns:
            self._drop_reply(next(iter(self._kept.values())))
        for session in [s for s in self._by_id.values() if not s.active and now_ns - s.used_ns > self._idle]:
            self._forget(session)

    def forget_user(self, user: str) -> list[Session[W]]:
        """Forget every session of a key; returns them."""
        gone = [session for session in self._by_id.values() if session.user == user]
        for session in gone:
            self._forget(session)
        return gone

    def _make_room(self) -> bool:
        """Forget the session idle longest, of the key that has the most."""
        greedy, _ = self._per_user.most_common(1)[0]
        idle = [s for s in self._by_id.values() if s.user == greedy and not s.active]
        if not idle:
            return False
        self._forget(min(idle, key=lambda s: s.used_ns))
        return True

    def _forget(self, session: Session[W]) -> None:
        del self._by_id[session.user, session.id]
        if self._by_peer.get(session.peer) is session:
            del self._by_peer[session.peer]
        self._per_user[session.user] -= 1
        if not self._per_user[session.user]:
            del self._per_user[session.user]
        for state in session.seen.values():
            if isinstance(state, Done):
                self._drop_reply(state)

    def _forget_oldest(self, session: Session[W]) -> bool:
        for request, state in session.seen.items():
            if isinstance(state, Done):
                self._drop_reply(state)
                del session.seen[request]
                session.floor = max(session.floor, request)
                return True
        return False

    def _drop_reply(self, done: Done) -> None:
        if self._kept.pop(id(done), None) is not None:
            self._kept_bytes -= done.kept_bytes
            done.reply = None
