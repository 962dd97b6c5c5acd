"""The verb `splitedge simulate-language`, found through the entry-point group `splitedge.commands`."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from splitedge.errors import ConfigError
from splitedge.sim.simulate_command import parse_sets
from splitedge.validating import read_toml

if TYPE_CHECKING:
    from splitedge.sim.texts import TextScore, TextSimulation

out = Console()
_FILES = ("evaluation", "channel.up", "channel.down")


def simulate_language(
    scenario: Annotated[Path | None, typer.Argument(help="Scenario as TOML; flags go over it.")] = None,
    evaluation: Annotated[
        Path | None, typer.Option(help="What LanguageDeployment.evaluate(...).save wrote.")
    ] = None,
    up: Annotated[Path | None, typer.Option(help="Trace of the uplink, or of both ways.")] = None,
    rtt_ms: Annotated[float | None, typer.Option(help="RTT without queueing; default: the trace's.")] = None,
    mode: Annotated[
        list[str] | None, typer.Option(help="auto, or a mode (spec:6 drafts six); repeat to compare.")
    ] = None,
    texts: Annotated[int | None, typer.Option(help="Texts of each device.")] = None,
    devices: Annotated[int | None, typer.Option(help="Devices that share the cloud.")] = None,
    power: Annotated[str | None, typer.Option(help="Power profile that joules are modelled with.")] = None,
    seed: Annotated[int | None, typer.Option(help="The same seed gives the same rows.")] = None,
    sets: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any key of a scenario: cloud.slower=10. Repeatable."),
    ] = None,
    to: Annotated[Path | None, typer.Option("--out", help="Directory for one CSV a mode.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="The scores as JSON on stdout.")] = False,
) -> None:
    """Simulate texts of a language model over a recorded channel, in one mode or several side by side.

    [bold]Example[/bold]: splitedge simulate-language --evaluation texts.npz --up lte.csv --rtt-ms 40
    --mode auto --mode cloud_stream --mode spec:4
    """
    from splitedge.sim.language import simulate_texts

    flags: dict[str, object | None] = {
        "evaluation": evaluation,
        "channel.up": up,
        "channel.rtt_ms": rtt_ms,
        "user.texts": texts,
        "device.count": devices,
        "device.power": power,
        "seed": seed,
        **parse_sets(sets or []),
    }
    found: dict[str, TextSimulation] = {}
    for name in mode or [""]:
        run = simulate_texts(_read(scenario, {**flags, **_mode(name)}))
        found[name or run.mode] = run
        if to is not None:
            to.mkdir(parents=True, exist_ok=True)
            run.save(to / f"{(name or run.mode).replace(':', '-')}.csv")
    scores = {name: run.score() for name, run in found.items()}
    if as_json:
        plain = {name: {k: _json(v) for k, v in asdict(score).items()} for name, score in scores.items()}
        sys.stdout.write(json.dumps(plain) + "\n")
        return
    out.print(_table(scores))


def _mode(text: str) -> dict[str, object | None]:
    if not text:
        return {}
    name, colon, drafts = text.partition(":")
    if colon and not drafts.isdigit():
        raise ConfigError(f"--mode '{text}': write a mode, or a mode and its drafts as in spec:4")
    return {"way.mode": name, **({"way.drafts": int(drafts)} if colon else {})}


def _read(file: Path | None, changes: dict[str, object | None]) -> Any:
    from splitedge.sim.language_scenario import LanguageScenario

    data: dict[str, Any] = {} if file is None else read_toml(file)
    for key, value in changes.items():
        if value is None:
            continue
        *tables, name = key.split(".")
        table = data
        for one in tables:
            table = table.setdefault(one, {})
            if not isinstance(table, dict):
                raise ConfigError(f"'{key}': '{one}' is no table of a scenario")
        table[name] = Path(str(value)).absolute() if key in _FILES else value
    for key, flag in (("evaluation", "--evaluation"), ("channel", "--up")):
        if key not in data:
            raise ConfigError(f"a scenario needs '{key}'; give a file of one, or {flag}")
    return LanguageScenario.parse(data, file if file is not None else Path("scenario"))


def _table(scores: dict[str, TextScore]) -> Table:
    table = Table(title="a text, and a token of it", title_justify="left")
    table.add_column("")
    for name in scores:
        table.add_column(name, justify="right")
    rows: dict[str, Callable[[TextScore], str]] = {
        "texts": lambda s: f"{s.texts:,}",
        "not completed": lambda s: f"{s.failed:.1%}",
        "first token, mean / p95": lambda s: f"{_ms(s.ttft_s)} / {_ms(s.ttft_p95_s)}",
        "each further token": lambda s: _ms(s.tpot_s),
        "whole text": lambda s: _ms(s.total_s),
        "cloud passes a token": lambda s: f"{s.cloud_passes:.3f}",
        "cloud tokens a token": lambda s: f"{s.cloud_tokens:.3f}",
        "bytes up / down a token": lambda s: f"{s.bytes_up:.1f} / {s.bytes_down:.1f}",
        "joules a token (modelled)": lambda s: f"{s.joules:.3g}",
        "as the cloud would say": lambda s: f"{s.agreement:.1%}",
        "modes": lambda s: "\n".join(f"{n} {m}" for m, n in s.modes.items()),
    }
    for name, shown in rows.items():
        table.add_row(name, *(shown(score) for score in scores.values()))
    return table


def _ms(seconds: float) -> str:
    return "-" if math.isnan(seconds) else f"{1e3 * seconds:.1f} ms"


def _json(value: object) -> object:
    return None if isinstance(value, float) and not math.isfinite(value) else value
