"""How requests end in fleet mode: `settling.py` on records."""

from __future__ import annotations

from typing import Any

import numpy as np

from splitedge.paths import EQUAL
from splitedge.policy import Route
from splitedge.sim.compiled import inner
from splitedge.sim.fleet_circuit import silence
from splitedge.sim.fleet_estimate import QUANTITIES, RTT, estimate, observe_stall
from splitedge.sim.fleet_link import carry
from splitedge.sim.fleet_world import (
    DEADLINE,
    DONE,
    FREE,
    GONE,
    HERE,
    LEAVING,
    LOST,
    NO_ERROR,
    NONE,
    NOTHING,
    RETURNING,
    UNAVAILABLE,
    World,
)

#: Routes by code.
ROUTES = ("", *(route.value for route in Route))
_EXIT = ROUTES.index(Route.EXIT.value)
_EPS = 1e-9


@inner
def release(w: World, s: int) -> None:
    """Take an ended request out of its device's list, for nothing of it is to come."""
    r = w.slot[s]
    d = w.device[r.owner]
    last = NONE
    at = d.head
    while at != s:
        last = at
        at = w.slot[at].next
    if last == NONE:
        d.head = r.next
    else:
        w.slot[last].next = r.next
    if d.tail == s:
        d.tail = last
    if r.pooled == 1:
        r.state = GONE  # freed when it is taken out of the pool
    else:
        free(w, s)


@inner
def free(w: World, s: int) -> None:
    """Give a slot back: to the pool, if it is not its device's own."""
    w.slot[s].taken = 0
    if s >= 2 * len(w.device):
        w.pools[FREE, w.counts[FREE]] = s
        w.counts[FREE] += 1


@inner
def radio(w: World, d: Any, now: float) -> float:
    """Joules of the radio's tail that a transfer at `now` adds: `PowerModel.tail_joules`."""
    joules = w.rules[0].tail_w * min(w.rules[0].tail_s, max(0.0, now - d.radio_at))
    d.radio_at = now
    return float(joules)


@inner
def transfer(w: World, d: Any, now: float, nbytes: float, j_per_bit: float) -> None:
    """Draw a message's joules from the battery."""
    tail_j = w.rules[0].tail_w * min(w.rules[0].tail_s, max(0.0, now - d.awake_at))
    d.awake_at = now
    d.joules += 8.0 * nbytes * j_per_bit + tail_j


@inner
def end(w: World, s: int, now: float, option: int, confidence: float, error: int) -> None:
    """The one end of a request: `option` NONE for an error, NOTHING for a filter's class."""
    r = w.slot[s]
    d = w.device[r.owner]
    rules = w.rules[0]
    e = w.ended[w.counts[DONE]]
    w.counts[DONE] += 1
    e.owner, e.place, e.row, e.t, e.at = r.owner, r.place, r.row, r.t, now
    e.planned, e.option, e.error = r.planned, option, error
    e.bytes_up, e.bytes_down, e.attempts = r.bytes_up, r.bytes_down, r.attempts
    e.uplink_s, e.queue_s, e.cloud_s, e.downlink_s = r.uplink_s, r.queue_s, r.cloud_s, r.downlink_s
    e.compute_s = r.compute_s
    e.goodput, e.goodput_low, e.rtt, e.rtt_high = r.goodput, r.goodput_low, r.rtt, r.rtt_high
    e.battery = r.battery
    bits = r.bytes_up * rules.j_per_bit_up + r.bytes_down * rules.j_per_bit_down
    e.energy = r.compute_s * rules.compute_w + 8.0 * bits + r.tail_j
    e.confidence = confidence
    e.route = 0
    e.right = e.met = e.degraded = False
    if error == NO_ERROR:
        by = r.encoded if option == NOTHING else option
        e.route = _EXIT if option == NOTHING else w.table[option].route
        e.right = w.answers[by, r.row].right
        e.met = now - r.t <= rules.deadline_s
        e.degraded = option != NOTHING and option != r.target
    r.ended = 1
    d.active -= 1
    unguard(w, s)
    r.fallback_at = r.fallback_end = r.overdue_at = r.retry_at = np.inf
    r.stage_at = r.stage_end = np.inf
    r.waiting = 0
    if r.state != HERE and r.state != LOST and r.refused == NO_ERROR and d.connected == 1:
        _cancel(w, s, now)
    if r.state == HERE or r.state == LOST:
        release(w, s)


