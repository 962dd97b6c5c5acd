"""The cloud that all devices share in fleet mode: a queue before executors, in order of arrival.

All messages that arrive before a horizon are known when `run_cloud` is called with it, for a request that
arrives at its device later can not be in the cloud sooner. So they are served in the order of their
arrival, whichever device they come from, as events would.
"""

from __future__ import annotations

import numpy as np

from splitedge.sim.compiled import entry, inner
from splitedge.sim.fleet_cloud import back_start_of, come_back, fly, pair_of, refuse, seconds, serve
from splitedge.sim.fleet_device import advance
from splitedge.sim.fleet_end import free
from splitedge.sim.fleet_link import carry
from splitedge.sim.fleet_world import (
    AIR,
    BACK,
    BUSY,
    CLOUD,
    DEADLINE,
    FREE_AT,
    GONE,
    HORIZON,
    IN_AIR,
    IN_CLOUD,
    LEAVING,
    MEAN_S,
    NONE,
    WAITING,
    World,
)


@inner
def _sort(w: World, n: int) -> int:
    """Put the first `n` of `World.due` in order of time, equals as they stand: merging runs of rising length
    from one row to the other. Gives the row that holds them.
    """
    here, run = 0, 1
    while run < n:
        due, at, to, to_at = w.due[here], w.due_at[here], w.due[1 - here], w.due_at[1 - here]
        for begin in range(0, n, 2 * run):
            left, right = begin, min(begin + run, n)
            middle, end = right, min(begin + 2 * run, n)
            for k in range(begin, end):
                if right == end or (left < middle and at[left] <= at[right]):
                    to[k], to_at[k] = due[left], at[left]
                    left += 1
                else:
                    to[k], to_at[k] = due[right], at[right]
                    right += 1
        here, run = 1 - here, 2 * run
    return here


@inner
def _due(w: World, counter: int, horizon: float, state: int) -> tuple[int, int]:
    """Take those before the horizon out of a pool and put them into a row of `World.due`, in order of time;
    which row, and how many.
    """
    size = w.counts[counter]
    times, due = w.due_at[0], w.due[0]
    found = left = 0
    for i in range(size):
        s = w.pools[counter, i]
        r = w.slot[max(s, 0)]
        if s >= 0 and r.state != state:  # served out of turn, lost, or freed
            _unpool(w, s)
            if r.state == IN_CLOUD:  # settled out of turn: its place is in another pool
                r.pooled = 1
                w.pools[CLOUD, w.counts[CLOUD]] = s
                w.counts[CLOUD] += 1
            elif r.state == LEAVING:
                r.pooled = 1
                w.pools[BACK, w.counts[BACK]] = s
                w.counts[BACK] += 1
            continue
        if s < 0:
            device = (-1 - s) % len(w.device)
            d = w.device[device]
            at = d.ping_there if -1 - s == device else d.beat_there
        elif state == LEAVING:
            at = r.ends_at
        else:
            at = r.sent_at if state == IN_AIR else r.cloud_at
        if at < horizon:
            times[found], due[found] = at, s
            found += 1
        else:
            w.pools[counter, left] = s
            left += 1
    w.counts[counter] = left
    return _sort(w, found), found


@inner
def _unpool(w: World, s: int) -> None:
    r = w.slot[s]
    r.pooled = 0
    if r.state == GONE:
        free(w, s)


@inner
def _wait_s(w: World, now: float) -> float:
    """Predicted wait of a request that comes now: what runs, and what waits."""
    wait = max(0.0, w.clock[FREE_AT] - now)
    waiting = w.counts[WAITING]
    if waiting > 0:
        mean, share = w.clock[MEAN_S], w.rules[0].per_row
        wait += mean * ((1.0 - share) * np.ceil(waiting / w.rules[0].max_rows) + share * waiting)
    return float(wait)


@inner
def _admit(w: World, s: int) -> None:
    """Take a message in, or refuse it: the queue is full, or it would wait longer than it has left."""
    r = w.slot[s]
    left = r.limit - r.sent_at
    full = w.counts[WAITING] + len(w.busy) > w.rules[0].queue_requests
    if full or (w.rules[0].timed and _wait_s(w, r.cloud_at) > left):
        _unpool(w, s)
        refuse(w, s, r.cloud_at, BUSY)
        return
    w.pools[WAITING, w.counts[WAITING]] = s
    w.counts[WAITING] += 1


