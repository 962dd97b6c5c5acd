"""The scenarios of a sweep: one scenario, with other values in some of its keys."""

from __future__ import annotations

import difflib
import glob
import hashlib
import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from splitedge.errors import ConfigError
from splitedge.sim.scenario import Scenario
from splitedge.validating import parsed, read_toml

#: The policy that knows the future: run beside the others, so that they have something to regret.
ORACLE = "oracle"


def is_oracle(policy: str) -> bool:
    """Whether it is `oracle`, or `oracle:channel` which does not know the answers."""
    return policy.partition(":")[0] == ORACLE


_FILES = {"deployment", "channel.up", "channel.down", "work.arrivals"}
_SHORT = {"trace": "channel.up", "traces": "channel.up"}
_WORDS = {"work.arrivals": {"fixed", "poisson"}}
#: Columns with a word of their own in tables and plots.
_COLUMN = {"channel.up": "trace"}


@dataclass(frozen=True, slots=True)
class Run:
    """One run of a sweep.

    Attributes:
        index: its number, from 0.
        scenario: what is simulated, with the seed of its repetition.
        point: axis (a scenario's key with dots) to its value, as text; `policy` and `channel.up` always.
        repetition: which of the seeds, from 0.
    """

    index: int
    scenario: Scenario
    point: dict[str, str]
    repetition: int

    @property
    def setting(self) -> tuple[object, ...]:
        """What runs that differ in nothing but the policy have in common."""
        return (*(value for key, value in self.point.items() if key != "policy"), self.repetition)

    def __str__(self) -> str:
        axes = " ".join(f"{column(key)}={value}" for key, value in self.point.items())
        return f"{axes} repetition={self.repetition} seed={self.scenario.seed}"


@dataclass(frozen=True)
class Sweep:
    """A grid of scenarios: each combination of the axes' values, `seeds` times.

    Attributes:
        scenario: what all have in common.
        axes: a scenario's key (`policy`, `trace`, `work.deadline_ms`, or `deadline_ms` where one key is
            called so) to its values.
        seeds: repetitions of each combination.
        id: with the scenario's seed and a repetition's number it gives the seed of that repetition.
        oracle: whether to run the oracle, always in exact mode, beside the policies of each combination;
            None does so in exact mode.
    """

    scenario: Scenario
    axes: Mapping[str, Sequence[object]] = field(default_factory=dict)
    seeds: int = 1
    id: str = "sweep"
    oracle: bool | None = None

    def runs(self) -> tuple[Run, ...]:
        """All runs, in order: policies, then traces, then the other axes; the repetition changes fastest.

        Raises:
            ConfigError: an axis is no key of a scenario, is there twice or is empty, or a value does not fit.
        """
        if self.seeds < 1:
            raise ConfigError(f"a sweep needs at least 1 seed, got {self.seeds}")
        axes: dict[str, list[object]] = {}
        for key, values in self.axes.items():
            name = full_key(key)
            if name in axes or not values:
                trouble = "is named twice" if name in axes else "has no values"
                raise ConfigError(f"sweep: the axis '{name}' {trouble}")
            axes[name] = list(dict.fromkeys(values))
        always: dict[str, list[object]] = {
            "policy": [self.scenario.policy],
            "channel.up": [self.scenario.channel.up],
        }
        axes = {**always, **axes}
        wanted = self.scenario.mode == "exact" if self.oracle is None else self.oracle
        if wanted and ORACLE not in axes["policy"]:
            axes["policy"].append(ORACLE)
        found: list[Run] = []
        for values in itertools.product(*axes.values()):
            changes = dict(zip(axes, values, strict=True))
            point = {key: str(value) for key, value in changes.items()}
            for repetition in range(self.seeds):
                seed = seed_of(self.id, self.scenario.seed, repetition)
                mode = {"mode": "exact"} if changes["policy"] == ORACLE else {}
                scenario = vary(self.scenario, {**changes, **mode, "seed": seed})
                found.append(Run(len(found), scenario, point, repetition))
        return tuple(found)


def seed_of(sweep_id: str, seed: int, repetition: int) -> int:
    """The seed of a repetition, in [0, 2**48): the first bytes of a SHA-256 of the three.

    All policies, traces and values of other axes are asked the same requests in the same repetition (common
    random numbers): differences between them are theirs, not the luck of the draw.
    """
    text = f"{sweep_id}\n{seed}\n{repetition}".encode()
    return int.from_bytes(hashlib.sha256(text).digest()[:6], "big")


def column(key: str) -> str:
    """What an axis is called in tables and plots."""
    return _COLUMN.get(key, key)


