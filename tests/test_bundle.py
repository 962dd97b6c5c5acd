"""Saved, halved, served and loaded: a deployment on two sides of a real socket."""

import asyncio
import shutil
import threading
from contextlib import contextmanager

import pytest
import torch
from torch import nn

import splitedge
from splitedge import bundle, sealed
from splitedge.cloud.server import CloudServer
from splitedge.cloud.settings import ServerSettings
from splitedge.errors import BundleError, ConfigError, LinkError, SplitedgeError
from splitedge.events import Stage, StageKind
from splitedge.keys import new_keys, trust
from splitedge.program import Program


class Net(nn.Module):
    """Small, with a place for an exit and two cuts."""

    def __init__(self):
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU())
        self.b = nn.Sequential(nn.Conv2d(4, 8, 3, stride=2, padding=1), nn.ReLU())
        self.c = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())
        self.out = nn.Linear(8 * 4, 5)

    def forward(self, x):
        return self.out(self.c(self.b(self.a(x))).flatten(1))


@pytest.fixture(scope="module")
def x():
    return torch.rand(8, 1, 8, 8, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Net().eval()


@pytest.fixture(scope="module")
def saved(model, x, tmp_path_factory):
    directory = tmp_path_factory.mktemp("bundles") / "net"
    with splitedge.deploy(
        model, x, exits="a", local=model, cut=["a", "b"], codec="int8", input_codec="raw"
    ) as deployment:
        deployment.fit((x.repeat(20, 1, 1, 1), torch.arange(160) % 5), epochs=1, progress=False)
        deployment.save(directory)
        outputs = {route: deployment(x, route=route).output for route in ("local", "exit", "split", "cloud")}
    return directory, outputs


@pytest.fixture
def copy(saved, tmp_path):
    shutil.copytree(saved[0], tmp_path / "copy")
    return tmp_path / "copy"


@contextmanager
def server(models, **settings):
    """A real cloud server on a port of its own, on a thread."""
    loop, ready, found = asyncio.new_event_loop(), threading.Event(), {}

    async def serve():
        cloud = CloudServer(models, ServerSettings(listen="tcp://127.0.0.1:0", http="", **settings))
        await cloud.start()
        found.update(endpoint=cloud.endpoint, stop=asyncio.Event())
        ready.set()
        await found["stop"].wait()
        await cloud.stop()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert ready.wait(30)
    try:
        yield found["endpoint"]
    finally:
        loop.call_soon_threadsafe(found["stop"].set)
        thread.join(20)
        loop.close()


def test_a_loaded_bundle_answers_as_what_was_saved(saved, x):
    directory, outputs = saved
    with splitedge.load(directory) as loaded:
        for route, output in outputs.items():
            torch.testing.assert_close(loaded(x, route=route).output, output, atol=1e-6, rtol=1e-6)


def test_options_confidence_and_digest_come_through(saved, x):
    directory, _ = saved
    with splitedge.load(directory) as one, splitedge.load(directory) as two:
        assert one.options == two.options
        assert all(option.accuracy_measured for option in one.options)
        assert one.digest == two.digest == sealed.read(directory).digest
        assert one(x[:1], route="exit").confidence == two(x[:1], route="exit").confidence


def test_a_bundle_saved_again_has_the_same_digest(saved, tmp_path):
    directory, _ = saved
    with splitedge.load(directory) as loaded:
        digest = loaded.digest
        assert loaded.save(tmp_path / "again") == digest


def test_each_side_needs_its_own_half_only(saved, x, tmp_path):
    directory, outputs = saved
    edge, cloud = tmp_path / "edge", tmp_path / "cloud"
    for target, other in ((edge, "cloud"), (cloud, "edge")):
        shutil.copytree(directory, target, ignore=shutil.ignore_patterns(other))
    with (
        splitedge.load(cloud, side="cloud") as tails,
        server([tails.cloud_half]) as endpoint,
        splitedge.load(edge, side="edge", cloud=endpoint) as heads,
    ):
        heads.connect(10)
        for route, output in outputs.items():
            torch.testing.assert_close(heads(x, route=route).output, output, atol=1e-6, rtol=1e-6)
        assert heads(x[:1], route="split").timing.tail > 0
        with pytest.raises(ConfigError, match="cloud's half"):
            tails(x)
        with pytest.raises(BundleError, match="both halves"):
            heads.save(tmp_path / "no")
    for missing, side in ((edge, "cloud"), (cloud, "edge"), (edge, "both")):
        with pytest.raises(BundleError, match="missing"):
            splitedge.load(missing, side=side)


@pytest.mark.parametrize(("side", "other"), [("edge", "cloud"), ("cloud", "edge")])
def test_no_program_of_the_other_half_is_opened(saved, monkeypatch, side, other):
    opened = []
    load = Program.load.__func__
    monkeypatch.setattr(
        Program, "load", classmethod(lambda cls, stem: opened.append(str(stem)) or load(cls, stem))
    )
    splitedge.load(saved[0], side=side).close()
    assert opened
    assert not any(f"/{other}/" in stem for stem in opened)


def test_keys_on_both_sides(saved, x, tmp_path):
    directory, outputs = saved
    ours, theirs = tmp_path / "cam-keys", tmp_path / "cloud-keys"
    trust(theirs, new_keys(ours, "cam"))
    trust(ours, new_keys(theirs, "cloud"))
    with (
        server([bundle.load_cloud(directory)], keys=theirs) as endpoint,
        splitedge.load(directory, side="edge", cloud=endpoint, keys=ours) as edge,
    ):
        edge.connect(10)
        torch.testing.assert_close(edge(x, route="split").output, outputs["split"], atol=1e-6, rtol=1e-6)


def test_a_cloud_with_another_bundle_is_told_apart(saved, model, x, tmp_path):
    with splitedge.deploy(model, x, cut="b", codec="raw") as deployment:
        deployment.save(tmp_path / "other")
    with (
        server([bundle.load_cloud(tmp_path / "other")]) as endpoint,
        splitedge.load(saved[0], side="edge", cloud=endpoint) as edge,
    ):
        with pytest.raises(LinkError, match="not served here"):
            edge.connect(10)
        assert edge(x[:1], deadline=1.0).option in ("local", "exit:0")


def test_the_edge_goes_on_when_the_server_is_gone(saved, x):
    directory, outputs = saved
    with splitedge.load(directory, side="edge", cloud="tcp://127.0.0.1:9") as edge:
        result = edge(x, deadline=2.0, route="split")
        assert result.degraded
        assert result.option in ("local", "exit:0")
    with splitedge.load(directory, side="edge") as alone:
        torch.testing.assert_close(alone(x, route="local").output, outputs["local"])


@pytest.mark.parametrize("side", ["edge", "cloud", "both"])
def test_a_changed_byte_in_any_file_is_refused_with_its_name(copy, side):
    for path in sorted(p for p in copy.rglob("*") if p.is_file()):
        name = path.relative_to(copy).as_posix()
        if side != "both" and name.startswith("cloud" if side == "edge" else "edge"):
            continue
        data = path.read_bytes()
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
        with pytest.raises(BundleError, match=name):
            splitedge.load(copy, side=side)
        path.write_bytes(data)
    splitedge.load(copy, side=side).close()


def test_another_bundle_than_the_trusted_one_is_refused(saved):
    with pytest.raises(BundleError, match="was asked for"):
        splitedge.load(saved[0], digest="0" * 64)
    assert bundle.verify(saved[0]).digest == sealed.read(saved[0]).digest


@pytest.mark.parametrize(
    "change",
    [
        lambda plan: plan.update(surprise=1),
        lambda plan: plan.pop("cuts"),
        lambda plan: plan.update(cuts=[99]),
        lambda plan: plan.update(cuts="all"),
        lambda plan: plan["boundaries"].clear(),
        lambda plan: plan["boundaries"][1].update(name=plan["boundaries"][2]["name"]),
        lambda plan: plan["boundaries"][1]["specs"][0].update(shape=[2**50]),
        lambda plan: plan["options"][0].update(route="moon"),
        lambda plan: plan["options"][1].update(exit=7),
        lambda plan: plan["options"][0].update(accuracy=2.0),
        lambda plan: plan["options"][0].update(exit=0),
        lambda plan: plan["options"][0].update(cut="a"),
        lambda plan: plan["options"][1].update(cut="a"),
        lambda plan: plan["options"][-1].update(cut="nowhere"),
        lambda plan: plan["options"][-1].update(level=200),
        lambda plan: plan["codecs"][0].update(name="nothing-of-that-name"),
        lambda plan: plan["codecs"][1].update(config={}),
        lambda plan: plan["codecs"][1].update(id="int8:0000000000000000"),
        lambda plan: plan["exits"][0].update(scale={"temperature": -1}),
        lambda plan: plan["exits"][0].update(correct=[True]),
        lambda plan: plan["exits"][0].update(boundary=40),
        lambda plan: plan.update(inputs={"tree": {"kind": "tensor"}, "specs": []}),
        lambda plan: plan.update(policy="nothing-of-that-name"),
    ],
)
def test_a_plan_that_does_not_hold_together_is_refused(copy, change):
    import hashlib
    import json

    body = json.loads((copy / sealed.MANIFEST).read_text())
    change(body["plan"])
    text = json.dumps(body).encode()
    (copy / sealed.MANIFEST).write_bytes(text)
    (copy / sealed.SEAL).write_text(f"{hashlib.sha256(text).hexdigest()}  manifest.json\n")
    with pytest.raises(SplitedgeError):
        splitedge.load(copy)


def test_the_confidence_policy_of_a_loaded_bundle_has_its_thresholds(saved):
    with splitedge.load(saved[0], policy="confidence:0.8") as lax:
        assert set(lax.thresholds) == {0}
        # Random weights are right in a fifth of the cases: no threshold can show 80%.
        assert not lax.thresholds[0].ever
        assert lax.thresholds[0].reason in lax.explain(show=False)


def test_the_profile_of_every_place_to_cut_travels_with_the_bundle(saved, model):
    with splitedge.load(saved[0], side="edge") as edge:
        profile = edge.profile
        assert len(profile.cuts) > 2
        assert {cut.name for cut in profile.cuts} >= {o.cut for o in edge.options if o.cut}
        assert profile.params == sum(p.numel() for p in model.parameters())
        assert f"of {len(profile.cuts)} places" in edge.explain(show=False)


def test_both_halves_may_be_loaded_and_a_server_asked(saved, x):
    directory, outputs = saved
    with (
        server([bundle.load_cloud(directory)]) as endpoint,
        splitedge.load(directory, cloud=endpoint) as loaded,
    ):
        loaded.connect(10)
        torch.testing.assert_close(loaded(x, route="split").output, outputs["split"], atol=1e-6, rtol=1e-6)
        with pytest.raises(ConfigError, match="in this process only"):
            loaded.outage("no")


def test_the_cloud_runs_where_it_is_told_to_or_says_why_not(saved):
    half = bundle.load_cloud(saved[0], device="cpu")
    lane = half.lanes[-1]
    inputs = tuple(torch.rand(spec.shape_at(2)) for spec in half.cut_specs(lane))
    (logits,) = half.tail(lane, inputs)
    (again,) = bundle.load_cloud(saved[0]).tail(lane, inputs)
    assert logits.device.type == again.device.type == "cpu"
    assert torch.allclose(logits, again, atol=1e-4)
    with pytest.raises(ConfigError, match="device 'gpu'"):
        bundle.load_cloud(saved[0], device="gpu")


def test_joules_are_modelled_by_the_profile_asked_for(model, x):
    with splitedge.deploy(model, x, local=model, cut="a", codec="raw", power="phone-lte") as deployment:
        assert deployment(x[:1], route="local").energy_j > 0.0
        assert deployment(x[:1], route="split").energy_j > 0.0


def test_the_edge_runs_where_it_is_told_to_or_says_why_not(saved, x):
    directory, outputs = saved
    with splitedge.load(directory, device="cpu") as there, splitedge.load(directory, device="auto") as found:
        for route, output in outputs.items():
            assert torch.allclose(there(x, route=route).output, output, atol=1e-4)
            assert found(x, route=route).output.device.type == "cpu"
    with pytest.raises(ConfigError, match="device 'gpu'"):
        bundle.load_edge(directory, device="gpu")
    with splitedge.load(directory, device="gpu") as nowhere, pytest.raises(ConfigError, match="device 'gpu'"):
        nowhere(x)


def test_another_device_gets_weights_of_its_own(saved):
    """No GPU is needed to see where weights are: `meta` has none, and the plan keeps its own."""
    plan, found = bundle.load_plan(saved[0], "both")
    edge, _ = (half(found.digest, torch.device("meta")) for half in (plan.edge, plan.cloud))
    assert {w.device.type for segment in plan.segments.values() for w in segment.parameters()} == {"cpu"}
    inputs = torch.rand(2, 1, 8, 8)
    flow = edge.open(inputs)
    with pytest.raises(NotImplementedError, match="meta"):  # computed there, and nothing to bring back
        edge.run(flow, Stage(StageKind.LOCAL))
    payload = edge.run(flow, Stage(StageKind.ENCODE, _input_option(plan))).payload
    assert payload is not None  # what is sent as it came never leaves the CPU


def _input_option(plan):
    return next(i for i, option in enumerate(plan.options) if option.route.value == "cloud")


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
def test_a_gpu_gives_the_cpus_answers_and_is_left_out_of_what_is_saved(saved, x, tmp_path):
    directory, outputs = saved
    with splitedge.load(directory, device="cuda") as deployment:
        for route, output in outputs.items():
            result = deployment(x, route=route)
            assert result.output.device.type == "cpu"
            assert torch.allclose(result.output, output, atol=1e-2)
        assert deployment.save(tmp_path / "again") == bundle.verify(directory).digest
