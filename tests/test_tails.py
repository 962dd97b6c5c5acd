"""Several tails on one cut: one payload, one reply, an answer of each."""

import pytest
import torch
from sklearn.datasets import load_digits
from tiny_codec import register
from torch import nn

import splitedge
from splitedge import Route
from splitedge.errors import ConfigError, PartitionError


def net():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU()), nn.Flatten(), nn.Linear(128, 10)
    ).eval()


def parity():
    torch.manual_seed(1)
    return nn.Sequential(nn.Flatten(), nn.Linear(128, 2)).eval()


@pytest.fixture(scope="module")
def data():
    digits = load_digits()
    return torch.tensor(digits.images / 16.0, dtype=torch.float32)[:, None], torch.tensor(digits.target)


def test_one_payload_is_answered_by_every_tail(data, tmp_path):
    x, model, other = data[0][:5], net(), parity()
    with splitedge.deploy(model, x, cut="0", tails={"parity": other}, codec="raw", exits="0") as deployment:
        deployment.save(tmp_path / "bundle")
        result = deployment(x, route="split")
        assert deployment(x, route="exit").output.keys() == {"main"}
    with torch.no_grad():
        assert torch.allclose(result.output["main"], model(x), atol=1e-5)
        assert torch.allclose(result.output["parity"], other(model[0](x)), atol=1e-5)
    with splitedge.load(tmp_path / "bundle") as loaded:
        again = loaded(x, route="split")
        assert torch.equal(again.output["parity"], result.output["parity"])
        assert again.confidence == pytest.approx(result.confidence)


def test_fit_is_about_the_main_task_and_the_codec_carries_all(data, monkeypatch):
    register(monkeypatch, "tiny-cut", "TinyCut")
    x, y = data
    with splitedge.deploy(net(), x[:8], cut="0", tails={"parity": parity()}, codec="tiny-cut") as deployment:
        report = deployment.fit((x[:1000], y[:1000]), (x[1000:], y[1000:]), epochs=3, progress=False)
        assert "whole" in {s.name for s in report.sureness}
        result = deployment(x[:3], route="split")
        assert result.route is Route.SPLIT and result.option.startswith("split:0.1/tiny-cut")
        assert {k: tuple(v.shape) for k, v in result.output.items()} == {"main": (3, 10), "parity": (3, 2)}


def test_a_head_by_hand_takes_tails(data):
    x, model = data[0][:4], net()
    head, tail = model[0], model[1:]
    with splitedge.deploy(
        head=head, tails={"digit": tail, "parity": parity()}, example_inputs=x, codec="raw"
    ) as deployment:
        assert list(deployment(x, route="split").output) == ["digit", "parity"]
    with splitedge.deploy(
        head=head, tail=tail, tails={"parity": parity()}, example_inputs=x, codec="raw"
    ) as deployment:
        assert list(deployment(x, route="split").output) == ["main", "parity"]


@pytest.mark.parametrize(
    ("more", "kind", "told"),
    [
        ({"tails": {}}, ConfigError, "names one module or more"),
        ({"tails": {"main": nn.Flatten()}}, ConfigError, "name the tail otherwise"),
        ({"tails": {"a": nn.Flatten()}, "cut": "auto"}, ConfigError, "name it"),
        ({"tails": {"a": nn.Flatten()}, "cut": "0.0", "exits": "0"}, ConfigError, "exits stand before"),
        ({"tails": {"a": nn.Linear(3, 3)}}, PartitionError, "tails=a"),
    ],
)
def test_tails_that_do_not_fit_are_refused(data, more, kind, told):
    with pytest.raises(kind, match=told):
        splitedge.deploy(net(), data[0][:4], **{"cut": "0", "codec": "raw", **more})
