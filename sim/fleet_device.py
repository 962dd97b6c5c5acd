"""What happens on one device between two of its requests, in order of time: the event loop of fleet mode."""

from __future__ import annotations

import numpy as np

from splitedge.sim.compiled import compiled
from splitedge.sim.fleet_cloud import resolve
from splitedge.sim.fleet_end import (
    answer_in_hand,
    begin_fallback,
    best_fallback,
    expire,
    keep,
    missed,
    run_fallback,
)
from splitedge.sim.fleet_send import link_event, link_wakes, offer, overdue, replied
from splitedge.sim.fleet_world import IN_AIR, IN_CLOUD, NONE, World

REPLY, FALLBACK_ENDS, ANSWER, LIMIT, GUARD, FALLBACK_BEGINS, OVERDUE, RETRY, LINK = range(9)


@compiled
def _next(w: World, device: int, until: float) -> tuple[float, int, int]:
    """The next event of a device by `until`: its second, what it is, and which slot it is of."""
    when, what, which = link_wakes(w, w.device[device]), LINK, NONE
    s = w.device[device].head
    while s != NONE:
        r = w.slot[s]
        if r.state == IN_CLOUD or r.state == IN_AIR:
            resolve(w, s, until)
        if r.reply_at < when:
            when, what, which = r.reply_at, REPLY, s
        if r.ended == 0:
            if r.fallback_end < when:
                when, what, which = r.fallback_end, FALLBACK_ENDS, s
            if r.in_hand != NONE and r.answer_by < when:
                when, what, which = r.answer_by, ANSWER, s
            if r.limit < when:
                when, what, which = r.limit, LIMIT, s
            if r.guard_at < when:
                when, what, which = r.guard_at, GUARD, s
            if r.fallback_at < when:
                when, what, which = r.fallback_at, FALLBACK_BEGINS, s
            if r.overdue_at < when:
                when, what, which = r.overdue_at, OVERDUE, s
            if r.retry_at < when:
                when, what, which = r.retry_at, RETRY, s
        s = r.next
    return when, what, which


@compiled
def advance(w: World, device: int, until: float) -> None:
    """Let all that happens on a device by `until` happen."""
    while True:
        when, what, which = _next(w, device, until)
        if when > until or when == np.inf:
            break
        if what == LINK:
            link_event(w, device, when)
        elif what == REPLY:
            replied(w, which, when)
        elif what == LIMIT:
            expire(w, which, when)
        elif what == ANSWER:
            missed(w, which, when)
            answer_in_hand(w, which, when)
        elif what == GUARD:
            guard(w, which, when)
        elif what == FALLBACK_BEGINS:
            begin_fallback(w, which, when)
        elif what == FALLBACK_ENDS:
            _fallback_ends(w, which, when)
        elif what == RETRY:
            offer(w, which, when)
        else:
            overdue(w, which, when)
    d = w.device[device]
    d.now = max(d.now, until)


@compiled
def guard(w: World, s: int, now: float) -> None:
    """The last moment to begin a fall-back has come."""
    r = w.slot[s]
    r.guard_at = np.inf
    if r.in_hand != NONE or r.fallback != NONE:
        return
    best = best_fallback(w, s, now)
    if best != NONE:
        run_fallback(w, s, now, best)


@compiled
def _fallback_ends(w: World, s: int, now: float) -> None:
    r = w.slot[s]
    option = r.fallback
    r.fallback = NONE
    r.fallback_end = np.inf
    r.compute_s += r.fallback_s - w.rules.stage_s
    keep(w, s, option)
    awaits = r.remote_over == 0 and r.encoded != NONE and r.encoded == r.target and now < r.answer_by
    if not awaits:
        answer_in_hand(w, s, now)


@compiled
def begin(w: World, s: int, ready: float) -> float:
    """The second at which the device begins a stage of a request that is ready for it at `ready`, after what
    is due on the device before; NaN where the request is past its limit by then, has ended, or its fall-back
    takes the stage's place.
    """
    r = w.slot[s]
    d = w.device[r.owner]
    while True:
        start = max(ready, d.free)
        if start > d.now:
            advance(w, r.owner, start)
            if r.ended == 1 or r.fallback != NONE:
                return np.nan
        if start >= d.free:
            return np.nan if start >= r.limit else float(start)
