"""The edge's Prometheus metrics, in a registry of their own: seconds, bytes, ratios."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from splitedge.breaker import Circuit
from splitedge.edge.runtime import EdgeRuntime
from splitedge.events import Stage
from splitedge.outcome import FILTERED
from splitedge.record import Record
from splitedge.version import VERSION

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STAGE_BUCKETS = (0.0001, 0.0003, 0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

#: Why an answer was degraded or a request failed, by what its record says: few and fixed.
_CLASSES = (
    ("deadline", ("deadline", "in time", "late", "overdue")),
    ("busy", ("busy", "no room")),
    ("link", ("link", "connect", "unreachable", "no cloud", "send")),
    ("cloud", ("cloud",)),
)


def reason_class(reason: str) -> str:
    """One of `deadline`, `busy`, `link`, `cloud`, `other` for a record's sentence."""
    text = reason.lower()
    return next((name for name, words in _CLASSES if any(word in text for word in words)), "other")


class EdgeMetrics:
    """Counts every record of a runtime; reads gauges from it when scraped."""

    def __init__(self, runtime: EdgeRuntime) -> None:
        self.registry = CollectorRegistry()
        self._requests = Counter(
            "splitedge_requests",
            "Requests ended, by the route that answered (none for errors) and how they ended.",
            ("route", "outcome"),
            registry=self.registry,
        )
        self._seconds = Histogram(
            "splitedge_request_seconds",
            "Seconds from arrival to the end of a request.",
            ("route",),
            buckets=_BUCKETS,
            registry=self.registry,
        )
        self._stage_seconds = Histogram(
            "splitedge_stage_seconds",
            "Seconds of compute of each stage on this device.",
            ("stage",),
            buckets=_STAGE_BUCKETS,
            registry=self.registry,
        )
        self._bytes = Counter(
            "splitedge_link_bytes", "Framed bytes of requests.", ("direction",), registry=self.registry
        )
        self._degraded = Counter(
            "splitedge_degraded",
            "Answers that did not come by the route the policy wanted.",
            ("reason",),
            registry=self.registry,
        )
        self._filtered = Counter(
            "splitedge_filtered",
            "Requests that a filter answered: what was encoded was not sent.",
            registry=self.registry,
        )
        self._missed = Counter(
            "splitedge_deadlines_missed", "Requests not answered by their deadline.", registry=self.registry
        )
        self._joules = Counter(
            "splitedge_modelled_joules",
            "Modelled joules of requests, idle not counted.",
            registry=self.registry,
        )
        self._up, self._down = self._bytes.labels("up"), self._bytes.labels("down")
        self.registry.register(_Gauges(runtime))
        runtime.listeners.append(self._record)
        runtime.stage_listeners.append(self._stage)

    def _record(self, record: Record) -> None:
        route = record.route or "none"
        self._requests.labels(route, record.error or "answered").inc()
        if math.isfinite(record.latency_s):
            self._seconds.labels(route).observe(record.latency_s)
        self._up.inc(record.bytes_up)
        self._down.inc(record.bytes_down)
        self._joules.inc(max(0.0, record.energy_j))
        if record.degraded:
            self._degraded.labels(reason_class(record.reason)).inc()
        if record.reason.startswith(FILTERED):
            self._filtered.inc()
        if math.isfinite(record.deadline_s) and not record.met:
            self._missed.inc()

    def _stage(self, stage: Stage, seconds: float) -> None:
        self._stage_seconds.labels(stage.kind.value).observe(seconds)

    def text(self) -> bytes:
        """What `/metrics` answers."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    """What is true now, read when asked."""

    def __init__(self, runtime: EdgeRuntime) -> None:
        self._runtime = runtime
        self._started = time.time()

    def collect(self) -> Iterator[Metric]:
        """One sample each."""
        runtime, engine = self._runtime, self._runtime.engine
        now = runtime.clock()
        goodput, rtt = engine.link.goodput(now), engine.link.rtt(now)
        up = runtime.remote is not None and runtime.remote.up
        yield _gauge("splitedge_in_flight", "Requests accepted and not ended.", runtime.in_flight)
        yield _gauge("splitedge_link_up", "Whether connected to the cloud and welcomed.", float(up))
        waiting = runtime.remote.unanswered_bytes if runtime.remote is not None else 0
        yield _gauge("splitedge_link_unanswered_bytes", "Sent, not known to have arrived.", waiting)
        for name, estimate, unit in (("goodput", goodput, "bits_per_second"), ("rtt", rtt, "seconds")):
            family = GaugeMetricFamily(
                f"splitedge_link_{name}_{unit}", "Estimate: mean, low and high quantile.", labels=["value"]
            )
            for label, value in zip(("mean", "low", "high"), estimate, strict=True):
                family.add_metric([label], value)
            yield family
        circuit = GaugeMetricFamily("splitedge_circuit", "State of the circuit breaker.", labels=["state"])
        for state in Circuit:
            circuit.add_metric([state.value], float(engine.circuit == state.value))
        yield circuit
        if not math.isnan(engine.battery):
            yield _gauge("splitedge_battery_ratio", "Charge of the battery.", engine.battery)
        yield _gauge("splitedge_start_time_seconds", "Unix time of the start.", self._started)
        build = GaugeMetricFamily("splitedge_build_info", "Version and bundle.", labels=["version", "bundle"])
        build.add_metric([VERSION, runtime.model.digest[:16]], 1.0)
        yield build


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
