"""The cloud server over real sockets: CURVE, bursts, inline and threaded tails, health, metrics, draining."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
import time

import aiohttp
import pytest
import torch
import zmq
import zmq.asyncio

from splitedge import keys
from splitedge.cloud.host import CloudHost
from splitedge.cloud.server import CloudServer
from splitedge.cloud.settings import ServerSettings
from splitedge.codec import TensorSpec, make_codec
from splitedge.errors import BundleError, ConfigError
from splitedge.wire import Hello, Infer, Lane, Ping, Pong, Refuse, Reply, Welcome, pack, unpack

SPEC = (TensorSpec((1, 8), "float32"),)
RAW = make_codec("raw", SPEC)


class Double:
    """y = 2x, as slow as asked; remembers the threads it ran on."""

    batchable = True

    def __init__(self, sleep_s=0.0, bundle="b" * 64):
        self.digest = bundle
        self.lanes = (Lane(bundle, "cut", RAW.id),)
        self.sleep_s = sleep_s
        self.threads = []
        self.batches = []

    def cut_specs(self, lane):
        return SPEC

    def output_specs(self):
        return SPEC

    def max_bytes(self, lane, level, rows):
        return RAW.max_bytes(level, rows)

    def decode(self, lane, data, max_rows):
        return RAW.decode(data, max_rows=max_rows)

    def tail(self, lane, tensors):
        self.threads.append(threading.get_ident())
        self.batches.append(tensors[0].shape[0])
        if self.sleep_s:
            time.sleep(self.sleep_s)
        return (tensors[0] * 2,)


def payload(value, rows=1):
    return RAW.encode((torch.full((rows, 8), float(value)),)).data


class Edge:
    """The smallest edge there can be."""

    def __init__(self, endpoint, pair=None, server_key=None):
        self.context = zmq.asyncio.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.linger = 0
        if pair is not None:
            keys.secure_client(self.socket, pair, server_key)
        self.socket.connect(endpoint)

    async def send(self, message):
        await self.socket.send_multipart(pack(message))

    async def receive(self, timeout=5.0):
        return unpack(await asyncio.wait_for(self.socket.recv_multipart(copy=False), timeout))

    async def ask(self, message, timeout=5.0):
        await self.send(message)
        return await self.receive(timeout)

    async def hello(self, model, session=b"session!"):
        return await self.ask(Hello(session, model.lanes))

    def close(self):
        self.context.destroy(linger=0)


LOCAL = {"listen": "tcp://127.0.0.1:0", "http": ""}


def serving(test, *models, **settings):
    """Run `test(server, edges)` against a started server; everything is closed afterwards."""

    async def body():
        server = CloudServer(models, ServerSettings(**{**LOCAL, **settings}))
        await server.start()
        with contextlib.ExitStack() as stack:

            def edge(*args):
                made = Edge(server.endpoint, *args)
                stack.callback(made.close)
                return made

            try:
                return await test(server, edge)
            finally:
                await server.stop()

    return asyncio.run(asyncio.wait_for(body(), 60))


def keyring(tmp_path, *trusted):
    """A key directory for a cloud that trusts the named edges; their pairs."""
    keys.new_keys(tmp_path / "cloud", "cloud")
    pairs = {}
    for name in trusted:
        public = keys.new_keys(tmp_path / name, name)
        keys.trust(tmp_path / "cloud", public)
        pairs[name] = keys.load_keys(tmp_path / name)
    return tmp_path / "cloud", keys.load_keys(tmp_path / "cloud").public, pairs


@pytest.mark.parametrize("sleep_s", [0.0, 0.002], ids=["inline", "thread"])
def test_every_request_of_a_burst_is_answered_once(sleep_s):
    model = Double(sleep_s)

    async def test(server, edge):
        one = edge()
        assert (await one.hello(model)).lanes == (0,)
        warm = len(model.threads)
        for number in range(1, 301):
            await one.send(Infer(number, 1, 0, 1, 0, payload(number)))
        replies = [await one.receive() for _ in range(300)]
        assert sorted(r.request for r in replies) == list(range(1, 301))
        assert all(r.tensors[0][0, 0] == 2 * r.request for r in replies)
        assert server.host.core.in_flight == 0
        return warm

    warm = serving(test, model, inline_below_s=0.0 if sleep_s else 0.1)
    ran = set(model.threads[warm:])
    if sleep_s:
        assert ran == set(model.threads[:warm]) and max(model.batches) > 1
    else:
        assert threading.get_ident() in ran, "quick tails run on the loop's thread"


def test_ping_and_big_payloads_in_both_directions():
    spec = (TensorSpec((1, 100_000), "float32"),)
    codec = make_codec("raw", spec)

    class Big(Double):
        def __init__(self):
            super().__init__()
            self.lanes = (Lane("b" * 64, "cut", codec.id),)

        def cut_specs(self, lane):
            return spec

        output_specs = lambda self: spec  # noqa: E731
        max_bytes = lambda self, lane, level, rows: codec.max_bytes(level, rows)  # noqa: E731
        decode = lambda self, lane, data, max_rows: codec.decode(data, max_rows=max_rows)  # noqa: E731

    model = Big()

    async def test(server, edge):
        one = edge()
        await one.hello(model)
        assert isinstance(await one.ask(Ping(5)), Pong)
        x = torch.randn(2, 100_000)
        reply = await one.ask(Infer(1, 1, 0, 2, 0, codec.encode((x,)).data))
        assert reply.tensors[0].equal(x * 2)

    serving(test, model)


def test_no_reply_is_lost_to_a_short_queue():
    """ZeroMQ's queue to an edge is a few messages here; more replies than that are on their way at once."""
    model = Double()

    async def test(server, edge):
        one = edge()
        await one.hello(model)
        for start in range(1, 2001, 100):
            for number in range(start, start + 100):
                await one.send(Infer(number, 1, 0, 1, 0, payload(number)))
            got = sorted([(await one.receive()).request for _ in range(100)])
            assert got == list(range(start, start + 100))
        assert server.metrics.unsent._value.get() == 0

    serving(test, model, send_queue_messages=2)


