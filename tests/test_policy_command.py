"""`splitedge policy`: trains from files, says what came of it, and its files are taken by the policies."""

import json

import numpy as np
import pytest
from policy_cases import CLOUD, LOCAL
from typer.testing import CliRunner

from splitedge.errors import PolicyError, RecordError, TraceError
from splitedge.evaluation import Evaluation
from splitedge.policies.commands import policy
from splitedge.policies.router import Router
from splitedge.policy import make_policy
from splitedge.record import Record
from splitedge.records import RecordTable

OPTIONS = (LOCAL, CLOUD)


def run(*arguments):
    result = CliRunner().invoke(policy, [str(a) for a in arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout


@pytest.fixture
def rows(tmp_path):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((1500, 4)).astype(np.float32)
    chance = np.stack([1.0 / (1.0 + np.exp(-3.0 - 3.0 * x[:, 0])), np.full(1500, 0.95)])
    names = tuple(option.name for option in OPTIONS)
    correct = rng.random(chance.shape) < chance
    path = tmp_path / "evaluation.npz"
    Evaluation(
        names, correct, chance, np.zeros(chance.shape), np.zeros(1500, np.int64), OPTIONS, features=x
    ).save(path)
    return path


def test_a_router_from_an_evaluation(rows, tmp_path):
    out = tmp_path / "router.json"
    said = run("fit", "router", rows, "--target", "0.05", "--labels", "det", "--out", out)
    assert said.startswith("local or cloud/webp:0: AUC 0.")
    assert "stay on the device, at most" in said
    assert isinstance(make_policy(f"router:{out}", OPTIONS), Router)
    shown = json.loads(run("show", out, "--json"))
    assert (shown["kind"], shown["edge"], shown["labels"]) == ("router", "local", "det")
    assert "weights" not in shown
    assert "threshold: 0." in run("show", out)
    nothing = run("fit", "router", rows, "--target", "0.0001", "--out", out)
    assert "nothing stays on the device" in nothing


def test_a_forecast_from_traces_and_records(tmp_path):
    rng = np.random.default_rng(0)
    mbps = np.exp(np.cumsum(0.1 * rng.standard_normal(400)))
    trace = tmp_path / "up.csv"
    trace.write_text("t_s,mbps\n" + "".join(f"{0.1 * k:.1f},{r:.4f}\n" for k, r in enumerate(mbps)))
    records = tmp_path / "run.npz"
    table_of(200).to_npz(records)
    out = tmp_path / "forecast.json"
    said = run("fit", "forecast", trace, records, "--trees", "5", "--out", out)
    assert "between low and high (80% wanted" in said
    assert make_policy(f"mpc:forecast={out}", OPTIONS).forecast == str(out)
    assert "kind: forecast" in run("show", out)


def table_of(count):
    rng = np.random.default_rng(1)
    return RecordTable.of(
        Record(
            k,
            0.1 * k,
            deadline_s=0.3,
            planned=OPTIONS[k % 2].name,
            option=OPTIONS[k % 2].name,
            confidence=0.85 if k % 2 == 0 else 0.5,
            met=True,
            uplink_s=0.03,
            bytes_up=int(rng.integers(1000, 4000)),
            attempts=1,
            goodput_bps=float(10 ** rng.uniform(6, 7)),
            goodput_low_bps=5e5,
            rtt_s=0.03,
            rtt_high_s=0.05,
        )
        for k in range(count)
    )


def test_a_bandit_from_records(rows, tmp_path):
    records, out = tmp_path / "run.npz", tmp_path / "bandit.json"
    table_of(300).to_npz(records)
    said = run("fit", "bandit", records, "--evaluation", rows, "--out", out)
    assert said.startswith("240 requests: squared error of the reward 0.")
    make_policy(f"bandit:file={out}", OPTIONS)
    assert json.loads(run("show", out, "--json"))["options"] == ["local", "cloud/webp:0"]


def test_files_that_are_something_else_are_refused(rows, tmp_path):
    text = tmp_path / "text.json"
    text.write_text('{"a": 1}')
    with pytest.raises(PolicyError, match="no schema"):
        run("show", text)
    with pytest.raises(RecordError):
        run("fit", "router", text)
    with pytest.raises(TraceError):
        run("fit", "forecast", text)
    with pytest.raises(RecordError):
        run("fit", "bandit", rows, "--evaluation", rows)
