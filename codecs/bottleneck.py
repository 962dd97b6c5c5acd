"""`bottleneck`: a few strided convolutions in place of the head, b-bit codes, a range coder.

Channel reduction as in BottleFit (WoWMoM 2022, section III), a static per-channel quantiser trained
through (LSQ, Esser et al., ICLR 2020), frozen integer tables made from real latents. Encoder and decoder
(with the fine-tuned tail behind it) are programs of their own: the edge has one, the cloud the other.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Sequence
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from splitedge.codec import DTYPES, Codec, CodecState, Gives, Network, Tensors, TensorSpec
from splitedge.codecs.nets import Latent, default_stride, fused, latent_of, the_one
from splitedge.codecs.range_coder import RangeCoder
from splitedge.codecs.states import check_config, config_of
from splitedge.codecs.student import HALF_RANGE, Chain, Shape, Student, Teacher, through
from splitedge.codecs.tables import Tables
from splitedge.codecs.training import train
from splitedge.codecs.uniform import Uniform
from splitedge.errors import CodecError
from splitedge.learning import LearnedCodec, Schedule, Task
from splitedge.partition import capture
from splitedge.program import Program
from splitedge.rows import LabelledRows

VERSION = 1
BATCH = 256
TABLE_ROWS = 20_000
SIZED_ROWS = 256


class Bottleneck(LearnedCodec):
    """One level: what the latent's channels and bits make. Answers in the tail's place.

    Args:
        reads: one float tensor (N, C, H, W) or (N, features).
        gives: the model's flat output.
        latent: shape of the latent.
        uniform: its quantiser.
        tables: of its codes.
        networks: digests of encoder and decoder.
        encoder, decoder: programs; None in the half that lacks one.
    """

    name: ClassVar[str] = "bottleneck"
    gives: ClassVar[Gives] = "output"

    def __init__(
        self,
        reads: Sequence[TensorSpec],
        gives: Sequence[TensorSpec] | None = None,
        *,
        latent: Latent,
        uniform: Uniform,
        tables: Tables,
        networks: dict[str, str],
        encoder: Network | None,
        decoder: Network | None,
    ) -> None:
        super().__init__(reads, gives)
        self._latent, self._uniform, self._tables = latent, uniform, tables
        self._networks, self._encoder, self._decoder = networks, encoder, decoder
        self._coder = RangeCoder(tables, latent.positions)
        self._device = torch.device("cpu")

    @property
    def levels(self) -> tuple[str, ...]:
        """One."""
        return (f"{self._latent.channels}x{int(self._uniform.steps.max()).bit_length()}bit",)

    @property
    def unpacked_specs(self) -> tuple[TensorSpec, ...]:
        """The latent."""
        return (self._latent.spec,)

    def to(self, device: torch.device) -> None:
        """Move the networks to a device; copies, since both halves of a plan may share them."""
        if device != self._device:
            self._encoder, self._decoder = (
                copy.deepcopy(network).to(device) if isinstance(network, nn.Module) else network
                for network in (self._encoder, self._decoder)
            )
        self._device = device

    def max_body(self, level: int, rows: int) -> int:
        """The packed size: a body that would be longer is packed."""
        return self._coder.max_bytes(rows)

    def _encode(self, tensors: Tensors, level: int, rows: int) -> bytes:
        if self._encoder is None:
            raise CodecError("this half of the bundle holds no encoder; load side='edge'")
        return self._coder.encode(self._codes(tensors))

    def _codes(self, tensors: Tensors) -> npt.NDArray[np.uint8]:
        assert self._encoder is not None
        (z,) = self._encoder(*(t.to(self._device) for t in tensors))
        shape = (len(z), self._latent.channels, self._latent.positions)
        return self._uniform.codes(z.float().cpu().contiguous().numpy().reshape(shape))

    def _decode(self, body: memoryview, level: int, rows: int) -> Tensors:
        values = self._uniform.values(self._coder.decode(body, rows))
        return (torch.from_numpy(values).view(self._latent.spec.shape_at(rows)),)

    def expand(self, tensors: Tensors) -> Tensors:
        """The model's flat output from latents."""
        if self._decoder is None:
            raise CodecError("this half of the bundle holds no decoder; load side='cloud'")
        return tuple(self._decoder(*(t.to(self._device) for t in tensors)))

    # State ----------------------------------------------------------------------------------------

    def state(self) -> CodecState:
        """Digests of the networks, quantiser and tables."""
        config = config_of(self.name, VERSION, self.read_specs) | {
            "latent": [self._latent.channels, *self._latent.grid],
            "steps": int(self._uniform.steps.max()),
            "networks": dict(self._networks),
        }
        tensors = {
            "lo": torch.from_numpy(self._uniform.lo),
            "step": torch.from_numpy(self._uniform.step),
            **self._tables.tensors(),
        }
        return CodecState(config, tensors, self._encoder, self._decoder)

    @classmethod
    def from_state(
        cls, state: CodecState, reads: Sequence[TensorSpec], gives: Sequence[TensorSpec] | None = None
    ) -> Self:
        """Make it again; a network that is not the one named in the state is refused."""
        check_config(state, cls.name, VERSION, reads)
        latent, steps, networks = _read_config(state.config)
        for what, network in (("encoder", state.encoder), ("decoder", state.decoder)):
            if network is not None and _digest(network) != networks[what]:
                raise CodecError(f"'{cls.name}': the {what} is not the one this codec was made with")
        if not {"lo", "step"} <= set(state.tensors):
            raise CodecError(f"'{cls.name}': the state lacks the quantiser's ranges")
        uniform = Uniform(state.tensors["lo"].cpu().numpy(), state.tensors["step"].cpu().numpy(), steps)
        tables = Tables.from_tensors(state.tensors)
        if not uniform.lo.size == tables.channels == latent.channels:
            raise CodecError(f"'{cls.name}': quantiser, tables and latent disagree on the channels")
        return cls(
            reads,
            gives,
            latent=latent,
            uniform=uniform,
            tables=tables,
            networks=networks,
            encoder=state.encoder,
            decoder=state.decoder,
        )

    # Training -------------------------------------------------------------------------------------

    @classmethod
    def check(  # type: ignore[override]  # options are named, so that a misspelt one is noticed
        cls,
        reads: Sequence[TensorSpec],
        cut: Sequence[TensorSpec],
        *,
        channels: int | None = None,
        bits: int = 4,
        stride: int | None = None,
        width: int = 48,
        blocks: int = 1,
        decoder_blocks: int = 3,
    ) -> None:
        """See `LearnedCodec.check`. Options: `train`."""
        _shape(reads, cut, channels, bits, stride, width, blocks, decoder_blocks)

    @classmethod
    def train(  # type: ignore[override]  # likewise
        cls,
        task: Task,
        schedule: Schedule,
        *,
        channels: int | None = None,
        bits: int = 4,
        stride: int | None = None,
        width: int = 48,
        blocks: int = 1,
        decoder_blocks: int = 3,
    ) -> tuple[Self, tuple[float, ...], tuple[float, ...], int]:
        """Train one; see `LearnedCodec.train`.

        Args:
            task: the model around the cut.
            schedule: how long and where.
            channels: of the latent; None for about 256 values in all.
            bits: of a code: 8, 6, 4, 3 or 2.
            stride: how much smaller the latent's grid is than what is read, a power of two.
            width: channels of the encoder's last convolution.
            blocks, decoder_blocks: residual blocks on the latent's grid, in encoder and decoder.
        """
        shape = _shape(task.reads, task.cut, channels, bits, stride, width, blocks, decoder_blocks)
        torch.manual_seed(schedule.seed)
        example = tuple(torch.zeros(spec.shape_at(1), dtype=DTYPES[spec.dtype]) for spec in task.cut)
        student = Student(task.reads[0], task.cut[0], shape, Chain(task.tail, example))
        teacher = Teacher(task, Chain(task.tail, example))
        epochs = train(student, teacher, task, schedule)
        codec = cls._made(task, shape, student, teacher)
        accuracy, nbytes = _measured(codec, teacher, task)
        return codec, (accuracy,), (nbytes,), epochs

    @classmethod
    def _made(cls, task: Task, shape: Shape, student: Student, teacher: Teacher) -> Self:
        """The codec of a trained student, its tables from the codes of the training rows."""
        encoder = _program(fused(student.encoder), task.reads[0])
        decoder = _program(_Answer(fused(student.decoder), student.tail), shape.latent.spec)
        lo, step = (t.detach().float().numpy().copy() for t in (student.lo, student.step))
        counts = np.ones((shape.latent.channels, student.steps + 1), np.int64)
        blank = cls(
            task.reads,
            task.outputs.specs,
            latent=shape.latent,
            uniform=Uniform(lo, step, student.steps),
            tables=Tables.from_counts(counts),
            networks={"encoder": _digest(encoder), "decoder": _digest(decoder)},
            encoder=encoder,
            decoder=decoder,
        )
        with torch.inference_mode():
            for rows in task.train.first(TABLE_ROWS).batches(BATCH):
                for k, codes in enumerate(blank._codes(_reads(teacher, rows)).transpose(1, 0, 2)):
                    counts[k] += np.bincount(codes.ravel(), minlength=counts.shape[1])
        blank._tables = Tables.from_counts(counts)
        return cls.from_state(blank.state(), task.reads, task.outputs.specs)