def test_edges_share_batches():
    model = Double(0.03)

    async def test(server, edge):
        edges = [edge() for _ in range(4)]
        for i, one in enumerate(edges):
            await one.hello(model, b"session%d" % i)
        for one in edges:
            for number in (1, 2, 3):
                await one.send(Infer(number, 1, 0, 1, 0, payload(number)))
        for one in edges:
            assert sorted([(await one.receive()).request for _ in range(3)]) == [1, 2, 3]
        assert max(model.batches) >= 4

    serving(test, model)


def test_only_trusted_edges_are_served_and_revoking_ends_it(tmp_path):
    model = Double()
    directory, server_key, pairs = keyring(tmp_path, "alice")
    stranger = keys.KeyPair("stranger", *zmq.curve_keypair())

    async def test(server, edge):
        alice, mallory, naked = edge(pairs["alice"], server_key), edge(stranger, server_key), edge()
        assert isinstance(await alice.hello(model), Welcome)
        for other in (mallory, naked):
            with pytest.raises((TimeoutError, zmq.Again)):
                other.socket.sndtimeo = 300
                await other.send(Hello(b"session!", model.lanes))
                await other.receive(0.3)
        assert isinstance(await alice.ask(Infer(1, 1, 0, 1, 0, payload(1))), Reply)
        assert server.host.core.users == {pairs["alice"].public.decode()}
        (directory / "trusted" / "alice.key").unlink()
        end = time.monotonic() + 5
        while server.host.core.users:
            assert time.monotonic() < end
            await asyncio.sleep(0.05)
        with pytest.raises(TimeoutError):
            await alice.send(Infer(2, 1, 0, 1, 0, payload(2)))
            await alice.receive(0.3)
        assert 2.0 not in model.batches and server.host.core.in_flight == 0

    serving(test, model, keys=directory)


def test_a_restarted_server_is_another_epoch():
    model = Double()

    async def test(server, edge):
        return (await edge().hello(model)).epoch

    assert serving(test, model) != serving(test, model)


