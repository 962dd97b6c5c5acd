"""The traps measured in this stack, each with the tests that hold its rule.

`ROWS` maps every trap to tests here or in the files that own the code; a test checks that each of them
exists, so the table can not rot. What follows the table are the rules that belong to no single file.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import pickle
import socket
import time
from pathlib import Path

import pytest
import torch
import zmq
import zmq.asyncio

from splitedge import keys
from splitedge.cloud.server import CloudServer
from splitedge.cloud.settings import ServerSettings
from splitedge.codec import TensorSpec, make_codec
from splitedge.edge.link import ZmqLink
from splitedge.errors import LinkDown
from splitedge.wire import Hello, Infer, Lane, Reply, Welcome, pack, unpack

TESTS = Path(__file__).parent

ROWS = {
    "zstd: the output cap is ignored when the frame declares a size": (
        "test_codecs_lossless::test_a_bomb_costs_nothing",
        "test_codecs_lossless::test_a_frame_that_lies_about_its_size",
    ),
    "zstd: bit flips pass without a checksum": (
        "test_codecs_lossless::test_every_single_bit_flip_is_noticed",
    ),
    "zstd: bytes after a frame are accepted": (
        "test_codecs_lossless::test_frames_that_are_not_ours_are_refused",
    ),
    "msgpack: 16 MiB of empty maps take 1.2 GiB": (
        "test_wire::test_caps_are_checked_before_parsing",
        "test_wire::test_no_header_costs_more_memory_than_twice_the_cap",
        "test_wire::test_every_field_is_typed",
    ),
    "np.prod of a shape wraps": ("test_wire::test_lying_shapes_and_lengths_are_refused",),
    "CURVE without a ZAP handler serves anyone": (
        "test_keys::test_without_an_authenticator_nobody_comes_in",
        "test_keys::test_the_self_test_finds_an_authenticator_that_lets_anyone_in",
        "test_keys::test_only_a_trusted_key_comes_in_and_it_can_be_revoked",
        "test_cloud_server::test_only_trusted_edges_are_served_and_revoking_ends_it",
    ),
    "wrong client key: send succeeds, no answer": (
        "test_edge_link::test_a_key_the_cloud_does_not_trust_is_named_within_a_second",
    ),
    "wrong server key: reconnect storm": (
        "test_edge_link::test_another_cloud_than_the_trusted_one_is_suspected_within_a_second",
    ),
    "default high-water mark: 2 GiB for a dead peer": (
        "test_hardening::test_an_edge_that_does_not_read_its_replies_is_cut_off_at_its_budget",
        "test_cloud_core::test_bytes_waiting_are_bounded_in_all_and_for_each_edge",
        "test_edge_link::test_a_silent_cloud_can_not_be_sent_more_than_the_budget",
        "test_edge_link::test_messages_over_the_cap_break_the_connection_and_not_the_process",
        "test_cloud_server::test_hostile_frames_leave_the_server_serving",
    ),
    "IMMEDIATE=0: requests arrive late": (
        "test_cloud_core::test_what_is_past_its_deadline_is_dropped_unstarted",
        "test_cloud_core::test_a_waiting_request_is_refused_at_its_deadline_while_another_batch_runs",
        "test_hardening::test_what_an_edge_sends_before_there_is_a_cloud_is_not_delivered_later",
    ),
    "no heartbeats: a dead link is unnoticed": ("test_hardening::test_a_silent_connection_is_closed",),
    "half-open CURVE sockets are held 30 s": ("test_hardening::test_half_open_connections_are_closed",),
    "aiohttp slow-loris": (
        "test_http_guard::test_a_slow_connection_is_closed_while_others_are_served",
        "test_http_guard::test_connections_over_the_cap_are_closed_at_once",
    ),
    "LINGER=-1: exit hangs": ("test_hardening::test_stopping_does_not_wait_for_an_edge_that_does_not_read",),
    "token-bucket shaping lets a burst through early": ("test_pacer::test_an_isolated_burst_is_never_early",),
    "torch.load was bypassed": (
        "test_import_rules::test_nothing_unpickles_or_evaluates",
        "test_bundle_files::test_a_changed_byte_in_any_file_is_refused_with_its_name",
        "test_program::test_no_bytes_end_in_anything_but_a_bundle_error",
    ),
    "ZeroMQ and pickle": ("test_hardening::test_a_pickle_sent_to_every_port_is_never_opened",),
    "delivery: at most one execution per id": (
        "test_cloud_core::test_a_request_sent_a_hundred_times_runs_once",
        "test_cloud_core::test_an_id_that_fell_out_of_the_table_is_refused_too",
        "test_cloud_process::"
        "test_killed_and_started_again_it_answers_everything_and_runs_nothing_twice_in_a_lifetime",
    ),
    "encrypt everything off loopback": (
        "test_keys::test_keys_are_needed_off_loopback",
        "test_cloud_server::test_a_wrong_setting_ends_the_start_and_leaves_nothing_open",
        "test_edge_link::test_plain_text_never_leaves_the_machine",
    ),
}


@pytest.mark.parametrize("trap", ROWS)
def test_every_trap_is_held_by_tests_that_exist(trap):
    for name in ROWS[trap]:
        file, _, function = name.partition("::")
        tree = ast.parse((TESTS / f"{file}.py").read_text())
        defined = {n.name for n in ast.walk(tree) if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)}
        assert function in defined, f"{name} is gone: what holds '{trap}' now?"


# A server to be unkind to ------------------------------------------------------------------------

SPEC = (TensorSpec((1, 8), "float32"),)
WIDE = (TensorSpec((1, 200_000), "float32"),)
RAW = make_codec("raw", SPEC)


class Widen:
    """8 numbers in, 800 kB out."""

    digest, batchable = "b" * 64, True
    lanes = (Lane("b" * 64, "cut", RAW.id),)

    def cut_specs(self, lane):
        return SPEC

    def output_specs(self):
        return WIDE

    def max_bytes(self, lane, level, rows):
        return RAW.max_bytes(level, rows)

    def decode(self, lane, data, max_rows):
        return RAW.decode(data, max_rows=max_rows)

    def tail(self, lane, tensors):
        return (tensors[0][:, :1].expand(-1, 200_000).contiguous(),)


def infer(request):
    return Infer(request, 1, 0, 1, 0, RAW.encode((torch.full((1, 8), float(request)),)).data)


@contextlib.asynccontextmanager
async def server(**settings):
    """A started server; stopped at the end."""
    made = CloudServer([Widen()], ServerSettings(**{"listen": "tcp://127.0.0.1:0", "http": "", **settings}))
    await made.start()
    try:
        yield made
    finally:
        await made.stop()


@contextlib.contextmanager
def edge(endpoint, pair=None, server_key=b"", **options):
    context = zmq.asyncio.Context()
    dealer = context.socket(zmq.DEALER)
    try:
        for name, value in options.items():
            setattr(dealer, name, value)
        if pair is not None:
            keys.secure_client(dealer, pair, server_key)
        dealer.connect(endpoint)
        yield dealer
    finally:
        context.destroy(linger=0)


async def ask(dealer, message):
    await dealer.send_multipart(pack(message))
    return unpack(await asyncio.wait_for(dealer.recv_multipart(copy=False), 5))


async def is_served(dealer, session=b"session!"):
    assert isinstance(await ask(dealer, Hello(session, Widen.lanes)), Welcome)
    assert isinstance(await ask(dealer, infer(1)), Reply)


def run(test):
    asyncio.run(asyncio.wait_for(test, 60))


def port_of(endpoint):
    return int(endpoint.rpartition(":")[2])


# Sockets -----------------------------------------------------------------------------------------


def test_half_open_connections_are_closed(tmp_path):
    """Connections that begin no handshake, or stop in it, are closed; a good edge is served meanwhile."""
    keys.new_keys(tmp_path, "cloud")
    edge_key = keys.new_keys(tmp_path / "edge", "edge")
    keys.trust(tmp_path, edge_key)

    async def test():
        async with server(keys=tmp_path) as cloud:
            held = [await asyncio.open_connection("127.0.0.1", port_of(cloud.endpoint)) for _ in range(60)]
            for _, writer in held[30:]:
                writer.write(b"\xff" + bytes(8) + b"\x7f\x03\x01CURVE" + bytes(15) + b"\x00" + bytes(31))
            pair, server_key = keys.load_keys(tmp_path / "edge"), keys.load_keys(tmp_path).public
            with edge(cloud.endpoint, pair, server_key) as good:
                await is_served(good)
            begin = time.monotonic()
            with contextlib.suppress(ConnectionResetError):
                await asyncio.wait_for(asyncio.gather(*(reader.read() for reader, _ in held)), 10)
            assert time.monotonic() - begin < 10
            for _, writer in held:
                writer.close()

    run(test())


def test_a_silent_connection_is_closed():
    """A relay between edge and cloud stops to carry anything, as a dead radio does."""

    async def test():
        async with server(heartbeat_s=0.1) as cloud:
            silent = asyncio.Event()
            closed = asyncio.Event()

            async def relay(reader, writer):
                up_reader, up_writer = await asyncio.open_connection("127.0.0.1", port_of(cloud.endpoint))

                async def carry(source, sink, done=None):
                    while data := await source.read(65536):
                        if not silent.is_set():
                            sink.write(data)
                    if done is not None:
                        done.set()

                try:
                    await asyncio.gather(carry(reader, up_writer), carry(up_reader, writer, closed))
                finally:
                    up_writer.close()
                    writer.close()

            listener = await asyncio.start_server(relay, "127.0.0.1", 0)
            port = listener.sockets[0].getsockname()[1]
            with edge(f"tcp://127.0.0.1:{port}") as one:
                await is_served(one)
                await asyncio.sleep(0.5)
                assert not closed.is_set(), "a quiet edge whose heartbeats arrive stays connected"
                silent.set()
                await asyncio.wait_for(closed.wait(), 10)
            listener.close()
            await asyncio.sleep(0.05)

    run(test())


def test_an_edge_that_does_not_read_its_replies_is_cut_off_at_its_budget():
    async def test():
        async with server(peer_queue_bytes=2**20) as cloud:
            with edge(cloud.endpoint, rcvhwm=1, rcvbuf=4096) as deaf, edge(cloud.endpoint) as good:
                assert isinstance(await ask(deaf, Hello(b"deafdeaf", Widen.lanes)), Welcome)
                for request in range(60):
                    await deaf.send_multipart(pack(infer(request)))
                end = time.monotonic() + 20
                while not cloud.metrics.unsent._value.get() or cloud.host.core.in_flight:
                    assert time.monotonic() < end
                    await asyncio.sleep(0.02)
                await is_served(good)

    run(test())


def test_stopping_does_not_wait_for_an_edge_that_does_not_read():
    async def test():
        async with server() as cloud:
            with edge(cloud.endpoint, rcvhwm=1, rcvbuf=4096) as deaf:
                assert isinstance(await ask(deaf, Hello(b"deafdeaf", Widen.lanes)), Welcome)
                for request in range(30):
                    await deaf.send_multipart(pack(infer(request)))
                assert await cloud.drain(20)
                begin = time.monotonic()
                await cloud.stop()
                assert time.monotonic() - begin < 10, "a bounded time to flush, then it ends"

    run(test())


def test_what_an_edge_sends_before_there_is_a_cloud_is_not_delivered_later():
    """The edge's link refuses what it can not send now; a cloud that comes later gets nothing of it."""

    async def test():
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"tcp://127.0.0.1:{free.getsockname()[1]}"
        up, got = asyncio.Event(), []
        link = ZmqLink(endpoint)
        link.start(asyncio.get_running_loop(), got.append, lambda s: up.set() if s.connected else None)
        try:
            await asyncio.sleep(0.1)
            with pytest.raises(LinkDown):
                link.send(pack(Hello(b"too-soon", Widen.lanes)))
            async with server(listen=endpoint) as cloud:
                await asyncio.wait_for(up.wait(), 10)
                await asyncio.sleep(0.2)
                assert got == [] and len(cloud.host.core.users) == 0
                link.send(pack(Hello(b"in-time!", Widen.lanes)))
                while not got:
                    await asyncio.sleep(0.01)
                assert isinstance(unpack(got[0]), Welcome)
        finally:
            link.close()

    run(test())


# Pickle ------------------------------------------------------------------------------------------


class Canary:
    """Leaves a file behind where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def test_a_pickle_sent_to_every_port_is_never_opened(tmp_path):
    canary = tmp_path / "canary"
    sent = pickle.dumps(Canary(canary))
    header = pack(infer(2))[0]

    async def test():
        async with server(http="127.0.0.1:0") as cloud:
            with edge(cloud.endpoint) as one:
                await is_served(one)
                for frames in ([sent], [header, sent], pack(Infer(3, 1, 0, 1, 0, sent + bytes(4000)))):
                    await one.send_multipart(frames)
                    await asyncio.wait_for(one.recv_multipart(), 5)
            for port in (port_of(cloud.endpoint), port_of(cloud.http_url)):
                with socket.create_connection(("127.0.0.1", port)) as raw:
                    raw.sendall(sent)
            await asyncio.sleep(0.1)

    run(test())
    assert not canary.exists()
    pickle.loads(sent)  # noqa: S301 - the proof that the canary works
    assert canary.exists()
