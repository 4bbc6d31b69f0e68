"""Clusters of the deep features, and the recall that is promised for them."""

from pathlib import Path

import numpy as np
import pytest

import kmeans
from features.database import open_database
from search.clustering import cluster, measure_recall
from search.clusters import Clusters, KMeansEngine, open_clusters
from search.engine import ExactEngine
from search.signals import Signal
from tests.conftest import describe
from utils import UserError, evenly_spaced, run_script, sha256_of

CENTRES = np.float32([[0, 0, 0], [10, 0, 0], [0, 10, 5]])


def blobs(sizes=(30, 50, 20), seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Three groups of points far apart, shuffled, and the group of each."""
    rng = np.random.default_rng(seed)
    group = rng.permutation(np.repeat([0, 1, 2], sizes))
    return CENTRES[group] + rng.normal(0, 0.3, (len(group), 3)).astype(np.float32), group


def test_three_blobs_are_three_clusters() -> None:
    points, group = blobs()
    centroids, labels = cluster(points, False, 3, 5, evenly_spaced(100, 200))
    assert (centroids.dtype, labels.dtype) == (np.float32, np.int32)
    assert len({(a, b) for a, b in zip(group.tolist(), labels.tolist(), strict=True)}) == 3
    for number in range(3):
        mean = points[group == number].mean(0)
        assert np.abs(centroids[labels[group == number][0]] - mean).max() < 1e-4


@pytest.mark.parametrize(
    ("points", "count", "said"),
    [(np.zeros((4, 3)), 5, "N_CLUSTERS is 5.* 4 pictures"), (np.full((9, 3), np.nan), 2, "NaN")],
)
def test_what_cannot_be_clustered_is_said(points, count: int, said: str) -> None:
    with pytest.raises(UserError, match=said):
        cluster(points.astype(np.float32), False, count, 0, np.arange(2))


def test_pictures_that_measure_are_not_fitted_to() -> None:
    """Rows 0, 3, 6 ... lie far away: as they are not fitted to, no centroid is there."""
    points, _ = blobs((300, 300, 300))
    queries = np.arange(0, 900, 3)
    points[queries] += 1000
    centroids, labels = cluster(points, False, 3, 0, queries)
    assert centroids.max() < 20
    nearest = np.linalg.norm(points[:, None] - centroids[None], axis=2).argmin(1)
    np.testing.assert_array_equal(labels, nearest)


def test_normalised_features_are_clustered_by_direction() -> None:
    angles = np.deg2rad(np.repeat([0, 90, 200], 100) + np.tile(np.arange(100) / 10, 3))
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * np.linspace(0.1, 50, 300)[:, None]
    _, labels = cluster(points.astype(np.float32), True, 3, 0, np.arange(0))
    assert sorted(np.bincount(labels)) == [100, 100, 100]
    assert all(len(set(part.tolist())) == 1 for part in np.split(labels, 3))


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("queries", [7, 500])
def test_recall_is_what_searches_find_for_every_number_of_clusters(metric: str, queries) -> None:
    """Each query is excluded from its own answer; there are duplicates among them."""
    rng = np.random.default_rng(3)
    deep, color = rng.normal(size=(120, 4)), rng.normal(size=(120, 6))
    deep[60:72], color[60:72] = deep[60], color[60]
    signals = [Signal("deep", deep.astype(np.float32), metric, 1.0),
               Signal("color", color.astype(np.float32), "cityblock", 0.1)]  # fmt: skip
    centroids, labels = cluster(signals[0].features, False, 8, 0, np.arange(5))
    clusters = Clusters(centroids, labels, "", metric == "cosine", "", np.zeros(0))

    rows = evenly_spaced(120, queries)
    assert rows.tolist() == sorted({int(row) for row in np.linspace(0, 119, min(queries, 120))})
    expected = []
    for nprobe in range(1, 9):
        hits = total = 0
        for row in rows:
            query = [signal.features[row : row + 1] for signal in signals]
            others = np.delete(np.arange(120), row)
            truth = set(ExactEngine(signals).search(query, 10, others)[0].rows.tolist())
            found = KMeansEngine(signals, clusters, nprobe).search(query, 11)[0].rows
            found = [other for other in found.tolist() if other != row][:10]
            hits, total = hits + len(truth.intersection(found)), total + len(truth)
        expected.append(hits / total)
    assert expected[0] < 0.9  # or the comparison would say nothing
    assert expected[-1] == 1
    np.testing.assert_allclose(
        measure_recall(signals, clusters, ExactEngine(signals), rows), expected
    )


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A database of 100 pictures in three groups, which differ in length too for cosine."""
    points, _ = blobs()
    deep = (points + 5) * np.random.default_rng(1).uniform(0.1, 9, (100, 1))
    base = tmp_path / "data"
    base.mkdir()
    np.save(base / "all_feat.npy", deep.astype(np.float32))
    np.save(base / "all_color_feat.npy", np.zeros((100, 3), np.float32))
    np.save(base / "all_category.npy", np.zeros(100, np.int16))
    np.save(base / "all_item.npy", np.full(100, ""))
    np.savez(base / "all_classifier.npz", weight=np.zeros((1, 3)), bias=np.zeros(1))
    (base / "all_feat.list").write_text("".join(f"{row}.jpg\n" for row in range(100)))
    describe(base, 100, ["all"])
    return base


def run(base: Path, *flags: str) -> int:
    with pytest.raises(SystemExit) as left:
        run_script(lambda: kmeans.main(["--dataset-base", str(base), *flags]))
    return left.value.code


def test_the_script_writes_the_clusters_and_prints_sizes_and_recall(base: Path, capsys) -> None:
    flags = ("--n-clusters", "3", "--nprobe", "2", "--distance-metric", "cosine,euclidean")
    assert run(base, *flags) == 0
    out = capsys.readouterr().out
    assert "100 pictures in 3 clusters" in out
    assert "all sizes: 50 30 20" in out
    found = open_clusters(open_database(base))
    assert found.normalised
    assert found.centroids.shape == (3, 3)
    assert np.linalg.norm(found.centroids, axis=1) == pytest.approx([1] * 3, abs=0.05)
    assert sorted(np.bincount(found.labels)) == [20, 30, 50]
    assert found.features == sha256_of(base / "all_feat.npy")
    for nprobe, recall in enumerate(found.recall[:2], start=1):
        line = next(line for line in out.splitlines() if line.split()[:1] == [str(nprobe)])
        assert line.split()[1] == f"{recall:.3f}"
    assert "a query searches these" in line

    first = (base / "models" / "kmeans.m").read_bytes()
    assert run(base, *flags) == 0
    assert (base / "models" / "kmeans.m").read_bytes() == first


def test_by_default_there_are_as_many_clusters_as_the_square_root_of_the_pictures(base) -> None:
    assert run(base) == 0
    assert len(open_clusters(open_database(base)).centroids) == 10  # of 100 pictures
    centroids, labels = cluster(np.eye(3, dtype=np.float32)[:1], False, 0, 0, np.arange(1))
    assert (centroids.shape, labels.tolist()) == ((1, 3), [0])


def test_features_are_clustered_as_they_are_for_other_metrics(base: Path) -> None:
    assert run(base, "--n-clusters", "5") == 0
    found = open_clusters(open_database(base))
    deep = np.load(base / "all_feat.npy")
    assert not found.normalised
    for number in range(5):
        mean = deep[found.labels == number].mean(0)
        np.testing.assert_allclose(found.centroids[number], mean, rtol=1e-4)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--n-clusters", "101"), "N_CLUSTERS is 101"),
        (("--n-clusters", "-1"), "N_CLUSTERS"),
        (("--dataset-base", "nowhere"), "feature_extractor.py"),
    ],
)
def test_what_is_wrong_is_one_line_and_status_2(base: Path, capsys, flags, said: str) -> None:
    assert run(base, *flags) == 2
    written = capsys.readouterr()
    assert said in written.err
    assert written.err.count("\n") == 1
    assert not (base / "models").exists()


def test_features_that_were_changed_since_are_refused(base: Path, capsys) -> None:
    deep = np.load(base / "all_feat.npy")
    np.save(base / "all_feat.npy", deep + 1)
    assert run(base) == 2
    assert "run: python feature_extractor.py" in capsys.readouterr().err
