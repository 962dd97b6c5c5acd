"""`splitedge demo`: the whole way on one machine. A small CNN is trained on real digits and deployed with one
exit and a learned bottleneck, then served by real processes over a replayed LTE-like channel that is cut in
the middle; the same stream of images is run by four strategies. Two of them are what people deploy without
any training: the image sent as WebP, and the tensors of a cut as int8.
"""

from __future__ import annotations

import asyncio
import json
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table

import splitedge
from splitedge.deployment import Deployment
from splitedge.keys import new_keys, trust
from splitedge.learning import Schedule
from splitedge.sim.compare import Row, Strategy, Stream, compare
from splitedge.sim.demo_model import Digits, digits, train
from splitedge.sim.link import Channel
from splitedge.sim.synth import LteLike, lte_like

RATE_HZ = 25.0
DEADLINE_S = 0.15
REQUESTS = 200
CUT_S = (3.0, 5.0)
SEED = 7
CUT = "stem"
#: Few and small steps: all that a bottleneck for so small a model needs.
TRAINING = Schedule(epochs=12, batch_size=64, progress=False)
#: A cell's edge: the uplink carries about a quarter of good LTE.
CHANNEL = LteLike(up_mbps=1.5, down_mbps=3.0, rtt_s=0.045)

COLUMNS = ("accuracy", "p50_s", "p95_s", "deadlines_met", "bytes_per_request", "joules_per_request")
JSON_KEYS = ("name", *COLUMNS, "routes", "requests", "lost")


class Payload(NamedTuple):
    """What crosses the cut, over the rows of the test set: mean framed bytes, and how many are right."""

    codec: str
    nbytes: float
    accuracy: float


class _Display:
    """Progress on stderr, so that stdout holds the result and nothing else."""

    def __init__(self) -> None:
        self.console = Console(stderr=True)
        self.bar = Progress(
            TextColumn("{task.description:<28}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%"),
            TimeElapsedColumn(),
            console=self.console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, name: str, share: float) -> None:
        if name not in self._tasks:
            self._tasks[name] = self.bar.add_task(name, total=1.0)
        self.bar.update(self._tasks[name], completed=share)


def main(as_json: bool = False) -> None:
    """Run the demo; print a table, or one JSON object.

    Raises:
        SplitedgeError: a process did not start or died; the message quotes its log.
    """
    display = _Display()
    with display.bar, tempfile.TemporaryDirectory(prefix="splitedge-demo-") as work:
        data = digits()
        bundles, payloads = _deploy(data, Path(work), display)
        rows = asyncio.run(_stream(bundles, data, Path(work), display))
    if as_json:
        told = {
            "channel": _channel(),
            "payloads": [payload._asdict() for payload in payloads],
            "rows": [_as_json(row) for row in rows],
        }
        json.dump(told, sys.stdout)
        sys.stdout.write("\n")
    else:
        Console().print(_table(rows, payloads))


def _deploy(data: Digits, work: Path, display: _Display) -> tuple[tuple[Path, Path], list[Payload]]:
    """Train and deploy: once with an exit and the default codec, fitted, and once with int8 and no training.

    Returns:
        Both bundles, and what crosses the cut in each.
    """
    torch.set_num_threads(1)  # faster on small frames, and two threads wait for each other on a busy machine
    model = train(data.train, progress=lambda share: display("training the CNN", share))
    fitting = "fitting exit and bottleneck"
    display(fitting, 0.0)
    full, bare = work / "full", work / "bare"
    with splitedge.deploy(model, data.train[0][:32], cut=CUT, codec="int8") as deployment:
        deployment.save(bare)
        plain = _payload(deployment, data)
    display(fitting, 0.2)
    with splitedge.deploy(model, data.train[0][:32], cut=CUT, exits=[CUT]) as deployment:
        deployment.fit(data.train, data.val, schedule=TRAINING)
        deployment.save(full)
        learned = _payload(deployment, data)
    display(fitting, 1.0)
    return (full, bare), [plain, learned]


def _payload(deployment: Deployment, data: Digits) -> Payload:
    found = deployment.evaluate(data.test, "split")
    (option,) = (option for option in deployment.options if option.name in found.options)
    return Payload(option.codec or "", float(found.nbytes.mean()), found.accuracy[option.name])


async def _stream(bundles: tuple[Path, Path], data: Digits, work: Path, display: _Display) -> list[Row]:
    full, bare = bundles
    cloud_keys, edge_keys = work / "cloud-keys", work / "edge-keys"
    trust(edge_keys, new_keys(cloud_keys, "cloud"))
    trust(cloud_keys, new_keys(edge_keys, "edge"))
    images, labels = (part[:REQUESTS].numpy() for part in data.test)
    stream = Stream(images, labels, RATE_HZ, DEADLINE_S, CUT_S)
    trace = lte_like(60.0, SEED, CHANNEL)
    return await compare(
        [
            Strategy("local (exit)", full, "static:exit"),
            Strategy("cloud", bare, "static:cloud"),
            Strategy("split (int8)", bare, "static:split"),
            Strategy("splitedge", full, "deadline"),
        ],
        stream,
        lambda: (Channel.of(trace, "up"), Channel.of(trace, "down")),
        (cloud_keys, edge_keys),
        work,
        progress=lambda name, share: display(f"streaming: {name}", share),
    )


def _channel() -> dict[str, Any]:
    return {
        "kind": "lte-like (synthetic)",
        "seed": SEED,
        **asdict(CHANNEL),
        "cut_s": CUT_S,
        "deadline_s": DEADLINE_S,
        "rate_hz": RATE_HZ,
    }


def _as_json(row: Row) -> dict[str, Any]:
    values = asdict(row)
    return {key: values[key] for key in JSON_KEYS}


def _table(rows: Sequence[Row], payloads: Sequence[Payload]) -> Table:
    crosses = ", ".join(f"{p.codec} {p.nbytes:.0f} bytes ({p.accuracy:.1%} right)" for p in payloads)
    table = Table(
        title=f"{rows[0].requests} images at {RATE_HZ:g}/s, deadline {DEADLINE_S * 1e3:g} ms, LTE-like "
        f"uplink around {CHANNEL.up_mbps:g} Mbit/s,\nlink cut from {CUT_S[0]:g} s to {CUT_S[1]:g} s",
        caption=f"at the cut: {crosses}.\n"
        "in time: right answers within the deadline, over all requests; p50/p95 in ms;\n"
        "bytes and mJ a request (joules modelled: phone, LTE). 'cloud' and 'split' run\n"
        "as people run them today: what the cloud does not answer fails.",
        box=SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        title_justify="left",
        caption_justify="left",
    )
    table.add_column("strategy", no_wrap=True)
    for name in ("right", "in time", "met", "p50/p95", "bytes", "mJ", "lost"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("routes")
    for row in rows:
        table.add_row(
            row.name,
            f"{row.accuracy:.1%}",
            f"{row.correct_in_time:.1%}",
            f"{row.deadlines_met:.1%}",
            f"{row.p50_s * 1e3:.0f}/{row.p95_s * 1e3:.0f}",
            f"{row.bytes_per_request:.0f}",
            f"{row.joules_per_request * 1e3:.1f}",
            str(row.lost),
            "\n".join(f"{route} {count}" for route, count in row.routes.items()),
        )
    return table