@inner
def _cancel(w: World, s: int, now: float) -> None:
    """Tell the cloud that nobody waits: no reply comes if it hears that before it is done."""
    r = w.slot[s]
    transfer(w, w.device[r.owner], now, w.rules[0].cancel_bytes, w.rules[0].j_per_bit_up)
    link = w.links[0 if w.rules[0].shared_cell else 2 * r.owner]
    start = w.device[0 if w.rules[0].shared_cell else r.owner].start_s
    r.cancel_at = carry(link, w.up, start, now + w.rules[0].send_s, w.rules[0].cancel_bytes)
    if (r.state == RETURNING or r.state == LEAVING) and r.cancel_at < r.ends_at:
        r.state = LOST
        r.reply_at = np.inf


@inner
def end_filtered(w: World, s: int, now: float) -> None:
    """The filter of the option just encoded keeps the payload here."""
    r = w.slot[s]
    kept = w.table[r.encoded].gate_exit
    right = w.answers[r.encoded, r.row].right
    sure = w.answers[r.encoded, r.row].confidence
    target = r.target
    if kept != NONE:
        r.target = kept  # not degraded: the option wanted has that filter
    end(w, s, now, kept if kept != NONE else NOTHING, sure, NO_ERROR)
    r.target = target
    w.ended[w.counts[DONE] - 1].right = right  # the evaluation has it with the option


@inner
def unguard(w: World, s: int) -> None:
    """No fall-back is needed any more."""
    r = w.slot[s]
    d = w.device[r.owner]
    r.guard_at = np.inf
    d.pending_s = max(0.0, d.pending_s - r.guarded_s)
    r.guarded_s = 0.0


@inner
def cost(w: World, s: int, option: int, quantile: bool) -> float:
    """Compute seconds of what is left of an option: `Paths.cost_s`."""
    table = w.table
    seconds = table[option].edge_q95_s if quantile else table[option].edge_s
    return float(max(0.0, seconds - w.slot[s].sunk_s) if table[option].on_head else seconds)


@inner
def residual(d: Any, now: float) -> float:
    """Expected seconds until the device is free: `ComputeQueue.residual_s`."""
    return float(max(0.0, d.expected - now) if d.free > now else 0.0)


@inner
def drawn(w: World, s: int, option: int) -> float:
    """Compute seconds that what is left of an option really takes."""
    table = w.table
    r = w.slot[s]
    seconds = table[option].edge_median_s * np.exp(table[option].edge_sigma * r.edge_z)
    if table[option].on_head:
        seconds = max(0.0, seconds - r.sunk_s)
    return float(seconds + w.rules[0].stage_s)


@inner
def _right_by(w: World, r: Any, option: int, held: bool) -> float:
    """The calibrated confidence of an answer in hand, else the option's accuracy."""
    if held:
        sure = w.answers[option, r.row].confidence
        if not np.isnan(sure):
            return float(sure)
    return float(w.table[option].accuracy)


@inner
def best_fallback(w: World, s: int, now: float) -> int:
    """The most accurate option the device can answer by in time, leaving others the time for theirs, of those
    within `EQUAL` of it the fastest; the fastest where none fits, NONE where the device can not answer.
    """
    r = w.slot[s]
    d = w.device[r.owner]
    free = now + residual(d, now)
    own = r.answer_by - free
    left = own
    demand = 0.0
    at = d.head
    while at != NONE:
        o = w.slot[at]
        if at != s and o.ended == 0 and o.guarded_s > 0.0 and o.fallback_end == np.inf:
            demand += o.guarded_s
            if o.fallback != NONE and o.answer_by <= r.answer_by:
                own -= o.guarded_s
            left = min(left, o.answer_by - free - demand)
        at = o.next
    left = min(own, left)
    table = w.table
    top, fastest, fastest_s = -1.0, NONE, np.inf
    for option in w.fallbacks:
        held = 0 <= table[option].depth <= r.reached
        seconds = 0.0 if held else cost(w, s, option, True)
        if not held and seconds < fastest_s:
            fastest, fastest_s = option, seconds
        if seconds <= left + _EPS or held:
            top = max(top, _right_by(w, r, option, held))
    best, least_s = NONE, np.inf
    for option in w.fallbacks:
        held = 0 <= table[option].depth <= r.reached
        seconds = 0.0 if held else cost(w, s, option, True)
        fits = seconds <= left + _EPS or held
        if fits and seconds < least_s and _right_by(w, r, option, held) >= top - EQUAL:
            best, least_s = option, seconds
    return int(best if best != NONE else fastest)


