"""What the dashboard shows: the last records, and a summary of the last minutes. No I/O."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import asdict
from typing import Any

from splitedge.edge.runtime import NO_CLOUD, EdgeRuntime
from splitedge.record import Record
from splitedge.version import VERSION

BUCKET_S = 5.0
BUCKETS = 60


class Status:
    """Keeps the last records of a runtime, and counts by time.

    Args:
        runtime: whose; read when asked.
        name: the model's.
        keep: records kept.
    """

    def __init__(self, runtime: EdgeRuntime, name: str, keep: int) -> None:
        self._runtime = runtime
        self._name = name
        self._recent: deque[Record] = deque(maxlen=keep)
        self._ended: deque[float] = deque(maxlen=keep)
        self._buckets: deque[tuple[int, Counter[str]]] = deque(maxlen=BUCKETS)
        runtime.listeners.append(self._record)

    def _record(self, record: Record) -> None:
        now = self._runtime.clock()
        self._recent.append(record)
        self._ended.append(now)
        number = int(now // BUCKET_S)
        if not self._buckets or self._buckets[-1][0] != number:
            self._buckets.append((number, Counter()))
        self._buckets[-1][1][record.route or "error"] += 1

    def records(self, count: int) -> list[dict[str, Any]]:
        """The last `count` records, newest first, as JSON values (NaN and infinities are null)."""
        newest = list(self._recent)[-count:] if count > 0 else []
        return [_plain(asdict(record)) for record in reversed(newest)]

    def summary(self) -> dict[str, Any]:
        """State of link and requests, latency over the kept records, counts by route over five minutes."""
        runtime, engine = self._runtime, self._runtime.engine
        now = runtime.clock()
        remote = runtime.remote
        latencies = sorted(r.latency_s for r in self._recent if not r.error)
        goodput, rtt = engine.link.goodput(now), engine.link.rtt(now)
        with_deadline = [r for r in self._recent if math.isfinite(r.deadline_s)]
        summary: dict[str, Any] = _plain(
            {
                "model": self._name,
                "bundle": runtime.model.digest,
                "version": VERSION,
                "draining": runtime.draining,
                "in_flight": runtime.in_flight,
                "link": {
                    "configured": remote is not None,
                    "up": remote is not None and remote.up,
                    "for_s": None if remote is None else now - remote.since_s,
                    "reason": NO_CLOUD if remote is None else remote.reason,
                    "circuit": engine.circuit,
                    "goodput_bps": list(goodput),
                    "rtt_s": list(rtt),
                },
                "battery": engine.battery,
                "requests": {
                    "kept": len(self._recent),
                    "p50_s": _quantile(latencies, 0.5),
                    "p95_s": _quantile(latencies, 0.95),
                    "errors": sum(bool(r.error) for r in self._recent),
                    "degraded": sum(r.degraded for r in self._recent),
                    "met": sum(r.met for r in with_deadline) / len(with_deadline) if with_deadline else None,
                },
                "routes": self._timeline(now),
            }
        )
        return summary

    def _timeline(self, now: float) -> dict[str, Any]:
        last = int(now // BUCKET_S)
        table = dict(self._buckets)
        rows = [dict(table.get(number, {})) for number in range(last - BUCKETS + 1, last + 1)]
        return {"bucket_s": BUCKET_S, "counts": rows}


def _quantile(values: list[float], q: float) -> float | None:
    return values[min(len(values) - 1, math.ceil(q * len(values)) - 1)] if values else None


def _plain(value: Any) -> Any:
    """The same with null for numbers JSON has no word for."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value
