"""A request's way through its device in fleet mode: arrival, decision, stages (`engine.py` on records)."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from splitedge.sim.compiled import entry, inner
from splitedge.sim.curves import Floats
from splitedge.sim.fleet_circuit import busy, usable
from splitedge.sim.fleet_cloud import retime
from splitedge.sim.fleet_device import STANDS, advance, queue_stage
from splitedge.sim.fleet_end import cost, end, fall_back, guard_from, residual
from splitedge.sim.fleet_estimate import DOWN, QUANTITIES, QUEUE, RTT, UP, estimate
from splitedge.sim.fleet_world import (
    BATTERY,
    CLOUD_QUEUE,
    CONFIDENCE,
    DEADLINE_LEFT,
    DOWNLINK,
    EDGE_WAIT,
    FREE,
    GOODPUT,
    LINK_UP,
    NO_ERROR,
    NONE,
    NOW,
    REJECTED,
    ROUND_TRIP,
    SUNK,
    UNAVAILABLE,
    UNSENT,
    Ints,
    World,
)


class Asked(NamedTuple):
    """The requests of a step, arrays of shape (n,): of different devices, by time of arrival."""

    device: Ints
    t_s: Floats
    place: Ints
    row: Ints
    edge_z: Floats
    cloud_z: Floats
    slot: Ints


@entry
def approach(w: World, device: Ints, until: Floats, which: Ints) -> int:
    """Let devices come to the seconds `until`, as far as they can without their policy (see `advance`).

    Those that stand at an exit are put into `which` (places in `device`), with what is seen there in
    `World.seen`; gives how many they are.
    """
    return _approach(w, device, until, which)


@inner
def _approach(w: World, device: Ints, until: Floats, which: Ints) -> int:
    stand = 0
    for i in range(len(device)):
        if advance(w, device[i], until[i], False) == STANDS:
            _see_standing(w, device[i], i)
            which[stand] = i
            stand += 1
    return stand


@inner
def _see_standing(w: World, device: int, i: int) -> None:
    d = w.device[device]
    r = w.slot[d.stands]
    _see(w, d.stands, d.stands_at, i)
    w.seen[CONFIDENCE, i] = w.answers[w.exits[r.reached], r.row].confidence


@entry
def standing(w: World, device: Ints, which: Ints) -> tuple[Ints, Ints]:
    """The requests that stand at exits on these devices, and the depths of those."""
    slot, depth = np.empty(len(which), np.int64), np.empty(len(which), np.int64)
    _standing(w, device, which, slot, depth)
    return slot, depth


@inner
def _standing(w: World, device: Ints, which: Ints, slot: Ints, depth: Ints) -> None:
    for j in range(len(which)):
        d = w.device[device[which[j]]]
        slot[j] = d.stands
        depth[j] = w.slot[d.stands].reached
        d.stands = NONE
        w.wakes[device[which[j]]] = -np.inf


@entry
def arrive(w: World, asked: Asked, todo: Ints, which: Ints) -> int:
    """Take requests in, those at the places `todo` in `asked`: each on its device, which comes to the second
    of its arrival, and see what there is to see.

    Those whose devices stand at an exit before that are put into `which`, to be taken in later, as
    `approach` does; gives how many they are.
    """
    return _arrive(w, asked, todo, which)


@inner
def _arrive(w: World, asked: Asked, todo: Ints, which: Ints) -> int:
    stand = 0
    for i in todo:
        if advance(w, asked.device[i], asked.t_s[i], True) == STANDS:
            _see_standing(w, asked.device[i], i)
            which[stand] = i
            stand += 1
        else:
            _take_in(w, asked, i)
    return stand


@inner
def _free_slot(w: World, device: int) -> int:
    """A slot for a request: one of the device's own two, which stand together, if it can be."""
    s = 2 * device
    if w.slot[s].taken == 1:
        s += 1
    if w.slot[s].taken == 1:
        w.counts[FREE] -= 1
        s = w.pools[FREE, w.counts[FREE]]
    w.slot[s].taken = 1
    return s


@inner
def _take_in(w: World, asked: Asked, i: int) -> None:
    rules = w.rules[0]
    device, t = asked.device[i], asked.t_s[i]
    d = w.device[device]
    w.wakes[device] = -np.inf
    s = _free_slot(w, device)
    asked.slot[i] = s
    r = w.slot[s]
    r.owner, r.next, r.place, r.row, r.t = device, NONE, asked.place[i], asked.row[i], t
    r.edge_z, r.cloud_z = asked.edge_z[i], asked.cloud_z[i]
    r.limit = t + (rules.deadline_s if rules.timed else rules.timeout_s)
    r.answer_by = max(t, r.limit - rules.margin_s) if rules.timed else r.limit
    r.guard_at = r.fallback_at = r.fallback_end = r.overdue_at = np.inf
    r.reply_at = r.cloud_at = r.retry_at = r.cancel_at = r.ends_at = r.stage_at = r.stage_end = np.inf
    r.sent_at = r.guarded_s = r.message = r.bytes_up = r.bytes_down = r.compute_s = r.sunk_s = 0.0
    r.tail_j = r.uplink_s = r.queue_s = r.cloud_s = r.downlink_s = 0.0
    r.sure = np.nan
    r.fallback = r.in_hand = r.reached = r.planned = r.target = r.encoded = r.stage = NONE
    r.attempts = r.state = r.pooled = r.refused = r.ended = r.flying = r.waiting = r.remote_over = 0
    if d.head == NONE:
        d.head = s
    else:
        w.slot[d.tail].next = s
    d.tail = s
    d.active += 1
    busy(d, rules, t)
    if t >= d.read_at:
        left = (rules.charge * rules.battery_j - d.joules - rules.idle_w * t) / rules.battery_j
        d.charge = min(1.0, max(0.0, left))
        d.read_at = rules.battery_interval_s * (np.floor(t / rules.battery_interval_s) + 1.0)
    _see(w, s, t, i)
    w.seen[CONFIDENCE, i] = np.nan


