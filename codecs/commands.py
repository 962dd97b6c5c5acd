"""The verb `splitedge bench`, found by the core's command line through `splitedge.commands`."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from splitedge.errors import ConfigError

if TYPE_CHECKING:
    from splitedge.codecs.bench import Outcome
    from splitedge.codecs.bench_goals import Figure
    from splitedge.codecs.bench_subject import Subject

out = Console()
err = Console(stderr=True)

bench = typer.Typer(help="Measure codecs on a model: bytes against accuracy.", no_args_is_help=True)


@bench.callback()
def _about() -> None:
    """Measure codecs on a model: bytes against accuracy."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a bench was asked for; `codecs` and `benchmarks/rate_distortion.py` both make one.

    Attributes:
        quick: fewer contenders, 6 s of training each.
        only: names or families.
        budget_s: seconds of training of each learned codec.
        epochs: at most, of each.
        device: that they are trained on.
        out: folder for PNG, CSV and Markdown.
        keep: folder for trained codecs and points.
        json: file for figures.
        page: Markdown page that the table is put into.
    """

    quick: bool = False
    only: tuple[str, ...] = field(default=())
    budget_s: float | None = None
    epochs: int | None = None
    device: str = "auto"
    out: Path | None = None
    keep: Path | None = None
    json: Path | None = None
    page: Path | None = None


@bench.command()
def codecs(
    subject: Annotated[
        str,
        typer.Option(
            help="`digits`, `digits-vit` (the same for a vision transformer), or module:function that makes "
            "a splitedge.codecs.bench_subject.Subject."
        ),
    ] = "digits",
    quick: Annotated[bool, typer.Option("--quick", help="Few contenders, 6 s of training each.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(help="Only this contender or family, webp say. May be repeated.")
    ] = None,
    budget: Annotated[
        float | None, typer.Option(help="Seconds of training of each learned codec.", min=0.1)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Epochs of each, at most.", min=1)] = None,
    device: Annotated[str, typer.Option(help="Where they are trained: auto, cpu, cuda.")] = "auto",
    out_dir: Annotated[
        Path | None, typer.Option("--out", help="Write plots (PNG), points.csv and table.md to this folder.")
    ] = None,
    keep: Annotated[
        Path | None,
        typer.Option(help="Keep trained codecs and points here, and use those that are there already."),
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write figures and points to this file.")
    ] = None,
) -> None:
    """Compare codecs by what they really send and what is left of the accuracy.

    Every codec is put on one model and run over its whole test set, each row encoded alone. A line of the
    table has: accuracy with its 95% interval; bytes of the payload, mean and p50/p95/p99, and of the whole
    frame; what the device has to hold (KiB) and to compute (share of the model's multiply-accumulates);
    and µs to encode and decode with the networks and, in brackets, without. Below it stands how much
    smaller one curve is than another at equal accuracy (BD-rate; negative is better). Learned codecs are
    trained first, all with one budget. docs/rate-distortion.md says how to read the numbers.

    [bold]Example[/bold]: splitedge bench codecs --quick
    splitedge bench codecs --only webp --only bottleneck --budget 120 --keep trained --out plots
    """
    asked = Request(quick, tuple(only or ()), budget, epochs, device, out_dir, keep, json)
    outcome, figures = conduct(_subject(subject), asked)
    if json is not None:
        from splitedge.codecs.bench_report import write_json

        write_json(outcome, figures, json)


def conduct(subject: Subject, asked: Request) -> tuple[Outcome, list[Figure]]:
    """Run a bench, print its tables and write what was asked for, JSON left out.

    Raises:
        ConfigError: a name that nobody has, or a page without a place for the table.
        MissingExtra: plots were asked for and matplotlib is not installed.
    """
    from splitedge.codecs.bench import QUICK_BUDGET_S, chosen, run
    from splitedge.codecs.bench_goals import figures as figures_of
    from splitedge.codecs.bench_plots import draw
    from splitedge.codecs.bench_report import goals, into_page, markdown, table, write_csv
    from splitedge.learning import Schedule

    budget = asked.budget_s or (QUICK_BUDGET_S if asked.quick else None)
    schedule = Schedule(epochs=asked.epochs, budget_s=budget, device=asked.device, progress=err.is_terminal)
    contenders = chosen(asked.only, quick=asked.quick)
    if asked.quick:
        subject = replace(subject, test=subject.test.first(500))
    outcome = run(subject, contenders, schedule, keep_in=asked.keep, say=_say)
    figures = figures_of(outcome)
    wide = out if out.is_terminal else Console(width=200)
    wide.print(table(outcome))
    wide.print(goals(figures))
    for name, why in outcome.left_out:
        _say(f"left out: {name}: {why}")
    if asked.out is not None:
        asked.out.mkdir(parents=True, exist_ok=True)
        write_csv(outcome.points, asked.out / "points.csv")
        (asked.out / "table.md").write_text(markdown(outcome, figures), encoding="utf-8")
        draw(outcome, asked.out / "rate-accuracy.png", asked.out / "size-accuracy.png")
    if asked.page is not None:
        into_page(asked.page, outcome, figures)
    return outcome, figures


def _say(line: str) -> None:
    err.print(line, markup=False, highlight=False, soft_wrap=True)


def _subject(name: str) -> Subject:
    from splitedge.codecs.bench_digits import digits
    from splitedge.codecs.bench_subject import Subject

    if name == "digits":
        return digits()
    if name == "digits-vit":
        from splitedge.codecs.bench_digits_vit import digits_vit

        return digits_vit()
    module, colon, function = name.partition(":")
    if not colon:
        raise ConfigError(f"no subject '{name}'; give 'digits', 'digits-vit' or module:function")
    try:
        made = getattr(import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"subject '{name}': {error}") from error
    if not isinstance(made, Subject):
        raise ConfigError(f"subject '{name}' gave a {type(made).__name__}, not a Subject")
    return made
