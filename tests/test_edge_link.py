"""The edge's link: keys that are refused are named within a second, cuts are noticed, bytes are bounded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time

import pytest
import torch
import zmq
from doubler import SPLIT, CloudDouble, EdgeDouble
from hypothesis import given
from hypothesis import strategies as st

from splitedge import keys
from splitedge.cloud.server import CloudServer
from splitedge.cloud.settings import ServerSettings
from splitedge.codec import Payload
from splitedge.edge.link import LinkState, ZmqLink
from splitedge.edge.remote import Arrival, Remote
from splitedge.edge.runtime import EdgeRuntime
from splitedge.edge.session import Session, Unanswered
from splitedge.edge.settings import EdgeSettings
from splitedge.engine import Engine
from splitedge.errors import AuthenticationError, ConfigError, LinkDown, LinkError, RequestError
from splitedge.events import Ponged, Send
from splitedge.policies.static import Static
from splitedge.policy import Route
from splitedge.wire import Hello, Infer, Lane, Ping, Pong, Refuse, Reply, Welcome, pack, unpack

X = torch.arange(8.0).view(1, 8)
FAST = EdgeSettings(reconnect_s=0.02, reconnect_max_s=0.1, heartbeat_s=0.1, hello_s=0.2)


@pytest.fixture
def quiet():
    logging.disable(logging.CRITICAL)
    yield
    logging.disable(logging.NOTSET)


def key_dirs(tmp_path):
    """Key directories of a cloud and an edge that trust each other."""
    cloud, edge = tmp_path / "cloud", tmp_path / "edge"
    cloud_key, edge_key = keys.new_keys(cloud, "cloud"), keys.new_keys(edge, "cam-1")
    keys.trust(cloud, edge_key)
    keys.trust(edge, cloud_key)
    return cloud, edge


@contextlib.asynccontextmanager
async def running(link, model=None, settings=FAST):
    model = model or EdgeDouble(options=(SPLIT,))
    runtime = EdgeRuntime(model, Engine(model.options, Static("split")), link, settings=settings)
    await runtime.start()
    try:
        yield runtime
    finally:
        await runtime.close()


@contextlib.asynccontextmanager
async def cloud(keys_dir=None):
    settings = ServerSettings(listen="tcp://127.0.0.1:0", http="", keys=keys_dir)
    server = CloudServer([CloudDouble()], settings)
    await server.start()
    try:
        yield server
    finally:
        await server.stop()


async def until(condition, within_s=5.0):
    end = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < end, "did not happen in time"
        await asyncio.sleep(0.01)


# Keys -----------------------------------------------------------------------------------------------


def test_with_keys_that_trust_each_other_requests_are_answered(tmp_path):
    cloud_dir, edge_dir = key_dirs(tmp_path)

    async def main():
        async with cloud(cloud_dir) as server:
            link = ZmqLink(server.endpoint, keys.load_keys(edge_dir), keys.trusted_key(edge_dir), FAST)
            async with running(link) as runtime:
                await runtime.connected(5.0)
                assert torch.equal((await runtime.infer(X, 2.0)).output, X * 2)

    asyncio.run(main())


def test_a_key_the_cloud_does_not_trust_is_named_within_a_second(tmp_path, quiet):
    cloud_dir, edge_dir = key_dirs(tmp_path)
    stranger = tmp_path / "stranger"
    keys.new_keys(stranger, "cam-2")

    async def main():
        async with cloud(cloud_dir) as server:
            link = ZmqLink(server.endpoint, keys.load_keys(stranger), keys.trusted_key(edge_dir), FAST)
            async with running(link) as runtime:
                start = time.monotonic()
                with pytest.raises(
                    AuthenticationError, match=r"refused this device's key .*'cam-2'.*keys trust"
                ):
                    await runtime.connected(5.0)
                assert time.monotonic() - start < 1.0
                with pytest.raises(RequestError) as failure:
                    await runtime.infer(X, 0.1)
                assert isinstance(failure.value.__cause__, AuthenticationError)
                keys.trust(cloud_dir, stranger / "cam-2.key")  # as the message says; nothing is restarted
                await until(lambda: runtime.remote.up)
                assert torch.equal((await runtime.infer(X, 2.0)).output, X * 2)

    asyncio.run(main())


def test_another_cloud_than_the_trusted_one_is_suspected_within_a_second(tmp_path, quiet):
    cloud_dir, edge_dir = key_dirs(tmp_path)
    wrong, _ = zmq.curve_keypair()

    async def main():
        async with (
            cloud(cloud_dir) as server,
            running(ZmqLink(server.endpoint, keys.load_keys(edge_dir), wrong, FAST)) as runtime,
        ):
            start = time.monotonic()
            with pytest.raises(AuthenticationError, match="key mismatch"):
                await runtime.connected(5.0)
            assert time.monotonic() - start < 1.0

    asyncio.run(main())


def test_an_edge_without_keys_at_a_cloud_with_keys_is_told_so(tmp_path, quiet):
    cloud_dir, _ = key_dirs(tmp_path)

    async def main():
        async with cloud(cloud_dir) as server, running(ZmqLink(server.endpoint, settings=FAST)) as runtime:
            with pytest.raises(AuthenticationError, match="one side has keys and the other none"):
                await runtime.connected(5.0)

    asyncio.run(main())


def test_plain_text_never_leaves_the_machine():
    with pytest.raises(ConfigError, match="needs keys"):
        ZmqLink("tcp://192.0.2.1:7070")


def test_half_a_pair_of_keys_is_refused():
    with pytest.raises(LinkError, match="both this device's keys and the cloud's"):
        ZmqLink("tcp://127.0.0.1:7070", server_key=zmq.curve_keypair()[0])


# The connection -------------------------------------------------------------------------------------


def router(context, endpoint="tcp://127.0.0.1:0"):
    socket = context.socket(zmq.ROUTER)
    socket.linger = 0
    socket.bind(endpoint)
    return socket, socket.getsockopt(zmq.LAST_ENDPOINT).rstrip(b"\0").decode()


def test_a_link_tells_of_every_connection_and_carries_every_message_both_ways():
    async def main():
        context = zmq.Context()
        server, endpoint = router(context)
        states, messages = [], []
        link = ZmqLink(endpoint, settings=FAST)
        link.start(
            asyncio.get_running_loop(), lambda f: messages.append([bytes(x) for x in f]), states.append
        )
        await until(lambda: states and states[-1].connected)
        await asyncio.sleep(0.05)
        sent = [[b"head %d" % i, b"x" * (i * 700)] for i in range(200)]
        for frames in sent:
            link.send(frames)
        got = []
        while len(got) < len(sent):
            assert server.poll(2000)
            peer, *frames = server.recv_multipart()
            got.append(frames)
            server.send_multipart([peer, *frames])
        assert got == sent
        await until(lambda: len(messages) == len(sent))
        assert messages == sent
        server.close(0)
        await until(lambda: not states[-1].connected)
        with pytest.raises(LinkDown):
            for _ in range(100):  # libzmq may take an instant to see it
                link.send([b"lost"])
                await asyncio.sleep(0.01)
        server, _ = router(context, endpoint)
        await until(lambda: states[-1].connected)
        assert not server.poll(100), "what was sent while the peer was away must not arrive late"
        link.close()
        link.close()
        with pytest.raises(LinkDown, match="closed"):
            link.send([b"x"])
        server.close(0)
        context.term()

    asyncio.run(main())


def test_a_slow_link_is_no_key_mismatch(monkeypatch):
    """Whoever listens there never says a word: libzmq gives up the handshake, again and again."""
    monkeypatch.setattr("splitedge.edge.link._HANDSHAKE_S", 0.1)

    async def main():
        connections, states = [], []
        silent = await asyncio.start_server(lambda *streams: connections.append(streams), "127.0.0.1", 0)
        port = silent.sockets[0].getsockname()[1]
        mine, theirs = (keys.KeyPair(name, *zmq.curve_keypair()) for name in ("cam-1", "cloud"))
        link = ZmqLink(f"tcp://127.0.0.1:{port}", mine, theirs.public, FAST)
        link.start(asyncio.get_running_loop(), print, states.append)
        await until(lambda: len(connections) > 5)
        link.close()
        for _, writer in connections:
            writer.close()
        silent.close()
        assert states and {(state.connected, state.error) for state in states} == {(False, None)}
        assert "no handshake" in states[-1].reason

    asyncio.run(main())


def test_messages_over_the_cap_break_the_connection_and_not_the_process(quiet):
    async def main():
        context = zmq.Context()
        server, endpoint = router(context)
        settings = EdgeSettings(max_message=2**18, reconnect_s=0.02)
        states, messages = [], []
        link = ZmqLink(endpoint, settings=settings)
        link.start(asyncio.get_running_loop(), messages.append, states.append)
        await until(lambda: states and states[-1].connected)
        await asyncio.sleep(0.05)
        link.send([b"hello"])
        assert server.poll(2000)
        peer, _ = server.recv_multipart()
        server.send_multipart([peer, b"x" * (2**18 + 1)])
        await until(lambda: any(not state.connected for state in states))
        assert not messages
        link.close()
        server.close(0)
        context.term()

    asyncio.run(main())


# Session and budget ---------------------------------------------------------------------------------


class Puppet:
    """A link whose cloud is a function from message to answers."""

    encrypted = False

    def __init__(self, answer):
        self.answer = answer
        self.sent = []

    def start(self, loop, on_message, on_state):
        self.loop, self.on_message, self.on_state = loop, on_message, on_state
        loop.call_soon(on_state, LinkState(True, "connected"))

    def send(self, frames):
        message = unpack([bytes(f) for f in frames])
        self.sent.append(message)
        for answer in self.answer(message):
            self.loop.call_soon(self.on_message, [bytes(f) for f in pack(answer)])

    def close(self):
        pass


def welcome(message, epoch=b"e" * 8, most=2**25):
    return Welcome(epoch, tuple(range(len(message.lanes))), "", most)


def reply(message, tensor):
    return Reply(message.request, message.attempt, 1, 2, 0, 0, 0, (tensor,))


def test_the_way_begins_before_a_message_is_handed_over():
    """A stamp taken after it would be late where another thread has its turn: the way would look shorter."""
    took, now = 0.005, [0.0]
    told = []

    def answer(message):
        if not isinstance(message, Hello):
            now[0] += took  # the thread is put off while it sends
        if isinstance(message, Infer):
            return [reply(message, X * 2)]
        return [welcome(message)] if isinstance(message, Hello) else [Pong(message.token, 1, 2)]

    async def main():
        model = EdgeDouble(options=(SPLIT,))
        remote = Remote(model, Puppet(answer), FAST, lambda: now[0], told.append, told.append)
        remote.start(asyncio.get_running_loop())
        await remote.connected(1.0)
        remote.ping()
        remote.send(Send(1, 1, 0, 1.0), Payload("raw", 0, 1, bytes(100)))
        await until(lambda: {Ponged, Arrival} <= {type(one) for one in told})
        (ponged,) = (one for one in told if isinstance(one, Ponged))
        (replied,) = (one for one in told if isinstance(one, Arrival))
        assert ponged.rtt_s >= took - 1e-6
        assert replied.uplink_s + replied.downlink_s >= took - 1e-6

    asyncio.run(main())


def test_a_forgotten_session_is_greeted_again_and_the_request_still_answered():
    known = []

    def answer(message):
        if isinstance(message, Hello):
            known.append(message.session)
            return [welcome(message)]
        if isinstance(message, Infer):
            if len(known) < 2:
                return [Refuse(message.request, message.attempt, "unknown", "no session", 0)]
            return [reply(message, X * 2)]
        return [Pong(message.token, 1, 2)] if isinstance(message, Ping) else []

    async def main():
        async with running(Puppet(answer)) as runtime:
            await runtime.connected(1.0)
            result = await runtime.infer(X, 2.0)
            assert result.route is Route.SPLIT
            assert result.record.attempts == 2
            assert known == [known[0]] * 2, "the session's id lasts for the whole run"

    asyncio.run(main())


@pytest.mark.parametrize("tensor", [torch.zeros(2, 8), torch.zeros(1, 9), torch.zeros(1, 8).half()])
def test_a_reply_that_does_not_fit_the_model_is_never_an_answer(tensor, quiet):
    def answer(message):
        if isinstance(message, Infer):
            return [reply(message, tensor)]
        return [welcome(message)] if isinstance(message, Hello) else []

    async def main():
        async with running(Puppet(answer)) as runtime:
            await runtime.connected(1.0)
            with pytest.raises(RequestError, match="does not fit the model"):
                await runtime.infer(X, 0.5)
            assert runtime.in_flight == runtime.engine.in_flight == 0

    asyncio.run(main())


def test_garbage_from_the_cloud_is_dropped(quiet):
    async def main():
        puppet = Puppet(lambda m: [welcome(m)] if isinstance(m, Hello) else [reply(m, X)])
        async with running(puppet) as runtime:
            await runtime.connected(1.0)
            for frames in ([b""], [b"\x93\x01\x02"], [b"x" * 100_000], [b"", b""], [bytes(pack(Ping(1))[0])]):
                puppet.on_message(frames)
            assert (await runtime.infer(X, 1.0)).route is Route.SPLIT

    asyncio.run(main())


def test_a_silent_cloud_can_not_be_sent_more_than_the_budget():
    settings = EdgeSettings(max_unanswered=2**20)

    async def main():
        puppet = Puppet(lambda m: [welcome(m)] if isinstance(m, Hello) else [])
        model = EdgeDouble(options=(SPLIT,))
        async with running(puppet, model, settings) as runtime:
            await runtime.connected(1.0)
            batch = torch.zeros(4000, 8)  # 128 kB
            ends = await asyncio.gather(
                *(runtime.infer(batch, 0.3) for _ in range(20)), return_exceptions=True
            )
            assert all(isinstance(end, RequestError) for end in ends)
            sent = sum(m.payload.nbytes for m in puppet.sent if isinstance(m, Infer))
            assert sent <= 2**20
            assert 0 < runtime.remote.unanswered_bytes <= 2**20
            assert runtime.in_flight == 0

    asyncio.run(main())


def test_a_message_over_the_clouds_cap_is_not_sent():
    async def main():
        puppet = Puppet(lambda m: [welcome(m, most=1000)] if isinstance(m, Hello) else [])
        async with running(puppet) as runtime:
            await runtime.connected(1.0)
            with pytest.raises(RequestError):
                await runtime.infer(torch.zeros(100, 8), 0.3)
            assert not any(isinstance(m, Infer) for m in puppet.sent)

    asyncio.run(main())


def test_lanes_are_numbered_anew_on_every_connection():
    a, b = Lane("a" * 64, "cut", "raw:1"), Lane("a" * 64, "", "webp:1")
    session = Session([a, b, a])
    assert session.hello().lanes == (a, b)
    assert session.number(a) is None
    assert session.welcome(Welcome(b"1" * 8, (4, 7), "", 100))
    assert (session.number(a), session.number(b)) == (4, 7)
    assert not session.welcome(Welcome(b"1" * 8, (0, 1), "", 100)), "the same lifetime of the cloud"
    session.lost()
    assert session.number(a) is None
    with pytest.raises(LinkError, match="answered for 1 lanes, 2 were asked for"):
        session.welcome(Welcome(b"2" * 8, (0,), "", 100))
    with pytest.raises(LinkError, match="codec webp:1: no such codec; serve the same bundle"):
        session.welcome(Welcome(b"2" * 8, (0, -1), "no such codec", 100))
    assert session.number(a) is None


@given(st.lists(st.tuples(st.sampled_from(["send", "answer"]), st.integers(1, 50)), max_size=60))
def test_the_budget_counts_what_was_sent_after_the_last_answered(steps):
    budget = Unanswered(200)
    sent: dict[tuple[int, int], int] = {}
    for number, (what, n) in enumerate(steps):
        if what == "send" and budget.fits(n):
            sent[number, 1] = n
            budget.sent((number, 1), n)
        elif what == "answer" and sent:
            answered = list(sent)[n % len(sent)]
            budget.arrived(answered)
            sent = {key: size for key, size in sent.items() if key > answered}
        assert budget.nbytes == sum(sent.values()) <= 200
