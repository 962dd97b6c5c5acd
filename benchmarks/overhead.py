"""What splitedge costs where the model costs nothing: one request through the whole path, a null tail.

Engine, policy, codec with CRC, wire format, CURVE, the server's admission and batcher, all on, beside
bare echoes that have none of it: pyzmq, grpc.aio and LitServe, each server in a process of its own, at
1, 16 and 100 kB each way. Peers take turns within a round, so that what else the machine does hits all
of them alike; figures are medians over rounds.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import importlib.util
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from _overhead_servers import SIZES
from common import Report, arguments, console, quantile, readable, show_machine
from rich.table import Table

if TYPE_CHECKING:
    import torch

    from splitedge.edge.runtime import EdgeRuntime

IN_FLIGHT = 32
NAMES = {"splitedge": "splitedge", "pyzmq": "raw pyzmq", "grpc": "grpc.aio", "litserve": "LitServe"}
NEEDS = {"grpc": "grpc", "litserve": "litserve"}

Ask = Callable[[], Awaitable[object]]


@dataclass
class Samples:
    """One number of each round."""

    p50_s: list[float] = field(default_factory=list)
    p99_s: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)  # requests/s at 1 in flight
    together: list[float] = field(default_factory=list)  # requests/s at IN_FLIGHT


@dataclass
class Trouble:
    """Requests of splitedge that did not go through at the first sending."""

    requests: int = 0
    resent: int = 0
    unanswered: int = 0


# Clients: an `Ask` for each size ----------------------------------------------------------------------


@contextlib.asynccontextmanager
async def splitedge_client(port: int, keys: Path, trouble: Trouble) -> AsyncIterator[dict[str, Ask]]:
    """The real edge runtime with the real engine, one for each size of model."""
    import torch
    from _overhead_model import IdentityHead

    from splitedge.edge.link import ZmqLink
    from splitedge.edge.runtime import EdgeRuntime
    from splitedge.edge.settings import EdgeSettings
    from splitedge.engine import Engine
    from splitedge.keys import load_keys, trusted_key
    from splitedge.policy import make_policy

    settings = EdgeSettings(cloud=f"tcp://127.0.0.1:{port}", keys=keys)
    pair, server_key = load_keys(keys), trusted_key(keys)
    asks: dict[str, Ask] = {}
    async with contextlib.AsyncExitStack() as stack:
        for size, nbytes in SIZES.items():
            head = IdentityHead(nbytes)
            engine = Engine(head.options, make_policy("static:split", head.options))
            link = ZmqLink(f"tcp://127.0.0.1:{port}", pair, server_key, settings)
            runtime = EdgeRuntime(head, engine, link, settings=settings)
            await runtime.start()
            stack.push_async_callback(runtime.close)
            await runtime.connected(10.0)
            asks[size] = _infer(runtime, torch.rand(1, nbytes // 4), trouble)
        yield asks


def _infer(runtime: EdgeRuntime, tensor: torch.Tensor, trouble: Trouble) -> Ask:
    from splitedge.errors import RequestError

    async def ask() -> None:
        trouble.requests += 1
        try:
            result = await runtime.infer(tensor, deadline_s=5.0)
        except RequestError:
            trouble.unanswered += 1
            return
        trouble.resent += result.record.attempts > 1
        if result.degraded or result.output.shape != tensor.shape:
            raise RuntimeError(f"not the cloud's answer: {result}")

    return ask


@contextlib.asynccontextmanager
async def pyzmq_client(port: int) -> AsyncIterator[dict[str, Ask]]:
    """zmq.asyncio; a number in front tells the answers apart."""
    import zmq
    import zmq.asyncio

    context = zmq.asyncio.Context()
    dealer = context.socket(zmq.DEALER)
    dealer.linger = 0
    dealer.connect(f"tcp://127.0.0.1:{port}")
    waiting: dict[bytes, asyncio.Future[bytes]] = {}

    async def receive() -> None:
        while True:
            number, payload = await dealer.recv_multipart()
            waiting.pop(number).set_result(payload)

    receiver = asyncio.create_task(receive())
    count = iter(range(2**62))

    def asker(nbytes: int) -> Ask:
        data = os.urandom(nbytes)

        async def ask() -> None:
            number = next(count).to_bytes(8, "big")
            waiting[number] = asyncio.get_running_loop().create_future()
            await dealer.send_multipart([number, data])
            _check(await waiting[number], data)

        return ask

    try:
        yield {size: asker(nbytes) for size, nbytes in SIZES.items()}
    finally:
        receiver.cancel()
        context.destroy(linger=0)


@contextlib.asynccontextmanager
async def grpc_client(port: int) -> AsyncIterator[dict[str, Ask]]:
    """One grpc.aio channel, bytes to bytes."""
    import grpc

    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        echo = channel.unary_unary("/echo/Echo")

        def asker(nbytes: int) -> Ask:
            data = os.urandom(nbytes)

            async def ask() -> None:
                _check(await echo(data), data)

            return ask

        yield {size: asker(nbytes) for size, nbytes in SIZES.items()}


@contextlib.asynccontextmanager
async def litserve_client(port: int) -> AsyncIterator[dict[str, Ask]]:
    """aiohttp with connections kept open."""
    import aiohttp

    # the server closes connections idle for 5 s, as they are while others have their turn
    connector = aiohttp.TCPConnector(limit=IN_FLIGHT, keepalive_timeout=1.0)
    async with aiohttp.ClientSession(f"http://127.0.0.1:{port}", connector=connector) as session:
        await _until_healthy(session)

        def asker(nbytes: int) -> Ask:
            data = os.urandom(nbytes)

            async def ask() -> None:
                body = {"data": base64.b64encode(data).decode()}
                async with session.post("/predict", json=body) as response:
                    _check(base64.b64decode((await response.json())["data"]), data)

            return ask

        yield {size: asker(nbytes) for size, nbytes in SIZES.items()}


async def _until_healthy(session: object) -> None:
    import aiohttp

    async with asyncio.timeout(60):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get("/health") as response:  # type: ignore[attr-defined]
                    if response.status == 200:
                        return
            await asyncio.sleep(0.1)


def _check(got: bytes, sent: bytes) -> None:
    if len(got) != len(sent):
        raise RuntimeError(f"sent {len(sent)} bytes, got {len(got)} back")


# Servers ----------------------------------------------------------------------------------------------


@contextlib.contextmanager
def serving(name: str, *more: str) -> Iterator[int]:
    """Run one server in a process of its own; its port."""
    script = Path(__file__).with_name("_overhead_servers.py")
    process = subprocess.Popen(
        [sys.executable, str(script), name, *more],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        start_new_session=True,  # LitServe starts processes of its own: all of them must end
    )
    try:
        assert process.stdout is not None
        port = next((int(line) for line in process.stdout if line.strip().isdigit()), None)
        if port is None:
            raise RuntimeError(f"the server '{name}' ended before it was ready, status {process.wait()}")
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        try:
            process.wait(5)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, 9)
            process.wait()
        if process.stdout is not None:
            process.stdout.close()


def make_keys(folder: Path) -> tuple[Path, Path]:
    """Key directories of a cloud and an edge that trust each other."""
    from splitedge.keys import new_keys, trust

    cloud, edge = folder / "cloud", folder / "edge"
    cloud_public, edge_public = new_keys(cloud, "cloud"), new_keys(edge, "edge")
    trust(cloud, edge_public)
    trust(edge, cloud_public)
    return cloud, edge


# Measuring --------------------------------------------------------------------------------------------


async def one_by_one(ask: Ask, seconds: float, samples: Samples) -> None:
    """Requests one after the other."""
    latencies = []
    begin = last = time.perf_counter()
    while last - begin < seconds or len(latencies) < 20:
        await ask()
        now = time.perf_counter()
        latencies.append(now - last)
        last = now
    samples.p50_s.append(quantile(latencies, 0.5))
    samples.p99_s.append(quantile(latencies, 0.99))
    samples.alone.append(len(latencies) / (last - begin))


async def many_at_once(ask: Ask, seconds: float, samples: Samples) -> None:
    """`IN_FLIGHT` callers, each with one request after the other."""
    done = 0
    begin = time.perf_counter()

    async def caller() -> None:
        nonlocal done
        while time.perf_counter() - begin < seconds:
            await ask()
            done += 1

    await asyncio.gather(*(caller() for _ in range(IN_FLIGHT)))
    samples.together.append(done / (time.perf_counter() - begin))


async def measure(
    clients: dict[str, dict[str, Ask]], rounds: int, seconds: float
) -> dict[tuple[str, str], Samples]:
    """Samples by (size, peer); peers take turns within each round, in another order each time."""
    samples = {(size, peer): Samples() for size in SIZES for peer in clients}
    for size in SIZES:
        for peer in clients:  # warm up: connections, caches, the service times that servers learn
            await one_by_one(clients[peer][size], 0.1, Samples())
            await many_at_once(clients[peer][size], 0.1, Samples())
    peers = list(clients)
    for number in range(rounds):
        for size in SIZES:
            for peer in peers[number % len(peers) :] + peers[: number % len(peers)]:
                await one_by_one(clients[peer][size], seconds, samples[size, peer])
                await many_at_once(clients[peer][size], seconds, samples[size, peer])
    return samples


async def run(
    rounds: int, seconds: float, missing: dict[str, str], trouble: Trouble
) -> dict[tuple[str, str], Samples]:
    """Start servers and clients, measure, stop them."""
    makers = {"pyzmq": pyzmq_client, "grpc": grpc_client, "litserve": litserve_client}
    with contextlib.ExitStack() as servers, tempfile.TemporaryDirectory() as folder:
        cloud_keys, edge_keys = make_keys(Path(folder))
        ports = {"splitedge": servers.enter_context(serving("splitedge", str(cloud_keys)))}
        for name in makers:
            if name not in missing:
                ports[name] = servers.enter_context(serving(name))
        async with contextlib.AsyncExitStack() as stack:
            clients = {
                name: await stack.enter_async_context(
                    splitedge_client(port, edge_keys, trouble) if name == "splitedge" else makers[name](port)
                )
                for name, port in ports.items()
            }
            return await measure(clients, rounds, seconds)


# Reporting --------------------------------------------------------------------------------------------


def show(samples: dict[tuple[str, str], Samples]) -> None:
    """A table of medians, with what splitedge takes as a ratio to each peer."""
    table = Table(
        title=f"echo, medians of rounds; ratios are splitedge / peer at 1 and {IN_FLIGHT} in flight"
    )
    columns = ("payload", "peer", "p50", "p99", "req/s", f"at {IN_FLIGHT}", "p50", "req/s")
    for name in columns:
        table.add_column(name, justify="left" if name in ("payload", "peer") else "right")
    for (size, peer), s in samples.items():
        ours = samples[size, "splitedge"]
        ratios = ("", "")
        if peer != "splitedge":
            ratios = (
                f"{median(ours.p50_s) / median(s.p50_s):.2f}x",
                f"{median(ours.together) / median(s.together):.2f}x",
            )
        times = (readable(median(s.p50_s), "s"), readable(median(s.p99_s), "s"))
        table.add_row(
            size, NAMES[peer], *times, f"{median(s.alone):,.0f}", f"{median(s.together):,.0f}", *ratios
        )
    console.print(table)


def fill(report: Report, samples: dict[tuple[str, str], Samples]) -> None:
    """Absolute figures, then ratios; goals stand at 16 kB."""
    for (size, peer), s in samples.items():
        name = f"{NAMES[peer]}, {size}"
        report.add(f"{name}: p50", median(s.p50_s), "s")
        report.add(f"{name}: p99", median(s.p99_s), "s")
        report.add(f"{name}: requests at 1 in flight", median(s.alone), "1/s")
        report.add(f"{name}: requests at {IN_FLIGHT} in flight", median(s.together), "1/s")
    for size in SIZES:
        ours = samples[size, "splitedge"]
        for peer in ("pyzmq", "grpc", "litserve"):
            theirs = samples.get((size, peer))
            p50 = median(ours.p50_s) / median(theirs.p50_s) if theirs else None
            rate = median(ours.together) / median(theirs.together) if theirs else None
            goal = size == "16 kB"
            most = 1.0 if goal and peer == "grpc" else None
            least = {"grpc": 1.0, "litserve": 5.0}.get(peer) if goal else None
            report.add(f"p50 over {NAMES[peer]}, {size}", p50, "ratio", at_most=most)
            report.add(f"throughput at {IN_FLIGHT} over {NAMES[peer]}, {size}", rate, "ratio", at_least=least)


def main() -> None:
    """Measure and report."""
    args = arguments(__doc__ or "")
    rounds, seconds = (3, 0.2) if args.quick else (9, 0.8)
    missing = {
        name: f"{NAMES[name]} is left out: '{module}' is not installed (pip install 'splitedge[peers]')"
        for name, module in NEEDS.items()
        if importlib.util.find_spec(module) is None
    }
    show_machine("overhead of one request")
    trouble = Trouble()
    samples = asyncio.run(run(rounds, seconds, missing, trouble))
    report = Report("overhead", notes=list(missing.values()))
    report.notes.append(
        f"{rounds} rounds of {seconds:g} s each for every payload, peer and load. splitedge: CURVE, CRC, "
        "engine, deadline and batcher on; peers: bare echoes without encryption."
    )
    show(samples)
    fill(report, samples)
    report.add(
        "splitedge: requests without an answer", trouble.unanswered / trouble.requests, "share", at_most=0.0
    )
    report.add("splitedge: requests sent more than once", trouble.resent / trouble.requests, "share")
    report.finish(args.json)
    if any(f.value is not None and not math.isfinite(f.value) for f in report.figures):
        raise SystemExit("a figure is not finite")


if __name__ == "__main__":
    main()
