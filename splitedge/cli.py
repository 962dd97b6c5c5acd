"""The command line: one verb, one function. Verbs outside the core register as `splitedge.commands`."""

from __future__ import annotations

import asyncio
import json
import logging
import math
import sys
from collections.abc import Coroutine
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from splitedge import registry
from splitedge.errors import ConfigError, SplitedgeError
from splitedge.fit_command import fit

app = typer.Typer(
    help="Edge-cloud inference: cut a model, serve its tail, decide per request where to compute.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
keys_app = typer.Typer(help="CURVE keys: who may connect to whom.", no_args_is_help=True)
records_app = typer.Typer(help="Read what an edge recorded: one row a request.", no_args_is_help=True)
bundle_app = typer.Typer(help="Look into a bundle and check it.", no_args_is_help=True)
app.add_typer(keys_app, name="keys")
app.add_typer(records_app, name="records")
app.add_typer(bundle_app, name="bundle")

out = Console()
err = Console(stderr=True)


def _say(text: str) -> None:
    """One line to stderr, never folded: logs and scripts read it too."""
    err.print(text, markup=False, highlight=False, soft_wrap=True)


ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Settings file (TOML); default: ./splitedge.toml if present.")
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output on stdout.")]


def _version(show: bool) -> None:
    if show:
        from splitedge import __version__

        out.print(f"splitedge {__version__}")
        raise typer.Exit


@app.callback()
def _top(
    version: Annotated[bool, typer.Option("--version", callback=_version, is_eager=True)] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what happens to stderr.")] = False,
) -> None:
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )


