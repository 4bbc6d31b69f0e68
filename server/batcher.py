"""The pictures of several requests go through the networks together, behind a bounded queue."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass

from anyio.to_thread import run_sync

from search.query import Query
from server.collection import Collection
from server.query import Features
from utils import UserError

BATCH = 8  # pictures at once
MAX_WAITING = 32  # pictures


class BusyError(UserError):
    """Too many pictures are waiting."""


@dataclass(frozen=True, eq=False)
class _Job:
    collection: Collection
    query: Query
    result: asyncio.Future[Features]


class Batcher:
    """Sends the waiting pictures through the networks, several at once.

    Parameters
    ----------
    observe : called with the size of each batch
    """

    def __init__(self, observe: Callable[[float], object]) -> None:
        self.observe = observe
        self.waiting: list[_Job] = []
        self.lock = asyncio.Lock()

    async def extract(self, collection: Collection, query: Query) -> Features:
        """The features of a picture, of each signal 1 x D.

        Raises
        ------
        BusyError : too many pictures are waiting
        """
        if len(self.waiting) >= MAX_WAITING:
            raise BusyError("too many pictures are waiting for the network; try again")
        job = _Job(collection, query, asyncio.get_running_loop().create_future())
        self.waiting.append(job)
        async with self.lock:
            if job in self.waiting:  # else an earlier batch had room for it
                await self._extract_batch(collection)
        return await job.result

    async def _extract_batch(self, collection: Collection) -> None:
        jobs = [job for job in self.waiting if job.collection is collection][:BATCH]
        self.waiting = [job for job in self.waiting if job not in jobs]
        self.observe(len(jobs))
        try:
            features = await run_sync(collection.searcher.extract, [job.query for job in jobs])
        except BaseException as error:  # cancelled, too: nobody may wait for ever
            for job in jobs:
                job.result.set_exception(error)
        else:
            for i, job in enumerate(jobs):
                job.result.set_result([signal[i : i + 1] for signal in features])
