"""The servers of `overhead.py`, each run in a process of its own: `python _overhead_servers.py NAME ...`.

Each prints one line, its port, when it is ready, and runs until it is terminated.
"""

from __future__ import annotations

import asyncio
import socket
import sys

SIZES = {"1 kB": 1_000, "16 kB": 16_000, "100 kB": 100_000}


def ready(port: int) -> None:
    """Tell the benchmark."""
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


def splitedge(keys: str) -> None:
    """The real cloud server with CURVE; its models' tails return what they are given."""
    from _overhead_model import IdentityTail

    from splitedge.cloud.server import serve
    from splitedge.cloud.settings import ServerSettings

    settings = ServerSettings(listen="tcp://127.0.0.1:0", keys=keys, http="")
    tails = [IdentityTail(nbytes) for nbytes in SIZES.values()]
    asyncio.run(serve(tails, settings, ready=lambda endpoint: ready(int(endpoint.rpartition(":")[2]))))


def pyzmq() -> None:
    """A blocking ROUTER that sends every message back; no encryption."""
    import zmq

    with zmq.Context() as context, context.socket(zmq.ROUTER) as router:
        ready(router.bind_to_random_port("tcp://127.0.0.1"))
        while True:
            router.send_multipart(router.recv_multipart(copy=False), copy=False)


def grpc() -> None:
    """A bare grpc.aio echo: one generic method of bytes to bytes, no protobuf, no encryption."""
    import grpc as library

    async def echo(request: bytes, context: object) -> bytes:
        return request

    async def main() -> None:
        server = library.aio.server()
        method = library.unary_unary_rpc_method_handler(echo)  # no (de)serialisers: raw bytes
        server.add_generic_rpc_handlers((library.method_handlers_generic_handler("echo", {"Echo": method}),))
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        ready(port)
        await server.wait_for_termination()

    asyncio.run(main())


def litserve() -> None:
    """A LitServe echo, in the workers it starts by default."""
    from _overhead_litserve import run

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    ready(port)  # LitServe can not say when it listens: the client waits until it is healthy
    run(port)


if __name__ == "__main__":
    {"splitedge": splitedge, "pyzmq": pyzmq, "grpc": grpc, "litserve": litserve}[sys.argv[1]](*sys.argv[2:])
