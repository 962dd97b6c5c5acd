"""Sending and hearing in fleet mode: `remote.py` on records."""

from __future__ import annotations

from typing import Any

import numpy as np

from splitedge.sim import sizes
from splitedge.sim.compiled import inner
from splitedge.sim.fleet_circuit import down, failure, life, next_ping, up, usable
from splitedge.sim.fleet_cloud import back_start_of, fly, pair_of, retime, start_of
from splitedge.sim.fleet_end import end, fall_back, missed, radio, release, transfer
from splitedge.sim.fleet_estimate import (
    DOWN,
    UP,
    observe_exchange,
    observe_queue,
    observe_rtt,
    observe_transfer,
)
from splitedge.sim.fleet_link import carry, drop_queue
from splitedge.sim.fleet_world import (
    AIR,
    BACK,
    BUSY,
    CLOSED,
    HALF_OPEN,
    HERE,
    IN_AIR,
    IN_CLOUD,
    LEAVING,
    LOST,
    MEAN_S,
    NO_ERROR,
    NONE,
    RETURNING,
    UNAVAILABLE,
    World,
)

_DRIFT = 100e-6  # of `ClockOffset`
_GREETING, _HANDSHAKE = sizes.GREETING_PARTS, sizes.HANDSHAKE
_LONG = 1e300  # seconds: known to come, not known when


@inner
def offer(w: World, s: int, now: float) -> None:
    """Send the payload, or have it wait for the link."""
    r = w.slot[s]
    d = w.device[r.owner]
    if r.attempts >= w.rules[0].max_attempts:
        fall_back(w, s, now, UNAVAILABLE)
        return
    if not usable(d):
        r.waiting = 1
        return
    first = r.state == HERE or r.state == LOST
    r.waiting = 0
    r.flying = 1
    r.refused = NO_ERROR
    r.retry_at = r.cancel_at = np.inf
    r.attempts += 1
    r.bytes_up += r.message
    r.tail_j += radio(w, d, now)
    transfer(w, d, now, r.message, w.rules[0].j_per_bit_up)
    d.uplink_at = now
    wait = max(w.rules[0].overdue_min_s, w.rules[0].overdue_factor * r.reply_s)
    r.overdue_at = now + wait * 2.0 ** (r.attempts - 1)
    if not first:  # the first copy is still under way: this one only takes room
        r.sent_at = now
        carry(w.links[pair_of(w, r.owner)], w.up, start_of(w, r.owner), now, r.message)
        return
    r.sent_at = now
    if w.rules[0].shared_cell and r.pooled == 0:
        r.state = IN_AIR
        r.pooled = 1
        w.pools[AIR, w.counts[AIR]] = s
        w.counts[AIR] += 1
    else:
        fly(w, s)


@inner
def flush(w: World, device: int, now: float) -> None:
    """The link is usable again: send what waited for it."""
    at = w.device[device].head
    while at != NONE:
        after = w.slot[at].next
        if w.slot[at].waiting == 1:
            offer(w, at, now)
            retime(w, at)
        at = after


@inner
def replied(w: World, s: int, now: float) -> None:
    """The reply is here: it answers the request if that has not ended, and teaches the estimator."""
    r = w.slot[s]
    w.device[r.owner].heard_at = now
    if r.refused != NO_ERROR:
        _refused(w, s, now)
        return
    device, nbytes = r.owner, r.message
    down_bytes = w.table[r.encoded].bytes_down
    d = w.device[device]
    transfer(w, d, now, down_bytes, w.rules[0].j_per_bit_down)
    there, back = r.cloud_at - r.sent_at, now - r.ends_at
    observe_clock(d, now, there, back)
    up_s = min(there + back, max(0.0, there - d.offset))
    down_s, queue_s = there + back - up_s, r.queue_s
    r.state = HERE
    r.reply_at = np.inf
    if r.ended == 1:
        release(w, s)
    else:
        r.bytes_down += down_bytes
        r.tail_j += radio(w, d, now)
        end(w, s, now, r.encoded, w.answers[r.encoded, r.row].confidence, NO_ERROR)
    observe_exchange(w, device, now, nbytes, down_bytes, up_s + down_s)
    observe_transfer(w, device, UP, now, nbytes, up_s)
    observe_transfer(w, device, DOWN, now, down_bytes, down_s)
    observe_queue(w, device, now, queue_s)
    if life(d, w.rules[0], now):
        flush(w, device, now)


