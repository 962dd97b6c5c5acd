"""CURVE key pairs on disk, who may connect, and the authenticator that enforces it.

A key directory holds `NAME.secret` (this machine's private key, mode 0600), `NAME.key` (its public key,
to be given to peers) and `trusted/NAME.key` for each peer that may connect. A server reads `trusted/`
again whenever it changes, so a key is admitted or revoked without a restart.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import re
import stat
import struct
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import zmq
import zmq.auth.thread
from zmq.utils import z85
from zmq.utils.monitor import recv_monitor_message

from splitedge.errors import AuthenticationError, ConfigError

log = logging.getLogger(__name__)

TRUSTED = "trusted"
DOMAIN = "splitedge"
MAX_FILE_BYTES = 4096
SELF_TEST_S = 5.0

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class KeyPair:
    """One machine's keys, 40 characters of Z85 each."""

    name: str
    public: bytes
    secret: bytes = field(repr=False)


# Key files ----------------------------------------------------------------------------------------


def new_keys(directory: Path | str, name: str) -> Path:
    """Make a key pair in `directory` (created with mode 0700) and return the public key's file.

    Raises:
        ConfigError: a bad name, or keys of that name exist already.
    """
    _check_name(name)
    folder = Path(directory)
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    public, secret = zmq.curve_keypair()
    try:
        handle = os.open(folder / f"{name}.secret", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise ConfigError(
            f"{folder / name}.secret exists already; remove it first if its peers may forget it"
        ) from None
    with os.fdopen(handle, "wb") as file:
        file.write(b"# splitedge private key: stays on this machine\nsecret: " + secret + b"\n")
    path = folder / f"{name}.key"
    _write(path, public)
    return path


def load_keys(directory: Path | str, name: str | None = None) -> KeyPair:
    """The key pair of this machine; `name` is needed only where a directory holds several.

    Raises:
        ConfigError: none or several there, a damaged file, or a private key that others can read.
    """
    folder = Path(directory)
    if name is None:
        found = sorted(folder.glob("*.secret"))
        if len(found) != 1:
            have = ", ".join(path.stem for path in found) or "none"
            raise ConfigError(
                f"{folder} must hold one private key, it has {have}; "
                + ("say which one by name" if found else f"run 'splitedge keys new NAME --dir {folder}'")
            )
        name = found[0].stem
    _check_name(name)
    path = folder / f"{name}.secret"
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except OSError as error:
        raise ConfigError(f"no private key {path}: {error.strerror}") from None
    if mode & 0o077:
        raise ConfigError(f"private key {path} can be read by others (mode {mode:04o}): chmod 600 {path}")
    secret = _read(path, "secret")
    return KeyPair(name, zmq.curve_public(secret), secret)


def trust(directory: Path | str, public_key: str | Path, name: str | None = None) -> Path:
    """Let the owner of a public key connect. Returns the file in `trusted/`.

    Args:
        directory: this machine's key directory.
        public_key: the peer's `.key` file, or the 40 characters of the key itself.
        name: what to call the peer; default is the file's name.

    Raises:
        ConfigError: not a public key, or another key is trusted under that name.
    """
    given = Path(public_key)
    if given.is_file():
        key, name = _read(given, "public"), name or given.stem
    elif _valid(str(public_key).encode()):
        key = str(public_key).encode()
    else:
        raise ConfigError(f"'{public_key}' is neither a file nor a public key of 40 characters")
    if name is None:
        raise ConfigError("give the peer a name (--name) when you trust a key that is not in a file")
    _check_name(name)
    folder = Path(directory) / TRUSTED
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    path = folder / f"{name}.key"
    if path.exists() and _read(path, "public") != key:
        raise ConfigError(f"{path} trusts another key under that name; remove it or choose another name")
    _write(path, key)
    return path


def trusted_key(directory: Path | str, name: str | None = None) -> bytes:
    """The one trusted public key of a directory (an edge's: its cloud's), or that of `name`.

    Raises:
        ConfigError: no such key, or several and no name.
    """
    folder = Path(directory) / TRUSTED
    found = sorted(folder.glob("*.key")) if name is None else [folder / f"{name}.key"]
    if len(found) != 1 or not found[0].is_file():
        have = ", ".join(path.stem for path in sorted(folder.glob("*.key"))) or "none"
        raise ConfigError(
            f"{folder} must hold the cloud's public key, it has {have}; "
            f"run 'splitedge keys trust CLOUD.key --dir {directory}', or say which one by name"
        )
    return _read(found[0], "public")


def _write(path: Path, key: bytes) -> None:
    part = path.with_suffix(".part")
    part.write_bytes(b"# splitedge public key: give it to peers\npublic: " + key + b"\n")
    part.replace(path)  # a server that reads the directory now sees the old file or the new one


def _read(path: Path, kind: str) -> bytes:
    try:
        with path.open("rb") as file:
            text = file.read(MAX_FILE_BYTES)
    except OSError as error:
        raise ConfigError(f"can not read key file {path}: {error.strerror}") from None
    for line in text.splitlines():
        label, _, value = line.partition(b":")
        key = value.strip()
        if label == kind.encode() and _valid(key):
            return key
    if kind == "public" and b"secret:" in text:
        raise ConfigError(f"{path} is a private key; take the .key file beside it")
    raise ConfigError(f"{path} holds no {kind} key of splitedge; make one with 'splitedge keys new'")


def _valid(key: bytes) -> bool:
    if len(key) != 40:
        return False
    try:
        return bool(z85.encode(z85.decode(key)) == key)
    except (KeyError, ValueError, struct.error):  # a foreign character, not ASCII, five that pass 2**32
        return False


def _check_name(name: str) -> None:
    if not _NAME.fullmatch(name):
        raise ConfigError(f"'{name}' is no key name: letters, digits, '.', '_' and '-', at most 64")


# Who may connect ----------------------------------------------------------------------------------


class AllowList:
    """The trusted public keys of a key directory, read again when `trusted/` changes."""

    def __init__(self, directory: Path | str) -> None:
        self._folder = Path(directory) / TRUSTED
        self._signature: tuple[tuple[str, int, int, int], ...] | None = None
        self._keys: dict[bytes, str] = {}

    def __contains__(self, key: bytes) -> bool:
        self._refresh()
        return key in self._keys

    def __len__(self) -> int:
        self._refresh()
        return len(self._keys)

    def name_of(self, key: bytes) -> str:
        """What the owner of `key` is called here; empty when it is not trusted."""
        self._refresh()
        return self._keys.get(key, "")

    def not_trusted(self, keys: Iterable[bytes]) -> set[bytes]:
        """Those of `keys` that may not connect; looks at the directory once."""
        self._refresh()
        return {key for key in keys if key not in self._keys}

    def _refresh(self) -> None:
        try:
            _refuse_writable(self._folder, self._folder.stat().st_mode)
            with os.scandir(self._folder) as entries:
                files = [(e.name, e.stat()) for e in entries if e.name.endswith(".key")]
        except FileNotFoundError:
            files = []
        except OSError as error:
            self._nobody(f"can not read {self._folder}: {error.strerror}")
            files = []
        except ConfigError as error:
            self._nobody(str(error))
            files = []
        signature = tuple(sorted((name, s.st_mtime_ns, s.st_size, s.st_mode) for name, s in files))
        if signature == self._signature:
            return
        keys: dict[bytes, str] = {}
        for name, _, _, mode in signature:
            try:
                _refuse_writable(self._folder / name, mode)
                keys[_read(self._folder / name, "public")] = name.removesuffix(".key")
            except ConfigError as error:
                log.error("skipped: %s", error)
        self._keys, self._signature = keys, signature
        log.info("%d keys are trusted", len(keys))

    def _nobody(self, why: str) -> None:
        """Say once why nobody is trusted."""
        if self._signature != ():
            log.error("%s: nobody is trusted", why)


def _refuse_writable(path: Path, mode: int) -> None:
    """Whoever may write here decides who is trusted.

    Raises:
        ConfigError: any user of this machine may.
    """
    if mode & stat.S_IWOTH:
        raise ConfigError(
            f"{path} can be written by anybody (mode {stat.S_IMODE(mode):04o}): chmod o-w {path}"
        )


class Authenticator:
    """Answers libzmq's question whether a client's key may connect, in a thread of its own.

    libzmq lets every key in when nobody answers (RFC 27/ZAP), so `start` comes before any bind and
    proves that a key made up on the spot is refused.
    """

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], pair: KeyPair, allow: AllowList) -> None:
        self._context = context
        self._pair = pair
        self._allow = allow
        self._stranger = b""
        self._thread: zmq.auth.thread.ThreadAuthenticator | None = None

    @property
    def alive(self) -> bool:
        """Whether handshakes are being decided."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin to decide and prove it.

        Raises:
            AuthenticationError: a random key was let in, or not refused in time.
        """
        self._thread = zmq.auth.thread.ThreadAuthenticator(self._context)
        self._thread.start()
        self._thread.configure_curve_callback(domain=DOMAIN, credentials_provider=self)
        stranger = KeyPair("stranger", *zmq.curve_keypair())
        self._stranger = stranger.public
        try:
            refused = _is_refused(self._context, self._pair, stranger)
        except BaseException:
            self.stop()
            raise
        if not refused:
            self.stop()
            raise AuthenticationError(
                "start-up self-test: a random key was not refused, so the server does not start; "
                "check that no other authenticator runs in this process"
            )

    def callback(self, domain: str, key: bytes) -> bool:
        """What pyzmq asks for each handshake; must not raise."""
        allowed = key in self._allow
        if not allowed and key != self._stranger:
            log.warning("refused a connection: key %s is not trusted", key.decode("ascii", "replace"))
        return allowed

    def stop(self) -> None:
        """Stop deciding."""
        if self._thread is not None:
            self._thread.stop()
            self._thread = None