@inner
def _see(w: World, s: int, now: float, i: int) -> None:
    """What a policy sees of a request at `now`; a record keeps what its last decision saw."""
    r = w.slot[s]
    d = w.device[r.owner]
    seen = w.seen
    at = QUANTITIES * r.owner
    _see_estimate(w, at + UP, now, GOODPUT, i)
    _see_estimate(w, at + DOWN, now, DOWNLINK, i)
    _see_estimate(w, at + RTT, now, ROUND_TRIP, i)
    _see_estimate(w, at + QUEUE, now, CLOUD_QUEUE, i)
    r.goodput, r.goodput_low = seen[GOODPUT, i], seen[GOODPUT + 1, i]
    r.rtt, r.rtt_high, r.battery = seen[ROUND_TRIP, i], seen[ROUND_TRIP + 2, i], d.charge
    seen[BATTERY, i] = d.charge
    seen[EDGE_WAIT, i] = residual(d, now) + _queued_s(w, d)
    seen[LINK_UP, i] = usable(d)
    seen[DEADLINE_LEFT, i] = r.answer_by - now if w.rules[0].timed else np.inf
    seen[UNSENT, i] = now - d.uplink_at
    seen[NOW, i] = now
    seen[SUNK, i] = r.sunk_s


@inner
def _see_estimate(w: World, at: int, now: float, row: int, i: int) -> None:
    w.seen[row, i], w.seen[row + 1, i], w.seen[row + 2, i] = estimate(w, at, now)


@inner
def _queued_s(w: World, d: Any) -> float:
    """Expected seconds of the stages that wait for the device."""
    seconds = 0.0
    at = d.head
    while at != NONE:
        o = w.slot[at]
        if o.ended == 0:
            if o.stage_at < np.inf:
                seconds += cost(w, at, o.stage, False)
            if o.fallback_at < np.inf:
                seconds += cost(w, at, o.fallback, False)
        at = o.next
    return seconds


@entry
def pursue(w: World, slot: Ints, which: Ints, choice: Ints, until: float) -> None:
    """Make the options chosen the targets of requests, and let their devices come to the second `until`, as
    far as they can; what is seen of them stands at `which` in `World.seen`.
    """
    _pursue(w, slot, which, choice, until)


@inner
def _pursue(w: World, slot: Ints, which: Ints, choice: Ints, until: float) -> None:
    for j in range(len(which)):
        i, s = which[j], slot[j]
        r = w.slot[s]
        owner = r.owner
        if r.planned == NONE:
            r.planned = choice[j]
            d = w.device[owner]
            if d.active > w.rules[0].max_in_flight or d.charge <= 0.0:
                end(w, s, w.seen[NOW, i], NONE, np.nan, REJECTED)
                continue
        _go_on(w, s, w.seen[NOW, i], choice[j], i)
        retime(w, s)
        if until > w.seen[NOW, i]:  # now, while all of it is in the processor's cache
            advance(w, owner, until, False)


@inner
def _go_on(w: World, s: int, now: float, target: int, i: int) -> None:
    """Go on towards the option wanted: `Engine._pursue`."""
    r = w.slot[s]
    table, rules = w.table, w.rules[0]
    r.target = target
    if not table[target].remote:
        if 0 <= table[target].depth <= r.reached:
            end(w, s, now, target, w.answers[target, r.row].confidence, NO_ERROR)
        else:
            queue_stage(w, s, now)
        return
    can = r.in_hand != NONE or len(w.fallbacks) > 0
    if not usable(w.device[r.owner]) and can:
        fall_back(w, s, now, UNAVAILABLE)
        return
    seen = w.seen
    down = table[target].bytes_down * 8.0 / seen[DOWNLINK + 1, i]
    r.reply_s = seen[ROUND_TRIP + 2, i] + seen[CLOUD_QUEUE + 2, i] + table[target].cloud_q95_s + down
    if not rules.timed and can:
        left = table[target].edge_q95_s - (r.sunk_s if table[target].on_head else 0.0)
        up = table[target].bytes_up_q95 * 8.0 / seen[GOODPUT + 1, i]
        late = seen[EDGE_WAIT, i] + max(0.0, left) + up + r.reply_s
        r.answer_by = min(r.limit, now + max(rules.patience_s, rules.overdue_factor * late))
    if r.in_hand == NONE and r.guard_at == np.inf:
        guard_from(w, s, now)
    queue_stage(w, s, now)
