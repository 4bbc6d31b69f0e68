"""The k-means engine against the exact one and scipy, and what is refused as clusters."""

import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from features.database import FeatureDatabase
from search.clusters import Clusters, KMeansEngine, nprobe_of, open_clusters, save_clusters
from search.engine import ExactEngine
from search.quantised import quantise
from search.signals import Signal
from utils import UserError

SHA256 = "ab" * 32
N = 4000


def clusters_of(deep, labels: np.ndarray, normalised: bool = False, **other) -> Clusters:
    count = labels.max() + 1
    centroids = np.stack([deep[labels == c].mean(0) for c in range(count)])
    given = {"features": "", "distance": "", "recall": np.ones(count)} | other
    return Clusters(centroids.astype(np.float32), labels, normalised=normalised, **given)


@pytest.mark.parametrize("rows", [None, np.arange(100, 3000, 3)])
def test_kmeans_ranks_what_lies_in_the_nearest_clusters_and_all_of_it(
    rng: np.random.Generator, rows
) -> None:
    """With all clusters, or more than there are, the exact answer; with one, a part of it."""
    features = [rng.random((N, 6), np.float32), rng.random((N, 9), np.float32)]
    for feature in features:
        feature[200:240] = feature[7]  # ties, in several clusters
    labels = rng.integers(0, 5, N).astype(np.int32)
    clusters = clusters_of(features[0], labels)
    signals = [Signal("deep", features[0], "euclidean", 1.0),
               Signal("color", features[1], "cityblock", 0.3)]  # fmt: skip
    queries = [f[[3, 7, 400]] + np.float32(0.02) for f in features]
    exact = ExactEngine(signals).search(queries, 30, rows)
    for wanted in (5, 99):
        engine = KMeansEngine(signals, clusters, nprobe_of(clusters, wanted, 1.0))
        for found, expected in zip(engine.search(queries, 30, rows), exact, strict=True):
            np.testing.assert_array_equal(found.rows, expected.rows)
            np.testing.assert_array_equal(found.distances, expected.distances)

    searched = np.arange(N) if rows is None else rows
    for q, found in enumerate(KMeansEngine(signals, clusters, 1).search(queries, 30, rows)):
        centre = np.linalg.norm(clusters.centroids - queries[0][q], axis=1).argmin()
        members = [row for row in searched if labels[row] == centre]
        deep = cdist(queries[0][q : q + 1], features[0][members], "euclidean")[0]
        color = cdist(queries[1][q : q + 1], features[1][members], "cityblock")[0]
        distances = deep + 0.3 * color
        order = np.argsort(distances, kind="stable")[:30]
        np.testing.assert_array_equal(found.rows, np.array(members)[order])
        np.testing.assert_array_equal(found.distances, distances[order])


@pytest.mark.parametrize(
    ("nprobe", "target", "searched"),
    [(0, 0.5, 1), (0, 0.9, 3), (0, 0.95, 3), (0, 1.0, 4), (2, 1.0, 2), (9, 0.5, 4)],
)
def test_as_many_clusters_as_the_recall_takes(nprobe: int, target: float, searched: int) -> None:
    recall = np.array([0.6, 0.85, 0.95, 0.999])
    labels = np.arange(4).astype(np.int32)
    clusters = clusters_of(np.eye(4, dtype=np.float32), labels, recall=recall)
    assert nprobe_of(clusters, nprobe, target) == searched


@pytest.mark.parametrize("nprobe", [1, 2, 5])
@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_quantised_features_change_nothing_but_the_time(
    rng: np.random.Generator, metric: str, nprobe: int
) -> None:
    features = [rng.random((N, 6), np.float32), rng.random((N, 9), np.float32)]
    for feature in features:
        feature[200:240] = feature[7]
    clusters = clusters_of(features[0], rng.integers(0, 5, N).astype(np.int32))
    order = clusters.by_cluster
    assert (np.diff(clusters.labels[order]) >= 0).all()
    signals = [Signal("deep", features[0], metric, 1.0), Signal("color", features[1], metric, 0.3)]
    coded = KMeansEngine(
        signals, clusters, nprobe, [quantise(f, metric).ordered(order) for f in features]
    )
    plain = KMeansEngine(signals, clusters, nprobe)
    queries = [f[[3, 7, 400]] + np.float32(0.02) for f in features]
    for k, rows in ((10, None), (10, np.arange(50, 3000, 3)), (N, None)):
        pairs = zip(coded.search(queries, k, rows), plain.search(queries, k, rows), strict=True)
        for found, expected in pairs:
            np.testing.assert_array_equal(found.rows, expected.rows)
            np.testing.assert_array_equal(found.distances, expected.distances)


