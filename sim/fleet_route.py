"""A request's way through its device in fleet mode: arrival, decision, stages (`engine.py` on records)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from splitedge.sim.compiled import compiled
from splitedge.sim.curves import Floats
from splitedge.sim.fleet_circuit import busy, usable
from splitedge.sim.fleet_device import advance, begin
from splitedge.sim.fleet_end import cost, drawn, end, end_filtered, fall_back, guard_from, keep, residual
from splitedge.sim.fleet_estimate import DOWN, QUANTITIES, QUEUE, RTT, UP, estimate
from splitedge.sim.fleet_send import offer
from splitedge.sim.fleet_world import (
    FREE,
    NO_ERROR,
    NONE,
    REJECTED,
    UNAVAILABLE,
    Ints,
    World,
)


class Seen(NamedTuple):
    """What the policy sees of each of n requests, arrays of shape (n,): see `Observation`."""

    goodput: Floats  # (3, n): mean, low, high; so are the next three
    downlink: Floats
    rtt: Floats
    queue: Floats
    edge_wait_s: Floats
    link_up: Ints
    deadline_s: Floats
    battery: Floats
    unsent_s: Floats
    t_s: Floats
    confidence: Floats
    sunk_s: Floats


class Asked(NamedTuple):
    """The requests of a step, arrays of shape (n,): of different devices, by time of arrival."""

    device: Ints
    t_s: Floats
    place: Ints
    row: Ints
    edge_z: Floats
    cloud_z: Floats
    slot: Ints


@compiled
def arrive(w: World, asked: Asked, seen: Seen) -> None:
    """Let each device come to its request's arrival, take the request in, and see what there is to see."""
    rules = w.rules
    for i in range(len(asked.device)):
        device, t = asked.device[i], asked.t_s[i]
        advance(w, device, t)
        d = w.device[device]
        w.counts[FREE] -= 1
        s = w.free[w.counts[FREE]]
        asked.slot[i] = s
        r = w.slot[s]
        r.owner, r.next, r.place, r.row, r.t = device, NONE, asked.place[i], asked.row[i], t
        r.edge_z, r.cloud_z = asked.edge_z[i], asked.cloud_z[i]
        r.limit = t + (rules.deadline_s if rules.timed else rules.timeout_s)
        r.answer_by = max(t, r.limit - rules.margin_s) if rules.timed else r.limit
        r.guard_at = r.fallback_at = r.fallback_end = r.overdue_at = np.inf
        r.reply_at = r.cloud_at = r.retry_at = r.cancel_at = r.ends_at = np.inf
        r.sent_at = r.guarded_s = r.message = r.bytes_up = r.bytes_down = r.compute_s = r.sunk_s = 0.0
        r.tail_j = r.uplink_s = r.queue_s = r.cloud_s = r.downlink_s = 0.0
        r.sure = np.nan
        r.fallback = r.in_hand = r.reached = r.planned = r.target = r.encoded = NONE
        r.attempts = r.state = r.pooled = r.refused = r.ended = r.flying = r.waiting = r.remote_over = 0
        if d.head == NONE:
            d.head = s
        else:
            w.slot[d.tail].next = s
        d.tail = s
        d.active += 1
        busy(d, rules, t)
        at = QUANTITIES * device
        seen.goodput[0, i], seen.goodput[1, i], seen.goodput[2, i] = estimate(w.estimators, at + UP, t)
        seen.downlink[0, i], seen.downlink[1, i], seen.downlink[2, i] = estimate(w.estimators, at + DOWN, t)
        seen.rtt[0, i], seen.rtt[1, i], seen.rtt[2, i] = estimate(w.estimators, at + RTT, t)
        seen.queue[0, i], seen.queue[1, i], seen.queue[2, i] = estimate(w.estimators, at + QUEUE, t)
        if t >= d.read_at:
            left = (rules.charge * rules.battery_j - d.joules - rules.idle_w * t) / rules.battery_j
            d.charge = min(1.0, max(0.0, left))
            d.read_at = rules.battery_interval_s * (np.floor(t / rules.battery_interval_s) + 1.0)
        seen.battery[i] = d.charge
        r.goodput, r.goodput_low = seen.goodput[0, i], seen.goodput[1, i]
        r.rtt, r.rtt_high, r.battery = seen.rtt[0, i], seen.rtt[2, i], seen.battery[i]
        _see(w, s, t, seen, i)
        seen.confidence[i] = np.nan


