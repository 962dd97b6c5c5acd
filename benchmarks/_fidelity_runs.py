"""Real processes and the simulator on the same requests over the same channel."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splitedge.evaluation import Evaluation
from splitedge.keys import new_keys, trust
from splitedge.policy import Option, Route
from splitedge.records import read_records
from splitedge.sim.channel import channels_of, read_traces
from splitedge.sim.compare import Strategy, Stream, compare
from splitedge.sim.curves import steady
from splitedge.sim.exact import run_exact
from splitedge.sim.link import Channel
from splitedge.sim.measured import Measured, Took, quantiles_of
from splitedge.sim.pacer import precise_loop
from splitedge.sim.scenario import ChannelPart, DevicePart, Scenario, ShellPart, WorkPart
from splitedge.sim.workload import rows as rows_of

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cifar_deployment import Made

POWER = "phone-lte"
FAST = 1e9  # bits/s of the channel that calibrates: nothing waits for it
#: Its round trip: with one, the pacer has timers to keep, and what they are late is measured with the shells.
DELAY_S = 0.02
#: Second of the channel at which requests begin, whenever the connection came up before.
BEGIN_S = 3.0
#: Requests of a calibration that are left out: a process that has just started is slower.
WARM_UP = 10
Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What both are asked: requests a second, how many, and milliseconds each may take."""

    rate_hz: float
    requests: int
    deadline_ms: float
    policy: str = "deadline"


class Bench:
    """Real processes of one deployment, in a work directory with their keys, logs and records."""

    def __init__(self, made: Made, work: Path) -> None:
        self.made, self.work = made, work
        self.evaluation = Evaluation.load(made.evaluation)
        work.mkdir(parents=True, exist_ok=True)
        self.keys = work / "cloud", work / "edge"
        if not self.keys[0].exists():
            trust(self.keys[1], new_keys(self.keys[0], "cloud"))
            trust(self.keys[0], new_keys(self.keys[1], "edge"))

    def real(
        self, policy: str, asked: Asked, rows: Any, channels: Callable[[], tuple[Channel, Channel]]
    ) -> Table:
        """Records of a real run, by column, in order of arrival; `t_s` is since the link came up, `replay_s`
        how long the channel was replayed by then.
        """
        images, labels = self.made.images
        stream = Stream(images[rows].numpy(), labels[rows].numpy(), asked.rate_hz, asked.deadline_ms / 1e3)
        strategy = Strategy(policy, self.made.bundle, policy)
        run = compare([strategy], stream, channels, self.keys, self.work, power=POWER, begin_s=BEGIN_S)
        with asyncio.Runner(loop_factory=precise_loop) as runner:  # the usual loop's timers are 1 ms late
            (row,) = runner.run(run)
        table: Table = dict(read_records(self.work / "records-0.jsonl").columns)
        order = np.argsort(table["t_s"], kind="stable")
        table = {name: values[order] for name, values in table.items()}
        table["t_s"] = table["t_s"] - row.link_at_s
        table["replay_s"] = row.link_at_s - row.replay_at_s
        return table

    def calibrate(self, requests: int, rate_hz: float, told: Callable[[str], None]) -> Measured:
        """Run every option alone over a channel that only delays; what its stages and the shells took."""
        free = Channel(steady(FAST), DELAY_S)
        asked = Asked(rate_hz, WARM_UP + requests, 5000.0)
        seen: list[Table] = []
        for option in self.evaluation.table:
            told(f"calibrating {option.name}")
            table = self.real(f"static:{option.name}", asked, np.arange(asked.requests), lambda: (free, free))
            del table["replay_s"]
            there = (table["option"] == option.name) & (np.arange(asked.requests) >= WARM_UP)
            seen.append({name: values[there] for name, values in table.items()})
        return measured_of(self.evaluation.table, seen)

    def pair(
        self, channel: ChannelPart, asked: Asked, measured: Measured, repeats: int = 2, seed: int = 0
    ) -> tuple[list[Table], Table]:
        """Records of real runs of the same schedule over the same seconds of the channel, and those of the
        simulation of the first.
        """
        file = self.work / "measured.json"
        measured.save(file)
        work = WorkPart(
            arrivals="fixed", rate_hz=asked.rate_hz, requests=asked.requests, deadline_ms=asked.deadline_ms
        )
        scenario = Scenario(
            deployment=self.made.evaluation,
            channel=channel,
            policy=asked.policy,
            seed=seed,
            device=DevicePart(power=POWER),
            work=work,
            shell=ShellPart(measured=file),
        )
        count = len(self.evaluation.labels)
        rows = rows_of(scenario, 0, asked.requests, count)
        up, down = read_traces(channel)
        runs = [
            self.real(asked.policy, asked, rows, lambda: channels_of(channel, up, down, seed))
            for _ in range(repeats)
        ]
        began = [run.pop("replay_s") for run in runs]
        times = self.work / "arrivals.txt"
        times.write_text("".join(f"{t:.6f}\n" for t in runs[0]["t_s"].tolist()), encoding="ascii")
        scenario = scenario.model_copy(
            update={
                "channel": channel.model_copy(update={"start_s": channel.start_s + began[0]}),
                "work": work.model_copy(update={"arrivals": times}),
            }
        )
        simulated = run_exact(scenario, self.evaluation, up, down)
        return runs, dict(simulated.columns)


def measured_of(options: Sequence[Option], seen: Sequence[Table]) -> Measured:
    """Quantiles of what stages and shells took, from the records of each option alone.

    What is over the delay of the link is counted to the shells: their own work and the pacer's lateness.
    """
    took, stage, wire, rest = {}, [], [], []
    for option, table in zip(options, seen, strict=True):
        edge, cloud = table["head_s"] + table["encode_s"], table["decode_s"] + table["tail_s"]
        took[option.name] = Took(edge_ms=quantiles_of(edge), cloud_ms=quantiles_of(cloud))
        if not option.remote:
            stage.append((table["latency_s"] - edge) / stages(option, options))
    usual = float(np.median(np.concatenate(stage))) if stage else 0.0
    for option, table in zip(options, seen, strict=True):
        if option.remote:
            computed = sum(table[name] for name in ("head_s", "encode_s", "decode_s", "tail_s"))
            link = table["uplink_s"] + table["downlink_s"]
            wire.append(link - DELAY_S)
            rest.append(table["latency_s"] - computed - link - usual * stages(option, options))
    # Only the sum of both ways is exact (`ClockOffset`), so that each of them gets half of it.
    half = [0.5 * np.concatenate(parts) if parts else np.zeros(0) for parts in (wire, rest)]
    return Measured(
        options=took,
        stage_ms=quantiles_of(np.concatenate(stage) if stage else ()),
        send_ms=quantiles_of(half[0]),
        receive_ms=quantiles_of(half[0]),
        cloud_ms=quantiles_of(half[1]),
    )


def stages(option: Option, options: Sequence[Option]) -> int:
    """How many stages lead to an option's answer or payload: it and the exits before it."""
    if option.route not in (Route.SPLIT, Route.EXIT):
        return 1
    return 1 + sum(o.route is Route.EXIT and o.edge_s < option.edge_s and o is not option for o in options)


def route_of(name: str) -> str:
    """The route of an option's name."""
    head = name.partition(":")[0].partition("/")[0]
    return head if head in {route.value for route in Route} else ""


def medians(measured: Measured) -> str:
    """Of each shell, for a log."""
    names = ("stage_ms", "send_ms", "receive_ms", "cloud_ms")
    return ", ".join(f"{name} {np.median(getattr(measured, name)):.3f}" for name in names)
