"""What the core knows of learned codecs: what one is asked for by, and what it is trained on.

How it is trained is the codec's own affair (`splitedge.codecs.training` for those that ship with us); a
third party's codec is trained through the same door, `LearnedCodec.train`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import torch
from torch import nn

from splitedge.codec import GROUP, Codec, Tensors, TensorSpec
from splitedge.program import Program
from splitedge.registry import lookup
from splitedge.rows import LabelledRows
from splitedge.structure import Structure

#: Changes a batch of the model's inputs at random, labels unchanged: flat tensors and a generator to flat
#: tensors of the same shapes.
Augment = Callable[[Tensors, torch.Generator], Tensors]


@dataclass(frozen=True, slots=True)
class Recipe:
    """A learned codec as it was asked for.

    Attributes:
        name: of the codec.
        source: the boundary its encoder reads.
        options: of the codec, JSON-able.
        default: whether nobody asked for it: it has to be as good as the whole model to be put in.
        unused: why `fit` did not put it in; empty before `fit`, and where it did.
    """

    name: str
    source: int
    options: Mapping[str, Any] = field(default_factory=dict)
    default: bool = False
    unused: str = ""


@dataclass(frozen=True, slots=True)
class Task:
    """The model around a cut, and the rows to train on. The networks are the user's own, never changed.

    Attributes:
        reads: what the encoder takes.
        cut: the cut's tensors, which the decoder reproduces.
        outputs: structure of the model's output.
        logits: which flat output holds the logits of the main task; None for no classifier.
        before: the model's input to `reads`, flat tensors in and out.
        head: `reads` to the cut.
        tail: the cut to the model's flat output, in one or several pieces.
        train: rows to train on.
        val: rows that choose when to stop; never the rows that a result is reported on.
        tails: which flat outputs each extra tail gives, by name; empty where the model has one task.
        memory: what trainers keep between several trainings on this one task, by keys of their own.
    """

    reads: tuple[TensorSpec, ...]
    cut: tuple[TensorSpec, ...]
    outputs: Structure
    logits: int | None
    before: Sequence[nn.Module]
    head: Sequence[nn.Module]
    tail: Sequence[nn.Module]
    train: LabelledRows
    val: LabelledRows
    tails: Mapping[str, range] = field(default_factory=dict)
    memory: dict[Any, Any] = field(default_factory=dict, compare=False, repr=False)

    @property
    def main(self) -> list[int]:
        """The flat outputs of the main task, which come first."""
        extra = {i for outputs in self.tails.values() for i in outputs}
        return [i for i in range(len(self.outputs.specs)) if i not in extra]

    def tail_of(self, outputs: Sequence[int] | None = None) -> tuple[nn.Module, ...]:
        """The tail as far as some flat outputs need it; None for those of the main task."""
        *pieces, last = self.tail
        assert isinstance(last, Program)  # whoever makes a task captures the model's parts
        return (*pieces, last.copy(self.main if outputs is None else outputs))


@dataclass(frozen=True, slots=True)
class Schedule:
    """How long and where to train.

    Attributes:
        epochs: over all stages, at most; None takes the codec's own default.
        budget_s: seconds of training after which the stages are cut short; None for no limit, but for a
            codec that nobody asked for and no epochs are given: a minute, for all cuts together.
        batch_size: rows of a step.
        seed: of everything drawn; the same seed, data and machine give the same weights.
        device: as torch names it; `auto` is `cuda` where there is one, else `cpu`.
        precision: of convolutions and matrix products in training: `bfloat16`, `float32`, or `auto` for
            bfloat16 where the processor multiplies it in hardware (GPUs since Ampere, CPUs with AVX-512
            BF16 or AMX). The codec is float32 in any case.
        augment: `none`, `flip` (left to right), `flip-crop` (also shifted by up to an eighth), `auto`
            (`flip-crop` for colour images, else `none`), or a function.
        checkpoint: directory that training is resumed from and saved to after every epoch.
        progress: show bars on standard error.
    """

    epochs: int | None = None
    budget_s: float | None = None
    batch_size: int = 128
    seed: int = 0
    device: str = "auto"
    precision: Literal["auto", "bfloat16", "float32"] = "auto"
    augment: Literal["auto", "none", "flip", "flip-crop"] | Augment = "auto"
    checkpoint: Path | None = None
    progress: bool = True


@dataclass(frozen=True, slots=True)
class TrainedCodec:
    """How the training of one codec went.

    Attributes:
        name: of the codec.
        cut: where it stands.
        epochs: run, over all stages.
        seconds: of training.
        val_accuracy: by level, on the validation rows; NaN for no classifier.
        val_bytes: mean bytes of a payload by level, header included, at batch 1.
        teacher_accuracy: of the whole model on the same rows; NaN for no classifier.
        unused: why it was not put in; empty where it was.
    """

    name: str
    cut: str
    epochs: int
    seconds: float
    val_accuracy: tuple[float, ...]
    val_bytes: tuple[float, ...]
    teacher_accuracy: float
    unused: str = ""

    def __str__(self) -> str:
        levels = ", ".join(
            f"{right:.1%} at {size:.0f} B"
            for right, size in zip(self.val_accuracy, self.val_bytes, strict=True)
        )
        return (
            f"codec '{self.name}' at '{self.cut}': {levels} (whole model {self.teacher_accuracy:.1%}); "
            f"{self.epochs} epochs, {self.seconds:.0f} s{'; not used' if self.unused else ''}"
        )


class LearnedCodec(Codec):
    """A codec that training makes. Its networks come with its state (`CodecState.encoder`, `.decoder`)."""

    learned: ClassVar[bool] = True
    #: Whether the encoder reads the cut's own tensors; else it replaces layers of the head.
    reads_cut: ClassVar[bool] = False
    #: A dataclass of its options: a misspelt one is then noticed where the codec is asked for. None leaves
    #: that to `check`.
    options: ClassVar[type | None] = None

    @classmethod
    @abstractmethod
    def check(cls, reads: Sequence[TensorSpec], cut: Sequence[TensorSpec], **options: Any) -> None:
        """Whether such a codec can be made.

        Raises:
            CodecError: not for these tensors or options; says why.
        """

    @classmethod
    @abstractmethod
    def train(
        cls, task: Task, schedule: Schedule, **options: Any
    ) -> tuple[Self, tuple[float, ...], tuple[float, ...], int]:
        """Train one.

        Returns:
            The codec; accuracy and mean payload bytes by level on the validation rows; epochs run.

        Raises:
            CodecError: the tensors or options are not for this codec.
            ConfigError: training diverged, or the device is not there.
        """

    def taught(self, task: Task, outputs: range, schedule: Schedule) -> tuple[Self, int]:
        """A codec of the very same payloads, in whose answers one extra tail has learned from them.

        One that gives the cut, as is assumed here, holds no tail that could learn.

        Args:
            task: the tail's own: `outputs` and `tail` are its alone, and `logits` is None where there are
                no labels, so that it is taught by what the tail says of the cut itself.
            outputs: which flat outputs of the model these are.
            schedule: as for `train`.

        Returns:
            The codec, and epochs run.

        Raises:
            ConfigError: training diverged, or the device is not there.
        """
        return self, 0


def learned(name: str) -> type[LearnedCodec] | None:
    """The class of a learned codec; None for one that needs no training.

    Raises:
        UnknownName: no such codec.
    """
    found = lookup(GROUP, name)
    return found if isinstance(found, type) and issubclass(found, LearnedCodec) else None
