"""The cloud that all devices share, and the way back: a queue before executors, in order of arrival.

All messages that arrive before a horizon are known when `run_cloud` is called with it, for a request that
arrives at its device later can not be in the cloud sooner. So they are served in the order of their
arrival, whichever device they come from, as events would.
"""

from __future__ import annotations

import numpy as np

from splitedge.sim.compiled import compiled
from splitedge.sim.fleet_end import release
from splitedge.sim.fleet_link import carry
from splitedge.sim.fleet_world import (
    AIR,
    BUSY,
    CLOUD,
    DEADLINE,
    FREE,
    GONE,
    HORIZON,
    IN_AIR,
    IN_CLOUD,
    LOST,
    MEAN_S,
    NONE,
    RETURNING,
    WAITING,
    Ints,
    World,
)


@compiled
def start_of(w: World, device: int) -> float:
    """Where in the trace the link of a device began."""
    return float(w.device[0].start_s if w.rules.shared_cell else w.device[device].start_s)


@compiled
def pair_of(w: World, device: int) -> int:
    """The place of a device's uplink in `World.links`; its downlink is the next."""
    return 0 if w.rules.shared_cell else 2 * device


@compiled
def fly(w: World, s: int) -> None:
    """Carry a message that was sent at `sent_at` up to the cloud."""
    r = w.slot[s]
    sent = r.sent_at + w.rules.send_s
    arrives = carry(w.links[pair_of(w, r.device)], w.up, start_of(w, r.device), sent, r.nbytes)
    r.uplink_s = arrives - sent
    r.cloud_at = arrives + w.rules.hand_s
    if arrives == np.inf:
        r.state = LOST
        return
    if w.rules.timed and (r.in_hand != NONE or len(w.table.fallbacks) > 0):
        # By then the device has answered and said so; that it does is settled later than the cloud's turn.
        r.cancel_at = max(r.cloud_at, r.answer_by + 0.5 * w.up.rtt.values[0])
    r.state = IN_CLOUD
    if r.pooled == 0:
        r.pooled = 1
        w.cloud[w.count[CLOUD]] = s
        w.count[CLOUD] += 1


@compiled
def _return(w: World, s: int, at: float, nbytes: float) -> None:
    """Bring a reply or a refusal down, from `at` on."""
    r = w.slot[s]
    sent = at + w.rules.hand_s
    link = w.links[pair_of(w, r.device) + 1]
    arrives = carry(link, w.down, start_of(w, r.device), sent, nbytes)
    r.downlink_s = arrives - sent
    r.reply_at = arrives + w.rules.receive_s
    r.state = RETURNING if arrives < np.inf else LOST


@compiled
def _refuse(w: World, s: int, now: float, why: int) -> None:
    w.slot[s].refused = why
    _return(w, s, now, w.rules.refusal_bytes)


@compiled
def _serve(w: World, s: int, begun: float, ends: float) -> None:
    """The cloud worked on it from `begun` to `ends`; it says nothing if it was told meanwhile not to."""
    r = w.slot[s]
    r.queue_s, r.cloud_s, r.ends_at = begun - r.cloud_at, ends - begun, ends
    if r.cancel_at < ends:
        r.state = LOST
        if r.ended == 1:
            release(w, s)
    else:
        _return(w, s, ends, w.table.bytes_down[r.encoded])


@compiled
def _seconds(w: World, s: int) -> float:
    """Seconds of decoder and tail for one request alone."""
    r = w.slot[s]
    seconds = w.table.cloud_median_s[r.encoded] * np.exp(w.table.cloud_sigma[r.encoded] * r.cloud_z)
    w.clock[MEAN_S] += 0.05 * (seconds - w.clock[MEAN_S])
    return float(seconds)


@compiled
def resolve(w: World, s: int, until: float) -> None:
    """Serve one message out of turn where its device must know of the reply before the horizon is there.

    It takes the executor that is free first, unless so much waits that no reply could come by `until`.
    """
    r = w.slot[s]
    if r.state == IN_AIR and r.sent_at + w.rules.lookahead_s <= until:
        fly(w, s)
    if r.state != IN_CLOUD:
        return
    first = np.argmin(w.busy)
    begun = max(r.cloud_at, w.busy[first])
    queue = w.count[WAITING] * w.clock[MEAN_S] * w.rules.per_row / len(w.busy)
    if max(begun, w.clock[HORIZON]) + queue + w.rules.lookahead_s > until:
        return
    w.busy[first] = begun + _seconds(w, s)
    _serve(w, s, begun, w.busy[first])


