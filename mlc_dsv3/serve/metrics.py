"""`/metrics`: what Prometheus reads. Answers are measured as they run; the engine's sums are read when asked for."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric

from mlc_dsv3.runtime.llm import LLM
from mlc_dsv3.serve.expert_shares import ExpertShares

_PREFIX = "mlc_dsv3_"
_FIRST_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
_BETWEEN_TOKENS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
_ANSWER = (0.1, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)


class Metrics:
    """A server's metrics, in a registry of its own."""

    def __init__(self, llm: LLM, shares: ExpertShares) -> None:
        self.registry = CollectorRegistry()
        self.answers = self._counter("answers", "answers ended, by reason", ["reason"])
        self.first_token = self._histogram("time_to_first_token_seconds", "from request to first token", _FIRST_TOKEN)
        self.between_tokens = self._histogram("time_between_tokens_seconds", "between tokens", _BETWEEN_TOKENS)
        self.answer_seconds = self._histogram("answer_seconds", "from request to last token", _ANSWER)
        self.registry.register(_EngineCollector(llm, shares))

    def text(self) -> bytes:
        """All of them in Prometheus' text format."""
        return generate_latest(self.registry)

    def _counter(self, name: str, documentation: str, labels: list[str]) -> Counter:
        return Counter(_PREFIX + name, documentation, labels, registry=self.registry)

    def _histogram(self, name: str, documentation: str, buckets: tuple[float, ...]) -> Histogram:
        return Histogram(_PREFIX + name, documentation, buckets=buckets, registry=self.registry)


class _EngineCollector:
    """What the engine counts by itself."""

    def __init__(self, llm: LLM, shares: ExpertShares) -> None:
        self._llm, self._shares = llm, shares

    def describe(self) -> Iterator[Metric]:
        """Nothing beforehand: the registry would collect to find the names."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        """The metrics now."""
        stats, now = self._llm.stats, self._llm.occupancy
        yield _gauge("requests_running", "requests in the batch", now.running)
        yield _gauge("requests_waiting", "requests that wait for a place in the batch", now.waiting)
        yield _gauge("cache_tokens", "tokens that the cache has room for", now.cache_tokens)
        yield _gauge("cache_free_tokens", "tokens that fit in free pages", now.free_tokens)
        yield _gauge("cache_prefix_tokens", "tokens in pages that further prompts may reuse", now.prefix_tokens)
        yield _counter("prompt_tokens", "tokens of prompts computed", stats.prefill_tokens)
        yield _counter("reused_tokens", "tokens of prompts that the cache spared", stats.reused_tokens)
        yield _counter("generated_tokens", "tokens generated behind the first of each answer", stats.decode_tokens)
        yield _counter("prefill_seconds", "time spent on prompts", stats.prefill_seconds)
        yield _counter("decode_seconds", "time spent on further tokens", stats.decode_seconds)
        yield _counter("preemptions", "requests that gave their pages up to others", stats.preemptions)
        yield _by_place("drafted_tokens", "drafts verified, by their place", stats.drafted)
        yield _by_place("accepted_tokens", "drafts that were right, by their place", stats.accepted)
        peaks = GaugeMetricFamily(
            f"{_PREFIX}expert_load_peak", "load of a layer's busiest expert; 1 is an even load", labels=["layer"]
        )
        for layer, peak in self._shares.peaks().items():
            peaks.add_metric([str(layer)], peak)
        yield peaks


def _gauge(name: str, documentation: str, value: float) -> Metric:
    return GaugeMetricFamily(_PREFIX + name, documentation, value)


def _counter(name: str, documentation: str, value: float) -> Metric:
    return CounterMetricFamily(_PREFIX + name, documentation, value)


def _by_place(name: str, documentation: str, values: list[int]) -> Metric:
    family = CounterMetricFamily(_PREFIX + name, documentation, labels=["place"])
    for place, value in enumerate(values, 1):
        family.add_metric([str(place)], value)
    return family
