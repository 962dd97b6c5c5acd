"""Exits of a language model: a small adapter before the model's own norm and unembedding.

Without training an exit in the middle says little (a "logit lens"); trained to give what the whole model
gives, on text that the model writes itself, it needs no data set. Only adapters are trained (as EE-Tuning
does: Pan et al., 2024); the model stays as it is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from rich.console import Console
from rich.progress import Progress
from torch import nn
from torch.nn import functional as F

from splitedge.calibration import Calibration, ece
from splitedge.errors import ConfigError
from splitedge.llm.anatomy import Anatomy
from splitedge.llm.cache import KVCache
from splitedge.llm.halves import LanguageHead, LanguageTail, Unembedding, steps_of
from splitedge.thresholds import Floats, Threshold, threshold_for

Signal = Literal["probability", "margin", "entropy", "reward"]
SIGNALS: tuple[Signal, ...] = ("probability", "margin", "entropy", "reward")
_JUDGE = 32  # width of the head that learns when an exit is right
_BATCH = 16  # texts written, and trained on, at once


class ExitHead(nn.Module):
    """A residual adapter, then the model's norm and unembedding.

    Args:
        hidden: size of the hidden states.
        width: of the adapter.
        unembedding: the model's own; not trained.
    """

    def __init__(self, hidden: int, width: int, unembedding: Unembedding) -> None:
        super().__init__()
        self.adapter = nn.Sequential(
            nn.LayerNorm(hidden), nn.Linear(hidden, width), nn.SiLU(), nn.Linear(width, hidden)
        )
        last = self.adapter[3]
        assert isinstance(last, nn.Linear)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        # Learns whether the exit is right, from its state and what its logits show; for the signal `reward`.
        self.judge = nn.Sequential(nn.Linear(hidden + 3, _JUDGE), nn.SiLU(), nn.Linear(_JUDGE, 1))
        # Not a part of this module: its weights belong to the model.
        self._unembedding = (unembedding,)

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """Hidden states (N, T, hidden) at the exit to logits (N, T, vocabulary)."""
        logits: torch.Tensor = self._unembedding[0](hidden + self.adapter(hidden))
        return logits

    def reward(self, hidden: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        """Logit (...,) of the probability that this exit's choice is the whole model's.

        Args:
            hidden: states (..., hidden) at the exit.
            logits: (..., vocabulary) that it gave for them.
        """
        p = logits.float().softmax(-1)
        two = p.topk(2, dim=-1).values
        entropy = -(p * p.clamp_min(1e-30).log()).sum(-1, keepdim=True) / math.log(p.shape[-1])
        shown = torch.cat([two[..., :1], two[..., :1] - two[..., 1:], entropy], dim=-1)
        state = F.layer_norm(hidden.float(), hidden.shape[-1:])
        out: torch.Tensor = self.judge(torch.cat([state, shown], dim=-1))
        return out[..., 0]

    @torch.no_grad()
    def sureness(self, hidden: torch.Tensor, logits: torch.Tensor, signal: Signal) -> Floats:
        """A signal (...,) of states (..., hidden) and the logits given for them; see `signal_of`."""
        if signal == "reward":
            out: Floats = self.reward(hidden, logits).sigmoid().double().cpu().numpy()
            return out
        return signal_of(logits.float().cpu().numpy(), signal)


def signal_of(logits: npt.NDArray[np.floating], signal: Signal) -> Floats:
    """How sure logits (..., vocabulary) are, in [0, 1], more is surer: the greatest probability, its lead
    over the next one, or 1 less the normalised entropy.

    Raises:
        ConfigError: the signal is none of logits (`reward` needs the state too: `ExitHead.sureness`).
    """
    if signal not in ("probability", "margin", "entropy"):
        raise ConfigError(f"'{signal}' is no signal of logits; there are probability, margin and entropy")
    z = logits.astype(np.float64)
    z = z - z.max(axis=-1, keepdims=True)
    p = np.exp(z)
    p /= p.sum(axis=-1, keepdims=True)
    if signal == "probability":
        out: Floats = p.max(axis=-1)
        return out
    if signal == "margin":
        two: Floats = np.partition(p, -2, axis=-1)[..., -2:]
        return two[..., 1] - two[..., 0]
    entropy: Floats = -(p * np.log(np.maximum(p, 1e-300))).sum(axis=-1)
    return 1.0 - entropy / math.log(p.shape[-1])


@dataclass(frozen=True, slots=True)
class Trust:
    """Maps a signal of an exit to the probability that the whole model would choose the same token.

    Attributes:
        signal: which.
        knots, values: of a monotone map, straight lines between.
        rows: tokens it was fitted on.
    """

    signal: Signal
    knots: tuple[float, ...]
    values: tuple[float, ...]
    rows: int

    @classmethod
    def fit(cls, signal: Signal, seen: Floats, same: npt.NDArray[np.bool_]) -> Trust:
        """Fit by isotonic regression.

        Raises:
            ConfigError: fewer than 50 tokens.
        """
        from sklearn.isotonic import IsotonicRegression

        if len(seen) < 50:
            raise ConfigError(f"{len(seen)} tokens are too few to calibrate an exit; 50 are needed at least")
        fitted = IsotonicRegression(y_min=0.0, y_max=1.0, out_of_bounds="clip").fit(seen, same.astype(float))
        knots, values = fitted.X_thresholds_, fitted.y_thresholds_
        keep = np.concatenate([[True], np.diff(knots) > 0])
        # No row can show certainty: the ends are drawn in by what so many rows could have hidden.
        least = 1.0 / (len(seen) + 2)
        shown = np.clip(values[keep], least, 1.0 - least)
        return cls(signal, tuple(knots[keep].tolist()), tuple(shown.tolist()), len(seen))

    def __call__(self, logits: npt.NDArray[np.floating]) -> Floats:
        """Probability for logits (..., vocabulary)."""
        return self.of(signal_of(logits, self.signal))

    def of(self, seen: npt.ArrayLike) -> Floats:
        """Probability for values of the signal, of any shape."""
        out: Floats = np.interp(np.asarray(seen, np.float64), self.knots, self.values)
        return out


@dataclass(frozen=True, slots=True)
class ExitReport:
    """What an exit is worth, on text it was neither trained nor calibrated on.

    Attributes:
        depth: blocks before it.
        agreement: share of tokens at which it chooses what the whole model does.
        calibration_error: expected calibration error of its confidence.
        threshold: from which it is taken, so that the share of wrong ones among those is at most the risk
            asked for (Clopper-Pearson).
        taken: share of tokens at which it is.
    """

    depth: int
    agreement: float
    calibration_error: float
    threshold: Threshold
    taken: float


@dataclass(frozen=True)
class TrainedExits:
    """Exits with what is known of them.

    Attributes:
        depths: blocks before each, rising.
        heads: adapters, in eval mode.
        trust: confidence of each.
        reports: of each.
    """

    depths: tuple[int, ...]
    heads: tuple[ExitHead, ...]
    trust: tuple[Trust, ...]
    reports: tuple[ExitReport, ...]

    @property
    def thresholds(self) -> dict[int, float]:
        """Confidence from which each exit is taken, by its number."""
        return {i: report.threshold.value for i, report in enumerate(self.reports)}


@torch.inference_mode()
def written_texts(
    head: LanguageHead, tail: LanguageTail, anatomy: Anatomy, count: int, length: int, seed: int, first: int
) -> torch.Tensor:
    """Texts that a model writes itself at temperature 1, from one token on: int64 (count, length)."""
    generator = torch.Generator().manual_seed(seed)
    parts = []
    for begin in range(0, count, 4 * _BATCH):
        n = min(4 * _BATCH, count - begin)
        cache, ids = KVCache(), torch.full((n, 1), first, dtype=torch.int64)
        for position in range(length - 1):
            positions, mask = steps_of([position] * n, [1] * n, 1)
            hidden = head(ids[:, -1:], positions, cache, mask)
            logits = tail(hidden, positions, cache, mask)[:, -1].float()
            drawn = torch.multinomial(logits.softmax(-1), 1, generator=generator)
            ids = torch.cat([ids, drawn], dim=1)
        parts.append(ids)
    return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class ExitSchedule:
    """How exits are trained.

    Attributes:
        texts: the model writes so many to learn from; a quarter as many to calibrate, as many to report.
        length: tokens of each.
        epochs: passes over them.
        lr: highest learning rate.
        width: of the adapters.
        seed: of texts, weights and order.
        first: id that every text begins with; None for the model's own beginning token, else 0.
        progress: whether a bar is shown.
    """

    texts: int = 512
    length: int = 128
    epochs: int = 4
    lr: float = 2e-3
    width: int = 256
    seed: int = 0
    first: int | None = None
    progress: bool = True


def train_exits(
    head: LanguageHead,
    tail: LanguageTail,
    anatomy: Anatomy,
    depths: Sequence[int],
    *,
    risk: float = 0.05,
    signal: Signal = "probability",
    schedule: ExitSchedule | None = None,
    texts: torch.Tensor | None = None,
) -> TrainedExits:
    """Train, calibrate and judge exits.

    Args:
        head, tail, anatomy: from `split_language_model`, of the same cut.
        depths: blocks before each exit, 1 to all but one.
        risk: share of an exit's answers that may differ from the whole model's, with 95% confidence.
        signal: what its confidence is made of.
        schedule: see there.
        texts: to learn from in place of text the model writes: int64 (texts, length).

    Raises:
        ConfigError: a depth or the risk is out of range, or there is too little text.
    """
    plan = schedule if schedule is not None else ExitSchedule()
    wanted = sorted(set(depths))
    if not wanted or wanted[0] < 1 or wanted[-1] >= anatomy.depth:
        raise ConfigError(f"exits stand behind 1 to {anatomy.depth - 1} blocks, got {list(depths)}")
    if not 0.0 < risk < 1.0:
        raise ConfigError(f"risk is a share between 0 and 1, got {risk}")
    if signal not in SIGNALS:
        raise ConfigError(f"no signal '{signal}' of an exit; there are {', '.join(SIGNALS)}")
    length = min(plan.length, anatomy.context)
    with _bar(plan.progress) as bar:
        if texts is None:
            first = plan.first if plan.first is not None else beginning_of(anatomy)
            begun = bar.add_task("the model writes text to learn from", total=None)
            texts = written_texts(head, tail, anatomy, plan.texts + plan.texts // 2, length, plan.seed, first)
            bar.remove_task(begun)
        third = max(1, len(texts) // 6)
        learn, fit, judge = texts[: -2 * third], texts[-2 * third : -third], texts[-third:]
        torch.manual_seed(plan.seed)
        heads = [ExitHead(anatomy.hidden, plan.width, tail.logits) for _ in wanted]
        steps = plan.epochs * -(-len(learn) // _BATCH)
        task = bar.add_task("training exits", total=steps)
        for _ in _learn(head, tail, heads, wanted, learn, plan, steps):
            bar.advance(task)
        if signal == "reward":
            _learn_rewards(head, tail, heads, wanted, learn, plan)
    for net in heads:
        net.eval().requires_grad_(False)
    trust, reports = [], []
    fitted, judged = (_said(head, tail, heads, wanted, part, signal) for part in (fit, judge))
    for i, depth in enumerate(wanted):
        one = Trust.fit(signal, *fitted[i])
        seen, same = judged[i]
        sure = one.of(seen)
        found = threshold_for(sure, same, 1.0 - risk)
        taken = float((sure >= found.value).mean())
        reports.append(ExitReport(depth, float(same.mean()), ece(sure, same), found, taken))
        trust.append(one)
    return TrainedExits(tuple(wanted), tuple(heads), tuple(trust), tuple(reports))


def beginning_of(anatomy: Anatomy) -> int:
    """Id that a text of this model begins with: its own beginning token, else 0."""
    first = getattr(anatomy.config, "bos_token_id", None)
    return first if isinstance(first, int) and 0 <= first < anatomy.vocabulary else 0


def _learn(
    head: LanguageHead,
    tail: LanguageTail,
    heads: Sequence[ExitHead],
    depths: Sequence[int],
    texts: torch.Tensor,
    plan: ExitSchedule,
    steps: int,
) -> Iterator[None]:
    weights = [w for net in heads for w in net.adapter.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=plan.lr, weight_decay=1e-4)
    warm = max(1, steps // 20)
    pace = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda s: min((s + 1) / warm, 0.5 * (1 + math.cos(math.pi * min(s / steps, 1.0))))
    )
    order = torch.Generator().manual_seed(plan.seed)
    for _ in range(plan.epochs):
        shuffled = texts[torch.randperm(len(texts), generator=order)]
        for begin in range(0, len(shuffled), _BATCH):
            states, wanted = _taps(head, tail, depths, shuffled[begin : begin + _BATCH])
            target = wanted.float().log_softmax(-1)
            loss = torch.zeros(())
            for net, state in zip(heads, states, strict=True):
                said = net(state).float().log_softmax(-1)
                loss = loss + F.kl_div(said, target, reduction="none", log_target=True).sum(-1).mean()
            optimiser.zero_grad()
            loss.backward(inputs=weights)  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_(weights, 1.0)
            optimiser.step()
            pace.step()
            yield


@torch.no_grad()
def _taps(
    head: LanguageHead, tail: LanguageTail, depths: Sequence[int], ids: torch.Tensor
) -> tuple[list[torch.Tensor], torch.Tensor]:
    """Hidden states behind the first blocks, and the whole model's logits, of texts (N, T)."""
    cache = KVCache()
    n, length = ids.shape
    positions, mask = steps_of([0] * n, [length] * n, length)
    hidden = head.embedded(ids, positions)
    states: list[torch.Tensor] = []
    at, cut = 0, head.body.last
    for depth in (*depths, tail.body.last):
        if at < cut:
            stop = min(depth, cut)
            hidden = head.body(hidden, positions, cache, mask, first=at, last=stop)
            at = stop
        if at < depth:
            hidden = tail.body(hidden, positions, cache, mask, first=at, last=depth)
            at = depth
        if len(states) < len(depths):
            states.append(hidden)
    return states, tail.logits(hidden)


