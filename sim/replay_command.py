"""The verb `splitedge replay`, found by the core's command line through `splitedge.commands`."""

from __future__ import annotations

import copy
import json
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

out = Console()
err = Console(stderr=True)

UNSUPPORTED = 3  # exit status
_BAR_AFTER_S = 2.0


def replay(
    records: Annotated[Path, typer.Argument(help="Records of an edge (.jsonl or .npz).")],
    policy: Annotated[str, typer.Option(help="The policy to try: name or name:argument.")],
    deployment: Annotated[
        Path,
        typer.Option(
            help="What recorded: the .npz of `deployment.evaluate(data).save(...)`, or a bundle directory "
            "that holds it as evaluation.npz."
        ),
    ],
    against: Annotated[
        str | None, typer.Option(help="Compare with this policy; default: the decisions as recorded.")
    ] = None,
    power: Annotated[
        str | None, typer.Option(help="Power profile; default: the one that gives the records' joules.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--out", help="Directory for requests.csv and changes.csv.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")] = False,
    draws: Annotated[int, typer.Option(help="Channels drawn between the measurements.", min=1, max=1000)] = 6,
    seed: Annotated[int, typer.Option(help="The same seed gives the same figures.", min=0)] = 0,
    reach_s: Annotated[
        float, typer.Option(help="A transfer speaks for requests this near in time, seconds.")
    ] = 10.0,
    support: Annotated[
        float, typer.Option(help="Share of requests that the records must support.", min=0.0, max=1.0)
    ] = 0.8,
    anyway: Annotated[bool, typer.Option("--anyway", help="Go on with less support.")] = False,
    config: Annotated[
        Path | None,
        typer.Option(
            help="Settings of the daemon that recorded (TOML); default: ./splitedge.toml if present."
        ),
    ] = None,
) -> None:
    """Put recorded requests through another policy: what would have changed, how sure that is, and why.

    Ends with status 3, and no figures, where the records support too few of the requests.

    [bold]Example[/bold]: splitedge replay records.jsonl --policy deadline:0.02 --deployment evaluation.npz
    """
    from splitedge.config import load_settings
    from splitedge.records import read_records
    from splitedge.sim.policies import policy_for
    from splitedge.sim.replay import Candidate, ReplaySettings
    from splitedge.sim.replay import replay as run
    from splitedge.sim.replay_files import as_json as jsonable
    from splitedge.sim.replay_files import write
    from splitedge.sim.replay_support import Unsupported
    from splitedge.sim.replay_text import show
    from splitedge.sim.simulate import read_evaluation

    configured = load_settings(config)
    settings = ReplaySettings(
        draws=draws,
        seed=seed,
        reach_s=reach_s,
        least_share=support,
        anyway=anyway,
        power=power,
        engine=configured.engine,
        link=configured.link,
    )
    evaluation = read_evaluation(deployment)

    def candidate(name: str) -> Candidate:
        ready = policy_for(name, evaluation)
        return Candidate(name, lambda: copy.deepcopy(ready))

    tried = candidate(policy)
    other = None if against is None else candidate(against)
    table = read_records(records)
    try:
        with _progress() as progress:
            found = run(table, evaluation, tried, other, settings, source=str(records), progress=progress)
    except Unsupported as error:
        err.print("[bold red]not supported[/bold red]: ", end="")
        err.print(str(error), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(UNSUPPORTED) from None
    if to is not None:
        for path in write(found, to):
            err.print(f"wrote {path}", markup=False, highlight=False, soft_wrap=True)
    if as_json:
        sys.stdout.write(json.dumps(jsonable(found), allow_nan=False) + "\n")
    else:
        show(found, out)


@contextmanager
def _progress() -> Iterator[Any]:
    """A bar on a terminal, once it has taken two seconds."""
    bar = Progress(
        TextColumn("replaying"), BarColumn(), TextColumn("{task.percentage:>3.0f}%"), TimeRemainingColumn(),
        console=err, transient=True,
    )  # fmt: skip
    task = bar.add_task("replaying", total=1.0)
    begun, shown = time.monotonic(), False

    def tell(share: float) -> None:
        nonlocal shown
        bar.update(task, completed=share)
        if not shown and err.is_terminal and time.monotonic() - begun > _BAR_AFTER_S:
            shown = True
            bar.start()

    try:
        yield tell
    finally:
        if shown:
            bar.stop()