@inner
def _starts_at(w: World) -> float:
    """When the next batch begins, if nothing more comes."""
    if w.counts[WAITING] == 0:
        return np.inf
    oldest = w.slot[w.pools[WAITING, 0]]
    at = oldest.cloud_at
    if w.rules[0].max_wait_s > 0.0:
        lane, rows = w.table[oldest.encoded].lane, 0
        for i in range(w.counts[WAITING]):
            rows += w.table[w.slot[w.pools[WAITING, i]].encoded].lane == lane
        if rows < w.rules[0].max_rows:
            at += w.rules[0].max_wait_s
    return float(max(at, w.clock[FREE_AT]))


@inner
def _hear(w: World, s: int, now: float) -> None:
    """Let a device that has given up on the cloud by `now` say so."""
    r = w.slot[s]
    if r.ended == 0 and min(r.answer_by, r.limit) < now:
        advance(w, r.owner, now, False)


@inner
def _occupy(w: World, until: float) -> None:
    """Have the executor that is free first work until then."""
    at, n = 0, len(w.busy)
    while 2 * at + 1 < n:
        child = 2 * at + 1
        if child + 1 < n and w.busy[child + 1] < w.busy[child]:
            child += 1
        if w.busy[child] >= until:
            break
        w.busy[at] = w.busy[child]
        at = child
    w.busy[at] = until
    w.clock[FREE_AT] = w.busy[0]


@inner
def _start(w: World, now: float) -> None:
    """Run a batch of the lane whose request has waited longest; drop what is late or was cancelled."""
    rules = w.rules[0]
    batch = w.batch
    rows = kept = 0
    most = total = 0.0
    lane = NONE
    for i in range(w.counts[WAITING]):
        s = w.pools[WAITING, i]
        _hear(w, s, now)
        r = w.slot[s]
        if r.state != IN_CLOUD:
            _unpool(w, s)
        elif r.cancel_at <= now:
            _unpool(w, s)
            serve(w, s, now, np.inf)
        elif rules.timed and r.cloud_at + r.limit - r.sent_at <= now:
            _unpool(w, s)
            refuse(w, s, max(r.cloud_at, r.cloud_at + r.limit - r.sent_at), DEADLINE)
        elif rows < rules.max_rows and (lane == NONE or w.table[r.encoded].lane == lane):
            lane = w.table[r.encoded].lane
            each = seconds(w, s)
            most = max(most, each)
            total += each
            batch[rows] = s
            rows += 1
        else:
            w.pools[WAITING, kept] = s
            kept += 1
    w.counts[WAITING] = kept
    if rows == 0:
        return
    ends = now + most + rules.per_row * (total - most)
    _occupy(w, ends)
    for i in range(rows):
        _hear(w, batch[i], ends)
        _unpool(w, batch[i])
        serve(w, batch[i], now, ends)


@inner
def _pong(w: World, device: int, echo: bool) -> None:
    """Answer a ping, or a heartbeat, unless it was lost with its connection."""
    d = w.device[device]
    link, start = w.links[pair_of(w, device) + 1], back_start_of(w, device)
    if echo and d.echo_at < np.inf:
        d.echo_at = carry(link, w.down, start, d.beat_there, w.rules[0].echo_bytes)
        w.wakes[device] = min(w.wakes[device], d.echo_at)
    elif not echo and d.pong_at < np.inf:
        d.pong_at = carry(link, w.down, start, d.ping_there, w.rules[0].pong_bytes)
        d.pong_at += w.rules[0].receive_s
        w.wakes[device] = min(w.wakes[device], d.pong_at)


@entry
def run_cloud(w: World, horizon: float) -> None:
    """Serve what is to be begun before `horizon`."""
    _run_cloud(w, horizon)


@inner
def _run_cloud(w: World, horizon: float) -> None:
    if w.rules[0].shared_cell:
        row, found = _due(w, AIR, horizon, IN_AIR)
        for i in range(found):
            w.slot[w.due[row, i]].pooled = 0
            fly(w, w.due[row, i])
    row, found = _due(w, CLOUD, horizon, IN_CLOUD)
    i = 0
    while True:
        starts = _starts_at(w)
        if starts < horizon and (i == found or starts <= w.slot[w.due[row, i]].cloud_at):
            _start(w, starts)
        elif i < found:
            _admit(w, w.due[row, i])
            i += 1
        else:
            break
    row, found = _due(w, BACK, horizon, LEAVING)
    for i in range(found):
        s = w.due[row, i]
        if s < 0:
            _pong(w, (-1 - s) % len(w.device), -1 - s >= len(w.device))
        else:
            w.slot[s].pooled = 0
            come_back(w, s)
    w.clock[HORIZON] = horizon
