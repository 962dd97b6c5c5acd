"""The simulated connection: bytes as libzmq sends them; when it comes and goes, by hand."""

import asyncio
import time
from heapq import heappop, heappush
from itertools import count

import numpy as np
import pytest
from doubler import CloudDouble

from splitedge import keys
from splitedge.cloud.server import CloudServer
from splitedge.cloud.settings import ServerSettings
from splitedge.edge.link import ZmqLink
from splitedge.edge.settings import EdgeSettings
from splitedge.sim import sizes
from splitedge.sim.connection import HANDSHAKE_S, RECONNECT_S, Connection
from splitedge.sim.curves import Rates, steady
from splitedge.sim.link import Channel, Link
from splitedge.sim.pacer import Pacer

FREE = Channel(steady(1e9))
NEVER_S = 60.0
HELLO = 300, 100


async def carried(tmp_path, edge_s, cloud_s, enough=lambda up, down: True):
    """Bytes up and down of a real edge's connection to a real cloud, by seconds between heartbeats."""
    edge_dir, cloud_dir = tmp_path / "edge", tmp_path / "cloud"
    keys.trust(edge_dir, keys.new_keys(cloud_dir, "cloud"))
    keys.trust(cloud_dir, keys.new_keys(edge_dir, "edge"))
    settings = ServerSettings(listen="tcp://127.0.0.1:0", http="", keys=cloud_dir, heartbeat_s=cloud_s)
    server = CloudServer([CloudDouble()], settings)
    await server.start()
    try:
        async with Pacer("tcp://127.0.0.1:0", server.endpoint, FREE, FREE) as pacer:
            link = ZmqLink(
                pacer.address,
                keys.load_keys(edge_dir),
                keys.trusted_key(edge_dir),
                EdgeSettings(heartbeat_s=edge_s),
            )
            states = []
            link.start(asyncio.get_running_loop(), lambda frames: None, states.append)
            end, last = time.monotonic() + 10.0, None
            while True:
                await asyncio.sleep(0.02)
                stats = pacer.stats()
                now = stats.up.bytes_in, stats.down.bytes_in
                if states and states[-1].connected and enough(*now) and now == last:
                    break
                last = now
                assert time.monotonic() < end, f"not enough was carried: {now}"
            link.close()
            return now
    finally:
        await server.stop()


GREETING = sum(sizes.GREETING_PARTS)
SHAKEN = (
    GREETING + sizes.HANDSHAKE[0] + sizes.HANDSHAKE[2],
    GREETING + sizes.HANDSHAKE[1] + sizes.HANDSHAKE[3],
)


def test_a_handshake_takes_the_bytes_that_libzmq_sends(tmp_path):
    assert asyncio.run(carried(tmp_path, NEVER_S, NEVER_S)) == SHAKEN


@pytest.mark.parametrize("asks", ["edge", "cloud"])
def test_both_sides_send_heartbeats_of_the_bytes_that_libzmq_sends(tmp_path, asks):
    beats = (0.1, NEVER_S) if asks == "edge" else (NEVER_S, 0.1)
    both = asyncio.run(
        carried(tmp_path, *beats, lambda up, down: min(up - SHAKEN[0], down - SHAKEN[1]) >= 80)
    )
    more = [have - shaken for have, shaken in zip(both, SHAKEN, strict=True)]
    beat, back = more if asks == "edge" else reversed(more)
    assert beat // sizes.BEAT == back // sizes.BEAT_BACK
    assert (beat % sizes.BEAT, back % sizes.BEAT_BACK) == (0, 0)


def changes(up, down, seconds, cuts=()):
    """When a connection that carries nothing else comes and goes."""
    heap, number, told = [], count(), []

    def later(at, call, what):
        heappush(heap, (at, next(number), call, what))

    Connection(Link(up), Link(down), HELLO, cuts, later, lambda now, up, why: told.append((now, up, why)))
    while heap[0][0] < seconds:
        now, _, call, what = heappop(heap)
        call(now, what)
    return told


def outage(begin, end, rtt_s=0.1):
    return Channel(Rates(np.array([0.0, begin, end]), np.array([1e12, 0.0, 1e12]), 60.0), rtt_s)


def test_the_way_back_takes_four_and_a_half_round_trips():
    """A cut at 2.0 s ends at 3.05 s: attempts begin every 0.1 s, at 3.1 s say."""
    rtt_s = 0.2
    free = Channel(steady(1e12), rtt_s)
    (lost, is_up, _), (back, back_up, _) = changes(free, free, 6.0, cuts=((2.0, 3.05),))
    assert (lost, is_up, back_up) == (2.0, False, True)
    tries = 2.0 + RECONNECT_S * np.arange(1, 30)
    assert back == pytest.approx(tries[tries >= 3.05][0] + 4.5 * rtt_s, abs=1e-6)


def test_a_handshake_that_an_outage_holds_up_is_tried_anew():
    """Both ways stall from 1.2 to 6.0 s. The edge's heartbeat of 1.5 s is not answered. The cloud's last one
    came at 1.05 s, and the answer to the edge's at 1.1 s: so it is 1.5 s from the edge's own that end it.
    """
    way = outage(1.2, 6.0)
    (lost, _, why), (back, is_up, _) = changes(way, way, 12.0)
    assert lost == pytest.approx(3.0) and "nothing came from the cloud" in why
    attempt = lost + RECONNECT_S
    while attempt + HANDSHAKE_S < 6.0:
        attempt += HANDSHAKE_S + RECONNECT_S
    # What the attempt sent at once waits until 6.0 s and is there half a round trip later.
    assert is_up and back == pytest.approx(6.0 + 4.5 * 0.1, abs=1e-4) and attempt < 6.0


def test_the_clouds_heartbeat_limits_the_silence_behind_it():
    """Only the way down stalls, behind a heartbeat of the cloud: what that allows ends first."""
    down = outage(1.02, 6.0)
    told = changes(Channel(steady(1e12), 0.1), down, 4.0)
    # Sent at 1.0 s, there at 1.05 s; the answer to the edge's heartbeat of 1.0 s would follow at 1.1 s.
    assert told[0][0] == pytest.approx(1.05 + 1.5, abs=1e-6)


def test_the_cloud_gives_up_a_device_that_it_does_not_hear():
    """Only the way up stalls: the edge hears the cloud's heartbeats until the cloud closes the connection."""
    told = changes(outage(1.2, 9.0), Channel(steady(1e12), 0.1), 4.0)
    # The last that comes up is the answer to the heartbeat of 1.0 s; that of 1.5 s has none until 3.0 s.
    assert told[0][0] == pytest.approx(3.0 + 0.05, abs=1e-6) and "the cloud closed" in told[0][2]
