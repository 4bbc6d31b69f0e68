"""What answers the requests, in threads: pictures in, answers out; and what is measured."""

import io
import os
from concurrent.futures import TimeoutError as FutureTimeoutError

import anyio
from anyio.to_thread import run_sync
from fastapi import Response
from PIL import ImageOps
from prometheus_client import CollectorRegistry, Gauge, Histogram, ProcessCollector
from starlette.datastructures import UploadFile

from pictures.decode import PictureError, read_picture
from search.query import Query
from server.batcher import Batcher, BusyError
from server.collection import Collection, Living, Recent
from server.explain import thumbnail
from server.map import Maps
from server.schemas import SearchAnswer, SearchOptions
from server.search import Memory, UnknownError, require_pictures, search
from utils import Stopwatch

SIDES = (64, 128, 256, 384, 512, 1024, 2048)  # px of the pictures served
KEPT_SIDE, KEPT_IMAGES = 512, 1500  # small ones are kept in memory
WAIT_SECONDS = 60.0  # for the network


class Metrics:
    """What /api/metrics tells."""

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
        known = method if method in {"GET", "POST", "HEAD"} else "other"
        self.seconds.labels(known, route, str(status)).observe(seconds)


class Service:
    """What answers the requests, in threads.

    Parameters
    ----------
    living : the collection
    metrics : are told of batches
    """

    def __init__(self, living: Living, metrics: Metrics) -> None:
        self.living = living
        self.memory = Memory()
        self.maps = Maps()
        self.network = Batcher(metrics.batch.observe)
        self.images: Recent[bytes] = Recent(KEPT_IMAGES)
        cores = os.cpu_count() or 1
        self.reading = anyio.CapacityLimiter(cores)  # decoded pictures are large
        self.ranking = anyio.CapacityLimiter(cores)
        self.waiting = anyio.CapacityLimiter(64)

    async def search(self, files: list[UploadFile], options: SearchOptions) -> SearchAnswer:
        """Read the pictures, send them through the network, rank."""
        collection, watch = self.living.now(), Stopwatch()
        require_pictures(collection, options)
        name = options.query
        if files:
            with watch.step("reading"):
                data = [await file.read() for file in files]
                queries = [
                    await run_sync(_read, collection, content, options, limiter=self.reading)
                    for content in data
                ]
            with watch.step("network"):
                futures = [self.network.submit(collection, query) for query in queries]
                try:
                    features = [
                        await run_sync(future.result, WAIT_SECONDS, limiter=self.waiting)
                        for future in futures
                    ]
                except FutureTimeoutError:
                    raise BusyError("the network is too busy; ask again") from None
            name = self.memory.keep(collection, features, queries)
        return await run_sync(
            search, collection, self.memory, options, name, watch, limiter=self.ranking
        )

    async def image(self, row: int, side: int, version: str | None) -> Response:
        """A picture of the collection, small."""
        collection = self.living.now()
        if version not in (None, collection.version):
            raise UnknownError(f"picture {row} of an older collection; search again")
        if row >= len(collection):
            raise UnknownError(f"no picture {row}; there are {len(collection):,}")
        side = next(one for one in SIDES if one >= side)
        key = (collection.version, row, side)
        data = self.images.get(key)
        if data is None:
            try:
                data = await run_sync(thumbnail, collection, row, side, limiter=self.reading)
            except PictureError:
                raise UnknownError(f"picture {row} cannot be read any more") from None
            if side <= KEPT_SIDE:
                self.images.put(key, data)
        kept = "private, max-age=86400, immutable" if version else "no-cache"
        return Response(data, media_type="image/jpeg", headers={"Cache-Control": kept})


def _read(collection: Collection, data: bytes, options: SearchOptions) -> Query:
    """An uploaded picture as the networks take it."""
    box = options.box
    cut = (box[0], box[1], box[2], box[3]) if box else None
    picture = read_picture(io.BytesIO(data), cut, collection.least, "the picture")
    images = [transform(picture) for transform in collection.transforms]
    return Query("upload", images, ImageOps.contain(picture, (64, 64)))
