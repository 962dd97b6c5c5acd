"""Query routers and judges: on synthetic queries whose truth is known, and through a deployment."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.errors import ConfigError
from splitedge.llm.cascade import Judge, fit_judge
from splitedge.llm.labels import labels_of, relaxation, spread_of, will_do
from splitedge.llm.queries import Hashing
from splitedge.llm.route_thresholds import for_budget, for_drop, for_recovery, upper_bound
from splitedge.llm.router import QueryRouter
from splitedge.llm.router_fit import fit_router, learn_router, parts_of, stem

SMALL = Hashing(words=1 << 10, chars=0)
EASY = ["weather", "colour", "animal", "music", "kitchen"]
HARD = ["integral", "theorem", "tensor", "manifold", "cohomology"]
FILL = [f"filler{chr(97 + i)}" for i in range(15)]


def queries(count: int, seed: int):
    """Prompts of which some words say whether the device can answer: right with 0.9, else with 0.2; the cloud
    is right with 0.92.
    """
    rng = np.random.default_rng(seed)
    easy = rng.random(count) < 0.5
    texts = []
    for one in easy:
        words = [*rng.choice(FILL, 6), rng.choice(EASY if one else HARD), *rng.choice(FILL, 2)]
        texts.append(" ".join(words) + "?")
    edge = (rng.random(count) < np.where(easy, 0.9, 0.2)).astype(float)
    cloud = (rng.random(count) < 0.92).astype(float)
    return texts, edge, cloud, easy


TRAIN, TEST = queries(3000, 0), queries(4000, 1)


@pytest.mark.parametrize("taught", ["det", "prob", "gain", "pair"])
def test_a_router_finds_what_the_device_can_answer(taught):
    router = fit_router(*TRAIN[:3], taught=taught, hashing=SMALL, aim="budget", to=0.5)
    texts, edge, cloud, easy = TEST
    local = router.scores(texts) >= router.threshold.value
    assert (local == easy).mean() > 0.97  # words decide, chance is a half
    assert abs((~local).mean() - 0.5) < 0.04 and 0.7 < router.auc <= 1.0
    mixed = np.where(local, edge, cloud).mean()
    random = 0.5 * edge.mean() + 0.5 * cloud.mean()
    assert mixed > random + 0.15 and mixed > cloud.mean() - 0.03


def test_transformed_labels_help_where_the_device_is_much_weaker():
    texts, _, _, easy = TRAIN
    rng = np.random.default_rng(2)
    # Graded qualities: the device is always below the cloud, by little where the query is easy.
    edge = np.where(easy, 0.5, 0.2)[:, None] + 0.05 * rng.random((len(texts), 4))
    cloud = np.full((len(texts), 1), 0.6)
    assert not labels_of("prob", edge, cloud).any()
    with pytest.raises(ConfigError, match="nothing to learn"):
        fit_router(texts, edge, cloud, taught="det", hashing=SMALL)
    assert ((labels_of("trans", edge, cloud) > 0.5) == easy).mean() > 0.97
    router = fit_router(texts, edge, cloud, taught="trans", hashing=SMALL, aim="budget", to=0.5)
    assert ((router.scores(TEST[0]) >= router.threshold.value) == TEST[3]).mean() > 0.97


def test_the_bound_on_what_is_lost_holds_on_other_queries():
    texts, edge, cloud, _ = TEST
    missed = 0
    for seed in range(20):
        router = fit_router(*queries(900, 100 + seed)[:3], hashing=SMALL, aim="drop", to=0.06)
        local = router.scores(texts) >= router.threshold.value
        missed += (cloud - np.where(local, edge, cloud)).mean() > 0.06
        assert router.threshold.drop <= router.threshold.drop_bound <= 0.06
    assert missed <= 3  # 5% of 20 is 1


def test_what_was_saved_is_what_is_loaded():
    router = fit_router(*TRAIN[:3], hashing=Hashing(1 << 8, 1 << 8))
    again = QueryRouter.from_json(json.loads(json.dumps(router.to_json())))
    assert np.array_equal(router.scores(TEST[0][:50]), again.scores(TEST[0][:50]))
    assert again.threshold == router.threshold and again(TEST[0][0]) == router(TEST[0][0])
    for key, value in (
        ("schema", "x"),
        ("words", 7),
        ("taught", "gut"),
        ("mean", {"shape": [1], "f8": "??"}),
    ):
        with pytest.raises(ConfigError):
            QueryRouter.from_json({**router.to_json(), key: value})


def test_readings_of_the_device_model_are_used():
    texts, edge, cloud, easy = queries(1500, 3)
    blind = ["the same words"] * len(texts)
    seen = np.where(easy, 0.0, 1.0)[:, None] + np.random.default_rng(0).normal(0, 0.1, (len(texts), 2))
    router = learn_router(blind, edge, cloud, hashing=SMALL, readings=seen)
    score = router.scores(blind, seen)
    assert router.reads and score[easy].min() > score[~easy].max()
    with pytest.raises(ConfigError, match="trained on"):
        router.scores(blind)


def test_prompts_that_are_alike_stay_together():
    alike = [f"Tom has {i} apples and buys {2 * i}.  How many?" for i in range(50)]
    assert len(set(parts_of(alike, 7))) == 1
    assert stem("What is it?\nA. one\nB. two") == stem("what IS it?\nA. three\nB. four")
    assert len(set(parts_of([f"question {c}" for c in "abcdefghijklmnop"], 5))) > 2


@given(st.lists(st.tuples(st.floats(0, 1), st.booleans(), st.booleans()), min_size=1, max_size=60),
       st.floats(0, 1))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_a_budget_is_kept(rows, calls):
    score, edge, cloud = (np.array(column, float) for column in zip(*rows, strict=True))
    found = for_budget(score, edge, cloud, calls)
    assert (score < found.value).mean() <= calls + 1e-9
    assert found.calls == pytest.approx((score < found.value).mean())
    strict = for_drop(score, edge, cloud, 0.3)
    stays = score >= strict.value
    assert np.where(stays, cloud - edge, 0).mean() <= 0.3


def test_recovery_takes_the_fewest_calls():
    score = np.array([0.9, 0.8, 0.7, 0.2, 0.1])
    edge, cloud = np.array([1, 1, 0, 0, 0.0]), np.array([1, 1, 1, 1, 1.0])
    assert for_recovery(score, edge, cloud, 1.0).value == 0.8
    assert for_recovery(score, edge, cloud, 0.6).value == 0.7
    assert for_recovery(score, edge, cloud, 0.0).value == 0.1


@pytest.mark.parametrize("kind", ["binary", "graded"])
def test_bounds_hold(kind):
    rng, missed = np.random.default_rng(0), 0
    for _ in range(200):
        lost = rng.choice([-1.0, 0.0, 1.0], 300, p=[0.1, 0.7, 0.2])
        lost = lost if kind == "binary" else lost * rng.random(300)
        missed += upper_bound(lost, 0.1) < (0.1 if kind == "binary" else 0.05)
    assert missed <= 20


@given(st.integers(1, 12), st.integers(1, 4), st.integers(0, 2**31))
@settings(max_examples=40, deadline=None)
def test_labels_are_what_the_paper_says(n, k, seed):
    rng = np.random.default_rng(seed)
    edge, cloud = rng.random((n, k)).round(1), rng.random((n, 2)).round(1)
    prob = labels_of("prob", edge, cloud)
    assert prob[0] == pytest.approx(np.mean([a >= b for a in edge[0] for b in cloud[0]]))
    t = relaxation(edge, cloud)
    tried = [spread_of(will_do(edge, cloud, x)) for x in (0.0, 0.1, 0.3, 0.5)]
    assert spread_of(will_do(edge, cloud, t)) >= max(tried) - 0.25  # of a grid of quantiles
    assert spread_of(prob) == pytest.approx(np.abs(prob[:, None] - prob[None]).mean())
    assert np.array_equal(labels_of("det", edge, cloud), (edge[:, 0] >= cloud[:, 0]).astype(float))


def test_a_judge_keeps_good_answers_and_its_threshold_is_not_from_rows_it_learnt():
    rng = np.random.default_rng(5)
    n = 3000
    numbers = rng.normal(size=(n, 2))
    edge = (rng.random(n) < 1 / (1 + np.exp(-3 * numbers[:, 0]))).astype(float)
    judge = fit_judge(numbers, edge, np.ones(n), names=("sure", "noise"), aim="drop", to=0.1)
    kept = judge.scores(numbers) >= judge.threshold.value
    assert judge.auc > 0.8 and 0.2 < kept.mean() < 0.9 and edge[kept].mean() > edge.mean() + 0.2
    again = Judge.from_json(json.loads(json.dumps(judge.to_json())))
    assert np.array_equal(again.scores(numbers), judge.scores(numbers)) and again.threshold == judge.threshold
    # Labels of chance, and a net that can learn rows by heart: a threshold of the same rows would keep some.
    noise = rng.normal(size=(1200, 40))
    coin = rng.integers(0, 2, 1200).astype(float)
    blind = fit_judge(noise, coin, np.ones(1200), names=tuple("n" * 40), kind="mlp", aim="drop", to=0.02)
    assert not (blind.scores(noise) >= blind.threshold.value).mean() > 0.08 and abs(blind.auc - 0.5) < 0.1


def test_what_can_not_be_is_refused():
    texts, edge, cloud, _ = queries(200, 0)
    with pytest.raises(ConfigError, match="taught is one of"):
        fit_router(texts, edge, cloud, taught="feeling")
    with pytest.raises(ConfigError, match=r"lie in \[0, 1\]"):
        fit_router(texts, 10 * edge, cloud)
    with pytest.raises(ConfigError, match="too few"):
        fit_router(texts[:60], edge[:60], cloud[:60])
    with pytest.raises(ConfigError, match="50 of each"):
        fit_judge(np.zeros((90, 1)), np.zeros(90), np.ones(90), names=("x",))
