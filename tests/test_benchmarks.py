"""What benchmarks share, and that the overhead benchmark runs and says what it must."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"
SCRIPTS = sorted(path for path in FOLDER.glob("[a-z]*.py") if path.name != "common.py")


@pytest.fixture(scope="module")
def common():
    spec = importlib.util.spec_from_file_location("benchmark_common", FOLDER / "common.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    try:
        spec.loader.exec_module(module)
        yield module
    finally:
        del sys.modules[spec.name]


def test_a_goal_is_met_from_its_side(common):
    assert common.figure("a", 0.9, "ratio", at_most=1.0).met is True
    assert common.figure("a", 1.1, "ratio", at_most=1.0).met is False
    assert common.figure("a", 5.0, "ratio", at_least=5.0).met is True
    assert common.figure("a", 4.9, "ratio", at_least=5.0).met is False
    assert common.figure("a", None, "ratio", at_least=5.0).met is False  # not measured, not met
    plain = common.figure("a", 1.0, "s")
    assert plain.goal is None and plain.met is None


def test_the_file_has_the_machine_and_every_figure(common, tmp_path, capsys):
    report = common.Report("t", notes=["a note"])
    report.add("one", 0.002, "s")
    report.add("two", 0.5, "ratio", at_most=1.0)
    with pytest.raises(ValueError, match="two figures"):
        report.add("one", 1, "s")
    report.finish(tmp_path / "f.json")
    written = json.loads((tmp_path / "f.json").read_text())
    assert written["figures"] == [
        {"name": "one", "value": 0.002, "unit": "s", "goal": None, "met": None},
        {"name": "two", "value": 0.5, "unit": "ratio", "goal": 1.0, "met": True},
    ]
    assert written["machine"]["cores"] >= 1 and written["machine"]["pyzmq"]
    assert "a note" in capsys.readouterr().out


def test_numbers_are_readable(common):
    assert common.readable(0.0012, "s") == "1.20 ms" and common.readable(0.00012, "s") == "120 µs"
    assert common.readable(2.0, "ratio") == "2.00x" and common.readable(None, "s") == "not measured"
    assert [common.quantile([3, 1, 2, 4], q) for q in (0, 0.5, 1)] == [1, 3, 4]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_every_benchmark_takes_the_same_arguments(script):
    text = script.read_text()
    assert "--quick" in text or "arguments(" in text
    assert "--json" in text or "arguments(" in text


@pytest.mark.slow
def test_overhead_measures_itself_and_the_peers_that_are_installed(tmp_path):
    out = tmp_path / "overhead.json"
    subprocess.run(
        [sys.executable, str(FOLDER / "overhead.py"), "--quick", "--json", str(out)],
        check=True,
        timeout=110,
        capture_output=True,
    )
    figures = {f["name"]: f for f in json.loads(out.read_text())["figures"]}
    for size in ("1 kB", "16 kB", "100 kB"):
        assert figures[f"splitedge, {size}: p50"]["value"] > 0
        assert figures[f"splitedge, {size}: requests at 32 in flight"]["value"] > 0
        assert figures[f"p50 over raw pyzmq, {size}"]["value"] > 0
    goals = {name: f["goal"] for name, f in figures.items() if f["goal"] is not None}
    assert goals == {
        "p50 over grpc.aio, 16 kB": 1.0,
        "throughput at 32 over grpc.aio, 16 kB": 1.0,
        "throughput at 32 over LitServe, 16 kB": 5.0,
        "splitedge: requests without an answer": 0.0,
    }
    measured = figures["p50 over grpc.aio, 16 kB"]["value"] is not None
    assert measured == (importlib.util.find_spec("grpc") is not None)


def test_codec_speed_measures_and_says_what_it_could_not(tmp_path):
    out = tmp_path / "speed.json"
    done = subprocess.run(
        [sys.executable, str(FOLDER / "codec_speed.py"), "--quick", "--json", str(out)],
        check=True,
        timeout=110,
        capture_output=True,
        text=True,
    )
    figures = {f["name"]: f for f in json.loads(out.read_text())["figures"]}
    assert figures["256 symbols of 2 bits: encode and decode"]["goal"] == 150e-6
    assert figures["72,600 symbols: decode"]["value"] > 0
    assert 1.0 <= figures["72,600 symbols: bytes over ideal"]["value"] < 1.001
    if importlib.util.find_spec("compressai") is None:
        assert "not measured, it is not installed" in done.stdout.replace("\n", " ")


@pytest.mark.slow
def test_policies_are_compared_with_each_other_and_with_oracles(tmp_path):
    out = tmp_path / "policies.json"
    subprocess.run(
        [sys.executable, str(FOLDER / "policies.py"), "--quick", "--json", str(out), "--out", str(tmp_path)],
        check=True,
        timeout=300,
        capture_output=True,
    )
    figures = {f["name"]: f for f in json.loads(out.read_text())["figures"]}
    assert figures["oracle: right in time"]["value"] >= figures["static:exit: right in time"]["value"]
    for policy in ("deadline", "static:cloud", "spinn", "oracle:channel"):
        assert 0.0 < figures[f"{policy}: right in time"]["value"] <= 100.0
    assert figures["deadline: regret to the oracle"]["goal"] == 5.0
    assert (tmp_path / "policies.png").stat().st_size > 10_000
    rows = (tmp_path / "results.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 * 2 * len([name for name in figures if name.endswith(": right in time")])


@pytest.mark.slow
def test_fidelity_compares_request_by_request(tmp_path):
    out = tmp_path / "fidelity.json"
    subprocess.run(
        [
            sys.executable,
            FOLDER / "fidelity.py",
            "--quick",
            "--repeats",
            "2",
            "--json",
            out,
            "--out",
            tmp_path,
        ],
        check=True,
        timeout=300,
        capture_output=True,
    )
    figures = {f["name"]: f for f in json.loads(out.read_text())["figures"]}
    name = "synthetic 1.5 Mbit/s"
    for what, goal in (("p50, off by", 0.05), ("p95, off by", 0.10), ("joules, off by", 0.05)):
        assert figures[f"{name}: {what}"]["goal"] == goal
    assert 0.0 <= figures[f"{name}: same route decided"]["value"] <= 1.0
    assert figures[f"{name}: same route decided, real again"]["goal"] is None
    assert figures[f"{name}: latencies apart, real again"]["value"] > 0.0
    assert len((tmp_path / "requests.csv").read_text().splitlines()) == 1 + 30
    assert (tmp_path / "fidelity.png").stat().st_size > 10_000


@pytest.mark.slow
def test_language_models_keep_their_promises(tmp_path):
    pytest.importorskip("transformers")
    out = tmp_path / "llm.json"
    subprocess.run(
        [
            sys.executable,
            FOLDER / "llm.py",
            "--quick",
            "--only",
            "lossless,auto,contexts,rejection",
            "--json",
            out,
        ],
        check=True,
        timeout=110,
        capture_output=True,
    )
    figures = {f["name"]: f for f in json.loads(out.read_text())["figures"]}
    for how in ("greedy, calm", "greedy, link cut", "sampled, calm", "sampled, link cut"):
        assert figures[f"spec, {how}: texts written"]["value"] == 12
        assert figures[f"spec, {how}: texts unlike the cloud's"]["value"] == 0
        if "cut" in how:
            assert figures[f"spec, {how}: outages"]["value"] > 0
    assert figures["contexts: texts unlike the single user's"]["value"] == 0
    for name, figure in figures.items():
        assert not name.startswith("rejection: ") or figure["met"] in (True, None)
    assert figures["contexts: texts that failed"]["value"] == 0
    assert figures["contexts: most memory over the budget"]["met"]
    assert figures["auto over the best fixed mode, worst cell, simulated"]["value"] > 0
