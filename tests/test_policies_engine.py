"""Policies in the engine that the daemon runs: none breaks, and every reason is the policy's own."""

import heapq
import math

import numpy as np
import pytest
from policy_cases import TABLE

from splitedge.engine import Engine
from splitedge.events import (
    Answer,
    Arrived,
    BatteryRead,
    LinkChanged,
    Replied,
    Run,
    Send,
    Sent,
    StageDone,
    Tick,
)
from splitedge.events import StageKind as Kind
from splitedge.policy import make_policy
from splitedge.power import PROFILES


def drive(spec, *, requests=120, rate_hz=20.0, battery=math.nan, outage=(2.0, 3.0)):
    """Requests at a fixed rate over a link that is lost once; gives the records."""
    engine = Engine(TABLE, make_policy(spec, TABLE), power=PROFILES["phone-lte"])
    rng = np.random.default_rng(3)
    due = [(k / rate_hz, k, Arrived(k, 1, 0.2)) for k in range(requests)]
    due += [(0.0, -2, LinkChanged(True)), (0.0, -1, BatteryRead(battery))]
    due += [(outage[0], -3, LinkChanged(False, "gone")), (outage[1], -4, LinkChanged(True))]
    heapq.heapify(due)
    records, order = [], requests
    while due or engine.in_flight:
        if not due or engine.wake_at < due[0][0]:
            now, event = engine.wake_at, Tick()
        else:
            now, _, event = heapq.heappop(due)
        for action in engine.step(now, event):
            later = []
            if isinstance(action, Run):
                seconds = 0.002 if action.stage.kind is Kind.ENCODE else 0.004
                done = StageDone(action.request, action.stage, seconds, 0.001, rng.uniform(0.4, 1.0), 2000)
                later = [(now + seconds, done)]
            elif isinstance(action, Send):
                up = 0.02 * rng.uniform(0.5, 2.0)
                reply = Replied(action.request, action.attempt, 0.001, 0.001, 0.0, 0.001, 0.003, 200, 0.93)
                later = [(now + 1e-4, Sent(action.request, action.attempt, 2000)), (now + up, reply)]
            elif isinstance(action, Answer):
                records.append(action.record)
            for at, what in later:
                order += 1
                heapq.heappush(due, (at, order, what))
    assert len(records) == requests
    return records


@pytest.mark.parametrize(
    "spec",
    [
        "deadline",
        "dads",
        "spinn",
        "energy:0.002",
        "energy:hours=1,battery_wh=0.01",
        "ensemble:deadline,hold=0.5",
    ],
)
def test_every_request_is_answered_for_a_reason_of_the_policy(spec):
    records = drive(spec)
    assert not [r.reason for r in records if "failed" in r.reason or "explain" in r.reason]
    assert len({r.option for r in records}) > 1
    away = [r for r in records if 2.1 < r.t_s < 2.9]
    assert away and not any(r.route in ("split", "cloud") for r in away)


def test_a_budget_is_kept_in_the_joules_that_the_engine_counts():
    free = np.mean([r.energy_j for r in drive("energy:10", requests=2000)])
    spent = np.mean([r.energy_j for r in drive("energy:0.02,v=10", requests=2000)])
    assert free > 0.03
    assert spent < 0.021


def test_a_low_battery_is_the_reason_that_is_given():
    records = drive("deadline", battery=0.04, rate_hz=4.0)
    assert any("the battery is critically low at 4%" in r.reason for r in records)
    assert sum(r.energy_j for r in records) < sum(
        r.energy_j for r in drive("deadline", battery=0.9, rate_hz=4.0)
    )