@inner
def guard_from(w: World, s: int, now: float) -> None:
    """Set the second at which the fall-back must begin: `Settling._guard_from`."""
    r = w.slot[s]
    d = w.device[r.owner]
    best = best_fallback(w, s, now)
    if best == NONE:
        return
    least = np.inf
    for option in w.fallbacks:
        least = min(least, cost(w, s, option, True))
    d.pending_s += least - r.guarded_s
    r.guarded_s = least
    own = cost(w, s, best, True)
    slack = min(w.rules[0].slack_s, 0.25 * (r.answer_by - now))
    latest = r.answer_by - own - residual(d, now) - slack
    early = latest - (d.pending_s - least)
    if d.active > 1:
        early -= w.rules[0].longest_s
    r.guard_at = max(now, min(latest, max(early, now + 0.5 * (r.answer_by - now))))


@inner
def run_fallback(w: World, s: int, now: float, option: int) -> None:
    """Have `option` computed as soon as the device is free."""
    r = w.slot[s]
    d = w.device[r.owner]
    r.stage_at = np.inf  # what was queued gives way, what runs goes on
    r.fallback = option
    if r.stage_end < np.inf and r.stage == option:
        r.fallback_end, r.fallback_s, r.stage_end = r.stage_end, r.stage_s, np.inf
        return
    r.fallback_at = max(now, d.free)
    seconds = cost(w, s, option, True)
    d.pending_s += seconds - r.guarded_s
    r.guarded_s = seconds


@inner
def begin_fallback(w: World, s: int, now: float) -> None:
    """The device is free for it: the option is chosen anew, for others may have come."""
    r = w.slot[s]
    d = w.device[r.owner]
    if d.free > now:
        r.fallback_at = d.free
        return
    best = best_fallback(w, s, now)
    held = best != NONE and 0 <= w.table[best].depth <= r.reached
    if best != NONE and not held and cost(w, s, best, True) < cost(w, s, r.fallback, True):
        r.fallback = best
    r.fallback_at = np.inf
    r.fallback_s = drawn(w, s, r.fallback)
    d.expected = now + cost(w, s, r.fallback, False)
    r.fallback_end = d.free = now + r.fallback_s
    d.joules += (r.fallback_s - w.rules[0].stage_s) * w.rules[0].compute_w


@inner
def answer_in_hand(w: World, s: int, now: float) -> None:
    """Give the best answer there is without the cloud."""
    r = w.slot[s]
    end(w, s, now, r.in_hand, r.sure, NO_ERROR)


@inner
def keep(w: World, s: int, option: int) -> None:
    """An answer of the device is there; the one most likely right is kept in hand."""
    r = w.slot[s]
    sure = w.answers[option, r.row].confidence
    if r.in_hand == NONE or known(w, option, sure) > known(w, r.in_hand, r.sure):
        r.in_hand, r.sure = option, sure
    unguard(w, s)


@inner
def known(w: World, option: int, confidence: float) -> float:
    """The confidence where there is one, else the option's accuracy."""
    return float(w.table[option].accuracy if np.isnan(confidence) else confidence)


@inner
def missed(w: World, s: int, now: float) -> None:
    """No reply in time: evidence on the link."""
    r = w.slot[s]
    if r.flying == 1:
        rtt = estimate(w, QUANTITIES * r.owner + RTT, now)[0]
        elapsed = now - r.sent_at - rtt - w.table[r.encoded].cloud_s
        observe_stall(w, r.owner, now, r.message, elapsed)
        silence(w.device[r.owner], w.rules[0], now, r.sent_at)


@inner
def expire(w: World, s: int, now: float) -> None:
    """The request's last second."""
    r = w.slot[s]
    missed(w, s, now)
    if r.in_hand != NONE:
        answer_in_hand(w, s, now)
    elif w.rules[0].timed or not w.table[r.target].remote or r.flying == 1:
        end(w, s, now, NONE, np.nan, DEADLINE)
    else:
        end(w, s, now, NONE, np.nan, UNAVAILABLE)


@inner
def fall_back(w: World, s: int, now: float, error: int) -> None:
    """The target is out of reach: answer without the cloud, or end in an error."""
    r = w.slot[s]
    r.remote_over = 1
    r.flying = r.waiting = 0
    r.overdue_at = r.retry_at = r.guard_at = np.inf
    if r.fallback != NONE:
        return
    unguard(w, s)
    r.stage_at = np.inf
    best = best_fallback(w, s, now)
    if best == NONE:
        end(w, s, now, NONE, np.nan, error)
    elif 0 <= w.table[best].depth <= r.reached:
        end(w, s, now, best, w.answers[best, r.row].confidence, NO_ERROR)
    else:
        run_fallback(w, s, now, best)
