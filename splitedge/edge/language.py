"""The asyncio shell around generations: feeds each its events with the time, carries out its actions."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import math
import secrets
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field, replace

from splitedge.edge.asking import LanguageRemote, Question, Remote, Said
from splitedge.edge.link import Link as Wire
from splitedge.edge.settings import EdgeSettings
from splitedge.errors import EdgeFailed, LinkDown, LinkError, Rejected, RequestError, WireError
from splitedge.llm.cloud_model import StateCodec
from splitedge.llm.draft_tables import table_of
from splitedge.llm.generation import Generation, Patience, Tally, Wish
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
    Proposed,
    Send,
    Sent,
    Tick,
    Told,
)
from splitedge.llm.hashing import EMPTY, id_bytes, rolled
from splitedge.llm.logprobs import LogProbs
from splitedge.llm.measured import StepSeconds
from splitedge.llm.modes import Mode, Pace, Way
from splitedge.llm.sampling import Sampling, choose
from splitedge.llm.token_model import Step, TokenModel, common
from splitedge.wire import Lane
from splitedge.worker import Worker

log = logging.getLogger(__name__)

#: Tokens whose hidden states are computed, and sent, at a time.
PIECE = 64


@dataclass(frozen=True)
class EdgeLanguage:
    """The edge's half of a language deployment.

    Attributes:
        draft: makes a token model of its own context that drafts or writes alone; None where there is none.
        exits: likewise, of the head with its exits.
        ids_lane: where ids are sent; None where the cloud takes none.
        states_lane: where hidden states of `exits`' head are sent; None where none are.
        codec: that writes those.
        vocabulary, context: of the whole model.
        text_only: the cloud takes and gives text (a black box): it verifies no drafts.
    """

    vocabulary: int
    context: int
    draft: Callable[[], TokenModel] | None = None
    exits: Callable[[], TokenModel] | None = None
    ids_lane: Lane | None = None
    states_lane: Lane | None = None
    codec: StateCodec | None = None
    text_only: bool = False

    @property
    def lanes(self) -> tuple[Lane, ...]:
        """All lanes."""
        return tuple(lane for lane in (self.ids_lane, self.states_lane) if lane is not None)

    @property
    def modes(self) -> tuple[Mode, ...]:
        """Modes that it can write in."""
        found = []
        if self.draft is not None or self.exits is not None:
            found.append(Mode.LOCAL)
        if self.ids_lane is not None:
            found.append(Mode.STREAM)
            if self.draft is not None:
                found += [Mode.ASSIST] if self.text_only else [Mode.SPEC, Mode.ASSIST]
        if self.exits is not None and (self.ids_lane is not None or self.states_lane is not None):
            found.append(Mode.EXIT)
        if self.exits is not None and self.states_lane is not None:
            found.append(Mode.SPLIT)
        return tuple(found)


@dataclass(eq=False)
class Stream:
    """A text under way: iterate over what is emitted; `tally` and `ids` are complete when that ends."""

    generation: Generation
    began: float
    prompt: int
    queue: asyncio.Queue[Emit | Finish | Fail] = field(default_factory=asyncio.Queue)
    reason: str = ""
    error: RequestError | LinkError | None = None
    ended: bool = False
    #: By position and token, where they were wanted; of drafts that were found wrong, too.
    logprobs: dict[tuple[int, int], LogProbs] = field(default_factory=dict)

    @property
    def tally(self) -> Tally:
        """What it took so far."""
        return self.generation.tally

    @property
    def ids(self) -> list[int]:
        """Prompt and text so far."""
        return self.generation.ids

    async def __aiter__(self) -> AsyncIterator[Emit]:
        """Emitted tokens, as they become final.

        Raises:
            RequestError: the text could not be completed; what was emitted stays right.
        """
        while True:
            item = await self.queue.get()
            if isinstance(item, Emit):
                yield item
                continue
            self.queue.put_nowait(item)  # whoever iterates again sees the end at once
            if isinstance(item, Fail):
                raise item.error
            return


@dataclass(eq=False, slots=True)
class _Upload:
    """Hidden states under way: those of `known` from the action's start; the next piece begins `at`."""

    action: Send
    known: list[int]
    at: int


