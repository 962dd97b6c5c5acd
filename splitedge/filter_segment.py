"""A filter's network: from what a codec sends, perhaps with an exit's answer, whether it is needed."""

from __future__ import annotations

import torch
from torch import nn

from splitedge.codec import DTYPES, Tensors, TensorSpec
from splitedge.exits import build_exit
from splitedge.partition import capture
from splitedge.pooling import Pooling
from splitedge.program import Program


class FilterSegment(nn.Module):
    """A small classifier with one hidden layer on a pooled latent.

    Args:
        spec: the latent, batch first, a float dtype.
        classes: of the exit that it judges; None where it judges none.
        seed: of its weights.
    """

    def __init__(self, spec: TensorSpec, classes: int | None, seed: int = 0) -> None:
        super().__init__()
        self.spec, self.classes = spec, classes
        self.pool = Pooling(spec)
        width = self.pool.width + (0 if classes is None else classes + 1)
        self.head = build_exit(TensorSpec((1, width), "float32"), 2, seed=seed).eval()
        self.temperature: torch.Tensor
        self.register_buffer("temperature", torch.ones(1))

    def features(self, latent: torch.Tensor, exit_logits: torch.Tensor | None = None) -> torch.Tensor:
        """What the classifier sees, (rows, width): of an exit its probabilities and the greatest of them."""
        pooled: torch.Tensor = self.pool(latent)
        if exit_logits is None:
            return pooled
        sure = exit_logits.float().softmax(1)
        return torch.cat([pooled, sure, sure.amax(1, keepdim=True)], dim=1)

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        """Latent, and the logits of the exit it judges, to logits (rows, 2): `gating.NEEDED`, `SPARED`."""
        return (self.head(self.features(*tensors)) / self.temperature,)

    def export(self) -> Program:
        """As a program: the same in process as from a bundle."""
        example = [torch.zeros(self.spec.shape_at(2), dtype=DTYPES[self.spec.dtype])]
        if self.classes is not None:
            example.append(torch.zeros(2, self.classes))
        inputs = example[0] if len(example) == 1 else tuple(example)
        (program,) = capture(self, inputs, dynamic_batch="auto").segments([])
        return program
