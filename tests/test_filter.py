"""Filters: where nothing is there, or an exit is right, nothing is sent; the recall asked for is held."""

import asyncio
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import beta
from tiny_codec import register
from torch import nn

import splitedge
from splitedge import Filter, Route, sealed
from splitedge.errors import BundleError, ConfigError
from splitedge.roc import operating_point


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(1, 8, 3, 2, 1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(8, 16, 3, 1, 1), nn.ReLU())
        self.out = nn.Linear(256, 4)

    def forward(self, x):
        return self.out(self.b(self.a(x)).flatten(1))


def rows(count, seed):
    """Noise, and in two rows of five a bright bar at one of three heights: class 0 is nothing."""
    g = torch.Generator().manual_seed(seed)
    y = torch.where(torch.rand(count, generator=g) < 0.6, 0, torch.randint(1, 4, (count,), generator=g))
    x = 1.1 * torch.randn(count, 1, 8, 8, generator=g)
    for i, c in enumerate(y.tolist()):
        if c:
            x[i, 0, 2 * c - 2 : 2 * c + 2, 2:6] += 1.0
    return x, y


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net, (x, y) = Net(), rows(2000, 1)
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(4):
        for index in torch.randperm(len(x)).split(64):
            optimiser.zero_grad()
            nn.functional.cross_entropy(net(x[index]), y[index]).backward()
            optimiser.step()
    return net.eval()


def deployed(model, **wanted):
    wanted = {"cut": "a", "codec": "int8", "input_codec": None, "policy": "static:split", **wanted}
    return splitedge.deploy(model, rows(8, 0)[0], **wanted)


def fitted(deployment, wanted, **schedule):
    schedule = {"epochs": 1, "progress": False, **schedule}
    return deployment.fit(rows(2000, 1), rows(1600, 2), filter=wanted, **schedule)


@pytest.fixture(scope="module")
def nothing(model):
    with deployed(model) as deployment:
        yield deployment, fitted(deployment, Filter(nothing=0))


@pytest.fixture(scope="module")
def judging(model):
    with deployed(model, exits="a") as deployment:
        yield deployment, fitted(deployment, Filter(0.9))


def test_nothing_is_sent_where_nothing_is_there(nothing):
    deployment, _ = nothing
    x, y = rows(80, 3)
    table = deployment.evaluate((x, y))
    assert table.options == ("split:a.1/int8:0",)
    results = [deployment(x[i : i + 1]) for i in range(len(x))]
    kept = np.array([r.reason.startswith("filtered: nothing is there (class 0)") for r in results])
    assert 30 < kept.sum() < 60
    assert np.array_equal(kept, table.nbytes[0] == 0)
    for i, result in enumerate(results):
        assert bool(result.output.argmax() == y[i]) == table.correct[0, i]
        assert result.confidence == pytest.approx(table.confidence[0, i], abs=1e-5)
        assert (result.bytes_up == result.record.attempts == 0) == kept[i]
        assert result.route is (Route.EXIT if kept[i] else Route.SPLIT)
        if kept[i]:
            assert (result.option, result.level, result.degraded) == ("nothing", -1, False)
            assert float(result.output.softmax(1)[0, 0]) == pytest.approx(result.confidence, abs=1e-5)


def test_the_recall_holds_on_fresh_rows_and_the_report_says_how_sure_it_is(nothing):
    deployment, report = nothing
    (point,) = report.filter.points.values()
    assert point.recall >= point.lower >= 0.95
    assert point.rows == 800 and point.precision > 0.9
    x, y = rows(4000, 5)
    sent = deployment.evaluate((x, y), sizes=False).nbytes[0] != 0
    assert sent[(y != 0).numpy()].mean() >= 0.95
    assert (~sent).mean() == pytest.approx(point.filtered, abs=0.05)
    assert point.why in str(report) and f"surely {point.lower:.1%}" in point.why
    assert any("not sent where its filter" in note for note in deployment.notes)


def test_a_request_of_several_rows_is_kept_back_only_whole(nothing):
    deployment, _ = nothing
    x, y = rows(60, 6)
    sent = deployment.evaluate((x, y), sizes=False).nbytes[0] != 0
    quiet, busy = torch.from_numpy(np.flatnonzero(~sent)[:3]), torch.from_numpy(np.flatnonzero(sent)[:1])
    together = deployment(x[quiet])
    assert together.bytes_up == 0 and together.output.shape == (3, 4)
    assert deployment(x[torch.cat([quiet, busy])]).bytes_up > 0
    assert deployment(x[quiet], route="split").bytes_up > 0  # forced: the caller wants the cloud's answer


