"""What is simulated: deployment, channel, device, cloud and requests. Read from TOML or given by flags."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator

from splitedge.estimate import EstimatorSettings
from splitedge.settings import EngineSettings
from splitedge.sim.device_classes import CLASSES
from splitedge.validating import parsed, read_toml

Seconds = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class Part(BaseModel):
    """A table of a scenario: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class ChannelPart(Part):
    """The channel.

    Attributes:
        up: trace file of the uplink, or of both ways.
        down: trace file of the downlink; None takes `up`'s.
        rtt_ms: round-trip time without queueing; None takes the trace's own, else 0.
        start_s: where in the trace to begin.
        loop: begin again at its end.
        buffer_kb: room in each direction's queue, kB.
        cuts: (begin, end) seconds in which the link is lost.
        outages: (begin, end) seconds in which both directions stall and nothing is lost.
        down_start_s: where in its trace the downlink begins; None takes `start_s`, so that up and down
            are coupled in time, another one takes them apart.
        half_duplex: both directions share one medium, only one sends at a time.
        loss: share of packets lost and sent again in each direction, 0 to 0.5.
        loss_burst: mean packets lost in a row; None for independent losses.
        rto_ms: what a sender's retransmission timer allows beyond a round trip.
    """

    up: Path
    down: Path | None = None
    rtt_ms: Seconds | None = None
    start_s: Seconds = 0.0
    loop: bool = True
    buffer_kb: int = Field(default=256, ge=1)
    cuts: tuple[tuple[Seconds, Seconds], ...] = ()
    outages: tuple[tuple[Seconds, Seconds], ...] = ()
    down_start_s: Seconds | None = None
    half_duplex: bool = False
    loss: float = Field(default=0.0, ge=0, le=0.5)
    loss_burst: float | None = Field(default=None, ge=1, le=1e6)
    rto_ms: Seconds = 200.0


class DevicePart(Part):
    """The device.

    Attributes:
        like: a named class of devices (`device_classes`), whose `slower` and `power` take the place of those
            given here.
        slower: how many times longer than measured each stage takes: 1 is the machine of the profile.
        power: name of a power profile.
        battery_j: joules of a full battery; None is on mains.
        charge: fraction of it at the start.
        battery_interval_s: seconds between two readings of it.
        count: devices, all of this kind, that share the cloud.
        shared_cell: whether they share the channel's capacity too.
    """

    like: str | None = None
    slower: Positive = 1.0
    power: str = "none"
    battery_j: Positive | None = None
    charge: float = Field(default=1.0, ge=0, le=1)
    battery_interval_s: Positive = 30.0
    count: int = Field(default=1, ge=1, le=1_000_000)
    shared_cell: bool = False

    @model_validator(mode="before")
    @classmethod
    def _of_class(cls, data: Any) -> Any:
        """Take over what the class says, so that `slower` and `power` hold whatever was named."""
        like = data.get("like") if isinstance(data, dict) else None
        if like is None:
            return data
        if like not in CLASSES:
            raise ValueError(f"no class of devices '{like}'; there are {', '.join(CLASSES)}")
        return {**data, "slower": CLASSES[like].slower, "power": CLASSES[like].power}


class CloudPart(Part):
    """The cloud.

    Attributes:
        slower: how many times longer than measured decode and tail take.
        executors: batches computed at once.
        max_rows: rows of a batch at most.
        max_wait_ms: how long an incomplete batch waits for more.
        per_row: what each further row of a batch adds, as a share of its own seconds: 1 where batching saves
            nothing, 0 where a batch takes as long as its slowest row.
        queue_requests: requests waiting or running at once; more are refused as busy.
    """

    slower: Positive = 1.0
    executors: int = Field(default=1, ge=1, le=1024)
    max_rows: int = Field(default=32, ge=1, le=65536)
    max_wait_ms: Seconds = 0.0
    per_row: float = Field(default=1.0, ge=0, le=1)
    queue_requests: int = Field(default=1024, ge=1, le=1_000_000)


