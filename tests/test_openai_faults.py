"""What clients of the OpenAI-compatible API see when the cloud is away or the edge is full."""

from __future__ import annotations

import asyncio
import contextlib
import json

import aiohttp
import numpy as np
import pytest
from language_processes import free_port, saved

from splitedge.edge.link import ZmqLink
from splitedge.edge.openai_api import OpenAiApi
from splitedge.edge.settings import EdgeSettings
from splitedge.llm.aids import Aids
from splitedge.llm.deployment import load_deployment
from splitedge.llm.generation import Patience
from splitedge.llm.queries import Hashing
from splitedge.llm.router_fit import fit_router
from splitedge.loopback import Loopback


@pytest.fixture(scope="module")
def bundle(tmp_path_factory):
    folder = tmp_path_factory.mktemp("faults") / "bundle"
    saved(folder).close()
    return folder


@contextlib.asynccontextmanager
async def serving(bundle, *, cloud=True, longest_s=60.0, **language):
    """API, HTTP session and link of an edge in this process; its cloud is here too, or nowhere."""
    dead = f"tcp://127.0.0.1:{free_port()}"
    settings = EdgeSettings(http="127.0.0.1:0", name="tiny", cloud=dead, language=language)
    patience = Patience(overdue_s=0.2, retry_s=0.1, longest_wait_s=longest_s)
    deployment = load_deployment(bundle, "edge", cloud=dead, patience=patience)
    halves = load_deployment(bundle, "cloud")
    link = Loopback(None, language=halves.cloud_half) if cloud else ZmqLink(dead, settings=settings)
    runtime = deployment.runtime(link, settings)
    api = OpenAiApi(deployment, runtime, settings)
    await runtime.start()
    await api.server.start()
    if cloud:
        await runtime.connected(30.0)
    try:
        async with aiohttp.ClientSession(api.server.url) as session:
            yield api, session, link
    finally:
        await runtime.close()
        await api.server.close()
        if isinstance(link, Loopback):
            await link.wait_closed()
        deployment.close()


async def ask(session, **more):
    """Status, headers and body of a completion."""
    ours = more.pop("ours", {})
    body = {"model": "tiny", "prompt": "Once", "max_tokens": 8, "splitedge": ours, **more}
    async with session.post("/v1/completions", json=body) as response:
        return response.status, response.headers, await response.text()


def test_a_cloud_that_is_needed_and_away_is_503_with_retry_after(bundle):
    async def run():
        async with serving(bundle, cloud=False, longest_s=0.6) as (api, session, _):
            status, headers, body = await ask(session, ours={"mode": "cloud_stream"})
            assert status == 503 and int(headers["Retry-After"]) >= 1
            told = json.loads(body)["error"]
            assert told["code"] == "cloud_unavailable" and "CloudUnavailable" in told["message"]
            late = await ask(session, ours={"mode": "spec", "deadline_ms": 100})
            assert late[0] == 504
            status, _, body = await ask(session)  # `auto` has the device's model to write by
            assert status == 200 and json.loads(body)["splitedge"]["mode"] == "local"
            alone = {"mode": "cloud_stream", "on_loss": "local"}
            status, _, body = await ask(session, ours=alone)
            more = json.loads(body)["splitedge"]
            assert more["degraded"] and more["reason"] and set(more["sources"]) == {"local"}
            assert api.in_flight == 0

    asyncio.run(run())


def test_a_link_lost_for_good_ends_a_stream_with_an_error_event_and_no_done(bundle):
    async def run():
        async with serving(bundle, longest_s=2.0) as (_, session, link):
            body = {"model": "tiny", "prompt": "Once", "max_tokens": 100, "stream": True, "temperature": 0}
            body["splitedge"] = {"mode": "spec", "drafts": 1}
            async with session.post("/v1/completions", json=body) as response:
                assert response.status == 200 and response.content_type == "text/event-stream"
                first = await response.content.readline()
                link.disconnect("a tunnel")
                rest = (await response.read()).decode()
            last = json.loads([line for line in rest.splitlines() if line][-1].removeprefix("data: "))
            assert json.loads(first.removeprefix(b"data: "))["choices"][0]["finish_reason"] is None
            assert last["error"]["code"] == "cloud_unavailable" and "tunnel" in last["error"]["message"]
            assert "[DONE]" not in rest

    asyncio.run(run())


def test_a_full_edge_says_429_and_one_that_ends_503(bundle):
    async def run():
        async with serving(bundle, texts=1) as (api, session, link):
            link.disconnect("a tunnel")
            waiting = asyncio.ensure_future(ask(session, max_tokens=50, ours={"mode": "cloud_stream"}))
            while not api.in_flight:
                await asyncio.sleep(0.01)
            status, headers, body = await ask(session)
            assert status == 429 and headers["Retry-After"] == "1" and "most at once" in body
            link.connect()
            status, _, body = await waiting
            assert status == 200 and json.loads(body)["usage"]["completion_tokens"] == 50
            api.draining = True
            status, headers, _ = await ask(session)
            assert status == 503 and "Retry-After" in headers
            async with session.get("/v2/health/ready") as response:
                assert response.status == 503
            async with session.get("/v1/nothing") as response:
                assert response.status == 404 and "error" in await response.json()
            async with session.post("/v1/completions", data=b"{") as response:
                assert response.status == 400 and "JSON" in (await response.json())["error"]["message"]

    asyncio.run(run())


def test_a_client_that_leaves_is_counted_as_gone(bundle):
    async def run():
        async with serving(bundle) as (api, session, link):
            link.disconnect("a tunnel")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.2):
                    await ask(session, max_tokens=100, ours={"mode": "cloud_stream"})
            while api.in_flight:
                await asyncio.sleep(0.01)
            async with session.get("/records?count=1") as response:
                row = (await response.json())["records"][0]
            assert row["error"] == "RequestCancelled" and row["mode"] == "cloud_stream"

    asyncio.run(run())


def test_the_query_router_sends_each_request_its_way(bundle, tmp_path):
    rng = np.random.default_rng(0)
    easy = rng.random(600) < 0.5
    fill = ["one", "two", "three", "four", "five", "six", "seven"]
    texts = [" ".join([*rng.choice(fill, 5), "weather" if one else "theorem"]) for one in easy]
    router = fit_router(
        texts, easy.astype(float), np.ones(600), hashing=Hashing(1 << 8, 0), aim="budget", to=0.5
    )
    with load_deployment(bundle) as deployment:
        deployment.attach(Aids(router=router))
        deployment.save(tmp_path / "routed")

    async def run():
        async with serving(tmp_path / "routed", mode="route") as (_, session, _):
            for word, mode in (("weather", "local"), ("theorem", "cloud_stream")):
                status, _, body = await ask(session, prompt=f"three one {word}", max_tokens=6)
                more = json.loads(body)["splitedge"]
                assert status == 200 and more["mode"] == mode and more["why"]
                talk = [{"role": "system", "content": "weather theorem"}, {"role": "user", "content": word}]
                body = {"model": "tiny", "messages": talk, "max_tokens": 4}
                async with session.post("/v1/chat/completions", json=body) as response:
                    assert (await response.json())["splitedge"]["mode"] == mode
        async with serving(bundle) as (_, session, _):
            status, _, body = await ask(session, ours={"mode": "route"})
            assert status == 400 and "no query router" in body

    asyncio.run(run())
