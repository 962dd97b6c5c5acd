"""Learned codecs through deploy, fit, save, load, serve: with one made for the test, trained in a second."""

import asyncio
import shutil

import pytest
import torch
from sklearn.datasets import load_digits
from tiny_codec import register
from torch import nn

import splitedge
from splitedge import Route
from splitedge.errors import BundleError, CodecError, ConfigError
from splitedge.learning import Schedule
from splitedge.tasks import task_of


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU())
        self.out = nn.Linear(32 * 16, 10)

    def forward(self, x):
        return self.out(self.deep(self.down(self.stem(x))).flatten(1))


@pytest.fixture(autouse=True, scope="module")
def tiny():
    with pytest.MonkeyPatch.context() as patch:
        register(patch)
        register(patch, "tiny-cut", "TinyCut")
        yield


@pytest.fixture(scope="module")
def data():
    digits = load_digits()
    x = torch.tensor(digits.images / 16.0, dtype=torch.float32)[:, None]
    y = torch.tensor(digits.target)
    return (x[:1000], y[:1000]), (x[1000:1500], y[1000:1500]), (x[1500:], y[1500:])


@pytest.fixture(scope="module")
def model(data):
    torch.manual_seed(0)
    net, (x, y) = Net(), data[0]
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(5):
        for index in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[index]), y[index]).backward()
            optimiser.step()
    return net.eval()


@pytest.fixture(scope="module")
def fitted(model, data):
    train, val, _ = data
    with splitedge.deploy(model, train[0][:16], cut="down", codec="tiny", exits="stem") as deployment:
        report = deployment.fit(train, val, epochs=30, progress=False)
        yield deployment, report


def splits(deployment):
    return [o for o in deployment.options if o.route is Route.SPLIT]


def test_until_fit_a_plain_codec_stands_in_and_it_is_said(model, data):
    with splitedge.deploy(model, data[0][0][:16], cut="down", codec="tiny") as deployment:
        assert [o.codec for o in splits(deployment)] == ["int8"]
        assert any("until fit" in note and "'tiny'" in note for note in deployment.notes)
        assert "until fit" in deployment.explain(show=False)
        assert deployment(data[0][0][:1], route="split").output.shape == (1, 10)


def test_fit_puts_the_trained_codec_in_the_plan(fitted, data):
    deployment, report = fitted
    assert [(o.codec, o.level) for o in splits(deployment)] == [("tiny", 0), ("tiny", 1)]
    assert all(o.accuracy_measured for o in deployment.options)
    assert not any("until fit" in note for note in deployment.notes)
    (how,) = report.codecs
    assert (how.name, how.cut, how.epochs) == ("tiny", "down.1", 30)
    assert str(how) in str(report)
    assert report.stop_rows + report.val_rows == 500
    assert splits(deployment)[1].accuracy > 0.5  # 6 bytes tell digits apart far better than chance
    assert splits(deployment)[1].bytes_up < 120


def test_the_model_itself_is_not_changed(fitted, model, data):
    deployment, _ = fitted
    x, y = data[2]
    cloud = deployment.evaluate((x, y), "cloud", sizes=False)
    with torch.no_grad():
        right = (model(x).argmax(1) == y).float().mean().item()
    assert max(cloud.accuracy.values()) == pytest.approx(right, abs=0.05)


def test_a_table_tells_what_requests_through_the_codec_answer(fitted, data):
    deployment, _ = fitted
    x, y = data[2]
    table = deployment.evaluate((x[:6], y[:6]), "split")
    top = table.options[-1]
    for i in range(6):
        result = deployment(x[i : i + 1], route="split")
        line = table.options.index(result.option)
        assert (result.output.argmax().item() == y[i].item()) == table.correct[line][i]
        assert result.confidence == pytest.approx(table.confidence[line][i], abs=1e-6)
    assert top == "split:down.1/tiny:1"


def test_what_comes_through_the_codec_is_calibrated_on_its_own_answers(fitted):
    _, report = fitted
    lines = {s.name: s for s in report.sureness}
    assert {"whole", "exit:0", "split:down.1/tiny:0", "split:down.1/tiny:1"} <= set(lines)
    assert lines["split:down.1/tiny:1"].ece_after < 0.15


def test_a_bundle_holds_the_encoder_here_and_the_decoder_there(fitted, data, tmp_path):
    deployment, _ = fitted
    x = data[2][0][:4]
    whole = deployment(x, route="split")
    deployment.save(tmp_path / "bundle")
    names = {str(p.relative_to(tmp_path / "bundle")) for p in (tmp_path / "bundle").rglob("*.safetensors")}
    assert {"edge/encoder-2.safetensors", "cloud/decoder-2.safetensors"} <= names
    assert not {"cloud/encoder-2.safetensors", "edge/decoder-2.safetensors"} & names
    with splitedge.load(tmp_path / "bundle") as both:
        again = both(x, route="split")
        assert torch.equal(again.output, whole.output)
        assert again.confidence == pytest.approx(whole.confidence)
        assert both.evaluate(data[2], sizes=False).accuracy["split:down.1/tiny:1"] > 0.5
    edge_only, cloud_only = tmp_path / "edge", tmp_path / "cloud"
    shutil.copytree(tmp_path / "bundle", edge_only, ignore=shutil.ignore_patterns("cloud"))
    shutil.copytree(tmp_path / "bundle", cloud_only, ignore=shutil.ignore_patterns("edge"))
    from splitedge.bundle import load_cloud, load_edge

    edge, cloud = load_edge(edge_only), load_cloud(cloud_only)
    number = next(i for i, o in enumerate(edge.options) if o.route is Route.SPLIT)
    assert edge.lane(number) in cloud.lanes


