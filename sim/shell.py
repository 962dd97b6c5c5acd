"""What the shells around engine and cloud cost: constants of the scenario, or draws of measured ones."""

from __future__ import annotations

from splitedge.errors import ConfigError
from splitedge.sim.curves import Floats
from splitedge.sim.measured import Measured
from splitedge.sim.scenario import Scenario, ShellPart

_STAGE, _SEND, _RECEIVE, _CLOUD = range(4)


class Shell:
    """Seconds of one device's shells.

    Args:
        part: constants, used where nothing was measured.
        measured: quantiles; None for the constants.
        z: the normal number of each request, shape (n,); messages of no request (pings) take them in turn.
            None where nothing was measured.
    """

    __slots__ = ("_constants", "_drawn", "_others", "_z")

    def __init__(self, part: ShellPart, measured: Measured | None, z: Floats | None) -> None:
        constants = part.stage_ms, part.send_ms, part.receive_ms, part.cloud_ms
        self._constants = tuple(ms / 1e3 for ms in constants)
        self._drawn = None if measured is None else measured.shells()
        self._z: list[float] = [] if z is None else z.tolist()
        self._others = 0

    def stage(self, request: int) -> float:
        """From the end of a stage to the engine's hearing of it."""
        return self._constants[_STAGE] if self._drawn is None else self._draw(_STAGE, request)

    def send(self, request: int) -> float:
        """From the engine's word to the first byte on the link; request 0 is a ping or a cancellation."""
        return self._constants[_SEND] if self._drawn is None else self._draw(_SEND, request)

    def receive(self, request: int) -> float:
        """From a message's last byte to the engine's hearing of it; request 0 is a pong."""
        return self._constants[_RECEIVE] if self._drawn is None else self._draw(_RECEIVE, request)

    def cloud(self, request: int) -> float:
        """In the cloud, on the way in and again on the way out."""
        return self._constants[_CLOUD] if self._drawn is None else self._draw(_CLOUD, request)

    def stamped(self, request: int) -> float:
        """How much of `cloud` lies between the cloud's two time stamps, on each way: all that was measured,
        which is what is left of a request's seconds without those of the link; nothing of a constant.
        """
        return 0.0 if self._drawn is None else self._draw(_CLOUD, request)

    def _draw(self, place: int, request: int) -> float:
        assert self._drawn is not None
        if not request:
            self._others = request = self._others % len(self._z) + 1
        return self._drawn.draw(place, self._z[request - 1])


def measured_of(scenario: Scenario) -> Measured | None:
    """What the scenario's `shell.measured` names; None where it names nothing.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    path = scenario.shell.measured
    return None if path is None else Measured.load(path)


def refuse_measured(scenario: Scenario, who: str) -> None:
    """Say that measured seconds can not be used there.

    Raises:
        ConfigError: the scenario has some.
    """
    if scenario.shell.measured is not None:
        raise ConfigError(
            f"{who} does not draw from shell.measured; leave it out, or take exact mode with another policy"
        )
