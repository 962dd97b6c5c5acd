"""A simulation on disk: as records, as CSV and as arrays."""

from __future__ import annotations

import csv
import json
import math
import zipfile
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

from splitedge.errors import RecordError
from splitedge.record import Record
from splitedge.records import RecordTable
from splitedge.sim.simulation import Column, Simulation

SCHEMA = "splitedge.simulation/1"
_ABOUT = "about"


def records_of(simulation: Simulation) -> RecordTable:
    """The simulated requests as a deployment would have recorded them.

    Raises:
        RecordError: the simulation lacks columns of `Record` (fleet mode keeps fewer).
    """
    columns: dict[str, Column] = {}
    missing: list[str] = []
    for field in fields(Record):
        if field.name in simulation.columns:
            columns[field.name] = simulation[field.name]
        elif field.name == "reason":
            columns["reason"] = np.zeros(len(simulation), "U1")
        else:
            missing.append(field.name)
    if missing:
        raise RecordError(
            f"this simulation has no {', '.join(missing)}; exact mode has every column of a record"
        )
    return RecordTable(columns)


def save(simulation: Simulation, folder: Path) -> tuple[Path, ...]:
    """Write `simulation.csv` and `simulation.npz` (nothing is pickled); returns their paths.

    Raises:
        RecordError: they can not be written.
    """
    table, arrays = folder / "simulation.csv", folder / "simulation.npz"
    about = {name: getattr(simulation, name) for name in ("policy", "trace", "seed", "seconds")}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with table.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(simulation.columns)
            lists = [column.tolist() for column in simulation.columns.values()]
            for row in zip(*lists, strict=True):
                writer.writerow(["" if isinstance(v, float) and math.isnan(v) else v for v in row])
        text = json.dumps({"schema": SCHEMA, **about})
        members: dict[str, Any] = {_ABOUT: np.array(text), **simulation.columns}
        np.savez_compressed(arrays, **members)
    except OSError as error:
        raise RecordError(f"can not write the simulation to '{folder}': {error.strerror or error}") from error
    return table, arrays


def read_simulation(path: Path) -> Simulation:
    """Read the `simulation.npz` that `save` wrote.

    Raises:
        RecordError: missing, damaged or something else.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as data:
            about = json.loads(str(data[_ABOUT]))
            if not isinstance(about, dict) or about.pop("schema", None) != SCHEMA:
                raise ValueError(f"its schema is not {SCHEMA}")
            columns = {name: data[name] for name in data.files if name != _ABOUT}
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise RecordError(f"{path} is no simulation that can be read: {error}") from error
    if len({column.shape for column in columns.values()}) > 1:
        raise RecordError(f"{path} is no simulation that can be read: its columns differ in length")
    return Simulation(columns=columns, **about)
