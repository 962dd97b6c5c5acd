"""Trained networks as programs, the form in which they are kept, named by their digests and shipped."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from splitedge.codec import DTYPES, Network, Tensors, TensorSpec
from splitedge.codecs.student import Chain
from splitedge.errors import CodecError
from splitedge.partition import capture
from splitedge.program import Program


class Answering(nn.Module):
    """Decoder and tail: the latent to the model's flat output."""

    def __init__(self, decoder: nn.Module, tail: Chain) -> None:
        super().__init__()
        self.decoder, self.tail = decoder, tail

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        """float32 (N, channels, *grid), and what else the decoder takes, to the flat outputs."""
        outputs: Tensors = self.tail(self.decoder(*tensors))[0]
        return outputs


class Together(nn.Module):
    """Several networks on the same tensors; their flat outputs one after the other."""

    def __init__(self, networks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.networks = nn.ModuleList(networks)

    def forward(self, *tensors: torch.Tensor) -> Tensors:
        """What each takes to what all give."""
        return tuple(output for network in self.networks for output in network(*tensors))


def together(programs: Sequence[Program], specs: Sequence[TensorSpec]) -> Program:
    """One program that gives what all of them give; all take what the specs say."""
    return programs[0] if len(programs) == 1 else program_of(Together(programs), specs)


def program_of(network: nn.Module, specs: Sequence[TensorSpec]) -> Program:
    """A trained network as it is kept and shipped."""
    generator = torch.Generator().manual_seed(0)
    examples = tuple(
        torch.randn(spec.shape_at(4), generator=generator).to(DTYPES[spec.dtype])
        if spec.dtype.startswith("float")
        else torch.zeros(spec.shape_at(4), dtype=DTYPES[spec.dtype])
        for spec in specs
    )
    network.requires_grad_(False).eval()
    inputs = examples[0] if len(examples) == 1 else examples
    (program,) = capture(network, inputs, dynamic_batch="auto").segments([])
    return program


def digest_of(network: Network) -> str:
    """16 hex digits over a program.

    Raises:
        CodecError: it is none.
    """
    if not isinstance(network, Program):
        raise CodecError("the networks of a learned codec are programs")
    h = hashlib.sha256()
    for part in network.to_bytes():
        h.update(part)
    return h.hexdigest()[:16]
