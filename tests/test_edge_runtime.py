"""The edge's runtime against a real cloud server on loopback: routes, faults, cancellation, draining."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import subprocess
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from doubler import EXIT, LOCAL, SPLIT, CloudDouble, EdgeDouble

from splitedge.cloud.server import CloudServer
from splitedge.cloud.settings import ServerSettings
from splitedge.edge.link import ZmqLink
from splitedge.edge.runtime import EdgeRuntime
from splitedge.edge.settings import EdgeSettings
from splitedge.edge.threaded import ThreadedRuntime
from splitedge.engine import Engine
from splitedge.errors import (
    CloudFailed,
    CloudUnavailable,
    CodecError,
    ConfigError,
    DeadlineExceeded,
    EdgeFailed,
    LinkDown,
    LinkError,
    Rejected,
)
from splitedge.events import StageKind
from splitedge.policies.static import Static
from splitedge.policy import Route
from splitedge.records import RecordStore, read_records
from splitedge.settings import EngineSettings

X = torch.arange(8.0).view(1, 8)


@contextlib.asynccontextmanager
async def cloud(model=None, listen="tcp://127.0.0.1:0", **settings):
    server = CloudServer([model or CloudDouble()], ServerSettings(listen=listen, http="", **settings))
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


@contextlib.asynccontextmanager
async def edge(endpoint, model=None, policy="split", connect=True, records=None, engine=None, **settings):
    model = model or EdgeDouble()
    link = None if endpoint is None else ZmqLink(endpoint, settings=EdgeSettings(**settings))
    runtime = EdgeRuntime(
        model,
        Engine(model.options, Static(policy), settings=engine),
        link,
        settings=EdgeSettings(**settings),
        records=records,
    )
    await runtime.start()
    try:
        if connect and endpoint is not None:
            await runtime.connected(5.0)
        yield runtime
    finally:
        await runtime.close()


async def until(condition, within_s=5.0):
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.01)


def test_a_split_request_is_computed_on_both_sides_and_says_so():
    async def main():
        async with cloud() as server, edge(server.endpoint) as runtime:
            result = await runtime.infer(X, deadline_s=2.0)
            assert torch.equal(result.output, X * 2)
            assert result.route is Route.SPLIT
            assert result.option == SPLIT.name
            assert not result.degraded
            assert result.reason
            assert result.record.met
            assert result.record.attempts == 1
            assert 40 < result.bytes_up < 120  # 40 bytes of payload, its header, framing
            assert 40 < result.bytes_down < 120
            timing = result.timing
            assert timing.uplink >= 0
            assert timing.downlink >= 0
            assert 0 < timing.uplink + timing.downlink + timing.tail <= timing.total
            assert runtime.in_flight == runtime.engine.in_flight == 0

    asyncio.run(main())


@pytest.mark.parametrize(("route", "more"), [(Route.LOCAL, 200), (Route.EXIT, 100), (Route.SPLIT, 0)])
def test_a_route_can_be_forced(route, more):
    async def main():
        async with cloud() as server, edge(server.endpoint) as runtime:
            result = await runtime.infer(X, route=route)
            assert result.route is route
            assert torch.equal(result.output, X * 2 + more)
            assert result.record.forced

    asyncio.run(main())


def test_many_at_once_with_batches_of_any_size_get_their_own_answers():
    async def main():
        async with cloud() as server, edge(server.endpoint) as runtime:
            inputs = [torch.randn(1 + i % 5, 8) for i in range(200)]
            results = await asyncio.gather(*(runtime.infer(x, 10.0) for x in inputs))
            for x, result in zip(inputs, results, strict=True):
                assert torch.allclose(result.output, x * 2, atol=1e-5)
                assert result.record.rows == len(x)
            assert runtime.in_flight == runtime.engine.in_flight == 0
            assert runtime.remote.unanswered_bytes == 0

    asyncio.run(main())


def test_inputs_that_do_not_fit_are_refused_before_anything_runs():
    async def main():
        async with edge(None) as runtime:
            with pytest.raises(CodecError, match="float32"):
                await runtime.infer(X.double())
            assert runtime.in_flight == 0

    asyncio.run(main())


def test_without_a_cloud_the_device_answers_and_says_why():
    async def main():
        async with edge(None) as runtime:
            result = await runtime.infer(X, deadline_s=1.0)
            assert result.route is Route.LOCAL
            assert result.degraded
            assert torch.equal(result.output, X * 2 + 200)
            with pytest.raises(LinkDown, match="no cloud is configured"):
                await runtime.connected()

    asyncio.run(main())


def test_with_nothing_local_a_missing_cloud_is_one_typed_error_in_time():
    async def main():
        model = EdgeDouble(options=(SPLIT,))
        async with edge("tcp://127.0.0.1:9", model, connect=False) as runtime:
            start = time.monotonic()
            with pytest.raises((CloudUnavailable, DeadlineExceeded), match="link to the cloud is down"):
                await runtime.infer(X, deadline_s=0.3)
            assert time.monotonic() - start < 2.0
            assert runtime.in_flight == 0

    asyncio.run(main())


@pytest.mark.parametrize("kind", [StageKind.ENCODE, StageKind.LOCAL])
def test_a_stage_that_raises_ends_the_request_in_an_error(kind, caplog):
    def broken(stage):
        if stage.kind is kind:
            raise ValueError("no such luck")

    async def main():
        route = Route.LOCAL if kind is StageKind.LOCAL else Route.SPLIT
        options = (LOCAL,) if kind is StageKind.LOCAL else (SPLIT,)
        async with cloud() as server:
            model = EdgeDouble(options, before=broken)
            async with edge(
                server.endpoint, model, policy=route.value, connect=route is not Route.LOCAL
            ) as r:
                with pytest.raises(EdgeFailed, match="no such luck"):
                    await asyncio.wait_for(r.infer(X, deadline_s=1.0), 5.0)
                assert r.in_flight == r.engine.in_flight == 0

    with caplog.at_level(logging.CRITICAL):
        asyncio.run(main())


def test_a_slow_cloud_is_overtaken_by_the_device_within_the_deadline():
    async def main():
        async with cloud(CloudDouble(tail_s=0.6)) as server, edge(server.endpoint) as runtime:
            start = time.monotonic()
            result = await runtime.infer(X, deadline_s=0.25)
            assert time.monotonic() - start < 0.5  # not when the cloud would have answered
            assert result.route in (Route.LOCAL, Route.EXIT)
            assert result.degraded
            await asyncio.sleep(0.6)  # the late reply is of no use, and does no harm
            assert runtime.in_flight == runtime.engine.in_flight == 0

    asyncio.run(main())


def test_a_failing_tail_is_answered_locally_or_named():
    async def main():
        async with cloud(CloudDouble(fail=True)) as server:
            async with edge(server.endpoint) as runtime:
                assert (await runtime.infer(X, deadline_s=1.0)).degraded
            async with edge(server.endpoint, EdgeDouble(options=(SPLIT,))) as runtime:
                with pytest.raises(CloudFailed, match="tail"):
                    await runtime.infer(X, deadline_s=1.0)

    logging.disable(logging.CRITICAL)
    try:
        asyncio.run(main())
    finally:
        logging.disable(logging.NOTSET)


def test_a_restarted_cloud_is_found_again_under_a_new_epoch():
    async def main():
        async with cloud() as server:
            endpoint = server.endpoint
            async with edge(endpoint, reconnect_s=0.02, reconnect_max_s=0.1) as runtime:
                assert (await runtime.infer(X, 1.0)).route is Route.SPLIT
                epoch, since = runtime.remote.session.epoch, [runtime.remote.since_s]
                await server.stop()
                assert (await runtime.infer(X, 1.0)).degraded
                await until(lambda: not runtime.remote.up)
                since.append(runtime.remote.since_s)
                async with cloud(listen=endpoint):
                    await until(lambda: runtime.remote.up and runtime.remote.session.epoch != epoch)
                    await until(lambda: runtime.engine.link_up)
                    assert (await runtime.infer(X, 1.0)).route is Route.SPLIT
                    assert since[0] < since[1] < runtime.remote.since_s <= runtime.clock()
                assert runtime.in_flight == 0

    asyncio.run(main())


def test_a_caller_who_goes_away_leaves_nothing_behind():
    async def main():
        executed = []
        model = CloudDouble(tail_s=0.2, executed=executed.append)
        async with cloud(model) as server, edge(server.endpoint) as runtime:
            first = asyncio.create_task(runtime.infer(X, 5.0))
            await until(lambda: executed)
            second = asyncio.create_task(runtime.infer(X, 5.0))
            await asyncio.sleep(0.05)
            for task in (first, second):
                task.cancel()
            results = await asyncio.gather(first, second, return_exceptions=True)
            assert all(isinstance(r, asyncio.CancelledError) for r in results)
            assert runtime.in_flight == runtime.engine.in_flight == 0
            await asyncio.sleep(0.4)
            assert len(executed) == 1  # the second was called off before its tail began
            assert torch.equal((await runtime.infer(X, 5.0)).output, X * 2)

    asyncio.run(main())


def test_draining_ends_what_is_in_flight_and_refuses_the_rest():
    async def main():
        async with cloud(CloudDouble(tail_s=0.2)) as server, edge(server.endpoint) as runtime:
            asked = asyncio.create_task(runtime.infer(X, 5.0))
            await until(lambda: runtime.in_flight)
            draining = asyncio.create_task(runtime.drain(5.0))
            await asyncio.sleep(0)
            with pytest.raises(Rejected):
                await runtime.infer(X)
            assert await draining
            assert torch.equal((await asked).output, X * 2)

    asyncio.run(main())


def test_closing_at_once_ends_requests_in_an_error():
    async def main():
        async with cloud(CloudDouble(tail_s=0.3)) as server, edge(server.endpoint) as runtime:
            asked = asyncio.create_task(runtime.infer(X, 5.0))
            await until(lambda: runtime.in_flight)
            assert not await runtime.drain(0.01)
            await runtime.close()
            with pytest.raises(Rejected, match="shut down"):
                await asked
            with pytest.raises(Rejected, match="not running"):
                await runtime.infer(X)

    asyncio.run(main())


def test_a_cloud_with_another_bundle_or_other_tables_is_named():
    async def main():
        async with cloud() as server:
            for model in (EdgeDouble(codec="fp16"), EdgeDouble()):
                if model.codec.name == "raw":
                    model.digest = "ab" * 32
                with pytest.raises(LinkError, match=r"does not serve bundle .*serve the same bundle there"):
                    async with edge(server.endpoint, model):
                        pass

    logging.disable(logging.CRITICAL)
    try:
        asyncio.run(main())
    finally:
        logging.disable(logging.NOTSET)


def test_short_stages_run_on_the_loop_and_long_ones_do_not():
    async def main():
        quick, slow = EdgeDouble(), EdgeDouble(before=lambda stage: time.sleep(0.002))
        for model, inline in ((quick, True), (slow, False)):
            async with edge(None, model, policy="local") as runtime:
                for _ in range(12):
                    await runtime.infer(X, route=Route.LOCAL)
            here = [name == threading.current_thread().name for name in model.threads]
            assert not here[0], "a stage whose time is not known must not hold up the loop"
            assert here[-1] is inline

    asyncio.run(main())


def test_every_request_leaves_a_record(tmp_path):
    path = tmp_path / "run.jsonl"

    async def main():
        async with edge(None, EdgeDouble(options=(LOCAL, SPLIT)), records=RecordStore(path)) as runtime:
            for _ in range(3):
                await runtime.infer(X, deadline_s=1.0)

    asyncio.run(main())
    rows = list(read_records(path).rows())
    assert [row.request for row in rows] == [1, 2, 3]
    assert all(row.route == "local" and row.planned == SPLIT.name and row.degraded for row in rows)


def test_a_listener_that_fails_costs_no_request_its_end(caplog):
    async def main():
        async with edge(None, EdgeDouble(options=(LOCAL,)), "local") as runtime:
            heard = []
            for listeners in (runtime.listeners, runtime.stage_listeners):
                listeners.append(lambda *news: 1 / 0)
            runtime.listeners.append(heard.append)
            for _ in range(3):
                assert (await runtime.infer(X)).route is Route.LOCAL
            assert len(heard) == 3 and runtime.in_flight == runtime.engine.in_flight == 0

    asyncio.run(main())
    assert "a listener failed" in caplog.text


def test_an_answer_that_can_not_be_given_is_a_typed_error_of_that_request_alone(monkeypatch, caplog):
    """Two requests end in one step of the engine; what goes wrong with the first leaves the second."""
    given = EdgeRuntime._fail
    broken = []

    def fail(self, action):
        if not broken:
            broken.append(action.request)
            raise KeyError("a defect")
        given(self, action)

    monkeypatch.setattr(EdgeRuntime, "_fail", fail)

    async def main():
        async with edge("tcp://127.0.0.1:9", connect=False, model=EdgeDouble(options=(SPLIT,))) as runtime:
            now = runtime.clock()
            monkeypatch.setattr(runtime, "_clock", lambda: now)  # both deadlines pass at one moment
            waiting = [asyncio.ensure_future(runtime.infer(X, deadline_s=0.05)) for _ in range(2)]
            await asyncio.sleep(0.05)
            now += 1.0
            done = await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)
            assert {type(error) for error in done} == {EdgeFailed, DeadlineExceeded}
            assert runtime.in_flight == runtime.engine.in_flight == 0

    asyncio.run(main())
    assert len(broken) == 1 and "KeyError" in caplog.text


def test_requests_beyond_the_engines_limit_are_refused_at_once():
    async def main():
        model = EdgeDouble(before=lambda stage: time.sleep(0.05))
        async with edge(None, model, policy="local", engine=EngineSettings(max_in_flight=2)) as runtime:
            results = await asyncio.gather(*(runtime.infer(X) for _ in range(5)), return_exceptions=True)
            assert sum(isinstance(r, Rejected) for r in results) == 3
            assert runtime.in_flight == 0

    asyncio.run(main())


def test_threads_share_one_runtime():
    with _threaded(EdgeDouble(options=(LOCAL, EXIT))) as runtime:
        answers = {}

        def ask(i):
            answers[i] = runtime.infer(X + i, 5.0, Route.LOCAL).output

        threads = [threading.Thread(target=ask, args=(i,)) for i in range(16)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        assert all(torch.equal(answers[i], (X + i) * 2 + 200) for i in range(16))
    with pytest.raises(Rejected, match="closed"):
        runtime.infer(X)


def test_a_call_that_meets_a_closing_runtime_ends_all_the_same(monkeypatch):
    """The other thread closes just after this one looked whether it is open."""
    runtime = _threaded(EdgeDouble(options=(LOCAL,)))
    hand_over, closing = asyncio.run_coroutine_threadsafe, []

    def late(job, loop):
        if not closing:
            closing.append(threading.Thread(target=runtime.close))
            closing[0].start()
            closing[0].join(1.0)
        return hand_over(job, loop)

    monkeypatch.setattr(asyncio, "run_coroutine_threadsafe", late)
    ended = []

    def ask():
        try:
            ended.append(runtime.infer(X).route)
        except Rejected as error:
            ended.append(error)

    caller = threading.Thread(target=ask, daemon=True)
    caller.start()
    caller.join(10)
    closing[0].join(10)
    assert not caller.is_alive() and len(ended) == 1


def test_errors_cross_threads_with_their_type():
    with _threaded(EdgeDouble()) as runtime, pytest.raises(CodecError, match="float32"):
        runtime.infer(X.double())


def test_a_forked_child_is_told_to_open_its_own():
    with _threaded(EdgeDouble()) as runtime:
        runtime.infer(X)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # newer Pythons warn of forks with threads
            child = os.fork()
        if child == 0:
            try:
                runtime.infer(X)
            except Rejected as error:
                runtime.close()  # does nothing here, and above all does not wait for ever
                os._exit(0 if "fork" in str(error) else 2)
            os._exit(1)
        assert os.waitpid(child, 0)[1] == 0
        assert runtime.infer(X).route is Route.LOCAL


def test_a_program_that_forgets_to_close_still_ends():
    script = (
        "import torch\n"
        "from doubler import EdgeDouble\n"
        "from test_edge_runtime import _threaded, X\n"
        "runtime = _threaded(EdgeDouble())\n"
        "print(runtime.infer(X).route)\n"
    )
    paths = os.pathsep.join([str(Path(__file__).parent), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", script],
        env=os.environ | {"PYTHONPATH": paths},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "local\n", "")


def test_a_deployment_that_needs_a_cloud_says_so_when_it_has_none():
    with pytest.raises(ConfigError, match="only with a cloud"):
        _threaded(EdgeDouble(options=(SPLIT,)), policy="split")


def _threaded(model, policy="local"):
    return ThreadedRuntime(EdgeRuntime(model, Engine(model.options, Static(policy)), None))