@inner
def observe_clock(d: Any, now: float, up_s: float, down_s: float) -> None:
    """What `ClockOffset` makes of a round trip: half of what differs between the ways seems an offset."""
    bound = 0.5 * d.offset_delay + _DRIFT * max(0.0, now - d.offset_at)
    if 0.5 * (up_s + down_s) <= bound:
        d.offset = 0.5 * (up_s - down_s)
        d.offset_delay, d.offset_at = up_s + down_s, now


@inner
def _refused(w: World, s: int, now: float) -> None:
    """The cloud gave no answer: sent again where there is time for that, else answered here."""
    r = w.slot[s]
    device = r.owner
    why = r.refused
    r.state = HERE
    r.reply_at = np.inf
    if r.ended == 1:
        release(w, s)
    elif r.remote_over == 0:
        r.flying = 0
        r.overdue_at = np.inf
        backoff = min(w.rules[0].retry_max_s, w.rules[0].retry_base_s * 2.0 ** (r.attempts - 1))
        # The engine shortens it at random by up to `retry_jitter` of itself: half of that on average.
        wait = max(w.clock[MEAN_S], backoff * (1.0 - 0.5 * w.rules[0].retry_jitter))
        if w.rules[0].timed and why == BUSY:
            wait = max(wait, r.limit - r.sent_at)
        if why == BUSY and r.attempts < w.rules[0].max_attempts and now + wait < r.answer_by:
            r.retry_at = now + wait
        else:
            fall_back(w, s, now, why)
    if life(w.device[device], w.rules[0], now):
        flush(w, device, now)


@inner
def ping(w: World, device: int, now: float) -> None:
    """Probe the link with a small message."""
    d = w.device[device]
    d.pong_due = now + w.rules[0].ping_timeout_s
    if d.pong_at < np.inf:
        return  # the one before is still under way, and comes first
    at = pair_of(w, device)
    start = start_of(w, device)
    there = carry(w.links[at], w.up, start, now + w.rules[0].send_s, w.rules[0].ping_bytes)
    d.ping_sent, d.ping_there = now, there
    transfer(w, d, now, w.rules[0].ping_bytes, w.rules[0].j_per_bit_up)
    if there < np.inf:
        d.pong_at = _LONG  # until the cloud's turn comes
        w.pools[BACK, w.counts[BACK]] = -1 - device
        w.counts[BACK] += 1


@inner
def link_event(w: World, device: int, now: float) -> None:
    """Do what is due on a device's link at `now`."""
    d = w.device[device]
    rules = w.rules[0]
    if d.cut < len(w.cuts) and now >= w.cuts[d.cut, 0]:
        d.cut += 1
        pair, start = pair_of(w, device), start_of(w, device)
        drop_queue(w.links[pair], w.up, start, now)
        drop_queue(w.links[pair + 1], w.down, back_start_of(w, device), now)
        lose(w, device, now)
    elif now >= d.pong_at:
        rtt = d.pong_at - d.ping_sent
        observe_clock(d, now, d.ping_there - d.ping_sent, now - d.ping_there)
        transfer(w, d, now, rules.pong_bytes, rules.j_per_bit_down)
        d.pong_at = np.inf
        d.heard_at = now
        observe_rtt(w, device, now, rtt)
        if life(d, rules, now):
            flush(w, device, now)
    elif now >= d.echo_at:
        d.heard_at = now
        d.echo_at = np.inf
    elif now >= d.welcome_at:
        if up(d, rules, now):
            flush(w, device, now)
    elif now >= d.connect_at:
        _connect(w, device, now)
    elif now >= d.beat_at:
        _beat(w, device, now)
    elif now >= d.pong_due:
        d.pong_due = np.inf
        failure(d, rules, now)
    elif now >= d.probe_at:
        d.circuit = HALF_OPEN
        d.probe_at = np.inf
        ping(w, device, now)
    elif now >= d.ping_at:
        next_ping(d, rules, now)
        if d.pong_due == np.inf and d.circuit == CLOSED:
            ping(w, device, now)


@inner
def link_wakes(w: World, d: Any) -> float:
    """Second of the next `link_event`."""
    at = min(min(d.pong_at, d.echo_at), min(d.welcome_at, d.connect_at))
    if d.connected == 1:
        at = min(min(at, d.beat_at), min(min(d.pong_due, d.probe_at), d.ping_at))
    if d.cut < len(w.cuts):
        at = min(at, w.cuts[d.cut, 0])
    return float(at)


