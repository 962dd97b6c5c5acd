"""The engine's side towards the cloud: sendings, retries, replies, refusals, the link's ups and downs."""

from __future__ import annotations

import math

from splitedge.errors import CloudBusy, CloudFailed, CloudUnavailable, DeadlineExceeded, RequestError
from splitedge.events import LinkChanged, Ponged, Refusal, Refused, Replied, SendFailed, Sent
from splitedge.request import Request
from splitedge.settling import Settling


class RemoteSide(Settling):
    """The rules for a request whose payload is ready."""

    def _offer(self, now: float, r: Request) -> None:
        """Send the payload, or wait for the link; give up when all attempts are used."""
        if r.attempts >= self.settings.max_attempts:
            times = f"{r.attempts} time{'s' if r.attempts > 1 else ''}"
            self._remote_failed(now, r, f"sent {times} without an answer ({r.trouble})", CloudUnavailable)
        elif self._sender.offer(now, r, self._actions):
            self._uplink_at = now
            r.awaited = True
            s = self.settings
            wait = max(s.overdue_min_s, s.overdue_factor * self._reply_s(r))
            r.overdue_at = now + wait * 2.0 ** min(r.attempts - 1, 60)

    def _reply_s(self, r: Request) -> float:
        """Predicted 95th percentile of the seconds between sending and reply, as of the decision."""
        obs, option = r.obs, self.options[r.encoded]
        assert obs is not None  # every request was observed before it was encoded
        up = r.nbytes * 8.0 / obs.goodput.low
        down = option.bytes_down * 8.0 * r.rows / obs.downlink.low
        return float(up + obs.rtt.high + obs.queue.high + option.cloud_s_q95 * r.rows + down)

    def _remote_failed(self, now: float, r: Request, note: str, error: type[RequestError]) -> None:
        """The cloud will not answer: fall back."""
        r.trouble = note
        self._fall_back(now, r, note, error)

    def _retry(self, now: float, r: Request, wait_s: float, error: type[RequestError]) -> None:
        """Send again after `wait_s` if an attempt and the time are left, else fall back."""
        r.flying = False
        r.overdue_at = math.inf
        if r.attempts >= self.settings.max_attempts or now + wait_s >= r.answer_by:
            self._remote_failed(now, r, r.trouble, error)
        else:
            r.retry_at = now + wait_s

    def _sent(self, now: float, event: Sent) -> None:
        r = self._requests.get(event.request)
        if r is not None and 1 <= event.attempt <= r.attempts:
            r.bytes_up += event.nbytes
            r.tail_j += self._radio(now)

    def _radio(self, now: float) -> float:
        """Joules of the radio's tail that a transfer at `now` adds."""
        joules = self.power.tail_joules(now - self._radio_at)
        self._radio_at = now
        return joules

    def _replied(self, now: float, event: Replied) -> None:
        r = self._alive(now, event.request)
        if r is None:
            ghost = self._ghosts.pop(event.request, None)
            if ghost is not None:  # else it is not ours, or a second reply
                self._learn_link(now, ghost, event)
            return
        if not 1 <= event.attempt <= r.attempts:
            return
        r.uplink_s, r.downlink_s = event.uplink_s, event.downlink_s
        r.queue_s, r.decode_s, r.tail_s = event.queue_s, event.decode_s, event.tail_s
        r.bytes_down += event.nbytes
        r.tail_j += self._radio(now)
        r.flying = False
        r.awaited = False
        self._answer(now, r, r.encoded, event.confidence)
        self._learn_link(now, r.nbytes, event)  # last: it may send what waited, this one no more

    def _learn_link(self, now: float, nbytes: int, event: Replied) -> None:
        link = self.link
        link.observe_exchange(now, nbytes, event.nbytes, event.uplink_s + event.downlink_s)
        link.observe_uplink(now, nbytes, event.uplink_s)
        link.observe_downlink(now, event.nbytes, event.downlink_s)
        link.observe_queue(now, event.queue_s)
        self._alive_sign(now)

    def _alive_sign(self, now: float) -> None:
        if self._sender.life(now):
            self._flush(now)

    def _flush(self, now: float) -> None:
        """The link is usable again: send what waited for it."""
        waiting = self._sender.waiting
        for r in list(waiting.values()):
            del waiting[r.id]
            self._offer(now, r)
            if r.id in self._requests:
                self._timers.touch(r)

    def _refused(self, now: float, event: Refused) -> None:
        r = self._alive(now, event.request)
        if r is not None and 1 <= event.attempt <= r.attempts and not r.remote_over:
            self._turned_down(now, r, event)
            if r.id in self._requests:
                self._timers.touch(r)
        self._alive_sign(now)

    def _turned_down(self, now: float, r: Request, event: Refused) -> None:
        latest = event.attempt == r.attempts
        if event.kind is Refusal.BUSY and latest and r.flying:
            r.trouble = f"the cloud is busy: {event.message}"
            r.retry_after_s = event.retry_after_s
            wait = max(event.retry_after_s, self._sender.backoff_s(r.attempts))
            self._retry(now, r, wait, CloudBusy)
        elif event.kind is Refusal.EXPIRED and latest:
            r.awaited = False
            note = f"the deadline passed in the cloud: {event.message}"
            self._remote_failed(now, r, note, DeadlineExceeded)
        elif event.kind not in (Refusal.BUSY, Refusal.EXPIRED):
            r.awaited = False
            self._remote_failed(now, r, f"the cloud refused ({event.kind}): {event.message}", CloudFailed)

    def _send_failed(self, now: float, event: SendFailed) -> None:
        r = self._alive(now, event.request)
        if r is None or not r.flying or event.attempt != r.attempts:
            return
        self._sender.breaker.failure(now)
        r.trouble = f"sending failed: {event.error}"
        self._retry(now, r, self._sender.backoff_s(r.attempts), CloudUnavailable)
        if event.request in self._requests:
            self._timers.touch(r)

    def _link_changed(self, now: float, event: LinkChanged) -> None:
        self._sender.connection(now, event.up, event.reason)
        if not event.up:
            for r in list(self._requests.values()):
                if r.flying:
                    r.flying = False
                    r.overdue_at = math.inf
                    r.trouble = self._sender.state
                    self._sender.waiting[r.id] = r
        elif self._sender.usable:
            self._flush(now)

    def _ponged(self, now: float, event: Ponged) -> None:
        self.link.observe_rtt(now, event.rtt_s)
        self._alive_sign(now)

    def _overdue(self, now: float, r: Request) -> None:
        """The reply is late by far: the message or the reply may be lost."""
        r.overdue_at = math.inf
        self._missed(now, r)
        r.trouble = f"the reply to sending {r.attempts} is overdue after {now - r.sent_at:.3f} s"
        if r.attempts < self.settings.max_attempts:
            self._offer(now, r)
        elif not r.timed and self._paths.can_fall_back(r):
            self._remote_failed(now, r, r.trouble, CloudUnavailable)
