"""A replay for programs: one JSON object, and CSV files of requests and changes."""

from __future__ import annotations

import csv
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from splitedge.errors import ConfigError
from splitedge.sim.replay import Replay
from splitedge.sim.replay_moves import wanted_by
from splitedge.sim.replay_outcome import COLUMNS

SCHEMA = "splitedge.replay/1"


def as_json(found: Replay) -> dict[str, Any]:
    """All of it but the single requests; NaN and infinity become None."""
    support = found.support
    told: dict[str, Any] = {
        "schema": SCHEMA,
        "candidate": found.candidate,
        "against": found.against,
        "requests": found.requests,
        "seconds": found.seconds,
        "left_out": found.left_out,
        "changes": [
            {
                "name": c.metric.name,
                "unit": c.metric.unit,
                "before": c.before,
                "after": c.after,
                "change": c.change,
                "low": c.low,
                "high": c.high,
                "shown": c.shown,
            }
            for c in found.changes
        ],
        "calibration": [
            {"name": c.metric.name, "recorded": c.recorded, "simulated": c.simulated}
            for c in found.calibration
        ],
        "moves": [asdict(move) for move in found.moves],
        "differences": [asdict(difference) for difference in found.differences],
        "support": {
            "share": support.share,
            "enough": found.enough,
            "recorded": float(support.recorded.mean()),
            "reach_s": support.reach_s,
            "gaps": [asdict(gap) for gap in support.gaps],
            "met_bounds": list(found.met_bounds),
        },
        "draws": found.draws,
        "block": found.block,
    }
    cleaned: dict[str, Any] = _finite(told)
    return cleaned


def write(found: Replay, folder: Path) -> list[Path]:
    """Write `requests.csv` (one row a request: what each policy wanted, what came of it, whether it is
    supported) and `changes.csv`; the folder is made.

    Raises:
        ConfigError: it can not be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_requests(found, folder / "requests.csv"), _changes(found, folder / "changes.csv")]
    except OSError as error:
        raise ConfigError(f"can not write to '{folder}': {error.strerror or error}") from error


def _requests(found: Replay, path: Path) -> Path:
    recorded, support = found.recorded, found.support
    names = ("request", "t_s", "deadline_s", "option_before", "option_after", "differs", "supported")
    wanted = wanted_by(found.baseline, found.options), wanted_by(found.decided, found.options)
    number, deadline = recorded.table["request"].tolist(), recorded.deadline_s.tolist()
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            [*names, *(f"{c}_before" for c in COLUMNS), *(f"{c}_after" for c in COLUMNS), "why_after"]
        )
        for i in range(found.requests):
            differs = wanted[0][i] != wanted[1][i]
            writer.writerow(
                [
                    number[i],
                    f"{recorded.t_s[i] - recorded.t_s[0]:.6f}",
                    deadline[i],
                    wanted[0][i],
                    wanted[1][i],
                    int(differs),
                    int(not support.unsupported[i]),
                    *(f"{value:.6g}" for value in found.before[:, i]),
                    *(f"{value:.6g}" for value in found.after[:, i]),
                    found.decided.reason[i],
                ]
            )
    return path


def _changes(found: Replay, path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("metric", "unit", "before", "after", "change", "low", "high"))
        for c in found.changes:
            values = (f"{value:.6g}" for value in (c.before, c.after, c.change, c.low, c.high))
            writer.writerow((c.metric.name, c.metric.unit, *values))
    return path


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
