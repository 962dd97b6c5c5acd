"""Run the same stream of requests through several strategies over the same replayed channel, with real
processes: one cloud server for all, one edge daemon and one pacer for each.
"""

from __future__ import annotations

import asyncio
import json
import math
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass, field
from pathlib import Path

import aiohttp
import numpy as np

from splitedge.errors import SplitedgeError
from splitedge.records import read_records
from splitedge.sim.link import Channel
from splitedge.sim.pacer import Pacer
from splitedge.sim.processes import Process, free_port, verb

CLIENT_PATIENCE_S = 60.0
DATATYPES = {"uint8": "UINT8", "float32": "FP32"}


@dataclass(frozen=True, slots=True)
class Strategy:
    """One row of the comparison: a bundle and the policy that runs it."""

    name: str
    bundle: Path
    policy: str


@dataclass(frozen=True, slots=True)
class Stream:
    """What every strategy is asked: image i leaves at `i / rate_hz` seconds, whatever became of the others.

    Attributes:
        images: (N, ...) array of the model's input dtype; one row a request.
        labels: (N,) integer classes.
        rate_hz: requests a second.
        deadline_s: seconds each may take.
        cut_s: (begin, end) seconds in which the link is lost.
    """

    images: np.ndarray
    labels: np.ndarray
    rate_hz: float
    deadline_s: float
    cut_s: tuple[float, float] | None = None

    @property
    def seconds(self) -> float:
        """Length of the stream."""
        return len(self.labels) / self.rate_hz


@dataclass(slots=True)
class Row:
    """What one strategy made of the stream. An answer after its deadline counts as late, not as lost.

    Attributes:
        accuracy: right answers over all requests, whenever they came; an error counts as wrong.
        correct_in_time: right answers within the deadline, over all requests.
        p50_s, p95_s: seconds from request to answer or error, as the HTTP client saw them.
        deadlines_met: share of requests answered within the deadline.
        bytes_per_request: framed bytes up and down.
        joules_per_request: modelled.
        routes: how many requests each route answered; `error` counts typed errors.
        lost: requests that ended in neither an answer nor a typed error.
        replay_at_s, link_at_s: when the replay of the channel began and the edge was connected, by the
            monotonic clock, as the `t_s` of its records.
    """

    name: str
    accuracy: float = 0.0
    correct_in_time: float = 0.0
    p50_s: float = math.nan
    p95_s: float = math.nan
    deadlines_met: float = 0.0
    bytes_per_request: float = 0.0
    joules_per_request: float = 0.0
    routes: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    lost: int = 0
    replay_at_s: float = math.nan
    link_at_s: float = math.nan


@dataclass(frozen=True, slots=True)
class _Ended:
    route: str
    right: bool
    seconds: float


async def compare(
    strategies: Sequence[Strategy],
    stream: Stream,
    channels: Callable[[], tuple[Channel, Channel]],
    keys: tuple[Path, Path],
    work: Path,
    *,
    power: str = "phone-lte",
    begin_s: float = 0.0,
    progress: Callable[[str, float], None] = lambda name, share: None,
) -> list[Row]:
    """Run every strategy over the channel from its beginning.

    Args:
        channels: makes the uplink and downlink anew for each strategy.
        keys: key directories of cloud and edge.
        work: directory for logs and records.
        begin_s: second of the channel at which the first request leaves, so that every run meets the same
            channel however long its connection took; at once where that is later.
        progress: told the strategy's name and the share of its stream that has been sent.

    Raises:
        SplitedgeError: a process did not start or died.
    """
    cloud_port, http_port = free_port(), free_port()
    cloud_arguments = ["--listen", f"tcp://127.0.0.1:{cloud_port}", "--http", f"127.0.0.1:{http_port}"]
    bundles = list(dict.fromkeys(s.bundle for s in strategies))
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=CLIENT_PATIENCE_S))
        )
        cloud = await stack.enter_async_context(
            verb(["serve", *bundles, *cloud_arguments, "--keys", keys[0]], work / "cloud.log")
        )
        edges = [
            await stack.enter_async_context(_edge(strategy, i, keys[1], work, power))
            for i, strategy in enumerate(strategies)
        ]
        await _ready(session, cloud, f"http://127.0.0.1:{http_port}/v2/health/ready")
        rows = []
        for strategy, edge in zip(strategies, edges, strict=True):
            await _ready(session, edge.process, f"{edge.url}/v2/health/live")
            up, down = channels()
            to = f"tcp://127.0.0.1:{cloud_port}"
            async with Pacer(f"tcp://127.0.0.1:{edge.pacer_port}", to, up, down) as pacer:
                link_at_s = await _link_up(session, edge)
                await asyncio.sleep(pacer.started_s + begin_s - link_at_s)
                row = await _run(session, strategy, edge, pacer, stream, progress)
                row.replay_at_s, row.link_at_s = pacer.started_s, link_at_s
            _charge(row, edge.records)
            rows.append(row)
        return rows


@dataclass(frozen=True, slots=True)
class _Edge:
    process: Process
    url: str
    pacer_port: int
    records: Path


