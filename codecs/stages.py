"""How a student is trained, as data: stages one after the other, each with its loss and what stays frozen."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Part = Literal["encoder", "coding", "decoder", "tail"]


@dataclass(frozen=True, slots=True)
class Stage:
    """A stretch of training with one loss and one learning rate schedule (a short warm-up, then a cosine).

    Attributes:
        name: for people and checkpoints.
        share: of all epochs, and of a budget.
        lr: highest learning rate.
        distil: weight of the normalised distortion at the cut and the taps behind it.
        answer: weight of the loss on the model's output: cross-entropy and the teacher's logits where there
            are classes, normalised distortion where there are none.
        soft: part of the teacher's logits in it; the rest is the labels'.
        rate: weight of the code length, per bit of a row.
        frozen: parts that are not trained, and stay in eval mode.
        quantised: whether the deployed quantiser runs (straight-through gradients), or the latent stays as
            it is (for a learned prior: gets noise).
        optimiser: AdamW, or SGD with momentum 0.9.
    """

    name: str
    share: float
    lr: float
    distil: float = 0.0
    answer: float = 0.0
    soft: float = 0.5
    rate: float = 0.0
    frozen: tuple[Part, ...] = ()
    quantised: bool = True
    optimiser: Literal["adamw", "sgd"] = "adamw"


#: Ours. The head's features through the quantiser that will be deployed, for long; then the answer as well,
#: gently. On CIFAR-10 this beat a short distillation before a long or a fast tuning by 2 points, and an
#: answer asked for from the start by 10, in training as long.
DISTIL_THEN_TUNE = (
    Stage("distil", 0.75, 5e-3, distil=1.0, frozen=("tail",)),
    Stage("tune", 0.25, 5e-4, distil=1.0, answer=1.0),
)

#: An extra tail behind payloads that another task has fixed.
TAIL = (Stage("tail", 1.0, 1e-3, answer=1.0, frozen=("encoder", "coding")),)

#: SC2's CR+BQ (Matsubara et al., TMLR 2023, section 5): features distilled in one stage, in float; 8-bit
#: codes are put in afterwards.
CR_BQ = (Stage("distil", 1.0, 1e-3, distil=1.0, frozen=("tail",), quantised=False),)

#: BottleFit (Matsubara et al., WoWMoM 2022, section IV): the same, then cross-entropy and distillation
#: behind a frozen encoder; 8-bit codes are put in afterwards.
BOTTLEFIT = (
    Stage("distil", 0.5, 1e-3, distil=1.0, frozen=("tail",), quantised=False),
    Stage("tune", 0.5, 1e-3, answer=1.0, frozen=("encoder", "coding"), quantised=False, optimiser="sgd"),
)

BITS_PER_KB = 8192
#: What the published beta is multiplied by, since our distortion is a part of the teacher's energy and not a
#: sum of squares: beta 1 then weighs a kB as much as so many times that energy.
BETA = 10.0


def rate_then_tune(rate: float) -> tuple[Stage, ...]:
    """Ours for a learned prior: as `DISTIL_THEN_TUNE`, with the code length in both stages.

    Args:
        rate: loss per kB (8192 bits) of a row.
    """
    per_bit = rate / BITS_PER_KB
    return (
        Stage("distil", 0.75, 5e-3, distil=1.0, rate=per_bit, frozen=("tail",)),
        Stage("tune", 0.25, 5e-4, distil=1.0, answer=1.0, rate=per_bit),
    )


def entropic_student(beta: float) -> tuple[Stage, ...]:
    """Entropic Student (Matsubara et al., WACV 2022, section 3.3): features distilled with the code length
    and noise, then cross-entropy and distillation behind a frozen encoder and prior.

    Args:
        beta: loss per kB of a row, see `BETA`.
    """
    per_bit = BETA * beta / BITS_PER_KB
    return (
        Stage("distil", 0.5, 1e-3, distil=1.0, rate=per_bit, frozen=("tail",), quantised=False),
        Stage("tune", 0.5, 1e-3, answer=1.0, frozen=("encoder", "coding"), optimiser="sgd"),
    )
