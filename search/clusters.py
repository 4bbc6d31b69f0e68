"""The clusters of a feature database on disk, and the engine that searches some of them only."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from scipy.spatial.distance import cdist

from features.arrays import archive, read_archive
from features.database import DEEP, FeatureDatabase, unit_rows
from search.engine import Answer, ExactEngine
from search.exact import ScanEngine
from search.matrix import MIN_SHARE
from search.quantised import Quantised
from search.signals import Signal
from utils import UserError, atomic_write, command

CLUSTERS = "models/kmeans.m"
FORMS = {  # of its arrays, see `read_archive`
    "centroids": ("f", 2),
    "labels": ("i", 1),
    "features": ("U", 0),
    "normalised": ("b", 0),
    "distance": ("U", 0),
    "recall": ("f", 1),
    "assigned": ("i", 0),
}


@dataclass(frozen=True)
class Clusters:
    """K clusters of a feature database's deep features.

    Attributes
    ----------
    centroids : K x D, float32
    labels : N, int32; the cluster of each picture
    features : SHA-256 of the all_feat.npy they belong to
    normalised : features were scaled to length 1 first, as a cosine distance wants it
    distance : the distance that `recall` was measured with
    recall : K, float64; recall@10 against the exact engine with 1, 2 ... K clusters searched
    assigned : pictures that came after the clusters were made
    """

    centroids: np.ndarray
    labels: np.ndarray
    features: str
    normalised: bool
    distance: str
    recall: np.ndarray
    assigned: int = 0

    @cached_property
    def by_cluster(self) -> np.ndarray:
        """All rows, cluster by cluster, ascending in each: N, int64."""
        return self._sort(np.arange(len(self.labels)))

    @cached_property
    def members(self) -> list[np.ndarray]:
        """The rows of each cluster, ascending: K arrays, int64."""
        return self._split(self.by_cluster)

    def among(self, rows: np.ndarray) -> list[np.ndarray]:
        """Those of some ascending rows that are in each cluster: K arrays."""
        return self._split(self._sort(rows))

    def _sort(self, rows: np.ndarray) -> np.ndarray:
        labels = self.labels[rows]
        few = len(self.centroids) <= np.iinfo(np.uint16).max  # NumPy sorts 16 bits by radix
        return rows[np.argsort(labels.astype(np.uint16) if few else labels, kind="stable")]

    def _split(self, rows: np.ndarray) -> list[np.ndarray]:
        sizes = np.bincount(self.labels[rows], minlength=len(self.centroids))
        return np.split(rows, np.cumsum(sizes)[:-1])

    def order(self, queries: np.ndarray) -> np.ndarray:
        """Clusters by the distance of their centroids, nearest first: Q x D -> Q x K."""
        queries = unit_rows(queries) if self.normalised else queries
        return np.argsort(cdist(queries, self.centroids), axis=1, kind="stable")


def save_clusters(base: Path, clusters: Clusters) -> Path:
    """Write models/kmeans.m: an .npz archive of plain arrays."""
    path = base / CLUSTERS
    with atomic_write(path) as part:
        part.write_bytes(archive(**{f.name: getattr(clusters, f.name) for f in fields(clusters)}))
    return path


def open_clusters(database: FeatureDatabase, features: str = "") -> Clusters:
    """Read models/kmeans.m.

    Parameters
    ----------
    database : beside which it lies
    features : SHA-256 of the all_feat.npy that it is to belong to; "": of the database

    Raises
    ------
    UserError : it is missing, damaged or of other features
    """
    path = database.base / CLUSTERS
    again = f"run: {command('kmeans.py', database.base)}"
    if not path.is_file():
        raise UserError(f"{path}: no clusters; {again}")
    try:
        found = read_archive(path, FORMS)
        values: dict[str, Any] = {k: v if v.ndim else v.item() for k, v in found.items()}
        clusters = Clusters(**values)
    except ValueError as error:
        raise UserError(f"{path}: cannot be read ({error}); {again}") from None
    if clusters.features != (features or database.metadata.sha256[DEEP]):
        raise UserError(f"{path}: clusters of other features than {DEEP}; {again}")
    count, dim = database.deep[0].shape
    count, number = len(clusters.labels) if features else count, len(clusters.centroids)
    shapes = (clusters.centroids.shape, clusters.labels.shape, clusters.recall.shape)
    whole = shapes == ((number, dim), (count,), (number,))
    if not (whole and 0 <= clusters.labels.min() <= clusters.labels.max() < number):
        raise UserError(f"{path}: not the clusters of {count:,} pictures x {dim}; {again}")
    return clusters


def nprobe_of(clusters: Clusters, nprobe: int, target_recall: float) -> int:
    """The clusters to search: `nprobe`, or where that is 0 the fewest that reach a recall."""
    reached = clusters.recall >= target_recall
    most = len(clusters.centroids)
    return min(nprobe or (int(reached.argmax()) + 1 if reached.any() else most), most)


class KMeansEngine:
    """Ranks the pictures of the clusters nearest to the query, exactly.

    Parameters
    ----------
    signals : the terms of the distance; the first is the clustered one
    clusters : of its features
    nprobe : clusters to search, see `nprobe_of`
    quantised : of the signals that have a weight, in the order `clusters.by_cluster`; None where
        there are none
    fill : search more clusters where those hold fewer pictures than a search wants
    """

    def __init__(
        self,
        signals: Sequence[Signal],
        clusters: Clusters,
        nprobe: int,
        quantised: Sequence[Quantised] | None = None,
        fill: bool = True,
    ) -> None:
        self.exact = ExactEngine(signals)
        self.clusters = clusters
        self.nprobe = nprobe
        self.fill = fill
        self.members = clusters.members
        self.ends = np.cumsum([len(rows) for rows in self.members])
        self.scan = ScanEngine(signals, quantised, clusters.by_cluster) if quantised else None

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`; what lies in none of the `nprobe` nearest clusters is missed.

        Clusters without a picture to search do not count.
        """
        members = self.members if rows is None else self.clusters.among(rows)
        sizes = np.array([len(m) for m in members])
        answers = []
        for i, order in enumerate(self.clusters.order(queries[0])):
            query = [features[i : i + 1] for features in queries]
            order = order[sizes[order] > 0]
            least = int(np.searchsorted(np.cumsum(sizes[order]), k)) + 1 if self.fill else 0
            order = order[: max(self.nprobe, least)]
            searched = [members[cluster] for cluster in order]
            if self.scan and rows is None and sizes[order].sum() >= MIN_SHARE * k:
                ends = self.ends[order].tolist()
                places = [slice(e - len(m), e) for e, m in zip(ends, searched, strict=True)]
                answers.append(self.scan.search_places(query, k, places))
            else:
                answers += self.exact.search(query, k, np.sort(np.concatenate(searched)))
        return answers
