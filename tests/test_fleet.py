"""Fleet mode: agrees with exact mode, runs policies on arrays, keeps its memory, refuses what it can't do."""

import os
import subprocess
import sys
from pathlib import Path

os.environ.setdefault("SPLITEDGE_LOOPS", "python")  # compiling would take longer than all of these runs

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sim_world import CLOUD, EXIT, LOCAL, SPLIT, evaluation, flat, scenario

from splitedge.errors import ConfigError, SimulationError
from splitedge.policy import Decision, Gate, Policy, where
from splitedge.sim.exact import run_exact
from splitedge.sim.fleet import run_fleet, score_fleet
from splitedge.sim.simulation import COLUMNS
from splitedge.sim.synth import lte_like

LTE = lte_like(60, 3)
DATA = Path(os.environ.get("SPLITEDGE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))

#: What docs/simulator-fleet.md promises.
SHARE, LATENCY, AMOUNT = 0.02, 0.03, 0.03


def both(trace=LTE, options=(LOCAL, EXIT, SPLIT, CLOUD), **tables):
    """The same scenario in both modes."""
    tables.setdefault("device", {"count": 3, "power": "phone-lte"})
    tables.setdefault("work", {"requests": 60})
    what, rows = scenario(**tables), evaluation(options)
    return run_exact(what, rows, trace, trace), run_fleet(what, rows, trace, trace)


def agree(exact, found, share=SHARE, latency=LATENCY, amount=AMOUNT):
    """Within the tolerances stated."""
    for name in ("t_s", "device", "row"):
        np.testing.assert_allclose(exact[name], found[name], rtol=1e-12)
    a, b = exact.score(), found.score()
    for name in ("correct_in_time", "accuracy", "met"):
        assert getattr(b, name) == pytest.approx(getattr(a, name), abs=share), name
    for name in ("p50_s", "p95_s"):
        assert getattr(b, name) == pytest.approx(getattr(a, name), rel=latency), name
    for name in ("bytes_up", "bytes_down", "joules"):
        assert getattr(b, name) == pytest.approx(getattr(a, name), rel=amount), name
    for name in a.routes.keys() | b.routes.keys():
        assert abs(a.routes.get(name, 0) - b.routes.get(name, 0)) <= share * a.requests, name


@pytest.mark.parametrize("trace", [LTE, flat(3.0)], ids=["lte", "flat"])
@pytest.mark.parametrize("policy", ["static:cloud", "static:exit", "latency:0.2", "deadline", "confidence"])
def test_the_modes_agree(policy, trace):
    agree(*both(trace, policy=policy))


@pytest.mark.parametrize(
    "tables",
    [
        {"work": {"requests": 60, "arrivals": "poisson", "rate_hz": 8.0}},
        {"work": {"requests": 40, "deadline_ms": None, "rate_hz": 4.0}},
        {"channel": {"cuts": ((0.8, 1.4),)}},
        {"cloud": {"slower": 4.0, "per_row": 0.3}},
        {"shell": {"stage_ms": 0.4, "send_ms": 0.3, "receive_ms": 0.2, "cloud_ms": 0.5}},
        {"device": {"count": 3, "power": "phone-lte", "battery_j": 60.0, "charge": 0.9}},
        {
            "device": {"count": 3, "power": "phone-lte", "shared_cell": True},
            "work": {"requests": 40, "rate_hz": 4.0},
        },
    ],
    ids=["poisson", "no deadline", "cut", "slow cloud", "shell", "battery", "shared cell"],
)
def test_the_modes_agree_on_other_scenarios(tables):
    agree(*both(policy="confidence", **tables))


def test_a_filter_keeps_payloads_here_as_in_exact_mode():
    gated = SPLIT.__class__(**{**{f: getattr(SPLIT, f) for f in SPLIT.__slots__}, "gate": Gate(0.9, exit=0)})
    rows = evaluation((LOCAL, EXIT, gated, CLOUD))
    rows.nbytes[2, ::3], rows.confidence[2, ::3] = 0.0, 0.95
    what = scenario(policy="static:split", device={"count": 2}, work={"requests": 60, "rate_hz": 8.0})
    exact, found = run_exact(what, rows, LTE, LTE), run_fleet(what, rows, LTE, LTE)
    assert (found["bytes_up"] == 0).sum() > 20
    assert (exact["option"] == found["option"]).mean() > 0.98
    agree(exact, found)


@pytest.mark.slow
@pytest.mark.skipif(not (DATA / "traces" / "mahimahi").is_dir(), reason="recorded traces are not here")
@pytest.mark.parametrize("name", ["ATT-LTE-driving", "Verizon-EVDO-driving", "TMobile-UMTS-driving"])
@pytest.mark.parametrize("policy", ["deadline", "confidence"])
def test_the_modes_agree_over_recorded_channels(name, policy):
    from splitedge.sim.formats import read_trace

    file = next((DATA / "traces" / "mahimahi").glob(f"{name}.up*"))
    agree(*both(read_trace(file), policy=policy, work={"requests": 200}))


@settings(max_examples=10, deadline=None)
@given(
    seed=st.integers(0, 99),
    devices=st.integers(1, 4),
    deadline_ms=st.sampled_from([20.0, 60.0, 150.0, None]),
    policy=st.sampled_from(["deadline", "confidence", "static:cloud"]),
)
def test_every_request_ends_once(seed, devices, deadline_ms, policy):
    work = {"requests": 15, "deadline_ms": deadline_ms, "rate_hz": 25.0, "arrivals": "poisson"}
    what = scenario(policy=policy, seed=seed, device={"count": devices}, work=work)
    found = run_fleet(what, evaluation(), LTE, LTE)
    assert len(found) == 15 * devices
    assert all(len(found[name]) == len(found) for name in COLUMNS)
    assert np.all(np.diff(found["t_s"]) >= 0)
    assert np.all(found["latency_s"] >= 0)
    if deadline_ms is not None:
        assert found["latency_s"].max() <= deadline_ms / 1e3 + 1e-9
    assert np.all((found["error"] == "") == (found["route"] != ""))
    assert np.all(np.bincount(found["device"], minlength=devices) == 15)


def test_totals_are_those_of_the_rows():
    what = scenario(policy="deadline", device={"count": 3, "power": "phone-lte"}, work={"requests": 40})
    rows = evaluation()
    kept, counted = run_fleet(what, rows, LTE, LTE).score(), score_fleet(what, rows, LTE, LTE)
    assert (kept.requests, kept.routes) == (counted.requests, counted.routes)
    for name in ("correct_in_time", "accuracy", "met", "bytes_up", "bytes_down", "joules"):
        assert getattr(counted, name) == pytest.approx(getattr(kept, name)), name
    assert counted.p50_s == pytest.approx(kept.p50_s, rel=0.05)


class Learner(Policy):
    """Takes the option of which it has seen least, device by device."""

    name = "learner"

    def __init__(self):
        self.seen = 0

    def decide(self, obs):
        return Decision(where(self.seen % 2 == 0, 0, 1))

    def learn(self, record):
        self.seen = self.seen + (record.option != "")

    def explain(self, obs, decision):
        return ""


class Scalar(Policy):
    """Understands single devices only."""

    name = "scalar"

    def decide(self, obs):
        return Decision(2 if obs.goodput.mean > 1e6 else 0)

    def explain(self, obs, decision):
        return ""


class Lost(Policy):
    """Chooses what does not exist."""

    name = "lost"

    def decide(self, obs):
        return Decision(where(obs.deadline_s < 99.0, 7, 7))

    def explain(self, obs, decision):
        return ""


def test_a_policy_learns_once_a_step_from_every_device(monkeypatch):
    taught = []
    monkeypatch.setattr(Learner, "learn", lambda self, record: taught.append(record))
    what = scenario(device={"count": 4}, work={"requests": 12, "rate_hz": 10.0})
    found = run_fleet(what, evaluation(), LTE, LTE, policy=Learner())
    assert len(taught) >= 8
    for step, record in enumerate(taught):
        assert record.t_s.shape == record.option.shape == (4,)
        rows = found["t_s"].reshape(12, 4)[step]
        np.testing.assert_allclose(record.t_s, rows)
        assert record.option.tolist() == found["option"].reshape(12, 4)[step].tolist()


def test_what_can_not_be_done_is_said_before_the_run():
    rows = evaluation()

    def refused(error, words, policy=None, **tables):
        with pytest.raises(error, match=words):
            run_fleet(scenario(**tables), rows, LTE, LTE, policy=policy)

    refused(SimulationError, "'scalar' can not decide for 7 devices at once.*exact mode", Scalar())
    refused(SimulationError, "'lost'.*option 7; there are 4", Lost())
    refused(SimulationError, "does not model channel.loss", channel={"loss": 0.1})
    refused(ConfigError, "'quantiles', not by 'ewma'", link={"kind": "ewma"})
    refused(SimulationError, "compute_slots is 2", engine={"compute_slots": 2})
    poisson = {"arrivals": "poisson", "requests": 5}
    refused(
        SimulationError, "learns or keeps something.*'fixed'", Learner(), device={"count": 2}, work=poisson
    )
    huge = {"requests": 1_000_000_000}
    refused(SimulationError, r"needs about .* GiB of memory.*score_fleet", device={"count": 100}, work=huge)


@pytest.mark.slow
@pytest.mark.skipif(not os.environ.get("SPLITEDGE_COMPILE"), reason="takes minutes: set SPLITEDGE_COMPILE=1")
def test_compiled_and_plain_loops_give_the_same():
    pytest.importorskip("numba")
    code = (
        "from sim_world import *; from splitedge.sim.fleet import run_fleet; "
        "from splitedge.sim.synth import lte_like; t = lte_like(60, 3); "
        "w = scenario(policy='deadline', device={'count': 3}, work={'requests': 50}); "
        "f = run_fleet(w, evaluation(), t, t); print(f['latency_s'].sum(), f['bytes_up'].sum())"
    )
    said = []
    for loops in ("python", "numba"):
        env = {**os.environ, "SPLITEDGE_LOOPS": loops, "PYTHONPATH": str(Path(__file__).parent)}
        run = [sys.executable, "-c", code]
        done = subprocess.run(run, env=env, check=True, capture_output=True, text=True, timeout=600)
        said.append([float(number) for number in done.stdout.split()])
    assert said[0] == pytest.approx(said[1], rel=1e-6)