class _Answer(nn.Module):
    """Decoder and tail: the latent to the model's flat output."""

    def __init__(self, decoder: nn.Module, tail: Chain) -> None:
        super().__init__()
        self.decoder, self.tail = decoder, tail

    def forward(self, z: torch.Tensor) -> Tensors:
        """float32 (N, channels, *grid) to the flat outputs."""
        outputs: Tensors = self.tail(self.decoder(z))[0]
        return outputs


def _program(network: nn.Module, spec: TensorSpec) -> Program:
    example = torch.randn(spec.shape_at(4), generator=torch.Generator().manual_seed(0))
    network.requires_grad_(False).eval()
    (program,) = capture(network, example, dynamic_batch="auto").segments([])
    return program


def _reads(teacher: Teacher, rows: LabelledRows) -> Tensors:
    return through(teacher.before, rows.inputs)


def _measured(codec: Codec, teacher: Teacher, task: Task) -> tuple[float, float]:
    """Accuracy and mean payload bytes at batch 1 on the validation rows, by the codec as it is deployed."""
    right = 0
    with torch.inference_mode():
        for rows in task.val.batches(BATCH):
            outputs = codec.decode(codec.encode(_reads(teacher, rows)))
            if task.logits is not None:
                right += int((outputs[task.logits].argmax(1) == rows.labels).sum())
        some = [codec.encode(_reads(teacher, row)).nbytes for row in task.val.first(SIZED_ROWS).batches(1)]
    return (right / len(task.val) if task.logits is not None else float("nan")), float(np.mean(some))