@dataclass(eq=False)
class _Text:
    """One generation at work."""

    number: int
    stream: Stream
    sampling: Sampling
    stops: tuple[int, ...]
    lane: Lane | None
    deadline_at: float
    model: TokenModel | None
    by_states: bool
    hashes: list[int] = field(default_factory=lambda: [EMPTY])
    rows: bytearray = field(default_factory=bytearray)
    hashed: list[int] = field(default_factory=list)
    uploads: deque[_Upload] = field(default_factory=deque)
    uploading: bool = False  # whether a piece is being computed
    timer: asyncio.TimerHandle | None = None
    events: deque[Event] = field(default_factory=deque)
    feeding: bool = False
    computed: int = 0
    said: Said | None = None
    logprobs: int = -1


class LanguageRuntime:
    """Writes texts on an event loop.

    Args:
        language: the edge's half.
        link: to the cloud, not yet started; None where there is none.
        settings: caps of the link.
        clock: seconds; the loop's own in all but tests.
        patience: when the cloud counts as silent.
        remote: makes what stands for the cloud in place of `link`, given the clock and whom to tell when it
            comes into reach or goes.

    Attributes:
        acceptance: of a draft behind right ones, smoothed over about 100 judged drafts.
    """

    def __init__(
        self,
        language: EdgeLanguage,
        link: Wire | None,
        *,
        settings: EdgeSettings | None = None,
        clock: Callable[[], float] = time.monotonic,
        patience: Patience | None = None,
        remote: Callable[[Callable[[], float], Callable[[bool, str], None]], Remote] | None = None,
    ) -> None:
        if link is None and remote is None and Mode.LOCAL not in language.modes:
            raise Rejected("this bundle can write only with a cloud: it has no local model and no exit")
        self.language, self._clock, self._patience = language, clock, patience
        self.remote: Remote | None = None
        if remote is not None:
            self.remote = remote(clock, self._link_changed)
        elif link is not None and language.lanes:
            self.remote = LanguageRemote(
                language.lanes, link, settings or EdgeSettings(), clock, self._link_changed
            )
        self._texts: dict[int, _Text] = {}
        self._numbers = itertools.count(secrets.randbits(40))
        self._worker: Worker | None = None
        self._draft, self._head = StepSeconds(), StepSeconds()
        self.acceptance = 0.7

    async def start(self) -> None:
        """Begin to connect and to take requests."""
        self._loop = asyncio.get_running_loop()
        self._worker = Worker("splitedge-language")
        if self.remote is not None:
            self.remote.start(self._loop)

    async def connected(self, timeout_s: float = 5.0) -> None:
        """Wait for the cloud.

        Raises:
            LinkError: see `LanguageRemote.connected`; LinkDown also where no cloud is configured.
        """
        if self.remote is None:
            raise LinkDown("no cloud is configured")
        await self.remote.connected(timeout_s)

    async def close(self) -> None:
        """Stop at once; texts under way end as `Rejected`."""
        for text in list(self._texts.values()):
            self._end(text, Fail(Rejected("the edge was shut down before the text was complete")))
        if self.remote is not None:
            self.remote.close()
        worker, self._worker = self._worker, None
        if worker is not None:
            await asyncio.to_thread(worker.close, 5.0)

    @property
    def now(self) -> float:
        """Second of the clock that all estimates are of."""
        return self._clock()

    @property
    def draft_s(self) -> float:
        """Seconds of one token by the device's small model, smoothed; NaN before the first."""
        return self._draft.at(self._clock())

    @property
    def head_s(self) -> float:
        """Seconds of one token by the device's head with its exits, smoothed; NaN before the first."""
        return self._head.at(self._clock())

    @property
    def in_flight(self) -> int:
        """Texts under way."""
        return len(self._texts)

    @property
    def up(self) -> bool:
        """Whether the cloud is in reach."""
        return self.remote is not None and self.remote.up

    # Texts ----------------------------------------------------------------------------------------

    def write(
        self,
        wish: Wish,
        way: Way,
        sampling: Sampling | None = None,
        *,
        said: Said | None = None,
        logprobs: int = -1,
    ) -> Stream:
        """Begin a text.

        Args:
            wish: prompt and limits.
            way: the mode.
            sampling: how tokens are drawn; greedy where not given.
            said: the prompt in words, for a cloud with a tokenizer of its own.
            logprobs: keep the logarithms of probabilities of so many tokens at each position (0: of the
                chosen one only), by the model that decided it; -1 for none. A black box gives none.

        Raises:
            Rejected: not started, the mode can not be had, or the prompt does not fit the model.
        """
        if self._worker is None:
            raise Rejected("the edge is not running: call start() first")
        known = self.language
        if way.mode not in known.modes:
            have = ", ".join(known.modes)
            raise Rejected(f"this deployment can not write in the mode '{way.mode}'; it has {have}")
        if not wish.prompt:
            raise Rejected("a language model needs at least one token to go on from")
        if len(wish.prompt) + wish.max_tokens > known.context:
            raise Rejected(
                f"{len(wish.prompt)} tokens of prompt and {wish.max_tokens} to be written exceed the model's "
                f"context of {known.context}"
            )
        if min(wish.prompt) < 0 or max(wish.prompt) >= known.vocabulary:
            raise Rejected(f"the prompt has ids outside the vocabulary of {known.vocabulary}")
        by_states = way.mode is Mode.SPLIT or (way.mode is Mode.EXIT and known.ids_lane is None)
        lane = known.states_lane if by_states else known.ids_lane
        if way.mode is Mode.LOCAL:
            lane = None
        heads = way.mode in (Mode.SPLIT, Mode.EXIT) or known.draft is None
        make = known.exits if heads else known.draft
        now = self._clock()
        up = lane is not None and self.up
        lost = "no cloud is configured" if self.remote is None else self.remote.reason
        sampling = sampling if sampling is not None else Sampling()
        if sampling.greedy and way.rejects:  # the two rules are one then, and no tables need go up
            way = replace(way, rule="coupling")
        generation = Generation(now, wish, way, up=up, lost=lost, patience=self._patience, pace=self._pace)
        text = _Text(
            number=next(self._numbers),
            stream=Stream(generation, now, len(wish.prompt)),
            sampling=sampling,
            stops=tuple(sorted(wish.stops))[:64],
            lane=lane,
            deadline_at=now + wish.deadline_s,
            model=None if make is None else make(),
            by_states=by_states,
            said=said,
            logprobs=logprobs,
        )
        self._texts[text.number] = text
        self._act(text, generation.begin(now))
        return text.stream

    def cancel(self, stream: Stream) -> None:
        """The caller went away."""
        self._tell(stream, Cancelled())

    def finish(self, stream: Stream) -> None:
        """The text is long enough for its caller: end it as complete."""
        self._tell(stream, Enough())

    def _tell(self, stream: Stream, event: Event) -> None:
        for text in list(self._texts.values()):
            if text.stream is stream:
                self._feed(text, event)

    def _pace(self) -> Pace:
        remote = self.remote
        now = self._clock()
        rtt = 0.05 if remote is None else remote.estimator.rtt(now).mean
        decode = 0.0 if remote is None or math.isnan(remote.decode_s) else remote.decode_s
        draft = 0.005 if math.isnan(self.draft_s) else self.draft_s
        return Pace(draft, rtt + decode, self.acceptance)

    # Events ---------------------------------------------------------------------------------------

    def _link_changed(self, up: bool, reason: str) -> None:
        for text in list(self._texts.values()):
            if text.lane is not None:
                self._feed(text, Link(up, reason))

    def _feed(self, text: _Text, event: Event) -> None:
        """Step a generation; events that come up meanwhile wait for their turn."""
        text.events.append(event)
        if text.feeding:
            return
        text.feeding = True
        try:
            while text.events:
                now, event = self._clock(), text.events.popleft()
                try:
                    self._act(text, text.stream.generation.step(now, event))
                except Exception as error:  # a defect of ours: this text must still end
                    log.exception("a generation broke")
                    self._end(text, Fail(EdgeFailed(f"a defect of the edge ended this text ({error})")))
        finally:
            text.feeding = False
        self._schedule(text)

    def _schedule(self, text: _Text) -> None:
        wake = text.stream.generation.wake_at
        if text.timer is not None:
            text.timer.cancel()
            text.timer = None
        if wake < math.inf and not text.stream.ended:
            text.timer = self._loop.call_later(max(0.0, wake - self._clock()), self._feed, text, Tick())

    def _act(self, text: _Text, actions: list[Action]) -> None:
        for action in actions:
            match action:
                case Compute():
                    self._compute(text, action)
                case Send():
                    self._send(text, action)
                case Emit():
                    text.stream.queue.put_nowait(action)
                case Finish() | Fail():
                    self._end(text, action)
        if not text.feeding:
            self._schedule(text)

    def _end(self, text: _Text, last: Finish | Fail) -> None:
        if text.stream.ended:
            return
        text.stream.ended = True
        if isinstance(last, Finish):
            text.stream.reason = last.reason
        else:
            text.stream.error = last.error
            text.stream.generation.done = True
        text.stream.queue.put_nowait(last)
        if text.timer is not None:
            text.timer.cancel()
        tally = text.stream.tally
        judged = tally.accepted + tally.rejected
        if judged:
            self.acceptance += min(1.0, judged / 100) * (tally.accepted / judged - self.acceptance)
        if self.remote is not None and text.lane is not None:
            self.remote.cancel(text.number)
        del self._texts[text.number]

    # The device's model ---------------------------------------------------------------------------

    def _compute(self, text: _Text, action: Compute) -> None:
        model, position = text.model, len(action.ids)
        if model is None or self._worker is None:
            self._soon(text, None, EdgeFailed("there is no model on this device"))
            return

        def job() -> None:
            try:
                start = time.perf_counter()
                step = model.step(action.ids)
                token, table = _drawn(step, position, text.sampling, text.stream.generation.way)
                if text.logprobs >= 0:
                    thought = LogProbs.of(step.logits, token, text.logprobs)
                    text.stream.logprobs.setdefault((position, token), thought)
                seconds = time.perf_counter() - start
            except Exception as error:
                self._back(self._failed, text, error)
                return
            self._back(self._computed, text, position, token, table, step, seconds)

        self._worker.submit(job)

    def _back(self, callback: Callable[..., None], *args: object) -> None:
        with contextlib.suppress(RuntimeError):  # the loop was closed: nobody waits any more
            self._loop.call_soon_threadsafe(callback, *args)

    def _soon(self, text: _Text, event: Event | None, error: RequestError | None = None) -> None:
        if error is not None:
            self._loop.call_soon(self._end, text, Fail(error))
        elif event is not None:
            self._loop.call_soon(self._feed, text, event)

    def _failed(self, text: _Text, error: Exception) -> None:
        if isinstance(error, RequestError):
            self._end(text, Fail(error))
            return
        log.error("the device's language model failed", exc_info=error)
        self._end(text, Fail(EdgeFailed(f"the device's model failed ({type(error).__name__}: {error})")))

    def _computed(
        self, text: _Text, position: int, token: int, table: bytes, step: Step, seconds: float
    ) -> None:
        if text.stream.ended:
            return
        text.computed += 1
        if text.computed > 1:  # the first one read the prompt
            (self._head if step.exit >= 0 else self._draft).observe(self._clock(), seconds)
        self._feed(text, Proposed(position, token, step.confidence, step.exit, seconds, table))

    # The cloud ------------------------------------------------------------------------------------

    def _send(self, text: _Text, action: Send) -> None:
        if not text.by_states:
            ids = id_bytes(action.ids)
            before = self._hash_ids(text, action.start)
            self._ask(text, action, before, ids, b"")
            return
        # What begins no later covers all that an older one still had to say.
        while text.uploads and text.uploads[-1].action.start >= action.start:
            text.uploads.pop()
        known = [*text.stream.ids[: action.start], *action.ids]
        text.uploads.append(_Upload(action, known, action.start))
        if not text.uploading:
            self._upload(text)

    def _upload(self, text: _Text) -> None:
        """Let the next piece of what is to be sent be computed; it is sent while the one behind it is."""
        model, codec, worker = text.model, self.language.codec, self._worker
        if text.stream.ended or not text.uploads:
            return
        if model is None or codec is None or worker is None:
            self._soon(text, None, EdgeFailed("there is no head on this device"))
            return
        upload = text.uploads[0]
        known = upload.known
        stop = len(known) if upload.action.drafts else min(upload.at + PIECE, len(known))
        have = min(common(text.hashed, known), len(text.hashes) - 1)

        def job() -> None:
            try:
                rows = b""
                if have < stop:
                    model.follow(known)  # type: ignore[attr-defined]
                    rows = codec.encode(model.states(have, stop))  # type: ignore[attr-defined]
            except Exception as error:
                self._back(self._failed, text, error)
                return
            self._back(self._encoded, text, upload, stop, have, rows)

        text.uploading = True
        worker.submit(job)

    def _encoded(self, text: _Text, upload: _Upload, stop: int, have: int, rows: bytes) -> None:
        """Hidden states are rows now: keep them, since a cloud that lost them is sent them again."""
        codec, text.uploading = self.language.codec, False
        if text.stream.ended or codec is None:
            return
        if not text.uploads or text.uploads[0] is not upload:
            self._upload(text)  # this one is no longer wanted; its states are kept by the model
            return
        width, action, start = codec.width, upload.action, upload.at
        if rows:
            del text.rows[have * width :]
            del text.hashes[have + 1 :]
            text.rows += rows
            for at in range(0, len(rows), width):
                text.hashes.append(rolled(text.hashes[-1], rows[at : at + width]))
            text.hashed = upload.known[:stop]
        upload.at = stop
        if stop == len(upload.known):
            text.uploads.popleft()
            part = replace(action, start=start, ids=tuple(upload.known[start:]))
        else:  # a piece of its own, whose answer nobody waits for
            part = Send(0, action.attempt, action.epoch, start, tuple(upload.known[start:stop]), 0, 0)
        self._upload(text)
        payload = bytes(text.rows[start * width : stop * width])
        ids = id_bytes(part.ids) if part.drafts else b""
        self._ask(text, part, text.hashes[start], payload, ids)

    def _hash_ids(self, text: _Text, count: int) -> int:
        """Rolling hash of the first ids of a text."""
        ids = text.stream.ids
        kept = common(text.hashed, ids)
        del text.hashes[kept + 1 :]
        for token in ids[kept:]:
            text.hashes.append(rolled(text.hashes[-1], id_bytes([token])))
        text.hashed = list(ids)
        return text.hashes[count]

    def _heard(self, text: _Text, action: Send, event: Event) -> None:
        """The cloud's word on an ask; what it thought of its tokens takes the place of the device's."""
        if isinstance(event, Told) and event.logprobs:
            drafts = action.ids[len(action.ids) - action.drafts :][: event.accepted]
            tokens, first = (*drafts, *event.tokens), event.start - event.accepted
            for i, (token, thought) in enumerate(zip(tokens, event.logprobs, strict=False)):
                text.stream.logprobs[first + i, token] = thought
        self._feed(text, event)

    def _ask(self, text: _Text, action: Send, before: int, payload: bytes, ids: bytes) -> None:
        if self.remote is None or text.lane is None:
            return
        left = text.deadline_at - self._clock()
        question = Question(
            text.number, text.lane, before, payload, ids, text.sampling, text.stops, max(0.0, left),
            text.said, text.stream.prompt, text.logprobs + 1,
        )  # fmt: skip
        try:
            nbytes = self.remote.ask(action, question, lambda event: self._heard(text, action, event))
        except LinkDown:
            if self.up:  # it takes no more for now
                self._soon(text, Denied(action.ask, 0.05))
            return
        except WireError as error:
            self._soon(text, Denied(action.ask, error=Rejected(str(error))))
            return
        self._soon(text, Sent(action.ask, nbytes))


def _drawn(step: Step, position: int, sampling: Sampling, way: Way) -> tuple[int, bytes]:
    """The device's choice, and the law that it was drawn from where the cloud will judge by that."""
    if not way.rejects:
        return choose(step.logits, position, sampling), b""
    table = table_of(step.logits, sampling, way.table)
    return table.draw(sampling.seed, position), table.pack()
