"""Train the learned policies, in Python: `fit_router`, `fit_forecast`, `fit_bandit`, and what they read.

The command line's `splitedge policy fit` does the same. What is trained is written as JSON with a digest, and
taken by `router:FILE`, `mpc:forecast=FILE` and `bandit:file=FILE`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from splitedge.errors import PolicyError
from splitedge.policies.bandit_fit import fit_bandit
from splitedge.policies.forecast_fit import Seen, fit_forecast, seen_of_records, seen_of_trace
from splitedge.policies.router_fit import fit_router
from splitedge.records import RecordTable, read_records
from splitedge.registry import lookup

__all__ = ["fit_bandit", "fit_forecast", "fit_router", "read_columns", "read_seen", "seen_of_trace"]

#: Entry points by which files are read that other rooms know: `trace` reads a channel's trace.
READERS = "splitedge.readers"
_BIN_S, _LONGEST_S = 0.1, 600.0


def read_columns(path: Path) -> dict[str, Any]:
    """The columns of a file of records.

    Raises:
        RecordError: it can not be read.
    """
    table: RecordTable = read_records(path)
    return {name: table[name] for name in table.columns}


def read_seen(path: Path, rtt_s: float = 0.05) -> Seen:
    """What a policy would have seen of an uplink: of a file of records (.jsonl, .npz), or else of a trace.

    Args:
        path: the file; its folder's name is taken as the source.
        rtt_s: round-trip time of a trace that has none of its own.

    Raises:
        TraceError, RecordError: it can not be read.
        PolicyError: it is too short.
    """
    source = path.resolve().parent.name
    if path.suffix in (".jsonl", ".npz"):
        return seen_of_records(source, read_columns(path))
    trace = lookup(READERS, "trace")(path)
    curve = trace.capacity("up")
    edges = np.arange(0.0, min(curve.period_s, _LONGEST_S) + 0.5 * _BIN_S, _BIN_S)
    if len(edges) < 3:
        raise PolicyError(f"{path}: a trace of {curve.period_s:g} s is too short to learn from")
    bits = np.array([curve.bits_by(t) for t in edges.tolist()])
    rtt = rtt_s if trace.rtt is None else float(np.median(trace.rtt.value))
    return seen_of_trace(source, edges[:-1], np.diff(bits) / _BIN_S, max(rtt, 1e-3))
