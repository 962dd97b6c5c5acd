"""The edge daemon over HTTP: the Open Inference Protocol, health, metrics, records, dashboard, the end."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import re
import signal
import time

import aiohttp
import numpy as np
import pytest
from doubler import EXIT, LOCAL, SPLIT, CloudDouble, EdgeDouble
from prometheus_client.parser import text_string_to_metric_families

from splitedge.cloud.server import CloudServer
from splitedge.cloud.settings import ServerSettings
from splitedge.edge.daemon import EdgeApi, run_edge
from splitedge.edge.link import ZmqLink
from splitedge.edge.runtime import EdgeRuntime
from splitedge.edge.settings import EdgeSettings
from splitedge.engine import Engine
from splitedge.policies.static import Static
from splitedge.records import read_records
from splitedge.settings import EngineSettings

INPUT = {"name": "input0", "shape": [1, 8], "datatype": "FP32", "data": list(range(8))}
DOUBLED = [2.0 * i for i in range(8)]


@pytest.fixture
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


@contextlib.asynccontextmanager
async def daemon(model=None, endpoint=None, policy=None, engine=None, **settings):
    """A daemon in this process and a client of it."""
    model = model or EdgeDouble(options=(LOCAL, EXIT))
    settings = EdgeSettings(http="127.0.0.1:0", name="double", **settings)
    choice = policy or model.options[0].route.value
    link = None if endpoint is None else ZmqLink(endpoint, settings=settings)
    runtime = EdgeRuntime(
        model, Engine(model.options, Static(choice), settings=engine), link, settings=settings
    )
    api = EdgeApi(runtime, settings)
    await runtime.start()
    await api.server.start()
    try:
        async with aiohttp.ClientSession(api.server.url) as client:
            yield client, runtime
    finally:
        await api.server.close()
        await runtime.close()


@contextlib.asynccontextmanager
async def cloud(**model):
    server = CloudServer([CloudDouble(**model)], ServerSettings(listen="tcp://127.0.0.1:0", http=""))
    await server.start()
    try:
        yield server.endpoint
    finally:
        await server.stop()


async def infer(client, body, status=200, headers=None):
    async with client.post(
        "/v2/models/double/infer", data=json.dumps(body) if isinstance(body, dict) else body, headers=headers
    ) as answer:
        text = await answer.read()
        assert answer.status == status, text
        return json.loads(text) if "json" in answer.content_type else text, answer.headers


async def get(client, path, status=200):
    async with client.get(path) as answer:
        assert answer.status == status, await answer.text()
        return await answer.json() if "json" in answer.content_type else await answer.text()


# The protocol ---------------------------------------------------------------------------------------


def test_a_json_request_is_answered_with_its_route_and_reason():
    async def main():
        async with cloud() as endpoint:
            model = EdgeDouble()
            async with daemon(model, endpoint, policy="split") as (client, runtime):
                await runtime.connected(5.0)
                answer, _ = await infer(
                    client, {"id": "a1", "inputs": [INPUT], "parameters": {"splitedge_deadline_ms": 2000}}
                )
        assert answer["id"] == "a1"
        assert answer["model_name"] == "double"
        (output,) = answer["outputs"]
        assert output == {"name": "output0", "datatype": "FP32", "shape": [1, 8], "data": DOUBLED}
        told = answer["parameters"]
        assert told["splitedge_route"] == "split"
        assert told["splitedge_option"] == SPLIT.name
        assert told["splitedge_degraded"] is False
        assert told["splitedge_reason"]
        assert told["splitedge_confidence"] is None  # this model is no classifier
        assert 0 < told["splitedge_latency_ms"] < 2000
        assert told["splitedge_bytes_up"] > 40
        assert told["splitedge_joules"] == 0.0

    asyncio.run(main())


def test_binary_tensors_go_in_and_out():
    async def main():
        async with daemon() as (client, _):
            x = np.arange(16, dtype="<f4").reshape(2, 8)
            head = json.dumps(
                {
                    "inputs": [
                        {
                            "name": "input0",
                            "shape": [2, 8],
                            "datatype": "FP32",
                            "parameters": {"binary_data_size": x.nbytes},
                        }
                    ],
                    "outputs": [{"name": "output0", "parameters": {"binary_data": True}}],
                }
            ).encode()
            length = {"Inference-Header-Content-Length": str(len(head))}
            body, headers = await infer(client, head + x.tobytes(), headers=length)
            cut = int(headers["Inference-Header-Content-Length"])
            answer = json.loads(body[:cut])
            assert answer["outputs"][0]["parameters"] == {"binary_data_size": 64}
            y = np.frombuffer(body[cut:], "<f4").reshape(answer["outputs"][0]["shape"])
            assert np.array_equal(y, x * 2 + 200)

    asyncio.run(main())


def test_a_route_can_be_asked_for():
    async def main():
        async with daemon() as (client, _):
            answer, _ = await infer(client, {"inputs": [INPUT], "parameters": {"splitedge_route": "exit"}})
            assert answer["parameters"]["splitedge_route"] == "exit"
            assert answer["parameters"]["splitedge_confidence"] == 0.75
            assert answer["outputs"][0]["data"] == [v + 100 for v in DOUBLED]

    asyncio.run(main())


def test_metadata_says_what_the_model_takes():
    async def main():
        async with daemon() as (client, runtime):
            about = await get(client, "/v2")
            assert about["name"] == "splitedge"
            assert "binary_tensor_data" in about["extensions"]
            model = await get(client, "/v2/models/double")
            assert model["inputs"] == [{"name": "input0", "datatype": "FP32", "shape": [-1, 8]}]
            assert model["outputs"] == [{"name": "output0", "datatype": "FP32", "shape": [-1, 8]}]
            version = model["versions"][0]
            assert runtime.model.digest.startswith(version)
            assert (await get(client, f"/v2/models/double/versions/{version}"))["name"] == "double"
            assert "no model 'other'" in (await get(client, "/v2/models/other", 404))["error"]
            assert "version" in (await get(client, "/v2/models/double/versions/2", 404))["error"]
            assert "error" in await get(client, "/nowhere", 404)

    asyncio.run(main())


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"inputs": []}, "'inputs' must be a list of 1"),
        ({"inputs": [INPUT | {"name": "x"}]}, "no input 'x'"),
        ({"inputs": [INPUT | {"datatype": "FP64"}]}, "got datatype FP64"),
        ({"inputs": [INPUT | {"shape": [1, 9]}]}, "got shape"),
        ({"inputs": [INPUT | {"shape": [2**33, 2**33]}]}, "got shape"),
        ({"inputs": [INPUT | {"shape": [-1, 8]}]}, "got shape"),
        ({"inputs": [INPUT | {"shape": [2, 8]}]}, "8 values for shape [2, 8]"),
        ({"inputs": [INPUT | {"data": list(range(9))}]}, "more than the 8 values"),
        ({"inputs": [INPUT | {"data": ["a"] * 8}]}, "no FP32"),
        ({"inputs": [INPUT | {"data": [[[[0]]] * 8]}]}, None),
        ({"inputs": [INPUT | {"data": 5}]}, "needs 'data'"),
        ({"inputs": [INPUT | {"parameters": {"binary_data_size": 32}}]}, "0 are left in the body"),
        ({"parameters": {"splitedge_deadline_ms": -1}}, "above 0"),
        ({"parameters": {"splitedge_deadline_ms": "soon"}}, "above 0"),
        ({"parameters": {"splitedge_route": "assist"}}, "must be one of auto, local, exit, split, cloud"),
        ({"outputs": [{"name": "y"}]}, "no output 'y'"),
        ({"id": 5}, "'id' must be a string"),
    ],
)
def test_a_wrong_request_is_told_what_is_wrong(change, what):
    async def main():
        async with daemon() as (client, runtime):
            if what is None:  # nested lists are the same values in order
                await infer(client, {"inputs": [INPUT]} | change)
                return
            answer, _ = await infer(client, {"inputs": [INPUT]} | change, status=400)
            assert what in answer["error"]
            assert runtime.in_flight == 0

    asyncio.run(main())


@pytest.mark.parametrize(
    "body", [b"", b"[", b"[]", b"\xff\xfe", b"[" * 100_000, b'{"inputs": {}}', b"1" * 5000]
)
def test_a_body_that_is_no_request_is_refused(body):
    async def main():
        async with daemon() as (client, _):
            answer, _ = await infer(client, body, status=400)
            assert answer["error"]

    asyncio.run(main())


@pytest.mark.parametrize("length", ["-1", "1e3", "999", "²", "0x10", "9" * 30])
def test_a_wrong_header_length_is_refused(length):
    async def main():
        async with daemon() as (client, _):
            with contextlib.suppress(UnicodeEncodeError):
                await infer(client, b"{}", 400, {"Inference-Header-Content-Length": length})

    asyncio.run(main())


def test_bodies_over_the_cap_are_refused_unread():
    async def main():
        async with daemon(max_body=2000) as (client, _):
            answer, _ = await infer(client, b"x" * 5000, status=413)
            assert answer["error"]

    asyncio.run(main())


def test_json_over_its_cap_is_sent_to_the_binary_form():
    async def main():
        async with daemon() as (client, _):
            answer, _ = await infer(client, io.BytesIO(b" " * (4 * 2**20 + 1)), status=413)
            assert "binary" in answer["error"]

    asyncio.run(main())


# How requests end -----------------------------------------------------------------------------------


def test_without_an_answer_in_time_the_status_says_so():
    async def main():
        model = EdgeDouble(options=(SPLIT,))
        body = {"inputs": [INPUT], "parameters": {"splitedge_deadline_ms": 50}}
        async with daemon(model, "tcp://127.0.0.1:9") as (client, _):
            answer, _ = await infer(client, body, status=504)
            assert "the link to the cloud is down" in answer["error"]
        async with cloud(tail_s=0.5) as endpoint, daemon(model, endpoint) as (client, runtime):
            await runtime.connected(5.0)
            answer, _ = await infer(client, body, status=504)
            assert answer["error"].startswith("DeadlineExceeded")

    asyncio.run(main())


def test_a_failing_cloud_where_nothing_else_answers_is_a_bad_gateway(quiet):
    async def main():
        model = EdgeDouble(options=(SPLIT,))
        async with cloud(fail=True) as endpoint, daemon(model, endpoint) as (client, runtime):
            await runtime.connected(5.0)
            answer, _ = await infer(client, {"inputs": [INPUT]}, status=502)
            assert answer["error"].startswith("CloudFailed")

    asyncio.run(main())


def test_an_edge_with_too_much_to_do_says_when_to_come_back():
    async def main():
        model = EdgeDouble(options=(LOCAL,), before=lambda stage: time.sleep(0.2))
        async with daemon(model, engine=EngineSettings(max_in_flight=1)) as (client, _):
            first = asyncio.create_task(infer(client, {"inputs": [INPUT]}))
            await asyncio.sleep(0.05)
            answer, headers = await infer(client, {"inputs": [INPUT]}, status=429)
            assert answer["error"].startswith("Rejected")
            assert int(headers["Retry-After"]) >= 1
            await first

    asyncio.run(main())


def test_a_client_that_hangs_up_cancels_its_request():
    async def main():
        model = EdgeDouble(options=(SPLIT,))
        async with cloud(tail_s=0.5) as endpoint, daemon(model, endpoint) as (client, runtime):
            await runtime.connected(5.0)
            ended = []
            runtime.listeners.append(ended.append)
            with pytest.raises(asyncio.TimeoutError):
                await client.post(
                    "/v2/models/double/infer",
                    data=json.dumps({"inputs": [INPUT]}),
                    timeout=aiohttp.ClientTimeout(total=0.1),
                )
            end = time.monotonic() + 5
            while runtime.in_flight and time.monotonic() < end:
                await asyncio.sleep(0.01)
            assert runtime.in_flight == runtime.engine.in_flight == 0
            assert [record.error for record in ended] == ["RequestCancelled"]  # and no answer of the cloud

    asyncio.run(main())


# Health, metrics, people ----------------------------------------------------------------------------


def test_ready_differs_from_live():
    async def main():
        async with daemon(EdgeDouble(options=(SPLIT,)), "tcp://127.0.0.1:9") as (client, _):
            assert (await get(client, "/v2/health/live"))["live"] is True
            told = await get(client, "/v2/health/ready", 503)
            assert told["ready"] is False
            assert "only with the cloud" in told["error"]
            assert (await get(client, "/v2/models/double/ready", 503))["ready"] is False
        async with cloud() as endpoint, daemon(EdgeDouble(options=(SPLIT,)), endpoint) as (client, runtime):
            await runtime.connected(5.0)
            assert (await get(client, "/v2/health/ready")) == {"ready": True}
        async with daemon() as (client, runtime):
            assert (await get(client, "/v2/models/double/ready"))["ready"] is True
            await runtime.drain(1.0)
            assert (await get(client, "/v2/health/ready", 503))["error"] == "shutting down"
            answer, _ = await infer(client, {"inputs": [INPUT]}, status=503)
            assert "shutting down" in answer["error"]
            assert (await get(client, "/v2/health/live"))["live"] is True

    asyncio.run(main())


def samples(text):
    return {
        (s.name, *sorted(s.labels.values())): s.value
        for family in text_string_to_metric_families(text)
        for s in family.samples
    }


def test_metrics_count_what_happened():
    async def main():
        async with daemon(EdgeDouble(options=(LOCAL, SPLIT)), policy="split") as (client, _):
            for _ in range(3):
                await infer(client, {"inputs": [INPUT]})
            await infer(client, {"inputs": [INPUT], "parameters": {"splitedge_route": "exit"}}, status=400)
            got = samples(await get(client, "/metrics"))
            assert got["splitedge_requests_total", "answered", "local"] == 3
            assert got["splitedge_requests_total", "Rejected", "none"] == 1
            assert got["splitedge_request_seconds_count", "local"] == 3
            assert got["splitedge_stage_seconds_count", "local"] == 3
            assert got["splitedge_degraded_total", "link"] == 3
            assert got["splitedge_link_up",] == 0
            assert got["splitedge_in_flight",] == 0
            assert got["splitedge_circuit", "closed"] == 1
            assert any(key[0] == "splitedge_build_info" for key in got)

    asyncio.run(main())


def test_records_and_status_are_json_a_browser_can_read():
    async def main():
        async with daemon() as (client, _):
            for _ in range(3):
                await infer(client, {"inputs": [INPUT]})
            told = await get(client, "/records?count=2")
            assert [r["request"] for r in told["records"]] == [3, 2]
            assert told["records"][0]["deadline_s"] is None  # infinity has no word in JSON
            assert "error" in await get(client, "/records?count=many", 400)
            status = await get(client, "/status")
            assert status["requests"]["kept"] == 3
            assert status["requests"]["p50_s"] <= status["requests"]["p95_s"]
            assert sum(c.get("local", 0) for c in status["routes"]["counts"]) == 3
            assert status["link"] == status["link"] | {"configured": False, "up": False}

    asyncio.run(main())


def test_the_dashboard_needs_nothing_from_elsewhere():
    async def main():
        async with daemon() as (client, _), client.get("/") as answer:
            page = await answer.text()
            assert answer.content_type == "text/html"
            assert "default-src 'none'" in answer.headers["Content-Security-Policy"]
        urls = re.findall(r"""(?:src|href|url\()\s*=?\s*["']?([^"'\s)>]+)""", page)
        assert not urls
        assert set(re.findall(r"https?://[^\"]+", page)) == {"http://www.w3.org/2000/svg"}
        assert "innerHTML" not in page

    asyncio.run(main())


# The whole daemon -----------------------------------------------------------------------------------


def test_sigterm_lets_requests_end_and_keeps_their_records(tmp_path):
    path = tmp_path / "records.jsonl"

    async def main():
        model = EdgeDouble(options=(LOCAL,), before=lambda stage: time.sleep(0.3))
        settings = EdgeSettings(http="127.0.0.1:0", name="double", records=path)
        address = asyncio.get_running_loop().create_future()
        engine = Engine(model.options, Static("local"))
        running = asyncio.create_task(run_edge(model, engine, None, settings, address.set_result))
        async with aiohttp.ClientSession(f"http://{await address}") as client:
            asked = asyncio.create_task(infer(client, {"inputs": [INPUT]}))
            await asyncio.sleep(0.1)
            os.kill(os.getpid(), signal.SIGTERM)
            answer, _ = await asked
            assert answer["outputs"][0]["data"] == [v + 200 for v in DOUBLED]
        await asyncio.wait_for(running, 5.0)

    asyncio.run(main())
    (row,) = read_records(path).rows()
    assert row.route == "local"
    assert row.met
