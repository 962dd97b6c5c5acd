"""The simulated cloud of a language model: the real batcher and contexts, before passes of measured length.

What a token says does not matter here, only whether it is the cloud's: the vocabulary is {0, 1}, the cloud
always says 1, and a device's token is 1 where the evaluation saw it agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from splitedge.cloud.contexts import ContextStore, Key
from splitedge.cloud.language import LanguageBatcher, No, Pass, Word
from splitedge.llm.cloud_model import CloudLanguageModel
from splitedge.llm.evaluation import LanguageEvaluation
from splitedge.llm.hashing import id_bytes
from splitedge.sim.connection import Later
from splitedge.sim.language_scenario import ModelPart
from splitedge.wire import Ask, Message, Refuse, Tell

if TYPE_CHECKING:
    from splitedge.sim.language_edge import LanguageEdge

RIGHT, WRONG = 1, 0
_CONTEXT = 1 << 30
_LOGITS = np.array([0.0, 1.0], np.float32)


@dataclass(frozen=True, slots=True)
class _Anatomy:
    vocabulary: int = 2
    context: int = _CONTEXT


class _Replayed:
    """Stands where the batcher has its model: says what it must know, computes nothing."""

    anatomy = _Anatomy()

    def __init__(self, row_bytes: int) -> None:
        self.width = row_bytes
        self.sees_ids = row_bytes == 4

    def token_bytes(self) -> int:
        """Memory is not simulated."""
        return 0


class LanguageCloud:
    """Takes asks, tells tokens.

    Args:
        evaluation: passes take what they took there.
        part: how much slower, and limits of a pass.
        later: schedules a call.

    Attributes:
        passes: so far. busy_s: of them.
    """

    def __init__(self, evaluation: LanguageEvaluation, part: ModelPart, later: Later) -> None:
        self._evaluation, self._slower, self._later = evaluation, part.slower, later
        self._batcher = LanguageBatcher(
            cast(CloudLanguageModel, _Replayed(evaluation.row_bytes)),
            ContextStore(1 << 60, lease_s=1e12, most=1 << 30, per_user=1 << 30),
            self._say,
            max_contexts=part.contexts,
            max_tokens=part.tokens,
        )
        self._edges: dict[Key, tuple[LanguageEdge, int]] = {}  # and when its last ask came, nanoseconds
        self.passes, self.busy_s = 0, 0.0
        self._now = 0.0

    def ask(self, now: float, edge: LanguageEdge, ask: Ask) -> None:
        """An ask arrived."""
        key = Key(str(edge.index), b"simulate", ask.context, 0)
        self._now = now
        self._edges[key] = edge, _ns(now)
        self._batcher.take(key, ask, _ns(now))
        self._turn(now)

    def forget(self, edge: LanguageEdge, context: int) -> None:
        """A text has ended."""
        key = Key(str(edge.index), b"simulate", context, 0)
        self._batcher.cancel(key)
        self._edges.pop(key, None)
        self._batcher.store.close(lambda other: other == key)

    def _turn(self, now: float) -> None:
        work = self._batcher.next_pass(_ns(now))
        if work is None:
            return
        tokens = sum(row.count for row in work.rows)
        seconds = self._slower * self._evaluation.pass_s(len(work.rows), tokens)
        self.passes += 1
        self.busy_s += seconds
        self._later(now + seconds, self._computed, work)

    def _computed(self, now: float, work: Any) -> None:
        assert isinstance(work, Pass)
        self._now = now
        self._batcher.finish(work, [np.tile(_LOGITS, (row.keep, 1)) for row in work.rows], _ns(now))
        self._turn(now)

    def _say(self, word: Word | No) -> None:
        found = self._edges.get(word.key)
        if found is None:
            return
        edge, received = found
        ask = word.ask
        message: Message
        if isinstance(word, No):
            message = Refuse(ask.request, ask.attempt, word.kind, word.message[:200], word.retry_after_ms)
        else:
            message = Tell(
                ask.request, ask.attempt, received, _ns(self._now), ask.context, ask.epoch, word.start,
                word.accepted, int(word.last), word.queue_ns, word.compute_ns, id_bytes(word.tokens),
            )  # fmt: skip
        edge.down(self._now, message)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)