class _edge:
    """An edge daemon that dials a pacer's port; nobody listens there until its turn comes."""

    def __init__(self, strategy: Strategy, number: int, keys: Path, work: Path, power: str) -> None:
        self.port, self.pacer_port = free_port(), free_port()
        self._records = work / f"records-{number}.jsonl"
        self._records.unlink(missing_ok=True)  # an earlier run's: the daemon would append
        settings = work / f"edge-{number}.toml"
        settings.write_text(f'[edge]\npower = "{power}"\n')
        self._verb = verb(
            [
                "edge",
                strategy.bundle,
                *("--cloud", f"tcp://127.0.0.1:{self.pacer_port}"),
                *("--http", f"127.0.0.1:{self.port}"),
                *("--keys", keys),
                *("--policy", strategy.policy),
                *("--records", self._records),
                *("--config", settings),
            ],
            work / f"edge-{number}.log",
        )

    async def __aenter__(self) -> _Edge:
        process = await self._verb.__aenter__()
        return _Edge(process, f"http://127.0.0.1:{self.port}", self.pacer_port, self._records)

    async def __aexit__(self, *exc: object) -> None:
        await self._verb.__aexit__(None, None, None)


async def _ready(session: aiohttp.ClientSession, process: Process, url: str) -> None:
    async def ask() -> bool:
        try:
            async with session.get(url) as response:
                return response.status == 200
        except aiohttp.ClientError:
            return False

    end = time.monotonic() + CLIENT_PATIENCE_S
    while not await ask():
        process.check()
        if time.monotonic() > end:
            raise SplitedgeError(f"{process.name} did not answer {url}; see {process.log}")
        await asyncio.sleep(0.1)


async def _link_up(session: aiohttp.ClientSession, edge: _Edge) -> float:
    """Wait for the edge's link; the second at which it came up, of the monotonic clock."""
    end = time.monotonic() + CLIENT_PATIENCE_S
    while True:
        edge.process.check()
        async with session.get(f"{edge.url}/status") as response:
            link = (await response.json())["link"]
            if link["up"]:
                return time.monotonic() - float(link["for_s"])
        if time.monotonic() > end:
            raise SplitedgeError(f"{edge.process.name} did not reach the cloud; see {edge.process.log}")
        await asyncio.sleep(0.05)


async def _run(
    session: aiohttp.ClientSession,
    strategy: Strategy,
    edge: _Edge,
    pacer: Pacer,
    stream: Stream,
    progress: Callable[[str, float], None],
) -> Row:
    url = f"{edge.url}/v2/models/model"
    async with session.get(url) as response:
        ports = (await response.json())["inputs"]
    ask = _Asker(session, f"{url}/infer", ports[0]["name"], stream)
    loop = asyncio.get_running_loop()
    begin = loop.time()
    if stream.cut_s is not None:
        loop.call_at(begin + stream.cut_s[0], pacer.cut)
        loop.call_at(begin + stream.cut_s[1], pacer.restore)
    tasks = []
    for i in range(len(stream.labels)):
        await asyncio.sleep(begin + i / stream.rate_hz - loop.time())
        tasks.append(asyncio.create_task(ask(i)))
        progress(strategy.name, (i + 1) / len(stream.labels))
    return _row(strategy.name, await asyncio.gather(*tasks, return_exceptions=True), stream)


class _Asker:
    """Sends one image of a stream to an edge daemon, as Open Inference Protocol with binary tensors."""

    def __init__(self, session: aiohttp.ClientSession, url: str, name: str, stream: Stream) -> None:
        self._session, self._url, self._name, self._stream = session, url, name, stream

    async def __call__(self, i: int) -> _Ended:
        stream = self._stream
        body, headers = self._request(np.ascontiguousarray(stream.images[i : i + 1]))
        start = time.perf_counter()
        async with self._session.post(self._url, data=body, headers=headers) as response:
            answer = await response.json()
            seconds = time.perf_counter() - start
        if response.status == 200:
            told = answer["parameters"]
            right = int(np.argmax(answer["outputs"][0]["data"])) == int(stream.labels[i])
            return _Ended(told["splitedge_route"], right, seconds)
        if 400 <= response.status < 500 and response.status != 429:
            raise SplitedgeError(f"the edge refused a request as malformed: {answer['error']}")
        return _Ended("error", False, seconds)

    def _request(self, image: np.ndarray) -> tuple[bytes, dict[str, str]]:
        tensor = {
            "name": self._name,
            "shape": list(image.shape),
            "datatype": DATATYPES[str(image.dtype)],
            "parameters": {"binary_data_size": image.nbytes},
        }
        parameters = {"splitedge_deadline_ms": self._stream.deadline_s * 1e3}
        header = json.dumps({"inputs": [tensor], "parameters": parameters}).encode()
        return header + image.tobytes(), {
            "Inference-Header-Content-Length": str(len(header)),
            "Content-Type": "application/octet-stream",
        }


def _row(name: str, ends: Sequence[_Ended | BaseException], stream: Stream) -> Row:
    broken = next((end for end in ends if isinstance(end, SplitedgeError)), None)
    if broken is not None:
        raise broken
    ended = [end for end in ends if isinstance(end, _Ended)]
    n = len(ends)
    in_time = [e for e in ended if e.route != "error" and e.seconds <= stream.deadline_s]
    seconds = sorted(e.seconds for e in ended)
    cuts = statistics.quantiles(seconds, n=20, method="inclusive") if len(seconds) > 1 else []
    return Row(
        name=name,
        accuracy=sum(e.right for e in ended) / n,
        correct_in_time=sum(e.right for e in in_time) / n,
        p50_s=statistics.median(seconds) if seconds else math.nan,
        p95_s=cuts[18] if cuts else math.nan,
        deadlines_met=len(in_time) / n,
        routes=dict(Counter(e.route for e in ended).most_common()),
        requests=n,
        lost=n - len(ended),
    )


def _charge(row: Row, records: Path) -> None:
    """Bytes and joules from the edge's own records, which count failed requests too."""
    table = read_records(records)
    row.bytes_per_request = float(table["bytes_up"].sum() + table["bytes_down"].sum()) / row.requests
    row.joules_per_request = float(table["energy_j"].sum()) / row.requests
