"""Pictures of several requests go through the network together."""

import asyncio
import threading
from dataclasses import replace

import numpy as np
import pytest
import torch
from fastapi import HTTPException

from search.query import Query
from server.batcher import BATCH, MAX_WAITING, Batcher
from server.live import Collection
from server.query_features import Features, extract, features_of

pytest_plugins = ("tests.server.web_base",)


@pytest.fixture(scope="module")
def queries(collection: Collection) -> list[Query]:
    """Pictures of the collection, as the network takes them."""
    base, paths = collection.base, collection.database.paths
    return [collection.read(base / path) for path in paths[:24]]


def test_each_picture_gets_its_own_features(
    collection: Collection, queries: list[Query], ids: list[str]
) -> None:
    """Equal to those of each picture alone and to those of the feature database."""
    sizes: list[float] = []

    async def run() -> list[Features]:
        batcher = Batcher(sizes.append)
        return await asyncio.gather(*(batcher.run(extract, collection, query) for query in queries))

    for row, found in enumerate(asyncio.run(run())):
        alone = collection.extract([queries[row]])
        (stored,) = features_of(collection, [ids[row]])
        for one, same, kept in zip(found, alone, stored, strict=True):
            assert one.shape == same.shape == kept.shape
            assert one == pytest.approx(same, abs=1e-4)
            assert one == pytest.approx(np.asarray(kept), abs=1e-3)
    assert sum(sizes) == len(queries)
    assert max(sizes) == BATCH


class SlowCollection:
    """A collection whose network waits for an event."""

    def __init__(self, collection: Collection) -> None:
        self.collection = collection
        self.started, self.go_on = threading.Event(), threading.Event()

    def extract(self, queries: list[Query]) -> list[np.ndarray]:
        self.started.set()
        assert self.go_on.wait(60)
        return self.collection.extract(queries)


@pytest.fixture
def slow(collection: Collection) -> SlowCollection:
    """The collection with such a network."""
    return SlowCollection(collection)


async def start(batcher: Batcher, slow: SlowCollection, query: Query) -> asyncio.Task[Features]:
    """A picture that is now in the network."""
    task = asyncio.create_task(batcher.run(extract, slow, query))
    while not slow.started.is_set():
        await asyncio.sleep(0.01)
    return task


async def wait_in_queue(
    batcher: Batcher, collection: Collection, queries: list[Query]
) -> list[asyncio.Task[Features]]:
    """Pictures that now wait."""
    tasks = [asyncio.create_task(batcher.run(extract, collection, query)) for query in queries]
    await asyncio.sleep(0)
    return tasks


def test_a_full_queue_is_busy(slow: SlowCollection, queries: list[Query]) -> None:
    """Guards the memory; the waiting ones are answered, and then there is room again."""

    async def fill() -> None:
        batcher = Batcher(lambda size: None)
        tasks = [await start(batcher, slow, queries[0])]
        tasks += await wait_in_queue(batcher, slow, [queries[1]] * MAX_WAITING)
        with pytest.raises(HTTPException, match="try again"):
            await batcher.run(extract, slow, queries[2])
        slow.go_on.set()
        assert len(await asyncio.gather(*tasks)) == MAX_WAITING + 1
        await batcher.run(extract, slow, queries[2])

    asyncio.run(fill())


def test_a_fault_reaches_its_batch_only_and_a_cancelled_request_no_other(
    slow: SlowCollection, collection: Collection, queries: list[Query]
) -> None:
    async def fail() -> None:
        batcher = Batcher(lambda size: None)
        first = await start(batcher, slow, queries[0])
        broken = replace(queries[1], images=[torch.zeros(5, 5, dtype=torch.uint8)])
        bad = await wait_in_queue(batcher, slow, [broken, queries[2]])
        good = await wait_in_queue(batcher, collection, [queries[3], queries[4], queries[5]])
        good.pop(0).cancel()
        slow.go_on.set()
        assert await first
        for task in bad:
            with pytest.raises(RuntimeError):
                await task
        assert len(await asyncio.gather(*good)) == 2
        assert await batcher.run(extract, collection, queries[6])

    asyncio.run(fail())
