"""Files of learned policies: JSON with a digest, checked before a number of it is used. No pickle."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from splitedge.errors import PolicyError

SCHEMA = "splitedge.learned-policy/1"
#: A model is a few thousand numbers; a larger file is something else.
MAX_BYTES = 16 * 1024 * 1024


class Model(BaseModel):
    """Base of what a file may hold: unknown keys and numbers that are not finite are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


M = TypeVar("M", bound=Model)


def write_model(path: Path | str, kind: str, model: Model) -> str:
    """Write a model; returns its digest (SHA-256, hex).

    Raises:
        PolicyError: the file can not be written.
    """
    body = model.model_dump(mode="json")
    digest = _digest(kind, body)
    text = json.dumps({"schema": SCHEMA, "kind": kind, "digest": digest, "model": body}) + "\n"
    try:
        Path(path).write_text(text, encoding="ascii")
    except OSError as error:
        raise PolicyError(f"can not write the {kind} to '{path}': {error.strerror}") from error
    return digest


def read_model(path: Path | str, kind: str, model: type[M]) -> M:
    """Read what `write_model` wrote.

    Raises:
        PolicyError: the file is missing, damaged, of another kind or another version; the message says which.
    """
    data = _json(Path(path), kind)
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        schema = data.get("schema") if isinstance(data, dict) else None
        found = f"its schema is {schema!r}" if schema else "it has no schema"
        raise PolicyError(f"{path} is no learned policy this version reads ({found}, expected '{SCHEMA}')")
    if data.get("kind") != kind:
        raise PolicyError(f"{path} holds a {data.get('kind')}, and a {kind} is needed here")
    body = data.get("model")
    if _digest(kind, body) != data.get("digest"):
        raise PolicyError(f"{path} is damaged: its digest does not fit what it holds; copy or train it again")
    try:
        return model.model_validate(body)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"]) or "the model"
        raise PolicyError(f"{path}: {where}: {first['msg']}; train it again") from error


def _json(path: Path, kind: str) -> Any:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        hint = "; 'splitedge policy fit' makes one"
        raise PolicyError(f"can not read the {kind} '{path}': {error.strerror}{hint}") from error
    if len(data) > MAX_BYTES:
        raise PolicyError(f"{path} has more than {MAX_BYTES >> 20} MiB: this is no {kind}")
    try:
        return json.loads(data)
    except (ValueError, RecursionError) as error:
        raise PolicyError(f"{path} is no {kind}: not JSON ({error})") from error


def _digest(kind: str, body: Any) -> str:
    text = json.dumps([kind, body], sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