def _shape(
    reads: Sequence[TensorSpec],
    cut: Sequence[TensorSpec],
    channels: int | None,
    bits: int,
    stride: int | None,
    width: int,
    blocks: int,
    decoder_blocks: int,
) -> Shape:
    """The sizes of a student for these tensors and options.

    Raises:
        CodecError: no bottleneck can stand there, or an option is out of range.
    """
    source = the_one(reads, "what the encoder reads")
    the_one(cut, "the cut")
    if bits not in HALF_RANGE:
        raise CodecError(f"bits is one of {', '.join(map(str, HALF_RANGE))}, got {bits}")
    limits = {"width": (width, 8, 1024), "blocks": (blocks, 0, 16), "decoder_blocks": (decoder_blocks, 0, 64)}
    if channels is not None:
        limits["channels"] = (channels, 1, 1024)
    for name, (value, least, most) in limits.items():
        if not isinstance(value, int) or not least <= value <= most:
            raise CodecError(f"{name} is a whole number from {least} to {most}, got {value}")
    stride = default_stride(source) if stride is None else stride
    if stride not in (1, 2, 4, 8, 16):
        raise CodecError(f"stride is 1, 2, 4, 8 or 16, got {stride}")
    return Shape(latent_of(source, stride, channels), stride, width, blocks, decoder_blocks, bits)


def _digest(network: Network) -> str:
    if not isinstance(network, Program):
        raise CodecError("the networks of a bottleneck are programs")
    h = hashlib.sha256()
    for part in network.to_bytes():
        h.update(part)
    return h.hexdigest()[:16]


def _read_config(config: dict[str, Any]) -> tuple[Latent, int, dict[str, str]]:
    latent, steps, networks = config.get("latent"), config.get("steps"), config.get("networks")
    good = (
        isinstance(latent, list)
        and 1 <= len(latent) <= 3
        and all(isinstance(n, int) and 1 <= n <= 4096 for n in latent)
        and isinstance(steps, int)
        and isinstance(networks, dict)
        and {"encoder", "decoder"} <= set(networks)
    )
    if not good:
        raise CodecError("the saved state of a bottleneck lacks its latent, steps or networks")
    assert isinstance(latent, list) and isinstance(steps, int) and isinstance(networks, dict)
    return Latent(latent[0], tuple(latent[1:])), steps, {k: str(v) for k, v in networks.items()}
