"""`bandit`: regret that grows ever slower, a safe start, feedback that comes late, models that are kept."""

import math

import numpy as np
import pytest
from policy_cases import CLOUD, EXIT1, LOCAL, SPLIT_A, SPLIT_B, TABLE, chosen, observe, of_device, stacked

from splitedge.errors import PolicyError
from splitedge.policies.bandit import CONTEXT, Bandit, context, priors, save
from splitedge.policies.bandit_fit import fit_bandit
from splitedge.policies.linear_bandit import LinearArms
from splitedge.policy import make_policy
from splitedge.record import Record


def ended(obs, option, *, met=True, confidence=math.nan, energy_j=0.0):
    return Record(
        0,
        obs.t_s,
        option=option.name,
        route=option.route.value,
        met=met,
        confidence=confidence,
        energy_j=energy_j,
    )


# The learner ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["ucb", "thompson"])
def test_regret_grows_ever_slower(method):
    """Four arms of rewards linear in the context, with noise; compared with always knowing the best."""
    rng = np.random.default_rng(3)
    theta = rng.standard_normal((4, 5)) / np.sqrt(5)
    arms, draws = LinearArms(4, 5, 1.0), np.random.default_rng(8)
    regret = []
    for _ in range(3000):
        x = rng.standard_normal(5)
        value = arms.mean(x) + 0.5 * arms.bonus(x) if method == "ucb" else arms.draw(x, 0.3, draws)
        arm = int(value.argmax())
        reward = theta @ x
        regret.append(reward.max() - reward[arm])
        arms.learn(np.array([arm]), x[None], np.array([reward[arm] + 0.1 * rng.standard_normal()]))
    first, second, last = (sum(regret[a : a + 1000]) for a in (0, 1000, 2000))
    assert last < 0.75 * second < 0.5 * first
    random = np.mean([(theta @ x).max() - (theta @ x).mean() for x in rng.standard_normal((2000, 5))])
    assert sum(regret) < 0.05 * 3000 * random
    np.testing.assert_allclose(arms.theta[arm], theta[arm], atol=0.1)


def test_a_batch_is_learned_as_its_rows_are():
    rng = np.random.default_rng(0)
    x, arm, reward = rng.standard_normal((50, 4)), rng.integers(0, 3, 50), rng.standard_normal(50)
    together, apart = LinearArms(3, 4, 2.0), LinearArms(3, 4, 2.0)
    together.learn(arm, x, reward)
    for i in rng.permutation(50):
        apart.learn(arm[i : i + 1], x[i : i + 1], reward[i : i + 1])
    np.testing.assert_allclose(together.theta, apart.theta, atol=1e-10)
    np.testing.assert_allclose(together.bonus(x), apart.bonus(x), atol=1e-10)


# The policy ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("explore", [0.0, 0.1, 5.0])
def test_it_starts_with_what_is_predicted_however_much_it_explores(explore):
    for deadline in (0.007, 0.05, 0.1, 0.5):
        for goodput in (1e5, 3e6, 1e8):
            obs = observe(goodput=goodput, deadline_s=deadline)
            assert int(Bandit(explore).decide(obs).option) == int(priors(obs, 0.01).argmax())
    assert not chosen(Bandit(explore), observe(link_up=False, deadline_s=0.2)).remote


