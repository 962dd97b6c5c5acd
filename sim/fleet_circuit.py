"""The link as a device sees it, for the loops of fleet mode: `breaker.py` and `sender.py` on records."""

from __future__ import annotations

from typing import Any

import numpy as np

from splitedge.sim.compiled import inner
from splitedge.sim.fleet_world import CLOSED, HALF_OPEN, OPEN


@inner
def usable(d: Any) -> bool:
    """Whether a request may be sent now."""
    return bool(d.connected == 1 and d.circuit == CLOSED)


@inner
def failure(d: Any, rules: Any, now: float) -> None:
    """A time-out, a lost connection."""
    d.failures += 1
    if d.circuit == HALF_OPEN:
        d.backoff = min(2.0 * d.backoff, rules.probe_max_s)
    elif d.circuit == OPEN or d.failures < rules.breaker_failures:
        return
    d.circuit = OPEN
    d.probe_at = now + d.backoff


@inner
def life(d: Any, rules: Any, now: float) -> bool:
    """A sign of life. True if that made the link usable again."""
    d.last_life = now
    d.pong_due = np.inf
    d.failures = 0
    if d.circuit == CLOSED:
        return False
    d.circuit = CLOSED
    d.probe_at = np.inf
    d.backoff = rules.probe_base_s
    return bool(d.connected == 1)


@inner
def silence(d: Any, rules: Any, now: float, sent_at: float) -> None:
    """No reply in time to what was sent at `sent_at`; requests under way together count once."""
    if d.last_life < sent_at and sent_at >= d.missed_at:
        d.missed_at = now
        failure(d, rules, now)


@inner
def busy(d: Any, rules: Any, now: float) -> None:
    """A request arrived: pings at their shortest interval again."""
    if d.idle_pings > 0:
        d.idle_pings = 0
        if d.ping_at < np.inf:
            d.ping_at = min(d.ping_at, now + rules.ping_s)


@inner
def next_ping(d: Any, rules: Any, now: float) -> None:
    """Put the next ping off: twice as long while no request arrives."""
    interval = rules.ping_s * 2.0**d.idle_pings
    if interval >= rules.ping_idle_s:
        interval = max(rules.ping_idle_s, rules.ping_s)
    else:
        d.idle_pings += 1
    d.ping_at = now + interval


@inner
def up(d: Any, rules: Any, now: float) -> bool:
    """The connection stands. True if requests may be sent."""
    d.connected = 1
    d.welcome_at = d.connect_at = np.inf
    d.heard_at = now
    d.beat_at = max(now, d.up_since + rules.heartbeat_s)
    d.pong_due = np.inf
    if d.circuit != CLOSED:
        d.circuit = OPEN
        d.probe_at = now
    if rules.ping_s > 0.0:
        d.ping_at = now
    return usable(d)


@inner
def down(d: Any, rules: Any, now: float) -> None:
    """The connection is lost, or an attempt at one."""
    was = d.connected
    d.connected = 0
    d.pong_due = d.pong_at = d.ping_at = d.beat_at = d.echo_at = d.welcome_at = np.inf
    d.connect_at = now + rules.reconnect_s
    if was == 1:
        failure(d, rules, now)