@pytest.mark.parametrize("name", ["edge/encoder-2", "cloud/decoder-2"])
def test_a_changed_byte_of_a_network_is_refused(fitted, tmp_path, name):
    fitted[0].save(tmp_path / "bundle")
    path = tmp_path / "bundle" / f"{name}.safetensors"
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(BundleError, match=name):
        splitedge.load(tmp_path / "bundle")


def test_a_fitted_bundle_without_the_whole_model_can_not_be_fitted_and_says_why(model, data, tmp_path):
    train, val, _ = data
    with splitedge.deploy(
        model, train[0][:16], cut="down", codec="tiny", input_codec=None, exits="stem"
    ) as deployment:
        deployment.save(tmp_path / "fresh")
        deployment.fit(train, val, epochs=1, progress=False)
        deployment.save(tmp_path / "fitted")
    with splitedge.load(tmp_path / "fresh") as fresh:
        fresh.fit(train, val, epochs=1, progress=False)
        assert [o.codec for o in splits(fresh)] == ["tiny", "tiny"]
    with splitedge.load(tmp_path / "fitted") as done, pytest.raises(ConfigError, match="no longer holds"):
        assert done.evaluate(val, sizes=False).accuracy.keys() >= {"exit:0", "split:down.1/tiny:1"}
        done.fit(train, val, epochs=1, progress=False)


def test_both_halves_answer_over_a_socket(fitted, data, tmp_path):
    from splitedge.bundle import load_cloud
    from splitedge.cloud.server import serve
    from splitedge.cloud.settings import ServerSettings

    deployment, _ = fitted
    deployment.save(tmp_path / "bundle")
    x = data[2][0][:2]
    wanted = deployment(x, route="split").output

    async def both():
        endpoint = asyncio.get_running_loop().create_future()
        settings = ServerSettings(listen="tcp://127.0.0.1:0", http="127.0.0.1:0")
        models = [load_cloud(tmp_path / "bundle", device="cpu")]
        server = asyncio.create_task(serve(models, settings, ready=endpoint.set_result))
        try:
            address = await endpoint
            with splitedge.load(tmp_path / "bundle", "edge", cloud=address) as edge:
                await asyncio.to_thread(edge.connect)
                return await edge.infer(x, 5.0, "split")
        finally:
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)

    result = asyncio.run(both())
    assert result.route is Route.SPLIT and not result.degraded
    assert torch.allclose(result.output, wanted, atol=1e-5)


def test_a_codec_that_gives_the_cut_back_is_followed_by_the_tail(model, data):
    train, val, test = data
    with splitedge.deploy(model, train[0][:16], cut="down", codec="tiny-cut") as deployment:
        deployment.fit(train, val, epochs=30, progress=False)
        assert deployment.evaluate(test, "split", sizes=False).accuracy["split:down.1/tiny-cut:1"] > 0.5


def test_several_cuts_have_a_codec_each(model, data):
    train, val, _ = data
    with splitedge.deploy(model, train[0][:16], cut=["stem", "down"], codec="tiny:steps=2") as deployment:
        report = deployment.fit(train, val, schedule=Schedule(seed=3, progress=False))
        assert [(how.cut, how.epochs) for how in report.codecs] == [("stem.1", 2), ("down.1", 2)]


def test_auto_takes_the_narrowest_cut_that_leaves_most_of_the_model(model, data):
    with splitedge.deploy(model, data[0][0][:16], codec="tiny") as deployment:
        assert [o.cut for o in splits(deployment)] == ["down.1"]


def test_options_are_named_and_a_misspelt_one_is_refused(model, data):
    x = data[0][0][:4]
    for codec in ("tiny:step=3", ("tiny", {"step": 3})):
        with pytest.raises(ConfigError, match="Did you mean 'steps'"):
            splitedge.deploy(model, x, cut="down", codec=codec)
    with pytest.raises(ConfigError, match="name:key=value"):
        splitedge.deploy(model, x, cut="down", codec="tiny:steps")
    with pytest.raises(ConfigError, match="has no option 'bits'"):
        splitedge.deploy(model, x, cut="down", codec="int8:bits=3")
    with pytest.raises(CodecError, match="stands at a cut"):
        splitedge.deploy(model, x, cut="down", input_codec="tiny")


def test_a_schedule_and_its_fields_are_not_mixed(fitted, data):
    with pytest.raises(ConfigError, match="not both"):
        fitted[0].fit(data[0], epochs=1, schedule=Schedule())


def test_halves_that_can_not_be_captured_train_no_codec(data):
    class Odd(nn.Module):
        def forward(self, x):
            return x if x.sum() > 0 else -x

    with pytest.raises(CodecError, match="could not be captured"):
        splitedge.deploy(
            head=Odd(), tail=nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
            example_inputs=data[0][0][:4], codec="tiny",
        )  # fmt: skip


def test_a_task_holds_copies(fitted, model, data):
    from splitedge.rows import gather

    plan = fitted[0]._plan
    rows = gather(data[2], plan.inputs, "rows")
    task = task_of(plan, 2, 1, rows, rows)
    assert [len(part) for part in (task.before, task.head, task.tail)] == [1, 1, 1]
    tensors = rows.inputs
    for program in (*task.before, *task.head, *task.tail):
        tensors = program(*tensors)
    with torch.no_grad():
        assert torch.allclose(tensors[0], model(rows.inputs[0]), atol=1e-4)
    before = [p.clone() for p in plan.segments[2].parameters()]
    with torch.no_grad():
        for parameter in task.tail[0].parameters():
            parameter.add_(1)
    assert all(torch.equal(a, b) for a, b in zip(before, plan.segments[2].parameters(), strict=True))
