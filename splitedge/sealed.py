"""Bundles on disk: written whole or not at all, and read only when every byte is as it was written.

    manifest.json      schema, version, plan, and SHA-256 and size of every other file
    manifest.sha256    the SHA-256 of manifest.json (as `sha256sum` writes it): the bundle's digest
    edge/              what the edge loads: head segments, exits, encoders, the local model
    cloud/             what the cloud loads: tail segments, decoders

The digest covers the manifest, and through it every file of both halves, so that the two sides know
that they hold halves of one bundle. It tells damage and mix-ups, not forgery: who can write the
directory can also write a new digest. Pass the digest you trust to `read(..., digest=...)` for that.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from splitedge.errors import BundleError

SCHEMA = 1
MANIFEST = "manifest.json"
SEAL = "manifest.sha256"
HALVES = ("edge", "cloud")

MAX_MANIFEST = 16 << 20
MAX_FILES = 4096
MAX_BYTES = 64 << 30
CHUNK = 1 << 20

Side = Literal["edge", "cloud", "both"]
_PATH = re.compile(r"(?:edge|cloud)/[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True)
class Sealed:
    """A bundle whose files have been checked: where it lies, its digest and its plan (plain JSON)."""

    directory: Path
    digest: str
    version: str
    plan: Mapping[str, Any]


# Writing ----------------------------------------------------------------------------------------------


def write(directory: Path | str, plan: Mapping[str, Any], version: str, fill: Callable[[Path], None]) -> str:
    """Write a bundle in one step: after a crash there is the old bundle, the new one, or none.

    Args:
        directory: where; replaced if it is a bundle or empty.
        plan: JSON-able.
        version: of splitedge, for people.
        fill: writes the halves' files into the `edge/` and `cloud/` of the directory it is given.

    Returns:
        The digest, 64 hex digits. Equal contents have equal digests.

    Raises:
        BundleError: the directory holds something that is not a bundle, or a file name is not allowed.
    """
    target = Path(directory).absolute()
    _refuse_foreign(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        fresh = work / "new"
        for half in HALVES:
            (fresh / half).mkdir(parents=True)
        fill(fresh)
        digest = _seal(fresh, plan, version)
        _swap(fresh, target, work / "old")
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return digest


def _seal(directory: Path, plan: Mapping[str, Any], version: str) -> str:
    files = {}
    for path in sorted(p for half in HALVES for p in (directory / half).iterdir()):
        name = path.relative_to(directory).as_posix()
        if not _PATH.fullmatch(name):
            raise BundleError(f"'{name}' is no name for a file in a bundle")
        files[name] = {"sha256": _sha256(path, name, path.stat().st_size), "bytes": path.stat().st_size}
    body = {"schema": SCHEMA, "splitedge": version, "plan": plan, "files": files}
    text = json.dumps(body, indent=1, sort_keys=True, allow_nan=False).encode() + b"\n"
    if len(text) > MAX_MANIFEST or len(files) > MAX_FILES:
        raise BundleError(f"a bundle of {len(files)} files and a manifest of {len(text)} bytes is too large")
    digest = hashlib.sha256(text).hexdigest()
    (directory / MANIFEST).write_bytes(text)
    (directory / SEAL).write_bytes(_seal_line(digest))
    for path in directory.rglob("*"):
        _fsync(path)
    return digest


def _seal_line(digest: str) -> bytes:
    return f"{digest}  {MANIFEST}\n".encode()


def _refuse_foreign(target: Path) -> None:
    """A bundle may replace a bundle or an empty directory, never anybody's other files."""
    if not os.path.lexists(target):
        return
    if target.is_symlink() or not target.is_dir():
        raise BundleError(f"{target} is there and is not a directory; choose another name")
    present = {entry.name for entry in _entries(target)}
    if present and not ({MANIFEST, SEAL} <= present <= {MANIFEST, SEAL, *HALVES}):
        raise BundleError(f"{target} is not empty and is not a bundle; it is left as it is")


