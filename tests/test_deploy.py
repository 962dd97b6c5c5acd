"""The whole path in one process: a small CNN on real digits, cut, coded, answered, and why."""

import asyncio
import os
import threading
import time
import warnings
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn

import splitedge
from splitedge import Route
from splitedge.errors import (
    CloudUnavailable,
    CodecError,
    ConfigError,
    DeadlineExceeded,
    PartitionError,
    PolicyError,
    RequestError,
    UnknownName,
)
from splitedge.segments import CloudSegments
from splitedge.settings import EngineSettings


class Net(nn.Module):
    """Under 20,000 weights; 8 x 8 images of digits."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU())
        self.down = nn.Sequential(nn.Conv2d(8, 8, 3, stride=2, padding=1), nn.ReLU())
        self.deep = nn.Sequential(nn.Conv2d(8, 32, 3, padding=1), nn.ReLU())
        self.out = nn.Linear(32 * 16, 10)

    def forward(self, x):
        return self.out(self.deep(self.down(self.stem(x))).flatten(1))


def digits():
    data = load_digits()
    return torch.tensor(data.images / 16.0, dtype=torch.float32)[:, None], torch.tensor(data.target)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    net, (x, y) = Net(), digits()
    optimiser = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(4):
        for index in torch.randperm(1200).split(64):
            loss = nn.functional.cross_entropy(net(x[index]), y[index])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
    return net.eval()


@pytest.fixture(scope="module")
def x():
    return digits()[0][1200:]


@pytest.fixture(scope="module")
def raw(model, x):
    """Raw codecs, two cuts, an exit and a local model: every route there is."""
    with splitedge.deploy(
        model, x[:8], exits="stem", local=model, codec="raw", input_codec="raw", cut=["stem", "down"]
    ) as deployment:
        yield deployment


def slow(deployment, monkeypatch, seconds):
    """Make the cloud's tail take so long."""
    tail = CloudSegments.tail

    def tired(self, lane, tensors):
        time.sleep(seconds)
        return tail(self, lane, tensors)

    monkeypatch.setattr(CloudSegments, "tail", tired)


@pytest.mark.parametrize("rows", [1, 3, 300])
@pytest.mark.parametrize("route", ["local", "split", "cloud"])
def test_every_route_to_the_whole_model_gives_what_the_model_gives(raw, model, x, route, rows):
    result = raw(x[:rows], route=route)
    with torch.inference_mode():
        torch.testing.assert_close(result.output, model(x[:rows]), atol=1e-5, rtol=1e-5)
    assert result.route is Route(route)
    assert not result.degraded


def test_a_result_says_where_it_came_from_and_what_it_cost(raw, x):
    split = raw(x[:2], route=Route.SPLIT)
    assert split.option.startswith("split:")
    assert split.bytes_up > 2 * 8 * 16 * 4
    assert split.bytes_down > 2 * 10 * 4
    assert 0 < split.confidence <= 1
    assert split.timing.head > 0 < split.timing.encode
    assert split.timing.decode > 0 < split.timing.tail
    assert "asked for" in split.reason
    here = raw(x[:2], route="exit")
    assert here.route is Route.EXIT
    assert here.output.shape == (2, 10)
    assert here.bytes_up == here.bytes_down == 0
    free = raw(x[:1])
    assert free.reason and free.reason != split.reason


def test_every_request_leaves_one_record(raw, x):
    before = len(raw.records)
    results = [raw(x[i : i + 1]) for i in range(3)]
    rows = raw.records[before:]
    assert [row.request for row in rows] == [result.record.request for result in results]
    assert all(row.met and row.latency_s > 0 for row in rows)


def test_numpy_arrays_are_taken(raw, x):
    expected = raw(x[:2], route="local").output
    assert torch.equal(raw(x[:2].numpy(), route="local").output, expected)
    assert torch.equal(raw(x[:2].numpy().astype(np.float64), route="local").output, expected)


@pytest.mark.parametrize("bad", [torch.zeros(1, 3, 8, 8), torch.zeros(0, 1, 8, 8), (1, 2), "x"])
def test_inputs_that_do_not_fit_are_refused(raw, bad):
    with pytest.raises(CodecError):
        raw(bad)