class ShellPart(Part):
    """What the shells around engine and cloud cost, milliseconds; nothing unless calibrated.

    Attributes:
        stage_ms: on the device, from the end of a stage to the engine's hearing of it.
        send_ms: on the device, from the engine's word to the first byte on the link.
        receive_ms: on the device, from a message's last byte to the engine's hearing of it.
        cloud_ms: in the cloud, from a message's last byte to the queue, and again from a batch's end to the
            reply's first byte.
        measured: a file of quantiles that real processes took (`measured.Measured`): shells and stages are
            drawn from it, while engine and policy go by the option table, as a daemon goes by its bundle's.
            The four constants above must then be 0.
    """

    stage_ms: Seconds = 0.0
    send_ms: Seconds = 0.0
    receive_ms: Seconds = 0.0
    cloud_ms: Seconds = 0.0
    measured: Path | None = None

    @model_validator(mode="after")
    def _one_of_both(self) -> Self:
        if self.measured is not None and (self.stage_ms or self.send_ms or self.receive_ms or self.cloud_ms):
            raise ValueError("give constants in milliseconds or 'measured', not both")
        return self


class WorkPart(Part):
    """The requests of each device.

    Attributes:
        arrivals: `fixed` rate, `poisson`, or a file of recorded arrivals (records, or one second a line).
        rate_hz: requests a second (not with recorded arrivals).
        requests: how many, of each device.
        deadline_ms: time each may take; None for none.
        start_s: seconds between the connection's coming up and the first request.
    """

    arrivals: Literal["fixed", "poisson"] | Path = "fixed"
    rate_hz: Positive = 20.0
    requests: int = Field(default=1000, ge=1, le=1_000_000_000)
    deadline_ms: Positive | None = 150.0
    start_s: Seconds = 0.0


class Scenario(Part):
    """Everything one simulated run needs; the same scenario and seed give the same rows.

    Attributes:
        deployment: a file written by `Deployment.evaluate(...).save`, or a bundle's directory that holds
            `evaluation.npz`.
        policy: `name` or `name:argument`.
        mode: `exact` runs the daemon's engine object event by event; `fleet` runs the policies on arrays.
        seed: of arrivals, rows drawn and service times.
        reasons: whether every row says in words why its route was taken (column `reason`); it is slower.
        engine: the engine's settings, as an edge's configuration has them; `reasons` is the scenario's.
        link: how the engine estimates the link, likewise.
    """

    deployment: Path
    channel: ChannelPart
    policy: str = "deadline"
    mode: Literal["exact", "fleet"] = "exact"
    seed: int = Field(default=0, ge=0)
    reasons: bool = False
    device: DevicePart = DevicePart()
    cloud: CloudPart = CloudPart()
    work: WorkPart = WorkPart()
    shell: ShellPart = ShellPart()
    engine: EngineSettings = EngineSettings()
    link: EstimatorSettings = EstimatorSettings()

    @classmethod
    def read(cls, path: Path) -> Self:
        """Read a TOML file; relative paths in it are of its own directory.

        Raises:
            ConfigError: it is missing, no TOML, or a key is unknown or out of range.
        """
        return cls.parse(read_toml(path), path)

    @classmethod
    def parse(cls, data: Mapping[str, object], path: Path) -> Self:
        """What was read from a TOML file at `path`; relative paths are of its directory.

        Raises:
            ConfigError: a key is unknown or out of range.
        """
        found = parsed(cls, data, str(path))
        return found.beside(path.parent)

    def beside(self, folder: Path) -> Self:
        """The same with relative paths taken from `folder`."""
        channel = self.channel.model_copy(
            update={
                "up": folder / self.channel.up,
                "down": None if self.channel.down is None else folder / self.channel.down,
            }
        )
        work = self.work
        if isinstance(work.arrivals, Path):
            work = work.model_copy(update={"arrivals": folder / work.arrivals})
        shell = self.shell
        if shell.measured is not None:
            shell = shell.model_copy(update={"measured": folder / shell.measured})
        parts = {"deployment": folder / self.deployment, "channel": channel, "work": work, "shell": shell}
        return self.model_copy(update=parts)