@inner
def _beat(w: World, device: int, now: float) -> None:
    """Heartbeats (`Connection._beat`), only those of a link that was silent for the time between two."""
    d = w.device[device]
    rules = w.rules[0]
    every = rules.heartbeat_s
    asked = d.up_since + every * (np.floor((d.heard_at - d.up_since) / every + 1e-9) + 1.0)
    if now >= asked + 3.0 * every - 1e-9:
        lose(w, device, now)
        return
    if now < asked + every - 1e-9:
        d.beat_at = asked + every
        return
    d.beat_at = now + every
    if d.echo_at < np.inf:
        return  # an earlier one is under way and comes first
    link = w.links[pair_of(w, device)]
    d.beat_there = carry(link, w.up, start_of(w, device), now, rules.beat_bytes)
    if d.beat_there < np.inf:
        d.echo_at = _LONG
        w.pools[BACK, w.counts[BACK]] = -1 - len(w.device) - device
        w.counts[BACK] += 1


@inner
def _connect(w: World, device: int, now: float) -> None:
    """Try to connect: greetings, handshake, hello and welcome (`Connection._connect`)."""
    d = w.device[device]
    rules = w.rules[0]
    d.connect_at = now + rules.reconnect_s
    for i in range(len(w.cuts)):
        if w.cuts[i, 0] <= now < w.cuts[i, 1]:
            return
    d.connect_at = now + rules.handshake_s + rules.reconnect_s  # of the next attempt, should this one fail
    shaken = _shake_hands(w, device, now)
    if shaken > now + rules.handshake_s:
        return
    d.connect_at = np.inf
    d.up_since = shaken
    up_link, down_link = w.links[pair_of(w, device)], w.links[pair_of(w, device) + 1]
    start, back = start_of(w, device), back_start_of(w, device)
    at, first = shaken, np.inf
    while at < first:  # said again until there is a welcome
        there = carry(up_link, w.up, start, at, rules.hello_bytes)
        welcome = np.inf if there == np.inf else carry(down_link, w.down, back, there, rules.welcome_bytes)
        first = min(first, welcome)
        if welcome == np.inf:
            break  # the replay of the channel ends before
        at += rules.hello_s
    d.welcome_at = first


@inner
def _shake_hands(w: World, device: int, now: float) -> float:
    """Greetings, each part at the other's part before it, and CURVE's handshake: the second at which the
    device has the last of it, or one after it gives up.
    """
    up_link, down_link = w.links[pair_of(w, device)], w.links[pair_of(w, device) + 1]
    start, back = start_of(w, device), back_start_of(w, device)
    latest = now + w.rules[0].handshake_s
    here = there = now  # where each side last had a part of the other's
    for part in range(3):
        if max(here, there) > latest:
            return np.inf
        went = carry(up_link, w.up, start, here, _GREETING[part])
        came = carry(down_link, w.down, back, there, _GREETING[part])
        here, there = came, went
    for step in range(0, 4, 2):
        if here > latest:
            return np.inf
        there = carry(up_link, w.up, start, here, _HANDSHAKE[step])
        if there > latest:
            return np.inf
        here = carry(down_link, w.down, back, there, _HANDSHAKE[step + 1])
    return float(here)


@inner
def lose(w: World, device: int, now: float) -> None:
    """The connection is lost, and what was under way with it, which waits for the next."""
    d = w.device[device]
    down(d, w.rules[0], now)
    at = d.head
    while at != NONE:
        r = w.slot[at]
        after = r.next
        if r.state == IN_AIR or r.state == IN_CLOUD or r.state == LEAVING or r.state == RETURNING:
            r.state = LOST
            r.reply_at = np.inf
            if r.ended == 1:
                release(w, at)
            else:
                if r.flying == 1:
                    r.flying = 0
                    r.waiting = 1
                r.overdue_at = np.inf
                retime(w, at)
        at = after


@inner
def overdue(w: World, s: int, now: float) -> None:
    """The reply is late by far."""
    r = w.slot[s]
    r.overdue_at = np.inf
    missed(w, s, now)
    if r.attempts < w.rules[0].max_attempts:
        offer(w, s, now)
    elif not w.rules[0].timed and (r.in_hand != NONE or len(w.fallbacks) > 0):
        fall_back(w, s, now, UNAVAILABLE)
