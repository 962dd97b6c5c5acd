"""Language deployments to bundles and back: what lies in which half.

    edge/model.safetensors    embedding and blocks up to the cut (and norm and unembedding where there are
                              exits); empty where only ids cross and there is no exit
    edge/exits.safetensors    adapters of trained exits
    edge/local.safetensors    the device's own model
    */bottleneck.safetensors  the learned codec of hidden states, where it is one
    edge/tokenizer.json ...   the tokenizer, unless it is one of `tokenizers.py`
    cloud/model.safetensors   what the cloud runs: the whole model where ids cross, else its tail

The models' configurations stand in the manifest. Nothing is code or a pickle; `sealed.py` keeps the files.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from splitedge import sealed
from splitedge.errors import BundleError, CodecError, ConfigError
from splitedge.llm.aids import Aids
from splitedge.llm.anatomy import Anatomy
from splitedge.llm.exits import ExitHead, TrainedExits
from splitedge.llm.halves import LanguageHead, LanguageTail
from splitedge.llm.language_plan import IDS, LanguagePlan
from splitedge.llm.manifest import KIND, LanguageEntry, LanguageExitEntry, parse_language
from splitedge.llm.state_bottleneck import Bottleneck, bytes_wanted, is_bottleneck
from splitedge.llm.state_codecs import state_codec
from splitedge.llm.token_model import WholeModel
from splitedge.llm.tokenizers import NoTokenizer, Tokenizer, load_tokenizer, tokenizer_files
from splitedge.llm.weights import ModelEntry, fill, parts_of, tensors_of
from splitedge.placing import device_named
from splitedge.sealed import Sealed, Side
from splitedge.version import VERSION

MODEL, EXITS, LOCAL = "model.safetensors", "exits.safetensors", "local.safetensors"
BOTTLENECK = "bottleneck.safetensors"


@dataclass(frozen=True)
class LoadedLanguage:
    """A language bundle, or one half of it.

    Attributes:
        plan: lacks what only the other side needs (its modules hold no memory).
        tokenizer: `NoTokenizer` in the cloud's half.
        digest: SHA-256 of the bundle.
    """

    plan: LanguagePlan
    tokenizer: Tokenizer
    digest: str


def save_language(plan: LanguagePlan, tokenizer: Tokenizer, directory: Path | str) -> str:
    """Write a language deployment as a bundle and return its digest.

    Raises:
        BundleError: the directory is not ours to replace, or a model or tokenizer is of a kind that a bundle
            can not hold.
    """
    spoken, files = tokenizer_files(tokenizer)
    model = ModelEntry.of(plan.anatomy, plan.head.scale)
    local = None if plan.local is None else ModelEntry.of(plan.local.anatomy, plan.local.scale)
    exits = plan.exits
    entry = LanguageEntry(
        kind="language",
        model=model,
        cut=plan.cut,
        codec=plan.codec,
        depths=list(plan.depths),
        stops=sorted(plan.stops),
        exits=[] if exits is None else [LanguageExitEntry.of(exits, i) for i in range(len(exits.heads))],
        local=local,
        tokenizer=spoken,
        kv_fill=plan.kv_fill,
        aids=None if plan.aids == Aids() else plan.aids.to_json(),
    )
    if is_bottleneck(plan.codec) and plan.bottleneck is None:
        raise ConfigError(
            f"the codec '{plan.codec}' is learned and was not trained yet: call fit() before save()"
        )

    def fill_in(root: Path) -> None:
        edge, cloud = _parts(plan.anatomy, entry, "edge"), _parts(plan.anatomy, entry, "cloud")
        save_file(tensors_of(edge, model.tied), root / "edge" / MODEL)
        save_file(tensors_of(cloud, model.tied), root / "cloud" / MODEL)
        if exits is not None:
            state = {
                f"{i}.{name}": tensor.detach().cpu().clone().contiguous()
                for i, head in enumerate(exits.heads)
                for name, tensor in head.state_dict().items()
            }
            save_file(state, root / "edge" / EXITS)
        if plan.bottleneck is not None:
            for half in ("edge", "cloud"):
                save_file(plan.bottleneck.tensors(), root / half / BOTTLENECK)
        if plan.local is not None and local is not None:
            save_file(tensors_of(_whole(plan.local.anatomy), local.tied), root / "edge" / LOCAL)
        for name, text in files.items():
            (root / "edge" / name).write_text(text)

    return sealed.write(directory, entry.model_dump(mode="json"), VERSION, fill_in)


def load_language(
    directory: Path | str, side: Side = "both", *, digest: str | None = None, device: str = "cpu"
) -> LoadedLanguage:
    """Read a language bundle; only the files and weights of `side`.

    Args:
        directory: the bundle.
        side: which half is going to be run.
        digest: refuse any other bundle than this one.
        device: where the cloud's half computes (the edge's is for the CPU).

    Raises:
        BundleError: a file is missing, changed or foreign; the message names it.
        ConfigError: there is no such device here.
        MissingExtra: `transformers` is not installed.
    """
    found = sealed.read(directory, side, digest=digest)
    return _loaded(found, side, device_named(device))


def _loaded(found: Sealed, side: Side, device: torch.device) -> LoadedLanguage:
    entry = parse_language(found.plan)
    root, anatomy = found.directory, entry.model.empty()
    try:
        if is_bottleneck(entry.codec):
            bytes_wanted(entry.codec, anatomy.hidden)
        elif entry.codec != IDS:
            state_codec(entry.codec, anatomy.hidden)
    except ConfigError as error:
        raise BundleError(f"'manifest.json': {error}") from None
    halves = ("cloud", "edge") if side == "both" else (side,)
    done: set[str] = set()
    for half in halves:  # the cloud's has most: what it brought is not read again
        parts = _parts(anatomy, entry, half)
        fresh = {name: module for name, module in parts.items() if name not in done}
        tensors = _read(root, half, MODEL)
        own = {key: tensor for key, tensor in tensors.items() if _part(key) not in done}
        _fill(fresh, own, entry.model.tied, f"{half}/{MODEL}", parts)
        done |= set(fresh)
    if side == "both" and entry.model.tied:
        anatomy.unembed.weight = anatomy.embed.weight
    if side == "cloud" and device.type != "cpu":
        for module in _parts(anatomy, entry, "cloud").values():
            module.to(device)
    head = LanguageHead(anatomy, entry.cut, entry.model.scale).eval()
    tail = LanguageTail(anatomy, entry.cut).eval()
    edge = side != "cloud"
    plan = LanguagePlan(
        head=head,
        tail=tail,
        anatomy=anatomy,
        cut=entry.cut,
        codec=entry.codec,
        local=_local(root, entry) if edge else None,
        exits=_exits(root, entry, anatomy, tail) if edge and entry.exits else None,
        depths=tuple(entry.depths),
        stops=frozenset(entry.stops),
        kv_fill=entry.kv_fill,
        bottleneck=_bottleneck(root, halves[0], entry, anatomy),
        aids=entry.made_aids() if edge else Aids(),
    )
    tokenizer = load_tokenizer(entry.tokenizer, root / "edge") if edge else NoTokenizer()
    return LoadedLanguage(plan, tokenizer, found.digest)


def _bottleneck(root: Path, half: str, entry: LanguageEntry, anatomy: Anatomy) -> Bottleneck | None:
    if not is_bottleneck(entry.codec):
        return None
    try:
        found = Bottleneck.from_tensors(_read(root, half, BOTTLENECK))
    except (ConfigError, CodecError, KeyError, RuntimeError, ValueError) as error:
        raise BundleError(f"'{half}/{BOTTLENECK}': {error}") from None
    if found.hidden != anatomy.hidden:
        raise BundleError(
            f"'{half}/{BOTTLENECK}' is for {found.hidden} values, the model has {anatomy.hidden}"
        )
    return found


def _part(key: str) -> str:
    first, _, rest = key.partition(".")
    return f"blocks.{rest.partition('.')[0]}" if first == "blocks" else first


def _fill(
    fresh: Mapping[str, nn.Module],
    tensors: Mapping[str, torch.Tensor],
    tied: bool,
    file: str,
    parts: Mapping[str, nn.Module],
) -> None:
    if tied and "unembed" in fresh and "embed" in parts and "embed" not in fresh:
        raise BundleError(f"'{file}' ties its unembedding to a matrix of the other half")
    fill(fresh, tensors, tied, file)


def _parts(anatomy: Anatomy, entry: LanguageEntry, half: str) -> dict[str, nn.Module]:
    """What a half runs of the cloud's model."""
    if half == "cloud":
        first = 0 if entry.codec == IDS else entry.cut
        return parts_of(anatomy, first, anatomy.depth, embeds=entry.codec == IDS, unembeds=True)
    if not entry.depths and entry.codec == IDS:
        return {}
    return parts_of(anatomy, 0, entry.cut, embeds=True, unembeds=bool(entry.depths))


