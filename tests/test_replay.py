"""Replay: records of a known world give back its true changes, and what they can not tell is said."""

import asyncio
import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from splitedge.cli import app
from splitedge.errors import ConfigError, RecordError
from splitedge.evaluation import Evaluation
from splitedge.policy import Option, Route, make_policy
from splitedge.record import Record
from splitedge.records import RecordTable
from splitedge.sim.exact import run_exact
from splitedge.sim.replay import Candidate, ReplaySettings, replay
from splitedge.sim.replay_channel import draw
from splitedge.sim.replay_command import UNSUPPORTED
from splitedge.sim.replay_command import replay as replay_verb
from splitedge.sim.replay_measure import measure
from splitedge.sim.replay_outcome import columns_of
from splitedge.sim.replay_records import recorded
from splitedge.sim.replay_stats import METRICS, blocks, value
from splitedge.sim.replay_support import Unsupported
from splitedge.sim.scenario import Scenario
from splitedge.sim.synth import LteLike, lte_like

EXIT = Option(Route.EXIT, exit=0, accuracy=0.8, accuracy_measured=True, edge_s=0.02, edge_s_q95=0.024)
SPLIT = Option(
    Route.SPLIT, cut="a", codec="int8", accuracy=0.93, accuracy_measured=True, edge_s=0.012, edge_s_q95=0.015,
    cloud_s=0.008, cloud_s_q95=0.01, bytes_up=6000, bytes_up_q95=6500, bytes_down=160,
)  # fmt: skip
CLOUD = Option(
    Route.CLOUD, codec="webp", accuracy=0.95, accuracy_measured=True, edge_s=0.003, edge_s_q95=0.004,
    cloud_s=0.02, cloud_s_q95=0.024, bytes_up=9000, bytes_up_q95=10000, bytes_down=160,
)  # fmt: skip
OPTIONS = (EXIT, SPLIT, CLOUD)


def evaluation(options=OPTIONS, rows=300):
    rng = np.random.default_rng(0)
    hard = rng.random(rows)
    sure = np.stack([np.clip(1 - hard * 2 * (1 - o.accuracy), 0.1, 0.999) for o in options])
    nbytes = np.stack([np.round(o.bytes_up * rng.normal(1, 0.03, rows)) * o.remote for o in options])
    right = rng.random(sure.shape) < sure
    names = tuple(o.name for o in options)
    return Evaluation(names, right, sure, nbytes, np.zeros(rows, np.int64), options)


def scenario(policy, seed, requests=500):
    return Scenario.model_validate(
        {
            "deployment": "e.npz",
            "policy": policy,
            "seed": seed,
            "channel": {"up": "t.csv"},
            "device": {"power": "phone-lte", "slower": 1.2},
            "work": {"arrivals": "poisson", "rate_hz": 10.0, "requests": requests, "start_s": 2.0},
            "reasons": True,
        }
    )


def lived(policy, seed=0, requests=300, options=OPTIONS, up_mbps=3.0):
    """The records of a policy in a known world: exact mode over the true channel."""
    trace = lte_like(requests / 8, seed, LteLike(up_mbps=up_mbps))
    run = run_exact(scenario(policy, seed, requests), evaluation(options), trace, trace)
    return RecordTable({name: run[name] for name in RecordTable.of([]).columns})


def candidate(policy, options=OPTIONS):
    return Candidate(policy, lambda: make_policy(policy, options))


def truth(before, after):
    """The true change of every metric, from the records of both lives."""
    one, other = (columns_of(recorded(table, OPTIONS).decided) for table in (before, after))
    return {metric.name: value(metric, other) - value(metric, one) for metric in METRICS}


QUICK = ReplaySettings(draws=3)


@pytest.mark.parametrize(
    ("a", "b"),
    [("deadline", "static:split"), ("static:split", "deadline"), ("static:split", "static:exit")],
)
def test_the_true_change_lies_in_the_interval_in_most_worlds(a, b):
    inside = []
    for seed in range(3):
        before, after = lived(a, seed), lived(b, seed)
        found = replay(before, evaluation(), candidate(b), settings=QUICK)
        true = truth(before, after)
        for name in ("met", "p50_s", "p95_s", "bytes", "joules", "expected_right"):
            change = found.change(name)
            inside.append(change.low <= true[name] <= change.high)
        if b == "static:exit":  # not by being vague: what is large is shown, and with its sign
            for name in ("bytes", "p50_s", "expected_right"):
                assert found.change(name).shown and found.change(name).change * true[name] > 0
    assert np.mean(inside) >= 0.85


