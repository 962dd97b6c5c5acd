"""The file level of a bundle: whole or not at all, and every byte as it was written."""

import json
import os
import shutil
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from splitedge import sealed
from splitedge.errors import BundleError

FILES = {"edge/head.json": b"{}", "edge/head.safetensors": b"h" * 300, "cloud/tail.safetensors": b"t" * 500}


def fill(directory: Path) -> None:
    for name, data in FILES.items():
        (directory / name).write_bytes(data)


@pytest.fixture
def bundle(tmp_path):
    sealed.write(tmp_path / "b", {"cuts": [1, 2]}, "0.1.0", fill)
    return tmp_path / "b"


def rewrite(bundle: Path, change) -> None:
    """Change the manifest and seal it again: what somebody with write access, or a bug, can do."""
    body = json.loads((bundle / sealed.MANIFEST).read_text())
    change(body)
    text = json.dumps(body).encode()
    (bundle / sealed.MANIFEST).write_bytes(text)
    (bundle / sealed.SEAL).write_text(f"{sealed.hashlib.sha256(text).hexdigest()}  manifest.json\n")


def test_reads_back_what_was_written(bundle):
    read = sealed.read(bundle)
    assert read.plan == {"cuts": [1, 2]}
    assert read.version == "0.1.0"
    assert sealed.read(bundle, digest=read.digest).digest == read.digest


def test_equal_contents_have_equal_digests(bundle, tmp_path):
    again = sealed.write(tmp_path / "again", {"cuts": [1, 2]}, "0.1.0", fill)
    other = sealed.write(tmp_path / "other", {"cuts": [1, 3]}, "0.1.0", fill)
    assert sealed.read(bundle).digest == again != other


@pytest.mark.parametrize("name", [*FILES, sealed.MANIFEST, sealed.SEAL])
def test_a_changed_byte_in_any_file_is_refused_with_its_name(bundle, name):
    path = bundle / name
    data = path.read_bytes()
    for at in {0, len(data) // 2, len(data) - 1}:
        path.write_bytes(data[:at] + bytes([data[at] ^ 0x20]) + data[at + 1 :])
        with pytest.raises(BundleError, match=name):
            sealed.read(bundle)
    path.write_bytes(data)
    sealed.read(bundle)


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_single_changed_byte_is_ever_accepted(bundle, data):
    name = data.draw(st.sampled_from([*FILES, sealed.MANIFEST, sealed.SEAL]))
    before = (bundle / name).read_bytes()
    at = data.draw(st.integers(0, len(before) - 1))
    mask = data.draw(st.integers(1, 255))
    (bundle / name).write_bytes(before[:at] + bytes([before[at] ^ mask]) + before[at + 1 :])
    try:
        with pytest.raises(BundleError):
            sealed.read(bundle)
    finally:
        (bundle / name).write_bytes(before)


@pytest.mark.parametrize("change", [lambda d: d + b"x", lambda d: d[:-1], lambda d: b""])
@pytest.mark.parametrize("name", [*FILES, sealed.MANIFEST, sealed.SEAL])
def test_a_longer_or_shorter_file_is_refused_with_its_name(bundle, name, change):
    (bundle / name).write_bytes(change((bundle / name).read_bytes()))
    with pytest.raises(BundleError, match=name):
        sealed.read(bundle)


def test_one_half_is_enough_for_its_side(bundle):
    shutil.rmtree(bundle / "cloud")
    assert sealed.read(bundle, "edge").plan == {"cuts": [1, 2]}
    with pytest.raises(BundleError, match=r"cloud/tail\.safetensors.*missing"):
        sealed.read(bundle, "cloud")


def test_only_the_needed_half_is_opened(bundle, monkeypatch):
    opened = []
    real = os.open
    monkeypatch.setattr(
        os, "open", lambda path, *a, **k: opened.append(Path(path).name) or real(path, *a, **k)
    )
    sealed.read(bundle, "edge")
    assert set(opened) == {"manifest.json", "manifest.sha256", "head.json", "head.safetensors"}


def test_missing_and_extra_files_are_refused(bundle):
    (bundle / "edge" / "extra.bin").write_bytes(b"x")
    with pytest.raises(BundleError, match=r"edge/extra\.bin"):
        sealed.read(bundle)
    (bundle / "edge" / "extra.bin").unlink()
    (bundle / "notes.txt").write_text("x")
    with pytest.raises(BundleError, match=r"notes\.txt"):
        sealed.read(bundle)
    (bundle / "notes.txt").unlink()
    (bundle / "edge" / "head.json").unlink()
    with pytest.raises(BundleError, match=r"edge/head\.json.*missing"):
        sealed.read(bundle)


@pytest.mark.parametrize("kind", ["file", "half", "manifest", "pipe"])
def test_links_and_pipes_are_refused(bundle, tmp_path, kind):
    name = {"file": "edge/head.json", "half": "edge", "manifest": "manifest.json", "pipe": "edge/head.json"}[
        kind
    ]
    (bundle / name).rename(tmp_path / "elsewhere")
    if kind == "pipe":
        os.mkfifo(bundle / name)
    else:
        (bundle / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BundleError, match=name):
        sealed.read(bundle)


@pytest.mark.parametrize(
    "name", ["../evil", "/etc/passwd", "edge/../../x", "edge/.hidden", "edge/a/b", "other/x"]
)
def test_paths_out_of_the_bundle_are_refused(bundle, name):
    rewrite(bundle, lambda body: body["files"].update({name: {"sha256": "0" * 64, "bytes": 1}}))
    with pytest.raises(BundleError, match="no path inside a bundle"):
        sealed.read(bundle)


@pytest.mark.parametrize("schema", [0, 2, "1", None, True])
def test_another_schema_version_is_refused(bundle, schema):
    rewrite(bundle, lambda body: body.update(schema=schema))
    with pytest.raises(BundleError, match="schema version"):
        sealed.read(bundle)


def test_sizes_are_checked_before_a_file_is_read(bundle):
    with pytest.raises(BundleError, match="more than 100 bytes"):
        sealed.read(bundle, max_bytes=100)
    with (bundle / "edge" / "head.safetensors").open("r+b") as file:
        file.truncate(1 << 40)  # sparse: reading it would take minutes
    with pytest.raises(BundleError, match=r"edge/head\.safetensors"):
        sealed.read(bundle)


def test_a_deeply_nested_manifest_is_refused(bundle):
    text = b"[" * 200_000
    (bundle / sealed.MANIFEST).write_bytes(text)
    (bundle / sealed.SEAL).write_text(f"{sealed.hashlib.sha256(text).hexdigest()}  manifest.json\n")
    with pytest.raises(BundleError, match="not JSON"):
        sealed.read(bundle)


def test_another_bundle_than_the_wanted_one_is_refused(bundle):
    with pytest.raises(BundleError, match="was asked for"):
        sealed.read(bundle, digest="0" * 64)


def test_a_bundle_is_replaced_and_nothing_else_is(bundle, tmp_path):
    digest = sealed.write(bundle, {"cuts": []}, "0.1.0", fill)
    assert sealed.read(bundle).digest == digest
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "manifest.json").write_text("a web page's")
    with pytest.raises(BundleError, match="not a bundle"):
        sealed.write(mine, {}, "0.1.0", fill)
    assert (mine / "manifest.json").read_text() == "a web page's"


def test_a_failed_save_leaves_the_old_bundle_and_no_traces(bundle, tmp_path):
    before = sealed.read(bundle).digest

    def broken(directory: Path) -> None:
        fill(directory)
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError):
        sealed.write(bundle, {}, "0.1.0", broken)
    assert sealed.read(bundle).digest == before
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