def _learn_rewards(
    head: LanguageHead,
    tail: LanguageTail,
    heads: Sequence[ExitHead],
    depths: Sequence[int],
    texts: torch.Tensor,
    plan: ExitSchedule,
) -> None:
    """Teach each exit, as it is now, when its choice is the model's."""
    for net in heads:
        net.eval()
    weights = [w for net in heads for w in net.judge.parameters()]
    optimiser = torch.optim.AdamW(weights, lr=2e-3, weight_decay=1e-3)
    order = torch.Generator().manual_seed(plan.seed + 1)
    for _ in range(plan.epochs):
        shuffled = texts[torch.randperm(len(texts), generator=order)]
        for begin in range(0, len(shuffled), _BATCH):
            states, wanted = _taps(head, tail, depths, shuffled[begin : begin + _BATCH])
            loss = torch.zeros(())
            for net, state in zip(heads, states, strict=True):
                with torch.no_grad():
                    logits = net(state)
                right = (logits.argmax(-1) == wanted.argmax(-1)).float()
                loss = loss + F.binary_cross_entropy_with_logits(net.reward(state, logits), right)
            optimiser.zero_grad()
            loss.backward(inputs=weights)  # type: ignore[no-untyped-call]
            optimiser.step()


def _said(
    head: LanguageHead,
    tail: LanguageTail,
    heads: Sequence[ExitHead],
    depths: Sequence[int],
    texts: torch.Tensor,
    signal: Signal,
) -> list[tuple[Floats, npt.NDArray[np.bool_]]]:
    """Of each exit: its signal (tokens,) over texts, and whether its choice is the model's."""
    signals: list[list[Floats]] = [[] for _ in heads]
    same: list[list[torch.Tensor]] = [[] for _ in heads]
    for begin in range(0, len(texts), _BATCH):
        states, wanted = _taps(head, tail, depths, texts[begin : begin + _BATCH])
        for i, (net, state) in enumerate(zip(heads, states, strict=True)):
            with torch.no_grad():
                found = net(state)
            signals[i].append(net.sureness(state, found, signal).ravel())
            same[i].append((found.argmax(-1) == wanted.argmax(-1)).flatten())
    return [(np.concatenate(a), torch.cat(b).numpy()) for a, b in zip(signals, same, strict=True)]


def _bar(wanted: bool) -> Progress:
    return Progress(console=Console(stderr=True), disable=not wanted, transient=True)


__all__ = ["Calibration", "ExitHead", "ExitReport", "ExitSchedule", "TrainedExits", "Trust", "train_exits"]