def test_an_exit_that_is_right_is_kept_and_nothing_is_sent(judging):
    deployment, report = judging
    (point,) = report.filter.points.values()
    assert point.lower >= 0.9 and point.filtered > 0.2
    x, y = rows(2000, 7)
    table = deployment.evaluate((x, y), sizes=False)
    exit_, split = (table.options.index(name) for name in ("exit:0", "split:a.1/int8:0"))
    sent = table.nbytes[split] != 0
    assert sent[~table.correct[exit_]].mean() >= 0.9
    assert np.array_equal(table.correct[split][~sent], table.correct[exit_][~sent])
    result = deployment(x[(i := int(np.argmin(sent))) : i + 1])
    assert (result.route, result.option, result.bytes_up) == (Route.EXIT, "exit:0", 0)
    assert result.reason.startswith("filtered: exit 0 is right")
    assert torch.equal(result.output, deployment(x[i : i + 1], route="exit").output)


def test_both_halves_of_a_bundle_do_it_over_a_socket(nothing, tmp_path):
    from splitedge.bundle import load_cloud
    from splitedge.cloud.server import serve
    from splitedge.cloud.settings import ServerSettings

    deployment, _ = nothing
    deployment.save(tmp_path / "bundle")
    names = {p.name for p in (tmp_path / "bundle" / "edge").iterdir()}
    assert {"filter-1.json", "filter-1.safetensors"} <= names
    x = rows(12, 8)[0]
    wanted = [deployment(x[i : i + 1]) for i in range(12)]

    async def both():
        endpoint = asyncio.get_running_loop().create_future()
        settings = ServerSettings(listen="tcp://127.0.0.1:0", http="127.0.0.1:0")
        models = [load_cloud(tmp_path / "bundle", device="cpu")]
        server = asyncio.create_task(serve(models, settings, ready=endpoint.set_result))
        try:
            with splitedge.load(tmp_path / "bundle", "edge", cloud=await endpoint) as edge:
                await asyncio.to_thread(edge.connect)
                return [await edge.infer(x[i : i + 1], 5.0) for i in range(12)]
        finally:
            server.cancel()
            await asyncio.gather(server, return_exceptions=True)

    found = asyncio.run(both())
    assert [r.route for r in found] == [r.route for r in wanted]
    assert {r.route for r in found} == {Route.EXIT, Route.SPLIT}
    assert all((r.bytes_up == 0) == (r.route is Route.EXIT) for r in found)
    assert all(torch.allclose(a.output, b.output, atol=1e-4) for a, b in zip(found, wanted, strict=True))


def reseal(bundle, change):
    """Change a bundle's option table and seal it again."""
    body = json.loads((bundle / sealed.MANIFEST).read_text())
    for option in body["plan"]["options"]:
        change(option)
    text = json.dumps(body).encode()
    (bundle / sealed.MANIFEST).write_bytes(text)
    (bundle / sealed.SEAL).write_text(f"{sealed.hashlib.sha256(text).hexdigest()}  manifest.json\n")


def test_bundles_from_before_filters_load_and_send_everything(model, tmp_path):
    with deployed(model) as deployment:
        deployment.save(tmp_path / "old")
    reseal(tmp_path / "old", lambda option: option.pop("gate"))
    with splitedge.load(tmp_path / "old") as old:
        assert all(old(x).bytes_up > 0 for x in rows(5, 9)[0][:, None])


@pytest.mark.parametrize(
    "gate", [{"exit": 3, "nothing": None}, {"nothing": 4}, {"exit": 0}, {"threshold": 2}]
)
def test_gates_that_name_what_is_not_there_are_refused(judging, tmp_path, gate):
    judging[0].save(tmp_path / "bundle")
    plain = {"threshold": 0.9, "nothing": 1, "exit": None}
    reseal(
        tmp_path / "bundle",
        lambda option: option.update(gate=plain | gate if option["route"] == "split" else None),
    )
    with pytest.raises(BundleError, match=r"manifest\.json"):
        splitedge.load(tmp_path / "bundle")


