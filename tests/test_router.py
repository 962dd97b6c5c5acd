"""`router`: beats chance, keeps its promise on rows it has not seen, and needs what it was trained for."""

import json

import numpy as np
import pytest
from policy_cases import CLOUD, EXIT1, LOCAL, SPLIT_A, TABLE, chosen, observe

from splitedge.errors import PolicyError
from splitedge.evaluation import Evaluation
from splitedge.policies.model_file import write_model
from splitedge.policies.router import KIND, Router, Scorer
from splitedge.policies.router_fit import fit_router, labels_of, threshold_for_loss
from splitedge.policy import make_policy, wants_features

OPTIONS = (EXIT1, LOCAL, SPLIT_A, CLOUD)


def evaluation(rows=3000, seed=0, features=6):
    """Rows whose first two features say how hard they are for the device; the cloud is right in 95%."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((rows, features)).astype(np.float32)
    easy = 1.0 / (1.0 + np.exp(-(2.5 * x[:, 0] - 2.5 * np.abs(x[:, 1]) + 3.0)))
    chance = np.stack([0.9 * easy, easy, np.full(rows, 0.93), np.full(rows, 0.95)])
    correct = rng.random(chance.shape) < chance
    names = tuple(option.name for option in OPTIONS)
    nbytes = np.array([[1000.0 if option.remote else 0.0] for option in OPTIONS]).repeat(rows, 1)
    return Evaluation(names, correct, chance, nbytes, np.zeros(rows, np.int64), OPTIONS, features=x)


@pytest.fixture(scope="module")
def trained():
    return fit_router(evaluation(), "local", CLOUD.name, target=0.03)


# Training ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["logistic", "trees"])
@pytest.mark.parametrize("labels", ["det", "prob", "trans"])
def test_it_beats_chance_and_keeps_its_promise_on_new_rows(labels, model):
    target = 0.04
    file = fit_router(evaluation(seed=1), "local", CLOUD.name, labels=labels, model=model, target=target)
    assert file.auc > 0.75
    new = evaluation(rows=20_000, seed=99)
    here, there = new.correct[1], new.correct[3]
    stays = Scorer(file)(new.features) >= file.threshold
    lost = (stays & there & ~here).mean()
    assert lost <= target  # with 95% confidence, that is: one seed in 180 fails
    assert stays.mean() == pytest.approx(file.share, abs=0.05)
    # As many rows drawn at random would lose about twice as many answers.
    assert lost < 0.6 * stays.mean() * (there & ~here).mean()
    assert stays.mean() > 0.25


def test_trees_learn_what_a_line_can_not():
    """Being hard on both sides of 0 is nothing that a linear model can say."""
    logistic, trees = (fit_router(evaluation(), "local", model=m, target=0.03) for m in ("logistic", "trees"))
    assert trees.auc > logistic.auc
    assert trees.share > logistic.share


def test_labels_are_probabilities_of_being_no_worse():
    right, wrong = np.array([1.0, 1.0, 0.0, 0.0]), np.array([1.0, 0.0, 1.0, 0.0])
    sure = np.array([0.9, 0.9, 0.2, 0.2])
    there = np.full(4, 0.8)
    assert labels_of("det", right, wrong, sure, there).tolist() == [1.0, 1.0, 0.0, 1.0]
    np.testing.assert_allclose(labels_of("prob", right, wrong, sure, there), 1.0 - 0.8 * (1.0 - sure))
    trans = labels_of("trans", right, wrong, sure, there)
    assert ((trans >= 0.0) & (trans <= 1.0)).all()
    assert trans[0] > trans[2]


def test_the_transformed_labels_still_differ_where_the_device_is_far_weaker():
    rng = np.random.default_rng(0)
    edge, cloud = rng.uniform(0.05, 0.3, 500), rng.uniform(0.97, 0.99, 500)
    none = np.zeros(500)
    assert labels_of("det", none, none + 1.0, edge, cloud).std() == 0.0
    plain, moved = (labels_of(kind, none, none + 1.0, edge, cloud) for kind in ("prob", "trans"))
    assert moved.std() > 2.0 * plain.std()


def test_the_threshold_is_never_where_nothing_can_be_shown():
    score = np.linspace(1.0, 0.0, 100)
    assert threshold_for_loss(score, np.ones(100), 0.01) == (2.0, 0.0, 0.0)
    value, bound, share = threshold_for_loss(score, np.zeros(100), 0.05)
    assert (value, share) == (0.0, 1.0)
    assert 0.0 < bound < 0.05
    rising = np.arange(100) >= 60
    value, bound, share = threshold_for_loss(score, rising.astype(float), 0.05)
    assert share == pytest.approx(0.6, abs=0.03)


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        ({"features": None}, {}, "holds no features"),
        ({}, {"edge": "exit:9"}, "no option 'exit:9'; the evaluation has exit:1, local"),
        ({}, {"edge": CLOUD.name}, "is no option that needs no cloud"),
        ({}, {"target": 0.0}, "target and val lie between 0 and 1"),
        ({"correct": np.ones((4, 3000), bool)}, {"labels": "det"}, "nothing to learn"),
        ({"confidence": np.full((4, 3000), np.nan)}, {}, "need confidences"),
    ],
)
def test_what_can_not_be_learned_from_is_refused(change, arguments, message):
    import dataclasses

    with pytest.raises(PolicyError, match=message):
        fit_router(dataclasses.replace(evaluation(), **change), **arguments)


def test_too_few_rows_are_refused():
    with pytest.raises(PolicyError, match="100 rows are too few"):
        fit_router(evaluation(rows=100))


# Deciding ------------------------------------------------------------------------------------------------


def easy_and_hard(trained):
    x = evaluation(seed=5).features
    score = Scorer(trained)(x)
    return tuple(x[score.argmax()].tolist()), tuple(x[score.argmin()].tolist())


def test_easy_inputs_stay_and_hard_ones_go(trained):
    easy, hard = easy_and_hard(trained)
    policy = Router(trained)
    obs = observe(OPTIONS, deadline_s=1.0)
    assert chosen(policy, obs._replace(features=easy)) is LOCAL
    assert chosen(policy, obs._replace(features=hard)) is CLOUD
    many = obs._replace(features=np.array([easy, hard, easy]), link_up=np.array([True, True, False]))
    assert policy.decide(many).option.tolist() == [1, 3, 1]
    text = policy.explain(obs._replace(features=hard), policy.decide(obs._replace(features=hard)))
    assert text.startswith("cloud/webp:0: local is no worse than cloud/webp:0 here with ")


def test_a_hard_input_goes_by_what_meets_the_deadline_and_stays_where_nothing_does(trained):
    _, hard = easy_and_hard(trained)
    obs = observe(OPTIONS, features=hard, goodput=8e6)
    policy = Router(trained)
    assert chosen(policy, obs._replace(deadline_s=0.1)) is SPLIT_A
    tight = obs._replace(deadline_s=0.02)
    decision = policy.decide(tight)
    assert OPTIONS[decision.option] is LOCAL
    assert "is predicted to miss the deadline" in policy.explain(tight, decision)
    down = obs._replace(deadline_s=1.0, link_up=False)
    assert chosen(policy, down) is LOCAL
    assert "out of reach" in policy.explain(down, policy.decide(down))


def test_without_features_the_device_answers_and_says_so(trained):
    policy, obs = Router(trained), observe(OPTIONS, deadline_s=1.0)
    decision = policy.decide(obs)
    assert OPTIONS[decision.option] is LOCAL
    assert "no features" in policy.explain(obs, decision)
    assert wants_features(policy)


def test_a_threshold_of_the_callers_own(trained, tmp_path):
    path = tmp_path / "router.json"
    write_model(path, KIND, trained)
    easy, _ = easy_and_hard(trained)
    obs = observe(OPTIONS, deadline_s=1.0, features=easy)
    assert chosen(make_policy(f"router:{path}", OPTIONS), obs) is LOCAL
    assert chosen(make_policy(f"router:{path},threshold=1.5", OPTIONS), obs) is CLOUD


# Files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", ["logistic", "trees"])
def test_what_is_saved_is_what_is_loaded(model, tmp_path):
    file = fit_router(evaluation(rows=600), model=model, target=0.1)
    path = tmp_path / "router.json"
    digest = write_model(path, KIND, file)
    policy = make_policy(f"router:{path}", OPTIONS)
    assert policy.file == file
    x = evaluation(seed=7).features
    np.testing.assert_array_equal(policy._score(x), Scorer(file)(x))
    np.testing.assert_allclose([policy._score(row) for row in x[:20]], Scorer(file)(x)[:20], rtol=1e-12)
    assert policy.save(str(path)) == digest


def test_a_deployment_that_lacks_an_option_is_refused(trained):
    with pytest.raises(PolicyError, match=r"between 'local' and 'cloud/webp:0'; this deployment has exit:1"):
        make_policy(Router(trained), (EXIT1, SPLIT_A))
    with pytest.raises(PolicyError, match="needs a file"):
        make_policy("router", TABLE)


@pytest.mark.parametrize(
    ("part", "message"),
    [
        ({"scale": (0.0,) * 6}, "above 0"),
        ({"weights": (1.0,)}, "'weights' must be 6 numbers"),
        ({"threshold": 3.0}, "less than or equal to 2"),
        ({"mean": ()}, "mean"),
    ],
)
def test_files_that_make_no_sense_are_refused(trained, tmp_path, part, message):
    path = tmp_path / "router.json"
    write_model(path, KIND, trained.model_copy(update=part))
    with pytest.raises(PolicyError, match=message):
        make_policy(f"router:{path}", OPTIONS)


def test_a_changed_number_is_noticed(trained, tmp_path):
    path = tmp_path / "router.json"
    write_model(path, KIND, trained)
    data = json.loads(path.read_text())
    data["model"]["threshold"] = 0.0
    path.write_text(json.dumps(data))
    with pytest.raises(PolicyError, match="is damaged"):
        make_policy(f"router:{path}", OPTIONS)


@pytest.mark.parametrize("mode", ["exact", "fleet"])
def test_the_simulator_shows_it_the_features_of_each_row(trained, tmp_path, mode):
    from splitedge.sim.formats import read_trace
    from splitedge.sim.scenario import ChannelPart, Scenario, WorkPart
    from splitedge.sim.simulate import simulate

    path = tmp_path / "up.csv"
    path.write_text("t_s,mbps,rtt_ms\n" + "".join(f"{k},80,10\n" for k in range(5)))
    work = WorkPart(rate_hz=5.0, requests=150, deadline_ms=1500)
    scenario = Scenario(deployment=tmp_path, channel=ChannelPart(up=path), work=work, mode=mode)
    rows, trace = evaluation(), read_trace(path)
    found = simulate(scenario, evaluation=rows, up=trace, policy=Router(trained))
    stays = Scorer(trained)(rows.features)[found["row"]] >= trained.threshold
    sent = [name for name in np.unique(found["planned"][~stays]) if name != "local"]
    assert (found["planned"][stays] == "local").all()
    assert sent
    assert (found["planned"][~stays] != "local").mean() > 0.9  # but for those before the link is up
