"""A policy asked about many devices at once, and told what came of it."""

from __future__ import annotations

import copy
from typing import Any, NamedTuple

import numpy as np

from splitedge.errors import SimulationError
from splitedge.policy import Estimate, Observation, Option, Policy, wants_features
from splitedge.power import PowerModel
from splitedge.record import Record
from splitedge.sim.curves import Floats
from splitedge.sim.fleet_end import ROUTES
from splitedge.sim.fleet_world import (
    CLOUD_QUEUE,
    DOWNLINK,
    EDGE_WAIT,
    ERRORS,
    GOODPUT,
    LINK_UP,
    NOTHING,
    ROUND_TRIP,
    SEEN,
    Ints,
)

_N = 7  # devices of the rehearsal: unlike any count of options or quantities


class Seen(NamedTuple):
    """What the policy sees of each of n requests, arrays of shape (n,): see `Observation`."""

    goodput: Floats  # (3, n): mean, low, high; so are the next three
    downlink: Floats
    rtt: Floats
    queue: Floats
    edge_wait_s: Floats
    link_up: Any
    deadline_s: Floats
    battery: Floats
    unsent_s: Floats
    t_s: Floats
    confidence: Floats
    sunk_s: Floats


def seen_in(rows: Floats) -> Seen:
    """What stands in the rows of `World.seen`, shape (SEEN, n): views, but for `link_up`."""
    up, down, rtt, queue = (rows[at : at + 3] for at in (GOODPUT, DOWNLINK, ROUND_TRIP, CLOUD_QUEUE))
    deadline, battery, unsent, now, confidence, sunk = rows[LINK_UP + 1 :]
    link_up = rows[LINK_UP] > 0.0
    return Seen(
        up, down, rtt, queue, rows[EDGE_WAIT], link_up, deadline, battery, unsent, now, confidence, sunk
    )


class Fleet:
    """The one policy object of all devices.

    Args:
        policy: it, ready for these options.
        options: the option table.
        power: of every device.
        features: cheap numbers of each row's input, (rows, F); shown to a policy that wants them.

    Attributes:
        keeps: whether it learns, or keeps something of each device: then it must be asked about all devices
            at once, every time.

    Raises:
        SimulationError: it can not work on arrays; the message says how it failed.
    """

    def __init__(
        self, policy: Policy, options: tuple[Option, ...], power: PowerModel, features: Any = None
    ) -> None:
        self._policy = policy
        self._features = features if wants_features(policy) else None
        self._options = options
        self._power = power
        self._names = np.array(["", *(option.name for option in options), "nothing"])
        self.learns = type(policy).learn is not Policy.learn
        self.keeps = self._rehearse() or self.learns

    def _rehearse(self) -> bool:
        """Ask a copy about a few devices at the start and at each exit; tell whether it keeps arrays."""
        original, self._policy = self._policy, copy.deepcopy(self._policy)
        try:
            exits = [o.exit for o in self._options if o.exit is not None]
            for number in (-1, *exits):
                seen = _example(_N)
                self.ask(seen, number)
            return _holds_arrays(self._policy, _N)
        finally:
            self._policy = original

    def ask(self, seen: Seen, exit: int, row: Ints | None = None) -> Ints:
        """The option for each request, shape (n,).

        Args:
            seen: what is to be seen.
            exit: number of the exit at which they all stand, -1 on arrival.
            row: of the evaluation that each request is, shape (n,); None where they are none.

        Raises:
            SimulationError: the policy fails on arrays, or chooses an option that does not exist.
        """
        power = self._power
        n = len(seen.t_s)
        obs = Observation(
            self._options,
            Estimate(*seen.goodput),
            Estimate(*seen.downlink),
            Estimate(*seen.rtt),
            Estimate(*seen.queue),
            seen.edge_wait_s,
            seen.link_up,
            seen.deadline_s,
            1,
            exit,
            seen.confidence,
            seen.sunk_s,
            seen.battery,
            power.compute_w,
            power.j_per_bit_up,
            power.j_per_bit_down,
            seen.unsent_s,
            seen.t_s,
            None if self._features is None or row is None else self._features[row],
            power.tail_w,
            power.tail_s,
        )
        name = self._policy.name
        try:
            option = np.asarray(self._policy.decide(obs).option)
        except Exception as error:
            raise SimulationError(
                f"policy '{name}' can not decide for {n} devices at once ({type(error).__name__}: {error}); "
                "write it on arrays (docs/policies.md) or simulate in exact mode (mode = 'exact')"
            ) from error
        if option.shape not in ((), (n,)) or option.dtype.kind not in "iu":
            raise SimulationError(
                f"policy '{name}' must give one whole number for each of {n} devices; it gave an array of "
                f"shape {option.shape} and type {option.dtype}; write it on arrays (docs/policies.md) or "
                "simulate in exact mode (mode = 'exact')"
            )
        if option.size and not (option.min() >= 0 and option.max() < len(self._options)):
            wrong = option.max() if option.max() >= len(self._options) else option.min()
            raise SimulationError(
                f"policy '{name}' chose option {wrong}; there are {len(self._options)}, numbered from 0"
            )
        return np.ascontiguousarray(np.broadcast_to(option, n), np.int64)

    def learn(self, ended: Any, deadline_s: float) -> None:
        """Tell the outcome of one request of every device.

        Args:
            ended: record array of `ENDED`, by device.
            deadline_s: of every request.

        Raises:
            SimulationError: the policy fails at it.
        """
        record = record_of(ended, deadline_s, self._options, self._names)
        try:
            self._policy.learn(record)
        except Exception as error:
            raise SimulationError(
                f"policy '{self._policy.name}' failed to learn from {len(ended)} devices at once "
                f"({type(error).__name__}: {error}); write it on arrays or simulate in exact mode"
            ) from error


