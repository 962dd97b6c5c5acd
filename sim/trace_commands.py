"""The verb `splitedge trace`: look at channel traces, convert them, make new ones."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

if TYPE_CHECKING:
    from splitedge.sim.traces import Summary, Trace

out = Console()

Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
_FORMATS = "CSV, Mahimahi, Pensieve-cooked or records, also .gz"
TraceFile = Annotated[Path, typer.Argument(help=f"Trace: {_FORMATS}.")]


class Way(StrEnum):
    """The two directions of a channel."""

    UP = "up"
    DOWN = "down"


class Format(StrEnum):
    """How a trace is written."""

    CSV = "csv"
    MAHIMAHI = "mahimahi"
    PENSIEVE = "pensieve"


class Model(StrEnum):
    """What makes a trace."""

    LTE = "lte"
    GAUSS_MARKOV = "gauss-markov"
    MARKOV = "markov"
    GILBERT_ELLIOTT = "gilbert-elliott"
    HANDOVER = "handover"
    TWO_SCALE = "two-scale"


trace = typer.Typer(help="Look at, make and convert channel traces.", no_args_is_help=True)


_ROWS = {
    "mean": "mean",
    "min": "low",
    "5%": "p5",
    "median": "p50",
    "95%": "p95",
    "max": "high",
    "share of time at 0": "zero_share",
    "longest time at 0, s": "longest_zero_s",
    "samples or packets": "samples",
}
_SHORT = {
    "s": "duration_s",
    "mean": "mean",
    "5%": "p5",
    "median": "p50",
    "95%": "p95",
    "max": "high",
    "at 0": "zero_share",
    "longest, s": "longest_zero_s",
}


@trace.command()
def info(
    paths: Annotated[list[Path], typer.Argument(help=f"Traces: {_FORMATS}.")], as_json: Json = False
) -> None:
    """Show what traces hold: capacity and RTT with quantiles and outages; several give one table.

    [bold]Example[/bold]: splitedge trace info lte.csv
    """
    from splitedge.sim.formats import read_trace

    read = [read_trace(path) for path in paths]
    if as_json:
        shown = [_as_dict(trace) for trace in read]
        sys.stdout.write(json.dumps(shown[0] if len(shown) == 1 else shown) + "\n")
    else:
        out.print(_one(read[0]) if len(read) == 1 else _many(read))


def _numbers(trace: Trace) -> dict[str, Summary]:
    from splitedge.sim.traces import summarise

    parts = {"up": trace.up, "down": trace.down, "rtt": trace.rtt}
    if trace.up is trace.down:
        parts = {"both ways": trace.up, "rtt": trace.rtt}
    return {name: summarise(part) for name, part in parts.items() if part is not None}


def _as_dict(trace: Trace) -> dict[str, object]:
    numbers = {name.replace(" ", "_"): asdict(number) for name, number in _numbers(trace).items()}
    return {"source": trace.source, "kind": trace.kind, **numbers}


def _one(trace: Trace) -> Table:
    numbers = _numbers(trace)
    title = f"{trace.source}  ({trace.kind}, {trace.duration_s:g} s)"
    table = Table(title=title, title_justify="left")
    table.add_column("")
    for name in numbers:
        table.add_column(f"{name}, {'ms' if name == 'rtt' else 'Mbit/s'}", justify="right")
    for label, attribute in _ROWS.items():
        table.add_row(label, *(f"{getattr(number, attribute):.4g}" for number in numbers.values()))
    return table


def _many(traces: list[Trace]) -> Table:
    table = Table(title="Mbit/s (RTT: ms)", title_justify="left")
    table.add_column("trace", overflow="fold", min_width=20)
    table.add_column("")
    for label in _SHORT:
        table.add_column(label, justify="right")
    for trace in traces:
        for name, number in _numbers(trace).items():
            cells = (f"{getattr(number, attribute):.4g}" for attribute in _SHORT.values())
            table.add_row(Path(trace.source).name, name, *cells)
    return table


@trace.command()
def plot(
    path: TraceFile,
    to: Annotated[Path, typer.Option("--out", help="PNG to write.")] = Path("trace.png"),
) -> None:
    """Draw capacity and RTT over time, and their distributions, to a PNG (needs the extra 'sim').

    [bold]Example[/bold]: splitedge trace plot lte.csv --out lte.png
    """
    from splitedge.sim.formats import read_trace
    from splitedge.sim.plots import plot_trace

    plot_trace(read_trace(path), to)
    out.print(f"wrote {to}", highlight=False, soft_wrap=True)


@trace.command()
def synth(
    to: Annotated[Path, typer.Argument(help="CSV to write.")],
    seconds: Annotated[
        float | None, typer.Option(help="Length; default: 300, or that of the trace to be like.", min=0.1)
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same trace.", min=0)] = 0,
    model: Annotated[
        Model | None, typer.Option(help="The process; default: lte, or what fits the trace best.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--with", help="A parameter of the model as NAME=NUMBER. May be repeated."),
    ] = None,
    like: Annotated[
        Path | None, typer.Option(help="Fit the models to this trace and show how well they do.")
    ] = None,
    direction: Annotated[Way, typer.Option(help="Which direction of --like to fit.")] = Way.UP,
    apart: Annotated[
        bool, typer.Option("--apart", help="Draw up and down apart; else one capacity serves both (not lte).")
    ] = False,
    step_s: Annotated[float | None, typer.Option(help="Seconds of a step (not lte).", min=0.001)] = None,
    rtt_ms: Annotated[
        float | None, typer.Option(help="RTT without queueing; lte: in good coverage, default 45.", min=0.0)
    ] = None,
    up_mbps: Annotated[
        float | None, typer.Option(help="lte: median uplink in good coverage, default 6.", min=0.001)
    ] = None,
    down_mbps: Annotated[
        float | None, typer.Option(help="lte: median downlink in good coverage, default 12.", min=0.001)
    ] = None,
    plot_to: Annotated[
        Path | None, typer.Option("--plot", help="PNG that lays the made over the real (with --like).")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a trace by a model, or like a recorded one (see docs/channels.md).

    [bold]Examples[/bold]: splitedge trace synth lte.csv --seconds 120 --seed 7;
    splitedge trace synth made.csv --model handover --with cell_s=20;
    splitedge trace synth made.csv --like lte.csv --plot fit.png
    """
    from splitedge.sim.synth_command import Wanted, make

    lte = {"up_mbps": up_mbps, "down_mbps": down_mbps}
    wanted = Wanted(
        seconds=seconds,
        seed=seed,
        model=None if model is None else model.value,
        settings=tuple(settings or ()),
        like=like,
        direction="up" if direction is Way.UP else "down",
        apart=apart,
        step_s=step_s,
        rtt_s=None if rtt_ms is None else rtt_ms / 1e3,
        lte={name: value for name, value in lte.items() if value is not None},
        plot=plot_to,
    )
    make(wanted, to, out, as_json)


