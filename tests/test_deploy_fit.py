"""Fitting: exits learn, confidences become honest, options are measured, no row serves two ends."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import splitedge
from splitedge import Evaluation, Route
from splitedge.errors import ConfigError, RecordError


class Net(nn.Module):
    """A small CNN with two places for exits."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())
        self.c = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU())
        self.out = nn.Linear(32 * 16, 10)

    def forward(self, x):
        return self.out(self.c(self.b(self.a(x))).flatten(1))


@pytest.fixture(scope="module")
def data():
    digits = load_digits()
    x = torch.tensor(digits.images / 16.0, dtype=torch.float32)[:, None]
    y = torch.tensor(digits.target)
    return (x[:1100], y[:1100]), (x[1100:], y[1100:])


@pytest.fixture(scope="module")
def model(data):
    (x, y), _ = data
    torch.manual_seed(0)
    net = Net()
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(4):
        for index in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(net(x[index]), y[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


@pytest.fixture(scope="module")
def fitted(model, data):
    train, val = data
    with splitedge.deploy(
        model, train[0][:16], exits=["b", "a"], local=model, cut=["a", "b"], codec="int4"
    ) as deployment:
        before = {o.name: o for o in deployment.options}
        report = deployment.fit(train, val, epochs=12, progress=False)
        yield deployment, report, before


def test_exits_learn_and_deeper_ones_stand_later(fitted):
    _, report, _ = fitted
    by_name = {s.name: s for s in report.sureness}
    assert by_name["exit:0"].path == "a"
    assert by_name["exit:1"].path == "b"
    assert by_name["exit:1"].accuracy > 0.75
    assert by_name["exit:1"].training.epochs >= 1
    assert by_name["whole"].accuracy > 0.85
    assert set(by_name) == {"exit:0", "exit:1", "local", "whole"}


def test_calibration_errors_are_reported_before_and_after_on_rows_of_their_own(fitted):
    _, report, _ = fitted
    assert report.val_rows == 697
    for s in report.sureness:
        assert s.rows == 349
        assert 0 <= s.ece_before <= 1
        assert s.ece_after < 0.08
    assert not report.split
    text = str(report)
    assert "ECE before -> after" in text
    assert "exit:1 b" in text


def test_every_option_has_a_measured_accuracy(fitted, model, data):
    deployment, report, before = fitted
    _, (x, y) = data
    with torch.inference_mode():
        whole = float((model(x).argmax(1) == y).float().mean())
    after = {o.name: o for o in deployment.options}
    assert set(after) == set(before)
    assert not any(o.accuracy_measured for o in before.values())
    assert all(o.accuracy_measured for o in after.values())
    assert after["local"].accuracy == pytest.approx(whole)
    assert report.evaluation.accuracy == {name: o.accuracy for name, o in after.items()}
    for option in after.values():
        if option.route is Route.SPLIT:
            assert option.accuracy == pytest.approx(whole, abs=0.1)


def test_a_table_of_every_row_can_be_exported(fitted, data, tmp_path):
    deployment, _, _ = fitted
    x, y = data[1]
    found = deployment.evaluate((x[:70], y[:70]))
    assert found.correct.shape == found.confidence.shape == found.nbytes.shape == (len(found.options), 70)
    assert found.options == tuple(o.name for o in deployment.options)
    here = [i for i, name in enumerate(found.options) if name.startswith(("local", "exit"))]
    assert (found.nbytes[here] == 0).all()
    away = [i for i in range(len(found.options)) if i not in here]
    assert (found.nbytes[away] > 50).all()
    found.save(tmp_path / "e.npz")
    again = Evaluation.load(tmp_path / "e.npz")
    assert again.options == found.options
    assert np.array_equal(again.correct, found.correct)
    assert np.array_equal(again.confidence, found.confidence)
    assert np.array_equal(again.labels, y[:70].numpy())
    assert "70 rows" in str(found)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 nothing", b"x" * 500])
def test_a_file_that_is_no_table_is_refused(tmp_path, data):
    (tmp_path / "e.npz").write_bytes(data)
    with pytest.raises(RecordError):
        Evaluation.load(tmp_path / "e.npz")
    with pytest.raises(RecordError):
        Evaluation.load(tmp_path / "none.npz")


def test_a_loaded_bundle_can_be_fitted_again(fitted, data, tmp_path):
    deployment, _, _ = fitted
    deployment.save(tmp_path / "b")
    train, val = data
    with splitedge.load(tmp_path / "b") as loaded:
        digest = loaded.digest
        report = loaded.fit(train, val, epochs=1, seed=9, progress=False)
        assert {s.name for s in report.sureness} == {"exit:0", "exit:1", "local", "whole"}
        assert loaded.digest != digest
        assert loaded(val[0][:2], route="split").output.shape == (2, 10)


def test_a_table_says_what_requests_then_do(fitted, data):
    deployment, _, _ = fitted
    x, y = data[1]
    found = deployment.evaluate((x[:30], y[:30]), route="exit")
    assert found.options == ("exit:0", "exit:1")
    for i in range(0, 30, 7):
        result = deployment(x[i : i + 1], route="exit")
        row = found.options.index(result.option)
        assert result.confidence == pytest.approx(found.confidence[row, i], abs=1e-6)
        assert bool(result.output.argmax(1) == y[i]) == found.correct[row, i]


def test_bytes_of_a_table_are_those_of_single_rows_not_of_a_batch(fitted, data):
    deployment, _, _ = fitted
    x, y = data[1]
    many = deployment.evaluate((x[:8], y[:8]), route="split").nbytes
    one = deployment.evaluate((x[3:4], y[3:4]), route="split").nbytes
    assert np.array_equal(many[:, 3:4], one)


def test_batches_and_arrays_and_pairs_are_all_data(fitted, data):
    deployment, _, _ = fitted
    x, y = data[1][0][:40], data[1][1][:40]
    expected = deployment.evaluate((x, y), sizes=False).accuracy
    assert deployment.evaluate([(x[:15], y[:15]), (x[15:], y[15:])], sizes=False).accuracy == expected
    assert deployment.evaluate((x.numpy(), y.numpy()), sizes=False).accuracy == expected
    loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=16)
    assert deployment.evaluate(loader, sizes=False).accuracy == expected


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        ((torch.zeros(5, 1, 8, 8), torch.zeros(4, dtype=torch.long)), "5 rows of inputs and 4 labels"),
        ((torch.zeros(5, 1, 8, 8), torch.zeros(5)), "class numbers"),
        ((torch.zeros(5, 3, 8, 8), torch.zeros(5, dtype=torch.long)), "do not fit the model"),
        ([], "no rows"),
        ([torch.zeros(5, 1, 8, 8)], "give \\(x, y\\)"),
    ],
)
def test_data_that_do_not_fit_are_refused(fitted, bad, says):
    with pytest.raises(ConfigError, match=says):
        fitted[0].evaluate(bad)


