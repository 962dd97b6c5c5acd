"""A small deployment, observations of it, and devices side by side: what tests of policies build on."""

import math

import numpy as np
from hypothesis import strategies as st

from splitedge.policy import Estimate, Observation, Option, Route

EXIT1 = Option(Route.EXIT, exit=1, accuracy=0.70, edge_s=0.004, edge_s_q95=0.005)
EXIT2 = Option(Route.EXIT, exit=2, accuracy=0.80, edge_s=0.009, edge_s_q95=0.011)
LOCAL = Option(Route.LOCAL, accuracy=0.85, edge_s=0.060, edge_s_q95=0.080)


def remote(route, cut, acc, up, edge=0.006, level=0, cloud=0.003):
    return Option(
        route,
        cut=cut,
        codec="int8" if cut else "webp",
        level=level,
        accuracy=acc,
        edge_s=edge,
        edge_s_q95=1.3 * edge,
        cloud_s=cloud,
        cloud_s_q95=1.3 * cloud,
        bytes_up=up,
        bytes_up_q95=1.2 * up,
        bytes_down=80,
    )


SPLIT_A = remote(Route.SPLIT, "a", 0.930, 6000)
SPLIT_A_LOW = remote(Route.SPLIT, "a", 0.915, 3000, level=1)
SPLIT_B = remote(Route.SPLIT, "b", 0.925, 1500, edge=0.015)
CLOUD = remote(Route.CLOUD, None, 0.934, 20_000, edge=0.002)
TABLE = (EXIT1, EXIT2, LOCAL, SPLIT_A, SPLIT_A_LOW, SPLIT_B, CLOUD)


def observe(options=TABLE, goodput=8e6, rtt=0.04, **more):
    return Observation(
        options,
        goodput=Estimate(goodput, 0.5 * goodput, 2 * goodput),
        downlink=Estimate(2 * goodput, goodput, 4 * goodput),
        rtt=Estimate(rtt, 0.8 * rtt, 1.5 * rtt),
        queue=Estimate(0.001, 0.0, 0.004),
        **{"joules_per_edge_s": 0.3, "joules_per_bit_up": 77e-9, "joules_per_bit_down": 12e-9, **more},
    )


def chosen(policy, obs):
    return obs.options[int(policy.decide(obs).option)]


def reachable(obs):
    return [o for o in obs.options if obs.link_up or not o.remote]


#: What one device sees, but for the time and the exit it stands at.
device = st.fixed_dictionaries(
    {
        "goodput": st.floats(1e4, 1e9),
        "rtt": st.floats(1e-4, 1.0),
        "edge_wait_s": st.floats(0, 0.2),
        "link_up": st.booleans(),
        "deadline_s": st.one_of(st.just(math.inf), st.floats(-0.01, 1.0)),
        "rows": st.integers(1, 4),
        "confidence": st.floats(0, 1),
        "sunk_s": st.floats(0, 0.02),
        "unsent_s": st.one_of(st.floats(0, 3.0), st.just(math.inf)),
        "tail_w": st.sampled_from([0.0, 0.6]),
        "tail_s": st.sampled_from([0.0, 2.0]),
        "battery": st.sampled_from([math.nan, 1.0, 0.3, 0.2, 0.12, 0.05, 0.01]),
    }
)


def of_device(d, options=TABLE, exit=-1, t_s=0.0):
    """The observation of one device, on arrival or at an exit."""
    if exit < 0:
        d = {**d, "confidence": math.nan, "sunk_s": 0.0}
    return observe(options, exit=exit, t_s=t_s, **d)


def stacked(each):
    """The observation of many devices at the same exit: each other number an array of shape (N,)."""

    def column(read):
        return np.array([read(obs) for obs in each])

    def estimate(name):
        return Estimate(*(column(lambda obs, i=i: getattr(obs, name)[i]) for i in range(3)))

    numbers = ("edge_wait_s", "link_up", "deadline_s", "rows", "confidence", "sunk_s", "unsent_s", "battery")
    numbers += ("tail_w", "tail_s")
    return each[0]._replace(
        **{name: estimate(name) for name in ("goodput", "downlink", "rtt", "queue")},
        **{name: column(lambda obs, name=name: getattr(obs, name)) for name in (*numbers, "t_s")},
    )
