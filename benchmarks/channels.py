"""Does the pacer do what the link model says, and how near do fitted channels come to recorded ones?

- **Pacer**: messages of 0.3 to 40 kB, one at a time, through the pacer's real TCP sockets on an LTE-like
  channel, each acknowledged with a byte; beside each the time that `Link` gives for the moment it was sent.
  Plain, with a tenth of all packets lost, and half duplex.
- **Fits**: every capacity under $SPLITEDGE_DATA/traces (or ../shared/data/traces) is fitted and compared as
  `splitedge trace synth --like` does. Without recordings, synthetic traces stand in, and that is said.
"""

from __future__ import annotations

import asyncio
import contextlib
import csv
import os
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from common import Report, arguments, console, show_machine
from rich.table import Table

from splitedge.errors import TraceError
from splitedge.sim.curves import Capacity
from splitedge.sim.fit_trace import FITS, fit
from splitedge.sim.formats import read_trace
from splitedge.sim.link import Channel, Link
from splitedge.sim.loss import Loss
from splitedge.sim.medium import Medium
from splitedge.sim.pacer import Pacer, parse_address, precise_loop
from splitedge.sim.synth import LteLike, lte_like

SIZES = (300, 1500, 6_000, 9_000, 20_000, 40_000)
CASES: dict[str, tuple[Loss | None, bool]] = {
    "plain": (None, False),
    "a tenth of packets lost": (Loss(0.1, seed=5), False),
    "half duplex": (None, True),
}


async def lateness(loss: Loss | None, half_duplex: bool, rounds: int) -> tuple[list[float], int, int]:
    """Seconds that each message took longer than the model says; packets lost by the pacer and the model."""
    trace = lte_like(300, 3, LteLike(outage_s=0.0))
    up, down = Channel.of(trace, "up", loss=loss), Channel.of(trace, "down")
    medium = Medium() if half_duplex else None
    there, back = Link(up, medium), Link(down, medium)

    ended = asyncio.Event()

    async def acknowledge(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await reader.readexactly(int.from_bytes(await reader.readexactly(4), "big") - 4)
                writer.write(b"k")
        writer.close()
        ended.set()

    server = await asyncio.start_server(acknowledge, "127.0.0.1", 0)
    to = f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    late = []
    async with server, Pacer("tcp://127.0.0.1:0", to, up, down, half_duplex=half_duplex) as pacer:
        reader, writer = await asyncio.open_connection(*parse_address(pacer.address))
        for nbytes in SIZES * rounds:
            now, begin = pacer.stats().elapsed_s, time.perf_counter()
            expected = back.send(there.send(now, nbytes), 1) - now
            writer.write(nbytes.to_bytes(4, "big") + bytes(nbytes - 4))
            await reader.readexactly(1)
            late.append(time.perf_counter() - begin - expected)
        writer.close()
        await ended.wait()
        lost = pacer.stats().up.lost_packets
    return late, lost, there.lost_packets


def pacer(report: Report, rounds: int) -> None:
    """How late the pacer is against the model."""
    table = Table(title="pacer minus model, ms", title_justify="left")
    for name in ("case", "messages", "least", "median", "95%", "packets lost, pacer / model"):
        table.add_column(name, justify="left" if name == "case" else "right")
    for case, (loss, half_duplex) in CASES.items():
        with asyncio.Runner(loop_factory=precise_loop) as runner:
            late, lost, expected = runner.run(lateness(loss, half_duplex, rounds))
        least, middle, most = (float(np.quantile(late, q)) for q in (0.0, 0.5, 0.95))
        shown = (f"{1e3 * value:.2f}" for value in (least, middle, most))
        table.add_row(case, str(len(late)), *shown, f"{lost} / {expected}")
        report.add(f"pacer, {case}: least", least, "s")
        report.add(f"pacer, {case}: median", middle, "s", at_most=0.003)
        report.add(f"pacer, {case}: 95%", most, "s")
        report.add(
            f"pacer, {case}: packets lost other than the model's", float(abs(lost - expected)), "packets"
        )
    console.print(table)


def recordings() -> Iterator[tuple[str, Capacity]]:
    """Every recorded capacity, or synthetic ones where there are none."""
    beside = Path(__file__).resolve().parents[1] / ".." / "shared" / "data"
    folder = Path(os.environ.get("SPLITEDGE_DATA", beside)) / "traces"
    if not folder.is_dir():
        for seed in range(4):
            yield f"lte_like {seed}", lte_like(300, seed).capacity("up")
        return
    with (folder / "MANIFEST.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["kind"] != "rtt"]
    for row in rows:
        trace = read_trace(folder.parent / row["path"])
        yield row["id"], trace.capacity("up" if trace.up is not None else "down")


def fits(report: Report, most: int | None) -> None:
    """Which models fit, and how far off they are."""
    scores: dict[str, list[float]] = {name: [] for name in FITS}
    best: Counter[str] = Counter()
    itself, whole, short = [], [], 0
    found = list(recordings())
    for name, curve in found if most is None else found[:: max(1, len(found) // most)]:
        try:
            fitted = fit(curve, name)
        except TraceError:
            short += 1
            continue
        best[fitted.candidates[0].model.name] += 1
        for candidate in fitted.candidates:
            scores[candidate.model.name].append(candidate.errors.score)
        itself.append(fitted.itself.score)
        whole.append((fitted.whole.ks, fitted.whole.acf, fitted.whole.delivery))
    table = Table(title=f"fits of {len(itself)} capacities, held-out score", title_justify="left")
    for name in ("model", "mean score", "best on"):
        table.add_column(name, justify="left" if name == "model" else "right")
    for name in sorted(scores, key=lambda name: float(np.mean(scores[name]))):
        table.add_row(name, f"{np.mean(scores[name]):.3f}", str(best[name]))
        report.add(f"fits, {name}: mean held-out score", float(np.mean(scores[name])), "")
        report.add(f"fits, {name}: best on", float(best[name]), "traces")
    table.add_row("the first part itself", f"{np.mean(itself):.3f}", "")
    console.print(table)
    report.add("fits, the first part itself: mean score", float(np.mean(itself)), "")
    for i, part in enumerate(("KS", "ACF", "delivery")):
        values = [row[i] for row in whole]
        report.add(f"fits, best on the whole: median {part}", float(np.median(values)), "")
        report.add(f"fits, best on the whole: 95% of {part}", float(np.quantile(values, 0.95)), "")
        console.print(
            f"best on the whole, {part}: {np.median(values):.3f}, 95% {np.quantile(values, 0.95):.3f}"
        )
    if found[0][0].startswith("lte_like"):
        report.notes.append("no recordings found: synthetic traces stood in, which flatters the models")
    if short:
        report.notes.append(f"{short} traces were too short or too silent to fit")


def main() -> None:
    """Measure and report."""
    asked = arguments(__doc__ or "")
    report = Report("channels")
    show_machine("channels")
    pacer(report, 6 if asked.quick else 40)
    fits(report, 8 if asked.quick else None)
    report.finish(asked.json)


if __name__ == "__main__":
    main()
