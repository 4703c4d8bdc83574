"""What operators see: Prometheus metrics. No key ids and no client names in labels."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Metrics:
    """One server's metrics. waiting, ready, loading_peak, prime_sets: read when the metrics are.

    encoded: bytes of encoded weights by model.
    """

    def __init__(
        self,
        waiting: Callable[[], float],
        ready: Callable[[], float],
        loading_peak: Callable[[], float],
        encoded: Mapping[str, int],
        prime_sets: Callable[[], float],
    ) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "he_serve_requests", "Requests.", ["method", "route", "status"], registry=self._registry
        )
        buckets = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250)
        self.evaluate = Histogram(
            "he_serve_evaluate_seconds",
            "Time of one evaluation.",
            ["model"],
            buckets=buckets,
            registry=self._registry,
        )
        self.queued = Histogram(
            "he_serve_queue_seconds", "Time waiting for a worker.", buckets=buckets, registry=self._registry
        )
        self.received = Counter(
            "he_serve_key_bytes", "Bytes of evaluation keys received.", registry=self._registry
        )
        self.validated = Counter(
            "he_serve_key_validations", "Validated key files.", ["outcome"], registry=self._registry
        )
        Gauge("he_serve_jobs_waiting", "Jobs waiting for a worker.", registry=self._registry).set_function(
            waiting
        )
        Gauge("he_serve_workers_ready", "Workers that can evaluate.", registry=self._registry).set_function(
            ready
        )
        Gauge(
            "he_serve_loading_peak_bytes",
            "Largest peak memory of a worker when it had loaded its models.",
            registry=self._registry,
        ).set_function(loading_peak)
        Gauge(
            "he_serve_prime_sets", "Prime sets of clients that keys are held for.", registry=self._registry
        ).set_function(prime_sets)
        weights = Gauge(
            "he_serve_encoded_weights_bytes",
            "Encoded weights, mapped by all workers.",
            ["model"],
            registry=self._registry,
        )
        for model, size in encoded.items():
            weights.labels(model).set(size)

    def text(self) -> bytes:
        """The exposition format."""
        return generate_latest(self._registry)
