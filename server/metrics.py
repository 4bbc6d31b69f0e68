"""Counts and times for Prometheus."""

from prometheus_client import (
    CollectorRegistry,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

METHODS = {"GET", "POST", "HEAD"}


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.seconds = Histogram(
            "fashion_request_seconds",
            "time of a request",
            ["method", "route", "status"],
            registry=self.registry,
        )
        self.batch = Histogram(
            "fashion_batch_pictures",
            "pictures that went through the network at once",
            buckets=(1, 2, 4, 8),
            registry=self.registry,
        )
        self.pictures = Gauge(
            "fashion_collection_pictures", "pictures of the collection", registry=self.registry
        )
        ProcessCollector(registry=self.registry)

    def observe(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        method = method if method in METHODS else "other"
        self.seconds.labels(method, route, str(status)).observe(seconds)

    def text(self, pictures: int) -> bytes:
        """All of them in Prometheus' format; `pictures` is the size of the collection."""
        self.pictures.set(pictures)
        return generate_latest(self.registry)
