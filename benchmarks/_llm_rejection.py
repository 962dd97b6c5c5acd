"""Part `rejection` of `llm.py`: the law of texts under rejection sampling, and its price beside coupling."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol
from unittest import mock

import numpy as np
import torch
from _llm_models import Bytes
from common import Report
from scipy import stats

from splitedge.edge.language import LanguageRuntime, Stream
from splitedge.llm import rejection as rule
from splitedge.llm.deployment import deploy_language
from splitedge.llm.draft_tables import read_tables, table_of
from splitedge.llm.generation import Generation, Tally, Wish
from splitedge.llm.happenings import Compute, Finish, Proposed, Send, Told
from splitedge.llm.language_plan import LanguagePlan
from splitedge.llm.modes import Mode, Way
from splitedge.llm.rejection import verify
from splitedge.llm.sampling import Floats, Sampling, log_probabilities
from splitedge.llm.token_model import Logits, WholeModel
from splitedge.loopback import Loopback

HOW = {"temperature": 1.0, "top_p": 0.95}
Case = tuple[list[int], dict[tuple[int, int], float]]  # a prompt, and the exact law of two tokens behind it
LENGTH = 3  # tokens of a text whose first two are counted: two drafts, and one behind them
JUDGED = Way(Mode.SPEC, drafts=2, rule="rejection", table=32)
AT_ONCE = 50  # texts at a time; the cloud keeps contexts of ended ones, so each batch gets a cloud of its own


class Shared(Protocol):
    """What the part needs of `llm.Bench`."""

    quick: bool
    report: Report
    target: torch.nn.Module
    draft: torch.nn.Module

    def prompts(self, count: int) -> list[list[int]]:
        """Beginnings of texts."""
        ...


class _Known:
    """A model whose logits are kept, so that many texts cost little more than the rule itself."""

    def __init__(self, model: torch.nn.Module) -> None:
        self._model = WholeModel(model)
        self._kept: dict[tuple[int, ...], Logits] = {}

    def logits(self, ids: Sequence[int]) -> Logits:
        """Of what comes behind these ids."""
        key = tuple(ids)
        if key not in self._kept:
            self._kept[key] = self._model.step(key).logits
        return self._kept[key]


def rejection(bench: Shared) -> None:
    """The law of the first two tokens against the exact one, then acceptance and bytes beside coupling."""
    tests, seeds = (1, 2000) if bench.quick else (20, 2000)
    target, draft = _Known(bench.target), _Known(bench.draft)
    cases = _uncertain(target, bench.prompts(200), tests, seeds // 10)
    tests = len(cases)  # a random model may have fewer
    if not cases:
        bench.report.notes.append("behind no prompt there was enough to be judged: rejection was not tested")
        return

    def p_values(seeds: int) -> list[float]:
        return [
            _p_value(
                Counter(_text(target, draft, prompt, Sampling(**HOW, seed=i)) for i in range(seeds)), law
            )
            for prompt, law in cases
        ]

    found = p_values(seeds)
    add = bench.report.add
    add("rejection: prompts, each with its own test", tests, "tests")
    add("rejection: texts a prompt", seeds, "texts")
    add("rejection: least p-value, times the tests", min(1.0, min(found) * tests), "p", at_least=0.01)
    if tests > 4:
        uniform = stats.kstest(found, "uniform").pvalue
        add("rejection: p-values uniform (Kolmogorov-Smirnov)", uniform, "p", at_least=0.01)
    with mock.patch.object(rule, "acceptance", lambda p, table: np.ones(len(table.ids))):
        wrong = max(p_values(seeds // 10))
    add("rejection: greatest p-value of a rule that keeps every draft, a tenth of the texts", wrong, "p",
        at_most=1e-3)  # fmt: skip
    _through_the_cloud(bench, cases)
    _exact(bench, target, draft)
    _beside_coupling(bench)


def _exact(bench: Shared, target: _Known, draft: _Known) -> None:
    """Acceptance of a draft behind prompts, computed from both laws: no draws, so no noise of draws."""
    how, tables = Sampling(**HOW), (8, 32, 128)
    kept: dict[str, list[float]] = {f"rejection, tables of {t}": [] for t in tables} | {"coupling": []}
    for prompt in bench.prompts(20 if bench.quick else 200):
        p = np.exp(log_probabilities(target.logits(prompt), how))
        q = np.exp(log_probabilities(draft.logits(prompt), how))
        for most in tables:
            table = table_of(draft.logits(prompt), how, most)
            both = np.minimum(p[table.ids], table.probabilities).sum()
            kept[f"rejection, tables of {most}"].append(float(both))
        at = np.flatnonzero(p * q)  # both draw x where its noise wins over every y in both laws
        ratios = np.maximum(p[None, :] / p[at, None], q[None, :] / q[at, None])
        kept["coupling"].append(float((1.0 / ratios.sum(axis=1)).sum()))
    for name, found in kept.items():
        bench.report.add(f"{name}: exact acceptance behind prompts, mean", float(np.mean(found)), "ratio")


def _uncertain(target: _Known, prompts: list[list[int]], count: int, seeds: int) -> list[Case]:
    """The first prompts behind which there is something to be judged: ten pairs and more that come five times
    in so many texts.
    """
    found: list[Case] = []
    for prompt in prompts:
        if len(found) < count and all(prompt != other for other, _ in found):
            law = _law(target, prompt, Sampling(**HOW))
            if sum(probability * seeds >= 5.0 for probability in law.values()) >= 10:
                found.append((prompt, law))
    return found


def _law(target: _Known, prompt: list[int], how: Sampling) -> dict[tuple[int, int], float]:
    """Exact probability of each pair of tokens behind a prompt."""

    def after(ids: list[int]) -> Floats:
        return np.exp(log_probabilities(target.logits(ids), how))

    first = after(prompt)
    return {
        (int(a), int(b)): float(first[a] * second[b])
        for a in np.flatnonzero(first)
        for second in [after([*prompt, int(a)])]
        for b in np.flatnonzero(second)
    }


def _p_value(counts: Counter[tuple[int, int]], law: dict[tuple[int, int], float]) -> float:
    """G-test; cells under 5 expected together. 0 where what can not be was drawn."""
    if counts.keys() - law.keys():
        return 0.0
    total = counts.total()
    seen, expected = [0], [0.0]
    for pair, probability in law.items():
        if probability * total < 5.0:
            seen[0] += counts[pair]
            expected[0] += probability * total
        else:
            seen.append(counts[pair])
            expected.append(probability * total)
    live = np.array(expected) > 0.0
    wanted = np.array(expected)[live]
    wanted *= total / wanted.sum()
    return float(stats.power_divergence(np.array(seen)[live], wanted, lambda_="log-likelihood").pvalue)


def _text(target: _Known, draft: _Known, prompt: list[int], how: Sampling) -> tuple[int, int]:
    """The first two tokens of a text: generation, tables and rule as deployed, without link and batching."""
    text = Generation(0.0, Wish(tuple(prompt), LENGTH), JUDGED)
    todo = text.begin(0.0)
    while not isinstance(todo[-1], Finish):
        last = todo[-1]
        if isinstance(last, Compute):
            table = table_of(draft.logits(last.ids), how, JUDGED.table)
            token = table.draw(how.seed, len(last.ids))
            todo = text.step(0.0, Proposed(len(last.ids), token, float("nan"), table=table.pack()))
        else:
            assert isinstance(last, Send)
            known = [*text.ids[: last.start], *last.ids]
            base = len(known) - last.drafts
            tables = read_tables(last.tables, known[base:], target.logits(prompt).size)
            rows = np.array([target.logits(known[: base + i]) for i in range(last.drafts + 1)])
            right, told = verify(rows, known[base:], tables, base, how)
            todo = text.step(0.0, Told(last.ask, base + right, (told,), right))
    first, second, *_ = text.ids[len(prompt) :]
    return first, second


def _through_the_cloud(bench: Shared, cases: list[Case]) -> None:
    """The same law from texts over frames and a batching cloud, fewer of them."""
    tests, seeds = (1, 200) if bench.quick else (3, 300)
    plan = deploy_language(bench.target, Bytes(), local=bench.draft).plan
    found = []
    for prompt, law in cases[:tests]:
        counts: Counter[tuple[int, int]] = Counter()
        for begin in range(0, seeds, AT_ONCE):
            asked = [(prompt, Sampling(**HOW, seed=s)) for s in range(begin, begin + AT_ONCE)]
            for stream in asyncio.run(_written(plan, asked, JUDGED, LENGTH)):
                first, second, *_ = stream.ids[len(prompt) :]
                counts[first, second] += 1
        found.append(_p_value(counts, law))
    bench.report.add(
        f"rejection: least p-value through the cloud, times {tests} tests of {seeds} texts",
        min(1.0, min(found) * tests), "p", at_least=0.01,
    )  # fmt: skip


async def _written(
    plan: LanguagePlan, asked: Sequence[tuple[list[int], Sampling]], way: Way, length: int
) -> list[Stream]:
    digest = secrets.token_hex(32)
    link = Loopback(None, language=plan.cloud(digest))
    runtime = LanguageRuntime(plan.edge(digest), link)
    await runtime.start()
    await runtime.connected(10.0)
    streams = [runtime.write(Wish(tuple(prompt), length), way, how) for prompt, how in asked]
    for stream in streams:
        async for _ in stream:
            pass
    await runtime.close()
    await link.wait_closed()
    return streams


def _beside_coupling(bench: Shared) -> None:
    """The same prompts and seeds by both rules, four drafts a round."""
    count, length = (6, 12) if bench.quick else (24, 40)
    plan = deploy_language(bench.target, Bytes(), local=bench.draft).plan
    asked = [(prompt, Sampling(**HOW, seed=i)) for i, prompt in enumerate(bench.prompts(count))]
    ways = {"coupling": Way(Mode.SPEC, drafts=4, adapt=False)}
    for table in (8, 32, 128):
        ways[f"rejection, tables of {table}"] = Way(Mode.SPEC, drafts=4, rule="rejection", table=table)
    for name, way in ways.items():
        streams: list[Stream] = []
        for begin in range(0, count, AT_ONCE):
            streams += asyncio.run(_written(plan, asked[begin : begin + AT_ONCE], way, length))

        def total(of: Callable[[Tally], int], streams: list[Stream] = streams) -> int:
            return sum(of(stream.tally) for stream in streams)

        accepted, tokens = total(lambda t: t.accepted), total(lambda t: len(t.sources))
        judged = accepted + total(lambda t: t.rejected)
        add = bench.report.add
        add(f"{name}: acceptance of a draft behind right ones", accepted / judged, "ratio")
        add(f"{name}: tokens a round", tokens / total(lambda t: t.asks), "tokens")
        add(f"{name}: bytes up a token, as framed", total(lambda t: t.bytes_up) / tokens, "B")
