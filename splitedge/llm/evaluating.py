"""Makes a `LanguageEvaluation`: texts by the whole model, and what all else says at each position."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from rich.console import Console
from rich.progress import Progress

from splitedge.errors import ConfigError
from splitedge.llm.aids import Aids
from splitedge.llm.anatomy import Anatomy
from splitedge.llm.cache import KVCache
from splitedge.llm.cloud_model import CloudLanguageModel, PassRow
from splitedge.llm.evaluation import EXIT, LOCAL, SPLIT, Floats, LanguageEvaluation
from splitedge.llm.exit_model import ExitModel
from splitedge.llm.exits import TrainedExits
from splitedge.llm.gate import GatedModel
from splitedge.llm.halves import LanguageHead, LanguageTail, steps_of
from splitedge.llm.hashing import id_bytes
from splitedge.llm.sampling import Sampling, choose
from splitedge.llm.state_codecs import state_codec
from splitedge.llm.token_model import TokenModel, WholeModel

_REPEATS = 5  # of each timed pass; the median counts
_CONTEXTS = (1, 2, 4, 8, 16)
_TOKENS = (1, 2, 3, 5, 9, 17)


class Planned(Protocol):
    """What is asked of a deployment's plan; see `splitedge.llm.deployment.LanguagePlan`."""

    @property
    def head(self) -> LanguageHead: ...
    @property
    def tail(self) -> LanguageTail: ...
    @property
    def anatomy(self) -> Anatomy: ...
    @property
    def cut(self) -> int: ...
    @property
    def codec(self) -> str: ...
    @property
    def local(self) -> WholeModel | None: ...
    @property
    def exits(self) -> TrainedExits | None: ...
    @property
    def aids(self) -> Aids: ...


def evaluate_language(
    plan: Planned,
    prompts: Sequence[Sequence[int]],
    *,
    max_tokens: int,
    stops: frozenset[int],
    sampling: Sampling,
    progress: bool,
) -> LanguageEvaluation:
    """Write an answer to each prompt by the whole model, and record what all deciders would have said.

    Args:
        plan: what the deployment is made of.
        prompts: ids.
        max_tokens: of an answer at most.
        stops: ids that end one.
        sampling: how tokens are drawn, by the cloud and by all others alike.
        progress: whether a bar is shown.

    Raises:
        ConfigError: there is no prompt, or one has no room for an answer.
    """
    if not prompts or max_tokens < 1:
        raise ConfigError("give at least one prompt, and at least one token to answer with")
    longest = max(len(prompt) for prompt in prompts)
    if min(len(prompt) for prompt in prompts) < 1 or longest + max_tokens > plan.anatomy.context:
        raise ConfigError(
            f"prompts have 1 to {plan.anatomy.context - max_tokens} tokens here (a context of "
            f"{plan.anatomy.context} less {max_tokens} to be written), the longest one has {longest}"
        )
    cloud = CloudLanguageModel(plan.head, plan.tail, plan.anatomy)
    deciders = _deciders(plan)
    with Progress(console=Console(stderr=True), disable=not progress, transient=True) as bar:
        task = bar.add_task("evaluating", total=len(prompts) * (1 + len(deciders)))
        texts = []
        for prompt in prompts:
            texts.append(_written(cloud, prompt, max_tokens, stops, sampling))
            bar.advance(task)
        tokens = np.array([token for text in texts for token in text], np.int64)
        shape = len(deciders), len(tokens)
        said, sure, seconds = np.zeros(shape, np.int64), np.zeros(shape), np.zeros(shape)
        for line, (_, model) in enumerate(deciders):
            at = 0
            for prompt, text in zip(prompts, texts, strict=True):
                part = slice(at, at + len(text))
                said[line, part], sure[line, part], seconds[line, part] = (
                    _through_split(plan, prompt, text, sampling)
                    if model is None
                    else _asked(model, prompt, text, sampling)
                )
                at += len(text)
                bar.advance(task)
    thresholds = np.full(len(deciders), math.nan)
    for line, (name, _) in enumerate(deciders):
        if name.startswith(EXIT) and plan.exits is not None:
            thresholds[line] = plan.exits.thresholds[int(name.removeprefix(EXIT))]
        elif name == LOCAL and plan.aids.gate is not None:
            thresholds[line] = plan.aids.gate.threshold
    sample = [token for prompt, text in zip(prompts, texts, strict=True) for token in (*prompt, *text)]
    head = next((model for name, model in deciders if name.startswith(EXIT)), None)
    return LanguageEvaluation(
        deciders=tuple(name for name, _ in deciders),
        prompt_lengths=np.array([len(prompt) for prompt in prompts], np.int64),
        lengths=np.array([len(text) for text in texts], np.int64),
        prompts=np.array([token for prompt in prompts for token in prompt], np.int64),
        tokens=tokens,
        said=said,
        confidence=sure,
        seconds=seconds,
        thresholds=thresholds,
        passes=measured_passes(_served(plan), sample),
        local_prefill_s=_prefill_s(plan.local, sample),
        head_prefill_s=_prefill_s(head, sample),
        row_bytes=4 if plan.codec == "ids" else state_codec(plan.codec, plan.anatomy.hidden).width,
        greedy=sampling.greedy,
    )


