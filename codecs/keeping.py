"""Trained codecs and measured points on disk, so that a table is redrawn without training again.

    DIR/NAME-DIGEST/codec.json            name, id, config and how training went
                    codec.safetensors     tables
                    encoder, decoder      programs (.json, .safetensors)
                    points.npz            measured points

The digest covers the subject, the contender and the schedule: a change of any of them trains anew. Nothing
that is read is evaluated or unpickled.
"""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from splitedge.codec import Codec, CodecState, TensorSpec, load_codec
from splitedge.codecs.contenders import Contender
from splitedge.codecs.rate_distortion import Point
from splitedge.errors import BundleError, CodecError
from splitedge.program import Program

_COLUMNS = ("payload", "framed", "correct")


@dataclass(frozen=True, slots=True)
class Kept:
    """A codec that was read, with the seconds and epochs its training took and what it reached."""

    codec: Codec
    train_s: float
    epochs: int
    val_accuracy: tuple[float, ...]


def folder(root: Path, contender: Contender, *conditions: object) -> Path:
    """Where a contender is kept under these conditions (subject, schedule)."""
    told = json.dumps([asdict(contender), *conditions], sort_keys=True, default=str)
    slug = re.sub(r"[^a-z0-9]+", "-", contender.name.lower()).strip("-")
    return root / f"{slug}-{hashlib.sha256(told.encode()).hexdigest()[:8]}"


def keep(place: Path, codec: Codec, train_s: float, epochs: int, val_accuracy: Sequence[float]) -> None:
    """Write a codec.

    Raises:
        BundleError: one of its networks is no program and can not be written down.
    """
    state = codec.state()
    place.mkdir(parents=True, exist_ok=True)
    for stem, network in (("encoder", state.encoder), ("decoder", state.decoder)):
        if network is None:
            continue
        if not isinstance(network, Program):
            raise BundleError(f"codec '{codec.name}': its {stem} is no program and can not be kept")
        network.save(place / stem)
    save_file({n: t.detach().cpu().clone().contiguous() for n, t in state.tensors.items()}, _tensors(place))
    content = {
        "name": codec.name,
        "id": codec.id,
        "config": state.config,
        "encoder": state.encoder is not None,
        "decoder": state.decoder is not None,
        "train_s": train_s,
        "epochs": epochs,
        "val_accuracy": list(val_accuracy),
    }
    # Last: a folder with this file is complete.
    _index(place).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def kept(place: Path, reads: Sequence[TensorSpec], gives: Mapping[str, Sequence[TensorSpec]]) -> Kept | None:
    """Read what `keep` wrote; None where nothing is kept.

    Args:
        place: its folder.
        reads: specs of what the codec reads.
        gives: specs of what it may give: by `cut` and `output`.

    Raises:
        BundleError: a file is missing, damaged or does not fit.
    """
    if not _index(place).is_file():
        return None
    try:
        content: dict[str, Any] = json.loads(_index(place).read_text(encoding="utf-8"))
        state = CodecState(
            dict(content["config"]),
            load_file(_tensors(place)),
            Program.load(place / "encoder") if content["encoder"] else None,
            Program.load(place / "decoder") if content["decoder"] else None,
        )
        codec = _fitting(str(content["name"]), state, reads, gives, str(content["id"]))
        reached = tuple(map(float, content["val_accuracy"]))
        return Kept(codec, float(content["train_s"]), int(content["epochs"]), reached)
    except (OSError, ValueError, KeyError, TypeError, SafetensorError, CodecError, BundleError) as error:
        raise BundleError(f"{place}: the kept codec can not be read ({error}); delete the folder") from error


def _fitting(
    name: str,
    state: CodecState,
    reads: Sequence[TensorSpec],
    gives: Mapping[str, Sequence[TensorSpec]],
    wanted: str,
) -> Codec:
    from splitedge.codec import GROUP
    from splitedge.registry import lookup

    codec = load_codec(name, state, reads, gives[lookup(GROUP, name).gives])
    if codec.id != wanted:
        raise CodecError(f"codec '{name}' is {codec.id} here and was kept as {wanted}")
    return codec


def keep_points(place: Path, points: Sequence[Point], codec_id: str) -> None:
    """Write measured points beside their codec."""
    place.mkdir(parents=True, exist_ok=True)
    columns = {f"{name}_{i}": getattr(p, name) for i, p in enumerate(points) for name in _COLUMNS}
    plain = [{f.name: getattr(p, f.name) for f in fields(p) if f.name not in _COLUMNS} for p in points]
    text = np.array(json.dumps({"codec": codec_id, "points": plain}))
    with (place / "points.npz").open("wb") as file:
        np.savez_compressed(file, about=text, **columns)


def kept_points(place: Path, codec_id: str, rows: int) -> list[Point] | None:
    """Points of this very codec on so many rows; None where there are none that can be read."""
    try:
        with np.load(place / "points.npz", allow_pickle=False) as file:
            about = json.loads(str(file["about"]))
            found = [
                Point(**plain, **{name: file[f"{name}_{i}"] for name in _COLUMNS})
                for i, plain in enumerate(about["points"])
            ]
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile):
        return None
    if about.get("codec") != codec_id or any(len(p.correct) != rows for p in found):
        return None
    return found


def _index(place: Path) -> Path:
    return place / "codec.json"


def _tensors(place: Path) -> Path:
    return place / "codec.safetensors"