def test_a_learned_codec_is_judged_by_its_latent_at_every_level(model, monkeypatch):
    register(monkeypatch)
    with deployed(model, cut="b", codec="tiny", exits="a") as deployment:
        report = fitted(deployment, Filter(nothing=0), epochs=10)
        x, y = rows(1000, 10)
        table = deployment.evaluate((x, y), sizes=False)
        names = ["split:b.1/tiny:0", "split:b.1/tiny:1"]
        assert list(report.filter.points) == names
        for name in names:
            kept = table.nbytes[table.options.index(name)] == 0
            assert kept.mean() > 0.2
            assert kept.mean() == pytest.approx(report.filter.points[name].filtered, abs=0.08)
            assert 1 - kept[(y != 0).numpy()].mean() >= 0.93


def test_an_exit_is_judged_where_the_encoder_replaces_the_head(model, monkeypatch):
    register(monkeypatch)
    with deployed(model, cut="b", codec="tiny", exits="a") as deployment:
        fitted(deployment, Filter(0.8), epochs=2)
        gates = {o.name: o.gate for o in deployment.options}
        assert gates["split:b.1/tiny:1"].exit == 0
        x = rows(20, 11)[0]
        results = [deployment(x[i : i + 1]) for i in range(20)]
        kept = [r for r in results if not r.bytes_up]
        assert 0 < len(kept) < 20 and {r.option for r in kept} == {"exit:0"}
        fitted(deployment, None)
        assert not any(option.gate for option in deployment.options)


def test_a_recall_that_can_not_be_shown_is_said_and_nothing_is_kept_back(model):
    with deployed(model) as deployment:
        report = deployment.fit(
            rows(400, 1), rows(200, 2), filter=Filter(0.95, nothing=0), epochs=1, progress=False
        )
        assert "sends everything" in str(report) and "at least 59 are needed" in str(report)
        assert not any(option.gate for option in deployment.options)
        assert all(deployment(x).bytes_up > 0 for x in rows(10, 3)[0][:, None])


def test_what_can_not_be_is_refused_before_anything_is_trained(model):
    with deployed(model) as bare, deployed(model, exits="b") as behind:
        for deployment, wanted, says in (
            (bare, Filter(), "something to answer by"),
            (bare, Filter(nothing=4), "classes 0 to 3"),
            (behind, Filter(), "stands behind the cut"),
        ):
            with pytest.raises(ConfigError, match=says):
                fitted(deployment, wanted)
        x, y = rows(200, 1)
        with pytest.raises(
            ConfigError, match=r"0 of 200 training rows are of class 0|0 of \d+ training rows"
        ):
            bare.fit((x, y.clamp(min=1)), rows(100, 2), filter=Filter(nothing=0), progress=False)
    for bad in ({"recall": 1.0}, {"recall": 0.0}, {"nothing": -1}):
        with pytest.raises(ConfigError):
            Filter(**bad)


def test_the_curve_is_drawn_with_its_point(nothing, tmp_path):
    nothing[1].filter.plot(tmp_path / "roc.png")
    assert (tmp_path / "roc.png").read_bytes().startswith(b"\x89PNG")


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_a_threshold_never_loses_more_than_its_bound_allows(data):
    count = data.draw(st.integers(1, 300))
    ties = st.sampled_from([0.0, 0.3, 0.6, 0.9, 1.0]) | st.floats(0, 1)
    spare = np.array(data.draw(st.lists(ties, min_size=count, max_size=count)))
    needed = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    point = operating_point(spare, needed, data.draw(st.sampled_from([0.5, 0.8, 0.95])))
    kept = spare >= point.threshold
    assert kept.any() == point.ever and kept.mean() == point.filtered
    if point.ever:
        missed, n = int(kept[needed].sum()), int(needed.sum())
        assert point.recall == pytest.approx(1 - missed / n)
        assert point.lower <= beta.ppf(0.05, n - missed, missed + 1) + 1e-9
        assert spare[kept].min() > 0.5
    assert np.all(np.diff(point.curve.needless) >= 0) and np.all(np.diff(point.curve.needed) >= 0)


def test_the_recall_is_missed_as_seldom_as_stated():
    """Needed rows have uniform confidences, so a threshold's true recall is the threshold itself."""
    rng = np.random.default_rng(0)
    missed = ever = 0
    for _ in range(300):
        needed = np.arange(600) < 300
        spare = np.where(needed, rng.random(600), 1 - rng.random(600) / 50)
        point = operating_point(spare, needed, 0.9)
        ever += point.ever
        missed += point.threshold < 0.9
    assert ever == 300
    assert missed / 300 < 0.09  # 5% stated; three standard errors over it