def full_key(key: str) -> str:
    """`deadline_ms` as `work.deadline_ms`.

    Raises:
        ConfigError: a scenario has no such key, has several, or it is the seed.
    """
    known = _leaves(Scenario)
    name = _SHORT.get(key, key)
    if name == "seed":
        raise ConfigError("sweep: 'seed' can be no axis; say how many with 'seeds'")
    if name in known:
        return name
    meant = [leaf for leaf in known if leaf.rpartition(".")[2] == name]
    if len(meant) == 1:
        return meant[0]
    if meant:
        raise ConfigError(f"sweep: '{key}' could be {' or '.join(meant)}; write it out")
    near = difflib.get_close_matches(name, [*known, *(leaf.rpartition(".")[2] for leaf in known)], n=1)
    hint = f" Did you mean '{near[0]}'?" if near else ""
    mostly = [leaf for leaf in known if not leaf.startswith(("engine.", "link."))]
    raise ConfigError(
        f"sweep: a scenario has no key '{key}'.{hint} It has {', '.join(mostly)}, and those of the tables "
        "engine and link"
    )


def vary(scenario: Scenario, changes: Mapping[str, object]) -> Scenario:
    """The scenario with other values, by keys with dots; texts are read as the key's type.

    Raises:
        ConfigError: a value does not fit its key.
    """
    data: dict[str, Any] = scenario.model_dump()
    if not {"device.slower", "device.power"}.isdisjoint(changes):
        data["device"]["like"] = None  # else the class of devices would have the last word
    for key, value in changes.items():
        *path, leaf = key.split(".")
        table = data
        for part in path:
            table = table[part]
        table[leaf] = value
    return parsed(Scenario, data, "sweep")


def find_traces(patterns: Sequence[str], folder: Path = Path()) -> list[str]:
    """Files that the patterns name (`dir/*.csv`, `**` for all folders), sorted within each.

    Raises:
        ConfigError: one names none.
    """
    found: list[str] = []
    for pattern in patterns:
        names = glob.glob(pattern, root_dir=folder, recursive=True)  # noqa: PTH207 - Path.glob takes no absolute one
        files = sorted(str(folder / name) for name in names if (folder / name).is_file())
        if not files:
            raise ConfigError(f"no file '{folder / pattern}'")
        found += files
    return list(dict.fromkeys(found))


def _leaves(model: type[BaseModel], prefix: str = "") -> list[str]:
    found: list[str] = []
    for name, info in model.model_fields.items():
        part = info.annotation
        if isinstance(part, type) and issubclass(part, BaseModel):
            found += _leaves(part, f"{prefix}{name}.")
        else:
            found.append(prefix + name)
    return found


class SweepTable(BaseModel):
    """The table `[sweep]` of a scenario's file.

    Attributes:
        id: names the sweep; seeds are derived from it.
        seeds: repetitions of each combination.
        traces: patterns of trace files, relative to the file's directory.
        executor: where the runs are computed.
        oracle: see `Sweep`.
        grid: axes: a scenario's key and its values.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = "sweep"
    seeds: int = Field(default=1, ge=1)
    traces: tuple[str, ...] = ()
    executor: str = "local"
    oracle: bool | None = None
    grid: dict[str, Any] = Field(default_factory=dict)


def read_sweep(path: Path) -> tuple[SweepTable | None, dict[str, list[object]]]:
    """The table `[sweep]` of a scenario's file, None without one, and its axes; paths are beside the file.

    Raises:
        ConfigError: it is missing, no TOML, a key of the table is unknown or out of range, or a pattern names
            no trace.
    """
    data = read_toml(path)
    table = parsed(SweepTable, data["sweep"], str(path), "sweep.") if "sweep" in data else None
    if table is None:
        return None, {}
    axes = _axes(table.grid, path)
    if table.traces:
        axes["channel.up"] = list(find_traces(table.traces, path.parent))
    return table, axes


def _axes(grid: Mapping[str, Any], path: Path, prefix: str = "") -> dict[str, list[object]]:
    """Axes from TOML, where `work.deadline_ms = [...]` is a table in a table; files are beside the TOML."""
    axes: dict[str, list[object]] = {}
    for key, values in grid.items():
        if isinstance(values, dict):
            axes |= _axes(values, path, f"{prefix}{key}.")
            continue
        if not isinstance(values, list):
            raise ConfigError(f"{path}: 'sweep.grid.{prefix}{key}' is a list of values, got {values!r}")
        name = full_key(prefix + key)
        words = _WORDS.get(name, set())
        is_file = name in _FILES
        axes[name] = [
            str(path.parent / str(v)) if is_file and v not in words else _hashable(v) for v in values
        ]
    return axes


def _hashable(value: object) -> object:
    return tuple(_hashable(part) for part in value) if isinstance(value, list) else value
