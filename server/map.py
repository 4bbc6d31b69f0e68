"""A map of the collection: its clusters, and its pictures in two dimensions.

The places are those of t-SNE (van der Maaten and Hinton, JMLR 2008) of up to `POINTS` pictures,
begun at their first principal components, which are shown until it is done. It is made once, in the
background, and kept in models/map.npz.
"""

import threading
from collections import Counter
from pathlib import Path

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from features.arrays import archive
from features.database import DEEP, FeatureDatabase, unit_rows
from search.clusters import open_clusters
from server.collection import Collection
from server.schemas import Cluster, CollectionMap, Point
from utils import UserError, atomic_write

MAP = "models/map.npz"
POINTS = 2000
COMPONENTS = 50  # that t-SNE starts from, as its authors do
PERPLEXITY = 30.0
TYPICAL = 8  # pictures of each cluster


class Maps:
    """Makes the map of a collection when it is first asked for, and keeps it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.version = ""
        self.map: CollectionMap | None = None

    def of(self, collection: Collection) -> CollectionMap:
        """The map of a collection: at once, and better when it is asked for again."""
        with self.lock:
            if self.map is None or self.version != collection.version:
                database = collection.database
                rows, vectors = _sample(database)
                places = _read(database, len(rows))
                state = "pca" if places is None else "tsne"
                self.version = collection.version
                if places is None:
                    places = _spread(vectors[:, :2])
                    arguments = (collection, rows, vectors)
                    threading.Thread(target=self._improve, args=arguments, daemon=True).start()
                self.map = _as_map(collection, state, rows, places)
            return self.map

    def _improve(self, collection: Collection, rows: np.ndarray, vectors: np.ndarray) -> None:
        places = _spread(project(vectors))
        _write(collection.database, places)
        better = _as_map(collection, "tsne", rows, places)
        with self.lock:
            if self.version == collection.version:
                self.map = better


def project(vectors: np.ndarray) -> np.ndarray:
    """Vectors N x D, by principal components, -> places N x 2."""
    count = len(vectors)
    if count < 4:
        return np.pad(vectors, ((0, 0), (0, 2)))[:, :2]
    begin = vectors[:, :2] / max(vectors[:, 0].std(), 1e-12) * 1e-4
    tsne = TSNE(init=begin, perplexity=min(PERPLEXITY, (count - 1) / 3), random_state=0, n_jobs=1)
    return tsne.fit_transform(vectors)


def _sample(database: FeatureDatabase) -> tuple[np.ndarray, np.ndarray]:
    """Evenly spread rows, and their deep features by principal components."""
    count = len(database.categories)
    rows = np.unique(np.linspace(0, count - 1, min(count, POINTS)).astype(np.int64))
    features = unit_rows(database.deep[0][rows])
    most = min(COMPONENTS, *features.shape)
    vectors = PCA(most, random_state=0).fit_transform(features)
    return rows, np.pad(vectors, ((0, 0), (0, max(0, 2 - most)))).astype(np.float32)


def _spread(places: np.ndarray) -> np.ndarray:
    """Places within 0 to 1, both axes on one scale."""
    low, high = places.min(axis=0), places.max(axis=0)
    size = max(float((high - low).max()), 1e-12)
    return 0.5 + (places - (low + high) / 2) / size


def _read(database: FeatureDatabase, count: int) -> np.ndarray | None:
    """The places kept for these features."""
    try:
        with np.load(database.base / MAP, allow_pickle=False) as file:
            places = file["places"]
            same = str(file["features"]) == database.metadata.sha256[DEEP]
    except Exception:  # whatever is wrong with it, it is made anew
        return None
    sound = places.shape == (count, 2) and places.dtype == np.float32 and np.isfinite(places).all()
    return places if same and sound else None


def _write(database: FeatureDatabase, places: np.ndarray) -> Path | None:
    path = database.base / MAP
    try:
        with atomic_write(path) as part:
            features = database.metadata.sha256[DEEP]
            part.write_bytes(archive(places=places.astype(np.float32), features=features))
    except UserError:  # a read-only folder: then it is made anew next time
        return None
    return path


def _as_map(
    collection: Collection, state: str, rows: np.ndarray, places: np.ndarray
) -> CollectionMap:
    items = [collection.item(row) for row in rows.tolist()]
    points = [
        Point(id=item.id, x=x, y=y, category=item.category, image=item.image)
        for item, (x, y) in zip(items, places.astype(np.float64).round(5).tolist(), strict=True)
    ]
    try:
        return CollectionMap(
            state=state, points=points, clusters=clusters_of(collection), missing=""
        )
    except UserError as error:
        missing = collection.hide(str(error))
        return CollectionMap(state=state, points=points, clusters=[], missing=missing)


def clusters_of(collection: Collection) -> list[Cluster]:
    """The clusters with their most typical pictures, the greatest first.

    Raises
    ------
    UserError : they are missing, or of other features
    """
    clusters = open_clusters(collection.database)
    ends = np.cumsum(np.bincount(clusters.labels, minlength=len(clusters.centroids)))
    told = []
    members = np.split(clusters.by_cluster, ends[:-1])
    for number, (rows, centroid) in enumerate(zip(members, clusters.centroids, strict=True)):
        if not len(rows):
            continue
        rows = np.sort(rows)
        features = collection.database.deep[0][rows]
        features = unit_rows(features) if clusters.normalised else features
        order = np.argsort(np.linalg.norm(features - centroid, axis=1), kind="stable")
        names = Counter(collection.database.category(row) for row in rows.tolist())
        category, count = names.most_common(1)[0]
        typical = [collection.item(row) for row in rows[order[:TYPICAL]].tolist()]
        share = count / len(rows)
        told.append(
            Cluster(number=number, size=len(rows), category=category, share=share, typical=typical)
        )
    return sorted(told, key=lambda cluster: -cluster.size)
