"""What the cloud counts, for Prometheus. Base units; every label set is bounded by what is served."""

from __future__ import annotations

import platform
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info

SECONDS = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
ROWS = (1, 2, 4, 8, 16, 32, 64, 128)

#: How a request can end, beside the refusals of `events.Refusal`.
ANSWERED, REPEATED, CANCELLED = "answered", "repeated", "cancelled"


class LaneMetrics:
    """The counters of one lane, bound once so that a request pays no look-up."""

    def __init__(self, metrics: CloudMetrics, label: str) -> None:
        self._requests = metrics.requests
        self._label = label
        self._outcomes: dict[str, Counter] = {}
        self.batch_rows = metrics.batch_rows.labels(label)
        self.queue_seconds = metrics.queue_seconds.labels(label)
        self.tail_seconds = metrics.tail_seconds.labels(label)

    def ended(self, outcome: str) -> None:
        """One request ended so."""
        counter = self._outcomes.get(outcome)
        if counter is None:
            counter = self._outcomes[outcome] = self._requests.labels(self._label, outcome)
        counter.inc()


class CloudMetrics:
    """The counters of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = r = CollectorRegistry()
        self.requests = Counter(
            "splitedge_cloud_requests",
            "Requests by lane and how they ended.",
            ["lane", "outcome"],
            registry=r,
        )
        self.batch_rows = Histogram(
            "splitedge_cloud_batch_rows", "Rows of the batches run.", ["lane"], buckets=ROWS, registry=r
        )
        self.queue_seconds = Histogram(
            "splitedge_cloud_queue_seconds", "Arrival to start.", ["lane"], buckets=SECONDS, registry=r
        )
        self.tail_seconds = Histogram(
            "splitedge_cloud_tail_seconds", "Tail of a batch.", ["lane"], buckets=SECONDS, registry=r
        )
        self.in_flight = Gauge("splitedge_cloud_in_flight", "Requests waiting or running.", registry=r)
        self.running = Gauge("splitedge_cloud_running_batches", "Batches running.", registry=r)
        self.queue_bytes = Gauge(
            "splitedge_cloud_queue_bytes", "Payload bytes waiting or running.", registry=r
        )
        self.sessions = Gauge("splitedge_cloud_sessions", "Sessions remembered.", registry=r)
        self.malformed = Counter("splitedge_cloud_malformed_messages", "Messages that were none.", registry=r)
        self.unsent = Counter(
            "splitedge_cloud_unsent_messages",
            "Messages to an edge that was gone or did not read.",
            registry=r,
        )
        self.unknown = Counter(
            "splitedge_cloud_unknown_requests", "Requests on no lane or session.", registry=r
        )
        Info("splitedge_cloud_build", "What runs here.", registry=r).info(
            {"version": version("splitedge"), "torch": torch.__version__, "python": platform.python_version()}
        )

    @contextmanager
    def batch_running(self) -> Iterator[None]:
        """Counts one batch as running."""
        self.running.inc()
        try:
            yield
        finally:
            self.running.dec()
