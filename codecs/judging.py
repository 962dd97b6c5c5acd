"""What a stage of training makes small, and how good a student is by its lights."""

from __future__ import annotations

import torch

from splitedge.codec import Tensors
from splitedge.codecs.losses import answer_loss, distortion
from splitedge.codecs.stages import Stage
from splitedge.codecs.student import Answer


def loss_of(
    stage: Stage,
    found: Answer,
    outputs: Tensors,
    features: Tensors,
    labels: torch.Tensor,
    logits: int | None,
) -> torch.Tensor:
    """The loss of a batch.

    Args:
        stage: weighs its terms.
        found: the student's.
        outputs: the teacher's flat outputs.
        features: the teacher's cut and taps; empty where the stage does not distil.
        labels: int64 (N,).
        logits: which flat output holds logits; None for no classifier.
    """
    loss = torch.zeros((), device=labels.device)
    if stage.distil:
        loss = loss + stage.distil * distortion([found.cut, *found.taps], features)
    if stage.answer:
        loss = loss + stage.answer * answer_loss(found.outputs, outputs, labels, logits, stage.soft)
    if stage.rate and found.bits is not None:
        loss = loss + stage.rate * found.bits.mean()
    return loss


def by_accuracy(stage: Stage, logits: int | None, target: float | None) -> bool:
    """Whether a student is judged by its answers alone: it has classes, and no bytes to trade for them."""
    return logits is not None and (not stage.rate or target is not None)


def goodness(
    stage: Stage,
    found: Answer,
    wanted: Answer | None,
    labels: torch.Tensor,
    logits: int | None,
    target: float | None,
) -> float:
    """How good a student is, summed over a batch; more is better.

    Rows answered right (`by_accuracy`); less the stage's loss where bytes are traded for it; else less all
    distortion.

    Args:
        stage, found, labels, logits: as of `loss_of`.
        wanted: the teacher's answer; not needed where accuracy tells.
        target: bits of a row that are aimed at; longer rows count less.
    """
    if wanted is not None and stage.rate and target is None:
        features = (wanted.cut, *wanted.taps)
        return -float(loss_of(stage, found, wanted.outputs, features, labels, logits)) * len(labels)
    if wanted is not None:
        far = distortion(found.outputs, wanted.outputs)
        if stage.distil:
            far = far + distortion([found.cut, *found.taps], [wanted.cut, *wanted.taps])
        good = -float(far) * len(labels)
    else:
        assert logits is not None
        good = int((found.outputs[logits].argmax(1) == labels).sum())
    if target is not None and found.bits is not None:
        good -= max(float(found.bits.mean()) / target - 1, 0.0) * len(labels)
    return good