def test_a_policy_that_decides_alike_changes_nothing():
    records = lived("static:split", requests=200)
    found = replay(records, evaluation(), candidate("static:split"), settings=QUICK)
    assert not found.moves and not found.differences
    assert all(c.change == c.low == c.high == 0.0 for c in found.changes)
    # The simulator on the recorded decisions is near the records.
    by_name = {c.metric.name: c for c in found.calibration}
    assert by_name["p50_s"].simulated == pytest.approx(by_name["p50_s"].recorded, rel=0.15)
    assert by_name["bytes"].simulated == pytest.approx(by_name["bytes"].recorded, rel=0.15)


def test_the_same_seed_gives_the_same_figures_and_against_swaps_the_sign():
    records = lived("deadline", requests=120)
    one, same = (replay(records, evaluation(), candidate("static:split"), settings=QUICK) for _ in range(2))
    assert one.changes == same.changes
    there = replay(records, evaluation(), candidate("static:split"), candidate("static:exit"), QUICK)
    back = replay(records, evaluation(), candidate("static:exit"), candidate("static:split"), QUICK)
    assert there.change("bytes").change == pytest.approx(-back.change("bytes").change)
    assert there.against == "static:exit"


def test_without_any_transfer_the_uplink_is_unknown():
    records = lived("static:exit", requests=100)
    with pytest.raises(Unsupported, match="nothing is known of the uplink"):
        replay(records, evaluation(), candidate("static:split"), settings=QUICK)
    found = replay(records, evaluation(), candidate("static:split"), settings=replace(QUICK, anyway=True))
    assert found.support.share == 0.0
    assert {gap.what for gap in found.support.gaps} >= {"uplink_unknown", "never_ran"}
    low, high = found.met_bounds
    assert low == -1.0 and high == 0.0  # nothing is known of them: all met, or none


def test_a_quiet_time_is_named_and_only_it():
    records = list(lived("static:split", requests=500).rows())
    quiet = [r for r in records if 15 < r.t_s < 40]
    for r in quiet:  # as a policy that stays on the device leaves them
        r.planned, r.option, r.route, r.exit, r.codec, r.cut = EXIT.name, EXIT.name, "exit", 0, "", ""
        r.degraded, r.attempts, r.bytes_up, r.bytes_down, r.latency_s = False, 0, 0, 0, 0.024
        r.uplink_s = r.downlink_s = r.queue_s = r.tail_s = r.decode_s = 0.0
        r.head_s, r.energy_j = 0.024, 0.024 * 2.5
    table = RecordTable.of(records)
    settings = replace(QUICK, reach_s=3.0, least_share=0.5)
    found = replay(table, evaluation(), candidate("static:split"), settings=settings)
    t_s = table["t_s"][found.support.unsupported]
    assert 17 < t_s.min() < 19 and 36 < t_s.max() < 38
    assert found.support.share == pytest.approx(1 - len(t_s) / len(records))
    with pytest.raises(Unsupported, match="sent nothing within 3 s"):
        replay(table, evaluation(), candidate("static:split"), settings=replace(settings, least_share=0.9))


def test_a_payload_much_larger_than_any_transfer_is_not_supported():
    options = (EXIT, replace(SPLIT, bytes_up=400.0), replace(CLOUD, bytes_up=20_000.0))
    records = lived("static:split", requests=150, options=options, up_mbps=8.0)
    with pytest.raises(Unsupported, match="cloud/webp:0 sends"):
        replay(records, evaluation(options), candidate("static:cloud", options), settings=QUICK)


def rows(**changes):
    first = Record(1, 0.0, planned=EXIT.name, option=EXIT.name, route="exit", latency_s=0.02, met=True)
    return [first, replace(first, **{"request": 2, "t_s": 1.0} | changes)]