def _deciders(plan: Planned) -> list[tuple[str, TokenModel | None]]:
    found: list[tuple[str, TokenModel | None]] = []
    if plan.local is not None:
        gate = plan.aids.gate
        found.append((LOCAL, plan.local.fresh() if gate is None else GatedModel(plan.local, gate).fresh()))
    if plan.exits is not None:
        for number in range(len(plan.exits.heads)):
            only = ExitModel(plan.head, plan.anatomy, plan.exits, {number: -1.0})
            found.append((f"{EXIT}{number}", only))
    if plan.codec not in ("ids", "fp32"):
        found.append((SPLIT, None))
    return found


def _written(
    cloud: CloudLanguageModel, prompt: Sequence[int], most: int, stops: frozenset[int], sampling: Sampling
) -> list[int]:
    """The answer as the cloud streams it."""
    cache, past, rows, text = KVCache(), 0, list(prompt), list[int]()
    while len(text) < most:
        (logits,) = cloud.run([PassRow(cache, past, id_bytes(rows), len(rows), 1)])
        past += len(rows)
        token = choose(logits[0], past, sampling)
        text.append(token)
        rows = [token]
        if token in stops:
            break
    return text


def _asked(
    model: TokenModel, prompt: Sequence[int], text: Sequence[int], sampling: Sampling
) -> tuple[list[int], list[float], list[float]]:
    """What a device's model says at each position behind the cloud's text."""
    model.forget()
    said, sure, seconds = [], [], []
    ids = list(prompt)
    model.step(ids)  # reads the prompt: not a token's own time
    for token in text:
        begun = time.perf_counter()
        step = model.step(ids)
        chosen = choose(step.logits, len(ids), sampling)
        seconds.append(time.perf_counter() - begun)
        said.append(chosen)
        sure.append(step.confidence)
        ids.append(token)
    return said, sure, seconds


def _through_split(
    plan: Planned, prompt: Sequence[int], text: Sequence[int], sampling: Sampling
) -> tuple[list[int], list[float], list[float]]:
    """What the tail says behind hidden states that went through their codec."""
    codec = state_codec(plan.codec, plan.anatomy.hidden)
    tail = CloudLanguageModel(None, plan.tail, plan.anatomy, codec)
    ids = [*prompt, *text]
    begun = time.perf_counter()
    rows = codec.encode(states_of(plan, ids))
    seconds = (time.perf_counter() - begun) / len(ids)
    (logits,) = tail.run([PassRow(KVCache(), 0, rows, len(ids), len(text) + 1)])
    said = [choose(logits[i], len(prompt) + i, sampling) for i in range(len(text))]
    return said, [math.nan] * len(text), [seconds] * len(text)


def states_of(plan: Planned, ids: Sequence[int]) -> torch.Tensor:
    """Hidden states at the cut, float (tokens, hidden)."""
    with torch.inference_mode():
        positions, mask = steps_of([0], [len(ids)], len(ids))
        out: torch.Tensor = plan.head(torch.tensor([list(ids)]), positions, KVCache(), mask)[0]
    return out


def _served(plan: Planned) -> CloudLanguageModel:
    """What the cloud runs: the whole model where it is sent ids, else the tail."""
    if plan.codec == "ids":
        return CloudLanguageModel(plan.head, plan.tail, plan.anatomy)
    codec = state_codec(plan.codec, plan.anatomy.hidden)
    return CloudLanguageModel(None, plan.tail, plan.anatomy, codec)


def measured_passes(cloud: CloudLanguageModel, sample: Sequence[int]) -> Floats:
    """Timed passes of a cloud's model: contexts, tokens of each, seconds; float (passes, 3).

    Each context holds a text of half the model's context (128 tokens at most), as in the middle of an answer.
    """
    context = cloud.anatomy.context
    held = max(1, min(128, context // 2))
    text = _payload(cloud, [sample[i % len(sample)] for i in range(context)])
    width = cloud.width
    caches = [KVCache() for _ in range(max(_CONTEXTS))]
    for cache in caches:
        cloud.run([PassRow(cache, 0, text[: held * width], held, 0)])
    room = context - held
    shapes = [(n, 1) for n in _CONTEXTS] + [(1, t) for t in _TOKENS[1:]] + [(8, 5), (1, 65), (1, 129)]
    found = []
    for contexts, tokens in shapes:
        if tokens > room:
            continue
        rows = text[held * width : (held + tokens) * width]
        seconds = []
        for _ in range(_REPEATS):
            passed = [PassRow(cache, held, rows, tokens, 1) for cache in caches[:contexts]]
            begun = time.perf_counter()
            cloud.run(passed)
            seconds.append(time.perf_counter() - begun)
            for cache in caches[:contexts]:
                cache.crop(held)
        found.append((contexts, tokens, float(np.median(seconds))))
    return np.array(found, np.float64)


def _payload(cloud: CloudLanguageModel, ids: Sequence[int]) -> bytes:
    """Rows of the lane: what hidden states say does not change what a pass takes."""
    if cloud.sees_ids:
        return id_bytes(ids)
    return cloud.row_of_zeros() * len(ids)


def _prefill_s(model: TokenModel | None, sample: Sequence[int]) -> float:
    """Seconds of a prompt token, over a prompt of half the model's context."""
    if model is None:
        return math.nan
    count = max(2, min(256, model.context // 2))
    ids = [sample[i % len(sample)] for i in range(count)]
    seconds = []
    for _ in range(_REPEATS):
        model.forget()
        begun = time.perf_counter()
        model.step(ids)
        seconds.append(time.perf_counter() - begun)
    model.forget()
    return float(np.median(seconds)) / count
