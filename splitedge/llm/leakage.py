"""How many tokens an attacker reads from the hidden states that cross a cut.

Hidden states are not the text, but they say much of it: Dong et al. (arXiv 2503.09022) invert those of deep
blocks of large models. The attackers here are simple ones that look at one row at a time; a better one
recovers more, so what is measured is a lower bound and never a proof that anything is safe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field

import torch
from torch import nn
from torch.nn import functional as F

from splitedge.errors import ConfigError
from splitedge.llm.bottleneck_training import BottleneckSchedule, train_bottleneck
from splitedge.llm.codec_quality import Change, batches, states_of, through
from splitedge.llm.exits import beginning_of, written_texts
from splitedge.llm.halves import split_language_model
from splitedge.llm.state_bottleneck import bytes_wanted, is_bottleneck
from splitedge.llm.state_codecs import state_codec

ATTACKERS = ("nearest", "linear", "mlp")
CODECS = ("fp32", "fp16", "int8", "int4")
_BATCH = 512


@dataclass(frozen=True, slots=True)
class Leak:
    """What one attacker recovers from what crosses one cut by one codec.

    Attributes:
        cut: blocks before it. codec: that wrote the states; `ids` are the tokens themselves.
        width: bytes of a token.
        attacker: `nearest` (the embedding that points most alike), `linear` (logistic regression) or `mlp`
            (one hidden layer), the two latter trained on states of text that the model wrote itself;
            `none` where nothing has to be attacked.
        top1, top5: share of other text's tokens that are the attacker's first guess, among its first five.
    """

    cut: int
    codec: str
    width: int
    attacker: str
    top1: float
    top5: float


@dataclass(frozen=True, slots=True)
class Leakage:
    """All of them, beside what guessing the most frequent tokens gives.

    Attributes:
        rows: by cut, codec and attacker.
        guess1, guess5: top-1 and top-5 of an attacker that sees nothing.
        tokens: judged on; the first one of each text, which all share, is not among them.
        learned: tokens that attackers learned from.
    """

    rows: tuple[Leak, ...]
    guess1: float
    guess5: float
    tokens: int
    learned: int

    def worst(self, cut: int, codec: str) -> Leak:
        """The attacker that recovers most.

        Raises:
            ConfigError: it was not probed.
        """
        found = [row for row in self.rows if row.cut == cut and row.codec == codec]
        if not found:
            raise ConfigError(f"no leakage was measured for cut {cut} and codec '{codec}'")
        return max(found, key=lambda row: row.top1)

    def as_dict(self) -> dict[str, object]:
        """For JSON."""
        return {**asdict(self), "rows": [asdict(row) for row in self.rows]}


@dataclass(frozen=True, slots=True)
class ProbeSchedule:
    """How much attackers get.

    Attributes:
        texts: the model writes so many for them to learn from, and a third as many to be judged on.
        length: tokens of each.
        epochs: passes of a trained attacker.
        width: of the MLP.
        seed: of texts and weights.
        bottleneck: how a learned codec among the codecs is trained.
    """

    texts: int = 192
    length: int = 128
    epochs: int = 12
    width: int = 256
    seed: int = 0
    bottleneck: BottleneckSchedule = field(
        default_factory=lambda: BottleneckSchedule(texts=192, epochs=2, progress=False)
    )


def probe(
    model: nn.Module,
    cuts: Sequence[int],
    codecs: Sequence[str] = CODECS,
    *,
    attackers: Sequence[str] = ATTACKERS,
    schedule: ProbeSchedule | None = None,
    context: int | None = None,
) -> Leakage:
    """Attack what crosses cuts of a model. The attacker has the model (it is rarely a secret) and the codec.

    Args:
        model: see `splitedge.llm.anatomy.anatomy_of`.
        cuts: blocks before each.
        codecs: of hidden states; `ids`, and `bottleneck:bytes=N` (trained here), too.
        attackers: of `ATTACKERS`.
        schedule: see there.
        context: most tokens the model is used for.

    Raises:
        ConfigError: a name is not known, or there is nothing to probe.
        PartitionError: the model can not be cut there.
    """
    plan = schedule if schedule is not None else ProbeSchedule()
    unknown = sorted(set(attackers) - set(ATTACKERS))
    if unknown or not cuts or not codecs or not attackers:
        raise ConfigError(f"probe cuts and codecs with {', '.join(ATTACKERS)}; got {unknown or 'nothing'}")
    head, tail, anatomy = split_language_model(model, 0, context)
    count, length = plan.texts + max(1, plan.texts // 3), min(plan.length, anatomy.context)
    texts = written_texts(head, tail, anatomy, count, length, plan.seed + 100, beginning_of(anatomy))
    learn, judge = texts[: plan.texts], texts[plan.texts :]
    target = judge[:, 1:].flatten()
    usual = torch.bincount(learn[:, 1:].flatten(), minlength=anatomy.vocabulary).argsort(descending=True)[:5]
    rows: list[Leak] = []
    for cut in cuts:
        head, tail, anatomy = split_language_model(model, cut, context)
        seen, shown = states_of(head, learn).float(), states_of(head, judge).float()
        embeddings = anatomy.embed.weight
        assert isinstance(embeddings, torch.Tensor)
        for codec in codecs:
            if codec == "ids":
                rows.append(Leak(cut, codec, 4, "none", 1.0, 1.0))
                continue
            change: Change
            if is_bottleneck(codec):
                width = bytes_wanted(codec, anatomy.hidden)
                made, _ = train_bottleneck(head, tail, anatomy, width, schedule=plan.bottleneck)
                width, change = made.width, through(made)
            else:
                plain = state_codec(codec, anatomy.hidden)
                width, change = plain.width, through(plain)
            known, attacked = (change(part)[:, 1:].flatten(0, 1) for part in (seen, shown))
            for attacker in attackers:
                guesses = _attack(attacker, known, learn[:, 1:].flatten(), attacked, embeddings, plan)
                hit = guesses == target.unsqueeze(1)
                rows.append(
                    Leak(cut, codec, width, attacker, float(hit[:, 0].float().mean()), _share(hit.any(1)))
                )
    blind = usual.unsqueeze(0) == target.unsqueeze(1)
    return Leakage(tuple(rows), _share(blind[:, 0]), _share(blind.any(1)), len(target), learn[:, 1:].numel())


def _share(hit: torch.Tensor) -> float:
    return float(hit.float().mean())


def _attack(
    attacker: str,
    known: torch.Tensor,
    tokens: torch.Tensor,
    attacked: torch.Tensor,
    embeddings: torch.Tensor,
    plan: ProbeSchedule,
) -> torch.Tensor:
    """The five first guesses (rows, 5) of ids for states (rows, hidden)."""
    if attacker == "nearest":
        points = F.normalize(embeddings.detach().float(), dim=-1).T
        parts = [F.normalize(part, dim=-1) @ points for part in batches(attacked, 4096)]
        return torch.cat([part.topk(5).indices for part in parts])
    torch.manual_seed(plan.seed)
    mean, spread = known.mean(0), known.std(0).clamp_min(1e-6)
    size, count = known.shape[1], len(embeddings)
    if attacker == "linear":
        net: nn.Module = nn.Linear(size, count)
    else:
        net = nn.Sequential(nn.Linear(size, plan.width), nn.SiLU(), nn.Linear(plan.width, count))
    optimiser = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-4)
    steps = plan.epochs * -(-len(known) // _BATCH)
    pace = torch.optim.lr_scheduler.LinearLR(optimiser, 1.0, 0.05, max(1, steps))
    inputs = (known - mean) / spread
    for _ in range(plan.epochs):
        for rows in batches(torch.randperm(len(inputs)), _BATCH):
            loss = F.cross_entropy(net(inputs[rows]), tokens[rows])
            optimiser.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            pace.step()
    with torch.no_grad():
        parts = [net((part - mean) / spread).topk(5).indices for part in batches(attacked, 4096)]
    return torch.cat(parts)
