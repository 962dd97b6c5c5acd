"""An extra tail that learns from payloads as they arrive: what is sent was fixed by the main task.

As in Ladon (Matsubara et al., "A Multi-task Supervised Compression Model for Split Computing", WACV 2025), of
which only the heads of further tasks are trained. Here each tail also gets a decoder of its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from splitedge.codec import Tensors
from splitedge.codecs.student import Answer, Chain, Coding, Student, zeros
from splitedge.learning import LearnedCodec
from splitedge.program import Program
from splitedge.taps import Tapped


class Arriving(Coding):
    """A deployed codec with its own encoder, quantiser and coder, there and back; nothing of it is trained.

    Args:
        codec: with its encoder.
    """

    def __init__(self, codec: LearnedCodec) -> None:
        super().__init__()
        self._codec = codec

    def extra_repr(self) -> str:
        """What a checkpoint is told apart by."""
        return self._codec.id

    def forward(self, z: torch.Tensor, level: int) -> tuple[torch.Tensor, None]:
        """What the encoder reads to the first tensor that arrives; see `Coding`."""
        return self.unpacked(z, level)[0], None

    def unpacked(self, reads: torch.Tensor, level: int) -> Tensors:
        """What the encoder reads to all that arrives, as the codec's `unpacked_specs` say."""
        self._codec.to(reads.device)
        with torch.autocast(reads.device.type, enabled=False):  # the edge computes in float32
            values = self._codec.unpack(self._codec.encode((reads.float(),), level))
        # Codecs run in inference mode, whose tensors autograd refuses; a clone is an ordinary one.
        return tuple(value.to(reads.device).clone() for value in values)


class Listener(Student):
    """Decoder and tail behind a codec that is fixed.

    Args:
        codec: of whose payloads it learns.
        network: what is unpacked to the tail's flat outputs; not changed.
    """

    def __init__(self, codec: LearnedCodec, network: Program) -> None:
        tail = Chain([network], zeros(codec.unpacked_specs))
        super().__init__(nn.Identity(), Arriving(codec), nn.Identity(), tail)
        self.levels = len(codec.levels)

    def draw(self, generator: torch.Generator) -> Sequence[int]:
        """Fewest bytes, most bytes and one level between, where there are so many."""
        if self.levels < 3:
            return range(self.levels)
        between = int(torch.randint(1, self.levels - 1, (), generator=generator))
        return (0, between, self.levels - 1)

    def forward(self, reads: torch.Tensor, level: int = 0) -> Answer:
        """The tail's answer to what arrives; taps there are none, nor a cut."""
        assert isinstance(self.coding, Arriving)
        arrived = self.coding.unpacked(reads, level)
        outputs, _ = self.tail(*arrived)
        return Answer(arrived[0], outputs, ())

    def learned(self) -> Program:
        """The network as it is now."""
        (tapped,) = self.tail.parts
        assert isinstance(tapped, Tapped)
        return tapped.program.copy(range(tapped.outputs))