def test_unknown_routes_and_names_are_refused(raw, model, x):
    with pytest.raises(ConfigError, match="no route 'moon'"):
        raw(x[:1], route="moon")
    with pytest.raises(UnknownName, match="int8"):
        splitedge.deploy(model, x[:2], codec="int9")
    with pytest.raises(UnknownName, match="deadline"):
        splitedge.deploy(model, x[:2], policy="dedline")


def test_many_threads_may_ask_at_once(raw, model, x):
    expected = raw(x[:16], route="local").output

    def ask(i):
        return raw(x[i : i + 1], route=("split", "cloud", "local")[i % 3]).output

    with ThreadPoolExecutor(8) as pool:
        outputs = list(pool.map(ask, range(16)))
    torch.testing.assert_close(torch.cat(outputs), expected, atol=1e-5, rtol=1e-5)


def test_it_can_be_awaited_many_times_at_once(raw, x):
    async def ask():
        return await asyncio.gather(*(raw.infer(x[i : i + 1], route="split") for i in range(12)))

    outputs = torch.cat([result.output for result in asyncio.run(ask())])
    torch.testing.assert_close(outputs, raw(x[:12], route="local").output, atol=1e-5, rtol=1e-5)


def test_several_cuts_are_several_options_in_order(raw):
    names = [option.name for option in raw.options]
    assert names[:2] == ["local", "exit:0"]
    splits = [option for option in raw.options if option.route is Route.SPLIT]
    assert len({option.cut for option in splits}) == 2
    assert splits[0].edge_s > 0 < splits[0].cloud_s
    assert splits[0].bytes_up > splits[-1].bytes_up
    assert not any(option.accuracy_measured for option in raw.options)


def test_every_cut_may_have_a_codec_of_its_own(model, x):
    with splitedge.deploy(model, x[:4], codec={"stem": "raw", "down": "int8"}) as deployment:
        names = [option.name for option in deployment.options if option.route is Route.SPLIT]
        assert [name.rsplit("/")[1] for name in names] == ["raw:0", "int8:0"]
        with torch.no_grad():
            assert torch.allclose(
                torch.as_tensor(deployment(x[:2], route="split").output), model(x[:2]), atol=0.5
            )
    for wrong, says in ((["stem"], "name the same ones"), ("down", "name the same ones")):
        with pytest.raises(ConfigError, match=says):
            splitedge.deploy(model, x[:4], codec={"stem": "raw", "down": "int8"}, cut=wrong)


def test_bytes_in_the_table_are_those_of_the_frames_sent(raw, x):
    option = next(option for option in raw.options if option.route is Route.CLOUD)
    sent = raw(x[:1], route="cloud")
    # The table counts a message under CURVE, which adds some 30 bytes that a loopback does not send.
    assert 0 <= option.bytes_up - sent.bytes_up <= 64
    assert 0 <= option.bytes_down - sent.bytes_down <= 64


def test_a_slow_cloud_costs_no_deadline_when_something_here_can_answer(model, x, monkeypatch):
    with splitedge.deploy(model, x[:4], local=model, codec="raw", cut="down") as deployment:
        deployment(x[:1])
        slow(deployment, monkeypatch, 1.5)
        result = deployment(x[:1], deadline=0.5, route="split")
        assert result.route is Route.LOCAL
        assert result.degraded
        assert "cloud" in result.reason and "answered by the local model" in result.reason


def test_a_slow_cloud_is_a_typed_error_when_nothing_here_can_answer(model, x, monkeypatch):
    with splitedge.deploy(model, x[:4], cut="down") as deployment:
        deployment(x[:1])
        slow(deployment, monkeypatch, 1.5)
        with pytest.raises(DeadlineExceeded):
            deployment(x[:1], deadline=0.3)
        assert deployment.records[-1].error == "DeadlineExceeded"


