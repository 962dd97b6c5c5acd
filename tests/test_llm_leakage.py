"""What attackers read from hidden states: everything where nothing was done to them, nothing from noise."""

from __future__ import annotations

import json

import pytest
from llm_models import tiny
from typer.testing import CliRunner

from splitedge.errors import ConfigError
from splitedge.llm.commands import app
from splitedge.llm.leakage import ProbeSchedule, probe

SHORT = ProbeSchedule(texts=48, length=32, epochs=20, width=64)


@pytest.fixture(scope="module")
def found():
    return probe(tiny("llama"), [0, 3], ["ids", "fp32", "int4"], schedule=SHORT)


def test_before_the_first_block_every_token_is_read(found):
    for attacker in ("nearest", "linear", "mlp"):
        (row,) = (r for r in found.rows if (r.cut, r.codec, r.attacker) == (0, "fp32", attacker))
        assert (
            row.top1 > (0.99 if attacker == "nearest" else 0.6) and row.top5 >= row.top1 and row.width == 128
        )
    assert found.worst(0, "ids").top1 == 1.0


def test_deeper_and_coarser_leak_less_and_still_far_more_than_guessing(found):
    deep = found.worst(3, "fp32")
    assert found.guess1 < 0.2 and 3 * found.guess1 < deep.top1 <= found.worst(0, "fp32").top1
    assert found.worst(3, "int4").top1 <= deep.top1 + 0.02
    assert found.tokens == 16 * 31 and found.learned == 48 * 31
    with pytest.raises(ConfigError, match="no leakage"):
        found.worst(2, "fp32")


def test_the_command_says_the_same(tmp_path):
    pytest.importorskip("matplotlib")
    tiny("llama").save_pretrained(tmp_path / "model")
    args = ["leakage", str(tmp_path / "model"), "--cut", "1", "--codec", "fp16", "--texts", "12"]
    done = CliRunner().invoke(
        app, [*args, "--length", "16", "--json", "--plot", str(tmp_path / "leak.png")], catch_exceptions=False
    )
    rows = json.loads(done.stdout)["rows"]
    assert [row["attacker"] for row in rows] == ["nearest", "linear", "mlp"] and rows[0]["codec"] == "fp16"
    assert (tmp_path / "leak.png").stat().st_size > 1000
    shown = CliRunner().invoke(app, [*args, "--length", "16"], catch_exceptions=False).stdout
    assert "Better attackers recover more" in " ".join(shown.split()) and "private" not in shown


def test_what_can_not_be_is_refused():
    with pytest.raises(ConfigError, match="telepathy"):
        probe(tiny("llama"), [1], ["fp32"], attackers=["telepathy"], schedule=SHORT)
    with pytest.raises(ConfigError, match="no codec"):
        probe(tiny("llama"), [1], ["fp7"], schedule=SHORT)
