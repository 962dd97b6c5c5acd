"""Changes of a batch of images that leave their class as it is."""

from __future__ import annotations

from typing import Literal

import torch
from torch.nn import functional as F

from splitedge.codec import Tensors
from splitedge.errors import ConfigError
from splitedge.learning import Augment

NAMES = ("auto", "none", "flip", "flip-crop")


def augment_of(wanted: Literal["auto", "none", "flip", "flip-crop"] | Augment, inputs: Tensors) -> Augment:
    """The function that a schedule asks for, for such inputs.

    Raises:
        ConfigError: no such name.
    """
    if not isinstance(wanted, str):
        return wanted
    if wanted not in NAMES:
        raise ConfigError(f"augment is a function or one of {', '.join(NAMES)}, got '{wanted}'")
    colour = len(inputs) == 1 and inputs[0].dim() == 4 and inputs[0].shape[1] == 3
    if wanted == "none" or (wanted == "auto" and not colour):
        return lambda tensors, generator: tensors
    return _flip if wanted == "flip" else _flip_crop


def _flip(tensors: Tensors, generator: torch.Generator) -> Tensors:
    return tuple(_flipped(t, generator) if t.dim() == 4 else t for t in tensors)


def _flip_crop(tensors: Tensors, generator: torch.Generator) -> Tensors:
    return tuple(_shifted(_flipped(t, generator), generator) if t.dim() == 4 else t for t in tensors)


def _flipped(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    chosen = torch.rand(len(images), generator=generator) < 0.5
    return torch.where(chosen[:, None, None, None], images.flip(3), images)


def _shifted(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Every image moved by up to an eighth of its size, its edge repeated."""
    n, _, height, width = images.shape
    down, right = max(height // 8, 1), max(width // 8, 1)
    padded = F.pad(images.float(), (right, right, down, down), mode="replicate").to(images.dtype)
    top = torch.randint(0, 2 * down + 1, (n,), generator=generator)
    left = torch.randint(0, 2 * right + 1, (n,), generator=generator)
    rows = (top[:, None] + torch.arange(height))[:, :, None]
    columns = (left[:, None] + torch.arange(width))[:, None, :]
    return padded.permute(0, 2, 3, 1)[torch.arange(n)[:, None, None], rows, columns].permute(0, 3, 1, 2)
