"""Texts in the simulator: the deployment's state machines over replayed links, judged by arithmetic."""

from __future__ import annotations

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from splitedge.cli import _mount_plugins, app
from splitedge.errors import ConfigError, SimulationError
from splitedge.llm.evaluation import LanguageEvaluation
from splitedge.sim.language import simulate_texts
from splitedge.sim.language_scenario import LanguageScenario

TOKENS, TEXTS, PROMPT = 40, 6, 10
DRAFT, PASS, ROW = 0.004, 0.05, 0.001


def evaluation(alpha=0.8, exits=True, row_bytes=4, seed=0):
    rng = np.random.default_rng(seed)
    count = TOKENS * TEXTS
    deciders = (["local"] if row_bytes == 4 else []) + (["exit:0", "exit:1"] if exits else [])
    tokens = rng.integers(0, 90, count)
    same = rng.random((len(deciders), count)) < alpha
    said = np.where(same, tokens, tokens + 1)
    sure = np.where(same, 0.7, 0.5) + 0.3 * rng.random(same.shape)
    if row_bytes == 4:
        sure[0] = np.nan
    passes = [(n, t, PASS + ROW * n * t) for n, t in [(1, 1), (2, 1), (8, 1), (1, 3), (1, 9), (8, 5)]]
    return LanguageEvaluation(
        tuple(deciders), np.full(TEXTS, PROMPT), np.full(TEXTS, TOKENS), np.zeros(TEXTS * PROMPT, np.int64),
        tokens, said, sure, np.full(same.shape, DRAFT), np.full(len(deciders), 0.75), np.array(passes),
        0.0005, 0.0005, row_bytes, True,
    )  # fmt: skip


def trace(tmp_path, bps=1e7):
    path = tmp_path / f"{bps:g}.csv"
    path.write_text(f"t_s,mbps\n0,{bps / 1e6}\n60,{bps / 1e6}\n")
    return path


def run(tmp_path, known=None, bps=1e7, rtt_ms=40.0, **parts):
    channel = {"up": trace(tmp_path, bps), "rtt_ms": rtt_ms, **parts.pop("channel", {})}
    user = {"texts": 12, "think_s": 1.5, **parts.pop("user", {})}
    data = {"evaluation": tmp_path / "none.npz", "channel": channel, "user": user, **parts}
    scenario = LanguageScenario.parse(data, tmp_path / "x.toml")
    return simulate_texts(scenario, evaluation=evaluation() if known is None else known)


def test_a_streamed_text_takes_what_arithmetic_says(tmp_path):
    found = run(tmp_path, way={"mode": "cloud_stream"})
    score = found.score()
    assert score.failed == 0 and score.agreement == 1.0 and score.modes == {"cloud_stream": 12}
    assert score.tpot_s == pytest.approx(PASS + ROW, rel=0.02)
    assert score.ttft_s == pytest.approx(0.04 + PASS + PROMPT * ROW, rel=0.05)
    assert score.cloud_tokens == score.cloud_passes == 1.0


def test_drafts_come_in_rounds_and_lose_nothing(tmp_path):
    known = evaluation(0.8)
    found = run(tmp_path, known, way={"mode": "spec", "drafts": 4, "adapt": False})
    score = found.score()
    assert score.agreement == 1.0 and score.failed == 0
    brings = 1 + sum(known.survival()[:4])
    assert score.cloud_passes == pytest.approx(1 / brings, rel=0.1)
    a_round = 4 * DRAFT + 0.04 + PASS + 5 * ROW
    assert score.tpot_s == pytest.approx(a_round / brings, rel=0.15)
    assert run(tmp_path, known, way={"mode": "spec", "drafts": 4, "adapt": False})["total_s"].tolist() == (
        found["total_s"].tolist()
    )


def test_exits_call_as_the_evaluation_foretells(tmp_path):
    known = evaluation(0.7)
    calls, agreement, _ = known.exit_curve()
    order = run(tmp_path, known, way={"mode": "exit"}, user={"texts": 6})
    assert order.score().cloud_tokens == pytest.approx(calls)
    assert order.score().agreement == pytest.approx(agreement)
    local = run(tmp_path, known, way={"mode": "local"}, user={"texts": 6}).score()
    assert local.agreement == pytest.approx(known.agreement("local")) and local.bytes_up == 0
    assert local.tpot_s == pytest.approx(DRAFT)


