"""Where training stands, on disk: one safetensors file, replaced after every epoch."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from splitedge.errors import ConfigError

FILE = "training.safetensors"
Weights = dict[str, torch.Tensor]


@dataclass(slots=True)
class Progress:
    """Where a stage stands.

    Attributes:
        of: what is trained and how; training that differs is not resumed from it.
        stage: its name.
        ran: epochs of it.
        done: steps of it.
        seconds: spent in it.
        best: validation score of the weights kept; None before any.
        since: epochs since then.
    """

    of: str
    stage: str
    ran: int = 0
    done: int = 0
    seconds: float = 0.0
    best: float | None = None
    since: int = 0


def save(
    directory: Path,
    at: Progress,
    student: nn.Module,
    kept: Weights,
    optimiser: torch.optim.Optimizer,
) -> None:
    """Replace the checkpoint in a directory, which is made where it is missing."""
    tensors = {f"now.{name}": value for name, value in student.state_dict().items()}
    tensors |= {f"kept.{name}": value for name, value in kept.items()}
    for i, moments in optimiser.state_dict()["state"].items():
        tensors |= {f"optimiser.{i}.{name}": value for name, value in moments.items()}
    directory.mkdir(parents=True, exist_ok=True)
    partial = directory / (FILE + ".partial")
    flat = {name: value.detach().cpu().contiguous().clone() for name, value in tensors.items()}
    save_file(flat, partial, {"progress": json.dumps(asdict(at))})
    partial.replace(directory / FILE)


def load(directory: Path, of: str) -> tuple[Progress, Weights] | None:
    """Progress and tensors of the checkpoint in a directory; None where there is none.

    Raises:
        ConfigError: it can not be read, or is of other training.
    """
    path = directory / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            at = Progress(**json.loads((file.metadata() or {})["progress"]))
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"checkpoint {path} can not be read ({error}); delete it to begin anew") from None
    if at.of != of:
        raise ConfigError(f"checkpoint {path} is of training with other sizes, rows or options; name another")
    return at, tensors


def restore(tensors: Weights, student: nn.Module, optimiser: torch.optim.Optimizer) -> Weights:
    """Put a checkpoint's tensors back; returns the weights that did best.

    Raises:
        ConfigError: they do not fit.
    """
    try:
        student.load_state_dict(_under(tensors, "now."))
        state = optimiser.state_dict()
        moments: dict[int, dict[str, Any]] = {}
        for name, value in _under(tensors, "optimiser.").items():
            index, _, key = name.partition(".")
            moments.setdefault(int(index), {})[key] = value
        optimiser.load_state_dict({"state": moments, "param_groups": state["param_groups"]})
    except (RuntimeError, ValueError, KeyError) as error:
        raise ConfigError(f"the checkpoint does not fit what is trained: {error}") from None
    return _under(tensors, "kept.")


def _under(tensors: Weights, prefix: str) -> Weights:
    return {name[len(prefix) :]: value for name, value in tensors.items() if name.startswith(prefix)}
