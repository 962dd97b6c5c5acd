"""keys.py: key files, the allow-list, and that strangers stay outside."""

from __future__ import annotations

import contextlib
import os
import time

import pytest
import zmq
from zmq.utils.monitor import recv_monitor_message

from splitedge import keys
from splitedge.errors import AuthenticationError, ConfigError
from splitedge.keys import AllowList, Authenticator, KeyPair


def mode(path):
    return path.stat().st_mode & 0o777


def test_a_new_key_pair_can_be_loaded_and_its_private_half_is_private(tmp_path):
    public = keys.new_keys(tmp_path / "k", "cloud")
    pair = keys.load_keys(tmp_path / "k")
    assert public == tmp_path / "k" / "cloud.key"
    assert mode(tmp_path / "k") == 0o700 and mode(tmp_path / "k" / "cloud.secret") == 0o600
    assert pair.name == "cloud" and pair.public in public.read_bytes()
    assert pair.secret not in public.read_bytes() and pair.secret.decode() not in repr(pair)


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o777])
def test_a_private_key_that_others_can_read_is_refused(tmp_path, bits):
    keys.new_keys(tmp_path, "cloud")
    (tmp_path / "cloud.secret").chmod(bits)
    with pytest.raises(ConfigError, match=r"chmod 600 .*cloud\.secret"):
        keys.load_keys(tmp_path)


def test_keys_are_never_overwritten(tmp_path):
    keys.new_keys(tmp_path, "cloud")
    before = keys.load_keys(tmp_path)
    with pytest.raises(ConfigError, match="exists already"):
        keys.new_keys(tmp_path, "cloud")
    assert keys.load_keys(tmp_path) == before


@pytest.mark.parametrize("name", ["", "../up", ".hidden", "a/b", "a" * 65, "a b"])
def test_a_name_can_not_leave_the_directory(tmp_path, name):
    with pytest.raises(ConfigError, match="is no key name"):
        keys.new_keys(tmp_path, name)


def test_which_key_is_meant_must_be_clear(tmp_path):
    with pytest.raises(ConfigError, match="it has none; run 'splitedge keys new"):
        keys.load_keys(tmp_path)
    keys.new_keys(tmp_path, "a")
    keys.new_keys(tmp_path, "b")
    with pytest.raises(ConfigError, match="it has a, b; say which"):
        keys.load_keys(tmp_path)
    assert keys.load_keys(tmp_path, "b").name == "b"
    with pytest.raises(ConfigError, match="no private key"):
        keys.load_keys(tmp_path, "c")


def test_trust_takes_a_file_or_the_key_itself(tmp_path):
    public = keys.new_keys(tmp_path / "edge", "camera-3")
    pair = keys.load_keys(tmp_path / "edge")
    assert keys.trust(tmp_path / "cloud", public).name == "camera-3.key"
    assert keys.trusted_key(tmp_path / "cloud") == pair.public
    assert keys.trust(tmp_path / "cloud", pair.public.decode(), "again").name == "again.key"
    with pytest.raises(ConfigError, match="give the peer a name"):
        keys.trust(tmp_path / "cloud", pair.public.decode())
    with pytest.raises(ConfigError, match="it has again, camera-3"):
        keys.trusted_key(tmp_path / "cloud")
    assert keys.trusted_key(tmp_path / "cloud", "again") == pair.public


def test_trust_refuses_what_is_no_public_key(tmp_path):
    keys.new_keys(tmp_path, "edge")
    with pytest.raises(ConfigError, match="is a private key"):
        keys.trust(tmp_path, tmp_path / "edge.secret")
    (tmp_path / "noise.key").write_bytes(os.urandom(10_000))
    with pytest.raises(ConfigError, match="holds no public key"):
        keys.trust(tmp_path, tmp_path / "noise.key")
    for nonsense in ("x", "\x01" * 40, "#" * 40, "é" * 20):
        with pytest.raises(ConfigError, match="neither a file nor a public key"):
            keys.trust(tmp_path, nonsense, "peer")
    other = keys.new_keys(tmp_path / "other", "edge")
    keys.trust(tmp_path, tmp_path / "edge.key")
    with pytest.raises(ConfigError, match="another key under that name"):
        keys.trust(tmp_path, other)


def test_the_allow_list_follows_its_directory(tmp_path):
    allow = AllowList(tmp_path)
    key = zmq.curve_keypair()[0]
    assert key not in allow and len(allow) == 0
    path = keys.trust(tmp_path, key.decode(), "peer")
    assert key in allow and allow.name_of(key) == "peer"
    assert allow.not_trusted([key, b"other"]) == {b"other"}
    (tmp_path / "trusted" / "damaged.key").write_text("nonsense")
    assert key in allow and len(allow) == 1
    path.unlink()
    assert key not in allow and allow.name_of(key) == ""


def test_what_anybody_may_write_makes_nobody_trusted(tmp_path, caplog):
    allow, key = AllowList(tmp_path), zmq.curve_keypair()[0]
    path = keys.trust(tmp_path, key.decode(), "peer")
    assert key in allow
    for open_to_all, mode in ((path.parent, 0o777), (path, 0o666)):
        safe = open_to_all.stat().st_mode & 0o777
        open_to_all.chmod(mode)
        assert key not in allow and key not in allow
        assert caplog.text.count(f"chmod o-w {open_to_all}") == 1
        open_to_all.chmod(safe)
        assert key in allow