def test_one_half_of_the_validation_rows_calibrates_and_the_other_reports(fitted):
    """The evidence for thresholds is as long as the reporting half, and agrees with the report."""
    deployment, report, _ = fitted
    exits = deployment._plan.exits
    by_name = {s.name: s for s in report.sureness}
    for number, head in enumerate(exits):
        assert len(head.evidence.correct) == 349
        assert head.scale.rows == 697 - 349
        assert np.mean(head.evidence.correct) == pytest.approx(by_name[f"exit:{number}"].accuracy)


def test_the_confidence_policy_keeps_its_promise_on_rows_it_has_not_seen(model, data):
    (x, y), (vx, vy) = data
    with splitedge.deploy(
        model, x[:16], exits="b", cut="b", codec="raw", policy="confidence:0.9"
    ) as deployment:
        assert deployment.thresholds == {}
        report = deployment.fit((x, y), (vx[:500], vy[:500]), epochs=12, progress=False)
        assert report.evaluation.correct.shape[1] == 500
        threshold = deployment.thresholds[0]
        assert threshold.ever
        assert threshold.lower >= 0.9
        assert threshold.reason in deployment.explain(show=False)
        right = total = 0
        for i in range(500, 560):
            result = deployment(vx[i : i + 1])
            if result.route is Route.EXIT:
                assert result.confidence >= threshold.value
                total += 1
                right += int(result.output.argmax(1) == vy[i])
            else:
                assert result.route is Route.SPLIT or result.route is Route.CLOUD
        assert total > 10
        assert right / total > 0.8


def test_without_validation_rows_some_training_rows_are_held_out(model, data):
    train, _ = data
    with splitedge.deploy(model, train[0][:8], exits="b", cut="b", codec="int8") as deployment:
        report = deployment.fit(train, epochs=2, progress=False)
        assert report.split
        assert report.train_rows + report.val_rows == len(train[0])
        assert "held out" in str(report)


def test_the_same_seed_gives_the_same_weights(model, data):
    train, val = data
    outputs = []
    for _ in range(2):
        with splitedge.deploy(
            model, train[0][:8], exits="b", cut="b", codec="int8", input_codec="raw"
        ) as deployment:
            deployment.fit(train, val, epochs=2, seed=3, progress=False)
            outputs.append(deployment(val[0][:5], route="exit").output)
    assert torch.equal(*outputs)


def test_the_model_and_the_global_generator_are_not_changed(data):
    train, val = data
    torch.manual_seed(5)
    model = Net().train()
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.random.get_rng_state()
    with splitedge.deploy(model, train[0][:8], exits="b", cut="b") as deployment:
        deployment.fit(train, val, epochs=1, progress=False)
    assert all(torch.equal(weights[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training
    assert torch.equal(state, torch.random.get_rng_state())
