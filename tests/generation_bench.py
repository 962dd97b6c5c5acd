"""A device and a cloud made of functions, a link that a test cuts, and a clock that is a number."""

from __future__ import annotations

import heapq
import itertools
import math
from dataclasses import dataclass, field

from splitedge.llm.generation import Generation, Patience, Wish
from splitedge.llm.happenings import (
    Compute,
    Emit,
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

VOCABULARY = 13
STOP = 0
PROMPT = (3, 1, 4)


def target(ids) -> int:
    """The cloud's model: what it says depends on all ids."""
    value = 7
    for token in ids:
        value = (value * 31 + token + 3) % 1_000_003
    return value % VOCABULARY


def draft(ids) -> int:
    """The device's: right in about three of four."""
    right = target(ids)
    return right if sum(ids[-3:]) % 4 else (right + 1) % VOCABULARY


def alone(prompt, count, stops=()):
    """What the cloud's model writes by itself."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(target(ids))
        if ids[-1] in stops:
            break
    return ids[len(prompt) :]


@dataclass
class Cloud:
    """Holds the ids of one context; forgets them when told to."""

    ids: list[int] = field(default_factory=list)
    keeps_told: bool = True

    def answer(self, send: Send, chunk: int):
        """Words on an ask, in order."""
        if send.start > len(self.ids):
            return [Needed(send.ask, len(self.ids))]
        del self.ids[send.start :]
        self.ids.extend(send.ids)
        base = len(self.ids) - send.drafts
        right = 0
        while right < send.drafts and target(self.ids[: base + right]) == self.ids[base + right]:
            right += 1
        del self.ids[base + right :]
        words, at, kept = [], len(self.ids), list(self.ids)
        told = []
        for _ in range(send.want):
            told.append(target(kept))
            kept.append(told[-1])
            if told[-1] == STOP:
                break
        for i in range(0, max(len(told), 1), chunk):
            part = tuple(told[i : i + chunk])
            last = i + chunk >= len(told)
            words.append(Told(send.ask, at + i, part, right if i == 0 else 0, last, 50))
        if self.keeps_told:
            self.ids = kept
        return words


class Bench:
    """Runs one generation to its end.

    Args:
        cut: numbers of the steps (events given so far) before which the link goes down, each with the seconds
            until it comes back.
        lose: whether what is under way is lost when it does.
        forget: whether the cloud forgets everything then.
    """

    def __init__(
        self, way, *, prompt=(3, 1, 4), count=20, cut=None, lose=True, forget=False, up=True, **more
    ):
        self.rtt, self.chunk = more.pop("rtt", 0.1), more.pop("chunk", 3)
        self.confidence = more.pop("confidence", lambda ids: 0.9 if sum(ids) % 3 else 0.2)
        stops = more.pop("stops", frozenset({STOP}))
        deadline = more.pop("deadline_s", math.inf)
        wish = Wish(tuple(prompt), count, stops, deadline)
        self.now = 0.0
        self.cloud = Cloud(keeps_told=way.keeps_told)
        self.generation = Generation(0.0, wish, way, up=up, patience=Patience(1.0, 3, 0.5, 30.0), **more)
        self.cut, self.lose, self.forget = dict(cut or {}), lose, forget
        self.up, self.steps = up, 0
        self.text, self.sources, self.ends = [], [], []
        self.sends = []
        self._queue, self._order, self._travelling = [], itertools.count(), 0

    def run(self, limit=4000):
        """To the end; returns self."""
        self._do(self.generation.begin(self.now))
        while not self.ends and self.steps < limit:
            self._maybe_cut()
            wake = self.generation.wake_at
            if self._queue and self._queue[0][0] <= wake:
                self.now, _, crosses, event = heapq.heappop(self._queue)
                if crosses is not None and crosses != self._travelling:
                    continue  # it was on the way when the link broke
                if isinstance(event, Send):
                    for i, word in enumerate(self.cloud.answer(event, self.chunk)):
                        self._put(self.rtt / 2 + 0.01 * i, word, crosses)
                    continue
                if isinstance(event, Link):
                    self.up = event.up
            elif wake < math.inf:
                self.now, event = max(self.now, wake), Tick()
            else:
                raise AssertionError("nothing is under way and the text is not complete")
            self.steps += 1
            self._do(self.generation.step(self.now, event))
        return self

    def _maybe_cut(self):
        if self.up and self.steps in self.cut:
            seconds = self.cut.pop(self.steps)
            self.up = False
            if self.lose:
                self._travelling += 1
            if self.forget:
                self.cloud.ids = []
            self._put(seconds, Link(True))
            self.steps += 1
            self._do(self.generation.step(self.now, Link(False, "cut")))

    def _put(self, seconds, event, crosses=None):
        heapq.heappush(self._queue, (self.now + seconds, next(self._order), crosses, event))

    def _do(self, actions):
        for action in actions:
            match action:
                case Emit():
                    assert len(action.tokens) == len(action.sources) > 0
                    self.text += action.tokens
                    self.sources += action.sources
                case Compute():
                    sure = self.confidence(action.ids)
                    self._put(0.01, Proposed(len(action.ids), draft(action.ids), sure, 1, 0.01))
                case Send():
                    self.sends.append(action)
                    assert action.ids and action.start >= 0
                    if self.up:
                        self._put(0.0, Sent(action.ask, 40 + 4 * len(action.ids)))
                        self._put(self.rtt / 2, action, self._travelling)
                case Finish() | Fail():
                    self.ends.append(action)
