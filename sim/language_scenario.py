"""What is simulated of a language model: evaluation, channel, device, cloud, texts and mode."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, field_validator

from splitedge.estimate import EstimatorSettings
from splitedge.llm.modes import MAX_DRAFTS, Mode
from splitedge.sim.scenario import ChannelPart, Part, Positive, Seconds
from splitedge.validating import parsed, read_toml

AUTO = "auto"


class WayPart(Part):
    """How texts are written; see `splitedge.llm.modes.Way`.

    Attributes:
        mode: of all texts; `auto` chooses for each by what was measured so far, as a deployment does.
        drafts: most drafts a round (`spec`).
        adapt: stop drafting where it does not pay (`spec`).
        thresholds: of the exits, the first one first (`exit`); None for the calibrated ones.
        burst, eager, on_loss: see there.
        seconds_per_joule, seconds_per_pass, most_disagreement: what `auto` makes small (`plan.Objective`).
    """

    mode: str = AUTO
    drafts: int = Field(default=4, ge=1, le=MAX_DRAFTS)
    adapt: bool = True
    thresholds: tuple[float, ...] | None = None
    burst: int = Field(default=1, ge=1, le=1024)
    eager: bool = False
    on_loss: Literal["wait", "local"] = "wait"
    seconds_per_joule: Seconds = 0.0
    seconds_per_pass: Seconds = 0.0
    most_disagreement: float = Field(default=0.0, ge=0, le=1)

    @field_validator("mode")
    @classmethod
    def _known(cls, mode: str) -> str:
        if mode != AUTO and mode not in list(Mode):
            raise ValueError(f"there are {AUTO}, {', '.join(Mode)}")
        return mode


class UserPart(Part):
    """The texts of each device, one after the other.

    Attributes:
        texts: how many.
        think_s: seconds before each.
        deadline_s: seconds each may take; None for none.
    """

    texts: int = Field(default=50, ge=1, le=1_000_000)
    think_s: Seconds = 1.0
    deadline_s: Positive | None = None


class WriterPart(Part):
    """The devices.

    Attributes:
        slower: how many times longer than measured the device takes.
        power: name of a power profile.
        count: devices, each with a link of its own, that share the cloud.
    """

    slower: Positive = 1.0
    power: str = "none"
    count: int = Field(default=1, ge=1, le=10_000)


class ModelPart(Part):
    """The cloud.

    Attributes:
        slower: how many times longer than measured a pass takes.
        contexts, tokens: of a pass at most.
    """

    slower: Positive = 1.0
    contexts: int = Field(default=64, ge=1, le=65536)
    tokens: int = Field(default=1024, ge=1, le=1 << 20)


class LanguageScenario(Part):
    """Everything a simulated run of a language model needs; the same scenario and seed give the same rows.

    Attributes:
        evaluation: a file written by `LanguageDeployment.evaluate(...).save`.
        seed: of the order of texts and of losses.
        link: how the edge estimates the link.
    """

    evaluation: Path
    channel: ChannelPart
    way: WayPart = WayPart()
    user: UserPart = UserPart()
    device: WriterPart = WriterPart()
    cloud: ModelPart = ModelPart()
    link: EstimatorSettings = EstimatorSettings()
    seed: int = Field(default=0, ge=0)

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
        folder, channel = path.parent, found.channel
        down = None if channel.down is None else folder / channel.down
        channel = channel.model_copy(update={"up": folder / channel.up, "down": down})
        return found.model_copy(update={"evaluation": folder / found.evaluation, "channel": channel})