@compiled
def _see(w: World, s: int, now: float, seen: Seen, i: int) -> None:
    """What changes between the decisions on one request."""
    r = w.slot[s]
    d = w.device[r.owner]
    seen.edge_wait_s[i] = residual(d, now)
    seen.link_up[i] = usable(d)
    seen.deadline_s[i] = r.answer_by - now if w.rules.timed else np.inf
    seen.unsent_s[i] = now - d.uplink_at
    seen.t_s[i] = now
    seen.sunk_s[i] = r.sunk_s


@compiled
def reply_95(w: World, option: int, nbytes: float, seen: Seen, i: int) -> float:
    """Predicted 95th percentile of the seconds between sending and reply."""
    table = w.table
    up = nbytes * 8.0 / seen.goodput[1, i]
    down = table.bytes_down[option] * 8.0 / seen.downlink[1, i]
    return float(up + seen.rtt[2, i] + seen.queue[2, i] + table.cloud_q95_s[option] + down)


@compiled
def pursue(w: World, asked: Asked, seen: Seen, which: Ints, choice: Ints, again: Ints) -> int:
    """Go on with the requests `which` (places in `asked`) towards the options chosen for them.

    Those that come to an exit are put into `again` (shape (n,)), with what is seen there in `seen`; gives
    how many they are.
    """
    stand = 0
    for j in range(len(which)):
        i = which[j]
        s = asked.slot[i]
        r = w.slot[s]
        if r.planned == NONE:
            r.planned = choice[j]
            d = w.device[r.owner]
            if d.active > w.rules.max_in_flight or d.charge <= 0.0:
                end(w, s, seen.t_s[i], NONE, np.nan, REJECTED)
                continue
        if _pursue(w, s, seen.t_s[i], choice[j], seen, i):
            again[stand] = i
            stand += 1
    return stand


@compiled
def _pursue(w: World, s: int, now: float, target: int, seen: Seen, i: int) -> bool:
    """True if the request now stands at an exit and its policy is to be asked again."""
    r = w.slot[s]
    d = w.device[r.owner]
    table, rules = w.table, w.rules
    r.target = target
    if not table.remote[target]:
        if 0 <= table.depth[target] <= r.reached:
            end(w, s, now, target, table.confidence[target, r.row], NO_ERROR)
            return False
        return _advance(w, s, now, seen, i)
    can = r.in_hand != NONE or len(table.fallbacks) > 0
    if not usable(d) and can:
        fall_back(w, s, now, UNAVAILABLE)
        return False
    if not rules.timed and can:
        left = max(0.0, table.edge_q95_s[target] - r.sunk_s)
        late = seen.edge_wait_s[i] + left + reply_95(w, target, table.bytes_up_q95[target], seen, i)
        r.answer_by = min(r.limit, now + max(rules.patience_s, rules.overdue_factor * late))
    if r.in_hand == NONE and r.guard_at == np.inf:
        guard_from(w, s, now)
    return _advance(w, s, now, seen, i)


@compiled
def _advance(w: World, s: int, now: float, seen: Seen, i: int) -> bool:
    """Run the next stage on the way to the target."""
    r = w.slot[s]
    d = w.device[r.owner]
    table = w.table
    target = r.target
    deeper = r.reached + 1
    at_exit = deeper < table.before[target]
    stage = table.exits[deeper] if at_exit else target
    at_exit = at_exit or table.depth[target] >= 0
    start = begin(w, s, now)
    if np.isnan(start):
        return False  # its events end it
    seconds = drawn(w, s, stage)
    done = start + seconds
    d.free = done
    d.expected = start + cost(w, s, stage, False)
    d.joules += (seconds - w.rules.stage_s) * w.rules.compute_w
    if done > r.limit or (r.in_hand != NONE and done > r.answer_by):
        return False
    r.compute_s += seconds - w.rules.stage_s
    if at_exit:
        r.sunk_s += seconds - w.rules.stage_s
        r.reached = deeper
        keep(w, s, stage)
        seen.confidence[i] = table.confidence[stage, r.row]
        _see(w, s, done, seen, i)
        seen.edge_wait_s[i] = 0.0
        return True
    if not table.remote[stage]:
        r.fallback = NONE
        end(w, s, done, stage, table.confidence[stage, r.row], NO_ERROR)
        return False
    r.encoded = stage
    r.message = table.nbytes[stage, r.row]
    if table.gated[stage] and r.message == 0.0:
        end_filtered(w, s, done)
        return False
    r.reply_s = reply_95(w, stage, r.message, seen, i)
    offer(w, s, done)
    return False
