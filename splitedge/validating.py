"""Data from files, variables and command lines, checked against a pydantic model; one clear sentence each."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from splitedge.errors import ConfigError

M = TypeVar("M", bound=BaseModel)

MAX_FILE_BYTES = 1 << 20


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file.

    Raises:
        ConfigError: it can not be read, is larger than a megabyte or no TOML.
    """
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path} is larger than {MAX_FILE_BYTES} bytes; is it the right file?")
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path} can not be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from None


def parsed(model: type[M], data: Mapping[str, Any], source: str, at: str = "") -> M:
    """Data as a model.

    Args:
        model: whose fields, and those of the models in it, are all that may be given.
        data: by key.
        source: where it is from, for errors.
        at: what stands before its keys there, with a dot at the end.

    Raises:
        ConfigError: a key is unknown (the nearest one is named), or a value is out of range.
    """
    refuse_unknown(data, model, source, at)
    try:
        return model.model_validate(data)
    except ValidationError as error:
        first = error.errors()[0]
        key = at + ".".join(str(part) for part in first["loc"])
        raise ConfigError(f"{source}: '{key}': {first['msg']}, got {first.get('input')!r}") from error


def refuse_unknown(values: Mapping[str, Any], model: type[BaseModel], source: str, at: str = "") -> None:
    """Refuse keys that a model, or a model in it, does not have.

    Raises:
        ConfigError: it names the key, the nearest one and all others.
    """
    for key, value in values.items():
        if key not in model.model_fields:
            raise ConfigError(unknown(f"{at}{key}", model, source))
        inner = model.model_fields[key].annotation
        if isinstance(value, Mapping) and isinstance(inner, type) and issubclass(inner, BaseModel):
            refuse_unknown(value, inner, source, f"{at}{key}.")


def unknown(key: str, model: type[BaseModel], source: str) -> str:
    """What is said of a key that a model does not have."""
    near = difflib.get_close_matches(key.rpartition(".")[2], model.model_fields, n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    return f"{source}: unknown setting '{key}'.{hint} There are: {', '.join(sorted(model.model_fields))}"