@trace.command()
def convert(
    path: TraceFile,
    to: Annotated[Path, typer.Argument(help="File to write.")],
    kind: Annotated[
        Format | None,
        typer.Option("--format", help="What to write; default: CSV for a name in .csv, else Mahimahi."),
    ] = None,
    direction: Annotated[
        Way, typer.Option(help="Which direction to write to a format that holds one.")
    ] = Way.UP,
    bin_s: Annotated[float, typer.Option(help="Bin of rates made from packets, seconds.", min=0.001)] = 0.1,
) -> None:
    """Convert any trace to CSV (rates, both directions), Mahimahi (packets) or Pensieve-cooked (rates).

    [bold]Example[/bold]: splitedge trace convert lte.csv lte.up --direction up
    """
    from splitedge.sim.formats import read_trace, write_csv, write_mahimahi, write_pensieve

    read = read_trace(path)
    kind = kind or (Format.CSV if to.suffix == ".csv" else Format.MAHIMAHI)
    if kind is Format.CSV:
        write_csv(read, to, bin_s)
    else:
        curve = read.capacity("up" if direction is Way.UP else "down")
        if kind is Format.MAHIMAHI:
            write_mahimahi(curve, to)
        else:
            write_pensieve(curve, to, bin_s)
    out.print(f"wrote {to}", highlight=False, soft_wrap=True)
