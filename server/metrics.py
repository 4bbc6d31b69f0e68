"""Counts and times for Prometheus."""

from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector, generate_latest


class Metrics:
    """The metrics of one server."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        name, labels = "fashion_request_seconds", ["route", "status"]
        self.seconds = Histogram(name, "time of a request", labels, registry=registry)
        name, about = "fashion_batch_pictures", "pictures that went through the network at once"
        self.batch = Histogram(name, about, buckets=(1, 2, 4, 8), registry=registry)
        name = "fashion_collection_pictures"
        self.pictures = Gauge(name, "pictures of the collection", registry=registry)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.seconds.labels(route, str(status)).observe(seconds)

    def text(self, pictures: int) -> bytes:
        """All of them in Prometheus' format; `pictures` is the size of the collection."""
        self.pictures.set(pictures)
        return generate_latest(self.registry)