@pytest.mark.parametrize(
    ("endpoint", "local"),
    [
        ("tcp://127.0.0.1:7070", True),
        ("tcp://127.8.9.1:0", True),
        ("tcp://[::1]:7070", True),
        ("tcp://localhost:7070", True),
        ("ipc:///tmp/x", True),
        ("tcp://0.0.0.0:7070", False),
        ("tcp://*:7070", False),
        ("tcp://[::]:7070", False),
        ("tcp://192.168.1.4:7070", False),
        ("tcp://localhost.example.org:7070", False),
        ("tcp://eth0:7070", False),
    ],
)
def test_keys_are_needed_off_loopback(endpoint, local):
    assert keys.is_loopback(endpoint) is local
    if local:
        keys.require_keys(endpoint, None)
    else:
        with pytest.raises(ConfigError, match="needs keys: run 'splitedge keys new"):
            keys.require_keys(endpoint, None)
    keys.require_keys(endpoint, "somewhere")


@pytest.mark.parametrize("endpoint", ["", "7070", "udp://1.2.3.4:5", "tcp://7070", "tcp://:1", "tcp://host:"])
def test_an_endpoint_must_be_one(endpoint):
    with pytest.raises(ConfigError, match="write tcp://HOST:PORT"):
        keys.is_loopback(endpoint)


# Handshakes -------------------------------------------------------------------------------------


@contextlib.contextmanager
def secured(tmp_path):
    """A ROUTER behind an authenticator; yields (context, port, the server's public key, directory)."""
    keys.new_keys(tmp_path, "cloud")
    pair = keys.load_keys(tmp_path)
    context = zmq.Context()
    guard = Authenticator(context, pair, AllowList(tmp_path))
    guard.start()
    server = context.socket(zmq.ROUTER)
    try:
        keys.secure_server(server, pair)
        yield context, server.bind_to_random_port("tcp://127.0.0.1"), pair.public
    finally:
        server.close(0)
        guard.stop()
        context.destroy(linger=0)


def handshake(context, port, pair, server_key):
    """The first event of a connection attempt: 'in', 'refused', 'broken' or 'silence' within a second."""
    client = context.socket(zmq.DEALER)
    client.linger = 0
    monitor = client.get_monitor_socket(
        zmq.EVENT_HANDSHAKE_FAILED_AUTH
        | zmq.EVENT_HANDSHAKE_FAILED_NO_DETAIL
        | zmq.EVENT_HANDSHAKE_FAILED_PROTOCOL
        | zmq.EVENT_HANDSHAKE_SUCCEEDED
        | zmq.EVENT_DISCONNECTED
    )
    try:
        if pair is not None:
            keys.secure_client(client, pair, server_key)
        client.connect(f"tcp://127.0.0.1:{port}")
        if not monitor.poll(1000):
            return "silence"
        event = recv_monitor_message(monitor)["event"]
        named = {zmq.EVENT_HANDSHAKE_SUCCEEDED: "in", zmq.EVENT_HANDSHAKE_FAILED_AUTH: "refused"}
        return named.get(event, "broken")
    finally:
        client.disable_monitor()
        monitor.close(0)
        client.close(0)


def test_only_a_trusted_key_comes_in_and_it_can_be_revoked(tmp_path):
    with secured(tmp_path) as (context, port, server_key):
        pair = KeyPair("edge", *zmq.curve_keypair())
        assert handshake(context, port, pair, server_key) == "refused"
        path = keys.trust(tmp_path, pair.public.decode(), "edge")
        assert handshake(context, port, pair, server_key) == "in"
        path.unlink()
        assert handshake(context, port, pair, server_key) == "refused"


def test_no_key_and_the_wrong_server_key_do_not_come_in_either(tmp_path):
    with secured(tmp_path) as (context, port, server_key):
        pair = KeyPair("edge", *zmq.curve_keypair())
        keys.trust(tmp_path, pair.public.decode(), "edge")
        assert handshake(context, port, None, server_key) == "broken"
        assert handshake(context, port, pair, zmq.curve_keypair()[0]) == "broken"
        assert handshake(context, port, pair, server_key) == "in"


def test_the_self_test_finds_an_authenticator_that_lets_anyone_in(tmp_path):
    class Careless(AllowList):
        def __contains__(self, key):
            return True

    keys.new_keys(tmp_path, "cloud")
    context = zmq.Context()
    guard = Authenticator(context, keys.load_keys(tmp_path), Careless(tmp_path))
    try:
        with pytest.raises(AuthenticationError, match="a random key was not refused"):
            guard.start()
        assert not guard.alive
    finally:
        context.destroy(linger=0)


def test_without_an_authenticator_nobody_comes_in(tmp_path):
    keys.new_keys(tmp_path, "cloud")
    pair = keys.load_keys(tmp_path)
    context = zmq.Context()
    server = context.socket(zmq.ROUTER)
    try:
        keys.secure_server(server, pair)
        port = server.bind_to_random_port("tcp://127.0.0.1")
        assert handshake(context, port, KeyPair("edge", *zmq.curve_keypair()), pair.public) != "in"
    finally:
        context.destroy(linger=0)


def test_the_authenticator_survives_nonsense_and_a_missing_directory(tmp_path):
    with secured(tmp_path) as (context, port, server_key):
        pair = KeyPair("edge", *zmq.curve_keypair())
        path = keys.trust(tmp_path, pair.public.decode(), "edge")
        path.parent.chmod(0o700)
        (path.parent / "dir.key").mkdir()
        assert handshake(context, port, pair, server_key) == "in"
        for entry in path.parent.iterdir():
            entry.rmdir() if entry.is_dir() else entry.unlink()
        path.parent.rmdir()
        assert handshake(context, port, pair, server_key) == "refused"
        keys.trust(tmp_path, pair.public.decode(), "edge")
        end = time.monotonic() + 2
        while handshake(context, port, pair, server_key) != "in":
            assert time.monotonic() < end
