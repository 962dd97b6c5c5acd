"""A stand-in for the simulator: quick, of the right shape, the same for the same scenario and seed."""

import numpy as np

from splitedge.evaluation import Evaluation
from splitedge.policy import Option, Route
from splitedge.sim.inputs import trace_of
from splitedge.sim.link import Channel, Link
from splitedge.sim.simulation import Simulation

OPTIONS = (
    Option(Route.LOCAL, accuracy=0.7, edge_s=0.02, edge_s_q95=0.025),
    Option(
        Route.SPLIT,
        cut="layer2",
        codec="int8",
        accuracy=0.9,
        edge_s=0.008,
        edge_s_q95=0.01,
        cloud_s=0.002,
        cloud_s_q95=0.003,
        bytes_up=9000,
        bytes_up_q95=9500,
        bytes_down=300,
    ),
)


def save_evaluation(path, rows=200, seed=0):
    rng = np.random.default_rng(seed)
    correct = rng.random((2, rows)) < np.array([[0.7], [0.9]])
    nbytes = np.stack([np.zeros(rows), rng.uniform(8500, 9500, rows)])
    labels = np.zeros(rows, np.int64)
    names = tuple(option.name for option in OPTIONS)
    Evaluation(names, correct, np.where(correct, 0.8, 0.4), nbytes, labels, OPTIONS).save(path)
    return path


def fake(scenario):
    """The policy's name says how often it sends: local 0%, split 100%, oracle what is in time."""
    rng = np.random.default_rng(scenario.seed)
    if "broken" in scenario.policy:
        raise RuntimeError("it broke\nin two lines")
    n, rate = scenario.work.requests, scenario.work.rate_hz
    deadline = 1e-3 * scenario.work.deadline_ms
    t, dice = np.arange(n) / rate, rng.random((2, n))
    link = Link(Channel(trace_of(scenario.channel.up).capacity("up"), 0.03))
    share = {"static:local": 0.0, "static:split": 1.0}.get(scenario.policy, 0.5)
    sent = dice[0] < share
    seconds = np.full(n, 0.02)
    for i in np.flatnonzero(sent):
        seconds[i] = 0.008 + link.send(t[i], 9000) - t[i]
    late = seconds > deadline
    if scenario.policy == "oracle":
        sent, seconds, late = sent & ~late, np.where(late, 0.02, seconds), late & False
    failed = seconds > 4 * deadline
    right = (dice[1] < np.where(sent, 0.9, 0.7)) & ~failed
    option = np.where(sent, OPTIONS[1].name, "local")
    columns = {
        "device": np.zeros(n, int),
        "row": rng.integers(0, 200, n),
        "t_s": t,
        "deadline_s": np.full(n, deadline),
        "planned": option,
        "option": np.where(failed, "", option),
        "route": np.where(failed, "", np.where(sent, "split", "local")),
        "degraded": np.zeros(n, bool),
        "error": np.where(failed, "DeadlineExceeded", ""),
        "confidence": np.full(n, 0.5),
        "latency_s": seconds,
        "met": ~late,
        "bytes_up": np.where(sent, 9000, 0),
        "bytes_down": np.where(sent, 300, 0),
        "energy_j": np.where(sent, 0.02, 0.05),
        "goodput_bps": np.full(n, 1e6),
        "rtt_s": np.full(n, 0.03),
        "battery": np.full(n, np.nan),
        "right": right,
    }
    return Simulation(scenario.policy, str(scenario.channel.up), scenario.seed, n / rate, columns)


def no_bound(scenario):
    return 0.95
