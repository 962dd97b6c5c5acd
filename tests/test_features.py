"""Features of inputs: what they say, that they are finite, that evaluation and daemon compute the same."""

import asyncio
import math

import numpy as np
import pytest
import torch
from doubler import EXIT, LOCAL, EdgeDouble
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from torch import nn

import splitedge
from splitedge.edge.runtime import EdgeRuntime
from splitedge.engine import Engine
from splitedge.errors import RecordError
from splitedge.evaluation import Evaluation
from splitedge.features import NAMES, features_of, features_of_array
from splitedge.policy import Decision, Policy


def named(values):
    return dict(zip(NAMES, features_of_array(values)[0].tolist(), strict=True))


@given(
    hnp.arrays(
        st.sampled_from([np.uint8, np.float32]),
        hnp.array_shapes(min_dims=1, max_dims=4, min_side=1, max_side=9),
        elements={"allow_nan": True, "allow_infinity": True},
    )
)
@example(np.array([[-3.0423614e31, 3.4028233e38]], np.float32))
@settings(max_examples=100, deadline=None)
def test_any_input_gives_finite_numbers_row_by_row(values):
    with np.errstate(all="ignore"):
        found = features_of_array(values)
        alone = np.concatenate([features_of_array(values[i : i + 1]) for i in range(len(values))])
    assert found.shape == (len(values), len(NAMES))
    assert found.dtype == np.float32
    assert np.isfinite(found).all()
    np.testing.assert_allclose(found, alone, rtol=1e-3, atol=1e-3)


def test_they_say_what_they_are_called():
    flat = named(np.full((1, 3, 16, 16), 51, np.uint8))
    assert flat["mean"] == pytest.approx(0.2)
    assert all(flat[name] < 1e-6 for name in ("std", "across", "down", "coarse", "colour"))
    stripes = np.zeros((1, 1, 16, 16), np.float32)
    stripes[..., ::2] = 1.0
    one = named(stripes)
    assert one["across"] == 1.0
    assert one["down"] == 0.0
    assert one["curve"] == 2.0
    assert one["dark"] == one["bright"] == 0.5
    assert one["entropy"] == pytest.approx(1.0)
    assert named(stripes.swapaxes(2, 3))["down"] == 1.0
    halves = np.zeros((1, 1, 16, 16), np.float32)
    halves[:, :, :8] = 1.0
    assert named(halves)["coarse"] == pytest.approx(0.5)
    spot = np.zeros((1, 1, 16, 16), np.float32)
    spot[:, :, 4:12, 4:12] = 1.0
    assert named(spot)["centre"] == pytest.approx(0.75)


def test_the_batch_may_stand_anywhere_and_need_not_be():
    x = torch.rand(5, 3, 8, 8)
    expected = features_of((x,), (0,))
    shared = torch.zeros(2)
    np.testing.assert_array_equal(features_of((shared, x.movedim(0, 2)), (None, 2)), expected)
    assert features_of((x[0],), (None,)).shape == (1, len(NAMES))
    assert features_of((torch.arange(12).reshape(3, 4),), (0,)).shape == (3, len(NAMES))


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Conv2d(1, 2, 3, padding=1)
        self.b = nn.Linear(2 * 64, 4)

    def forward(self, x):
        return self.b(torch.relu(self.a(x)).flatten(1))


def test_an_evaluation_holds_them_and_the_edge_computes_the_same(tmp_path):
    torch.manual_seed(0)
    x, y = torch.rand(70, 1, 8, 8), torch.randint(0, 4, (70,))
    with splitedge.deploy(Small().eval(), x[:4], cut="a", codec="int8") as deployment:
        found = deployment.evaluate((x, y), sizes=False)
        np.testing.assert_array_equal(found.features, features_of((x,), (0,)))
    path = tmp_path / "evaluation.npz"
    found.save(path)
    np.testing.assert_array_equal(Evaluation.load(path).features, found.features)


def test_evaluations_from_before_have_none_and_damaged_ones_are_refused(tmp_path):
    one = np.ones((1, 3))
    path = tmp_path / "evaluation.npz"
    Evaluation(("local",), one.astype(bool), one, one, np.zeros(3, np.int64)).save(path)
    assert Evaluation.load(path).features is None
    wrong = np.zeros((2, len(NAMES)), np.float32)
    Evaluation(("local",), one.astype(bool), one, one, np.zeros(3, np.int64), features=wrong).save(path)
    with pytest.raises(RecordError, match=r"features of shape \(2, 16\) for 3 rows"):
        Evaluation.load(path)


class Looks(Policy):
    """Remembers what features it was shown."""

    name = "looks"

    def __init__(self, wanted):
        self.wants_features = wanted
        self.seen = []

    def decide(self, obs):
        self.seen.append(obs.features)
        return Decision(0)

    def explain(self, obs, decision):
        return "local"


class Wraps(Looks):
    name = "wraps"

    def __init__(self, inner):
        super().__init__(False)
        self.inner = inner

    def decide(self, obs):
        return self.inner.decide(obs)


class Featured(EdgeDouble):
    def features(self, flow):
        return tuple(features_of((flow.x,), (0,)).mean(0).tolist())


@pytest.mark.parametrize("wrapped", [False, True])
def test_the_runtime_computes_them_only_for_a_policy_that_wants_them(wrapped):
    async def run(policy, model):
        asked = Wraps(policy) if wrapped else policy
        runtime = EdgeRuntime(model, Engine(model.options, asked), None)
        await runtime.start()
        try:
            await runtime.infer(torch.arange(8.0).view(1, 8))
        finally:
            await runtime.close()

    looks = Looks(True)
    asyncio.run(run(looks, Featured((LOCAL, EXIT))))
    assert len(looks.seen[0]) == len(NAMES)
    assert looks.seen[0][0] == pytest.approx(3.5)
    assert all(math.isfinite(value) for value in looks.seen[0])
    blind = Looks(False)
    asyncio.run(run(blind, EdgeDouble((LOCAL, EXIT))))  # this model has no `features`: they are not asked for
    assert blind.seen[0] is None
