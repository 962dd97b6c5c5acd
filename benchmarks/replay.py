"""Does replay predict what really happens? Policy A runs for real through the pacer and keeps its records;
B is predicted from A's records alone; then B really runs over the same channel, and the changes are compared.

Real `splitedge serve` and `splitedge edge` processes, a small CNN on digits with an exit, an int8 split and
WebP to the cloud. The uplinks are recordings where SPLITEDGE_DATA names the data, else synthetic LTE.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from common import Report, arguments, console, show_machine
from rich.table import Table

import splitedge
from splitedge.evaluation import Evaluation
from splitedge.keys import new_keys, trust
from splitedge.records import RecordTable, read_records
from splitedge.sim.compare import Row, Strategy, Stream, compare
from splitedge.sim.demo_model import digits, train
from splitedge.sim.formats import read_trace
from splitedge.sim.link import Channel
from splitedge.sim.policies import policy_for
from splitedge.sim.replay import Candidate, Replay, ReplaySettings, replay
from splitedge.sim.replay_outcome import COLUMNS, Errors, columns_of
from splitedge.sim.replay_records import recorded
from splitedge.sim.replay_stats import Change, Pair, changes
from splitedge.sim.replay_text import number
from splitedge.sim.synth import LteLike, lte_like

CUT = "stem"
RTT_S = 0.045
DOWN_MBPS = 12.0
#: Recorded uplinks by what they are.
RECORDINGS = {
    "AT&T LTE, driving": "traces/mahimahi/ATT-LTE-driving-2016.up.csv",
    "Verizon LTE": "traces/mahimahi/Verizon-LTE-short.up.csv",
    "T-Mobile UMTS, driving": "traces/mahimahi/TMobile-UMTS-driving.up.csv",
}
PAIRS = (
    ("static:split", "deadline"),
    ("deadline", "confidence:0.95"),
    ("deadline", "static:cloud"),
)


class Subject(NamedTuple):
    """What is deployed, and what is asked of it."""

    bundle: Path
    evaluation: Evaluation
    stream: Stream


class Compared(NamedTuple):
    """One change of policy: predicted from A's records, and measured by running B."""

    predicted: Replay
    measured: list[Change]
    accuracy: tuple[float, float]


def main() -> None:
    """Measure and report."""
    asked = arguments(__doc__ or "")
    torch.set_num_threads(1)
    report = Report("replay")
    show_machine("replay: predicted and measured changes of policy")
    uplinks = _uplinks(asked.quick)
    pairs = PAIRS[:1] if asked.quick else PAIRS
    with tempfile.TemporaryDirectory(prefix="splitedge-replay-") as work:
        subject = _deploy(Path(work), seconds=15.0 if asked.quick else 60.0, rate_hz=10.0)
        agreed: list[bool] = []
        signs: list[bool] = []
        for name, channels in uplinks.items():
            for i, (a, b) in enumerate(pairs):
                folder = Path(work) / f"{len(agreed)}-{i}"
                found = asyncio.run(_compare(subject, channels, a, b, folder))
                agreed_here, signs_here = _show(f"{name}: {a} -> {b}", found)
                agreed += agreed_here
                signs += signs_here
    report.add(
        "changes whose predicted and measured intervals overlap",
        float(np.mean(agreed)),
        "share",
        at_least=0.95,
    )
    report.add(
        "changes of the same sign, or that either can not tell from 0",
        float(np.mean(signs)),
        "share",
        at_least=0.95,
    )
    report.add("changes compared", float(len(agreed)), "")
    report.finish(asked.json)


def _uplinks(quick: bool) -> dict[str, Callable[[], tuple[Channel, Channel]]]:
    """Makers of a channel, by name. Each starts its trace from the beginning."""
    data = os.environ.get("SPLITEDGE_DATA")
    down = Channel.of(
        lte_like(60.0, 1, LteLike(down_mbps=DOWN_MBPS, outage_s=0.0, sigma=0.1)), "down", rtt_s=RTT_S
    )
    found: dict[str, Callable[[], tuple[Channel, Channel]]] = {}
    if data is not None:
        for name, file in RECORDINGS.items():
            up = Channel.of(read_trace(Path(data) / file), "up", rtt_s=RTT_S)
            found[name] = lambda up=up: (up, down)
    for seed in () if found else (3,) if quick else (3, 4, 5):
        trace = lte_like(90.0, seed, LteLike(up_mbps=2.5))
        found[f"synthetic LTE {seed}"] = lambda trace=trace: (
            Channel.of(trace, "up"),
            Channel.of(trace, "down"),
        )
    return dict(list(found.items())[:1]) if quick else found


