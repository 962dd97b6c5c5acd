"""The engine's view of the link: may a request be sent now, who waits for it, when is it probed."""

from __future__ import annotations

import math
import random
from typing import Final

from splitedge.breaker import Breaker, Circuit
from splitedge.events import Action, Ping, Send
from splitedge.request import Request
from splitedge.settings import EngineSettings

_CLOSED: Final = Circuit.CLOSED


class Sender:
    """Connection, circuit breaker, pings, and the requests that wait for the link to be usable.

    Attributes:
        connected: whether the transport has a connection; False until the first `LinkChanged`.
        why_down: in words, why it is not.
        breaker: the circuit.
        waiting: requests with a payload ready, by id.
        last_life: second of the last sign of life from the cloud.
    """

    __slots__ = (
        "_idle_pings",
        "_jitter",
        "_missed_at",
        "_ping_at",
        "_pong_due",
        "_settings",
        "breaker",
        "connected",
        "last_life",
        "waiting",
        "why_down",
    )

    def __init__(self, settings: EngineSettings) -> None:
        self._settings = settings
        self._jitter = random.Random(settings.seed)
        self.breaker = Breaker(settings.breaker_failures, settings.probe_base_s, settings.probe_max_s)
        self.connected = False
        self.why_down = "never connected"
        self.waiting: dict[int, Request] = {}
        self.last_life = -math.inf
        self._missed_at = -math.inf
        self._ping_at = math.inf
        self._pong_due = math.inf
        self._idle_pings = 0

    @property
    def usable(self) -> bool:
        """Whether a request may be sent now."""
        return self.connected and self.breaker.state is _CLOSED

    @property
    def state(self) -> str:
        """Why the link is not usable, in words."""
        if not self.connected:
            return f"the link to the cloud is down ({self.why_down})"
        return f"the circuit to the cloud is {self.breaker.state} after {self.breaker.failures} failures"

    @property
    def wake_at(self) -> float:
        """Second of the next ping or of the loss of one."""
        if not self.connected:
            return math.inf
        wake, pong_due, probe_at = self._ping_at, self._pong_due, self.breaker.probe_at
        if pong_due < wake:
            wake = pong_due
        return wake if wake < probe_at else probe_at

    def busy(self, now: float) -> None:
        """A request arrived: pings at their shortest interval again."""
        if self._idle_pings:
            self._idle_pings = 0
            if self._ping_at < math.inf:
                self._ping_at = min(self._ping_at, now + self._settings.ping_interval_s)

    def offer(self, now: float, request: Request, actions: list[Action]) -> bool:
        """Send the request's payload, or keep it until the link is usable. True if it was sent."""
        request.retry_at = math.inf
        if not self.usable:
            self.waiting[request.id] = request
            return False
        self.waiting.pop(request.id, None)
        request.attempts += 1
        request.flying = True
        request.sent_at = now
        left = request.limit - now if request.timed else math.inf
        actions.append(Send(request.id, request.attempts, request.encoded, left))
        return True

    def backoff_s(self, attempts: int) -> float:
        """Seconds to wait before the sending after the `attempts`-th."""
        s = self._settings
        wait = min(s.retry_max_s, s.retry_base_s * 2.0 ** min(attempts - 1, 60))
        return wait * (1.0 - s.retry_jitter * self._jitter.random())

    def life(self, now: float) -> bool:
        """The cloud showed a sign of life. True if that made the link usable again."""
        self.last_life = now
        self._pong_due = math.inf
        return self.breaker.success() and self.connected

    def missed(self, now: float, request: Request) -> None:
        """No reply to the request in time. A failure of the link unless it showed life meanwhile.

        Requests that were under way at the same time saw the same silence: they count once.
        """
        if self.last_life < request.sent_at and request.sent_at >= self._missed_at:
            self._missed_at = now
            self.breaker.failure(now)

    def connection(self, now: float, up: bool, reason: str) -> None:
        """The transport's connection came up or went down."""
        was, self.connected = self.connected, up
        self._pong_due = math.inf
        if up:
            self.why_down = ""
            self.breaker.probe_soon(now)
            if self._settings.ping_interval_s > 0.0:
                self._ping_at = now
            return
        self.why_down = reason or "no reason given"
        self._ping_at = math.inf
        if was:
            self.breaker.failure(now)

    def tick(self, now: float, actions: list[Action]) -> None:
        """Do what is due: count a lost ping, probe an open circuit, ping an idle link."""
        if not self.connected:
            return
        if now >= self._pong_due:
            self._pong_due = math.inf
            self.breaker.failure(now)
        if now >= self.breaker.probe_at:
            self.breaker.probing()
            self._ping(now, actions)
        elif now >= self._ping_at:
            self._schedule(now)
            if self._pong_due == math.inf and self.breaker.state is _CLOSED:
                self._ping(now, actions)

    def _ping(self, now: float, actions: list[Action]) -> None:
        self._pong_due = now + self._settings.ping_timeout_s
        actions.append(Ping())

    def _schedule(self, now: float) -> None:
        interval = self._settings.ping_interval_s * 2.0**self._idle_pings
        if interval >= self._settings.ping_idle_max_s:
            interval = max(self._settings.ping_idle_max_s, self._settings.ping_interval_s)
        else:
            self._idle_pings += 1
        self._ping_at = now + interval
