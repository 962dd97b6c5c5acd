"""Where a half computes: devices by name, and segments moved there."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import nn

from splitedge.codec import Tensors
from splitedge.errors import ConfigError

S = TypeVar("S", bound=Callable[..., Tensors])


def device_named(name: str) -> torch.device:
    """The device of a name: `auto` is `cuda` where there is one, else `cpu`; others as torch names them.

    Raises:
        ConfigError: there is no such device here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        why = str(error).partition("\n")[0]
        raise ConfigError(f"device '{name}' can not be used here ({why}); take 'cpu' or 'auto'") from None
    return device


def placed(segment: S, device: torch.device | None) -> S:
    """The segment itself for the CPU or None, a copy with its weights on any other device.

    A copy, because both halves of one plan may hold the same segment, and `save` and `fit` need it where
    it was.
    """
    if device is None or device.type == "cpu" or not isinstance(segment, nn.Module):
        return segment
    return copy.deepcopy(segment).to(device)


def moved(tensors: Tensors, device: torch.device | None) -> Tensors:
    """The tensors on the device; as they are for None."""
    return tensors if device is None else tuple(tensor.to(device) for tensor in tensors)


def settle(device: torch.device | None) -> None:
    """Wait for what a GPU still computes, so that a stopwatch read next tells the truth."""
    if device is not None and device.type == "cuda":
        torch.cuda.synchronize(device)