def _whole(anatomy: Anatomy) -> dict[str, nn.Module]:
    return parts_of(anatomy, 0, anatomy.depth, embeds=True, unembeds=True)


def _read(root: Path, half: str, name: str) -> dict[str, torch.Tensor]:
    try:
        return dict(load_file(root / half / name))
    except (SafetensorError, OSError) as error:
        raise BundleError(f"'{half}/{name}' can not be read: {error}") from None


def _local(root: Path, entry: LanguageEntry) -> WholeModel | None:
    if entry.local is None:
        return None
    anatomy = entry.local.empty()
    fill(_whole(anatomy), _read(root, "edge", LOCAL), entry.local.tied, f"edge/{LOCAL}")
    head = LanguageHead(anatomy, 0, entry.local.scale).eval()
    return WholeModel.of(head, LanguageTail(anatomy, 0).eval(), anatomy)


def _exits(root: Path, entry: LanguageEntry, anatomy: Anatomy, tail: LanguageTail) -> TrainedExits:
    tensors = _read(root, "edge", EXITS)
    heads, trust, reports = [], [], []
    for i, one in enumerate(entry.exits):
        head = ExitHead(anatomy.hidden, one.width, tail.logits)
        own = {key.partition(".")[2]: t for key, t in tensors.items() if key.partition(".")[0] == str(i)}
        try:
            head.load_state_dict(own)
        except RuntimeError as error:
            raise BundleError(f"'edge/{EXITS}': exit {i}: {error}") from None
        heads.append(head.eval().requires_grad_(False))
        sure, report = one.make()
        trust.append(sure)
        reports.append(report)
    return TrainedExits(tuple(entry.depths), tuple(heads), tuple(trust), tuple(reports))


__all__ = ["KIND", "LoadedLanguage", "load_language", "save_language"]
