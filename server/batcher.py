"""The pictures of several requests go through the networks together, behind a bounded queue."""

import asyncio
from collections.abc import Callable

from anyio.to_thread import run_sync
from fastapi import HTTPException

from search.query import Query
from server.live import Collection, Features

BATCH = 8  # pictures at once
MAX_WAITING = 32  # pictures


class Batcher:
    """Sends the waiting pictures through the networks; reports each batch's size to `observe`."""

    def __init__(self, observe: Callable[[float], object]) -> None:
        self.observe = observe
        self.waiting: dict[asyncio.Future[Features], tuple[Collection, Query]] = {}
        self.lock = asyncio.Lock()

    async def extract(self, collection: Collection, picture: Query) -> Features:
        """The features of a picture; 503 where too many pictures wait."""
        if len(self.waiting) >= MAX_WAITING:
            raise HTTPException(503, "too many pictures are waiting for the network; try again")
        result = asyncio.get_running_loop().create_future()
        self.waiting[result] = collection, picture
        async with self.lock:
            if result in self.waiting:  # else an earlier batch had room for it
                await self._run_batch(collection)
        return await result

    async def _run_batch(self, collection: Collection) -> None:
        own = [result for result, (other, _) in self.waiting.items() if other is collection]
        batch = own[:BATCH]
        pictures = [self.waiting.pop(result)[1] for result in batch]
        self.observe(len(pictures))
        try:
            signals = await run_sync(collection.extract, pictures)
        except BaseException as error:  # cancelled, too: nobody may wait for ever
            for result in batch:
                result.set_exception(error)
        else:
            for i, result in enumerate(batch):
                result.set_result([signal[i : i + 1] for signal in signals])
