"""The cloud falls silent under load: the device's seconds must suffice for every request in flight."""

from __future__ import annotations

import random

import pytest
from engine_bench import CLOUD, EXIT1, EXIT2, LOCAL, Bench

from splitedge.events import Answer, Arrived, Fail, Run, StageDone, StageKind, Tick

OPTIONS = (EXIT1, EXIT2, LOCAL, CLOUD)
SECONDS = {StageKind.ENCODE: CLOUD.edge_s, StageKind.LOCAL: LOCAL.edge_s}


def seconds(stage):
    if stage.kind is StageKind.EXIT:
        return (EXIT1 if stage.number == 1 else EXIT2).edge_s
    return SECONDS[stage.kind]


def silent_cloud(seed, burst, gap, count=150):
    """Requests for the cloud, which never answers; the device needs the seconds the table says."""
    rng = random.Random(seed)
    bench = Bench(CLOUD, options=OPTIONS, breaker_failures=1000, max_in_flight=1000)
    arrivals, now = [], 1.0
    for request in range(count):
        now += burst * rng.uniform(*gap) if request % burst == 0 else 0.0
        arrivals.append((now, Arrived(request, deadline_s=rng.uniform(0.06, 0.3))))
    running, ended = None, []
    while arrivals or running or bench.engine.in_flight:
        at = min(arrivals[0][0] if arrivals else 1e9, running[0] if running else 1e9, bench.engine.wake_at)
        if running and at == running[0]:
            run, running = running[1], None
            event = StageDone(run.request, run.stage, seconds(run.stage), confidence=0.8, nbytes=3000)
        elif arrivals and at == arrivals[0][0]:
            event = arrivals.pop(0)[1]
        else:
            event = Tick()
        for action in bench.at(at, event):
            if isinstance(action, Run):
                assert running is None
                running = (at + seconds(action.stage), action)
            elif isinstance(action, Answer | Fail):
                ended.append(action.record)
    assert len(ended) == count
    return ended


@pytest.mark.parametrize("gap", [(0.008, 0.03), (0.02, 0.06)])
@pytest.mark.parametrize("burst", [1, 5, 10])
def test_every_request_is_answered_by_its_deadline(burst, gap):
    # The local model (40 ms) for each would be up to twice what the device can compute; exits are 5 and 9 ms.
    for seed in range(3):
        ended = silent_cloud(seed, burst, gap)
        assert [record.error for record in ended if record.error] == []
        assert all(record.met and record.degraded for record in ended)


def test_with_time_to_spare_the_most_accurate_local_option_answers():
    ended = silent_cloud(1, burst=1, gap=(0.4, 0.5), count=30)
    assert {record.route for record in ended} == {"local"}
