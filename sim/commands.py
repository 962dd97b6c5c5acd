"""The verbs `splitedge link`, `splitedge trace` (in `trace_commands.py`) and `splitedge demo`, found by the
core's command line through the entry-point group `splitedge.commands`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import signal
import sys
from collections.abc import AsyncIterator
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.live import Live
from rich.table import Table

from splitedge.errors import ConfigError
from splitedge.sim.trace_commands import trace as trace

if TYPE_CHECKING:
    from splitedge.sim.scenario import ChannelPart

err = Console(stderr=True)

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def link(
    trace: Annotated[Path, typer.Option(help="Trace of the channel or of its uplink, of any format.")],
    to: Annotated[str, typer.Option(help="Where to pass bytes on to: the cloud, tcp://host:port.")],
    listen: Annotated[
        str, typer.Option(help="Where the edge connects instead of the cloud.")
    ] = "tcp://127.0.0.1:7071",
    down_trace: Annotated[
        Path | None, typer.Option(help="Trace of the downlink, where it is a file of its own.")
    ] = None,
    rtt_ms: Annotated[
        float | None,
        typer.Option(help="Round-trip time without queueing; default: the trace's, else 0.", min=0.0),
    ] = None,
    loop: Annotated[
        bool, typer.Option("--loop/--no-loop", help="Begin again at the end of the trace, or exit there.")
    ] = True,
    start_s: Annotated[float, typer.Option(help="Where in the trace to begin, seconds.", min=0.0)] = 0.0,
    down_start_s: Annotated[
        float | None,
        typer.Option(help="Where the downlink begins in its trace; default: as the uplink.", min=0.0),
    ] = None,
    buffer_kb: Annotated[int, typer.Option(help="Queue in each direction, kB.", min=1)] = 256,
    cut: Annotated[
        list[str] | None,
        typer.Option(help="Lose the link from A to B seconds after the start, as A-B. May be repeated."),
    ] = None,
    outage: Annotated[
        list[str] | None,
        typer.Option(help="Stall both ways from A to B seconds after the start, as A-B. May be repeated."),
    ] = None,
    half_duplex: Annotated[
        bool, typer.Option("--half-duplex", help="One medium for both ways: one of them sends at a time.")
    ] = False,
    loss: Annotated[
        float, typer.Option(help="Share of packets lost and sent again, each way.", min=0.0, max=0.5)
    ] = 0.0,
    loss_burst: Annotated[
        float | None, typer.Option(help="Mean packets lost in a row; default: independent losses.", min=1.0)
    ] = None,
    rto_ms: Annotated[
        float, typer.Option(help="What a lost tail waits beyond a round trip.", min=0.0)
    ] = 200.0,
    seed: Annotated[int, typer.Option(help="The same seed loses the same packets.", min=0)] = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print statistics as JSON on exit.")] = False,
) -> None:
    """Put a recorded channel between edge and cloud: a TCP proxy that replays capacity, queue and delay.

    Needs no root. Every connection shares one queue in each direction, as on one radio. Stops on
    SIGTERM and Ctrl-C.

    [bold]Example[/bold]: splitedge link --trace lte.csv --to tcp://127.0.0.1:7070 --rtt-ms 45
    then start the edge with --cloud tcp://127.0.0.1:7071
    """
    from splitedge.sim.channel import channels_of, read_traces
    from splitedge.sim.pacer import Pacer, precise_loop

    part = _part(
        up=trace,
        down=down_trace,
        rtt_ms=rtt_ms,
        start_s=start_s,
        down_start_s=down_start_s,
        loop=loop,
        buffer_kb=buffer_kb,
        cuts=tuple(_interval("--cut", text) for text in cut or []),
        outages=tuple(_interval("--outage", text) for text in outage or []),
        half_duplex=half_duplex,
        loss=loss,
        loss_burst=loss_burst,
        rto_ms=rto_ms,
    )
    up, down = channels_of(part, *read_traces(part), seed)
    pacer = Pacer(listen, to, up, down, cuts=part.cuts, half_duplex=half_duplex)
    with asyncio.Runner(loop_factory=precise_loop) as runner:
        runner.run(_replay(pacer, f"{trace} -> {to}", as_json))


def _part(**options: Any) -> ChannelPart:
    from pydantic import ValidationError

    from splitedge.sim.scenario import ChannelPart

    try:
        return ChannelPart(**options)
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]).replace("_", "-")
        raise ConfigError(f"--{name}: {first['msg']}, got {first.get('input')!r}") from error


async def _replay(pacer: Any, title: str, as_json: bool) -> None:
    stop = asyncio.Event()
    running = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        running.add_signal_handler(number, stop.set)
    async with pacer:
        err.print(f"ready: {pacer.address}, replaying {title}", soft_wrap=True, highlight=False)
        async with _status(pacer, title):
            waits = {asyncio.create_task(stop.wait()), asyncio.create_task(pacer.ended())}
            await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
            for task in waits:
                task.cancel()
        stats = pacer.stats()
    if as_json:
        sys.stdout.write(json.dumps(asdict(stats)) + "\n")
    else:
        err.print(_status_table(stats, title))


@contextlib.asynccontextmanager
async def _status(pacer: Any, title: str) -> AsyncIterator[None]:
    """A live table on a terminal; nothing elsewhere."""
    if not err.is_terminal:
        yield
        return

    async def refresh(live: Live) -> None:
        while True:
            await asyncio.sleep(0.5)
            live.update(_status_table(pacer.stats(), title), refresh=True)

    with Live(console=err, auto_refresh=False, transient=True) as live:
        task = asyncio.create_task(refresh(live))
        try:
            yield
        finally:
            task.cancel()


def _status_table(stats: Any, title: str) -> Table:
    state = "[red]cut[/red]" if stats.is_cut else f"{stats.connections} connections"
    table = Table(title=f"{title}   {stats.elapsed_s:.0f} s   {state}", title_justify="left")
    for name in ("", "Mbit/s", "in kB", "out kB", "queue kB", "longest ms", "late ms"):
        table.add_column(name, justify="right")
    for name, way in (("up", stats.up), ("down", stats.down)):
        table.add_row(
            name,
            f"{way.rate_bps / 1e6:.2f}",
            f"{way.bytes_in / 1e3:.0f}",
            f"{way.bytes_out / 1e3:.0f}",
            f"{way.backlog_bytes / 1e3:.1f}",
            f"{way.queued_max_s * 1e3:.0f}",
            f"{way.late_mean_s * 1e3:.2f}",
        )
    return table


def _interval(option: str, text: str) -> tuple[float, float]:
    begin, _, end = text.partition("-")
    try:
        first, last = float(begin), float(end)
    except ValueError:
        first = last = math.nan
    if not 0.0 <= first < last < math.inf:
        raise ConfigError(f"{option} '{text}': write two growing numbers of seconds as A-B, say 20-25")
    return first, last


def demo(as_json: Json = False) -> None:
    """Train, deploy and run a small model over a replayed LTE-like channel that is cut in the middle."""
    from splitedge.sim.demo import main

    main(as_json=as_json)