def test_hostile_frames_leave_the_server_serving():
    model = Double()

    async def test(server, edge):
        good, bad = edge(), edge()
        await good.hello(model)
        for frames in ([b""], [os.urandom(50)], [b"\x91" * 60_000], [b"x"] * 60, [os.urandom(200_000)]):
            await bad.socket.send_multipart(frames)
            assert isinstance(await bad.receive(), Refuse)
        with contextlib.suppress(TimeoutError):
            await bad.socket.send(bytes(server.host.core.max_message + 1))
            await bad.receive(0.3)
        assert isinstance(await good.ask(Infer(1, 1, 0, 1, 0, payload(1))), Reply)
        assert server.metrics.malformed._value.get() == 5

    serving(test, model)


def test_an_edge_that_is_gone_costs_a_counter_and_nothing_else():
    model = Double(0.2)

    async def test(server, edge):
        leaver, stayer = edge(), edge()
        await leaver.hello(model, b"leaver!!")
        await stayer.hello(model, b"stayer!!")
        await leaver.send(Infer(1, 1, 0, 1, 0, payload(1)))
        while not server.host.core.in_flight:
            await asyncio.sleep(0.01)
        leaver.close()
        assert isinstance(await stayer.ask(Infer(1, 1, 0, 1, 0, payload(1))), Reply)
        assert server.metrics.unsent._value.get() == 1 and server.host.core.in_flight == 0

    serving(test, model)


def test_health_and_metrics_say_what_is_so():
    model = Double()

    async def test(server, edge):
        async with aiohttp.ClientSession(server.http_url) as web:
            for name in ("live", "ready"):
                async with web.get(f"/v2/health/{name}") as answer:
                    assert (answer.status, await answer.json()) == (200, {name: True})
            one = edge()
            await one.hello(model)
            await one.ask(Infer(1, 1, 0, 1, 0, payload(1)))
            await one.ask(Infer(2, 1, 5, 1, 0, payload(1)))
            async with web.get("/metrics") as answer:
                text = await answer.text()
            assert 'splitedge_cloud_requests_total{lane="bbbbbbbb/cut/raw",outcome="answered"} 1.0' in text
            assert "splitedge_cloud_unknown_requests_total 1.0" in text
            assert "splitedge_cloud_in_flight 0.0" in text and "splitedge_cloud_sessions 1.0" in text
            assert 'splitedge_cloud_batch_rows_count{lane="bbbbbbbb/cut/raw"} 1.0' in text
            assert "splitedge_cloud_build_info{" in text
            server.host.core.drain()
            async with web.get("/v2/health/ready") as answer:
                assert answer.status == 503
                assert await answer.json() == {"ready": False, "reason": "shutting down"}

    serving(test, model, http="127.0.0.1:0")


def test_it_is_live_but_not_ready_while_models_warm_up():
    model = Double(0.2)

    async def test():
        server = CloudServer([model], ServerSettings(listen="tcp://127.0.0.1:0", http="127.0.0.1:0"))
        starting = asyncio.ensure_future(server.start())
        while not server.http_url or server.http_url.endswith(":0"):
            await asyncio.sleep(0.01)
        async with aiohttp.ClientSession(server.http_url) as web:
            async with web.get("/v2/health/live") as answer:
                assert answer.status == 200
            async with web.get("/v2/health/ready") as answer:
                assert answer.status == 503 and "warming up" in await answer.text()
            await starting
            async with web.get("/v2/health/ready") as answer:
                assert answer.status == 200
        await server.stop()

    asyncio.run(asyncio.wait_for(test(), 20))


def test_draining_ends_what_runs_refuses_the_rest_and_lets_replies_leave():
    model = Double(0.15)

    async def test(server, edge):
        one = edge()
        await one.hello(model)
        for number in range(1, 6):
            await one.send(Infer(number, 1, 0, 1, 0, payload(number)))
        while server.host.core.in_flight < 5:
            await asyncio.sleep(0.005)
        draining = asyncio.ensure_future(server.drain(5))
        await asyncio.sleep(0.02)
        await one.send(Infer(9, 1, 0, 1, 0, payload(9)))
        assert await draining
        await server.stop()
        got = [await one.receive() for _ in range(6)]
        assert sorted(m.request for m in got if isinstance(m, Reply)) == [1, 2, 3, 4, 5]
        assert [m.request for m in got if isinstance(m, Refuse) and m.kind == "busy"] == [9]

    serving(test, model)