def test_hidden_states_weigh_what_they_do(tmp_path):
    known = evaluation(row_bytes=400)
    score = run(tmp_path, known, way={"mode": "split"}).score()
    assert score.agreement == 1.0
    assert score.bytes_up > 400 * (TOKENS + PROMPT - 1) / TOKENS
    slow = run(tmp_path, known, bps=2e5, way={"mode": "split"}).score()
    assert slow.tpot_s > score.tpot_s + 400 * 8 / 2e5 / 2
    with pytest.raises(SimulationError, match="it can in local, exit, split"):
        run(tmp_path, known, way={"mode": "spec"})


@pytest.mark.parametrize("mode", ["cloud_stream", "spec", "exit", "auto"])
def test_cuts_delay_texts_and_change_none(tmp_path, mode):
    cuts = [[2.0, 3.0], [6.0, 8.5], [12.0, 12.3]]
    calm = run(tmp_path, way={"mode": mode}, user={"texts": 6})
    cut = run(tmp_path, way={"mode": mode}, channel={"cuts": cuts}, user={"texts": 6})
    assert (cut["error"] == "").all()
    if mode != "auto":
        assert cut["total_s"].sum() > calm["total_s"].sum()
        assert cut.score().agreement == calm.score().agreement
    limited = run(
        tmp_path, way={"mode": mode}, channel={"cuts": [[2.0, 30.0]]}, user={"texts": 6, "deadline_s": 3.0}
    )
    assert any("deadline" in error for error in limited["error"])


def test_auto_takes_what_is_quickest(tmp_path):
    known = evaluation(0.8, exits=False)
    for rtt in (2.0, 300.0):
        fixed = {
            name: run(tmp_path, known, rtt_ms=rtt, way=way, user={"texts": 30}).score().total_s
            for name, way in {
                "stream": {"mode": "cloud_stream"},
                **{f"spec{k}": {"mode": "spec", "drafts": k, "adapt": False} for k in (2, 4, 8)},
            }.items()
        }
        auto = run(tmp_path, known, rtt_ms=rtt, user={"texts": 30})
        assert auto.score().total_s <= 1.08 * min(fixed.values())
        assert auto["mode"][-1] == ("spec" if rtt < 100 else "cloud_stream")
        assert "RTT" in auto["why"][-1]


def test_devices_share_the_cloud(tmp_path):
    alone = run(tmp_path, way={"mode": "cloud_stream"}, user={"texts": 4})
    many = run(tmp_path, way={"mode": "cloud_stream"}, user={"texts": 4}, device={"count": 8})
    assert len(many) == 32 and many.score().agreement == 1.0
    assert many.score().tpot_s > alone.score().tpot_s
    assert many.cloud_passes < 8 * alone.cloud_passes  # several contexts a pass


def test_the_verb_compares_modes(tmp_path):
    _mount_plugins()
    evaluation().save(tmp_path / "e.npz")
    args = ["simulate-language", "--evaluation", str(tmp_path / "e.npz"), "--up", str(trace(tmp_path))]
    args += ["--rtt-ms", "20", "--texts", "5", "--mode", "auto", "--mode", "spec:3", "--power", "phone-lte"]
    done = CliRunner().invoke(app, [*args, "--json", "--out", str(tmp_path / "rows")])
    assert done.exit_code == 0, done.output
    scores = json.loads(done.stdout)
    assert set(scores) == {"auto", "spec:3"} and scores["spec:3"]["joules"] > 0
    assert len((tmp_path / "rows" / "spec-3.csv").read_text().splitlines()) == 6
    assert "each further token" in CliRunner().invoke(app, args).output


def test_a_scenario_is_checked(tmp_path):
    for wrong in ({"way": {"mode": "telepathy"}}, {"user": {"texts": 0}}, {"nonsense": 1}):
        with pytest.raises(ConfigError, match=r"x\.toml"):
            run(tmp_path, **wrong)
