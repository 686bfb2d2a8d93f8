"""The numbers of ``GET /metrics``, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)


class Metrics:
    """Counters of one server."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Counter(
            "mmrr_requests", "Answers by route and status.", ["method", "route", "status"], registry=self._registry
        )
        self.seconds = Histogram(
            "mmrr_request_seconds", "Time to the answer.", ["route"], buckets=_SECONDS, registry=self._registry
        )
        self.waiting = Gauge("mmrr_queue_requests", "Requests that wait or are computed.", registry=self._registry)
        self.refused = Counter("mmrr_queue_refused", "Requests that the full queue refused.", registry=self._registry)
        self.together = Histogram(
            "mmrr_batch_requests", "Requests scored together.", buckets=(1, 2, 4, 8, 16, 32), registry=self._registry
        )
        self.step_seconds = Histogram(
            "mmrr_step_seconds", "Time of a step of the models.", ["kind"], buckets=_SECONDS, registry=self._registry
        )
        self.jobs = Counter(
            "mmrr_document_jobs", "Uploads and removals by result.", ["status"], registry=self._registry
        )

    def text(self) -> bytes:
        """The text format of Prometheus."""
        return generate_latest(self._registry)
