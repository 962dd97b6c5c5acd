"""A learned codec out of a saved bundle: served by real processes, and on a link that is cut under it."""

from __future__ import annotations

import asyncio
import threading

import aiohttp
import numpy as np
import pytest
import torch
from torch import nn

import splitedge
from splitedge import Route
from splitedge.bundle import load_cloud
from splitedge.cloud.server import serve
from splitedge.cloud.settings import ServerSettings
from splitedge.keys import new_keys, trust
from splitedge.segments import CloudSegments
from splitedge.sim.curves import steady
from splitedge.sim.link import Channel
from splitedge.sim.pacer import Pacer, precise_loop
from splitedge.sim.processes import free_port, verb

FAST = Channel(steady(1e9))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    """Its directory, images, and what the deployment answered to them by route SPLIT."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(nn.Conv2d(1, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, 8, 3, 1, 1), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(128, 4)),
    )
    images, labels = torch.rand(160, 1, 8, 8), torch.arange(160) % 4
    directory = tmp_path_factory.mktemp("learned") / "bundle"
    with splitedge.deploy(model, images[:4], cut="3", exits="1", codec="bottleneck:bits=2") as deployment:
        deployment.fit((images, labels), epochs=1, progress=False)
        deployment.save(directory)
        output = deployment(images[:4], route="split").output
    return directory, images[:4], output


async def until(ask, seconds=60.0):
    """Wait until `await ask()` is true."""
    async with asyncio.timeout(seconds):
        while not await ask():
            await asyncio.sleep(0.05)


def test_serve_and_edge_answer_with_it_as_real_processes(bundle, tmp_path):
    directory, images, wanted = bundle
    cloud_keys, edge_keys = tmp_path / "cloud", tmp_path / "edge"
    trust(edge_keys, new_keys(cloud_keys, "cloud"))
    trust(cloud_keys, new_keys(edge_keys, "edge"))
    to, http = f"tcp://127.0.0.1:{free_port()}", f"127.0.0.1:{free_port()}"
    server = ["serve", directory, "--listen", to, "--http", "", "--keys", cloud_keys]
    edge = ["edge", directory, "--cloud", to, "--http", http, "--keys", edge_keys, "--policy", "static:split"]

    async def main():
        async with (
            verb(server, tmp_path / "cloud.log") as cloud,
            verb(edge, tmp_path / "edge.log") as device,
            aiohttp.ClientSession(f"http://{http}") as client,
        ):

            async def link_is_up():
                cloud.check()
                device.check()
                try:
                    async with client.get("/status") as answer:
                        return (await answer.json())["link"]["up"]
                except aiohttp.ClientConnectionError:
                    return False

            await until(link_is_up)
            async with client.get("/v2/models/model") as answer:
                name = (await answer.json())["inputs"][0]["name"]
            tensor = {"name": name, "shape": [4, 1, 8, 8], "datatype": "FP32"}
            body = {"inputs": [tensor | {"data": images.flatten().tolist()}]}
            async with client.post("/v2/models/model/infer", json=body) as answer:
                assert answer.status == 200, await answer.text()
                return await answer.json()

    answer = asyncio.run(main())
    assert answer["parameters"]["splitedge_option"] == "split:3/bottleneck:0"
    assert answer["parameters"]["splitedge_degraded"] is False
    (output,) = answer["outputs"]
    found = np.asarray(output["data"], dtype=np.float32).reshape(output["shape"])
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_a_link_cut_under_it_costs_no_answer_and_it_comes_back(bundle, monkeypatch):
    directory, images, wanted = bundle
    answering, go_on = threading.Event(), threading.Event()
    tail = CloudSegments.tail

    def held(self, lane, tensors):
        answering.set()
        assert go_on.wait(30)
        return tail(self, lane, tensors)

    async def main():
        endpoint = asyncio.get_running_loop().create_future()
        settings = ServerSettings(listen="tcp://127.0.0.1:0", http="")
        served = asyncio.create_task(
            serve([load_cloud(directory, device="cpu")], settings, endpoint.set_result)
        )
        try:
            async with Pacer("tcp://127.0.0.1:0", await endpoint, FAST, FAST) as pacer:
                with splitedge.load(directory, "edge", cloud=pacer.address, policy="static:split") as edge:
                    await asyncio.to_thread(edge.connect, 30)
                    before = await edge.infer(images, 30.0)
                    monkeypatch.setattr(CloudSegments, "tail", held)
                    asked = asyncio.create_task(edge.infer(images, 1.0))
                    await asyncio.to_thread(answering.wait, 30)
                    pacer.cut()
                    during = await asked
                    pacer.restore()
                    go_on.set()

                    async def is_back():
                        return not (await edge.infer(images, 5.0)).degraded

                    await until(is_back)
                    return before, during, await edge.infer(images, 30.0)
        finally:
            go_on.set()
            served.cancel()
            await asyncio.gather(served, return_exceptions=True)

    with asyncio.Runner(loop_factory=precise_loop) as runner:
        before, during, after = runner.run(main())
    assert during.route is Route.EXIT and during.degraded and during.reason
    for result in (before, after):
        assert result.option == "split:3/bottleneck:0" and not result.degraded
        assert torch.allclose(result.output, wanted, atol=1e-4)
