"""How requests end: falling back to the device in time, and the last answer or error."""

from __future__ import annotations

import logging
import math
from typing import Final

from splitedge.compute import ComputeQueue
from splitedge.errors import CloudUnavailable, DeadlineExceeded, RequestError
from splitedge.estimate import LinkEstimator
from splitedge.events import Action, Answer, CancelRemote, Fail, Source, StageKind
from splitedge.outcome import answered, failed, filtered, typed, why_late
from splitedge.paths import Paths, held
from splitedge.policy import Gate, Option, Policy
from splitedge.power import PowerModel
from splitedge.request import NONE, Request
from splitedge.sender import Sender
from splitedge.settings import EngineSettings
from splitedge.timers import Timers

_log = logging.getLogger("splitedge.engine")
_ENCODE: Final = StageKind.ENCODE
_CLOUD: Final = Source.CLOUD
_LOCAL: Final = Source.LOCAL
_EXIT: Final = Source.EXIT
_GHOSTS: Final = 256  # ended requests whose late replies still teach the link estimator


class Settling:
    """The engine's state, and the rules by which a request ends. `Engine` tells the arguments."""

    def __init__(
        self,
        options: tuple[Option, ...],
        policy: Policy,
        settings: EngineSettings | None,
        link: LinkEstimator | None,
        power: PowerModel | None,
    ) -> None:
        self.settings = settings if settings is not None else EngineSettings()
        self.link = link if link is not None else LinkEstimator()
        self.power = power if power is not None else PowerModel()
        self.policy = policy
        self.options = options
        self.wake_at = math.inf
        self.battery = math.nan
        self.draining = False
        self._paths = Paths(options)
        policy.check(options)
        self._sender = Sender(self.settings)
        self._compute = ComputeQueue(self.settings.compute_slots)
        self._requests: dict[int, Request] = {}
        self._timers = Timers(self._requests)
        self._ghosts: dict[int, int] = {}
        self._pending: dict[int, Request] = {}  # those that may need the device for a fall-back
        self._pending_s = 0.0
        self._radio_at = -math.inf
        self._uplink_at = -math.inf  # when a request was last sent
        self._now = -math.inf
        self._actions: list[Action] = []

    # Falling back ---------------------------------------------------------------------------------

    def _awaits_cloud(self, now: float, r: Request) -> bool:
        """Whether a reply may still come and there is time to wait for it."""
        return not r.remote_over and r.encoded != NONE and r.encoded == r.target and now < r.answer_by

    def _best_fallback(self, now: float, r: Request) -> int:
        """The most accurate option the device can answer by in time, and leave others the time for theirs."""
        free = now + self._compute.residual_s(now)
        own = r.answer_by - free
        left = own
        demand = 0.0
        if len(self._pending) > 1 or (self._pending and r.id not in self._pending):
            waiting = [
                o
                for o in self._pending.values()
                if o is not r and (o.fallback is None or o.queued == o.fallback)
            ]
            waiting.sort(key=_answer_by)
            for other in waiting:
                demand += other.guarded_s
                if other.fallback is not None and other.answer_by <= r.answer_by:
                    own -= other.guarded_s  # it is computed first
                left = min(left, other.answer_by - free - demand)
        return self._paths.best_fallback(r, min(own, left))

    def _cheaper(self, now: float, r: Request) -> bool:
        """Whether the fall-back about to begin was put off for a cheaper one: since it was chosen, others
        may have come whose deadlines it would now break.
        """
        stage = r.queued
        if stage is None or stage != r.fallback:
            return False
        best = self._best_fallback(now, r)
        if best == NONE or held(r, best) is not None or self._paths.final[best] == stage:
            return False
        if self._paths.cost_s(r, self._paths.final[best], quantile=True) >= r.guarded_s:
            return False
        self._run_fallback(r, best)
        return True

    def _guard_from(self, now: float, r: Request) -> None:
        """Set the second at which the fall-back must begin so that it ends in time."""
        best = self._best_fallback(now, r)
        if best == NONE:
            return
        least = self._paths.least_s(r)
        self._reserve(r, least)
        own = self._paths.cost_s(r, self._paths.final[best], quantile=True)
        # Requests that wait for the same cloud would all need the device at once: leave room for
        # theirs too, but never give up more than half of the time left for that.
        slack = min(self.settings.guard_slack_s, 0.25 * (r.answer_by - now))
        latest = r.answer_by - own - self._compute.residual_s(now) - slack
        early = latest - (self._pending_s - least)
        if len(self._requests) > 1:
            early -= self._paths.longest_s  # a stage that has begun is not interrupted
        r.guard_at = max(now, min(latest, max(early, now + 0.5 * (r.answer_by - now))))

    def _reserve(self, r: Request, seconds: float) -> None:
        """Count on the device to compute `seconds` for the request's fall-back."""
        self._pending_s += seconds - r.guarded_s
        r.guarded_s = seconds
        self._pending[r.id] = r

    def _unguard(self, r: Request) -> None:
        r.guard_at = math.inf
        if self._pending.pop(r.id, None) is not None:
            self._pending_s = self._pending_s - r.guarded_s if self._pending else 0.0
            r.guarded_s = 0.0

    def _guard(self, now: float, r: Request) -> None:
        """The last moment to begin a fall-back has come."""
        r.guard_at = math.inf
        running_exit = r.running is not None and r.running.kind is not _ENCODE
        if r.in_hand or r.fallback is not None or running_exit:
            return
        best = self._best_fallback(now, r)
        if best != NONE:
            self._run_fallback(r, best)

    def _run_fallback(self, r: Request, option: int) -> None:
        r.fallback = self._paths.final[option]
        if r.running != r.fallback:
            self._reserve(r, self._paths.cost_s(r, r.fallback, quantile=True))
            self._compute.put(r, r.fallback, self._paths.cost_s(r, r.fallback, quantile=False), urgent=True)

    def _fall_back(self, now: float, r: Request, note: str, error: type[RequestError]) -> None:
        """The target is out of reach: answer without the cloud, or end in `error`."""
        r.remote_over = True
        r.flying = False
        r.retry_at = r.overdue_at = r.guard_at = math.inf
        r.trouble_type = error
        r.note = note
        self._sender.waiting.pop(r.id, None)
        if r.fallback is not None:
            return  # it runs already, and answers when done
        self._unguard(r)
        self._compute.drop(r)
        best = self._best_fallback(now, r)
        if best == NONE:
            self._fail(now, r, typed(error, note, r))
        elif (confidence := held(r, best)) is not None:
            self._answer(now, r, best, confidence)
        else:
            self._run_fallback(r, best)

    def _answer_in_hand(self, now: float, r: Request) -> None:
        best, confidence = self._paths.best_in_hand(r)
        r.note = r.note or why_late(r, now, self._paths, self._sender)
        self._answer(now, r, best, confidence)

    # Ends -----------------------------------------------------------------------------------------

    def _alive(self, now: float, request: int) -> Request | None:
        """The request, unless it has ended; one whose limit has passed unnoticed ends here."""
        r = self._requests.get(request)
        if r is not None and now > r.limit:
            self._expire(now, r)
            return None
        return r

    def _missed(self, now: float, r: Request) -> None:
        """No reply in time: evidence on the link, and perhaps a failure of it."""
        if r.flying:
            option = self.options[r.encoded]
            elapsed = now - r.sent_at - self.link.rtt(now).mean - option.cloud_s * r.rows
            self.link.observe_stall(now, r.nbytes, elapsed)
            self._sender.missed(now, r)

    def _expire(self, now: float, r: Request) -> None:
        self._missed(now, r)
        if r.in_hand:
            self._answer_in_hand(now, r)
            return
        why = r.note or why_late(r, now, self._paths, self._sender)
        if r.timed:
            self._fail(now, r, DeadlineExceeded(f"deadline of {r.deadline_s:.3f} s: {why}"))
        else:
            remote = self._paths.remote[r.target] and not self._sender.usable
            kind = CloudUnavailable if remote else DeadlineExceeded
            self._fail(now, r, kind(f"timeout of {self.settings.default_timeout_s:.3f} s: {why}"))

    def _answer(self, now: float, r: Request, option: int, confidence: float) -> None:
        policy = self.policy if self.settings.reasons else None
        record = answered(r, now, option, confidence, policy, self._paths, self.power)
        chosen = self.options[option]
        if chosen.remote:
            self._end(r, Answer(r.id, _CLOUD, -1, record))
        elif chosen.exit is None:
            self._end(r, Answer(r.id, _LOCAL, -1, record))
        else:
            self._end(r, Answer(r.id, _EXIT, chosen.exit, record))

    def _answer_unsent(self, now: float, r: Request, gate: Gate, confidence: float) -> None:
        """The filter of the option just encoded keeps the payload here: its answer is given."""
        record = filtered(r, now, gate, confidence, self._paths, self.power)
        self._end(r, Answer(r.id, Source.FILTER, -1, record))

    def _fail(self, now: float, r: Request, error: RequestError) -> None:
        self._end(r, Fail(r.id, error, failed(r, now, error, self._paths, self.power)))

    def _end(self, r: Request, last: Answer | Fail) -> None:
        self._actions.append(last)
        del self._requests[r.id]
        self._compute.drop(r)
        self._sender.waiting.pop(r.id, None)
        self._unguard(r)
        if r.awaited:
            if self._sender.connected:
                self._actions.append(CancelRemote(r.id))
            self._ghosts[r.id] = r.nbytes
            if len(self._ghosts) > _GHOSTS:
                del self._ghosts[next(iter(self._ghosts))]
        try:
            self.policy.learn(last.record)
        except Exception:  # a plug-in's bug must not lose the actions of this step
            _log.exception("policy '%s' failed to learn from a record", self.policy.name)


def _answer_by(r: Request) -> float:
    return r.answer_by
