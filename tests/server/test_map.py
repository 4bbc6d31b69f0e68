"""The collection in two dimensions, and its clusters."""

import time
from pathlib import Path

import numpy as np
import pytest
from sklearn.neighbors import NearestNeighbors

from search.clusters import open_clusters
from server.live import Collection
from server.map import TYPICAL, Maps, clusters_of, tsne
from server.schemas import CollectionMap
from tests.server.web_base import own_config

pytest_plugins = ("tests.server.web_base",)


@pytest.fixture
def own(served: Path, tmp_path: Path) -> Collection:
    """A copy of the collection."""
    return Collection(own_config(served, tmp_path))


def finished(maps: Maps, collection: Collection) -> CollectionMap:
    """The map when t-SNE has finished."""
    end = time.monotonic() + 120
    while (found := maps.get(collection)).state == "pca":
        assert time.monotonic() < end
        time.sleep(0.05)
    return found


def test_it_is_there_at_once_and_by_tsne_later(own: Collection, ids: list[str]) -> None:
    maps = Maps()
    first = maps.get(own)
    assert first.state == "pca"
    assert [point.id for point in first.points] == ids
    better = finished(maps, own)
    places = np.array([(point.x, point.y) for point in better.points])
    assert places.min() >= 0
    assert places.max() <= 1
    assert np.ptp(places, axis=0).max() == pytest.approx(1, abs=1e-4)


def test_neighbours_on_the_map_are_similar() -> None:
    """Three groups of points in 50 dimensions stay together."""
    random = np.random.default_rng(0)
    group = np.repeat(np.arange(3), 40)
    vectors = 4 * random.normal(size=(3, 50))[group] + random.normal(size=(120, 50))
    places = tsne(vectors.astype(np.float32))
    near = NearestNeighbors(n_neighbors=6).fit(places).kneighbors(return_distance=False)
    assert (group[near] == group[:, None]).mean() > 0.95


@pytest.mark.parametrize("count", [1, 2, 3, 4, 5])
def test_very_few_pictures_have_places_too(count: int) -> None:
    places = tsne(np.eye(count, 2, dtype=np.float32))
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()


def test_clusters_have_typical_pictures(collection: Collection, ids: list[str]) -> None:
    clusters = open_clusters(collection.database)
    found = clusters_of(collection)
    sizes = [cluster.size for cluster in found]
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == len(collection)
    for cluster in found:
        members = np.flatnonzero(clusters.labels == cluster.number)
        assert cluster.size == len(members)
        categories = [collection.database.category(row) for row in members.tolist()]
        assert cluster.share == categories.count(cluster.category) / len(members)
        assert cluster.share == max(map(categories.count, categories)) / len(members)
        assert len(cluster.typical) == min(TYPICAL, len(members))
        assert {one.id for one in cluster.typical} <= {ids[row] for row in members}


def test_missing_clusters_have_a_reason(own: Collection) -> None:
    (own.base / "models" / "kmeans.m").unlink()
    found = Maps().get(own)
    assert found.clusters == []
    assert "run: python kmeans.py" in found.missing
    assert str(own.base) not in found.missing
    assert found.points
