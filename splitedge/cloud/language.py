"""Continuous batching of a language model over many contexts: a state machine without clock or thread.

Prompts, drafts to be verified and texts that are streamed go through the model in one pass, each context
with as many tokens as it has waiting; after each pass whoever waits longest for the fewest tokens comes
first. What is told of a context depends on its own rows only.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from splitedge.cloud.contexts import Context, ContextStore, Key
from splitedge.errors import WireError
from splitedge.events import Refusal
from splitedge.llm.cloud_model import CloudLanguageModel, Logits, PassRow
from splitedge.llm.draft_tables import DraftTable, read_tables
from splitedge.llm.hashing import id_bytes
from splitedge.llm.logprobs import packed
from splitedge.llm.rejection import verify
from splitedge.llm.sampling import Sampling, choose
from splitedge.wire import Ask

#: Most rows of one context in a pass: a long prompt lets others through in between.
CHUNK = 256
#: Rows that nobody waits for yet are worth a pass of their own from this number on. Fewer cost next to
#: nothing in the pass of whoever asks for them later, and a pass of their own would hold up others.
LEAST_AHEAD = 16


@dataclass(eq=False, slots=True)
class Job:
    """Somebody waits for tokens of a context.

    Attributes:
        ask: that wants them.
        context: of it.
        drafts: rows at the context's end that are drafts.
        tables: laws that those were drawn from, where they are judged by rejection; else empty.
        left: tokens still wanted.
        since_ns: when it came, or was last told something.
        waited_ns: of that, before a pass took it.
    """

    ask: Ask
    context: Context
    sampling: Sampling
    stops: frozenset[int]
    drafts: int
    left: int
    since_ns: int
    waited_ns: int = 0
    tables: tuple[DraftTable, ...] = ()


@dataclass(frozen=True, slots=True)
class Word:
    """What is to be told of an ask."""

    key: Key
    ask: Ask
    start: int
    accepted: int
    tokens: tuple[int, ...]
    last: bool
    queue_ns: int = 0
    compute_ns: int = 0
    logprobs: bytes = b""


@dataclass(frozen=True, slots=True)
class No:
    """What is refused."""

    key: Key
    ask: Ask
    kind: Refusal
    message: str
    retry_after_ms: int = 0


@dataclass(frozen=True, slots=True)
class Pass:
    """Contexts that run through the model together; hand it to `finish` with the logits."""

    contexts: tuple[Context, ...]
    rows: tuple[PassRow, ...]
    began_ns: int


@dataclass(slots=True)
class _Later:
    """Asks that came while a pass over their context ran."""

    asks: list[tuple[Key, Ask]] = field(default_factory=list)


class LanguageBatcher:
    """Of one lane.

    Args:
        model: computes.
        store: of contexts, shared by all lanes.
        say: called with each `Word` and `No`; must not raise.
        max_contexts: in one pass.
        max_tokens: in one pass, over all contexts.
        retry_after_ms: what is said where there is no room.

    Attributes:
        passes, seconds: run so far, and how long they took. computed: tokens through the model. told:
            tokens chosen.
    """

    def __init__(
        self,
        model: CloudLanguageModel,
        store: ContextStore,
        say: Callable[[Word | No], None],
        *,
        max_contexts: int = 64,
        max_tokens: int = 1024,
        retry_after_ms: int = 200,
    ) -> None:
        self.model, self.store = model, store
        self._say = say
        self._max_contexts, self._max_tokens, self._retry = max_contexts, max_tokens, retry_after_ms
        self._token_bytes = model.token_bytes()
        self._jobs: dict[Key, Job] = {}
        self._later: dict[Key, _Later] = {}
        self._served: defaultdict[str, int] = defaultdict(int)
        self._prefill: dict[Key, Context] = {}
        self._ended: set[Key] = set()  # while a pass over them runs
        self.running: Pass | None = None
        self.passes = self.computed = self.told = 0
        self.seconds = 0.0

    @property
    def waiting(self) -> int:
        """Asks that wait for tokens."""
        return len(self._jobs)

    def take(self, key: Key, ask: Ask, now_ns: int) -> None:
        """An ask came."""
        context = self.store.find(key)
        if context is not None and context.busy:
            self._later.setdefault(key, _Later()).asks.append((key, ask))
            return
        limit = self.model.anatomy.context
        verdict = self.store.take(key, ask, self.model.width, self._token_bytes, limit, now_ns / 1e9)
        if verdict.stale:
            return
        if verdict.wrong:
            self._say(No(key, ask, Refusal.BAD, verdict.wrong))
        elif verdict.need >= 0:
            self._say(No(key, ask, Refusal.NEED, str(verdict.need)))
        elif verdict.busy:
            self._say(No(key, ask, Refusal.BUSY, "no room for this context's keys and values", self._retry))
        elif verdict.context is not None:
            self._accept(verdict.context, ask, now_ns)

    def _accept(self, context: Context, ask: Ask, now_ns: int) -> None:
        key = context.key
        self._jobs.pop(key, None)  # of an older ask, whatever becomes of this one
        ids = self._ids_of(ask)
        if ids is not None:
            if min(ids) < 0 or max(ids) >= self.model.anatomy.vocabulary:
                context.crop(ask.start)
                self.store.settle(context)
                self._say(No(key, ask, Refusal.BAD, "an id that is not in the vocabulary"))
                return
            if len(context.ids) == ask.start:
                context.ids.extend(ids)
        if ask.drafts and ids is None:
            self._say(No(key, ask, Refusal.BAD, "drafts of hidden states need their ids"))
            return
        seed = Sampling(ask.temperature / 1e6, ask.top_k, max(ask.top_p, 1) / 1e6, ask.seed)
        tables: tuple[DraftTable, ...] = ()
        if len(ask.tables):
            try:
                tables = self._tables_of(ask, ids, seed)
            except WireError as error:
                context.crop(ask.start)
                self.store.settle(context)
                self._say(No(key, ask, Refusal.BAD, str(error)))
                return
        if not ask.want:
            self._prefill[key] = context
            context.wanted = False
            self._say(Word(key, ask, context.held, 0, (), True))
            return
        context.wanted = True
        stops = frozenset(ask.stops)
        self._jobs[key] = Job(ask, context, seed, stops, ask.drafts, ask.want, now_ns, tables=tables)

    def _tables_of(self, ask: Ask, ids: list[int] | None, sampling: Sampling) -> tuple[DraftTable, ...]:
        if ids is None or sampling.greedy:
            raise WireError("drafts are judged by tables only where they are ids that were sampled")
        return read_tables(ask.tables, ids[len(ids) - ask.drafts :], self.model.anatomy.vocabulary)

    def _ids_of(self, ask: Ask) -> list[int] | None:
        data = bytes(ask.payload) if self.model.sees_ids else bytes(ask.ids)
        return np.frombuffer(data, "<i4").tolist() if data else None

    def cancel(self, key: Key) -> None:
        """A context's text has ended: what is kept of it is let go, after the pass that runs over it."""
        self._jobs.pop(key, None)
        self._later.pop(key, None)
        self._prefill.pop(key, None)
        context = self.store.find(key)
        if context is None:
            return
        if context.busy:
            self._ended.add(key)
        else:
            self.store.release(context)

    # Passes ---------------------------------------------------------------------------------------

    def next_pass(self, now_ns: int) -> Pass | None:
        """Contexts to compute next; None where one runs or nothing waits."""
        if self.running is not None:
            return None
        rows: list[PassRow] = []
        contexts: list[Context] = []
        room = self._max_tokens
        for context in self._turn():
            if len(contexts) >= self._max_contexts or room < 1:
                break
            row = self._row(context, room, now_ns)
            if row is not None:
                rows.append(row)
                contexts.append(context)
                room -= row.count
        if not rows:
            return None
        for context in contexts:
            context.busy = True
        self.running = Pass(tuple(contexts), tuple(rows), now_ns)
        return self.running

    def _turn(self) -> list[Context]:
        """Contexts that want to compute: of the user served least, the oldest first; prompts nobody waits
        for behind them, short ones only beside others.
        """
        jobs = sorted(self._jobs.values(), key=lambda j: (self._served[j.context.key.user], j.since_ns))
        # A context that was demoted or dropped since has no room reserved: it waits until it is asked for.
        kept = {key: c for key, c in self._prefill.items() if c.reserved and self.store.find(key) is c}
        self._prefill = kept
        least = 1 if jobs else LEAST_AHEAD
        idle = [c for key, c in kept.items() if key not in self._jobs and c.held - c.computed >= least]
        return [job.context for job in jobs] + idle

    def _row(self, context: Context, room: int, now_ns: int) -> PassRow | None:
        job = self._jobs.get(context.key)
        drafts = job.drafts if job is not None else 0
        past = context.computed
        if job is not None:
            past = min(past, context.held - drafts - 1)  # the last known token's logits are wanted too
            context.cache.crop(past)
            context.computed = past
        waiting = context.held - past
        count = min(waiting, max(CHUNK, drafts + 1))
        if count < waiting and waiting - count < drafts + 1:
            count = waiting - drafts - 1  # the last pass needs all drafts and the token before them
        if count > room and room < self._max_tokens:
            return None
        keep = drafts + 1 if job is not None and count == waiting else 0
        if job is not None and job.waited_ns == 0:
            job.waited_ns = max(1, now_ns - job.since_ns)
        width = context.width
        rows = bytes(context.rows[past * width : (past + count) * width])
        return PassRow(context.cache, past, rows, count, keep)

    def finish(self, done: Pass, logits: Sequence[Logits] | Exception, now_ns: int) -> None:
        """Say what came of a pass.

        Args:
            done: from `next_pass`.
            logits: one array for each of its rows; the error where it failed.
            now_ns: the clock's.
        """
        assert done is self.running
        self.running = None
        self.passes += 1
        self.computed += sum(row.count for row in done.rows)
        self.seconds += (now_ns - done.began_ns) / 1e9
        for i, (context, row) in enumerate(zip(done.contexts, done.rows, strict=True)):
            context.busy = False
            if context.key in self._ended:
                self._ended.discard(context.key)
                self.store.release(context)
                continue
            job = self._jobs.get(context.key)
            if isinstance(logits, Exception):
                context.cache.clear()
                context.computed = 0
                if job is not None:
                    del self._jobs[context.key]
                    self.store.settle(context)
                    self._say(No(context.key, job.ask, Refusal.FAILED, type(logits).__name__))
                self._prefill.pop(context.key, None)
                continue
            context.computed = row.past + row.count
            self._served[context.key.user] += row.count
            if job is not None and row.keep:
                self._told(job, logits[i], done, now_ns)
            if context.computed >= context.held:
                self._prefill.pop(context.key, None)
            if context.key not in self._jobs:
                self.store.settle(context)
        self._catch_up(now_ns)

    def _catch_up(self, now_ns: int) -> None:
        for key in [key for key, later in self._later.items() if later.asks]:
            context = self.store.find(key)
            if context is None or not context.busy:
                for _, ask in self._later.pop(key).asks:
                    self.take(key, ask, now_ns)
        if len(self._served) > 4096:
            self._served.clear()

    def _told(self, job: Job, logits: Logits, done: Pass, now_ns: int) -> None:
        """Verify the drafts, choose the next token, and say so."""
        context, ask = job.context, job.ask
        base = context.held - job.drafts  # number of the first draft
        if job.tables:
            right, token = verify(logits, context.ids[base:], job.tables, base, job.sampling)
        else:
            right, token = _agreed(logits, context.ids[base:], base, job.sampling)
        thought = b""
        if ask.logprobs:
            chosen = [*context.ids[base : base + right], token]
            thought = packed(logits[: right + 1], chosen, ask.logprobs - 1)
        context.crop(base + right)
        ended = any(t in job.stops for t in context.ids[base:]) or token in job.stops
        job.left -= 1
        job.drafts, job.tables = 0, ()
        self.told += 1
        last = ended or job.left < 1 or not self.model.sees_ids
        word = Word(
            context.key, ask, base + right, right, (token,), last, job.waited_ns, now_ns - done.began_ns,
            thought,
        )  # fmt: skip
        job.since_ns, job.waited_ns = now_ns, 0
        if self.model.sees_ids:
            context.append(id_bytes([token]))
            context.ids.append(token)
        if last:
            del self._jobs[context.key]
        self._say(word)


def _agreed(logits: Logits, drafts: Sequence[int], first: int, sampling: Sampling) -> tuple[int, int]:
    """How many drafts are what the model itself draws at their positions, and its draw behind them."""
    for i, draft in enumerate(drafts):
        token = choose(logits[i], first + i, sampling)
        if token != draft:
            return i, token
    return len(drafts), choose(logits[len(drafts)], first + len(drafts), sampling)
