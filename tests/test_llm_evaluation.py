"""What an evaluation of a language deployment records, and that it is what real texts did."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from llm_models import tiny

from splitedge.errors import ConfigError, RecordError
from splitedge.llm.deployment import deploy_language
from splitedge.llm.evaluation import LanguageEvaluation
from splitedge.llm.exits import ExitSchedule
from splitedge.llm.plan import Costs
from splitedge.llm.sampling import Sampling

NONE = frozenset()
PROMPTS = [[5, 6, 7], [9], [11, 12, 13, 14], [3, 2]]
SHORT = ExitSchedule(texts=48, length=48, epochs=1, width=16, progress=False)


class Letters:
    def encode(self, text):
        return [ord(c) % 97 for c in text]

    def decode(self, ids):
        return "".join(chr(33 + i) for i in ids)


def near(model):
    """The same model with a little noise: it agrees often, and not always."""
    import torch

    torch.manual_seed(3)
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(0.02 * torch.randn_like(weight))
    return model


@pytest.fixture(scope="module")
def deployment():
    with deploy_language(tiny("llama"), Letters(), local=near(tiny("llama")), exits=[1, 3]) as found:
        found.fit(schedule=SHORT)
        yield found


@pytest.fixture(scope="module")
def evaluation(deployment):
    return deployment.evaluate(PROMPTS, max_tokens=24, stops=NONE, progress=False)


def test_the_answers_are_those_of_the_deployment(deployment, evaluation):
    assert evaluation.deciders == ("local", "exit:0", "exit:1") and len(evaluation) == 4
    for row, prompt in enumerate(PROMPTS):
        start = evaluation.starts[row]
        wanted = deployment.generate(prompt, max_tokens=24, mode="cloud_stream", stops=NONE).ids
        assert tuple(evaluation.tokens[start : start + 24]) == wanted
    assert 0.2 < evaluation.agreement("local") < 1.0
    assert (evaluation.seconds > 0).all()
    assert ((evaluation.confidence >= 0) & (evaluation.confidence <= 1)).all()  # the gate's, and the exits'


def test_survival_is_what_drafts_live_through(deployment, evaluation):
    """Fixed rounds of k drafts accept exactly what runs of agreement foretell."""
    for drafts in (1, 3):
        for row, prompt in enumerate(PROMPTS):
            start = int(evaluation.starts[row])
            same = evaluation.agrees("local")[start : start + 24].tolist()
            at = accepted = 0
            while at < 24:
                k = min(drafts, 24 - at - 1)
                right = next((i for i in range(k) if not same[at + i]), k)
                accepted += right
                at += right + 1
            from splitedge.llm.modes import Mode, Way

            way = Way(Mode.SPEC, drafts=drafts, adapt=False)
            text = deployment.generate(prompt, max_tokens=24, way=way, stops=NONE)
            assert text.accepted == accepted
    survival = evaluation.survival()
    assert survival[0] == pytest.approx(evaluation.agreement("local"))
    assert list(survival) == sorted(survival, reverse=True)


def test_sampled_texts_are_coupled(deployment):
    how = Sampling(temperature=0.8, seed=4)
    found = deployment.evaluate(PROMPTS[:2], max_tokens=16, sampling=how, stops=NONE, progress=False)
    text = deployment.generate(PROMPTS[0], max_tokens=16, mode="spec", sampling=how, stops=NONE)
    assert tuple(found.tokens[:16]) == text.ids and not found.greedy


def test_hidden_states_are_judged_through_their_codec():
    with deploy_language(tiny("llama"), Letters(), cut=2, codec="int4") as found:
        found.fit(schedule=SHORT)
        seen = found.evaluate(PROMPTS, max_tokens=12, stops=NONE, progress=False)
        assert seen.deciders == ("exit:0", "split") and seen.row_bytes > 4
        assert 0.1 < seen.agreement("split") <= 1.0
        assert seen.agreement("split") > seen.agreement("exit:0")


def test_auto_goes_by_what_was_measured(deployment, evaluation):
    deployment.evaluation = evaluation
    costs = deployment.costs()
    assert costs.survival == evaluation.survival()
    calls, agreement, taken = evaluation.exit_curve()
    assert costs.calls == calls and calls + taken.sum() == pytest.approx(1.0)
    assert dict(costs.disagreement)["exit"] == pytest.approx(1.0 - agreement)
    assert costs.verify_slope >= 0 and costs.prefill_s >= 0
    everything = evaluation.exit_curve({0: -1.0})
    assert everything[0] == 0.0 and everything[1] == pytest.approx(evaluation.agreement("exit:0"))
    assert evaluation.exit_curve({})[:2] == (1.0, 1.0)
    assert isinstance(evaluation.into(Costs(0.1, 1e6, 1e6, 0.02, 0.001)), Costs)


def test_it_is_read_as_written(evaluation, tmp_path):
    evaluation.save(tmp_path / "e.npz")
    again = LanguageEvaluation.load(tmp_path / "e.npz")
    for field in dataclasses.fields(evaluation):
        one, other = getattr(evaluation, field.name), getattr(again, field.name)
        if isinstance(one, np.ndarray):
            np.testing.assert_array_equal(one, other)
        else:
            assert one == other
    assert "4 texts, 96 tokens" in str(again)
    assert again.pass_s(1, 1) <= again.pass_s(1, 129) and again.pass_s(1, 1) <= again.pass_s(16, 16)


def test_what_is_no_evaluation_is_refused(evaluation, tmp_path):
    (tmp_path / "no.npz").write_bytes(b"PK nonsense")
    np.savez(tmp_path / "other.npz", a=np.zeros(3))
    evaluation.save(tmp_path / "e.npz")
    with np.load(tmp_path / "e.npz") as data:
        np.savez(tmp_path / "short.npz", **{**data, "tokens": data["tokens"][:-1]})
        np.savez(tmp_path / "types.npz", **{**data, "said": data["said"].astype(float)})
    for name in ("missing", "no", "other", "short", "types"):
        with pytest.raises(RecordError, match=f"{name}.npz"):
            LanguageEvaluation.load(tmp_path / f"{name}.npz")
    with pytest.raises(ConfigError, match="there are local, exit:0"):
        evaluation.agreement("oracle")


def test_prompts_that_can_not_be_are_refused(deployment):
    for prompts, most in (([], 8), ([[]], 8), ([[1] * 120], 20), ([[1]], 0)):
        with pytest.raises(ConfigError):
            deployment.evaluate(prompts, max_tokens=most, progress=False)
