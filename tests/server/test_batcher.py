"""web_network.py: pictures of several requests go through the network together."""

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch

from search.query import Query, extract_queries, read_query
from server.batcher import BATCH, WAITING, Batcher, BusyError
from server.collection import Collection
from server.search import features_of

pytest_plugins = ("tests.server.web_base",)
SECONDS = 60


@pytest.fixture(scope="module")
def queries(collection: Collection) -> list[Query]:
    """Pictures of the collection, as the network takes them."""
    base, paths = collection.database.base, collection.database.paths
    arguments = (None, True, collection.transforms, collection.least)
    return [read_query(base, path, base / path, *arguments) for path in paths[:24]]


def features(futures: list[Future]) -> list[list[np.ndarray]]:
    """What comes of them."""
    return [future.result(SECONDS) for future in futures]


def test_each_gets_its_own_features(collection: Collection, queries: list[Query]) -> None:
    """From several threads; equal to those of each picture alone and of the feature database."""
    sizes: list[float] = []
    batcher = Batcher(sizes.append)
    with ThreadPoolExecutor(4) as threads:
        futures = list(threads.map(lambda query: batcher.submit(collection, query), queries))
    for row, found in enumerate(features(futures)):
        alone = extract_queries(collection.nets, [queries[row]], collection.device, "float32", 1)
        (stored,) = features_of(collection, [row])
        for one, same, kept in zip(found, alone, stored, strict=True):
            assert one.shape == same.shape == kept.shape
            assert one == pytest.approx(same, abs=1e-4)
            assert one == pytest.approx(np.asarray(kept), abs=1e-3)
    assert sum(sizes) == len(queries)
    assert 1 < max(sizes) <= BATCH


class Held:
    """A network that waits until it is let go."""

    def __init__(self, net: torch.nn.Module) -> None:
        self.net = net
        self.begun, self.go = threading.Event(), threading.Event()

    def __call__(self, images: torch.Tensor) -> list[torch.Tensor]:
        self.begun.set()
        assert self.go.wait(SECONDS)
        return self.net(images)


@pytest.fixture
def held(collection: Collection) -> tuple[Collection, Held]:
    """The collection with such a network."""
    net = Held(collection.nets[0])
    return replace(collection, nets=[net]), net


def test_beyond_the_queue_it_is_busy(held: tuple, queries: list[Query]) -> None:
    """Guards the memory; what waits is answered all the same, and then there is room."""
    collection, net = held
    batcher = Batcher(lambda size: None)
    futures = [batcher.submit(collection, queries[0])]
    assert net.begun.wait(SECONDS)  # the thread has its first batch
    futures += [batcher.submit(collection, queries[1]) for _ in range(WAITING)]
    with pytest.raises(BusyError, match="ask again"):
        batcher.submit(collection, queries[2])
    net.go.set()
    assert len(features(futures)) == WAITING + 1
    features([batcher.submit(collection, queries[2])])


def test_a_fault_reaches_all_of_its_batch_and_no_other(
    held: tuple, collection: Collection, queries: list[Query]
) -> None:
    waiting, net = held
    batcher = Batcher(lambda size: None)
    first = batcher.submit(waiting, queries[0])
    assert net.begun.wait(SECONDS)
    broken = replace(queries[1], images=[torch.zeros(5, 5, dtype=torch.uint8)])
    bad = [batcher.submit(waiting, query) for query in (broken, queries[2])]
    good = batcher.submit(collection, queries[3])  # of another opening of the collection
    net.go.set()
    assert first.result(SECONDS)
    for future in bad:
        with pytest.raises(RuntimeError):
            future.result(SECONDS)
    assert good.result(SECONDS)
    assert batcher.submit(collection, queries[4]).result(SECONDS)


def test_who_does_not_wait_any_more_is_left_out(
    held: tuple, collection: Collection, queries: list[Query]
) -> None:
    """Guards the thread: a cancelled future must not end it."""
    waiting, net = held
    batcher = Batcher(lambda size: None)
    first = batcher.submit(waiting, queries[0])
    assert net.begun.wait(SECONDS)
    gone = batcher.submit(waiting, queries[1])
    stays = batcher.submit(waiting, queries[2])
    assert gone.cancel()
    net.go.set()
    assert first.result(SECONDS)
    assert stays.result(SECONDS)
    assert batcher.submit(collection, queries[3]).result(SECONDS)