def test_without_the_cloud_requests_go_on_and_say_so(model, x):
    settings = EngineSettings(default_timeout_s=5.0)
    with splitedge.deploy(model, x[:4], exits="stem", cut="down", settings=settings) as deployment:
        assert deployment(x[:1], route="split").route is Route.SPLIT
        deployment.outage("unplugged by the test")
        answer = deployment(x[:1], deadline=1.0)
        assert answer.route is Route.EXIT
        forced = deployment(x[:1], deadline=1.0, route="split")
        assert forced.degraded
        assert forced.route is Route.EXIT
        assert "unplugged by the test" in forced.reason
        deployment.outage(None)
        until = time.monotonic() + 10
        while deployment(x[:1], route="split", deadline=5.0).degraded and time.monotonic() < until:
            time.sleep(0.05)
        assert not deployment(x[:1], route="split", deadline=5.0).degraded


def test_without_the_cloud_and_nothing_here_there_is_a_typed_error(model, x):
    with splitedge.deploy(model, x[:4], cut="down") as deployment:
        deployment(x[:1])
        deployment.outage("unplugged by the test")
        with pytest.raises(RequestError) as caught:
            deployment(x[:1], deadline=0.3)
        assert isinstance(caught.value, CloudUnavailable | DeadlineExceeded)


def test_closing_leaves_no_thread_and_no_way_to_call(model, x):
    before = set(threading.enumerate())
    deployment = splitedge.deploy(model, x[:4], cut="down")
    deployment(x[:1])
    assert set(threading.enumerate()) > before
    deployment.close()
    deployment.close()
    assert set(threading.enumerate()) <= before
    with pytest.raises(ConfigError, match="closed"):
        deployment(x[:1])


def test_a_forked_child_may_close_what_it_can_not_use(model, x):
    with splitedge.deploy(model, x[:4], local=model, cut="down") as deployment:
        deployment(x[:1])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the threads that do not survive a fork
            child = os.fork()
        if child == 0:
            try:
                deployment.close()
                os._exit(0)
            finally:
                os._exit(1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert deployment(x[:1]).route is not None


def test_records_go_to_a_file(model, x, tmp_path):
    from splitedge.records import read_records

    with splitedge.deploy(model, x[:4], cut="down", records=tmp_path / "r.jsonl") as deployment:
        for i in range(3):
            deployment(x[i : i + 1])
    assert len(read_records(tmp_path / "r.jsonl")) == 3


def test_auto_finds_a_split_and_measures_it(model, x):
    with splitedge.deploy(model, x[:8], codec="int8") as deployment:
        splits = [option for option in deployment.options if option.route is Route.SPLIT]
        assert splits
        assert all(0 < s.bytes_up <= s.bytes_up_q95 and 0 < s.edge_s <= s.edge_s_q95 for s in splits)
        assert not deployment.notes
        with torch.inference_mode():
            agree = deployment(x[:64], route="split").output.argmax(1) == model(x[:64]).argmax(1)
        assert agree.float().mean() > 0.9


def test_a_policy_that_needs_a_missing_route_is_refused(model, x):
    with pytest.raises(PolicyError, match="exit"):
        splitedge.deploy(model, x[:2], cut="down", policy="confidence")


@pytest.mark.parametrize(
    ("arguments", "error", "says"),
    [
        ({"cut": "dowm"}, PartitionError, "down"),
        ({"exits": "nowhere"}, PartitionError, "nowhere"),
        ({"cut": []}, ConfigError, "cut"),
        ({"head": nn.Identity()}, ConfigError, "not both"),
        ({"local": nn.Sequential(nn.Flatten(), nn.Linear(64, 3))}, ConfigError, "local gives"),
        ({"input_codec": "webp", "cut": "down", "codec": "webp"}, CodecError, "webp"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(model, x, arguments, error, says):
    with pytest.raises(error, match=says):
        splitedge.deploy(model, x[:2], **arguments)


def test_a_model_and_an_example_are_needed(model):
    with pytest.raises(ConfigError, match="example_inputs"):
        splitedge.deploy(model)
    with pytest.raises(ConfigError, match="head= and tail="):
        splitedge.deploy(example_inputs=torch.zeros(1, 1, 8, 8))
