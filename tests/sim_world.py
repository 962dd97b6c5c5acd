"""A deployment without a network: an option table, made-up answers, traces and scenarios in a few lines."""

from __future__ import annotations

import numpy as np

from splitedge.evaluation import Evaluation
from splitedge.policy import Option, Route
from splitedge.segments import Evidence
from splitedge.sim.curves import steady
from splitedge.sim.scenario import Scenario
from splitedge.sim.traces import Trace

LOCAL = Option(Route.LOCAL, accuracy=0.8, edge_s=0.040, edge_s_q95=0.050)
EXIT = Option(Route.EXIT, exit=0, accuracy=0.7, edge_s=0.005, edge_s_q95=0.006)
SPLIT = Option(
    Route.SPLIT, cut="b", codec="int8", accuracy=0.95, edge_s=0.010, edge_s_q95=0.012,
    cloud_s=0.006, cloud_s_q95=0.009, bytes_up=4000, bytes_up_q95=4400, bytes_down=120,
)  # fmt: skip
CLOUD = Option(
    Route.CLOUD, codec="webp", accuracy=0.9, edge_s=0.002, edge_s_q95=0.003,
    cloud_s=0.012, cloud_s_q95=0.016, bytes_up=2500, bytes_up_q95=3500, bytes_down=120,
)  # fmt: skip
TABLE = (LOCAL, EXIT, SPLIT, CLOUD)


def evaluation(options=TABLE, rows=200, seed=0, evidence=True):
    """Answers that are right as often as they are confident; bytes that vary by a tenth."""
    draw = np.random.default_rng(seed)
    shape = len(options), rows
    accuracy = np.array([option.accuracy for option in options])[:, None]
    confidence = draw.beta(9 * accuracy, 9 * (1 - accuracy), shape).clip(0.01, 0.99)
    mean = np.array([option.bytes_up for option in options])[:, None]
    nbytes = np.rint(mean * draw.uniform(0.9, 1.1, shape))
    seen = {
        option.exit: Evidence(tuple(confidence[i].tolist()), tuple(draw.random(rows) < confidence[i]))
        for i, option in enumerate(options)
        if option.route is Route.EXIT and evidence
    }
    names = tuple(option.name for option in options)
    correct = draw.random(shape) < confidence
    return Evaluation(names, correct, confidence, nbytes, np.zeros(rows, np.int64), options, seen)


def flat(mbps=8.0):
    """A trace that never changes."""
    return Trace(f"{mbps:g} Mbit/s", "synthetic", steady(mbps * 1e6), steady(mbps * 1e6))


def scenario(**tables):
    """A scenario whose files are never read; `work={"requests": 9}` and the like, nested as in TOML."""
    channel = {"up": "no-file", "rtt_ms": 40.0, **tables.pop("channel", {})}
    return Scenario.model_validate({"deployment": "no-file", "channel": channel, **tables})
