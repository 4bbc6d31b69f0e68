"""The pictures of several requests go through the networks together, behind a bounded queue."""

import asyncio
from collections.abc import Callable

from anyio.to_thread import run_sync
from fastapi import HTTPException

from search.query import Query
from server.collection import Collection
from server.query import Features

BATCH = 8  # pictures at once
MAX_WAITING = 32  # pictures


class Batcher:
    """Sends the waiting pictures through the networks; reports each batch's size to `observe`."""

    def __init__(self, observe: Callable[[float], object]) -> None:
        self.observe = observe
        self.waiting: dict[asyncio.Future[Features], tuple[Collection, Query]] = {}
        self.lock = asyncio.Lock()

    async def extract(self, collection: Collection, query: Query) -> Features:
        """The features of a picture, of each signal 1 x D; 503 where too many pictures wait."""
        if len(self.waiting) >= MAX_WAITING:
            raise HTTPException(503, "too many pictures are waiting for the network; try again")
        result: asyncio.Future[Features] = asyncio.get_running_loop().create_future()
        self.waiting[result] = (collection, query)
        async with self.lock:
            if result in self.waiting:  # else an earlier batch had room for it
                await self._extract_batch(collection)
        return await result

    async def _extract_batch(self, collection: Collection) -> None:
        results = [r for r, (wanted, _) in self.waiting.items() if wanted is collection][:BATCH]
        queries = [self.waiting.pop(result)[1] for result in results]
        self.observe(len(queries))
        try:
            features = await run_sync(collection.extract, queries)
        except BaseException as error:  # cancelled, too: nobody may wait for ever
            for result in results:
                result.set_exception(error)
        else:
            for i, result in enumerate(results):
                result.set_result([signal[i : i + 1] for signal in features])
