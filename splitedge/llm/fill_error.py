"""What propagated keys and values do to tokens that come after early exits."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional as F

from splitedge.errors import ConfigError
from splitedge.llm.anatomy import Anatomy
from splitedge.llm.codec_quality import tail_logits
from splitedge.llm.exit_model import ExitModel
from splitedge.llm.exits import TrainedExits
from splitedge.llm.halves import LanguageHead, LanguageTail


@dataclass(frozen=True, slots=True)
class FillError:
    """Of propagated keys and values, beside exact ones, on the same texts.

    Attributes:
        early: share of tokens that left before the last exit.
        agreement: share of the others at which the whole model's first choice is the same.
        kl: mean divergence of its probabilities there, nats.
        tokens: those others, with an early one before them.
        spared: share of the blocks' work behind the first exit that exact keys and values take and propagated
            ones do not.
    """

    early: float
    agreement: float
    kl: float
    tokens: int
    spared: float


@torch.no_grad()
def fill_error(
    head: LanguageHead,
    tail: LanguageTail,
    anatomy: Anatomy,
    exits: TrainedExits,
    texts: torch.Tensor,
    thresholds: dict[int, float] | None = None,
) -> FillError:
    """Read texts token by token with either, and compare what the tail says of tokens that went all the way.

    Args:
        head, tail, anatomy: of the cut.
        exits: two at least.
        texts: ids (texts, length) that the exits did not learn from.
        thresholds: confidence from which each is taken; those of `exits` where not given.

    Raises:
        ConfigError: there is one exit only, or no token left early, or none came after one that did.
    """
    if len(exits.depths) < 2:
        raise ConfigError("keys and values are missing only behind an exit before the last one: train two")
    last = len(exits.depths) - 1
    early = total = spent = spared = 0
    same: list[torch.Tensor] = []
    off: list[torch.Tensor] = []
    for text in texts.tolist():
        models = [ExitModel(head, anatomy, exits, thresholds, fill) for fill in ("exact", "propagate")]
        taken = [models[0].step(text[: n + 1]).exit for n in range(len(text))]
        left = [out < last for out in taken]
        # The same tokens leave in both: what differs is what is kept of them.
        for n, out in enumerate(taken):
            models[1].thresholds = {out: 0.0}
            models[1].step(text[: n + 1])
        states = [model.states(0, len(text)).unsqueeze(0).float() for model in models]
        exact, copied = (tail_logits(tail, part)[0].float().log_softmax(-1) for part in states)
        deep = torch.tensor([not out and any(left[:n]) for n, out in enumerate(left)])
        early, total = early + sum(left), total + len(left)
        spent += sum(models[0].depth_run[1:])
        spared += sum(models[0].depth_run[1:]) - sum(models[1].depth_run[1:])
        same.append((exact.argmax(-1) == copied.argmax(-1))[deep].float())
        off.append(F.kl_div(copied, exact, reduction="none", log_target=True).sum(-1)[deep])
    agreed, kl = torch.cat(same), torch.cat(off)
    if not len(agreed):
        raise ConfigError(
            "no token went all the way after one that had left early: there is nothing to compare"
        )
    return FillError(
        early / total, float(agreed.mean()), max(0.0, float(kl.mean())), len(agreed), spared / max(1, spent)
    )
