"""Train a bottleneck for hidden states on text that the model writes itself, and judge it on other text."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.nn import functional as F

from splitedge.errors import ConfigError
from splitedge.llm.anatomy import Anatomy
from splitedge.llm.codec_quality import (
    CodecQuality,
    batches,
    plain_of,
    quality,
    states_of,
    tail_logits,
    through,
)
from splitedge.llm.exits import beginning_of, written_texts
from splitedge.llm.halves import LanguageHead, LanguageTail
from splitedge.llm.state_bottleneck import Bottleneck, distortion, fitted_bottleneck

_BATCH = 16


@dataclass(frozen=True, slots=True)
class BottleneckSchedule:
    """How a bottleneck is trained.

    Attributes:
        texts: the model writes so many to learn from; a quarter as many to choose the best pass by, as many
            to judge it.
        length: tokens of each.
        epochs: passes over them; 0 for the linear codec alone.
        lr: highest learning rate.
        weight: of the distortion of states, beside the divergence of the tail's probabilities.
        seed: of texts and order.
        first: id that every text begins with; None for the model's own beginning token, else 0.
        progress: whether a bar is shown.
    """

    texts: int = 512
    length: int = 128
    epochs: int = 4
    lr: float = 1e-3
    weight: float = 0.1
    seed: int = 0
    first: int | None = None
    progress: bool = True


@dataclass(frozen=True, slots=True)
class CodecReport:
    """What came of a training, on text that it was neither trained nor chosen on.

    Attributes:
        learned: of the bottleneck.
        plain: of plain integers of at most as many bytes.
        kept: whether the bottleneck is better: less divergence, first choices that agree at least as often.
        note: one readable sentence.
    """

    learned: CodecQuality
    plain: CodecQuality
    kept: bool
    note: str


def train_bottleneck(
    head: LanguageHead,
    tail: LanguageTail,
    anatomy: Anatomy,
    width: int,
    *,
    schedule: BottleneckSchedule | None = None,
    texts: torch.Tensor | None = None,
) -> tuple[Bottleneck, CodecReport]:
    """Train a codec for rows of `width` bytes at the cut, and compare it with plain integers.

    Args:
        head, tail, anatomy: from `split_language_model`, of the same cut.
        width: bytes of a token.
        schedule: see there.
        texts: to learn from in place of text the model writes: int64 (texts, length); a third is to judge by.

    Raises:
        ConfigError: too few bytes or too little text.
    """
    plan = schedule if schedule is not None else BottleneckSchedule()
    name, plain_width, plain = plain_of(width, anatomy.hidden)
    with Progress(console=Console(stderr=True), disable=not plan.progress, transient=True) as bar:
        if texts is None:
            length = min(plan.length, anatomy.context)
            first = plan.first if plan.first is not None else beginning_of(anatomy)
            begun = bar.add_task("the model writes text to learn from", total=None)
            count = plan.texts + plan.texts // 2
            texts = written_texts(head, tail, anatomy, count, length, plan.seed + 7, first)
            bar.remove_task(begun)
        if len(texts) < 6:
            raise ConfigError(f"{len(texts)} texts are too few to learn, choose and judge by; 6 are needed")
        part = len(texts) // 6
        states = states_of(head, texts).float()
        learn, choose, judge = states[: -2 * part], states[-2 * part : -part], states[-part:]
        codec = fitted_bottleneck(learn.flatten(0, 1), _metric(tail, learn, plan.seed), width)
        best, least = codec.tensors(), _divergence(tail, codec, choose)
        task = bar.add_task("training a bottleneck", total=plan.epochs)
        for _ in _learn(tail, codec, learn, plan):
            bar.advance(task)
            now = _divergence(tail, codec, choose)
            if now < least:
                best, least = codec.tensors(), now
    codec = Bottleneck.from_tensors(best)
    learned, other = quality(
        tail, judge, [("bottleneck", codec.width, through(codec)), (name, plain_width, plain)]
    )
    return codec, _report(learned, other)


def _report(learned: CodecQuality, plain: CodecQuality) -> CodecReport:
    kept = learned.kl < plain.kl and learned.agreement >= plain.agreement
    figures = (
        f"the tail's first choice agrees at {learned.agreement:.1%} of the tokens against "
        f"{plain.agreement:.1%}, its divergence is {learned.kl:.4f} nats "
        f"against {plain.kl:.4f} ({learned.tokens} tokens)"
    )
    verdict = "beats" if kept else "does not beat"
    then = "" if kept else "; int4 is used"
    sizes = f"a bottleneck of {learned.width} bytes a token {verdict} {plain.name} of {plain.width}"
    note = f"{sizes}: {figures}{then}"
    return CodecReport(learned, plain, kept, note)


def _metric(tail: LanguageTail, states: torch.Tensor, seed: int) -> torch.Tensor:
    """What a small error of a state (of scale 1) does to all that the tail says after it: the Fisher
    information (hidden, hidden), from draws of its own words.
    """
    generator = torch.Generator().manual_seed(seed)
    total = torch.zeros(states.shape[-1], states.shape[-1])
    for part in batches(states[: 8 * _BATCH], _BATCH):
        entering = part.clone().requires_grad_(True)
        logits = tail_logits(tail, entering).float().log_softmax(-1)
        drawn = torch.multinomial(logits.detach().exp().flatten(0, 1), 1, generator=generator)
        said = logits.flatten(0, 1).gather(1, drawn).sum()
        (slope,) = torch.autograd.grad(said, entering)
        slope = slope * part.square().mean(-1, keepdim=True).sqrt()
        rows = slope.flatten(0, 1)
        total += rows.T @ rows / len(rows)
    return total + torch.eye(len(total)) * (float(total.trace()) / len(total) * 1e-2 + 1e-12)


def _learn(
    tail: LanguageTail, codec: Bottleneck, states: torch.Tensor, plan: BottleneckSchedule
) -> Iterator[None]:
    """One pass over the states at each step of the iterator."""
    weights = list(codec.parameters())
    optimiser = torch.optim.AdamW(weights, lr=plan.lr, weight_decay=1e-4)
    steps = plan.epochs * -(-len(states) // _BATCH)
    pace = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min((s + 1) / 10, 0.5 * (1 + math.cos(math.pi * min(s / max(steps, 1), 1.0))))
    )
    order = torch.Generator().manual_seed(plan.seed)
    for _ in range(plan.epochs):
        for part in batches(states[torch.randperm(len(states), generator=order)], _BATCH):
            with torch.no_grad():
                wanted = tail_logits(tail, part).float().log_softmax(-1)
            found = codec(part)
            said = tail_logits(tail, found).float().log_softmax(-1)
            kl = F.kl_div(said, wanted, reduction="none", log_target=True).sum(-1).mean()
            optimiser.zero_grad()
            loss = kl + plan.weight * distortion(found, part)
            loss.backward(inputs=weights)  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            pace.step()
        yield


def _divergence(tail: LanguageTail, codec: Bottleneck, states: torch.Tensor) -> float:
    return quality(tail, states, [("", codec.width, codec)])[0].kl
