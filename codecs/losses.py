"""What a student is told: how far its tensors are from the teacher's, and how wrong its answer is."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional as F

EPS = 1e-6


def distortion(found: Sequence[torch.Tensor], wanted: Sequence[torch.Tensor]) -> torch.Tensor:
    """Normalised distortion: the sum over pairs of ||found - wanted||^2 / (||wanted||^2 + eps).

    Generalised head distillation (Matsubara et al., IEEE Access 2020, section IV) with each term divided
    by the teacher's energy, so that no weight depends on the model. Integer tensors are passed over.
    """
    terms = [
        (f.float() - w.float()).square().sum() / (w.float().square().sum() + EPS)
        for f, w in zip(found, wanted, strict=True)
        if w.is_floating_point()
    ]
    return torch.stack(terms).sum()


def answer_loss(
    found: Sequence[torch.Tensor],
    wanted: Sequence[torch.Tensor],
    labels: torch.Tensor,
    logits: int | None,
    soft: float,
) -> torch.Tensor:
    """Of flat outputs: cross-entropy and knowledge distillation (Hinton et al., 2015, temperature 1) for a
    classifier, for any other model how far they are.

    Args:
        found: the student's flat outputs.
        wanted: the teacher's.
        labels: int64 (N,).
        logits: which of them holds logits (N, classes); None for no classifier.
        soft: part of the teacher's logits.
    """
    if logits is None:
        return distortion(found, wanted)
    ours, theirs = found[logits].float(), wanted[logits].float()
    kl = F.kl_div(ours.log_softmax(1), theirs.log_softmax(1), reduction="batchmean", log_target=True)
    return soft * kl + (1 - soft) * F.cross_entropy(ours, labels)
