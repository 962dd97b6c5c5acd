"""What a simulation gives: one row a request, and the numbers it comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from splitedge.errors import RecordError

Column = npt.NDArray[np.generic]

#: Columns every simulation has, of the names and units of `Record`, and what only a simulation knows.
COLUMNS = (
    "device",
    "row",
    "t_s",
    "deadline_s",
    "planned",
    "option",
    "route",
    "degraded",
    "error",
    "confidence",
    "latency_s",
    "met",
    "bytes_up",
    "bytes_down",
    "energy_j",
    "goodput_bps",
    "rtt_s",
    "battery",
    "right",
)


@dataclass(frozen=True, slots=True)
class Score:
    """What a simulation comes to. Seconds, bytes, joules; NaN where there is nothing to count.

    Attributes:
        requests: how many arrived.
        correct_in_time: share of requests answered right within the deadline.
        accuracy: share of requests answered right, whenever the answer came.
        met: share of requests answered within the deadline.
        p50_s, p95_s, p99_s: quantiles of the latency of answered requests.
        bytes_up, bytes_down, joules: mean a request; joules are modelled, idle not counted.
        routes: answers by route; `error` counts requests without an answer.
    """

    requests: int
    correct_in_time: float
    accuracy: float
    met: float
    p50_s: float
    p95_s: float
    p99_s: float
    bytes_up: float
    bytes_down: float
    joules: float
    routes: dict[str, int]


@dataclass(frozen=True, eq=False)
class Simulation:
    """One simulated run.

    Attributes:
        policy: as it was named, `deadline:0.02`.
        trace: where the uplink's capacity comes from.
        seed: of arrivals, rows drawn and service times.
        seconds: simulated seconds, of one device.
        columns: one array of shape (requests,) for each of `COLUMNS` at least, in order of arrival; `right`
            is whether the answer is the right one (False where there is none), `row` which row of the
            evaluation the request was, `device` which device asked.
    """

    policy: str
    trace: str
    seed: int
    seconds: float
    columns: Mapping[str, Column]

    def __post_init__(self) -> None:
        missing = [name for name in COLUMNS if name not in self.columns]
        if missing:
            raise RecordError(f"a simulation without the columns {', '.join(missing)}")

    def __len__(self) -> int:
        return len(self.columns["t_s"])

    def __getitem__(self, name: str) -> Column:
        """A column by its name."""
        if name not in self.columns:
            raise RecordError(f"no column '{name}'; there are {', '.join(self.columns)}")
        return self.columns[name]

    def score(self) -> Score:
        """Count it all up."""
        answered = self["error"] == ""
        latency = self["latency_s"][answered].astype(float)
        quantiles = np.quantile(latency, [0.5, 0.95, 0.99]) if latency.size else np.full(3, math.nan)
        names, counts = np.unique(np.where(answered, self["route"], "error"), return_counts=True)
        return Score(
            requests=len(self),
            correct_in_time=_mean(self["right"].astype(bool) & self["met"].astype(bool)),
            accuracy=_mean(self["right"]),
            met=_mean(self["met"]),
            p50_s=float(quantiles[0]),
            p95_s=float(quantiles[1]),
            p99_s=float(quantiles[2]),
            bytes_up=_mean(self["bytes_up"]),
            bytes_down=_mean(self["bytes_down"]),
            joules=_mean(self["energy_j"]),
            routes={str(name): int(count) for name, count in zip(names, counts, strict=True)},
        )


def _mean(values: Column) -> float:
    return float(values.astype(float).mean()) if values.size else math.nan