def _is_refused(context: zmq.Context[zmq.Socket[bytes]], pair: KeyPair, stranger: KeyPair) -> bool:
    """Connect to a throw-away socket, secured as the real one will be, with a key nobody trusts."""
    server, client = context.socket(zmq.ROUTER), context.socket(zmq.DEALER)
    monitor = client.get_monitor_socket(zmq.EVENT_HANDSHAKE_FAILED_AUTH | zmq.EVENT_HANDSHAKE_SUCCEEDED)
    try:
        server.linger = client.linger = 0
        secure_server(server, pair)
        port = server.bind_to_random_port("tcp://127.0.0.1")
        secure_client(client, stranger, pair.public)
        client.connect(f"tcp://127.0.0.1:{port}")
        if not monitor.poll(int(SELF_TEST_S * 1000)):
            return False
        event = recv_monitor_message(monitor)["event"]
        return bool(event == zmq.EVENT_HANDSHAKE_FAILED_AUTH)
    finally:
        client.disable_monitor()
        monitor.close(0)
        client.close(0)
        server.close(0)


# Sockets ------------------------------------------------------------------------------------------


def secure_server(socket: zmq.Socket[bytes], pair: KeyPair) -> None:
    """Make a socket that will bind speak CURVE with these keys and ask the authenticator."""
    socket.curve_server = True
    socket.curve_publickey = pair.public
    socket.curve_secretkey = pair.secret
    socket.zap_domain = DOMAIN.encode()
    socket.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)  # nobody to ask means nobody comes in
    socket.setsockopt(zmq.HANDSHAKE_IVL, 2000)


