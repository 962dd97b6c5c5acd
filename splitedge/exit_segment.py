"""An exit as a segment: the tensors of a boundary in, one tensor of logits out."""

from __future__ import annotations

from typing import Self

import torch
from torch import nn

from splitedge.codec import DTYPES, Tensors, TensorSpec
from splitedge.errors import ConfigError
from splitedge.exits import ExitHead, build_exit
from splitedge.partition import capture
from splitedge.pooling import feature_among
from splitedge.program import Program


class ExitSegment(nn.Module):
    """Runs an exit head on one of the tensors at a boundary.

    Args:
        specs: the boundary's tensors.
        which: index of the one the head reads.
        head: the classifier.
    """

    def __init__(self, specs: tuple[TensorSpec, ...], which: int, head: ExitHead) -> None:
        super().__init__()
        self.specs = specs
        self.which = which
        self.head = head

    @classmethod
    def build(cls, specs: tuple[TensorSpec, ...], n_classes: int, path: str, seed: int = 0) -> Self:
        """An untrained exit on the last tensor that an exit can stand on: the one computed latest.

        Raises:
            ConfigError: no exit can stand on any of them.
        """
        which = feature_among(specs)
        if which is not None:
            return cls(specs, which, build_exit(specs[which], n_classes, seed=seed).eval())
        crossing = ", ".join(map(str, specs))
        raise ConfigError(f"no exit can stand at '{path}': what crosses there is {crossing}; pick another")

    def feature(self, tensors: Tensors) -> torch.Tensor:
        """What the head reads."""
        return tensors[self.which]

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        """Logits of shape (rows, classes)."""
        return (self.head(tensors[self.which]),)


def export_exit(segment: ExitSegment) -> Program:
    """The exit as a program: the same in process as from a bundle."""
    example = tuple(torch.zeros(spec.shape_at(2), dtype=DTYPES[spec.dtype]) for spec in segment.specs)
    (program,) = capture(segment, example, dynamic_batch="auto").segments([])
    return program
