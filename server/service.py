"""Answers the requests, in threads: a search by uploaded pictures, pictures of the collection."""

import asyncio
import io
import os

import anyio
from anyio.to_thread import run_sync
from cachetools import LRUCache
from fastapi import UploadFile

from pictures.decode import PictureError
from search.query import Query
from server.batcher import Batcher
from server.collection import Collection, LiveCollection
from server.explain import explain, thumbnail
from server.map import Maps
from server.metrics import Metrics
from server.query import QueryMemory, UnknownError, require_pictures
from server.ranking import search
from server.schemas import CollectionMap, Explanation, SearchAnswer, SearchOptions
from utils import Stopwatch

IMAGE_SIDES = (64, 128, 256, 384, 512, 1024, 2048)  # px of the long side of pictures served
MAX_CACHED_SIDE, MAX_CACHED_IMAGES = 512, 1500


class Service:
    """Answers the requests.

    Parameters
    ----------
    live : the collection
    """

    def __init__(self, live: LiveCollection) -> None:
        self.live = live
        self.metrics = Metrics()
        self.memory = QueryMemory()
        self.maps = Maps()
        self.network = Batcher(self.metrics.batch.observe)
        self.images: LRUCache[tuple, bytes] = LRUCache(MAX_CACHED_IMAGES)
        cores = os.cpu_count() or 1
        self.reading = anyio.CapacityLimiter(cores)  # decoded pictures are large
        self.ranking = anyio.CapacityLimiter(cores)

    async def search(self, files: list[UploadFile], options: SearchOptions) -> SearchAnswer:
        """Read the pictures, extract their features, rank the collection."""
        collection, watch = self.live.current(), Stopwatch()
        require_pictures(collection, options)
        name = options.query
        if files:
            with watch.step("reading"):
                queries = [
                    await run_sync(_read, collection, file, options, limiter=self.reading)
                    for file in files
                ]
            with watch.step("network"):
                extracting = (self.network.extract(collection, query) for query in queries)
                features = await asyncio.gather(*extracting)
            name = self.memory.add(collection, features, queries)
        arguments = (collection, self.memory, options, name, watch)
        return await run_sync(search, *arguments, limiter=self.ranking)

    async def explain(self, options: SearchOptions, row: int) -> Explanation:
        """Why an answer has its rank."""
        collection = self.live.current()
        require_pictures(collection, options, row)
        arguments = (collection, self.memory, options, row)
        return await run_sync(explain, *arguments, limiter=self.ranking)

    async def map(self) -> CollectionMap:
        """The collection in two dimensions."""
        return await run_sync(self.maps.get, self.live.current(), limiter=self.ranking)

    async def image(self, row: int, size: int, version: str | None) -> bytes:
        """A picture of the collection as JPEG, its long side at least `size` px."""
        collection = self.live.current()
        if version not in (None, collection.version):
            raise UnknownError(f"picture {row} of an older collection; search again")
        require_pictures(collection, SearchOptions(), row)
        side = next(side for side in IMAGE_SIDES if side >= size)
        key = (collection.version, row, side)
        data = self.images.get(key)
        if data is None:
            try:
                data = await run_sync(thumbnail, collection, row, side, limiter=self.reading)
            except PictureError:
                raise UnknownError(f"picture {row} cannot be read any more") from None
            if side <= MAX_CACHED_SIDE:
                self.images[key] = data
        return data


def _read(collection: Collection, file: UploadFile, options: SearchOptions) -> Query:
    """An uploaded picture as the networks take it."""
    box = options.box
    cut = (box[0], box[1], box[2], box[3]) if box else None
    return collection.searcher.read(io.BytesIO(file.file.read()), cut)
