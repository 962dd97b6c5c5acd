"""What language models at a cloud amount to, for Prometheus; read from the desk when scraped."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from splitedge.cloud.desk import LanguageDesk


class LanguageMetrics(Collector):
    """Contexts and passes of a desk.

    Args:
        desk: whose.
    """

    def __init__(self, desk: LanguageDesk) -> None:
        self._desk = desk

    def describe(self) -> Iterator[Metric]:
        """The same: nothing is known before it is asked."""
        return self.collect()

    def collect(self) -> Iterator[Metric]:
        """One sample each; none where no language model is served."""
        if not self._desk.served:
            return
        store = self._desk.store
        gauges: tuple[tuple[str, str, float], ...] = (
            ("contexts", "Contexts held.", len(store)),
            ("context_bytes", "Bytes of contexts, held or reserved.", store.nbytes),
            ("context_budget_bytes", "Most of them.", store.budget_bytes),
            ("language_waiting", "Asks that wait for tokens.", self._desk.waiting),
        )
        for name, text, value in gauges:
            gauge = GaugeMetricFamily(f"splitedge_cloud_{name}", text)
            gauge.add_metric([], value)
            yield gauge
        for name, text, count in (
            ("contexts_demoted", "Contexts whose keys and values were dropped for room.", store.demoted),
            ("contexts_dropped", "Contexts dropped: no room, or their lease was over.", store.dropped),
        ):
            counter = CounterMetricFamily(f"splitedge_cloud_{name}", text)
            counter.add_metric([], count)
            yield counter
        yield from self._lanes()

    def _lanes(self) -> Iterator[Metric]:
        tokens = CounterMetricFamily(
            "splitedge_cloud_tokens",
            "Tokens that went through the model (computed), and tokens it chose (told).",
            labels=["lane", "kind"],
        )
        passes = CounterMetricFamily("splitedge_cloud_passes", "Passes of the model.", labels=["lane"])
        seconds = CounterMetricFamily(
            "splitedge_cloud_pass_seconds", "Seconds of passes, hand-overs included.", labels=["lane"]
        )
        for served in self._desk.served:
            lane, batcher = served.lane, served.batcher
            label = f"{lane.bundle[:8]}/{lane.cut or 'input'}/{lane.codec.partition(':')[0]}"
            tokens.add_metric([label, "computed"], batcher.computed)
            tokens.add_metric([label, "told"], batcher.told)
            passes.add_metric([label], batcher.passes)
            seconds.add_metric([label], batcher.seconds)
        yield from (tokens, passes, seconds)