def names_of(option: Any, names: Any) -> Any:
    """Names of options by index: empty for NONE, `nothing` for NOTHING."""
    return names[np.where(option == NOTHING, len(names) - 1, option + 1)]


def record_of(ended: Any, deadline_s: float, options: tuple[Option, ...], names: Any) -> Any:
    """A `Record` whose fields are arrays of shape (n,)."""
    n = len(ended)
    by = ended["option"]
    none = np.array([""])

    def text(values: list[str]) -> Any:
        return np.concatenate([none, np.array(values, dtype=str)])[np.maximum(by, -1) + 1]

    exits = np.array([-1, *(-1 if o.exit is None else o.exit for o in options)])
    levels = np.array([-1, *(o.level if o.remote else -1 for o in options)])
    fields: dict[str, Any] = {
        "request": ended["place"],
        "t_s": ended["t"],
        "rows": np.ones(n, np.int64),
        "deadline_s": np.full(n, deadline_s),
        "planned": names_of(ended["planned"], names),
        "option": names_of(by, names),
        "route": np.array(ROUTES)[ended["route"]],
        "cut": text([o.cut or "" for o in options]),
        "codec": text([o.codec or "" for o in options]),
        "level": levels[np.maximum(by, -1) + 1],
        "exit": exits[np.maximum(by, -1) + 1],
        "forced": np.zeros(n, np.bool_),
        "degraded": ended["degraded"],
        "reason": np.full(n, ""),
        "error": np.array(ERRORS)[ended["error"]],
        "confidence": ended["confidence"],
        "latency_s": ended["at"] - ended["t"],
        "met": ended["met"],
        "head_s": ended["compute_s"],
        "encode_s": np.zeros(n),
        "uplink_s": ended["uplink_s"],
        "queue_s": ended["queue_s"],
        "decode_s": np.zeros(n),
        "tail_s": ended["cloud_s"],
        "downlink_s": ended["downlink_s"],
        "bytes_up": ended["bytes_up"],
        "bytes_down": ended["bytes_down"],
        "attempts": ended["attempts"],
        "energy_j": ended["energy"],
        "goodput_bps": ended["goodput"],
        "goodput_low_bps": ended["goodput_low"],
        "rtt_s": ended["rtt"],
        "rtt_high_s": ended["rtt_high"],
        "battery": ended["battery"],
    }
    return Record(**fields)


def _example(n: int) -> Seen:
    """Conditions from dead to fast, for the rehearsal."""
    rows = np.zeros((SEEN, n))
    rows[LINK_UP] = np.arange(n) % 5 != 1
    seen = seen_in(rows)
    bps = 10.0 ** np.linspace(4.5, 8.5, n)
    for i, factor in enumerate((1.0, 0.5, 2.0)):
        seen.goodput[i], seen.downlink[i] = factor * bps, 2.0 * factor * bps
        seen.rtt[i], seen.queue[i] = 0.05 * factor, 0.002 * factor
    seen.deadline_s[:] = np.where(np.arange(n) % 3 == 0, np.inf, 0.15)
    seen.battery[:] = np.where(np.arange(n) % 2 == 0, np.nan, 0.5)
    seen.unsent_s[:] = np.linspace(0.0, 3.0, n)
    seen.confidence[:] = np.linspace(0.1, 0.99, n)
    seen.sunk_s[:] = 0.001
    return seen


def _holds_arrays(thing: Any, n: int, deep: int = 4) -> bool:
    """Whether an array of shape (n,) hangs on an object."""
    if isinstance(thing, np.ndarray):
        return bool(thing.shape[-1:] == (n,))
    if deep == 0:
        return False
    if isinstance(thing, tuple | list):
        return any(_holds_arrays(part, n, deep - 1) for part in thing)
    if isinstance(thing, dict):
        return any(_holds_arrays(part, n, deep - 1) for part in thing.values())
    held = getattr(thing, "__dict__", None)
    return held is not None and any(_holds_arrays(part, n, deep - 1) for part in held.values())