def test_clusters_of_normalised_features_are_found_by_direction() -> None:
    """A wide cluster at 0 and 80 degrees, whose centroid is short, beside one at 100 degrees.

    By their plain distance the long query would be sent to the other cluster, as would the short.
    """
    deep = np.float32([[np.cos(a), np.sin(a)] for a in np.deg2rad([0, 80, 100])])
    clusters = clusters_of(deep, np.int32([0, 0, 1]), normalised=True)
    engine = KMeansEngine([Signal("deep", deep, "cosine", 1.0)], clusters, 1)
    for degrees, length, rows in ((65, 1000, [1, 0]), (90, 0.01, [2])):
        angle = np.deg2rad(degrees)
        query = np.float32([[length * np.cos(angle), length * np.sin(angle)]])
        assert engine.search([query], len(rows))[0].rows.tolist() == rows


def database_at(base: Path) -> FeatureDatabase:
    """A database of 12 pictures, as far as clusters need it."""
    deep = np.zeros((12, 6), np.float32)
    metadata = SimpleNamespace(sha256={"all_feat.npy": SHA256})
    return FeatureDatabase(base, (deep,), deep, None, [], deep[:, 0], [], deep[:, 0], metadata)


def test_clusters_come_back_as_they_were_saved(tmp_path: Path, rng: np.random.Generator) -> None:
    labels = np.arange(12, dtype=np.int32) % 3
    saved = clusters_of(rng.random((12, 6)), labels, True, features=SHA256, distance="deep cosine")
    assert save_clusters(tmp_path, saved) == tmp_path / "models" / "kmeans.m"
    found = open_clusters(database_at(tmp_path))
    for name, value in vars(saved).items():
        np.testing.assert_array_equal(getattr(found, name), value)
        assert type(getattr(found, name)) is type(value)


class Malicious:
    def __reduce__(self) -> tuple:
        return os.mkdir, ("marker",)


def _of_other_features(path: Path) -> None:
    save_clusters(path.parent.parent, clusters_of(np.zeros((3, 2)), np.int32([0, 1, 2])))


def _object_array(path: Path) -> None:
    with open(path, "wb") as file:
        np.savez(file, centroids=np.array([Malicious()]), features="", allow_pickle=True)


@pytest.mark.parametrize(
    ("write", "said"),
    [
        (lambda path: None, "no clusters"),
        (_of_other_features, "other features"),
        (_object_array, "cannot be read"),
        (lambda path: path.write_bytes(b"PK\x03\x04 garbage"), "cannot be read"),
        (lambda path: path.write_bytes(b""), "cannot be read"),
        (lambda path: path.write_bytes(pickle.dumps(Malicious())), "cannot be read"),
    ],
)
def test_clusters_of_other_features_or_no_clusters_are_refused(
    tmp_path: Path, write, said: str
) -> None:
    (tmp_path / "models").mkdir()
    write(tmp_path / "models" / "kmeans.m")
    with pytest.raises(UserError, match=rf"kmeans\.m: .*{said}.*run: python kmeans\.py"):
        open_clusters(database_at(tmp_path))
    assert not Path("marker").exists()


def test_kmeans_goes_on_until_it_has_enough() -> None:
    """Pictures that lie in far clusters alone are found, however few clusters are searched."""
    features = np.arange(40, dtype=np.float32)[:, None]
    labels = np.repeat(np.arange(8, dtype=np.int32), 5)
    centroids = features.reshape(8, 5).mean(1, keepdims=True)
    clusters = Clusters(centroids, labels, "", False, "", np.zeros(8))
    engine = KMeansEngine([Signal("deep", features, "euclidean", 1.0)], clusters, nprobe=1)
    query = [np.zeros((1, 1), np.float32)]
    assert engine.search(query, 5)[0].rows.tolist() == [0, 1, 2, 3, 4]
    assert engine.search(query, 9)[0].rows.tolist() == list(range(9))
    assert engine.search(query, 99)[0].rows.tolist() == list(range(40))
    rows = np.array([21, 33, 34, 39])
    assert engine.search(query, 3, rows)[0].rows.tolist() == [21, 33, 34]
    assert engine.search(query, 9, rows)[0].rows.tolist() == [21, 33, 34, 39]
