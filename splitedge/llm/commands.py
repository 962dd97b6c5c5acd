"""`splitedge llm`: look into a language model before it is deployed. Heavy imports wait for their use."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from splitedge.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from torch import nn

    from splitedge.llm.leakage import Leakage

app = typer.Typer(help="Language models: what crosses a cut, and what it costs.", no_args_is_help=True)
out = Console()

Model = Annotated[
    Path, typer.Argument(help="Directory of a model, as transformers' save_pretrained writes it.")
]
Cuts = Annotated[list[int] | None, typer.Option("--cut", help="Blocks before the cut; may be repeated.")]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]
Texts = Annotated[int, typer.Option(min=12, help="Texts that the model writes to learn from.")]
Length = Annotated[int, typer.Option(min=8, help="Tokens of each.")]
Seed = Annotated[int, typer.Option(help="Of texts and training.")]


@app.command()
def leakage(
    model: Model,
    cut: Cuts = None,
    codec: Annotated[
        list[str] | None,
        typer.Option(help="ids, fp32, fp16, int8, int4, bottleneck or bottleneck:bytes=N; may be repeated."),
    ] = None,
    texts: Texts = 192,
    length: Length = 128,
    seed: Seed = 0,
    as_json: Json = False,
    plot: Annotated[Path | None, typer.Option(help="Draw recovery by cut to this file (.png, .svg).")] = None,
) -> None:
    """How many tokens simple attackers recover from what crosses each cut: a lower bound of what leaks.

    [bold]Example[/bold]: splitedge llm leakage my-model --cut 1 --cut 8 --codec fp16 --codec int4
    """
    from splitedge.llm.leakage import CODECS, ProbeSchedule, probe

    net = _loaded(model)
    found = probe(
        net,
        cut or _some_cuts(net),
        codec or CODECS,
        schedule=ProbeSchedule(texts=texts, length=length, seed=seed),
    )
    if plot is not None:
        _draw(found, plot)
    if as_json:
        print(json.dumps(found.as_dict()))  # noqa: T201 - the machine-readable result
        return
    table = Table("cut", "codec", "bytes/token", "attacker", "top-1", "top-5")
    for r in found.rows:
        table.add_row(str(r.cut), r.codec, str(r.width), r.attacker, f"{r.top1:.1%}", f"{r.top5:.1%}")
    out.print(table)
    out.print(
        f"{found.tokens} tokens of other text; seeing nothing recovers {found.guess1:.1%} (top-5 "
        f"{found.guess5:.1%}). Better attackers recover more than these."
    )


@app.command()
def codecs(
    model: Model,
    cut: Cuts = None,
    size: Annotated[
        list[int] | None, typer.Option("--bytes", help="Of a bottleneck's row; may be repeated.")
    ] = None,
    texts: Texts = 512,
    length: Length = 128,
    epochs: Annotated[int, typer.Option(min=0, help="Passes of a bottleneck's training.")] = 4,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What each codec of hidden states costs and does to what the tail says, a trained one among them."""
    from splitedge.llm.codec_report import codec_table

    net = _loaded(model)
    found = codec_table(net, cut or _some_cuts(net), size, texts, length, epochs, seed)
    if as_json:
        rows = [{"cut": at, **asdict(row)} for at, row in found]
        print(json.dumps(rows))  # noqa: T201 - the machine-readable result
        return
    table = Table("cut", "codec", "bytes/token", "same first choice", "KL (nats)", "distortion")
    for at, row in found:
        table.add_row(
            str(at),
            row.name,
            str(row.width),
            f"{row.agreement:.1%}",
            f"{row.kl:.4f}",
            f"{row.distortion:.2g}",
        )
    out.print(table)


@app.command("kv-fill")
def kv_fill(
    model: Model,
    exit_at: Annotated[list[int], typer.Option("--exit", help="Blocks before an exit; two at least.")],
    risk: Annotated[float, typer.Option(help="Share of an exit's answers that may differ.")] = 0.05,
    threshold: Annotated[
        float | None, typer.Option(help="Confidence from which exits are taken, in place of the risk's.")
    ] = None,
    texts: Texts = 256,
    length: Length = 128,
    judged: Annotated[int, typer.Option(min=1, help="Other texts that are read to measure.")] = 12,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """What propagated keys and values change for tokens after early exits, beside exact ones."""
    from splitedge.llm.exits import ExitSchedule, beginning_of, train_exits, written_texts
    from splitedge.llm.fill_error import fill_error
    from splitedge.llm.halves import split_language_model

    head, tail, anatomy = split_language_model(_loaded(model), max(exit_at))
    schedule = ExitSchedule(texts=texts, length=length, seed=seed)
    exits = train_exits(head, tail, anatomy, exit_at, risk=risk, schedule=schedule)
    first, size = beginning_of(anatomy), min(length, anatomy.context)
    other = written_texts(head, tail, anatomy, judged, size, seed + 1000, first)
    given = None if threshold is None else dict.fromkeys(range(len(exits.depths)), threshold)
    found = fill_error(head, tail, anatomy, exits, other, given)
    if as_json:
        print(json.dumps(asdict(found)))  # noqa: T201 - the machine-readable result
        return
    out.print(
        f"{found.early:.1%} of the tokens left early; of {found.tokens} later ones that went all the way "
        f"{found.agreement:.1%} have the same first choice as with exact keys and values "
        f"(KL {found.kl:.4f} nats); {found.spared:.1%} of the work behind the first exit is spared"
    )


def _loaded(directory: Path) -> nn.Module:
    try:
        from transformers import AutoModelForCausalLM
        from transformers.utils import logging as chatter
    except ImportError:
        raise MissingExtra("llm", "a language model's directory") from None
    if not (directory / "config.json").is_file():
        raise ConfigError(f"{directory} holds no config.json: name a directory that save_pretrained wrote")
    chatter.disable_progress_bar()  # type: ignore[no-untyped-call]
    net: Any = AutoModelForCausalLM.from_pretrained(directory, local_files_only=True)
    made: nn.Module = net.float().eval()
    return made


def _some_cuts(model: nn.Module) -> list[int]:
    from splitedge.llm.anatomy import anatomy_of

    depth = anatomy_of(model).depth
    return sorted({1, max(1, depth // 2), max(1, depth - 1)})


def _draw(found: Leakage, path: Path) -> None:
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise MissingExtra("sim", "a plot of leakage") from None
    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.subplots()
    cuts = sorted({row.cut for row in found.rows})
    for codec in dict.fromkeys(row.codec for row in found.rows):
        worst = [found.worst(cut, codec) for cut in cuts]
        axes.plot(cuts, [row.top1 for row in worst], marker="o", label=f"{codec} ({worst[0].width} B)")
    axes.axhline(found.guess1, color="grey", linestyle=":", label="seeing nothing")
    axes.set(xlabel="blocks before the cut", ylabel="tokens recovered, best attacker", ylim=(0, 1.02))
    axes.set_xticks(cuts)
    axes.legend()
    figure.savefig(path)
