"""Counts and times for Prometheus."""

from collections.abc import Callable

from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector


class Metrics(CollectorRegistry):
    """The metrics of one server; `pictures` counts those of its collection."""

    def __init__(self, pictures: Callable[[], float]) -> None:
        super().__init__()
        ProcessCollector(registry=self)
        name, labels = "fashion_request_seconds", ["route", "status"]
        self.seconds = Histogram(name, "time of a request", labels, registry=self)
        name, about = "fashion_batch_pictures", "pictures that went through the network at once"
        self.batch = Histogram(name, about, buckets=(1, 2, 4, 8), registry=self)
        name, about = "fashion_collection_pictures", "pictures of the collection"
        Gauge(name, about, registry=self).set_function(pictures)

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count a request."""
        self.seconds.labels(route, str(status)).observe(seconds)
