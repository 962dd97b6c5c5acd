"""The token gate on a pair of tiny models, alone and in a deployment."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from llm_models import tiny

from splitedge import deploy
from splitedge.errors import ConfigError
from splitedge.llm.aids import Aids
from splitedge.llm.cascade import fit_judge
from splitedge.llm.gate import Gate, GatedModel, price_for
from splitedge.llm.gate_fit import GateSchedule, fit_gate, judged, survival_of
from splitedge.llm.halves import split_language_model
from splitedge.llm.modes import Mode
from splitedge.llm.queries import Hashing
from splitedge.llm.reading import ANSWER, answer_numbers, prompt_numbers
from splitedge.llm.router_fit import learn_router
from splitedge.llm.token_model import WholeModel

BIG = tiny("llama")
NONE = frozenset()


class Letters:
    def encode(self, text):
        return [ord(c) % 97 for c in text]

    def decode(self, ids):
        return "".join(chr(33 + i) for i in ids)


def shaken(model, amount, seed=0):
    """The same model with noise on its weights: it agrees often, and the more so the surer it is."""
    other = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for w in other.parameters():
            if w.ndim > 1:
                w += amount * torch.randn(w.shape, generator=generator)
    return other


SMALL = shaken(BIG, 0.007)
HEAD, TAIL, ANATOMY = split_language_model(BIG, 0)


@pytest.fixture(scope="module", params=[False, True], ids=["logistic", "reward"])
def gate(request):
    return fit_gate(WholeModel(SMALL), HEAD, TAIL, ANATOMY, schedule=GateSchedule(
        texts=128, length=64, opening=8, calls=0.3, reward=request.param))  # fmt: skip


def test_a_gate_tells_which_tokens_the_cloud_would_choose_too(gate):
    report = gate.report
    assert 0.3 < report.agreement < 0.98
    assert report.auc > 0.65 and report.calibration_error < 0.12
    assert abs(report.calls - 0.3) < 0.12
    assert report.disagreement < (1 - report.agreement) * 0.7  # chance would leave 0.7 of them
    fewer, more = gate.at_rate(0.1), gate.at_rate(0.6)
    assert fewer.threshold < gate.threshold < more.threshold and fewer.price > more.price


def test_a_gated_model_says_while_writing_what_was_said_of_whole_texts(gate):
    model = GatedModel(WholeModel(SMALL), gate).fresh()
    ids = [1, 5, 9, 3]
    for _ in range(20):
        ids.append(int(WholeModel(BIG).step(ids).logits.argmax()))
    seen = judged(WholeModel(SMALL), HEAD, TAIL, torch.tensor([ids]), 4, reward=gate.reward)
    wanted = gate.scorer(seen.numbers)
    said = [model.step(ids[:i]).confidence for i in range(4, len(ids))]
    assert np.allclose(said, wanted, atol=1e-5)
    # Tokens taken back are forgotten: another draft in between changes nothing.
    model.step([*ids[:10], 7, 7, 7])
    model.step([*ids[:10], 7, 7, 7, 8])
    again = GatedModel(WholeModel(SMALL), gate)
    for i in range(4, 11):
        last = again.step(ids[:i]).confidence
    assert model.step(ids[:10]).confidence == pytest.approx(last, abs=1e-6)


def test_saved_is_loaded(gate):
    aids = Aids(gate=gate)
    again = Aids.from_json(json.loads(json.dumps(aids.to_json()))).gate
    rows = np.random.default_rng(0).random((9, len(gate.scorer.mean)))
    assert np.array_equal(again.scorer(rows), gate.scorer(rows))
    assert again.report == gate.report and again.threshold == gate.threshold
    with pytest.raises(ConfigError, match="lacks 'scorer'"):
        Gate.from_json({"schema": "splitedge.token-gate/1"})


@given(st.lists(st.floats(0, 1), min_size=1, max_size=80), st.floats(0, 1))
@settings(max_examples=80, deadline=None)
def test_the_price_of_a_rate_is_exact_but_for_ties(doubts, calls):
    doubt = np.array(doubts)
    price = price_for(doubt, calls)
    rate = (doubt > price).mean()
    assert rate <= calls + 1e-9
    below = (doubt >= price - 1e-9).mean()  # a hair less, and those just there are called too
    assert (
        below >= calls - 1e-9
        or calls >= 1.0
        or price < 1e-9
        or rate == pytest.approx(calls, abs=1 / len(doubt))
    )


def test_survival_counts_runs():
    same = np.array([1, 1, 0, 1, 1, 1, 1, 0], dtype=bool)
    text = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    curve = survival_of(same, text, 4)
    assert curve[0] == pytest.approx(6 / 8)
    assert curve[1] == pytest.approx(3 / 6)  # starts 0, 4 and 5 of 0, 1, 2, 4, 5, 6
    assert curve[2] == pytest.approx(1 / 4) and curve[3] == 0.0


@pytest.fixture(scope="module")
def pair():
    with deploy(BIG, tokenizer=Letters(), local=SMALL) as deployment:
        assert deployment.fit(gate=GateSchedule(texts=128, length=64, opening=8, calls=0.3)) is None
        yield deployment


def test_assist_asks_the_cloud_as_often_as_was_asked_for(pair):
    report = pair.plan.aids.gate.report
    texts = [pair.generate([1, i, 2 * i % 97, 3, i + 1], max_tokens=48, mode="assist", stops=NONE)
             for i in range(24)]  # fmt: skip
    calls = sum(t.cloud_tokens for t in texts) / sum(len(t.ids) for t in texts)
    assert abs(calls - report.calls) < 0.15 and {s for t in texts for s in t.sources} == {"local", "cloud"}
    known = pair.evaluate([[1, 2, 3], [4, 5]], max_tokens=24, stops=NONE, progress=False)
    line = known.line("local")
    trusted = known.confidence[line] >= known.thresholds[line]
    assert 0.0 < (~trusted).mean() < 1.0  # what the gate says is kept for the simulator
    pair.evaluation = None
    costs = pair.costs()
    assert costs.survival == report.survival and costs.survival[0] == pytest.approx(
        report.agreement, abs=0.05
    )
    assert dict(costs.disagreement)[Mode.ASSIST] == report.disagreement
    alone = pair.generate([1, 2, 3], max_tokens=24, mode="spec", stops=NONE)
    assert alone.ids == pair.generate([1, 2, 3], max_tokens=24, mode="cloud_stream", stops=NONE).ids


def test_queries_are_routed_and_judged(pair):
    with pytest.raises(ConfigError, match="no query router"):
        pair.generate("a prompt", max_tokens=4, mode="route", stops=NONE)
    with pytest.raises(ConfigError, match="a judge"):
        pair.generate("a prompt", max_tokens=4, mode="cascade", stops=NONE)
    easy, hard = ["aaa bbb " * 3] * 60, ["xxx yyy " * 3] * 60
    right = np.r_[np.ones(60), np.zeros(60)]
    router = learn_router(easy + hard, right, np.ones(120), hashing=Hashing(256, 0)).at(0.25)
    near = pair.generate(easy[0], max_tokens=4, router=router, stops=NONE)
    far = pair.generate(hard[0], max_tokens=4, router=router, stops=NONE)
    assert (near.mode, near.bytes_up, far.mode) == (Mode.LOCAL, 0, Mode.STREAM) and "score" in near.why

    rng = np.random.default_rng(0)
    judge = fit_judge(rng.random((400, len(ANSWER))), np.round(rng.random(400)), np.ones(400), aim="budget")
    pair.attach(Aids(judge=judge.at(0.0), router=router))
    assert pair.generate(easy[0], max_tokens=4, mode="route", stops=NONE).mode is Mode.LOCAL
    kept = pair.generate("a prompt", max_tokens=6, mode="cascade", stops=NONE)
    assert kept.mode is Mode.LOCAL and kept.asks == 0
    pair.attach(Aids(judge=judge.at(1.0)))
    anew = pair.generate("a prompt", max_tokens=6, mode="cascade", stops=NONE)
    assert anew.mode is Mode.STREAM and anew.ids != () and "anew" in anew.why
    assert pair.plan.aids.router is router and pair.plan.aids.gate is not None
    pair.outage("a tunnel")
    try:
        left = pair.generate("a prompt", max_tokens=6, mode="cascade", on_loss="local", stops=NONE)
        assert left.degraded and left.ids == kept.ids
    finally:
        pair.outage(None)


def test_what_a_model_reads_of_a_prompt_and_an_answer():
    model = WholeModel(SMALL)
    ids = [1, 2, 3, 4, 5]
    rows = np.concatenate(list(model.read(ids, rows=2)))
    for i in range(1, 6):
        assert np.allclose(rows[i - 1], model.step(ids[:i]).logits, atol=1e-5)
    p = torch.tensor(rows).double().softmax(-1).numpy()
    seen = prompt_numbers(model, ids)
    assert seen[5] == pytest.approx(p[-1].max(), rel=1e-4) and seen[0] == pytest.approx(
        -np.mean([np.log(p[i, ids[i + 1]]) for i in range(4)]), rel=1e-4
    )
    judged_ = answer_numbers(model, ids[:2], ids[2:], ended=True)
    assert judged_[1] == pytest.approx(p[1:4].max(axis=1).min(), rel=1e-4) and judged_[-1] == 1.0
    assert judged_[3] == pytest.approx(-np.log(min(p[i, ids[i + 1]] for i in (1, 2, 3))), rel=1e-4)