@compiled
def _due(w: World, pool: Ints, counter: int, horizon: float, state: int) -> Ints:
    """Take those before the horizon out of a pool and give them in order of time."""
    size = w.count[counter]
    times = np.empty(size)
    due = np.empty(size, np.int64)
    found = left = 0
    for i in range(size):
        s = pool[i]
        r = w.slot[s]
        if r.state != state:  # served out of turn, lost, or freed
            _unpool(w, s)
            continue
        at = r.sent_at if state == IN_AIR else r.cloud_at
        if at < horizon:
            times[found], due[found] = at, s
            found += 1
        else:
            pool[left] = s
            left += 1
    w.count[counter] = left
    return due[:found][np.argsort(times[:found])]


@compiled
def _unpool(w: World, s: int) -> None:
    r = w.slot[s]
    r.pooled = 0
    if r.state == GONE:
        w.free[w.count[FREE]] = s
        w.count[FREE] += 1


@compiled
def _wait_s(w: World, now: float) -> float:
    """Predicted wait of a request that comes now: what runs, and what waits."""
    wait = max(0.0, w.busy.min() - now)
    waiting = w.count[WAITING]
    if waiting > 0:
        mean, share = w.clock[MEAN_S], w.rules.per_row
        wait += mean * ((1.0 - share) * np.ceil(waiting / w.rules.max_rows) + share * waiting)
    return float(wait)


@compiled
def _admit(w: World, s: int) -> None:
    """Take a message in, or refuse it: the queue is full, or it would wait longer than it has left."""
    r = w.slot[s]
    left = r.limit - r.sent_at
    full = w.count[WAITING] + len(w.busy) > w.rules.queue_requests
    if full or (w.rules.timed and _wait_s(w, r.cloud_at) > left):
        _unpool(w, s)
        _refuse(w, s, r.cloud_at, BUSY)
        return
    w.waiting[w.count[WAITING]] = s
    w.count[WAITING] += 1


@compiled
def _starts_at(w: World) -> float:
    """When the next batch begins, if nothing more comes."""
    if w.count[WAITING] == 0:
        return np.inf
    oldest = w.slot[w.waiting[0]]
    at = oldest.cloud_at
    if w.rules.max_wait_s > 0.0:
        lane, rows = w.table.lane[oldest.encoded], 0
        for i in range(w.count[WAITING]):
            rows += w.table.lane[w.slot[w.waiting[i]].encoded] == lane
        if rows < w.rules.max_rows:
            at += w.rules.max_wait_s
    return float(max(at, w.busy.min()))


@compiled
def _start(w: World, now: float) -> None:
    """Run a batch of the lane whose request has waited longest; drop what is late or was cancelled."""
    rules = w.rules
    batch = np.empty(min(rules.max_rows, w.count[WAITING]), np.int64)
    rows = kept = 0
    most = total = 0.0
    lane = NONE
    for i in range(w.count[WAITING]):
        s = w.waiting[i]
        r = w.slot[s]
        if r.state != IN_CLOUD:
            _unpool(w, s)
        elif r.cancel_at <= now:
            _unpool(w, s)
            _serve(w, s, now, np.inf)
        elif rules.timed and r.cloud_at + r.limit - r.sent_at <= now:
            _unpool(w, s)
            _refuse(w, s, max(r.cloud_at, r.cloud_at + r.limit - r.sent_at), DEADLINE)
        elif rows < rules.max_rows and (lane == NONE or w.table.lane[r.encoded] == lane):
            lane = w.table.lane[r.encoded]
            seconds = _seconds(w, s)
            most = max(most, seconds)
            total += seconds
            batch[rows] = s
            rows += 1
        else:
            w.waiting[kept] = s
            kept += 1
    w.count[WAITING] = kept
    if rows == 0:
        return
    ends = now + most + rules.per_row * (total - most)
    w.busy[np.argmin(w.busy)] = ends
    for i in range(rows):
        _unpool(w, batch[i])
        _serve(w, batch[i], now, ends)


@compiled
def run_cloud(w: World, horizon: float) -> None:
    """Serve what is to be begun before `horizon`."""
    if w.rules.shared_cell:
        for s in _due(w, w.air, AIR, horizon, IN_AIR):
            w.slot[s].pooled = 0
            fly(w, s)
    due = _due(w, w.cloud, CLOUD, horizon, IN_CLOUD)
    i = 0
    while True:
        starts = _starts_at(w)
        if starts < horizon and (i == len(due) or starts <= w.slot[due[i]].cloud_at):
            _start(w, starts)
        elif i < len(due):
            _admit(w, due[i])
            i += 1
        else:
            break
    w.clock[HORIZON] = horizon
