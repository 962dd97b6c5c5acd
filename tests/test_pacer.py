"""The pacer on real sockets: exact bytes, never early, cut and restored, shared by all connections."""

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import asynccontextmanager

import numpy as np
import pytest
import zmq
import zmq.asyncio
from typer.testing import CliRunner

from splitedge.errors import ConfigError, LinkError, TraceError
from splitedge.sim import commands
from splitedge.sim.curves import Rates, steady
from splitedge.sim.link import Channel, Link
from splitedge.sim.loss import Loss
from splitedge.sim.pacer import Pacer, parse_address, precise_loop

FAST = Channel(steady(1e9))


def run(job):
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        return runner.run(asyncio.wait_for(job, 60))


@asynccontextmanager
async def far_end(handler):
    """A server that calls `handler(reader, writer)`; its address."""
    tasks = set()

    async def serve(reader, writer):
        tasks.add(asyncio.current_task())
        try:
            await handler(reader, writer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def echo(reader, writer):
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()


async def acknowledge(reader, writer):
    """One byte back for each length-prefixed message, once its last byte is here."""
    while True:
        size = int.from_bytes(await reader.readexactly(4), "big")
        await reader.readexactly(size - 4)
        writer.write(b"k")


def connect(pacer):
    return asyncio.open_connection(*parse_address(pacer.address))


def message(nbytes):
    return nbytes.to_bytes(4, "big") + b"m" * (nbytes - 4)


@pytest.mark.parametrize("nbytes", [5_000, 20_000, 100_000])
def test_an_isolated_burst_is_never_early(nbytes):
    up, down = Channel(steady(4e6), rtt_s=0.02), Channel(steady(1e9), rtt_s=0.02)

    async def job():
        taken = []
        async with far_end(acknowledge) as to, Pacer("tcp://127.0.0.1:0", to, up, down) as pacer:
            reader, writer = await connect(pacer)
            for _ in range(3):
                await asyncio.sleep(0.03)
                begin = time.perf_counter()
                writer.write(message(nbytes))
                await reader.readexactly(1)
                taken.append(time.perf_counter() - begin)
            writer.close()
        return taken

    predicted = Link(up).send(0.0, nbytes) + Link(down).send(0.0, 1)
    assert min(run(job())) >= predicted - 1e-3


def test_a_burst_across_an_outage_waits_for_its_end():
    channel = Channel(Rates(np.array([0.0, 0.2, 0.6]), np.array([8e6, 0.0, 8e6]), 60.0))

    async def job():
        async with far_end(acknowledge) as to, Pacer("tcp://127.0.0.1:0", to, channel, FAST) as pacer:
            begin = time.perf_counter()
            reader, writer = await connect(pacer)
            writer.write(message(250_000))  # 200 kB before the outage, the rest after it
            await reader.readexactly(1)
            writer.close()
            return time.perf_counter() - begin

    assert run(job()) >= 0.65 - 2e-3


def test_bytes_come_through_in_order_and_both_ends_close():
    data = np.random.default_rng(0).bytes(3_000_000)

    async def job():
        async with far_end(echo) as to, Pacer("tcp://127.0.0.1:0", to, FAST, FAST) as pacer:
            reader, writer = await connect(pacer)

            async def send():
                writer.write(data)
                await writer.drain()
                writer.write_eof()

            sending = asyncio.create_task(send())
            assert await reader.read(-1) == data  # until the far end, told of our end, closes too
            await sending
            writer.close()
            await asyncio.sleep(0.05)
            return pacer.stats()

    stats = run(job())
    assert stats.up.bytes_in == stats.up.bytes_out == stats.down.bytes_out == len(data)
    assert (stats.connections, stats.accepted, stats.up.bytes_dropped) == (0, 1, 0)


def test_connections_share_one_bottleneck():
    async def job():
        async with (
            far_end(acknowledge) as to,
            Pacer("tcp://127.0.0.1:0", to, Channel(steady(8e6)), FAST) as pacer,
        ):
            ends = [await connect(pacer) for _ in range(4)]
            begin = time.perf_counter()
            for _, writer in ends:
                writer.write(message(100_000))
            await asyncio.gather(*(reader.readexactly(1) for reader, _ in ends))
            taken = time.perf_counter() - begin
            for _, writer in ends:
                writer.close()
            return taken

    assert run(job()) >= 0.4 - 1e-3


def test_a_full_buffer_holds_the_sender_back():
    async def job():
        slow = Channel(steady(8e4), buffer_bytes=20_000)
        async with far_end(echo) as to, Pacer("tcp://127.0.0.1:0", to, slow, FAST) as pacer:
            _, writer = await connect(pacer)
            writer.write(b"x" * 8_000_000)
            await asyncio.sleep(0.4)
            held, stats = writer.transport.get_write_buffer_size(), pacer.stats()
            writer.transport.abort()
            return held, stats

    held, stats = run(job())
    assert held > 1_000_000  # most of it never left the sender
    assert stats.up.backlog_bytes <= 20_000 and stats.up.bytes_in <= 40_000


def test_a_receiver_that_does_not_read_stops_the_reading():
    async def job():
        async def deaf(reader, writer):
            await asyncio.sleep(30)

        async with far_end(deaf) as to, Pacer("tcp://127.0.0.1:0", to, FAST, FAST) as pacer:
            _, writer = await connect(pacer)
            writer.write(b"x" * 60_000_000)
            await asyncio.sleep(0.5)
            stats = pacer.stats()
            writer.transport.abort()
            return stats

    assert run(job()).up.bytes_in < 20_000_000  # kernel buffers and ours, not the 60 MB


def test_a_cut_link_resets_connections_and_turns_new_ones_away():
    async def job():
        slow = Channel(steady(8e4))
        async with far_end(echo) as to, Pacer("tcp://127.0.0.1:0", to, slow, FAST) as pacer:
            reader, writer = await connect(pacer)
            writer.write(b"x" * 50_000)
            await asyncio.sleep(0.1)
            pacer.cut()
            with pytest.raises(ConnectionError):
                while await reader.read(65536):
                    pass
            second, other = await connect(pacer)
            with pytest.raises(ConnectionError):
                await second.readexactly(1)
            cut = pacer.stats()
            pacer.restore()
            third, last = await connect(pacer)
            last.write(b"back")
            assert await third.readexactly(4) == b"back"  # what was queued is not in its way
            for end in (writer, other, last):
                end.close()
            return cut

    stats = run(job())
    assert stats.is_cut and stats.refused == 1 and stats.connections == 0 and stats.up.bytes_dropped > 0


def test_cuts_can_be_planned():
    async def job():
        cuts = [(0.1, 0.3)]
        async with far_end(echo) as to, Pacer("tcp://127.0.0.1:0", to, FAST, FAST, cuts=cuts) as pacer:
            reader, writer = await connect(pacer)
            with pytest.raises(ConnectionError):
                await reader.readexactly(1)
            assert pacer.stats().elapsed_s >= 0.1
            while pacer.stats().is_cut:
                await asyncio.sleep(0.02)
            assert pacer.stats().elapsed_s >= 0.3
            again, other = await connect(pacer)
            other.write(b"up")
            assert await again.readexactly(2) == b"up"
            writer.close()
            other.close()

    run(job())


def test_nobody_at_the_far_end_and_too_many_connections():
    async def job():
        with socket.create_server(("127.0.0.1", 0)) as taken:
            free = taken.getsockname()[1]
        async with Pacer("tcp://127.0.0.1:0", f"tcp://127.0.0.1:{free}", FAST, FAST) as pacer:
            reader, writer = await connect(pacer)
            assert await reader.read() == b""
            writer.close()
            assert pacer.stats().unreachable == 1
        async with (
            far_end(echo) as to,
            Pacer("tcp://127.0.0.1:0", to, FAST, FAST, max_connections=1) as pacer,
        ):
            _, first = await connect(pacer)
            await asyncio.sleep(0.05)
            reader, second = await connect(pacer)
            with pytest.raises(ConnectionError):
                await reader.readexactly(1)
            assert pacer.stats().refused == 1
            first.close()
            second.close()

    run(job())


def test_curve_traffic_comes_through_whole():
    server_public, server_secret = zmq.curve_keypair()
    public, secret = zmq.curve_keypair()

    async def job():
        context = zmq.asyncio.Context()
        router, dealer = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
        try:
            router.linger = dealer.linger = 0
            router.curve_server, router.curve_secretkey = True, server_secret
            port = router.bind_to_random_port("tcp://127.0.0.1")
            lte = Channel(steady(40e6), rtt_s=0.01)
            async with Pacer("tcp://127.0.0.1:0", f"tcp://127.0.0.1:{port}", lte, lte) as pacer:
                dealer.curve_publickey, dealer.curve_secretkey = public, secret
                dealer.curve_serverkey = server_public
                dealer.connect(pacer.address)
                for nbytes in (0, 1, 1500, 100_000):
                    payload = os.urandom(nbytes)
                    await dealer.send_multipart([b"header", payload])
                    who, *frames = await router.recv_multipart()
                    assert frames == [b"header", payload]
                    await router.send_multipart([who, b"reply", payload])
                    assert await dealer.recv_multipart() == [b"reply", payload]
                return pacer.stats()
        finally:
            context.destroy(linger=0)

    stats = run(job())
    assert min(stats.up.bytes_out, stats.down.bytes_out) > 101_501
    assert stats.up.queued_max_s >= 8 * 100_000 / 40e6


def test_addresses_and_intervals_are_checked():
    assert parse_address("tcp://[::1]:80") == ("::1", 80)
    assert parse_address("localhost:0") == ("localhost", 0)
    for wrong in ("7070", "udp://a:1", "tcp://:1", "tcp://a:99999", "tcp://a:x"):
        with pytest.raises(ConfigError, match="tcp://host:port"):
            parse_address(wrong)
    with pytest.raises(ConfigError, match="cut from 3"):
        Pacer("tcp://127.0.0.1:0", "tcp://127.0.0.1:1", FAST, FAST, cuts=[(3, 2)])
    with pytest.raises(LinkError, match="start"):
        _ = Pacer("tcp://127.0.0.1:0", "tcp://127.0.0.1:1", FAST, FAST).address


def test_an_address_in_use_is_named():
    async def job(port):
        with pytest.raises(LinkError, match=str(port)):
            await Pacer(f"tcp://127.0.0.1:{port}", "tcp://127.0.0.1:1", FAST, FAST).start()

    with socket.create_server(("127.0.0.1", 0)) as taken:
        run(job(taken.getsockname()[1]))


# Options of the link ---------------------------------------------------------------------------------


def timed(up, down, sizes, **options):
    """Seconds that each message takes through a pacer, and the pacer's statistics."""

    async def job():
        taken = []
        async with far_end(acknowledge) as to, Pacer("tcp://127.0.0.1:0", to, up, down, **options) as pacer:
            reader, writer = await connect(pacer)
            await asyncio.sleep(0.02)
            for nbytes in sizes:
                begin = time.perf_counter()
                writer.write(message(nbytes))
                await reader.readexactly(1)
                taken.append(time.perf_counter() - begin)
            writer.close()
            return taken, pacer.stats()

    return run(job())


def test_the_pacer_loses_the_packets_of_the_model():
    loss = Loss(0.2, rto_s=0.05, seed=5)
    up = Channel(steady(20e6), rtt_s=0.02, loss=loss)
    sizes = [700, 6000, 1500, 9000, 300, 12_000] * 3  # just over a chunk: its last packets are the tail
    taken, stats = timed(up, FAST, sizes)
    model, now, predicted = Link(up), 1.0, []
    for nbytes in sizes:
        predicted.append(model.send(now, nbytes) - now)
        now += 1.0  # one at a time, as the acknowledgements make it
    assert stats.up.lost_packets == model.lost_packets > 3
    assert all(real >= expected - 1e-3 for real, expected in zip(taken, predicted, strict=True))


def test_the_pacer_shares_a_half_duplex_medium():
    async def job():
        async def both(reader, writer):
            writer.write(b"d" * 100_000)
            await reader.readexactly(100_000)

        channel = Channel(steady(8e6))
        async with (
            far_end(both) as to,
            Pacer("tcp://127.0.0.1:0", to, channel, channel, half_duplex=True) as pacer,
        ):
            reader, writer = await connect(pacer)
            begin = time.perf_counter()
            writer.write(b"u" * 100_000)
            await reader.readexactly(100_000)
            while pacer.stats().up.bytes_out < 100_000:
                await asyncio.sleep(0.001)
            taken = time.perf_counter() - begin
            writer.close()
            return taken

    assert run(job()) >= 0.2 - 2e-3  # 0.1 s for each, one after the other


def test_the_pacer_stalls_in_an_outage_and_keeps_the_connection():
    channel = Channel(steady(8e6), outages=((0.05, 0.4),))
    taken, stats = timed(channel, FAST, [100_000])
    assert taken[0] >= 0.4 - 0.05 and stats.up.bytes_dropped == 0


# The verb -------------------------------------------------------------------------------------------


def link_process(folder, *arguments):
    code = "import typer; from splitedge.sim.commands import link; a = typer.Typer(); a.command()(link); a()"
    return subprocess.Popen(
        [sys.executable, "-c", code, "--listen", "tcp://127.0.0.1:0", *arguments],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_the_verb_paces_a_real_process_and_stops_cleanly(tmp_path):
    (tmp_path / "t.csv").write_text("t_s,mbps,rtt_ms\n0,4,10\n1,4,10\n")

    async def job():
        async with far_end(acknowledge) as to:
            process = link_process(tmp_path, "--trace", "t.csv", "--to", to, "--json")
            try:
                ready = await asyncio.to_thread(process.stderr.readline)
                assert ready.startswith("ready: tcp://127.0.0.1:")
                reader, writer = await asyncio.open_connection(*parse_address(ready.split()[1].rstrip(",")))
                begin = time.perf_counter()
                writer.write(message(20_000))
                await reader.readexactly(1)
                assert time.perf_counter() - begin >= 8 * 20_000 / 4e6 + 0.01 - 1e-3
                process.send_signal(signal.SIGTERM)
                stdout, _ = await asyncio.to_thread(process.communicate, timeout=20)
                writer.close()
                return process.returncode, json.loads(stdout)
            finally:
                process.kill()
                process.wait()

    status, stats = run(job())
    assert status == 0 and stats["up"]["bytes_out"] == 20_000 and stats["down"]["bytes_out"] == 1


def test_the_verb_ends_with_a_trace_that_does_not_loop(tmp_path):
    (tmp_path / "t.csv").write_text("t_s,mbps\n0,4\n0.2,4\n")
    process = link_process(
        tmp_path, "--trace", "t.csv", "--to", "tcp://127.0.0.1:1", "--no-loop", "--start-s", "0.1"
    )
    stdout, stderr = process.communicate(timeout=30)
    assert process.returncode == 0 and "ready" in stderr and stdout == ""


def test_the_verb_refuses_what_it_can_not_replay(tmp_path):
    import typer

    app = typer.Typer()
    app.command()(commands.link)
    (tmp_path / "rtt.csv").write_text("t_s,rtt_ms\n0,4\n")
    (tmp_path / "t.csv").write_text("t_s,mbps\n0,4\n")

    def invoke(trace, *more):
        arguments = ["--trace", str(tmp_path / trace), "--to", "tcp://127.0.0.1:1", *more]
        return CliRunner().invoke(app, arguments, catch_exceptions=False)

    with pytest.raises(TraceError, match="uplink"):
        invoke("rtt.csv")
    with pytest.raises(ConfigError, match="say 20-25"):
        invoke("t.csv", "--cut", "x")
    with pytest.raises(ConfigError, match="--outage '3-2'"):
        invoke("t.csv", "--outage", "3-2")
    with pytest.raises(ConfigError, match="--rtt-ms"):
        invoke("t.csv", "--rtt-ms", "inf")
    assert invoke("t.csv", "--rtt-ms", "-5").exit_code == 2
    assert invoke("t.csv", "--loss", "0.7").exit_code == 2