def world(policy, right, count=600, late=3):
    """Requests on a steady link; each option is right as `right` says, whatever its table says. Outcomes come
    `late` requests later, each second pair in the wrong order. Gives the shares of options in the last third.
    """
    rng = np.random.default_rng(1)
    told, took = [], []
    for k in range(count):
        obs = observe((EXIT1, SPLIT_A, SPLIT_B), deadline_s=0.3, goodput=8e6, t_s=0.1 * k)
        option = chosen(policy, obs)
        took.append(option.name)
        told.append(ended(obs, option, confidence=float(rng.random() < right[option.name])))
        if len(told) > late:
            policy.learn(told.pop(1 if k % 2 else 0))
    last = took[-count // 3 :]
    return {name: last.count(name) / len(last) for name in right}


@pytest.mark.parametrize("method", ["ucb", "thompson"])
def test_it_leaves_an_option_that_is_worse_than_its_table_says(method):
    right = {EXIT1.name: 0.7, SPLIT_A.name: 0.5, SPLIT_B.name: 0.92}
    shares = world(Bandit(0.1, method), right)
    assert shares[SPLIT_B.name] > 0.9
    assert (
        int(Bandit(0.1).decide(observe((EXIT1, SPLIT_A, SPLIT_B), deadline_s=0.3)).option) == 1
    )  # as predicted


def test_draws_are_those_of_the_seed():
    right = {EXIT1.name: 0.7, SPLIT_A.name: 0.9, SPLIT_B.name: 0.9}
    runs = []
    for seed in (1, 1, 2):
        policy = Bandit(0.5, "thompson", seed=seed)
        world(policy, right, count=150)
        runs.append(policy.arms.b)
    assert np.array_equal(runs[0], runs[1])
    assert not np.array_equal(runs[0], runs[2])


def test_what_is_late_earns_nothing_and_joules_cost():
    def learned(**outcome):
        policy, obs = Bandit(joules=0.1), observe((SPLIT_A,), deadline_s=0.3)
        policy.decide(obs)
        policy.learn(ended(obs, SPLIT_A, **outcome))
        return float(policy.arms.mean(context(obs))[0])

    assert learned(met=False) < learned(energy_j=2.0) < learned() < learned(confidence=1.0)


def test_both_decisions_of_a_request_learn_from_its_end():
    policy = Bandit()
    obs = observe((EXIT1, SPLIT_A), deadline_s=0.4, t_s=5.0)
    first = int(policy.decide(obs).option)
    again = obs._replace(exit=1, confidence=0.3, sunk_s=0.004, t_s=5.004, deadline_s=0.396)
    second = int(policy.decide(again).option)
    policy.learn(ended(obs, SPLIT_A, met=False))
    counts = [np.trace(m) for m in policy.arms.a - LinearArms(2, len(CONTEXT), 10.0).a]
    assert sum(count > 0.0 for count in counts) == len({first, second})
    before = policy.arms.b.copy()
    policy.learn(ended(obs, SPLIT_A))  # told twice, counted once
    policy.learn(ended(obs._replace(t_s=77.0), SPLIT_A))  # never decided here
    assert np.array_equal(before, policy.arms.b)


def test_requests_whose_route_was_forced_teach_nothing():
    policy, obs = Bandit(), observe(deadline_s=0.3)
    policy.decide(obs)
    record = ended(obs, SPLIT_A)
    record.forced = True
    policy.learn(record)
    assert not policy.arms.b.any()


def test_devices_share_one_model():
    """Three devices at once teach it what each would in turn."""
    rng = np.random.default_rng(5)
    fleet, alone = Bandit(0.0), Bandit(0.0)
    for k in range(20):
        seen = {
            "rtt": 0.03,
            "edge_wait_s": 0.0,
            "link_up": True,
            "deadline_s": 0.2,
            "rows": 1,
            "unsent_s": 0.0,
        }
        each = [
            of_device(
                {**seen, "goodput": 10 ** rng.uniform(5, 8), "confidence": 0, "sunk_s": 0, "battery": 0.5}
            )
            for _ in range(3)
        ]
        each = [obs._replace(t_s=10.0 * k + n) for n, obs in enumerate(each)]
        many = fleet.decide(stacked(each))
        records = []
        decisions = [int(alone.decide(obs).option) for obs in each]  # all before the first outcome
        assert decisions == many.option.tolist()
        for obs, option in zip(each, decisions, strict=True):
            records.append(ended(obs, TABLE[option], met=bool(rng.random() < 0.7)))
            alone.learn(records[-1])
        names = ("t_s", "option", "met", "confidence", "energy_j", "forced")
        fleet.learn(Record(0, **{name: np.array([getattr(r, name) for r in records]) for name in names}))
        np.testing.assert_allclose(fleet.arms.theta, alone.arms.theta, atol=1e-10)


def test_it_explains_what_it_learned():
    policy, obs = Bandit(), observe(deadline_s=0.3)
    decision = policy.decide(obs)
    assert "highest upper bound of the reward: predicted 0.9" in policy.explain(obs, decision)


# Trained -------------------------------------------------------------------------------------------------


def run_of(count=400, seed=0):
    """Columns of a run whose split is right far less often than its table says."""
    rng = np.random.default_rng(seed)
    planned = np.array([SPLIT_A.name, LOCAL.name, CLOUD.name])[rng.integers(0, 3, count)]
    goodput = 10 ** rng.uniform(6.5, 8, count)
    return {
        "t_s": np.arange(count) * 0.1,
        "deadline_s": np.full(count, 0.3),
        "planned": planned,
        "option": planned,
        "confidence": np.where(planned == SPLIT_A.name, 0.4, np.nan),
        "met": np.ones(count, bool),
        "energy_j": np.zeros(count),
        "goodput_bps": goodput,
        "goodput_low_bps": 0.5 * goodput,
        "rtt_s": np.full(count, 0.03),
        "rtt_high_s": np.full(count, 0.05),
        "battery": np.full(count, np.nan),
    }


def test_training_on_a_run_predicts_the_rest_of_it_better(tmp_path):
    file = fit_bandit(run_of(), TABLE)
    assert file.after < 0.3 * file.before
    path = tmp_path / "bandit.json"
    save(str(path), file)
    policy = make_policy(f"bandit:file={path}", TABLE)
    assert policy.file == file
    obs = observe((LOCAL, SPLIT_A), deadline_s=0.3, goodput=2e7, rtt=0.03)
    assert chosen(Bandit(0.0), obs) is SPLIT_A
    assert chosen(make_policy(f"bandit:0,file={path}", obs.options), obs) is LOCAL


def test_training_needs_requests_of_this_deployment():
    run = run_of()
    with pytest.raises(PolicyError, match="columns met, rtt_s are missing"):
        fit_bandit({k: v for k, v in run.items() if k not in ("met", "rtt_s")}, TABLE)
    with pytest.raises(PolicyError, match="0 requests were planned on these options"):
        fit_bandit(run, (EXIT1,))
    with pytest.raises(PolicyError, match="40 requests"):
        fit_bandit({k: v[:40] for k, v in run.items()}, TABLE)


def test_files_of_other_options_or_damaged_ones_are_refused(tmp_path):
    path = tmp_path / "bandit.json"
    file = fit_bandit(run_of(), (LOCAL, SPLIT_A, CLOUD))
    save(str(path), file)
    with pytest.raises(PolicyError, match="was trained on local, split:a"):
        make_policy(f"bandit:file={path}", TABLE)
    path.write_text(path.read_text().replace('"ridge": 10.0', '"ridge": 11.0'))
    with pytest.raises(PolicyError, match="is damaged"):
        make_policy(f"bandit:file={path}", TABLE)
    wrong = np.array(file.a)
    wrong[0, 0, 0] = -1.0
    save(str(path), file.model_copy(update={"a": tuple(tuple(map(tuple, m)) for m in wrong.tolist())}))
    with pytest.raises(PolicyError, match="positive definite"):
        make_policy(f"bandit:file={path}", TABLE)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("bandit:-1", "'explore' must be at least 0"),
        ("bandit:method=greedy", "ucb or thompson"),
        ("bandit:ridge=0", "'ridge' must be"),
        ("bandit:nan", "'explore'"),
        ("bandit:file=none.json", "can not read the bandit"),
    ],
)
def test_bad_specs_are_refused(spec, message):
    with pytest.raises(PolicyError, match=message):
        make_policy(spec, TABLE)