def _swap(fresh: Path, target: Path, old: Path) -> None:
    if target.exists():
        target.rename(old)
    try:
        fresh.rename(target)
    except OSError:
        if old.exists():
            old.rename(target)
        raise
    _fsync(target.parent)


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


# Reading ----------------------------------------------------------------------------------------------


def read(
    directory: Path | str, side: Side = "both", *, digest: str | None = None, max_bytes: int = MAX_BYTES
) -> Sealed:
    """Check a bundle and return its plan. Only the files of `side` are opened; the other half may be absent.

    Args:
        directory: the bundle.
        side: which half is going to be loaded.
        digest: refuse any other bundle than this one.
        max_bytes: refuse a larger one.

    Raises:
        BundleError: something is missing, changed, too large, not a plain file, or of another schema;
            the message names the file.
    """
    root = Path(directory)
    if side not in (*HALVES, "both"):
        raise BundleError(f"a bundle has the sides edge, cloud and both, not '{side}'")
    if not root.is_dir():
        raise BundleError(f"no bundle at {root}")
    text = _read_plain(root, MANIFEST, MAX_MANIFEST)
    found = hashlib.sha256(text).hexdigest()
    _check_seal(root, found, digest)
    body = _parse(root, text)
    files: dict[str, dict[str, Any]] = body["files"]
    halves = HALVES if side == "both" else (side,)
    if sum(entry["bytes"] for entry in files.values()) > max_bytes:
        raise BundleError(f"{root} declares more than {max_bytes} bytes")
    _check_listing(root, files, halves)
    for name, entry in files.items():
        if name.split("/")[0] in halves and _sha256(root / name, name, entry["bytes"]) != entry["sha256"]:
            raise BundleError(f"{root}: '{name}' has been changed: its SHA-256 is not the manifest's")
    return Sealed(root, found, body["splitedge"], body["plan"])


def kind(directory: Path | str) -> str:
    """What a bundle holds by its manifest: `language`, or empty for a model cut by `torch.export`. Checks the
    manifest only.

    Raises:
        BundleError: there is none, or it has been changed.
    """
    root = Path(directory)
    if not root.is_dir():
        raise BundleError(f"no bundle at {root}")
    text = _read_plain(root, MANIFEST, MAX_MANIFEST)
    _check_seal(root, hashlib.sha256(text).hexdigest(), None)
    found = _parse(root, text)["plan"].get("kind", "")
    return found if isinstance(found, str) else ""


def _check_seal(root: Path, found: str, wanted: str | None) -> None:
    seal = _read_plain(root, SEAL, 4096)
    if not re.fullmatch(rb"[0-9a-f]{64}  manifest\.json\n", seal):
        raise BundleError(f"{root}: '{SEAL}' has been changed: it is no digest of '{MANIFEST}'")
    if seal != _seal_line(found):
        raise BundleError(f"{root}: '{MANIFEST}' and '{SEAL}' do not agree: one of the two has been changed")
    if wanted is not None and wanted != found:
        raise BundleError(f"{root} is bundle {found[:12]}…, and {wanted[:12]}… was asked for ('{MANIFEST}')")


def _parse(root: Path, text: bytes) -> dict[str, Any]:
    try:
        body = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{root}: '{MANIFEST}' is not JSON: {error}") from None
    if not isinstance(body, dict) or "schema" not in body:
        raise BundleError(f"{root}: '{MANIFEST}' is not the manifest of a splitedge bundle")
    if body["schema"] != SCHEMA or isinstance(body["schema"], bool):
        raise BundleError(
            f"{root}: '{MANIFEST}' has schema version {body['schema']!r}; this version of splitedge reads "
            f"{SCHEMA}. Save the bundle again with this version, or install the one that wrote it"
        )
    if set(body) != {"schema", "splitedge", "plan", "files"}:
        raise BundleError(f"{root}: '{MANIFEST}' has the fields {sorted(body)}")
    if not isinstance(body["plan"], dict) or not isinstance(body["splitedge"], str):
        raise BundleError(f"{root}: '{MANIFEST}': plan or version is of a wrong type")
    _check_files(root, body["files"])
    return body


