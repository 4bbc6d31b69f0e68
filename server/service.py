"""Answers the requests, in threads: a search by uploaded pictures, pictures of the collection."""

import asyncio
import io
import os
from functools import partial

from anyio import CapacityLimiter
from anyio.to_thread import run_sync
from fastapi import HTTPException, UploadFile

from pictures.decode import PictureError
from search.query import Query
from server.batcher import Batcher
from server.collection import Collection, LiveCollection
from server.explain import explain, thumbnail
from server.map import Maps
from server.metrics import Metrics
from server.query import QueryMemory, require_pictures
from server.ranking import search
from server.schemas import CollectionMap, Explanation, SearchAnswer, SearchOptions
from utils import Stopwatch


class Service:
    """Answers the requests."""

    def __init__(self, live: LiveCollection) -> None:
        self.live = live
        self.metrics = Metrics()
        self.memory = QueryMemory()
        self.maps = Maps()
        self.network = Batcher(self.metrics.batch.observe)
        cores = os.cpu_count() or 1
        self.read = partial(run_sync, limiter=CapacityLimiter(cores))  # decoded pictures are large
        self.rank = partial(run_sync, limiter=CapacityLimiter(cores))

    async def search(self, files: list[UploadFile], options: SearchOptions) -> SearchAnswer:
        """Read the pictures, extract their features, rank the collection."""
        collection, watch = self.live.current(), Stopwatch()
        require_pictures(collection, options)
        name = options.query
        if files:
            with watch.step("reading"):
                queries = [await self.read(_read, collection, file, options) for file in files]
            with watch.step("network"):
                extracting = (self.network.extract(collection, query) for query in queries)
                features = await asyncio.gather(*extracting)
            name = self.memory.add(collection, features, queries)
        return await self.rank(search, collection, self.memory, options, name, watch)

    async def explain(self, options: SearchOptions, row: int) -> Explanation:
        """Why an answer has its rank."""
        collection = self.live.current()
        require_pictures(collection, options, row)
        return await self.rank(explain, collection, self.memory, options, row)

    async def map(self) -> CollectionMap:
        """The collection in two dimensions."""
        return await self.rank(self.maps.get, self.live.current())

    async def image(self, row: int, size: int, version: str | None) -> bytes:
        """A picture of the collection as JPEG, its long side at most `size` px."""
        collection = self.live.current()
        if version not in (None, collection.version):
            raise HTTPException(404, f"picture {row} of an older collection; search again")
        require_pictures(collection, SearchOptions(), row)
        try:
            return await self.read(thumbnail, collection, row, size)
        except PictureError:
            raise HTTPException(404, f"picture {row} cannot be read any more") from None


def _read(collection: Collection, file: UploadFile, options: SearchOptions) -> Query:
    """An uploaded picture as the networks take it."""
    box = options.box
    cut = (box[0], box[1], box[2], box[3]) if box else None
    return collection.read(io.BytesIO(file.file.read()), cut)
