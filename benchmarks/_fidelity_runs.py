"""Real processes and the simulator on the same requests over the same channel."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from splitedge.evaluation import Evaluation
from splitedge.keys import new_keys, trust
from splitedge.policy import Route
from splitedge.records import read_records
from splitedge.sim.channel import channels_of, read_traces
from splitedge.sim.compare import Strategy, Stream, compare
from splitedge.sim.curves import steady
from splitedge.sim.exact import run_exact
from splitedge.sim.link import Channel
from splitedge.sim.scenario import ChannelPart, DevicePart, Scenario, ShellPart, WorkPart
from splitedge.sim.workload import rows as rows_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cifar_deployment import Made

POWER = "phone-lte"
FAST = 1e9  # bits/s of the channel that calibrates: nothing waits for it
Table = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """What both are asked: requests a second, how many, and milliseconds each may take."""

    rate_hz: float
    requests: int
    deadline_ms: float
    policy: str = "deadline"


@dataclass(frozen=True, slots=True)
class Calibrated:
    """What stages and shells take while real processes run them, over a channel without limits.

    Attributes:
        evaluation: with measured seconds in its option table.
        shell: what the shells around engine and cloud cost.
    """

    evaluation: Evaluation
    shell: ShellPart


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
        (row,) = asyncio.run(compare([strategy], stream, channels, self.keys, self.work, power=POWER))
        table: Table = dict(read_records(self.work / "records-0.jsonl").columns)
        order = np.argsort(table["t_s"], kind="stable")
        table = {name: values[order] for name, values in table.items()}
        table["t_s"] = table["t_s"] - row.link_at_s
        table["replay_s"] = row.link_at_s - row.replay_at_s
        return table

    def calibrate(self, requests: int, rate_hz: float, told: Callable[[str], None]) -> Calibrated:
        """Run every option alone over a channel without limits."""
        free = Channel(steady(FAST))
        asked = Asked(rate_hz, requests, 5000.0)
        options, lost = [], {"stage": [], "up": [], "down": [], "rest": []}
        for option in self.evaluation.table:
            told(f"calibrating {option.name}")
            seen = self.real(f"static:{option.name}", asked, np.arange(requests), lambda: (free, free))
            seen = {n: v[(seen["option"] == option.name)] for n, v in seen.items() if n != "replay_s"}
            edge, cloud = seen["head_s"] + seen["encode_s"], seen["decode_s"] + seen["tail_s"]
            took = _middle(edge), _high(edge), _middle(cloud), _high(cloud)
            names = ("edge_s", "edge_s_q95", "cloud_s", "cloud_s_q95")
            options.append(replace(option, **dict(zip(names, took, strict=True))))
            left = seen["latency_s"] - edge - cloud - seen["queue_s"]
            if not option.remote:
                lost["stage"].extend(left.tolist())
                continue
            lost["up"].extend(seen["uplink_s"].tolist())
            lost["down"].extend(seen["downlink_s"].tolist())
            lost["rest"].extend((left - seen["uplink_s"] - seen["downlink_s"]).tolist())
        stage = _median(lost["stage"])
        # Stamps bracket the link: what else is left of a remote request is of the cloud's and edge's shells.
        rest = max(0.0, _median(lost["rest"]) - stage)
        shell = ShellPart(
            stage_ms=1e3 * stage,
            send_ms=1e3 * _median(lost["up"]),
            receive_ms=1e3 * _median(lost["down"]),
            cloud_ms=0.5e3 * rest,
        )
        return Calibrated(replace(self.evaluation, table=tuple(options)), shell)

    def pair(
        self, channel: ChannelPart, asked: Asked, calibrated: Calibrated, seed: int = 0
    ) -> tuple[Table, Table]:
        """Records of the real run and of the simulated one."""
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
            shell=calibrated.shell,
        )
        count = len(self.evaluation.labels)
        rows = rows_of(scenario, 0, asked.requests, count)
        up, down = read_traces(channel)
        real = self.real(asked.policy, asked, rows, lambda: channels_of(channel, up, down, seed))
        times = self.work / "arrivals.txt"
        times.write_text("".join(f"{t:.6f}\n" for t in real["t_s"].tolist()), encoding="ascii")
        scenario = scenario.model_copy(
            update={
                "channel": channel.model_copy(update={"start_s": channel.start_s + real.pop("replay_s")}),
                "work": work.model_copy(update={"arrivals": times}),
            }
        )
        simulated = run_exact(scenario, calibrated.evaluation, up, down)
        return real, dict(simulated.columns)


def route_of(name: str) -> str:
    """The route of an option's name."""
    head = name.partition(":")[0].partition("/")[0]
    return head if head in {route.value for route in Route} else ""


def _middle(values: Any) -> float:
    """The mean without the slowest twentieth, which is the machine's other work."""
    ordered = np.sort(values)
    return float(ordered[: max(1, round(0.95 * len(ordered)))].mean())


def _high(values: Any) -> float:
    return float(np.quantile(values, 0.95))


def _median(values: list[float]) -> float:
    return float(np.median(values)) if values else 0.0
