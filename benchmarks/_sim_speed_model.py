"""What `sim_speed.py` simulates: a made-up deployment and channel, and the same written in SimPy."""

from __future__ import annotations

import math
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from splitedge.estimate import LinkEstimator
from splitedge.evaluation import Evaluation
from splitedge.policy import Observation, Option, Policy, Route
from splitedge.sim.link import Channel, Link
from splitedge.sim.scenario import ChannelPart, CloudPart, DevicePart, Scenario, WorkPart
from splitedge.sim.traces import Trace

ROWS = 1000
RATE_HZ = 10.0
DEADLINE_S = 0.15


def table() -> tuple[Option, ...]:
    """A small local model, two levels of a split, and the input sent as it is."""
    return (
        Option(Route.LOCAL, accuracy=0.80, accuracy_measured=True, edge_s=0.012, edge_s_q95=0.015),
        *(
            Option(
                Route.SPLIT,
                cut="layer2",
                codec="int8",
                level=level,
                accuracy=accuracy,
                accuracy_measured=True,
                edge_s=0.006,
                edge_s_q95=0.008,
                cloud_s=0.004,
                cloud_s_q95=0.006,
                bytes_up=nbytes,
                bytes_up_q95=1.1 * nbytes,
                bytes_down=180,
            )
            for level, (accuracy, nbytes) in enumerate(((0.88, 1500.0), (0.91, 5000.0)))
        ),
        Option(
            Route.CLOUD,
            codec="webp",
            accuracy=0.93,
            accuracy_measured=True,
            edge_s=0.002,
            edge_s_q95=0.003,
            cloud_s=0.008,
            cloud_s_q95=0.011,
            bytes_up=12000.0,
            bytes_up_q95=15000.0,
            bytes_down=180,
        ),
    )


def evaluation() -> Evaluation:
    """Answers drawn so that each option is right as often as its table says."""
    options = table()
    rng = np.random.default_rng(0)
    accuracy = np.array([option.accuracy for option in options])[:, None]
    correct = rng.random((len(options), ROWS)) < accuracy
    nbytes = np.array([option.bytes_up for option in options])[:, None] * rng.uniform(
        0.9, 1.1, (len(options), ROWS)
    )
    return Evaluation(
        tuple(option.name for option in options),
        correct,
        np.broadcast_to(accuracy, correct.shape).copy(),
        np.rint(nbytes),
        np.zeros(ROWS, np.int64),
        options,
    )


def scenario(policy: str, devices: int, requests: int, mode: str) -> Scenario:
    """`devices` that ask at 10 Hz within 150 ms; the cloud grows with them, so that it is never full."""
    return Scenario.model_validate(
        {
            "deployment": Path("none"),
            "channel": ChannelPart(up=Path("none")),
            "policy": policy,
            "mode": mode,
            "device": DevicePart(count=devices, power="phone-lte"),
            "cloud": CloudPart(executors=max(1, min(1024, devices // 16)), per_row=0.05),
            "work": WorkPart(rate_hz=RATE_HZ, requests=requests, deadline_ms=1e3 * DEADLINE_S),
        }
    )


class Queues:
    """The same model in SimPy (simpy.readthedocs.io): a device's queue, its uplink and downlink (the very
    `Link` of this project), and the cloud's queue.

    Args:
        policy: asked about every request, with an estimator fed by the replies; None always splits.
        linked: False leaves both ways out: two queues and nothing else.
    """

    def __init__(self, trace: Trace, requests: int, policy: Policy | None, linked: bool = True) -> None:
        import simpy

        self.env = simpy.Environment()
        self._device = simpy.Resource(self.env, 1)
        self._cloud = simpy.Resource(self.env, 1)
        self._up, self._down = Link(Channel.of(trace, "up")), Link(Channel.of(trace, "down"))
        self._options = table()
        self._bytes: Sequence[Sequence[float]] = evaluation().nbytes.tolist()
        self._policy, self._estimator = policy, LinkEstimator()
        self._linked, self._requests = linked, requests
        self.done = 0

    def run(self) -> int:
        """Simulate all requests; how many were answered."""
        self.env.process(self._arrivals())
        self.env.run()
        return self.done

    def _arrivals(self) -> Generator[Any, Any, None]:
        for i in range(self._requests):
            self.env.process(self._request(i))
            yield self.env.timeout(1.0 / RATE_HZ)

    def _choose(self) -> int:
        if self._policy is None:
            return 1
        now, link = self.env.now, self._estimator
        obs = Observation(
            self._options,
            link.goodput(now),
            link.downlink(now),
            link.rtt(now),
            link.queue(now),
            deadline_s=DEADLINE_S,
            t_s=now,
        )
        return int(self._policy.decide(obs).option)

    def _request(self, i: int) -> Generator[Any, Any, None]:
        env = self.env
        option = self._options[index := self._choose()]
        with self._device.request() as turn:
            yield turn
            yield env.timeout(option.edge_s)
        if option.remote:
            sent, nbytes = env.now, int(self._bytes[index][i % ROWS])
            if self._linked:
                yield from self._over(self._up, nbytes)
            arrived = env.now
            with self._cloud.request() as turn:
                yield turn
                begun = env.now
                yield env.timeout(option.cloud_s)
            ended = env.now
            if self._linked:
                yield from self._over(self._down, 180)
            if self._policy is not None:
                self._estimator.observe_uplink(env.now, nbytes, arrived - sent)
                self._estimator.observe_downlink(env.now, 180, env.now - ended)
                self._estimator.observe_queue(env.now, begun - arrived)
        self.done += 1

    def _over(self, link: Link, nbytes: int) -> Generator[Any, Any, None]:
        arrives = link.send(self.env.now, nbytes)
        if arrives < math.inf:
            yield self.env.timeout(arrives - self.env.now)