@pytest.mark.parametrize(
    ("records", "says"),
    [
        ([], "no record"),
        ([rows()[0], replace(rows()[1], request=1, t_s=-1.0)], "two runs"),
        (rows(t_s=float("nan")), "t_s = nan"),
        (rows(latency_s=-1.0), "latency_s = -1.0"),
        (rows(deadline_s=0.0), "deadline_s = 0.0"),
        (rows(rows=0), "rows = 0"),
        (rows(confidence=2.0), "confidence = 2.0"),
        (rows(planned="exit:7"), "'exit:7' is not one of this deployment"),
        ([replace(r, planned="") for r in rows()], "nothing to replay"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bad_records_give_one_clear_error(records, says):
    with pytest.raises(RecordError, match=says):
        replay(RecordTable.of(records), evaluation(), candidate("static:exit"))


def test_an_evaluation_without_options_is_refused():
    with pytest.raises(ConfigError, match="option table"):
        replay(RecordTable.of(rows()), replace(evaluation(), table=()), candidate("static:exit"))


def test_every_draw_agrees_with_what_was_measured():
    known = recorded(lived("static:split", requests=200), OPTIONS)
    measured = measure(known)
    strong = measured.up.only(~measured.up.bound & ~measured.up.weak)
    assert len(strong) > 50
    channels = [draw(known, measured, np.random.default_rng(seed))[0] for seed in range(3)]
    for channel in channels:
        for begin, end, bps in zip(strong.begin, strong.end, strong.bps, strict=True):
            bits = channel.capacity.bits_by(float(end)) - channel.capacity.bits_by(float(begin))
            assert bits == pytest.approx(bps * (end - begin), rel=1e-6, abs=1.0)
    # ... and between the measurements they do not agree with each other.
    gap = int(np.argmax(strong.begin[1:] - strong.end[:-1]))
    middle = float(strong.end[gap] + strong.begin[gap + 1]) / 2
    assert len({channel.capacity.rate_at(middle) for channel in channels}) == 3


@given(n=st.integers(1, 300), length=st.integers(1, 300), seed=st.integers(0, 9))
@settings(max_examples=50, deadline=None)
def test_blocks_are_consecutive_requests(n, length, seed):
    at = blocks(n, min(length, n), np.random.default_rng(seed))
    assert len(at) == n and at.min() >= 0 and at.max() < n
    jumps = np.flatnonzero(np.diff(at) % n != 1 % n) + 1
    assert np.all(jumps % min(length, n) == 0)


@pytest.fixture
def files(tmp_path):
    lived("deadline", requests=150).to_jsonl(tmp_path / "r.jsonl")
    evaluation().save(tmp_path / "evaluation.npz")
    return tmp_path


def verb(files, *arguments):
    import typer

    alone = typer.Typer()
    alone.command()(replay_verb)
    given = [str(files / "r.jsonl"), "--deployment", str(files), *arguments]
    return CliRunner().invoke(alone, given)


def test_the_command_tells_what_changes_and_why(files):
    told = verb(files, "--policy", "static:split", "--out", str(files / "out"))
    assert told.exit_code == 0, told.output
    text = " ".join(told.output.split())
    for part in ("deadlines met", "95% interval", "exit:0", "the policy always takes", "supported: 100.0%"):
        assert part in text
    requests = (files / "out" / "requests.csv").read_text().splitlines()
    assert len(requests) == 151 and requests[0].startswith("request,t_s,deadline_s,option_before")
    assert (files / "out" / "changes.csv").read_text().count("\n") == len(METRICS) + 1


def test_the_command_gives_json(files):
    told = verb(files, "--policy", "static:split", "--json", "--draws", "2")
    found = json.loads(told.stdout)
    assert found["schema"] == "splitedge.replay/1" and found["requests"] == 150
    assert {change["name"] for change in found["changes"]} == {metric.name for metric in METRICS}
    assert sum(move["requests"] for move in found["moves"]) > 100


def test_the_command_refuses_what_it_can_not_tell(files):
    lived("static:exit", requests=50).to_jsonl(files / "r.jsonl")
    assert verb(files, "--policy", "static:split").exit_code == UNSUPPORTED
    told = verb(files, "--policy", "static:split", "--anyway")
    assert told.exit_code == 0 and "NOT supported, 50 requests" in " ".join(told.output.split())


def test_the_verb_is_known():
    assert app is not None
    from splitedge import registry

    assert "replay" in registry.names("splitedge.commands")


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_prediction_and_a_real_run_agree(tmp_path):
    """Records of real processes through the pacer: `benchmarks/replay.py` in small."""
    import importlib.util
    import sys
    from pathlib import Path

    folder = Path(__file__).resolve().parents[1] / "benchmarks"
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("benchmark_replay", folder / "replay.py")
        module = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = module
        spec.loader.exec_module(module)
        subject = module.deploy(tmp_path, seconds=10.0)
        (channels,) = module.uplinks(True).values()
        tables = asyncio.run(module.run(subject, channels, ("static:split", "static:exit"), tmp_path / "run"))
        found = module.predict(subject, tables["static:split"], tables["static:exit"], "static:exit")
    finally:
        sys.path.remove(str(folder))
    for name in ("met", "bytes"):
        p = found.predicted.change(name)
        (m,) = (change for change in found.measured if change.metric.name == name)
        assert p.low <= m.high and m.low <= p.high
    assert found.predicted.change("bytes").shown