def secure_client(socket: zmq.Socket[bytes], pair: KeyPair, server_key: bytes) -> None:
    """Make a socket that will connect speak CURVE and accept only the server that owns `server_key`."""
    socket.curve_publickey = pair.public
    socket.curve_secretkey = pair.secret
    socket.curve_serverkey = server_key


def is_loopback(endpoint: str) -> bool:
    """Whether only this machine can reach an endpoint (`ipc://`, `inproc://`, loopback TCP).

    Raises:
        ConfigError: no ZeroMQ endpoint.
    """
    scheme, _, rest = endpoint.partition("://")
    if scheme in ("ipc", "inproc") and rest:
        return True
    host, _, port = rest.rpartition(":")
    if scheme != "tcp" or not host or not port:
        raise ConfigError(f"'{endpoint}' is no endpoint; write tcp://HOST:PORT")
    host = host.strip("[]")
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def require_keys(endpoint: str, keys: Path | str | None) -> None:
    """Refuse plain text off loopback.

    Raises:
        ConfigError: the endpoint can be reached from other machines and no keys are given.
    """
    if keys is None and not is_loopback(endpoint):
        raise ConfigError(
            f"{endpoint} leaves this machine and needs keys: run 'splitedge keys new NAME' "
            "and name the directory with --keys"
        )
