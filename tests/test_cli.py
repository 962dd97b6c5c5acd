"""The command line: help that teaches, errors in one line, machine-readable output."""

import json
import subprocess
import sys
import tomllib

import pytest

from splitedge.record import Record
from splitedge.records import RecordStore

VERBS = [
    "serve",
    "edge",
    "explain",
    "keys",
    "records",
    "bundle",
    "plugins",
    "config",
    "link",
    "trace",
    "demo",
    "bench",
]


def splitedge(*arguments, cwd=None):
    return subprocess.run(
        [sys.executable, "-m", "splitedge", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=100,
        cwd=cwd,
        check=False,
    )


def test_help_names_every_verb():
    shown = splitedge("--help").stdout
    assert all(verb in shown for verb in VERBS)


@pytest.mark.parametrize("verb", ["serve", "edge", "link"])
def test_help_of_a_daemon_has_an_example(verb):
    shown = splitedge(verb, "--help").stdout
    assert "Example" in shown


def test_plugins_lists_what_entry_points_register():
    groups = json.loads(splitedge("plugins", "--json").stdout)
    assert {"raw", "int8", "webp"} <= set(groups["codecs"])
    assert {"static", "deadline"} <= set(groups["policies"])


def test_a_missing_bundle_is_one_line_and_status_1(tmp_path):
    done = splitedge("bundle", "check", tmp_path / "nothing")
    assert done.returncode == 1
    assert "BundleError" in done.stderr
    assert "Traceback" not in done.stderr


def test_config_prints_toml_that_can_be_read_back(tmp_path):
    shown = splitedge("config", cwd=tmp_path)
    values = tomllib.loads(shown.stdout)
    (tmp_path / "splitedge.toml").write_text(shown.stdout)
    again = json.loads(splitedge("config", "--json", cwd=tmp_path).stdout)
    assert again["engine"] == values["engine"]


def test_an_unknown_setting_is_refused_with_the_nearest_name(tmp_path):
    (tmp_path / "splitedge.toml").write_text("[edge]\nhtpp = '127.0.0.1:1'\n")
    done = splitedge("config", cwd=tmp_path)
    assert done.returncode == 1
    assert "'http'" in done.stderr


def test_keys_are_made_and_trusted(tmp_path):
    assert splitedge("keys", "new", "cloud", "--dir", tmp_path / "c").returncode == 0
    (public,) = [p for p in (tmp_path / "c").iterdir() if "secret" not in p.name and p.is_file()]
    done = splitedge("keys", "trust", public, "--dir", tmp_path / "e")
    assert done.returncode == 0, done.stderr
    assert "trusted" in done.stderr
    shown = splitedge("keys", "list", "--dir", tmp_path / "e").stdout
    assert "trusted" in shown
    assert public.read_text().strip() in shown
    assert splitedge("keys", "list", "--dir", tmp_path / "none").returncode == 1


def test_a_place_that_can_not_be_written_is_one_line_and_status_1(tmp_path):
    done = splitedge("trace", "synth", tmp_path / "nowhere" / "lte.csv", "--seconds", 1)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1 and "No such file or directory" in done.stderr


def test_a_long_error_is_not_folded(tmp_path):
    file = tmp_path / "splitedge.toml"
    file.write_text('[edge]\nhtpp = "127.0.0.1:1"\n')
    done = splitedge("config", "--config", file)
    assert done.stderr.count("\n") == 1 and "Did you mean 'http'" in done.stderr


def test_a_summary_as_json_has_null_where_nothing_is_known(tmp_path):
    with RecordStore(tmp_path / "records.jsonl") as store:
        store.append(Record(1, 0.0, error="Rejected"))
    shown = splitedge("records", "summary", tmp_path / "records.jsonl", "--json").stdout
    summary = json.loads(shown, parse_constant=pytest.fail)
    assert (summary["failed"], summary["accuracy"], summary["p50_s"]) == (1, None, None)
