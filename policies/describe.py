"""What a learned policy's file says of itself."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from splitedge.errors import PolicyError
from splitedge.policies import bandit, forecast_trees, router
from splitedge.policies.model_file import Model, read_model

_KINDS: dict[str, type[Model]] = {
    router.KIND: router.RouterFile,
    forecast_trees.KIND: forecast_trees.ForecastFile,
    bandit.KIND: bandit.BanditFile,
}


def describe(path: Path) -> dict[str, Any]:
    """Its kind and all that is no array; checked as when a policy takes it.

    Raises:
        PolicyError: the file is missing, damaged, or none of a learned policy.
    """
    try:
        kind = json.loads(path.read_bytes())["kind"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        kind = None
    if kind not in _KINDS:
        read_model(path, "learned policy", Model)  # says what is wrong with it
        raise PolicyError(f"{path} holds no {', '.join(_KINDS)}")
    body = read_model(path, kind, _KINDS[kind]).model_dump(mode="json")
    short = {key: value for key, value in body.items() if not _is_array(value)}
    return {"kind": kind, **short}


def _is_array(value: Any) -> bool:
    numbers = isinstance(value, list) and not all(isinstance(part, str) for part in value)
    return numbers or isinstance(value, dict)
