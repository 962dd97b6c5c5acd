"""What stages and shells took in real processes, as quantiles that a simulation draws from.

An option table says what the policy believes; a machine that runs edge, cloud and much else takes longer,
and with another spread. With these quantiles a simulated stage takes what a real one took, while engine and
policy still go by the table, as a daemon goes by its bundle's.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Self

import numpy as np
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from splitedge.errors import ConfigError
from splitedge.policy import Option
from splitedge.sim.curves import Floats

#: Probabilities of the quantiles that `quantiles_of` keeps: 0, 0.01, ... 1.
STEPS = 100

Quantiles = Annotated[tuple[float, ...], Field(min_length=1, max_length=10_001)]


class Took(BaseModel):
    """Milliseconds of one option: quantiles at even steps from the least to the most.

    Attributes:
        edge_ms: of the device, all stages up to its payload or answer.
        cloud_ms: of decoder and tail; one 0 where nothing is remote.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    edge_ms: Quantiles
    cloud_ms: Quantiles = (0.0,)


class Measured(BaseModel):
    """Quantiles of seconds that a calibration run measured.

    A request has one normal number for its stages on the device, one for the cloud and one for all its
    shells: it is slow or quick at each of them as a whole.

    Attributes:
        options: by name, as in the option table.
        stage_ms, send_ms, receive_ms, cloud_ms: what the shells cost, as in `scenario.ShellPart`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    options: dict[str, Took]
    stage_ms: Quantiles = (0.0,)
    send_ms: Quantiles = (0.0,)
    receive_ms: Quantiles = (0.0,)
    cloud_ms: Quantiles = (0.0,)

    @model_validator(mode="after")
    def _sorted(self) -> Self:
        shells = {name: getattr(self, name) for name in ("stage_ms", "send_ms", "receive_ms", "cloud_ms")}
        parts = {f"{name}: {key}": getattr(t, key) for name, t in self.options.items() for key in _TOOK}
        for name, values in (shells | parts).items():
            pairs = zip(values, (*values[1:], values[-1]), strict=True)
            if not all(0.0 <= a <= b < math.inf for a, b in pairs):
                raise ValueError(f"{name} must be milliseconds, 0 or more, that never fall")
        return self

    @classmethod
    def load(cls, path: Path) -> Self:
        """Read what `save` wrote.

        Raises:
            ConfigError: the file is missing, or no such quantiles.
        """
        try:
            return cls.model_validate(json.loads(path.read_text(encoding="utf-8")))
        except ValidationError as error:
            first = error.errors()[0]
            key = ".".join(str(part) for part in first["loc"])
            raise ConfigError(f"{path}: '{key}': {first['msg']}") from error
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path}: can not be read as measured seconds: {error}") from error

    def save(self, path: Path) -> None:
        """Write JSON."""
        path.write_text(self.model_dump_json(indent=1) + "\n", encoding="utf-8")

    def check(self, options: Sequence[Option]) -> None:
        """Refuse an option table with an option that was not measured.

        Raises:
            ConfigError: there is one; the message names it.
        """
        missing = [option.name for option in options if option.name not in self.options]
        if missing:
            raise ConfigError(
                f"the measured seconds do not know the option {missing[0]}; "
                "calibrate again with this deployment"
            )

    def edge(self, options: Sequence[Option], slower: float) -> Drawn:
        """Seconds on a device `slower` times as slow, by option."""
        return Drawn([slower * 1e-3 * np.array(self.options[o.name].edge_ms) for o in options])

    def cloud(self, options: Sequence[Option], slower: float) -> Drawn:
        """Seconds in a cloud `slower` times as slow, by option."""
        return Drawn([slower * 1e-3 * np.array(self.options[o.name].cloud_ms) for o in options])

    def shells(self) -> Drawn:
        """Seconds of the shells: stage, send, receive, cloud."""
        parts = (self.stage_ms, self.send_ms, self.receive_ms, self.cloud_ms)
        return Drawn([1e-3 * np.array(part) for part in parts])


_TOOK = ("edge_ms", "cloud_ms")


class Drawn:
    """Draws by a normal number, as `device.Seconds` does, from quantiles instead of a log-normal.

    Args:
        quantiles: seconds at even steps of probability, one array a line.
    """

    __slots__ = ("_quantiles",)

    def __init__(self, quantiles: Sequence[Floats]) -> None:
        self._quantiles: list[list[float]] = [line.tolist() for line in quantiles]

    def draw(self, line: int, z: float) -> float:
        """Seconds of a line for this normal number."""
        values = self._quantiles[line]
        last = len(values) - 1
        at = 0.5 * (1.0 + math.erf(z * _ROOT_HALF)) * last
        i = int(at)
        if i >= last:
            return values[last]
        return values[i] + (at - i) * (values[i + 1] - values[i])


_ROOT_HALF = math.sqrt(0.5)


def quantiles_of(seconds: Any) -> tuple[float, ...]:
    """Quantiles of measured seconds in milliseconds; one 0 where there are none, none below 0.

    At the middles of even steps the k-th of n samples stands for the share (k - 1/2) / n, so that the mean of
    what is drawn is that of the samples and the slowest of a few is no more than one of a few.
    """
    values = np.maximum(np.sort(np.asarray(seconds, np.float64).ravel()), 0.0)
    if not values.size:
        return (0.0,)
    grid = np.linspace(0.0, 1.0, STEPS + 1)
    shares = (np.arange(values.size) + 0.5) / values.size
    return tuple(np.round(1e3 * np.interp(grid, shares, values), 6).tolist())
