"""The ways to the cloud and back in fleet mode, and serving one message there."""

from __future__ import annotations

import numpy as np

from splitedge.sim.compiled import compiled
from splitedge.sim.fleet_end import release
from splitedge.sim.fleet_link import carry
from splitedge.sim.fleet_world import (
    CLOUD,
    HORIZON,
    IN_AIR,
    IN_CLOUD,
    LOST,
    MEAN_S,
    RETURNING,
    WAITING,
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
    arrives = carry(w.links[pair_of(w, r.owner)], w.up, start_of(w, r.owner), sent, r.message)
    r.uplink_s = arrives - sent
    r.cloud_at = arrives + w.rules.hand_s
    if arrives == np.inf:
        r.state = LOST
        return
    r.state = IN_CLOUD
    if r.pooled == 0:
        r.pooled = 1
        w.cloud[w.counts[CLOUD]] = s
        w.counts[CLOUD] += 1


@compiled
def come_back(w: World, s: int, at: float, nbytes: float) -> None:
    """Bring a reply or a refusal down, from `at` on."""
    r = w.slot[s]
    sent = at + w.rules.hand_s
    link = w.links[pair_of(w, r.owner) + 1]
    arrives = carry(link, w.down, start_of(w, r.owner), sent, nbytes)
    r.downlink_s = arrives - sent
    r.reply_at = arrives + w.rules.receive_s
    r.state = RETURNING if arrives < np.inf else LOST
    d = w.device[r.owner]
    d.wakes = min(d.wakes, r.reply_at)


@compiled
def refuse(w: World, s: int, now: float, why: int) -> None:
    w.slot[s].refused = why
    come_back(w, s, now, w.rules.refusal_bytes)


@compiled
def serve(w: World, s: int, begun: float, ends: float) -> None:
    """The cloud worked on it from `begun` to `ends`; it says nothing if it was told meanwhile not to."""
    r = w.slot[s]
    r.queue_s, r.cloud_s, r.ends_at = begun - r.cloud_at, ends - begun, ends
    if r.cancel_at < ends:
        r.state = LOST
        if r.ended == 1:
            release(w, s)
    else:
        come_back(w, s, ends, w.table.bytes_down[r.encoded])


@compiled
def seconds(w: World, s: int) -> float:
    """Seconds of decoder and tail for one request alone."""
    r = w.slot[s]
    drawn = w.table.cloud_median_s[r.encoded] * np.exp(w.table.cloud_sigma[r.encoded] * r.cloud_z)
    w.clock[MEAN_S] += 0.05 * (drawn - w.clock[MEAN_S])
    return float(drawn)


@compiled
def resolve(w: World, s: int, until: float, force: bool) -> float:
    """The first second at which there may be a reply to a message not yet served; inf where it is known.

    With `force` it is served out of turn where that is by `until`: as it would be if nothing came to the
    cloud beside what is known, and without taking an executor from others.
    """
    r = w.slot[s]
    ahead = w.rules.lookahead_s
    if r.state == IN_AIR:
        if not force or r.sent_at + ahead > until:
            return float(r.sent_at + ahead)
        fly(w, s)
    if r.state != IN_CLOUD:
        return np.inf
    first = np.argmin(w.busy)
    begun = max(r.cloud_at, w.busy[first])
    queue = w.counts[WAITING] * w.clock[MEAN_S] * w.rules.per_row / len(w.busy)
    soonest = max(begun, w.clock[HORIZON]) + ahead + (queue if force else 0.0)
    if not force or soonest > until:
        return float(soonest)
    serve(w, s, begun + queue, begun + queue + seconds(w, s))
    return np.inf