def _deploy(work: Path, seconds: float, rate_hz: float) -> Subject:
    """Half of the test images are streamed, the others evaluate the deployment."""
    console.print("training and deploying", highlight=False)
    data = digits()
    x, y = data.test
    half = len(y) // 2
    model = train(data.train)
    with splitedge.deploy(model, data.train[0][:32], cut=CUT, codec="int8", exits=[CUT]) as deployment:
        deployment.fit(data.train, data.val)
        deployment.save(work / "bundle")
        evaluation = deployment.evaluate((x[:half], y[:half]))
    count = int(seconds * rate_hz)
    order = np.random.default_rng(0).integers(half, len(y), count)
    stream = Stream(x[order].numpy(), y[order].numpy(), rate_hz, deadline_s=0.15)
    return Subject(work / "bundle", evaluation, stream)


async def _compare(
    subject: Subject, channels: Callable[[], tuple[Channel, Channel]], a: str, b: str, work: Path
) -> Compared:
    real_a, row_a = await _run(subject, channels, a, work / "a")
    ready = policy_for(b, subject.evaluation)
    # Everything that is predicted is predicted here, before B has run.
    predicted = replay(
        real_a, subject.evaluation, Candidate(b, lambda: ready), None, ReplaySettings(anyway=True), source=a
    )
    real_b, row_b = await _run(subject, channels, b, work / "b")
    return Compared(predicted, _measured(real_a, real_b, subject), (row_a.accuracy, row_b.accuracy))


async def _run(
    subject: Subject, channels: Callable[[], tuple[Channel, Channel]], policy: str, work: Path
) -> tuple[RecordTable, Row]:
    work.mkdir(parents=True)
    cloud_keys, edge_keys = work / "cloud-keys", work / "edge-keys"
    trust(edge_keys, new_keys(cloud_keys, "cloud"))
    trust(cloud_keys, new_keys(edge_keys, "edge"))
    strategy = Strategy(policy, subject.bundle, policy)
    (row,) = await compare([strategy], subject.stream, channels, (cloud_keys, edge_keys), work)
    return read_records(work / "records-0.jsonl"), row


def _measured(real_a: RecordTable, real_b: RecordTable, subject: Subject) -> list[Change]:
    """The change between two real runs of the same requests, with the same bootstrap."""
    options = subject.evaluation.table
    one, other = (recorded(table, options) for table in (real_a, real_b))
    n = min(len(one), len(other))
    before, after = (columns_of(run.decided)[:, :n] for run in (one, other))
    none = np.zeros((len(COLUMNS), len(options)))
    moved, target = np.ones(n, bool), np.zeros(n, np.int64)
    pair = Pair(before, after, Errors(none, none, np.ones(len(options), bool)), moved, moved, target, target)
    return changes([pair], seed=0)[0]


def _show(title: str, found: Compared) -> tuple[list[bool], list[bool]]:
    """Print one change of policy; which metrics agree in their intervals, and which in sign."""
    support = found.predicted.support
    table = Table(title=f"{title}  (supported {support.share:.0%})", title_justify="left")
    for name in ("", "A, real", "B, predicted", "B, real", "predicted change", "measured change", "agree"):
        table.add_column(name, justify="left" if not name else "right", no_wrap=True)
    agreed, signs = [], []
    for p, m in zip(found.predicted.changes, found.measured, strict=True):
        overlap = p.low <= m.high and m.low <= p.high
        sign = p.change * m.change >= 0.0 or not (p.shown and m.shown)
        agreed.append(overlap)
        signs.append(sign)
        table.add_row(
            p.metric.label,
            number(p.metric, m.before),
            number(p.metric, p.after),
            number(p.metric, m.after),
            _interval(p),
            _interval(m),
            "yes" if overlap and sign else "sign only" if sign else "NO",
        )
    console.print(table)
    console.print(
        f"answers really right: A {found.accuracy[0]:.1%}, B {found.accuracy[1]:.1%}", highlight=False
    )
    for gap in support.gaps:
        console.print(f"{gap.requests} requests: {gap.text}", highlight=False)
    return agreed, signs


def _interval(change: Change) -> str:
    m = change.metric
    low, high = (number(m, value, sign=True) for value in (change.low, change.high))
    return f"{number(m, change.change, sign=True)} [{low}, {high}]"


if __name__ == "__main__":
    main()
