"""What happens on one device between two of its requests, in order of time: the event loop of fleet mode."""

from __future__ import annotations

import numpy as np

from splitedge.sim.compiled import inner
from splitedge.sim.fleet_cloud import resolve, retime
from splitedge.sim.fleet_end import (
    answer_in_hand,
    begin_fallback,
    best_fallback,
    cost,
    drawn,
    end,
    end_filtered,
    expire,
    keep,
    missed,
    run_fallback,
)
from splitedge.sim.fleet_send import link_event, link_wakes, offer, overdue, replied
from splitedge.sim.fleet_world import (
    ANSWER_BY,
    BLOCKED,
    FALLBACK_ENDS,
    GUARD,
    IN_AIR,
    IN_CLOUD,
    LEAVING,
    LIMIT,
    NO_ERROR,
    NONE,
    REPLY,
    RETRY,
    STAGE_ENDS,
    World,
)

#: Events beside those of requests.
LINK, FALLBACK_BEGINS, STAGE_BEGINS, UNKNOWN = range(8, 12)

#: How far a device came: to the second wanted, to an exit, to where it must know what the cloud says.
THERE, STANDS, WAITS = range(3)


@inner
def _next(w: World, device: int, until: float, force: bool) -> tuple[float, int, int]:
    """The next event of a device by `until`: its second, what it is, and which slot it is of; the first
    second at which there may be one where there is none.
    """
    d = w.device[device]
    when, what, which = link_wakes(w, d), LINK, NONE
    begins, first = np.inf, NONE  # urgent stages go before the others, those before arrivals later
    queued = np.inf
    s = d.head
    while s != NONE:
        r = w.slot[s]
        if r.state == IN_CLOUD or r.state == IN_AIR or r.state == LEAVING:
            soonest = resolve(w, s, until, force)
            if soonest < when:
                when, what, which = soonest, UNKNOWN, s
        if r.wakes < when:
            when, what, which = r.wakes, r.event, s
        if r.ended == 0:
            if r.fallback_at < begins:
                begins, first = r.fallback_at, s
            queued = min(queued, r.stage_at)
        s = r.next
    begins, queued = max(begins, d.free), max(queued, d.free)
    if begins < when and first != NONE:
        when, what, which = begins, FALLBACK_BEGINS, first
    if queued < when:
        s = d.head
        while w.slot[s].ended == 1 or w.slot[s].stage_at > queued:
            s = w.slot[s].next
        when, what, which = queued, STAGE_BEGINS, s
    return when, what, which


@inner
def advance(w: World, device: int, until: float, force: bool) -> int:
    """Let all that happens on a device by `until` happen, as far as it can; gives how far it came.

    With `force`, what the cloud will say to a message is settled out of turn where it must be known.
    """
    d = w.device[device]
    while d.stands == NONE:
        if w.wakes[device] > until:
            return THERE
        when, what, which = _next(w, device, until, force)
        w.wakes[device] = when
        if when > until or when == np.inf:
            return THERE
        if what == UNKNOWN:
            w.clock[BLOCKED] = min(w.clock[BLOCKED], when)
            return WAITS
        _do(w, device, when, what, which)
        w.wakes[device] = -np.inf
    return STANDS


@inner
def _do(w: World, device: int, now: float, what: int, s: int) -> None:
    if what == LINK:
        link_event(w, device, now)
    elif what == REPLY:
        replied(w, s, now)
    elif what == STAGE_BEGINS:
        _stage_begins(w, s, now)
    elif what == STAGE_ENDS:
        _stage_ends(w, s, now)
    elif what == LIMIT:
        expire(w, s, now)
    elif what == ANSWER_BY:
        missed(w, s, now)
        answer_in_hand(w, s, now)
    elif what == GUARD:
        _guard(w, s, now)
    elif what == FALLBACK_BEGINS:
        begin_fallback(w, s, now)
    elif what == FALLBACK_ENDS:
        _fallback_ends(w, s, now)
    elif what == RETRY:
        offer(w, s, now)
    else:
        overdue(w, s, now)
    if s != NONE:
        retime(w, s)


@inner
def queue_stage(w: World, s: int, now: float) -> None:
    """Queue the next stage on the way to the target: `Engine._advance`."""
    r = w.slot[s]
    deeper = r.reached + 1
    r.stage = w.exits[deeper] if deeper < w.table[r.target].before else r.target
    r.stage_at = now
    if w.device[r.owner].free <= now and not _urgent(w, r.owner):
        _stage_begins(w, s, now)


@inner
def _urgent(w: World, device: int) -> bool:
    """Whether a fall-back waits for the device."""
    s = w.device[device].head
    while s != NONE:
        if w.slot[s].ended == 0 and w.slot[s].fallback_at < np.inf:
            return True
        s = w.slot[s].next
    return False


@inner
def _stage_begins(w: World, s: int, now: float) -> None:
    r = w.slot[s]
    d = w.device[r.owner]
    r.stage_at = np.inf
    r.stage_s = drawn(w, s, r.stage)
    r.stage_end = d.free = now + r.stage_s
    d.expected = now + cost(w, s, r.stage, False)
    d.joules += (r.stage_s - w.rules[0].stage_s) * w.rules[0].compute_w


@inner
def _stage_ends(w: World, s: int, now: float) -> None:
    """An exit or the local model gave an answer, or a payload is ready: `Engine._stage_done`."""
    r = w.slot[s]
    table = w.table
    stage = r.stage
    r.stage_end = np.inf
    seconds = r.stage_s - w.rules[0].stage_s
    r.compute_s += seconds
    if table[stage].on_head:
        r.sunk_s += seconds
    if not table[stage].remote:
        keep(w, s, stage)
        if table[stage].depth >= 0:
            r.reached = table[stage].depth
            if r.remote_over == 0 and r.fallback == NONE:
                d = w.device[r.owner]
                d.stands, d.stands_at = s, now
        elif stage == r.target:
            end(w, s, now, stage, w.answers[stage, r.row].confidence, NO_ERROR)
        return
    r.encoded = stage
    r.message = w.answers[stage, r.row].message
    if r.remote_over == 1 or r.target != stage:
        return
    if table[stage].gated and r.message == 0.0:
        end_filtered(w, s, now)
    else:
        r.reply_s += r.message * 8.0 / r.goodput_low
        offer(w, s, now)


@inner
def _guard(w: World, s: int, now: float) -> None:
    """The last moment to begin a fall-back has come."""
    r = w.slot[s]
    r.guard_at = np.inf
    runs_exit = r.stage_end < np.inf and not w.table[r.stage].remote
    if r.in_hand != NONE or r.fallback != NONE or runs_exit:
        return
    best = best_fallback(w, s, now)
    if best != NONE:
        run_fallback(w, s, now, best)


@inner
def _fallback_ends(w: World, s: int, now: float) -> None:
    r = w.slot[s]
    option = r.fallback
    r.fallback = NONE
    r.fallback_end = np.inf
    r.compute_s += r.fallback_s - w.rules[0].stage_s
    if w.table[option].depth >= 0:
        r.sunk_s += r.fallback_s - w.rules[0].stage_s
        r.reached = max(r.reached, w.table[option].depth)
    keep(w, s, option)
    awaits = r.remote_over == 0 and r.encoded != NONE and r.encoded == r.target and now < r.answer_by
    if not awaits:
        answer_in_hand(w, s, now)
