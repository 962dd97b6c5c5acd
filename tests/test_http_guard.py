"""http_guard.py: slow, idle and too many connections are closed; good clients are served meanwhile."""

from __future__ import annotations

import asyncio
import zlib

import aiohttp
import pytest
from aiohttp import web

from splitedge.errors import ConfigError
from splitedge.http_guard import HttpLimits, HttpServer, guarded_app

QUICK = HttpLimits(receive_s=0.3, max_connections=20, max_body=1000)


async def echo(request):
    return web.Response(body=await request.read())


async def slow(request):
    await asyncio.sleep(0.8)
    return web.Response(text="done")


def serving(test, limits=QUICK):
    """Run `test(server)` against an echo server."""

    async def body():
        app = guarded_app(limits)
        app.router.add_post("/echo", echo)
        app.router.add_get("/slow", slow)
        server = HttpServer(app, "127.0.0.1", 0, limits)
        await server.start()
        try:
            return await test(server)
        finally:
            await server.close()
            assert server.connections == 0

    return asyncio.run(asyncio.wait_for(body(), 20))


async def post(server, body):
    async with aiohttp.ClientSession() as session, session.post(f"{server.url}/echo", data=body) as answer:
        return answer.status, await answer.read()


async def closed_after(server, first, drip=b""):
    """Send `first`, then a byte of `drip` every 50 ms; everything read until the server closes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", server.port)
    writer.write(first)

    async def dripping():
        for byte in drip:
            writer.write(bytes([byte]))
            await asyncio.sleep(0.05)

    task = asyncio.ensure_future(dripping())
    try:
        return await asyncio.wait_for(reader.read(), 5)
    except ConnectionResetError:
        return b""
    finally:
        task.cancel()
        writer.close()


@pytest.mark.parametrize(
    ("first", "drip"),
    [
        (b"", b""),  # says nothing
        (b"POST /echo HTTP/1.1\r\nHost: x\r\n", b""),  # half a header
        (b"POST /echo HTTP/1.1\r\n", b"X: " + b"a" * 400),  # a header that never ends
        (b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 500\r\n\r\n", b"b" * 100),  # a dripping body
    ],
)
def test_a_slow_connection_is_closed_while_others_are_served(first, drip):
    async def test(server):
        slow_ones = [asyncio.ensure_future(closed_after(server, first, drip)) for _ in range(10)]
        await asyncio.sleep(0.1)
        assert await post(server, b"hello") == (200, b"hello")
        ends = await asyncio.gather(*slow_ones)
        assert all(end == b"" or end.startswith(b"HTTP/1.1 408") for end in ends)

    serving(test)


def test_a_connection_idle_after_an_answer_is_closed():
    async def test(server):
        request = b"POST /echo HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\nok"
        answer = await closed_after(server, request)
        assert answer.startswith(b"HTTP/1.1 200") and answer.endswith(b"ok")

    serving(test)


def test_a_handler_may_take_longer_than_the_receive_deadline():
    async def test(server):
        async with aiohttp.ClientSession() as session, session.get(f"{server.url}/slow") as answer:
            assert await answer.text() == "done"

    serving(test)


def test_connections_over_the_cap_are_closed_at_once():
    limits = HttpLimits(receive_s=5.0, max_connections=3, max_body=1000)

    async def test(server):
        held = [await asyncio.open_connection("127.0.0.1", server.port) for _ in range(3)]
        await asyncio.sleep(0.05)
        assert server.connections == 3
        assert await closed_after(server, b"GET /slow HTTP/1.1\r\n\r\n") == b""
        for _, writer in held:
            writer.close()
        await asyncio.sleep(0.05)
        assert await post(server, b"room again") == (200, b"room again")

    serving(test, limits)


def test_a_body_over_the_cap_is_refused():
    async def test(server):
        status, _ = await post(server, bytes(1001))
        assert status == 413

    serving(test)


@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
def test_a_body_that_can_not_be_decompressed_is_the_clients_error(encoding):
    async def test(server):
        headers = {"Content-Encoding": encoding}
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{server.url}/echo", data=b"x" * 100, headers=headers) as answer,
        ):
            assert answer.status == 400
            assert "Content-Encoding" in await answer.text()
        assert await post(server, b"good") == (200, b"good")

    serving(test)


@pytest.mark.parametrize("size", [10_000, 200_000_000])
def test_a_body_that_decompresses_beyond_the_cap_is_refused(size):
    compressor = zlib.compressobj(9, zlib.DEFLATED, 31)
    bomb = b"".join(compressor.compress(bytes(100_000)) for _ in range(max(1, size // 100_000)))
    bomb += compressor.flush()

    async def test(server):
        async with (
            aiohttp.ClientSession() as session,
            session.post(f"{server.url}/echo", data=bomb, headers={"Content-Encoding": "gzip"}) as answer,
        ):
            assert answer.status == 413

    serving(test)


def test_an_address_in_use_is_a_config_error():
    async def test(server):
        other = HttpServer(guarded_app(QUICK), "127.0.0.1", server.port, QUICK)
        with pytest.raises(ConfigError, match=f"can not listen for HTTP on 127.0.0.1:{server.port}"):
            await other.start()

    serving(test)
