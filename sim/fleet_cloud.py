"""The ways to the cloud and back in fleet mode, and serving one message there."""

from __future__ import annotations

import numpy as np

from splitedge.sim.compiled import inner
from splitedge.sim.fleet_end import release
from splitedge.sim.fleet_link import carry
from splitedge.sim.fleet_world import (
    ANSWER_BY,
    BACK,
    CLOUD,
    FALLBACK_ENDS,
    FREE_AT,
    GUARD,
    HORIZON,
    IN_AIR,
    IN_CLOUD,
    LEAVING,
    LIMIT,
    LOST,
    MEAN_S,
    NONE,
    OVERDUE,
    REPLY,
    RETRY,
    RETURNING,
    STAGE_ENDS,
    WAITING,
    World,
)


@inner
def start_of(w: World, device: int) -> float:
    """Where in the trace the link of a device began."""
    return float(w.device[0].start_s if w.rules[0].shared_cell else w.device[device].start_s)


@inner
def pair_of(w: World, device: int) -> int:
    """The place of a device's uplink in `World.links`; its downlink is the next."""
    return 0 if w.rules[0].shared_cell else 2 * device


@inner
def back_start_of(w: World, device: int) -> float:
    """Where in its trace the downlink of a device began."""
    return start_of(w, device) + float(w.rules[0].down_ahead_s)


@inner
def retime(w: World, s: int) -> None:
    """Note when something happens to a request next; to be called when any of its times has changed."""
    r = w.slot[s]
    when, what = r.reply_at, REPLY
    if r.ended == 0:
        if r.stage_end < when:
            when, what = r.stage_end, STAGE_ENDS
        if r.fallback_end < when:
            when, what = r.fallback_end, FALLBACK_ENDS
        if r.in_hand != NONE and r.answer_by < when:
            when, what = r.answer_by, ANSWER_BY
        if r.limit < when:
            when, what = r.limit, LIMIT
        if r.guard_at < when:
            when, what = r.guard_at, GUARD
        if r.overdue_at < when:
            when, what = r.overdue_at, OVERDUE
        if r.retry_at < when:
            when, what = r.retry_at, RETRY
    r.wakes, r.event = when, what


@inner
def fly(w: World, s: int) -> None:
    """Carry a message that was sent at `sent_at` up to the cloud."""
    r = w.slot[s]
    sent = r.sent_at + w.rules[0].send_s
    arrives = carry(w.links[pair_of(w, r.owner)], w.up, start_of(w, r.owner), sent, r.message)
    r.uplink_s = arrives - sent
    r.cloud_at = arrives + w.rules[0].hand_s
    if arrives == np.inf:
        r.state = LOST
        return
    r.state = IN_CLOUD
    if r.pooled == 0:
        r.pooled = 1
        w.pools[CLOUD, w.counts[CLOUD]] = s
        w.counts[CLOUD] += 1


@inner
def leave(w: World, s: int, at: float, nbytes: float) -> None:
    """A reply or a refusal is ready: it goes down when all that leaves before it has."""
    r = w.slot[s]
    r.ends_at = at + w.rules[0].hand_s
    r.back_bytes = nbytes
    r.state = LEAVING
    if r.pooled == 0:
        r.pooled = 1
        w.pools[BACK, w.counts[BACK]] = s
        w.counts[BACK] += 1


@inner
def come_back(w: World, s: int) -> None:
    """Bring down what leaves."""
    r = w.slot[s]
    link = w.links[pair_of(w, r.owner) + 1]
    arrives = carry(link, w.down, back_start_of(w, r.owner), r.ends_at, r.back_bytes)
    r.downlink_s = arrives - r.ends_at
    r.reply_at = arrives + w.rules[0].receive_s
    r.state = RETURNING if arrives < np.inf else LOST
    w.wakes[r.owner] = min(w.wakes[r.owner], r.reply_at)
    retime(w, s)


@inner
def refuse(w: World, s: int, now: float, why: int) -> None:
    """Send a refusal in place of a reply; `why` is an error's code."""
    w.slot[s].refused = why
    leave(w, s, now, w.rules[0].refusal_bytes)


@inner
def serve(w: World, s: int, begun: float, ends: float) -> None:
    """The cloud worked on it from `begun` to `ends`; it says nothing if it was told meanwhile not to."""
    r = w.slot[s]
    r.queue_s, r.cloud_s = begun - r.cloud_at, ends - begun
    if r.cancel_at < ends:
        r.state = LOST
        if r.ended == 1:
            release(w, s)
    else:
        leave(w, s, ends, w.table[r.encoded].bytes_down)


@inner
def seconds(w: World, s: int) -> float:
    """Seconds of decoder and tail for one request alone."""
    r = w.slot[s]
    drawn = w.table[r.encoded].cloud_median_s * np.exp(w.table[r.encoded].cloud_sigma * r.cloud_z)
    w.clock[MEAN_S] += 0.05 * (drawn - w.clock[MEAN_S])
    return float(drawn)


@inner
def resolve(w: World, s: int, until: float, force: bool) -> float:
    """The first second at which there may be a reply to a message, where that is not known; inf where it is.

    With `force` it is settled out of turn where that is by `until`: as it would be if nothing came to the
    cloud beside what is known, and without taking an executor from others.
    """
    r = w.slot[s]
    rules, horizon = w.rules[0], w.clock[HORIZON]
    if r.state == IN_AIR:
        soonest = max(r.sent_at, horizon) + rules.lookahead_s
        if not force or soonest > until:
            return float(soonest)
        fly(w, s)
    if r.state == IN_CLOUD:
        begun = max(r.cloud_at, w.clock[FREE_AT])
        soonest = max(begun, horizon) + rules.lookahead_s
        queue = w.counts[WAITING] * w.clock[MEAN_S] * rules.per_row / len(w.busy)
        if not force or soonest + queue > until:
            return float(soonest + (queue if force else 0.0))
        serve(w, s, begun + queue, begun + queue + seconds(w, s))
    if r.state == LEAVING:
        soonest = max(r.ends_at, horizon) + rules.back_s
        if not force or soonest > until:
            return float(soonest)
        come_back(w, s)
    return np.inf
