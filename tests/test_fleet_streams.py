"""The random numbers of fleet mode are those of exact mode."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from splitedge.sim.fleet_streams import Streams
from splitedge.sim.workload import ARRIVALS, CLOUD, ROWS, stream


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 2**130),
    devices=st.integers(1, 40),
    purpose=st.sampled_from([ARRIVALS, ROWS, CLOUD]),
    turns=st.lists(st.tuples(st.integers(0, 39), st.integers(1, 70)), max_size=8),
)
def test_each_device_draws_what_its_own_generator_draws(seed, devices, purpose, turns):
    streams = Streams(seed, devices, purpose)
    alone = [stream(seed, i, purpose) for i in range(devices)]
    for turn, count in turns:
        device = turn % devices
        draw = streams.resume(device)
        found = draw.permutation(count), draw.standard_normal(count), draw.exponential(0.5, count)
        streams.pause(device)
        there = alone[device]
        wanted = there.permutation(count), there.standard_normal(count), there.exponential(0.5, count)
        for a, b in zip(found, wanted, strict=True):
            np.testing.assert_array_equal(a, b)
