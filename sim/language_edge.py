"""A simulated device that writes texts with the deployment's own `Generation`, one text after the other.

Carries out a generation's actions as `splitedge.edge.language.LanguageRuntime` does, with measured seconds
in place of models and a replayed link in place of a socket.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from splitedge.errors import CloudFailed
from splitedge.estimate import ClockOffset, LinkEstimator
from splitedge.events import Refusal
from splitedge.llm.evaluation import LOCAL, LanguageEvaluation
from splitedge.llm.generation import Generation, Wish
from splitedge.llm.happenings import (
    Action,
    Compute,
    Denied,
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
from splitedge.llm.hashing import EMPTY, id_bytes, rolled
from splitedge.llm.measured import Measured, StepSeconds, costs_of
from splitedge.llm.modes import Mode, Pace, Way
from splitedge.llm.plan import Objective, choose_mode
from splitedge.llm.token_model import common
from splitedge.power import power_profile
from splitedge.sim import sizes
from splitedge.sim.connection import Connection, Later
from splitedge.sim.language_cloud import RIGHT, WRONG, LanguageCloud
from splitedge.sim.language_scenario import AUTO, LanguageScenario
from splitedge.sim.link import Link as Direction
from splitedge.wire import Ask, Hello, Lane, Message, Refuse, Tell, Welcome, framed_bytes, pack

PING_S = 1.0
_HELLO = (
    framed_bytes(pack(Hello(bytes(8), (Lane("0" * 64, "", "ids"),))), encrypted=False),
    framed_bytes(pack(Welcome(bytes(8), (0,), "", 1 << 25)), encrypted=False),
)


@dataclass(eq=False)
class Writing:
    """One text under way.

    Attributes:
        number: of the context. row: which text of the evaluation it is. first: its first position there.
        prompt: tokens of it. known: tokens that the device's model has read.
        head_s: seconds of the head for hidden states that were sent.
        tells: from the cloud's passes.
    """

    number: int
    row: int
    first: int
    prompt: int
    began: float
    generation: Generation
    why: str
    rtt_s: float
    goodput_bps: float
    known: int = 0
    head_s: float = 0.0
    tells: int = 0
    end: Finish | Fail | None = None
    hashes: list[int] = field(default_factory=lambda: [EMPTY])
    hashed: list[int] = field(default_factory=list)
    rows: int = 0


@dataclass(slots=True)
class _Asked:
    ask: int
    sent: float
    nbytes: int
    first: bool = True


def modes_of(evaluation: LanguageEvaluation) -> tuple[Mode, ...]:
    """Modes that the evaluated deployment can write in."""
    small, exits, ids = LOCAL in evaluation.deciders, bool(evaluation.exits), evaluation.row_bytes == 4
    found = [Mode.LOCAL] if small or exits else []
    if ids:
        found += [Mode.STREAM, *([Mode.SPEC, Mode.ASSIST] if small else [])]
    if exits:
        found += [Mode.EXIT, *([] if ids else [Mode.SPLIT])]
    return tuple(found)


class LanguageEdge:
    """One device.

    Args:
        index: its number.
        scenario: the run's.
        evaluation: what models say, and what they take.
        order: rows of the evaluation, one a text.
        links: up and down.
        cloud: shared.
        later: schedules a call.
        ended: called with each text that has ended, and the second.
    """

    def __init__(
        self,
        index: int,
        scenario: LanguageScenario,
        evaluation: LanguageEvaluation,
        order: list[int],
        links: tuple[Direction, Direction],
        cloud: LanguageCloud,
        later: Later,
        ended: Callable[[LanguageEdge, Writing, float], None],
    ) -> None:
        self.index = index
        self._scenario, self._evaluation, self._order = scenario, evaluation, order
        self._cloud, self._later, self._ended = cloud, later, ended
        self.modes = modes_of(evaluation)
        self.power = power_profile(scenario.device.power)
        self.estimator = LinkEstimator(scenario.link)
        self._offset = ClockOffset()
        self._link = Connection(*links, _HELLO, scenario.channel.cuts, later, self._changed)
        self._starts = evaluation.starts.tolist()
        self._agrees = evaluation.said == evaluation.tokens
        self._waits: dict[int, _Asked] = {}
        self._requests = self._done = 0
        self._text: Writing | None = None
        self._events: deque[Event] = deque()
        self._free_at = 0.0
        self._wakes_at = math.inf
        self._now = 0.0
        self._draft, self._head, self._decode_s = StepSeconds(), StepSeconds(), math.nan
        self._acceptance = 0.7

    def start(self) -> None:
        """Second 0: connected; the first text after the first pause."""
        self._ping(0.0, None)
        self._later(self._scenario.user.think_s, self._begin, None)

    # Texts ----------------------------------------------------------------------------------------

    def _begin(self, now: float, _: None) -> None:
        row = self._order[self._done]
        evaluation, user = self._evaluation, self._scenario.user
        prompt, length = int(evaluation.prompt_lengths[row]), int(evaluation.lengths[row])
        way, why = self._way(now, prompt)
        limit = math.inf if user.deadline_s is None else user.deadline_s
        wish = Wish((RIGHT,) * prompt, length, frozenset(), limit)
        up = self._link.is_up and way.mode is not Mode.LOCAL
        generation = Generation(now, wish, way, up=up, pace=lambda: self._pace(self._now))
        rtt, goodput = self.estimator.rtt(now).mean, self.estimator.goodput(now).mean
        self._now = now
        self._text = text = Writing(
            self._done, row, self._starts[row], prompt, now, generation, why, rtt, goodput
        )
        self._act(now, text, generation.begin(now))
        self._drain(now)

    def _way(self, now: float, prompt: int) -> tuple[Way, str]:
        part, known = self._scenario.way, self._evaluation
        mode, drafts, why = part.mode, part.drafts, "asked for"
        if mode == AUTO:
            measured = Measured(
                self._draft.at(now) if LOCAL in known.deciders else math.inf,
                self._head.at(now) if known.exits else math.inf,
                self._decode_s,
                self._acceptance,
            )
            costs = costs_of(measured, self.power, self.estimator, now, known)
            aim = Objective(part.seconds_per_joule, part.seconds_per_pass, part.most_disagreement)
            choice = choose_mode(
                costs, self.modes, prompt, int(known.lengths.max()), objective=aim, up=self._link.is_up
            )
            mode, drafts, why = choice.best.mode, choice.best.drafts or drafts, choice.why
        thresholds: dict[int, float] = {}
        if mode == Mode.EXIT:
            given = part.thresholds
            calibrated = (float(known.thresholds[line]) for line in known.exits)
            thresholds = dict(enumerate(calibrated if given is None else given))
        elif mode == Mode.ASSIST:
            gate = float(known.thresholds[known.line(LOCAL)])
            thresholds = {-1: 0.5 if math.isnan(gate) else gate}
        ids = known.row_bytes == 4
        way = Way(
            Mode(mode),
            drafts,
            part.adapt,
            thresholds,
            part.burst if ids else 1,
            part.eager,
            ids,
            part.on_loss,
        )
        return way, why

    def _pace(self, now: float) -> Pace:
        decode = 0.0 if math.isnan(self._decode_s) else self._decode_s
        draft = self._draft.at(now)
        draft = 0.005 if math.isnan(draft) else draft
        return Pace(draft, self.estimator.rtt(now).mean + decode, self._acceptance)

    def _feed(self, now: float, event: Event) -> None:
        self._events.append(event)
        self._drain(now)

    def _drain(self, now: float) -> None:
        self._now = now
        while self._events and self._text is not None:
            self._act(now, self._text, self._text.generation.step(now, self._events.popleft()))
        self._events.clear()
        if self._text is not None:
            wake = max(now, self._text.generation.wake_at)
            if wake < self._wakes_at:
                self._wakes_at = wake
                self._later(wake, self._tick, wake)

    def _tick(self, now: float, wake: float) -> None:
        if wake != self._wakes_at:
            return
        self._wakes_at = math.inf
        if self._text is not None and self._text.generation.wake_at <= now:
            self._feed(now, Tick())
        else:
            self._drain(now)

    def _act(self, now: float, text: Writing, actions: list[Action]) -> None:
        for action in actions:
            if isinstance(action, Compute):
                self._compute(now, text, len(action.ids))
            elif isinstance(action, Send):
                self._send(now, text, action)
            elif isinstance(action, Finish | Fail):
                self._end(now, text, action)

    def _end(self, now: float, text: Writing, end: Finish | Fail) -> None:
        text.end, self._text = end, None
        tally = text.generation.tally
        judged = tally.accepted + tally.rejected
        if judged:
            self._acceptance += min(1.0, judged / 100) * (tally.accepted / judged - self._acceptance)
        self._waits.clear()
        self._cloud.forget(self, text.number)
        self._done += 1
        self._ended(self, text, now)
        if self._done < len(self._order):
            self._later(now + self._scenario.user.think_s, self._begin, None)

    # The device's model ---------------------------------------------------------------------------

    def _compute(self, now: float, text: Writing, after: int) -> None:
        known, at = self._evaluation, text.first + after - text.prompt
        way = text.generation.way
        heads = way.mode in (Mode.SPLIT, Mode.EXIT) or LOCAL not in known.deciders
        exit, line = -1, 0
        if heads:
            for exit, line in enumerate(known.exits):
                if known.confidence[line, at] >= way.thresholds.get(exit, math.inf):
                    break
        else:
            line = known.line(LOCAL)
        rate = known.head_prefill_s if heads else known.local_prefill_s
        unread = max(0, after - 1 - text.known)
        seconds = self._scenario.device.slower * (float(known.seconds[line, at]) + unread * rate)
        first, text.known = text.known == 0, after
        token = RIGHT if self._agrees[line, at] else WRONG
        self._free_at = max(now, self._free_at) + seconds
        proposal = Proposed(after, token, float(known.confidence[line, at]), exit, seconds)
        self._later(self._free_at, self._computed, (text, proposal, first))

    def _computed(self, now: float, done: tuple[Writing, Proposed, bool]) -> None:
        text, proposal, first = done
        if not first:  # the first one read the prompt
            (self._head if proposal.exit >= 0 else self._draft).observe(now, proposal.seconds)
        if text is self._text:
            self._feed(now, proposal)

    # The cloud ------------------------------------------------------------------------------------

    def _send(self, now: float, text: Writing, action: Send) -> None:
        known = self._evaluation
        if known.row_bytes == 4:
            ids = [*text.generation.ids[: action.start], *action.ids]
            self._ask(now, text, action, self._hash(text, ids, action.start), id_bytes(action.ids))
            return
        total, seconds = action.start + len(action.ids), 0.0
        if text.generation.way.mode is Mode.SPLIT and total > text.rows:
            new, last = total - text.rows, known.exits[-1]
            at = min(text.first + max(0, total - text.prompt - 1), len(known.tokens) - 1)
            one = float(known.seconds[last, at])
            seconds = self._scenario.device.slower * (one if new == 1 else one + new * known.head_prefill_s)
            text.head_s += seconds
        text.rows = max(text.rows, total)
        row = bytes(known.row_bytes)
        while len(text.hashes) <= total:
            text.hashes.append(rolled(text.hashes[-1], row))
        self._free_at = max(now, self._free_at) + seconds
        self._later(self._free_at, self._encoded, (text, action, row * len(action.ids)))

    def _encoded(self, now: float, done: tuple[Writing, Send, bytes]) -> None:
        text, action, payload = done
        if text is self._text:
            self._ask(now, text, action, text.hashes[action.start], payload)
            self._drain(now)

    def _hash(self, text: Writing, ids: list[int], count: int) -> int:
        kept = common(text.hashed, ids)
        del text.hashes[kept + 1 :]
        for token in ids[kept:count]:
            text.hashes.append(rolled(text.hashes[-1], id_bytes([token])))
        text.hashed = ids[: len(text.hashes) - 1]
        return text.hashes[count]

    def _ask(self, now: float, text: Writing, action: Send, before: int, payload: bytes) -> None:
        if not self._link.is_up:
            return
        self._requests += 1
        limit = self._scenario.user.deadline_s
        left_ms = 0 if limit is None else min(0xFFFF_FFFF, max(1, int(1000 * (text.began + limit - now))))
        attempt = min(action.attempt, 0xFFFF)
        message = Ask(
            self._requests, attempt, 0, left_ms, text.number, action.epoch, action.start, before,
            len(action.ids), action.drafts, action.want, 0, 1_000_000, 0, 0, (), payload,
        )  # fmt: skip
        nbytes = framed_bytes(pack(message), encrypted=False)
        self._waits[self._requests] = _Asked(action.ask, now, nbytes)
        self._link.up(now, nbytes, self._at_cloud, (self._link.number, message))
        self._events.append(Sent(action.ask, nbytes))

    def _at_cloud(self, now: float, sent: tuple[int, Ask]) -> None:
        if self._link.reached(sent[0]):
            self._cloud.ask(now, self, sent[1])

    def down(self, now: float, message: Message) -> None:
        """The cloud sends something to this device."""
        if self._link.is_up:
            nbytes = framed_bytes(pack(message), encrypted=False)
            self._link.down(now, nbytes, self._heard, (self._link.number, message, nbytes))

    def _heard(self, now: float, came: tuple[int, Message, int]) -> None:
        number, message, nbytes = came
        if number != self._link.number:
            return
        self._link.heard(now)
        assert isinstance(message, Tell | Refuse)
        asked = self._waits.get(message.request)
        if asked is None or self._text is None:
            return
        if isinstance(message, Refuse):
            del self._waits[message.request]
            self._feed(now, _refused(asked.ask, message))
            return
        if message.last:
            del self._waits[message.request]
        if asked.first:
            asked.first = False
            stamps = (asked.sent, message.received_ns * 1e-9, message.sent_ns * 1e-9, now)
            self._offset.observe(*stamps)
            up, down = self._offset.one_way(*stamps)
            self.estimator.observe_uplink(now, asked.nbytes, up)
            self.estimator.observe_downlink(now, nbytes, down)
            self.estimator.observe_queue(now, message.queue_ns * 1e-9)
        tokens = (RIGHT,) * (memoryview(message.ids).nbytes // 4)
        seconds = message.compute_ns * 1e-9
        if tokens:
            self._text.tells += 1
            self._decode_s = _smoothed(self._decode_s, seconds)
        last = bool(message.last)
        self._feed(now, Told(asked.ask, message.start, tokens, message.accepted, last, nbytes, seconds))

    # The connection -------------------------------------------------------------------------------

    def _changed(self, now: float, up: bool, why: str) -> None:
        self._waits.clear()
        if up:
            self._offset.reset()
            self._ping(now, None)
        text = self._text
        if text is not None and text.generation.way.mode is not Mode.LOCAL:
            self._feed(now, Link(up, why))

    def _ping(self, now: float, _: None) -> None:
        if self._link.is_up:
            number = self._link.number
            self._link.up(now, sizes.PING, self._pinged, (number, now))
            self._later(now + PING_S, self._again, number)

    def _again(self, now: float, number: int) -> None:
        if number == self._link.number:
            self._ping(now, None)

    def _pinged(self, now: float, sent: tuple[int, float]) -> None:
        if self._link.reached(sent[0]):
            self._link.down(now, sizes.PONG, self._ponged, (*sent, now))

    def _ponged(self, now: float, sent: tuple[int, float, float]) -> None:
        number, begun, there = sent
        if number == self._link.number:
            self._link.heard(now)
            self._offset.observe(begun, there, there, now)
            self.estimator.observe_rtt(now, now - begun)


def _smoothed(old: float, new: float) -> float:
    return new if math.isnan(old) else old + 0.1 * (new - old)


def _refused(ask: int, refuse: Refuse) -> Event:
    if refuse.kind == Refusal.NEED:
        return Needed(ask, int(refuse.message))
    if refuse.kind == Refusal.BUSY:
        return Denied(ask, refuse.retry_after_ms / 1000)
    return Denied(ask, 0.5, CloudFailed(f"the cloud failed: {refuse.message}"))
