"""The pictures of several requests go through the networks together, behind a bounded queue."""

import asyncio
from collections.abc import Callable
from typing import Any

from anyio.to_thread import run_sync
from fastapi import HTTPException

from server.live import Collection

BATCH = 8  # pictures at once
MAX_WAITING = 32  # pictures

Function = Callable[[Collection, list[Any]], list[Any]]


class Batcher:
    """Sends the waiting pictures through the networks; reports each batch's size to `observe`."""

    def __init__(self, observe: Callable[[float], object]) -> None:
        self.observe = observe
        self.waiting: dict[asyncio.Future[Any], tuple[Function, Collection, Any]] = {}
        self.lock = asyncio.Lock()

    async def run(self, function: Function, collection: Collection, picture: Any) -> Any:
        """What a function makes of a picture; 503 where too many pictures wait.

        Parameters
        ----------
        function : called in a thread with the collection and a list of pictures; returns as many
            results
        collection : whose networks it uses
        picture : as the function takes it
        """
        if len(self.waiting) >= MAX_WAITING:
            raise HTTPException(503, "too many pictures are waiting for the network; try again")
        result = asyncio.get_running_loop().create_future()
        self.waiting[result] = (function, collection, picture)
        async with self.lock:
            if result in self.waiting:  # else an earlier batch had room for it
                await self._run_batch(function, collection)
        return await result

    async def _run_batch(self, function: Function, collection: Collection) -> None:
        own = (function, collection)
        batch = [result for result, job in self.waiting.items() if job[:2] == own][:BATCH]
        pictures = [self.waiting.pop(result)[2] for result in batch]
        self.observe(len(pictures))
        try:
            results = await run_sync(function, collection, pictures)
        except BaseException as error:  # cancelled, too: nobody may wait for ever
            for result in batch:
                result.set_exception(error)
        else:
            for result, value in zip(batch, results, strict=True):
                result.set_result(value)
