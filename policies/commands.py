"""The verb `splitedge policy`: train learned policies and show what is in their files."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable, Iterator
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from splitedge.errors import PolicyError

policy = typer.Typer(help="Train learned policies and look into their files.", no_args_is_help=True)
fit = typer.Typer(help="Train a learned policy on records, evaluations or traces.", no_args_is_help=True)
policy.add_typer(fit, name="fit")

err = Console(stderr=True)

Out = Annotated[Path, typer.Option(help="File to write (JSON).")]
Quiet = Annotated[bool, typer.Option("--progress/--no-progress", help="Show a bar on stderr.")]


class LabelKind(StrEnum):
    """Labels of a router."""

    DET = "det"
    PROB = "prob"
    TRANS = "trans"


class ModelKind(StrEnum):
    """Classifiers of a router."""

    LOGISTIC = "logistic"
    TREES = "trees"


@fit.command()
def router(
    evaluation: Annotated[
        Path,
        typer.Argument(help="Written by Deployment.evaluate(...).save, of rows that you do not test on."),
    ],
    out: Out = Path("router.json"),
    edge: Annotated[
        str | None, typer.Option(help="Option that may stay; default: the best local one.")
    ] = None,
    cloud: Annotated[
        str | None, typer.Option(help="Option to send by; default: the best remote one.")
    ] = None,
    labels: Annotated[LabelKind, typer.Option(help="What 'no worse than the cloud' means.")] = LabelKind.PROB,
    model: Annotated[ModelKind, typer.Option(help="The classifier.")] = ModelKind.LOGISTIC,
    target: Annotated[
        float, typer.Option(help="Share of all requests that may lose an answer the cloud had right.")
    ] = 0.01,
    seed: Annotated[int, typer.Option(help="Of the division into training and validation.", min=0)] = 0,
    progress: Quiet = True,
) -> None:
    """Train a router: which inputs the device answers as well as the cloud, by cheap features.

    [bold]Example[/bold]: splitedge policy fit router evaluation.npz --target 0.01 --out router.json
    then splitedge edge my-bundle --policy router:router.json
    """
    from splitedge.evaluation import Evaluation
    from splitedge.policies.model_file import write_model
    from splitedge.policies.router import KIND
    from splitedge.policies.router_fit import fit_router

    with _bar(progress) as tell:
        kinds: dict[str, Any] = {"labels": labels.value, "model": model.value}
        found = fit_router(
            Evaluation.load(evaluation), edge, cloud, target=target, seed=seed, progress=tell, **kinds
        )
    digest = write_model(out, KIND, found)
    stays = "nothing stays on the device: the target can not be shown on these rows"
    if found.threshold <= 1.0:
        stays = f"{found.share:.1%} stay on the device, at most {found.loss:.2%} lose a right answer"
    _say(f"{found.edge} or {found.cloud}: AUC {found.auc:.3f}; {stays} (validation rows)")
    _wrote(out, digest)


@fit.command()
def forecast(
    files: Annotated[list[Path], typer.Argument(help="Traces of uplinks, or files of records.")],
    out: Out = Path("forecast.json"),
    trees: Annotated[int, typer.Option(help="For each of the three quantiles.", min=1, max=1000)] = 60,
    depth: Annotated[int, typer.Option(help="Of a tree.", min=1, max=8)] = 3,
    seed: Annotated[int, typer.Option(help="The same seed and files give the same trees.", min=0)] = 0,
    progress: Quiet = True,
) -> None:
    """Train a forecast of the uplink: quantiles by gradient-boosted trees.

    [bold]Example[/bold]: splitedge policy fit forecast traces/*.csv --out forecast.json
    then splitedge edge my-bundle --policy mpc:forecast=forecast.json
    """
    from splitedge.policies.fit import read_seen
    from splitedge.policies.forecast_fit import fit_forecast

    with _bar(progress) as tell:
        seen = [read_seen(path) for path in files]
        found = fit_forecast(seen, trees=trees, depth=depth, seed=seed, progress=tell)
    file = found.file
    assert file is not None  # fit_forecast gives a trained one
    _say(
        f"{file.rows} moments of {', '.join(file.sources)}: pinball loss {file.pinball:.3f}, "
        f"{file.coverage:.1%} between low and high (80% wanted; validation part)"
    )
    _wrote(out, found.save(out))


@fit.command()
def bandit(
    records: Annotated[Path, typer.Argument(help="A file of records (.jsonl or .npz).")],
    evaluation: Annotated[
        Path, typer.Option(help="An evaluation of the deployment: it holds the option table.")
    ],
    out: Out = Path("bandit.json"),
    joules: Annotated[
        float, typer.Option(help="How much of a right answer a joule is worth.", min=0.0)
    ] = 0.01,
    ridge: Annotated[float, typer.Option(help="Weight of the predictions, in outcomes.", min=1e-6)] = 10.0,
    progress: Quiet = True,
) -> None:
    """Train a bandit's start on the outcomes of a recorded run.

    [bold]Example[/bold]: splitedge policy fit bandit records.npz --evaluation evaluation.npz --out
    bandit.json then splitedge edge my-bundle --policy bandit:file=bandit.json
    """
    from splitedge.evaluation import Evaluation
    from splitedge.policies.bandit import save
    from splitedge.policies.bandit_fit import fit_bandit
    from splitedge.policies.fit import read_columns

    table = Evaluation.load(evaluation).table
    if not table:
        raise PolicyError(
            f"{evaluation} holds no option table (it is from before there was one): evaluate again"
        )
    with _bar(progress) as tell:
        found = fit_bandit(read_columns(records), table, joules=joules, ridge=ridge, progress=tell)
    _say(
        f"{found.rows} requests: squared error of the reward {found.before:.4f} as predicted, "
        f"{found.after:.4f} with what was learned (validation part)"
    )
    _wrote(out, save(str(out), found))


@policy.command()
def show(
    path: Annotated[Path, typer.Argument(help="A file that 'splitedge policy fit' wrote.")],
    as_json: Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")] = False,
) -> None:
    """Check a learned policy's file and show what it says of itself.

    [bold]Example[/bold]: splitedge policy show router.json
    """
    from splitedge.policies.describe import describe

    found = describe(path)
    if as_json:
        sys.stdout.write(json.dumps(found) + "\n")
        return
    for key, value in found.items():
        _say(f"{key}: {value}")


@contextlib.contextmanager
def _bar(show: bool) -> Iterator[Callable[[str, float], None]]:
    """A progress bar on a terminal's stderr; called with what is done and which share of it."""
    columns = TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn()
    with Progress(*columns, console=err, transient=True, disable=not show or not err.is_terminal) as progress:
        task = progress.add_task("", total=1.0)
        yield lambda what, share: progress.update(task, description=what, completed=share)


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")


def _wrote(path: Path, digest: str) -> None:
    err.print(f"wrote {path}; digest {digest}", highlight=False, soft_wrap=True)
