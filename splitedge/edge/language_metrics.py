"""An edge's Prometheus metrics of texts, in a registry of their own: seconds, bytes, tokens."""

from __future__ import annotations

import math
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from splitedge.edge.language import LanguageRuntime
from splitedge.llm.text_records import TextRecord
from splitedge.version import VERSION

_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


class LanguageEdgeMetrics:
    """Counts every text; reads gauges from the runtime when scraped."""

    def __init__(self, runtime: LanguageRuntime, digest: str) -> None:
        self.registry = r = CollectorRegistry()
        self._texts = Counter(
            "splitedge_texts", "Texts, by mode and how they ended.", ("mode", "outcome"), registry=r
        )
        self._tokens = Counter(
            "splitedge_tokens", "Tokens, by where they came from.", ("source",), registry=r
        )
        self._prompt = Counter("splitedge_prompt_tokens", "Tokens of prompts.", registry=r)
        self._drafts = Counter("splitedge_drafts", "Tokens drafted.", ("outcome",), registry=r)
        self._calls = Counter("splitedge_cloud_calls", "Asks of the cloud.", registry=r)
        self._bytes = Counter("splitedge_link_bytes", "Framed bytes of texts.", ("direction",), registry=r)
        self._degraded = Counter("splitedge_degraded", "Texts not by the mode wanted.", registry=r)
        self._joules = Counter("splitedge_modelled_joules", "Modelled joules, idle not counted.", registry=r)
        self._first = Histogram(
            "splitedge_first_token_seconds",
            "Arrival to the first token.",
            ("mode",),
            buckets=_SECONDS,
            registry=r,
        )
        self._whole = Histogram(
            "splitedge_text_seconds", "Arrival to the end.", ("mode",), buckets=_SECONDS, registry=r
        )
        r.register(_Gauges(runtime, digest))

    def text(self, record: TextRecord, sources: list[str]) -> None:
        """A text ended."""
        self._texts.labels(record.mode, record.error or record.finish).inc()
        for source in sources:
            self._tokens.labels(source).inc()
        self._prompt.inc(record.prompt_tokens)
        self._drafts.labels("accepted").inc(record.accepted)
        self._drafts.labels("rejected").inc(max(0, record.proposed - record.accepted))
        self._calls.inc(record.cloud_calls)
        self._bytes.labels("up").inc(record.bytes_up)
        self._bytes.labels("down").inc(record.bytes_down)
        self._joules.inc(max(0.0, record.energy_j))
        if record.degraded:
            self._degraded.inc()
        for histogram, value in ((self._first, record.ttft_s), (self._whole, record.total_s)):
            if math.isfinite(value):
                histogram.labels(record.mode).observe(value)

    def scrape(self) -> bytes:
        """What `/metrics` answers."""
        return generate_latest(self.registry)


class _Gauges(Collector):
    """What is true now, read when asked."""

    def __init__(self, runtime: LanguageRuntime, digest: str) -> None:
        self._runtime, self._digest = runtime, digest

    def describe(self) -> Iterator[Metric]:
        """Nothing: the clock may not run yet."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """One sample each."""
        runtime = self._runtime
        yield _gauge("splitedge_in_flight", "Texts under way.", runtime.in_flight)
        yield _gauge("splitedge_link_up", "Whether the cloud is in reach.", float(runtime.up))
        remote = runtime.remote
        if remote is not None:
            now = runtime.now
            rtt, goodput = remote.estimator.rtt(now), remote.estimator.goodput(now)
            yield _gauge("splitedge_link_rtt_seconds", "Estimate of the round trip, mean.", rtt.mean)
            yield _gauge("splitedge_link_goodput_bits_per_second", "Estimate, mean.", goodput.mean)
        build = GaugeMetricFamily("splitedge_build_info", "Version and bundle.", labels=["version", "bundle"])
        build.add_metric([VERSION, self._digest[:16]], 1.0)
        yield build


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    family = GaugeMetricFamily(name, text)
    family.add_metric([], value)
    return family
