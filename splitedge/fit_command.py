"""`splitedge fit`: train what a bundle holds on the user's own rows."""

from __future__ import annotations

import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer

from splitedge.errors import ConfigError

if TYPE_CHECKING:
    from splitedge.filtering import Filter


def fit(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory, as `Deployment.save` writes it.")],
    data: Annotated[Path, typer.Option(help="Training rows: an .npz of x (rows, ...) and y (rows,).")],
    val: Annotated[
        Path | None, typer.Option(help="Validation rows, likewise; else 30% of the training rows.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Where to write the fitted bundle; default: BUNDLE-fitted.")
    ] = None,
    codec: Annotated[
        str | None,
        typer.Option(help="Learned codec for every cut, e.g. bottleneck or NAME:option=value,option=value."),
    ] = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="At most, for each codec and exit.")] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            help="Seconds after which the training of codecs is cut short; 60 for a codec that nobody named, "
            "if no epochs are given.",
        ),
    ] = None,
    device: Annotated[str, typer.Option(help="auto (a GPU where there is one), cpu, cuda, cuda:1.")] = "auto",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Directory that training is resumed from and saved to.")
    ] = None,
    filter_recall: Annotated[
        float | None,
        typer.Option(help="Fit a filter: of what needs the cloud, at least this part is still sent."),
    ] = None,
    nothing: Annotated[
        int | None,
        typer.Option(
            min=0,
            help="The filter's class for 'nothing here', answered here; else it judges an exit.",
        ),
    ] = None,
    seed: Annotated[int, typer.Option(help="The same seed, data and machine give the same weights.")] = 0,
    progress: Annotated[bool, typer.Option(help="Show progress bars on stderr.")] = True,
) -> None:
    """Train a bundle's codecs, exits and filters on your own rows, measure; write a fitted bundle.

    [bold]Example[/bold]: splitedge fit my-bundle --data train.npz --val val.npz --codec bottleneck
    with numpy.savez("train.npz", x=images, y=classes); never give it the rows you test on.
    """
    import splitedge

    target = out or bundle.with_name(f"{bundle.name}-fitted")
    with splitedge.load(bundle) as deployment:
        if isinstance(deployment, splitedge.LanguageDeployment):
            raise ConfigError("train a language model's exits in Python: deployment.fit(), then save()")
        rows = read_rows(data)
        held = None if val is None else read_rows(val)
        report = deployment.fit(
            rows,
            held,
            codec=codec,
            epochs=epochs,
            budget_s=budget,
            device=device,
            checkpoint=checkpoint,
            seed=seed,
            progress=progress,
            filter=_filter(filter_recall, nothing),
        )
        digest = deployment.save(target)
    sys.stdout.write(f"{report}\n")
    sys.stderr.write(f"wrote {target}; digest {digest}\n")


def _filter(recall: float | None, nothing: int | None) -> Filter | None:
    from splitedge.filtering import Filter

    if recall is None and nothing is None:
        return None
    return Filter(nothing=nothing) if recall is None else Filter(recall, nothing)


def read_rows(path: Path) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Inputs (rows, ...) and class numbers (rows,) of an `.npz`; nothing in it is unpickled.

    Raises:
        ConfigError: the file is missing, damaged, or holds something else.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as found:
            if not isinstance(found, np.lib.npyio.NpzFile):
                raise ConfigError(
                    f"{path} is one array; write both with numpy.savez(path, x=inputs, y=classes)"
                )
            lacking = [key for key in ("x", "y") if key not in found]
            if lacking:
                there = ", ".join(found.files) or "nothing"
                raise ConfigError(f"{path} lacks '{lacking[0]}'; it holds {there}; expected x and y")
            x, y = found["x"], found["y"]
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} can not be read as an .npz of plain arrays: {error}") from None
    if y.ndim != 1 or y.dtype.kind not in "iu":
        raise ConfigError(f"{path}: y is class numbers of shape (rows,), got {y.dtype} {y.shape}")
    if x.ndim == 0 or len(x) != len(y):
        raise ConfigError(f"{path}: x has shape {x.shape}, y has {len(y)} rows; both need as many")
    if x.dtype.kind == "f" and not np.isfinite(x).all():
        raise ConfigError(f"{path}: x holds NaN or infinity")
    return x, y.astype(np.int64)
