"""What the loops of fleet mode work on: one record a device, one a request in flight, and constants."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from splitedge.sim.curves import Floats
from splitedge.sim.fleet_link import Way

Ints = NDArray[np.int64]

NONE = -1
#: `option` of a request that a filter answered by the class that means nothing.
NOTHING = -2

#: Where the message of a request is.
HERE, IN_AIR, IN_CLOUD, LEAVING, RETURNING, LOST, GONE = range(7)

#: Events of a request.
REPLY, FALLBACK_ENDS, STAGE_ENDS, ANSWER_BY, LIMIT, GUARD, OVERDUE, RETRY = range(8)

#: Circuit to the cloud.
CLOSED, OPEN, HALF_OPEN = 0, 1, 2

#: Errors by code.
ERRORS = ("", "DeadlineExceeded", "CloudUnavailable", "CloudBusy", "Rejected")
NO_ERROR, DEADLINE, UNAVAILABLE, BUSY, REJECTED = range(5)

#: Places in `World.pools` and `World.counts`.
FREE, DONE, AIR, CLOUD, WAITING, BACK = range(6)

#: Places in `World.clock`: all is known that comes to the cloud before this second; seconds of a request
#: in the cloud, a moving average; the first second at which a device may hear what is not known yet; the
#: first second at which an executor is free.
HORIZON, MEAN_S, BLOCKED, FREE_AT = range(4)

#: Rows of `World.seen`; mean, low and high of four estimates come first.
GOODPUT, DOWNLINK, ROUND_TRIP, CLOUD_QUEUE = 0, 3, 6, 9
EDGE_WAIT, LINK_UP, DEADLINE_LEFT, BATTERY, UNSENT, NOW, CONFIDENCE, SUNK = range(12, 20)
SEEN = 20

DEVICE = np.dtype(
    [
        ("start_s", "f8"),  # where in the trace it began
        ("stands", "i8"),  # request that stands at an exit, its policy to be asked
        ("stands_at", "f8"),
        ("free", "f8"),  # second at which its compute is free
        ("expected", "f8"),  # the same as far as the engine can know: by mean costs
        ("head", "i8"),  # its requests in flight: a list through SLOT.next
        ("tail", "i8"),
        ("active", "i8"),  # of them, not ended
        ("pending_s", "f8"),  # compute seconds reserved for fall-backs
        ("cut", "i8"),  # next of the cuts
        ("up_since", "f8"),  # when the handshake was over
        ("heard_at", "f8"),  # something came from the cloud
        ("beat_at", "f8"),  # next look at the heartbeats
        ("beat_there", "f8"),  # when the last beat is in the cloud
        ("echo_at", "f8"),  # and its echo back
        ("connect_at", "f8"),  # next attempt to connect
        ("welcome_at", "f8"),
        ("connected", "i8"),
        ("circuit", "i8"),
        ("failures", "i8"),
        ("backoff", "f8"),
        ("probe_at", "f8"),
        ("last_life", "f8"),
        ("missed_at", "f8"),
        ("ping_at", "f8"),
        ("idle_pings", "i8"),
        ("pong_due", "f8"),
        ("pong_at", "f8"),
        ("ping_sent", "f8"),
        ("ping_there", "f8"),
        ("radio_at", "f8"),
        ("uplink_at", "f8"),
        ("joules", "f8"),  # drawn from the battery, idle apart
        ("awake_at", "f8"),  # second of the radio's last transfer, pings and all
        ("charge", "f8"),  # last reading
        ("read_at", "f8"),  # second of the next reading
        ("offset", "f8"),  # of the cloud's clock as far as known, see `ClockOffset`
        ("offset_delay", "f8"),
        ("offset_at", "f8"),
    ],
    align=True,
)

SLOT = np.dtype(
    [
        # What is looked at most stands together: a line of the processor's cache.
        ("next", "i8"),
        ("wakes", "f8"),  # second of its next event, those apart that wait for the device
        ("event", "i8"),
        ("stage_at", "f8"),  # when a stage was queued; inf once it has begun
        ("fallback_at", "f8"),  # likewise, of the fall-back
        ("state", "i8"),
        ("ended", "i8"),
        ("cloud_at", "f8"),
        ("taken", "i8"),  # whether there is a request in it
        ("owner", "i8"),
        ("place", "i8"),  # of its row in the columns
        ("row", "i8"),
        ("t", "f8"),
        ("limit", "f8"),
        ("answer_by", "f8"),
        ("guard_at", "f8"),
        ("guarded_s", "f8"),
        ("stage", "i8"),  # option whose last stage waits for the device or runs there
        ("stage_end", "f8"),
        ("stage_s", "f8"),
        ("fallback", "i8"),  # option that runs, or is to run, so that there is an answer
        ("fallback_end", "f8"),
        ("fallback_s", "f8"),
        ("overdue_at", "f8"),
        ("retry_at", "f8"),
        ("cancel_at", "f8"),  # when the cloud hears that nobody waits any more
        ("ends_at", "f8"),  # when the cloud is done with it
        ("back_bytes", "f8"),
        ("reply_s", "f8"),  # predicted seconds from sending to reply
        ("sent_at", "f8"),
        ("reply_at", "f8"),
        ("uplink_s", "f8"),
        ("queue_s", "f8"),
        ("cloud_s", "f8"),
        ("downlink_s", "f8"),
        ("message", "f8"),
        ("bytes_up", "f8"),
        ("bytes_down", "f8"),
        ("compute_s", "f8"),
        ("sunk_s", "f8"),
        ("tail_j", "f8"),
        ("edge_z", "f8"),  # how slow the device and the cloud are at it: normal numbers
        ("cloud_z", "f8"),
        ("goodput", "f8"),
        ("goodput_low", "f8"),
        ("rtt", "f8"),
        ("rtt_high", "f8"),
        ("battery", "f8"),
        ("in_hand", "i8"),
        ("sure", "f8"),  # confidence of what is in hand
        ("reached", "i8"),  # depth of the deepest exit run, -1 for none
        ("planned", "i8"),
        ("target", "i8"),
        ("encoded", "i8"),
        ("attempts", "i8"),
        ("pooled", "i8"),  # whether `air` or `cloud` hold it
        ("refused", "i8"),  # an error's code: the reply is a refusal
        ("flying", "i8"),
        ("waiting", "i8"),
        ("remote_over", "i8"),
    ],
    align=True,
)

#: A request that has ended.
ENDED = np.dtype(
    [
        (name, SLOT[name])
        for name in ("owner", "place", "row", "t", "planned", "bytes_up", "bytes_down", "attempts")
    ]
    + [(name, "f8") for name in ("uplink_s", "queue_s", "cloud_s", "downlink_s", "compute_s", "energy")]
    + [(name, "f8") for name in ("goodput", "goodput_low", "rtt", "rtt_high", "battery")]
    + [("at", "f8"), ("confidence", "f8"), ("option", "i8"), ("route", "i8"), ("error", "i8")]
    + [("degraded", "?"), ("met", "?"), ("right", "?")],
    align=True,
)


class World(NamedTuple):
    """Everything the loops read and write.

    Attributes:
        device, slot: record arrays of DEVICE, SLOT: slots 2 i and 2 i + 1 are device i's own, the others are
            for whoever needs one more; `ended` of ENDED, twice as many as slots,
            for a slot may be used again before what ended in it is taken.
        wakes: second before which nothing happens on a device, shape (devices,).
        pools: slots that are free and no device's own, wait for the air, come to the cloud, wait there, and
            whose reply leaves it (-1 - device for an answer to a ping, -1 - devices - device for a
            heartbeat's echo), shape (6, slots + 4 * devices).
        counts: how many are in each pool, and how many have ended.
        clock: see HORIZON and the names beside it.
        busy: second at which each executor is free, a heap.
        links: record array of LINK: up at 2 i, down at 2 i + 1; one pair for a shared cell.
        quantity, window, order, habits: the estimators of all devices: fields of `Estimators`.
        seen: what the policy sees of the requests asked about, shape (SEEN, devices); see `Seen`.
        batch: room for the requests of a batch.
        due, due_at: room to put requests in order of time, shape (2, as many as `pools` has).
        up, down: the channel.
        table: record array of OPTION; `exits` the options that are exits, by depth; `fallbacks` those that
            need no cloud, the most accurate first.
        answers: record array of ANSWER, (options, rows).
        cuts: (begin, end) seconds in which there is no link, shape (n, 2), by their beginning.
        rules: record array of RULES, shape (1,).
    """

    device: Any
    wakes: Floats
    slot: Any
    ended: Any
    pools: Ints
    counts: Ints
    clock: Floats
    busy: Floats
    links: Any
    quantity: Any
    window: Any
    order: Any
    habits: Any
    seen: Floats
    batch: Ints
    due: Ints
    due_at: Floats
    up: Way
    down: Way
    table: Any
    exits: Ints
    fallbacks: Ints
    answers: Any
    cuts: Floats
    rules: Any
