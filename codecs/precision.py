"""In which precision to train: bfloat16 where the machine multiplies it in hardware."""

from __future__ import annotations

import torch
from torch import nn

from splitedge.codec import Tensors

#: Questions to torch about the CPU. They are private, so that one that is gone means no.
_CPU = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")


def has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 is faster than float32 there."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.type != "cpu":
        return False
    return any(bool(getattr(torch.cpu, name, bool)()) for name in _CPU)


def mixed(device: torch.device, wanted: str = "auto") -> torch.autocast:
    """A context in which convolutions and matrix products take bfloat16.

    Args:
        device: where training runs.
        wanted: `auto`, `float32` or `bfloat16`.
    """
    on = wanted == "bfloat16" or (wanted == "auto" and has_bfloat16(device))
    return torch.autocast(device.type, torch.bfloat16, enabled=on)


def placed(network: nn.Module, device: torch.device, layout: torch.memory_format) -> None:
    """Move a network, its convolutions' weights laid out like that."""
    network.to(device=device, memory_format=layout)  # type: ignore[call-overload]  # missing in torch's stubs


def channels_last(tensors: Tensors) -> Tensors:
    """Images with their channels innermost in memory, where convolutions are faster; others as they are."""
    return tuple(
        t.contiguous(memory_format=torch.channels_last) if t.dim() == 4 and t.is_floating_point() else t
        for t in tensors
    )
