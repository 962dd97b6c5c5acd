"""What every codec of a trained latent shares: two programs, a frozen quantiser and tables, a range coder.

A family (`bottleneck`, `slimmable`, `entropic`) says how its student is built and trained; what is deployed
is this.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from splitedge.codec import CodecState, Gives, Network, Tensors, TensorSpec
from splitedge.codecs.nets import Latent, fused
from splitedge.codecs.programs import Answering, digest_of, program_of, together
from splitedge.codecs.range_coder import RangeCoder
from splitedge.codecs.stages import TAIL
from splitedge.codecs.states import check_config, config_of
from splitedge.codecs.student import Student, Teacher, chain_of
from splitedge.codecs.tables import Tables
from splitedge.codecs.tail_student import Listener
from splitedge.codecs.training import train
from splitedge.codecs.uniform import Uniform
from splitedge.errors import CodecError
from splitedge.learning import LearnedCodec, Schedule, Task
from splitedge.program import Program

VERSION = 2
BATCH = 256
TABLE_ROWS = 20_000
SIZED_ROWS = 256


class LatentCodec(LearnedCodec):
    """A trained latent, quantised and range-coded. Answers in the tail's place.

    Args:
        reads: one float tensor (N, C, H, W) or (N, features).
        gives: the model's flat output.
        latent: shape of the latent.
        uniform: its quantiser.
        tables: of its codes.
        networks: digests of encoder and decoder.
        encoder, decoder: programs; None in the half that lacks one.
    """

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
        """One, unless a family has more."""
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

    def codes(self, tensors: Tensors) -> npt.NDArray[np.uint8]:
        """Codes of the whole latent, uint8 (rows, channels, positions).

        Raises:
            CodecError: this half has no encoder, or the latent holds NaN or infinity.
        """
        if self._encoder is None:
            raise CodecError("this half of the bundle holds no encoder; load side='edge'")
        (z,) = self._encoder(*(t.to(self._device) for t in tensors))
        shape = (len(z), self._latent.channels, self._latent.positions)
        return self._uniform.codes(z.float().cpu().contiguous().numpy().reshape(shape))

    def _encode(self, tensors: Tensors, level: int, rows: int) -> bytes:
        return self._coder.encode(self.codes(tensors))

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
            "steps": [int(most) for most in self._uniform.steps],
            "networks": dict(self._networks),
        }
        tensors = {
            "lo": torch.from_numpy(self._uniform.lo),
            "step": torch.from_numpy(self._uniform.step),
            **self._tables.tensors(),
        }
        return CodecState(config | self._settings(), tensors, self._encoder, self._decoder)

    def _settings(self) -> dict[str, Any]:
        """What a family adds to the state: keyword arguments of its constructor, JSON-able."""
        return {}

    @classmethod
    def _read_settings(cls, config: dict[str, Any]) -> dict[str, Any]:
        """The same from a saved state, checked.

        Raises:
            CodecError: it is not there, or damaged.
        """
        return {}

    @classmethod
    def from_state(
        cls, state: CodecState, reads: Sequence[TensorSpec], gives: Sequence[TensorSpec] | None = None
    ) -> Self:
        """Make it again; a network that is not the one named in the state is refused."""
        check_config(state, cls.name, VERSION, reads)
        latent, steps, networks = _read_config(cls.name, state.config)
        for what, network in (("encoder", state.encoder), ("decoder", state.decoder)):
            if network is not None and digest_of(network) != networks[what]:
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
            **cls._read_settings(state.config),
        )

    # Out of training ------------------------------------------------------------------------------

    @classmethod
    def made(
        cls,
        task: Task,
        teacher: Teacher,
        student: Student,
        latent: Latent,
        uniform: Uniform,
        **settings: Any,
    ) -> Self:
        """The codec of a trained student; its tables are counted on the codes of training rows.

        Args:
            task: what it was trained on.
            teacher: of the same task.
            student: trained, in eval mode, on the CPU.
            latent: shape of its latent.
            uniform: the quantiser to deploy.
            settings: the family's own, as its constructor takes them.
        """
        encoder = program_of(fused(student.encoder), (task.reads[0],))
        decoder = cls._decoder_of(task, student, latent)
        blank = cls(
            task.reads,
            task.outputs.specs,
            latent=latent,
            uniform=uniform,
            tables=_even(uniform),
            networks={"encoder": digest_of(encoder), "decoder": digest_of(decoder)},
            encoder=encoder,
            decoder=decoder,
            **settings,
        )
        sizes = [int(most) + 1 for most in uniform.steps]
        counts = np.zeros((latent.channels, max(sizes)), np.int64)
        with torch.inference_mode():
            for rows in task.train.first(TABLE_ROWS).batches(BATCH):
                for k, codes in enumerate(blank.codes((teacher.reads(rows.inputs),)).transpose(1, 0, 2)):
                    counts[k] += np.bincount(codes.ravel(), minlength=counts.shape[1])
        blank._tables = Tables.from_counts(counts, sizes)
        return cls.from_state(blank.state(), task.reads, task.outputs.specs)

    @classmethod
    def _decoder_of(cls, task: Task, student: Student, latent: Latent) -> Program:
        """What answers in the cloud; extra tails, as they are, behind copies of the decoder."""
        others = [student.before(chain_of(task, outputs)) for outputs in task.tails.values()]
        specs = cls.decoder_specs(latent)
        return together([program_of(cls.answering(each), specs) for each in (student, *others)], specs)

    def taught(self, task: Task, outputs: range, schedule: Schedule) -> tuple[Self, int]:
        """See `LearnedCodec.taught`. A tail learns together with a decoder of its own, by `stages.TAIL`."""
        if self._decoder is None:
            raise CodecError("this half of the bundle holds no decoder; load side='cloud'")
        assert isinstance(self._decoder, Program)  # `digest_of` takes no other
        mine = self.from_state(self.state(), self.read_specs, self.give_specs)  # training moves it about
        student = Listener(mine, self._decoder.copy(outputs))
        epochs = train(student, Teacher(task), task, schedule, TAIL)
        every = range(len(self.give_specs))
        others = [
            self._decoder.copy(some) for some in (every[: outputs.start], every[outputs.stop :]) if some
        ]
        decoder = together([others[0], student.learned(), *others[1:]], self.unpacked_specs)
        state = self.state()
        networks = state.config["networks"] | {"decoder": digest_of(decoder)}
        state = replace(state, config=state.config | {"networks": networks}, decoder=decoder)
        return self.from_state(state, self.read_specs, self.give_specs), epochs

    @classmethod
    def answering(cls, student: Student) -> nn.Module:
        """The network of the cloud: what `unpacked_specs` say to the flat output of the student's task."""
        return Answering(fused(student.decoder), student.tail)

    @classmethod
    def decoder_specs(cls, latent: Latent) -> tuple[TensorSpec, ...]:
        """What that network takes."""
        return (latent.spec,)

    def measured(self, teacher: Teacher, task: Task) -> tuple[tuple[float, ...], tuple[float, ...]]:
        """Accuracy and mean payload bytes at batch 1 by level, on the validation rows, as it is deployed."""
        accuracies, sizes = [], []
        for level in range(len(self.levels)):
            right = 0
            for rows in task.val.batches(BATCH):
                if task.logits is None:
                    break
                outputs = self.decode(self.encode((teacher.reads(rows.inputs),), level))
                right += int((outputs[task.logits].argmax(1) == rows.labels).sum())
            some = task.val.first(SIZED_ROWS).batches(1)
            found = [self.encode((teacher.reads(row.inputs),), level).nbytes for row in some]
            accuracies.append(right / len(task.val) if task.logits is not None else float("nan"))
            sizes.append(float(np.mean(found)))
        return tuple(accuracies), tuple(sizes)


def _even(uniform: Uniform) -> Tables:
    sizes = [int(most) + 1 for most in uniform.steps]
    return Tables.from_counts(np.zeros((len(sizes), max(sizes)), np.int64), sizes)


def _read_config(name: str, config: dict[str, Any]) -> tuple[Latent, list[int], dict[str, str]]:
    latent, steps, networks = config.get("latent"), config.get("steps"), config.get("networks")
    good = (
        isinstance(latent, list)
        and 1 <= len(latent) <= 3
        and all(isinstance(n, int) and 1 <= n <= 4096 for n in latent)
        and isinstance(steps, list)
        and len(steps) == latent[0]
        and all(isinstance(most, int) for most in steps)
        and isinstance(networks, dict)
        and {"encoder", "decoder"} <= set(networks)
    )
    if not good:
        raise CodecError(f"the saved state of '{name}' lacks its latent, steps or networks")
    assert isinstance(latent, list) and isinstance(steps, list) and isinstance(networks, dict)
    return Latent(latent[0], tuple(latent[1:])), steps, {k: str(v) for k, v in networks.items()}