@app.command()
def serve(
    bundles: Annotated[
        list[Path], typer.Argument(help="Bundle directories, as `Deployment.save` writes them.")
    ],
    listen: Annotated[str | None, typer.Option(help="Where edges connect, e.g. tcp://0.0.0.0:7070.")] = None,
    keys: Annotated[
        Path | None,
        typer.Option(help="Key directory (`splitedge keys new`); required to listen off loopback."),
    ] = None,
    http: Annotated[
        str | None, typer.Option(help="host:port for health and /metrics; loopback only by default.")
    ] = None,
    device: Annotated[
        str, typer.Option(help="Where tails run: auto (a GPU where there is one), cpu, cuda, cuda:1.")
    ] = "auto",
    context_mib: Annotated[
        int | None, typer.Option(help="Memory of language models' contexts, all edges together.", min=1)
    ] = None,
    context_lease: Annotated[
        float | None, typer.Option(help="Seconds that a context is kept without a word of its edge.")
    ] = None,
    pass_tokens: Annotated[
        int | None, typer.Option(help="Tokens that go through a language model together, at most.", min=1)
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Serve one or more bundles to edges: tails and language models. Stops gracefully on SIGTERM and Ctrl-C.

    [bold]Example[/bold]: splitedge keys new --dir keys cloud; splitedge serve my-bundle --keys keys
    """
    from splitedge.cloud.server import serve as run_server
    from splitedge.config import load_settings
    from splitedge.service import load_clouds

    room = {
        "budget_bytes": None if context_mib is None else context_mib << 20,
        "lease_s": context_lease,
        "pass_tokens": pass_tokens,
    }
    given: dict[str, Any] = {"listen": listen, "keys": keys, "http": http}
    given["language"] = {key: value for key, value in room.items() if value is not None} or None
    settings = load_settings(config, {"cloud": given})
    models, languages = load_clouds(bundles, device)

    def ready(endpoint: str) -> None:
        names = ", ".join(str(path) for path in bundles)
        _say(f"serving {names} on {endpoint}; health and metrics on http://{settings.cloud.http}")

    _run(run_server(models, settings.cloud, ready, languages))


@app.command()
def edge(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory, as `Deployment.save` writes it.")],
    cloud: Annotated[
        str | None, typer.Option(help="The cloud to use, e.g. tcp://cloud.example:7070.")
    ] = None,
    http: Annotated[str | None, typer.Option(help="host:port of the local API and dashboard.")] = None,
    keys: Annotated[Path | None, typer.Option(help="This device's key directory.")] = None,
    policy: Annotated[
        str | None, typer.Option(help="Policy by name, e.g. deadline, latency, confidence:0.95, static:exit.")
    ] = None,
    records: Annotated[Path | None, typer.Option(help="Append one row a request to this file.")] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where the head runs: auto (the default: a GPU where there is one), cpu, cuda:1."),
    ] = None,
    name: Annotated[str | None, typer.Option(help="The model's name in the HTTP API.")] = None,
    mode: Annotated[
        str | None,
        typer.Option(help="Of a language model: how texts are written unless a request says otherwise."),
    ] = None,
    black_box: Annotated[
        str | None,
        typer.Option(help="An OpenAI-compatible endpoint in place of --cloud, e.g. https://api.example/v1."),
    ] = None,
    black_box_model: Annotated[str | None, typer.Option(help="The model's name there.")] = None,
    black_box_key_env: Annotated[
        str | None, typer.Option(help="Name of the environment variable that holds the key for it.")
    ] = None,
    config: ConfigFile = None,
) -> None:
    """Run the edge's half of a bundle as a daemon: Open Inference Protocol v2, or for a language model an
    OpenAI-compatible API (POST to /v1/chat/completions).

    [bold]Example[/bold]: splitedge edge my-bundle --cloud tcp://10.0.0.1:7070 --keys keys
    then open http://127.0.0.1:8080/ or POST to /v2/models/NAME/infer
    """
    from splitedge.config import load_settings
    from splitedge.service import run_edge_daemon

    given: dict[str, Any] = {"cloud": cloud, "http": http, "keys": keys, "policy": policy, "records": records}
    given |= {"device": device, "name": name}
    endpoint = {"url": black_box, "model": black_box_model, "key_env": black_box_key_env}
    tables = {
        "language": {"mode": mode},
        "black_box": endpoint,
    }
    told = {key: {k: v for k, v in table.items() if v is not None} or None for key, table in tables.items()}
    settings = load_settings(config, {"edge": {**given, **told}})

    def ready(address: str) -> None:
        _say(f"serving {bundle} on http://{address} (dashboard at /, metrics at /metrics)")

    _run(run_edge_daemon(bundle, settings, ready))


app.command("fit")(fit)


@app.command()
def explain(
    bundle: Annotated[Path, typer.Argument(help="Bundle directory.")],
    plot: Annotated[Path | None, typer.Option(help="Also draw it to this PNG.")] = None,
) -> None:
    """Show a bundle's cuts, what crosses them, and which route wins at which bandwidth.

    [bold]Example[/bold]: splitedge explain my-bundle --plot routes.png
    """
    import splitedge

    with splitedge.load(bundle, side="both") as deployment:
        if isinstance(deployment, splitedge.LanguageDeployment):
            raise ConfigError(
                "explain is for models that are cut once; a language model's bundle says its "
                "modes where 'splitedge edge' serves it, at /status"
            )
        deployment.explain(plot=plot)


@keys_app.command("new")
def keys_new(
    name: Annotated[str, typer.Argument(help="Name of this machine, e.g. cloud or camera-3.")],
    directory: Annotated[Path, typer.Option("--dir", help="Key directory to create or add to.")] = Path(
        "keys"
    ),
) -> None:
    """Make a key pair. The private half never leaves this machine; give the .key file to the peer.

    [bold]Example[/bold]: splitedge keys new camera-3 --dir keys
    """
    from splitedge.keys import new_keys

    public = new_keys(directory, name)
    _say(f"wrote {public} (public: give it to the peer) and the private key beside it")
    _say(f"on the peer: splitedge keys trust {public.name}")


@keys_app.command("trust")
def keys_trust(
    public_key: Annotated[str, typer.Argument(help="The peer's public key file, or the key itself.")],
    name: Annotated[str | None, typer.Option(help="What to call the peer; default: its file's name.")] = None,
    directory: Annotated[Path, typer.Option("--dir", help="This machine's key directory.")] = Path("keys"),
) -> None:
    """Trust a peer's public key. A running server sees the change at once.

    [bold]Example[/bold]: splitedge keys trust camera-3.key --dir keys
    """
    from splitedge.keys import trust

    path = trust(directory, public_key, name)
    _say(f"trusted: {path}")


@keys_app.command("list")
def keys_list(
    directory: Annotated[Path, typer.Option("--dir", help="This machine's key directory.")] = Path("keys"),
) -> None:
    """Show this machine's own keys and the peers it trusts (public halves only)."""
    found = sorted(directory.glob("*.key")), sorted((directory / "trusted").glob("*.key"))
    if not any(found):
        raise ConfigError(
            f"no keys in {directory}; make a pair with 'splitedge keys new NAME --dir {directory}'"
        )
    for kind, files in zip(("own", "trusted"), found, strict=True):
        for file in files:
            out.print(f"{kind:8} {file.stem:20} {file.read_text().strip()}", highlight=False, soft_wrap=True)


@records_app.command("summary")
def records_summary(
    path: Annotated[Path, typer.Argument(help="A file of records (.jsonl or .npz).")], as_json: Json = False
) -> None:
    """Requests, latency, deadlines met, bytes, joules and routes of a run; or texts, tokens and modes.

    [bold]Example[/bold]: splitedge records summary records.jsonl
    """
    from splitedge.llm import text_records as texts
    from splitedge.records import format_summary, read_records

    if path.suffix == ".jsonl" and texts.schema_of(path) == texts.SCHEMA:
        found = texts.summary_of(texts.read_texts(path))
        if as_json:
            print(json.dumps(found, allow_nan=False))  # noqa: T201 - the machine-readable result
        else:
            out.print(texts.summary_table(found))
        return
    summary = read_records(path).summary()
    if as_json:
        known = {k: None if isinstance(v, float) and math.isnan(v) else v for k, v in asdict(summary).items()}
        print(json.dumps(known, allow_nan=False))  # noqa: T201 - the machine-readable result
    else:
        out.print(format_summary(summary))


@records_app.command("convert")
def records_convert(
    path: Annotated[Path, typer.Argument(help="A file of records (.jsonl or .npz).")],
    to: Annotated[Path, typer.Argument(help="Where to write: .csv or .jsonl.")],
) -> None:
    """Write records as CSV or JSON lines."""
    from splitedge.records import read_records

    table = read_records(path)
    if to.suffix == ".csv":
        table.to_csv(to)
    elif to.suffix == ".jsonl":
        table.to_jsonl(to)
    else:
        raise ConfigError(f"cannot write records as '{to.suffix}'; name a .csv or .jsonl file")


@bundle_app.command("check")
def bundle_check(bundle: Annotated[Path, typer.Argument(help="Bundle directory.")]) -> None:
    """Verify every file of a bundle against its digest.

    [bold]Example[/bold]: splitedge bundle check my-bundle
    """
    from splitedge.bundle import verify

    manifest = verify(bundle)
    _say(f"{bundle}: every file is as it was saved; digest {manifest.digest}")


def _toml(value: Any) -> str:
    """A setting as TOML has it; a table in one line."""
    if not isinstance(value, dict):
        return json.dumps(value)
    inner = ", ".join(f"{key} = {_toml(part)}" for key, part in value.items() if part is not None)
    return f"{{ {inner} }}"


@app.command("config")
def config_show(config: ConfigFile = None, as_json: Json = False) -> None:
    """Show every setting as it stands, from defaults, file and SPLITEDGE_SECTION__KEY variables.

    [bold]Example[/bold]: splitedge config > splitedge.toml, then edit it
    """
    from splitedge.config import load_settings

    values = load_settings(config).model_dump(mode="json")
    if as_json:
        print(json.dumps(values))  # noqa: T201 - the machine-readable result
        return
    for section, settings in values.items():
        out.print(f"[{section}]", markup=False)
        for key, value in settings.items():
            line = f"# {key} is not set" if value is None else f"{key} = {_toml(value)}"
            out.print(line, markup=False, soft_wrap=True)


@app.command()
def plugins(as_json: Json = False) -> None:
    """List the codecs, policies and commands that are installed."""
    groups = {kind: registry.names(f"splitedge.{kind}") for kind in ("codecs", "policies", "commands")}
    if as_json:
        print(json.dumps(groups))  # noqa: T201 - the machine-readable result
        return
    for kind, names in groups.items():
        out.print(f"{kind}: {', '.join(names)}")


def _run(job: Coroutine[Any, Any, None]) -> None:
    try:
        asyncio.run(job)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


def _mount_plugins() -> None:
    from splitedge.llm.commands import app as llm_app

    app.add_typer(llm_app, name="llm")
    for name in registry.names("splitedge.commands"):
        command = registry.lookup("splitedge.commands", name)
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name)
        else:
            app.command(name)(command)


def main() -> None:
    """Entry point: run a verb; an error raised on purpose, or the system's, ends as one line and status 1."""
    try:
        _mount_plugins()
        app()
    except (SplitedgeError, OSError) as error:
        err.print(f"[bold red]error[/bold red] ({type(error).__name__}): ", end="")
        _say(str(error))
        sys.exit(1)
