"""Multiply-accumulates of a network, counted as it runs."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from splitedge.codec import DTYPES, TensorSpec


def macs(modules: Sequence[nn.Module], specs: Sequence[TensorSpec]) -> int:
    """Multiply-accumulates of a chain of networks on one row: convolutions, matrix products, attention."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        tensors: tuple[torch.Tensor, ...] = tuple(
            torch.zeros(spec.shape, dtype=DTYPES[spec.dtype], device=device_of(modules)) for spec in specs
        )
        for module in modules:
            out = module(*tensors)
            tensors = out if isinstance(out, tuple) else (out,)
    return int(counter.get_total_flops()) // 2


def device_of(modules: Sequence[nn.Module]) -> torch.device:
    """Where the first weight lies; the CPU where there is none."""
    for module in modules:
        for parameter in module.parameters():
            return parameter.device
    return torch.device("cpu")
