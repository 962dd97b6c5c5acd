"""Seconds drawn from what real processes took, while engine and policy go by the option table."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sim_world import TABLE, evaluation, flat, scenario

from splitedge.errors import ConfigError
from splitedge.sim.edge import Edge
from splitedge.sim.exact import run_exact
from splitedge.sim.fleet import run_fleet
from splitedge.sim.measured import Drawn, Measured, Took, quantiles_of
from splitedge.sim.oracle import oracle_policies
from splitedge.sim.scenario import ShellPart

EVEN = np.array([-2.326, -1.282, -0.674, 0.0, 0.674, 1.282, 2.326])  # normal quantiles


def times(factor, **shells):
    """Every option takes so many times its mean, always."""
    took = {
        o.name: Took(edge_ms=(1e3 * factor * o.edge_s,), cloud_ms=(1e3 * factor * o.cloud_s,)) for o in TABLE
    }
    return Measured(options=took, **shells)


def run(measured, tmp_path, **tables):
    file = tmp_path / "measured.json"
    measured.save(file)
    asked = scenario(shell={"measured": file}, **{"work": {"requests": 40, "rate_hz": 4.0}, **tables})
    return run_exact(asked, evaluation(), flat(), flat())


@given(st.lists(st.floats(0.0, 10.0), min_size=1, max_size=60))
def test_what_is_drawn_lies_among_the_samples_in_their_order_and_keeps_their_mean(samples):
    drawn = Drawn([1e-3 * np.array(quantiles_of(samples))])
    found = [drawn.draw(0, z) for z in EVEN]
    assert found == sorted(found)
    assert min(samples) - 1e-8 <= found[0] and found[-1] <= max(samples) + 1e-8
    normal = np.random.default_rng(0).standard_normal(4000)
    spread = max(samples) - min(samples)
    assert np.mean([drawn.draw(0, z) for z in normal]) == pytest.approx(
        np.mean(samples), abs=0.05 * spread + 1e-6
    )


def test_seconds_are_the_measured_ones_and_decisions_those_of_the_table(tmp_path):
    usual, slow = (run(times(factor), tmp_path, policy="deadline") for factor in (1.0, 3.0))
    assert (usual["planned"] == slow["planned"]).all()
    assert (usual["option"] == slow["option"]).all()  # a table three times slower would change its mind
    busy = usual["head_s"] + usual["encode_s"]
    assert slow["head_s"] + slow["encode_s"] == pytest.approx(3.0 * busy)
    assert slow["tail_s"] == pytest.approx(3.0 * usual["tail_s"])


def test_the_shells_of_a_request_cost_what_was_measured(tmp_path):
    bare = run(times(1.0), tmp_path, policy="static:cloud")
    shells = {"stage_ms": (1.0,), "send_ms": (2.0,), "receive_ms": (3.0,), "cloud_ms": (4.0,)}
    held = run(times(1.0, **shells), tmp_path, policy="static:cloud")
    assert held["latency_s"] == pytest.approx(bare["latency_s"] + 1e-3 * (1 + 2 + 3 + 2 * 4))
    spread = run(times(1.0, stage_ms=(0.0, 10.0)), tmp_path, policy="static:local")["latency_s"]
    assert 0.040 <= spread.min() < 0.043 and 0.047 < spread.max() <= 0.050


def test_the_same_seed_draws_the_same(tmp_path):
    measured = times(1.0, stage_ms=(0.0, 10.0), send_ms=(0.0, 5.0))
    one, other = (run(measured, tmp_path, policy="deadline", seed=3) for _ in range(2))
    assert (one["latency_s"] == other["latency_s"]).all()


def test_what_can_not_be_used_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"none\.json: can not be read as measured seconds"):
        Measured.load(tmp_path / "none.json")
    (tmp_path / "odd.json").write_text('{"options": {"local": {"edge_ms": [2.0, 1.0]}}}')
    with pytest.raises(ConfigError, match=r"local: edge_ms must be milliseconds, 0 or more, that never fall"):
        Measured.load(tmp_path / "odd.json")
    with pytest.raises(ConfigError, match="do not know the option local"):
        run(Measured(options={}), tmp_path)
    with pytest.raises(ValueError, match="constants in milliseconds or 'measured', not both"):
        ShellPart(stage_ms=1.0, measured=tmp_path / "odd.json")


def test_fleet_mode_and_the_oracle_say_that_they_can_not_draw_from_it(tmp_path):
    asked = scenario(shell={"measured": tmp_path / "x.json"}, mode="fleet")
    with pytest.raises(ConfigError, match=r"fleet mode does not draw from shell\.measured"):
        run_fleet(asked, evaluation(), flat(), flat())
    with pytest.raises(ConfigError, match=r"what looks ahead does not draw from shell\.measured"):
        oracle_policies(
            asked.model_copy(update={"mode": "exact", "policy": "oracle"}), evaluation(), flat(), flat()
        )


def test_what_was_measured_in_the_cloud_is_no_time_of_the_link(tmp_path):
    """It is what is left of a request's seconds beside those of the link: no estimator hears of it."""
    bare, held = (run(times(1.0, cloud_ms=(ms,)), tmp_path, policy="static:cloud") for ms in (0.0, 4.0))
    for way in ("uplink_s", "downlink_s"):
        assert held[way] == pytest.approx(bare[way], abs=1e-9)


def test_a_message_waits_for_the_one_before_it(tmp_path):
    """One loop hears them all: a slow hand-over holds up a quick one behind it."""
    heard, hear = [], Edge._hear_reply

    def hearing(edge, now, reply, nbytes):
        heard.append((reply.request, now))
        hear(edge, now, reply, nbytes)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Edge, "_hear_reply", hearing)
        measured = times(0.1, receive_ms=(0.0, 100.0))
        run(measured, tmp_path, policy="static:cloud", work={"requests": 60, "rate_hz": 100.0})
    requests = [request for request, _ in heard]
    assert requests == sorted(requests) and len(requests) > 50
    assert np.diff([now for _, now in heard]).min() == 0.0  # some had to wait
