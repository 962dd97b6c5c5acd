"""Several tails on one cut: one payload, one reply, an answer of each; behind a learned codec they learn."""

import asyncio
import subprocess
import sys
from pathlib import Path

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
        (tail,) = report.tails
        assert (tail.name, tail.epochs) == (
            "parity",
            0,
        ) and tail.before == tail.after  # nothing there to teach


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


# Behind a learned codec --------------------------------------------------------------------------------


def rows():
    """Which quarter is bright (the main task), whether it is in the lower half, and how bright it is."""
    generator = torch.Generator().manual_seed(1)
    quarter, bright = torch.arange(320) % 4, torch.rand(320, generator=generator)
    images = torch.rand(320, 1, 8, 8, generator=generator) * 0.2
    for i, k in enumerate(quarter.tolist()):
        images[i, 0, 4 * (k // 2) : 4 * (k // 2) + 4, 4 * (k % 2) : 4 * (k % 2) + 4] += 0.3 + 0.5 * bright[i]
    return images, quarter, bright


def tail(outputs):
    return nn.Sequential(
        nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(32, outputs)
    )


CODEC = "bottleneck:bits=4,channels=1,width=8,blocks=0,decoder_blocks=0"


@pytest.fixture(scope="module")
def three_tasks():
    """A head with a tail for each task, trained together, and a fitted deployment of them."""
    torch.manual_seed(0)
    images, quarter, bright = rows()
    head = nn.Sequential(nn.Conv2d(1, 8, 3, 1, 1), nn.ReLU())
    tails = nn.ModuleDict({"quarter": tail(4), "bright": tail(1), "lower": tail(2)})
    optimiser = torch.optim.Adam([*head.parameters(), *tails.parameters()], 1e-2)
    for _ in range(60):
        optimiser.zero_grad()
        cut = head(images)
        loss = nn.functional.cross_entropy(tails["quarter"](cut), quarter)
        loss += nn.functional.cross_entropy(tails["lower"](cut), quarter // 2)
        loss += 10 * nn.functional.mse_loss(tails["bright"](cut)[:, 0], bright)
        loss.backward()
        optimiser.step()
    model = nn.Sequential(head, tails["quarter"]).eval()
    others = {"bright": tails["bright"].eval(), "lower": tails["lower"].eval()}
    train, val = (images[:200], quarter[:200]), (images[200:], quarter[200:])
    with splitedge.deploy(
        model, images[:4], cut="0", tails=others, codec=CODEC, policy="static:split"
    ) as deployment:
        labels = {"lower": (images, quarter // 2)}
        report = deployment.fit(train, val, epochs=12, progress=False, tail_data=labels)
        yield model, others, deployment, report, train, val


def test_every_tail_learns_from_the_payloads_of_the_main_task(three_tasks):
    *_, report, _, val = three_tasks
    bright, lower = report.tails
    assert bright.before[0].distortion > 3 * bright.after[0].distortion  # taught by its original alone
    assert lower.after[0].accuracy > 0.9 and lower.after[0].agreement > 0.9
    assert bright.rows == len(val[0]) - report.stop_rows and lower.epochs > 0
    assert str(bright) in str(report)


def test_a_tail_learns_from_every_level(three_tasks):
    model, others, *_, train, val = three_tasks
    codec = "slimmable:channels=2,levels=2,width=8,blocks=0,decoder_blocks=0"
    with splitedge.deploy(model, train[0][:4], cut="0", tails=others, codec=codec) as deployment:
        bright, lower = deployment.fit(train, val, epochs=8, progress=False).tails
    assert len(bright.levels) == 2 and lower.epochs > 0
    assert all(a.distortion < b.distortion for a, b in zip(bright.after, bright.before, strict=True))


def test_what_is_sent_is_what_the_main_task_alone_would_send(three_tasks):
    model, _, deployment, report, train, val = three_tasks
    x = val[0][:3]
    with splitedge.deploy(model, train[0][:4], cut="0", codec=CODEC, policy="static:split") as alone:
        assert (
            alone.fit(train, val, epochs=12, progress=False).codecs[0].val_bytes == report.codecs[0].val_bytes
        )
        wanted, result = alone(x), deployment(x)
    assert torch.allclose(result.output["main"], wanted.output, atol=1e-4)
    assert result.output.keys() == {"main", "bright", "lower"} and result.bytes_up == wanted.bytes_up


def test_a_bundle_holds_what_was_learned_and_answers_over_a_socket(three_tasks, tmp_path):
    from splitedge.bundle import load_cloud
    from splitedge.cloud.server import serve
    from splitedge.cloud.settings import ServerSettings

    _, _, deployment, _, _, (x, _) = three_tasks
    wanted = deployment(x[:2]).output
    deployment.save(tmp_path / "bundle")
    edge_files = {path.stem for path in (tmp_path / "bundle" / "edge").iterdir()}
    assert edge_files == {"codecs", "encoder-1"}

    async def both():
        endpoint = asyncio.get_running_loop().create_future()
        settings = ServerSettings(listen="tcp://127.0.0.1:0", http="127.0.0.1:0")
        models = [load_cloud(tmp_path / "bundle", device="cpu")]
        server = asyncio.create_task(serve(models, settings, ready=endpoint.set_result))
        try:
            address = await endpoint
            with splitedge.load(tmp_path / "bundle", "edge", cloud=address) as edge:
                await asyncio.to_thread(edge.connect)
                return await edge.infer(x[:2], 5.0, "split")
        finally:
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)

    found = asyncio.run(both())
    assert not found.degraded and found.output.keys() == wanted.keys()
    assert all(torch.allclose(found.output[name], wanted[name], atol=1e-5) for name in wanted)


@pytest.mark.parametrize(
    ("tail_data", "told"),
    [
        ({"whole": torch.zeros(40)}, "extra tails are: bright, lower"),
        ({"bright": torch.zeros(40)}, "logits of two or more"),
        ({"lower": torch.full((40,), 2.0)}, "between 0 and 1"),
    ],
)
def test_labels_that_do_not_fit_are_refused(three_tasks, tail_data, told):
    model, others, *_, train, val = three_tasks
    given = {name: (train[0][:40], labels.long()) for name, labels in tail_data.items()}
    deployment = splitedge.deploy(model, train[0][:4], cut="0", tails=others, codec=CODEC)
    with deployment, pytest.raises(ConfigError, match=told):
        deployment.fit(train, val, tail_data=given, progress=False)


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_example_runs():
    example = Path(__file__).parents[1] / "examples" / "three_tasks.py"
    done = subprocess.run(
        [sys.executable, example, "--epochs", "2"], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "tail 'ink'" in done.stdout and "bytes sent" in done.stdout
