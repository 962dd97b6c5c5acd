"""All that a run will draw, known beforehand: arrivals, what each option answers, how long it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from splitedge.evaluation import Evaluation
from splitedge.policy import Option
from splitedge.sim.answers import Answers
from splitedge.sim.curves import Floats
from splitedge.sim.device import Seconds, scaled
from splitedge.sim.exact import links_of_device
from splitedge.sim.link import Link
from splitedge.sim.scenario import Scenario
from splitedge.sim.shell import refuse_measured
from splitedge.sim.traces import Trace
from splitedge.sim.workload import CLOUD, EDGE, arrivals, read_arrivals, rows, stream


@dataclass(frozen=True, slots=True)
class Ask:
    """One request as it will be. Seconds of the run's clock, bytes; lists by option.

    Attributes:
        device: who asks.
        number: which of the device's requests, from 0.
        t_s: arrival.
        limit_s: the last moment for an answer; inf for none.
        edge_s: compute seconds on the device for the option, exits on the way included.
        cloud_s: seconds of decode and tail.
        nbytes: framed bytes sent; 0 where nothing is.
        right: 1 where the answer is the right one, else 0; or the probability of it (see `Future.of`).
    """

    device: int
    number: int
    t_s: float
    limit_s: float
    edge_s: list[float]
    cloud_s: list[float]
    nbytes: list[int]
    right: list[float]


@dataclass(frozen=True, eq=False)
class Future:
    """What a scenario will draw, from the very streams that exact mode draws it from.

    Attributes:
        scenario: what is simulated.
        options: with the seconds of this device and this cloud.
        bytes_down: of a reply, by option.
        asks: all requests, in order of arrival.
        times: arrivals of each device.
    """

    scenario: Scenario
    options: tuple[Option, ...]
    bytes_down: list[int]
    asks: list[Ask]
    times: list[Floats]
    up: Trace
    down: Trace

    @classmethod
    def of(
        cls, scenario: Scenario, evaluation: Evaluation, up: Trace, down: Trace, *, answers_known: bool = True
    ) -> Future:
        """Look ahead.

        Args:
            scenario: what is to be simulated.
            evaluation: of the deployment.
            up, down: the channel's traces.
            answers_known: whether to know of each row which options are right, or no more than how often each
                option is right.

        Raises:
            SplitedgeError: as `run_exact` would.
        """
        refuse_measured(scenario, "what looks ahead")
        answers = Answers(evaluation)
        options = scaled(evaluation.table, scenario.device.slower, scenario.cloud.slower)
        recorded = None
        if not isinstance(scenario.work.arrivals, str):
            recorded = read_arrivals(scenario.work.arrivals)
        times = [arrivals(scenario, device, recorded) for device in range(scenario.device.count)]
        asks = [
            ask
            for device, mine in enumerate(times)
            for ask in _asks(scenario, answers, options, device, mine, answers_known)
        ]
        asks.sort(key=lambda ask: (ask.t_s, ask.device, ask.number))
        return cls(scenario, options, answers.bytes_down, asks, times, up, down)

    def links(self, device: int) -> tuple[Link, Link]:
        """Fresh links of a device that lose no packet, each way with a medium of its own."""
        channel = self.scenario.channel.model_copy(update={"loss": 0.0, "half_duplex": False})
        scenario = self.scenario.model_copy(update={"channel": channel})
        return links_of_device(scenario, self.up, self.down, device)


def _asks(
    scenario: Scenario,
    answers: Answers,
    options: tuple[Option, ...],
    device: int,
    times: Floats,
    answers_known: bool,
) -> Iterator[Ask]:
    count = len(times)
    edge = Seconds([o.edge_s for o in options], [o.edge_s_q95 for o in options])
    cloud = Seconds([o.cloud_s for o in options], [o.cloud_s_q95 for o in options])
    row_of = rows(scenario, device, count, len(answers.correct[0])).tolist()
    edge_z = stream(scenario.seed, device, EDGE).standard_normal(count).tolist()
    cloud_z = stream(scenario.seed, device, CLOUD).standard_normal(count).tolist()
    deadline_ms = scenario.work.deadline_ms
    deadline_s = math.inf if deadline_ms is None else deadline_ms / 1e3
    every = range(len(options))
    often = [sum(correct) / len(correct) for correct in answers.correct]
    for i, t_s in enumerate(times.tolist()):
        row = row_of[i]
        yield Ask(
            device,
            i,
            t_s,
            t_s + deadline_s,
            [edge.draw(o, edge_z[i]) for o in every],
            [cloud.draw(o, cloud_z[i]) for o in every],
            [answers.encoded(o, row)[1] if options[o].remote else 0 for o in every],
            [float(answers.correct[o][row]) for o in every] if answers_known else often,
        )
