"""Train a token gate on text of the cloud's model: one pass of each model over it gives all labels."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch

from splitedge.calibration import ece
from splitedge.errors import ConfigError
from splitedge.llm.anatomy import Anatomy
from splitedge.llm.cache import KVCache
from splitedge.llm.exits import beginning_of, written_texts
from splitedge.llm.gate import Gate, GateReport, entropy_before, price_for, repeats_of, token_numbers
from splitedge.llm.halves import LanguageHead, LanguageTail, steps_of
from splitedge.llm.reading import Reader
from splitedge.llm.router_fit import auc_of
from splitedge.llm.scorer import Floats, Kind, constant, fit_scorer

Bools = npt.NDArray[np.bool_]
_BATCH = 32
_QUANTILES = 2001
_LONGEST = 16


@dataclass(frozen=True, slots=True)
class GateSchedule:
    """How a gate is trained.

    Attributes:
        texts: the cloud's model writes so many; half teach, a quarter calibrates, a quarter judges.
        length: tokens of each, the beginning included.
        opening: tokens of that, drawn at temperature 1 so that texts differ; the rest is greedy, as the
            labels are.
        calls: share of tokens at which the cloud shall be asked.
        reward: a hidden layer that reads the likeliest tokens too, in place of logistic regression.
        seed: of texts and training.
        first: id that every text begins with; None for the model's own beginning token, else 0.
    """

    texts: int = 192
    length: int = 96
    opening: int = 8
    calls: float = 0.2
    reward: bool = False
    seed: int = 0
    first: int | None = None


@dataclass(frozen=True)
class Judged:
    """Tokens of texts as the device's model saw them.

    Attributes:
        numbers: of each token, (tokens, numbers).
        same: whether it chose what the cloud did, (tokens,).
        text: number of its text, (tokens,).
    """

    numbers: Floats
    same: Bools
    text: npt.NDArray[np.int64]


def fit_gate(
    local: Reader,
    head: LanguageHead,
    tail: LanguageTail,
    anatomy: Anatomy,
    *,
    schedule: GateSchedule | None = None,
    texts: torch.Tensor | None = None,
) -> Gate:
    """Train a gate for a device's model beside a cloud's.

    Labels are of greedy choices; a gate is of use for sampled text as far as noise moves both models alike.

    Args:
        local: the device's model.
        head, tail, anatomy: of the cloud's model, from `split_language_model`.
        schedule: see there.
        texts: that the cloud's model shall go over in place of its own: int64 (texts, length).

    Raises:
        ConfigError: too few tokens.
    """
    plan = schedule if schedule is not None else GateSchedule()
    length = min(plan.length, anatomy.context)
    if not 1 <= plan.opening < length:
        raise ConfigError(f"an opening of {plan.opening} tokens in texts of {length}")
    if texts is None:
        first = plan.first if plan.first is not None else beginning_of(anatomy)
        opening = written_texts(head, tail, anatomy, plan.texts, plan.opening, plan.seed, first)
        texts = continued(head, tail, opening, length)
    seen = judged(local, head, tail, texts, plan.opening, reward=plan.reward)
    learn, curve, judge = (np.flatnonzero(np.isin(seen.text % 4, part)) for part in ((0, 1), (2,), (3,)))
    if min(len(learn), len(curve), len(judge)) < 50:
        raise ConfigError(
            f"{len(seen.same)} tokens are too few to train a gate on; give more or longer texts"
        )
    same = seen.same.astype(np.float64)
    other = (seen.numbers[curve], same[curve])
    if 0.0 < same[learn].mean() < 1.0:
        kind: Kind = "mlp" if plan.reward else "linear"
        scorer = fit_scorer(seen.numbers[learn], same[learn], kind=kind, calibrate=other, seed=plan.seed)
    else:  # nothing tells tokens apart: the rate alone is known
        scorer = constant(seen.numbers[learn], same[learn])
    doubt = 1.0 - scorer(seen.numbers[curve])
    quantiles = np.quantile(doubt, np.linspace(0.0, 1.0, min(_QUANTILES, len(doubt))))
    gate = Gate(scorer, plan.reward, 1.0 - price_for(doubt, plan.calls), quantiles)
    return replace(gate, report=report_of(gate, seen, judge))


def report_of(gate: Gate, seen: Judged, rows: npt.NDArray[np.int64]) -> GateReport:
    """What a gate is worth on some rows of judged tokens."""
    same, sure = seen.same[rows], gate.scorer(seen.numbers[rows])
    taken = sure >= gate.threshold
    return GateReport(
        agreement=float(same.mean()),
        auc=auc_of(sure, same),
        calibration_error=ece(sure, same),
        calls=float(1.0 - taken.mean()),
        disagreement=float((taken & ~same).mean()),
        survival=survival_of(same, seen.text[rows]),
        tokens=len(rows),
    )


def survival_of(same: Bools, text: npt.NDArray[np.int64], longest: int = _LONGEST) -> tuple[float, ...]:
    """S(i): probability that i tokens drafted in a row are all the cloud's, i = 1 to `longest`.

    On greedy text of the cloud this is no approximation: drafts that are all accepted stand behind just
    that text. Only starts with i tokens of their text before them are counted.

    Args:
        same: of consecutive tokens, (tokens,).
        text: number of their text, (tokens,).
    """
    out: list[float] = []
    alive = np.ones(len(same), dtype=bool)
    for i in range(longest):
        whole = np.zeros(len(same), dtype=bool)
        whole[: len(same) - i] = text[: len(same) - i] == text[i:]
        later = np.zeros(len(same), dtype=bool)
        later[: len(same) - i] = same[i:]
        alive &= later
        if not whole.any():
            break
        out.append(float(alive[whole].mean()))
    # Unlike starts are counted for unlike i: what is left of noise must not make the curve rise.
    return tuple(np.minimum.accumulate(out).tolist())


@torch.inference_mode()
def continued(head: LanguageHead, tail: LanguageTail, ids: torch.Tensor, length: int) -> torch.Tensor:
    """Texts int64 (N, T), gone on with greedily by a model to int64 (N, length)."""
    parts = []
    for begin in range(0, len(ids), _BATCH):
        text, cache, done = ids[begin : begin + _BATCH], KVCache(), 0
        n = len(text)
        while text.shape[1] < length:
            fresh = text[:, done:]
            positions, mask = steps_of([done] * n, [fresh.shape[1]] * n, fresh.shape[1])
            hidden = head(fresh, positions, cache, mask)
            logits = tail(hidden, positions, cache, mask, slice(-1, None))
            done = text.shape[1]
            text = torch.cat([text, logits[:, -1].argmax(-1, keepdim=True)], dim=1)
        parts.append(text)
    return torch.cat(parts)


@torch.inference_mode()
def judged(
    local: Reader, head: LanguageHead, tail: LanguageTail, texts: torch.Tensor, opening: int, *, reward: bool
) -> Judged:
    """What the device's model says at each token of texts behind their opening, and whether the cloud's says
    the same.
    """
    numbers: list[Floats] = []
    same: list[Bools] = []
    which: list[int] = []
    for number, text in enumerate(texts):
        ids = text.tolist()
        n = len(ids) - 1
        positions, mask = steps_of([0], [n], n)
        cache = KVCache()
        wanted = tail(head(text[None, :n], positions, cache, mask), positions, cache, mask)[0].argmax(-1)
        logits = np.concatenate(list(local.read(ids[:n])))[opening - 1 :]
        mine = logits.argmax(-1)
        numbers.append(_numbers(logits, mine, ids, opening, reward))
        same.append(mine == wanted.cpu().numpy()[opening - 1 :])
        which += [number] * len(logits)
    return Judged(np.concatenate(numbers), np.concatenate(same), np.array(which))


def _numbers(
    logits: npt.NDArray[np.float32],
    mine: npt.NDArray[np.int64],
    ids: Sequence[int],
    opening: int,
    reward: bool,
) -> Floats:
    """Numbers of the tokens behind an opening, with what stood before each as it is known while writing."""
    count = len(mine)
    positions = np.arange(opening, opening + count)
    entropy = token_numbers(logits, np.zeros(count), positions, np.zeros(count))[:, 2]
    known: dict[int, float] = {}
    before, repeats = np.empty(count), np.empty(count)
    triples = {(ids[i - 2], ids[i - 1], ids[i]) for i in range(2, opening)}
    for i, position in enumerate(positions.tolist()):
        before[i] = entropy_before(known, position)
        known[position] = float(entropy[i])
        repeats[i] = repeats_of(triples, ids[:position], int(mine[i]))
        if position >= 2:
            triples.add((ids[position - 2], ids[position - 1], ids[position]))
    return token_numbers(logits, before, positions, repeats, reward=reward)


def disagreement_at(gate: Gate, seen: Judged, calls: Sequence[float]) -> list[tuple[float, float]]:
    """Of each rate of calls asked for: that reached on judged tokens, and the share of tokens taken from the
    device that the cloud would have chosen otherwise.
    """
    sure, out = gate.scorer(seen.numbers), []
    for rate in calls:
        threshold = gate.at_rate(rate).threshold
        taken = sure >= threshold if math.isfinite(threshold) else np.zeros(len(sure), dtype=bool)
        out.append((float(1.0 - taken.mean()), float((taken & ~seen.same).mean())))
    return out
