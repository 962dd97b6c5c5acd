"""The estimators of fleet mode are those of the engine."""

import os

os.environ.setdefault("SPLITEDGE_LOOPS", "python")

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.estimate import EstimatorSettings, LinkEstimator
from splitedge.sim import fleet_estimate as fleet
from splitedge.sim.compiled import COMPILES

pytestmark = pytest.mark.skipif(COMPILES, reason="compiled loops are not called from Python")

EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["rtt", "up", "down", "queue", "exchange", "stall"]),
        st.floats(0.001, 2.0),  # seconds since the one before
        st.floats(0.0005, 1.0),  # seconds it took
        st.floats(50.0, 50_000.0),  # bytes
    ),
    max_size=60,
)


@settings(max_examples=40, deadline=None)
@given(events=EVENTS, device=st.integers(0, 2))
def test_both_estimate_the_same(events, device):
    one, many, now = LinkEstimator(), fleet.estimators(3, EstimatorSettings()), 0.0
    for what, gap, seconds, nbytes in events:
        now += gap
        if what == "rtt":
            one.observe_rtt(now, seconds)
            fleet.observe_rtt(many, device, now, seconds)
        elif what == "up":
            one.observe_uplink(now, nbytes, seconds)
            fleet.observe_transfer(many, device, fleet.UP, now, nbytes, seconds)
        elif what == "down":
            one.observe_downlink(now, nbytes, seconds)
            fleet.observe_transfer(many, device, fleet.DOWN, now, nbytes, seconds)
        elif what == "queue":
            one.observe_queue(now, seconds)
            fleet.observe_queue(many, device, now, seconds)
        elif what == "exchange":
            one.observe_exchange(now, nbytes, 200.0, seconds)
            fleet.observe_exchange(many, device, now, nbytes, 200.0, seconds)
        else:
            one.observe_stall(now, nbytes, seconds)
            fleet.observe_stall(many, device, now, nbytes, seconds)
        wanted = one.goodput(now), one.downlink(now), one.rtt(now), one.queue(now)
        for i, estimate in enumerate(wanted):
            found = fleet.estimate(many, fleet.QUANTITIES * device + i, now)
            np.testing.assert_allclose(found, (estimate.mean, estimate.low, estimate.high), rtol=1e-4)