def _check_files(root: Path, files: Any) -> None:
    if not isinstance(files, dict) or len(files) > MAX_FILES:
        raise BundleError(f"{root}: '{MANIFEST}' lists no files, or more than {MAX_FILES}")
    for name, entry in files.items():
        if not _PATH.fullmatch(name):
            raise BundleError(f"{root}: '{MANIFEST}' lists '{name}', which is no path inside a bundle")
        good = isinstance(entry, dict) and set(entry) == {"sha256", "bytes"}
        if not good or type(entry["bytes"]) is not int or not 0 <= entry["bytes"] <= MAX_BYTES:
            raise BundleError(f"{root}: '{MANIFEST}': the entry of '{name}' is not a hash and a size")
        if not isinstance(entry["sha256"], str) or not _HEX.fullmatch(entry["sha256"]):
            raise BundleError(f"{root}: '{MANIFEST}': the SHA-256 of '{name}' is not 64 hex digits")


def _check_listing(root: Path, files: Mapping[str, dict[str, Any]], halves: tuple[str, ...]) -> None:
    """Every file there is listed and of its size, every listed file of the needed halves is there."""
    present = set()
    for name, size in _walk(root):
        if name not in files:
            raise BundleError(f"{root}: '{name}' is not in the manifest; a bundle holds nothing else")
        if size != files[name]["bytes"]:
            raise BundleError(f"{root}: '{name}' has been changed: {size} bytes, not {files[name]['bytes']}")
        present.add(name)
    for name in files:
        if name.split("/")[0] in halves and name not in present:
            half = name.partition("/")[0]
            why = f": it holds only the other half, load that or copy '{half}/'" if _lacks(root, half) else ""
            raise BundleError(f"{root}: '{name}' is missing{why}")


def _walk(root: Path) -> Iterator[tuple[str, int]]:
    """Path and size of every file in the two halves; nothing but plain files in plain directories."""
    for entry in _entries(root):
        if entry.name in (MANIFEST, SEAL):
            continue
        if entry.name not in HALVES or not entry.is_dir(follow_symlinks=False):
            raise BundleError(f"{root}: '{entry.name}' does not belong in a bundle")
        for file in _entries(Path(entry.path)):
            name = f"{entry.name}/{file.name}"
            status = file.stat(follow_symlinks=False)
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"{root}: '{name}' is not a plain file (links are not followed)")
            yield name, status.st_size


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    with os.scandir(directory) as entries:
        found = list(islice(entries, MAX_FILES + 1))
    if len(found) > MAX_FILES:
        raise BundleError(f"{directory} holds more than {MAX_FILES} files")
    return found


@contextmanager
def _open_plain(path: Path, name: str) -> Iterator[tuple[int, int]]:
    """A file descriptor and a size; refuses links, pipes and devices, without waiting on them."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    except OSError as error:
        why = "is missing" if isinstance(error, FileNotFoundError) else f"can not be read: {error.strerror}"
        raise BundleError(f"{path.parent}: '{name}' {why}") from None
    try:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode):
            raise BundleError(f"{path.parent}: '{name}' is not a plain file")
        yield fd, status.st_size
    finally:
        os.close(fd)


def _read_plain(root: Path, name: str, cap: int) -> bytes:
    with _open_plain(root / name, name) as (fd, size), os.fdopen(os.dup(fd), "rb") as file:
        if size > cap:
            raise BundleError(f"{root}: '{name}' has {size} bytes; the most is {cap}")
        return file.read(cap + 1)


def _sha256(path: Path, name: str, size: int) -> str:
    """Hash at most `size` bytes and one, so that a file that grows meanwhile is refused."""
    h = hashlib.sha256()
    left = size + 1
    with _open_plain(path, name) as (fd, _), os.fdopen(os.dup(fd), "rb") as file:
        while left > 0 and (block := file.read(min(CHUNK, left))):
            h.update(block)
            left -= len(block)
    return h.hexdigest()


def _lacks(root: Path, half: str) -> bool:
    """Whether a whole half of a bundle is absent, as on a machine that needs only the other."""
    return half in HALVES and not (root / half).exists()