def test_a_drain_that_takes_too_long_says_so():
    model = Double(0.5)

    async def test(server, edge):
        one = edge()
        await one.hello(model)
        await one.send(Infer(1, 1, 0, 1, 0, payload(1)))
        while not server.host.core.in_flight:
            await asyncio.sleep(0.01)
        assert await server.drain(0.05) is False

    serving(test, model)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"listen": "tcp://0.0.0.0:0"}, "needs keys"),
        ({"listen": "7070"}, "write tcp://HOST:PORT"),
        ({"listen": "tcp://127.0.0.1:0", "http": "9090"}, "write HOST:PORT"),
        ({"listen": "tcp://127.0.0.1:0", "keys": "nowhere/at/all"}, "must hold one private key"),
        ({"listen": "tcp://203.0.113.1:1", "keys": None}, "needs keys"),
    ],
)
def test_a_wrong_setting_ends_the_start_and_leaves_nothing_open(settings, words):
    async def test():
        server = CloudServer([Double()], ServerSettings(**{"http": "", **settings}))
        with pytest.raises(ConfigError, match=words):
            await server.start()
        assert server.endpoint == ""

    threads = threading.active_count()
    asyncio.run(asyncio.wait_for(test(), 20))
    assert threading.active_count() <= threads + 1


def test_an_address_in_use_is_named():
    async def test(server, edge):
        other = CloudServer([Double()], ServerSettings(listen=server.endpoint, http=""))
        with pytest.raises(ConfigError, match=f"can not listen on {server.endpoint}"):
            await other.start()

    serving(test, Double())


def test_a_tail_that_can_not_run_is_found_before_anybody_is_served():
    class Broken(Double):
        def tail(self, lane, tensors):
            raise RuntimeError("no kernel for this machine")

    async def test():
        server = CloudServer([Broken()], ServerSettings(**LOCAL))
        with pytest.raises(BundleError, match="the tail behind cut 'cut' can not run here: no kernel"):
            await server.start()

    asyncio.run(asyncio.wait_for(test(), 20))


def test_an_in_process_cloud_needs_no_socket():
    model, replies = Double(), []

    async def test():
        host = CloudHost([model], ServerSettings(), lambda peer, frames: replies.append(unpack(frames)))
        await host.start()
        host.deliver(b"me", pack(Hello(b"session!", model.lanes)))
        for number in range(1, 4):
            host.deliver(b"me", pack(Infer(number, 1, 0, 1, 50, payload(number))))
        end = time.monotonic() + 5
        while len(replies) < 4 and time.monotonic() < end:
            await asyncio.sleep(0.005)
        assert await host.drain(1)
        await host.close()

    asyncio.run(asyncio.wait_for(test(), 20))
    assert [type(r) for r in replies] == [Welcome, Reply, Reply, Reply]
    assert replies[-1].tensors[0][0, 0] == 6.0


def test_waiting_for_company_ends_by_itself_and_so_does_a_deadline():
    model, replies = Double(0.05), []

    async def test():
        settings = ServerSettings(max_wait_s=0.05, max_batch_rows=8)
        host = CloudHost([model], settings, lambda peer, frames: replies.append(unpack(frames)))
        await host.start()
        host.deliver(b"me", pack(Hello(b"session!", model.lanes)))
        host.deliver(b"me", pack(Infer(1, 1, 0, 1, 20, payload(1))))
        await asyncio.sleep(0.04)
        assert replies[-1].kind == "expired"
        host.deliver(b"me", pack(Infer(2, 1, 0, 1, 0, payload(2))))
        host.deliver(b"me", pack(Infer(3, 1, 0, 1, 0, payload(3))))
        end = time.monotonic() + 5
        while len(replies) < 4 and time.monotonic() < end:
            await asyncio.sleep(0.005)
        await host.close()

    asyncio.run(asyncio.wait_for(test(), 20))
    assert [r.request for r in replies[2:]] == [2, 3] and model.batches[-1] == 2


def test_nothing_is_printed_and_the_self_test_does_not_alarm(tmp_path, capsys, caplog):
    directory, _, _ = keyring(tmp_path, "alice")

    async def test(server, edge):
        await asyncio.sleep(0.01)

    with caplog.at_level(logging.WARNING):
        serving(test, Double(), keys=directory)
    assert capsys.readouterr() == ("", "") and caplog.records == []
