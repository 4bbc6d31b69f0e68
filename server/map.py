"""A map of the collection: its clusters, and its pictures in two dimensions.

The points are placed by t-SNE (van der Maaten and Hinton, JMLR 2008) of up to `MAX_POINTS`
pictures. It runs once, in the background; until it has finished, the map shows the first two
principal components.
"""

import threading
from collections import Counter

import numpy as np
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from features.database import unit_rows
from search.clusters import open_clusters
from server.live import Collection
from server.schemas import Cluster, CollectionMap, Point
from utils import UserError, evenly_spaced

MAX_POINTS = 2000
PERPLEXITY = 30.0
TYPICAL = 8  # pictures of each cluster


class Maps:
    """Makes the map of a collection when it is first requested, and keeps it."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.version = ""
        self.map: CollectionMap | None = None

    def get(self, collection: Collection) -> CollectionMap:
        """The map of a collection: at once by PCA, and by t-SNE once it has finished."""
        with self.lock:
            if self.map is None or self.version != collection.version:
                rows = evenly_spaced(len(collection), MAX_POINTS)
                vectors = unit_rows(collection.database.deep[0][rows])
                try:
                    clusters, missing = clusters_of(collection), ""
                except UserError as error:
                    clusters, missing = [], collection.hide(str(error))
                points = _points(collection, rows, first_components(vectors))
                self.map = CollectionMap(
                    state="pca", points=points, clusters=clusters, missing=missing
                )
                self.version = collection.version
                arguments = (collection, rows, vectors)
                threading.Thread(target=self._arrange, args=arguments, daemon=True).start()
            return self.map

    def _arrange(self, collection: Collection, rows: np.ndarray, vectors: np.ndarray) -> None:
        points = _points(collection, rows, tsne(vectors))
        with self.lock:
            if self.map and self.version == collection.version:
                self.map = self.map.model_copy(update={"state": "tsne", "points": points})


def first_components(vectors: np.ndarray) -> np.ndarray:
    """The first two principal components: N x D -> N x 2."""
    if len(vectors) == 1:
        return np.zeros((1, 2))
    return PCA(2, random_state=0).fit_transform(vectors)


def tsne(vectors: np.ndarray) -> np.ndarray:
    """Places by t-SNE: N x D -> N x 2; fewer than four pictures by PCA."""
    if len(vectors) < 4:
        return first_components(vectors)
    perplexity = min(PERPLEXITY, (len(vectors) - 1) / 3)
    return TSNE(perplexity=perplexity, random_state=0, n_jobs=1).fit_transform(vectors)


def _points(collection: Collection, rows: np.ndarray, places: np.ndarray) -> list[Point]:
    """Pictures at N x 2 places, scaled to 0 to 1."""
    low, high = places.min(axis=0), places.max(axis=0)
    size = max(float((high - low).max()), 1e-12)
    places = 0.5 + (places.astype(np.float64) - (low + high) / 2) / size
    return [
        Point(**collection.picture(row).model_dump(), x=x, y=y)
        for row, (x, y) in zip(rows.tolist(), places.round(5).tolist(), strict=True)
    ]


def clusters_of(collection: Collection) -> list[Cluster]:
    """The clusters with their most typical pictures, the largest first.

    Raises
    ------
    UserError : they are missing, or of other features
    """
    database = collection.database
    clusters = open_clusters(database)
    found = []
    for number, rows in enumerate(clusters.members):
        if not len(rows):
            continue
        features = database.deep[0][rows]
        features = unit_rows(features) if clusters.normalised else features
        distances = np.linalg.norm(features - clusters.centroids[number], axis=1)
        nearest = rows[np.argsort(distances, kind="stable")[:TYPICAL]].tolist()
        category, count = Counter(map(database.category, rows.tolist())).most_common(1)[0]
        cluster = Cluster(
            number=number,
            size=len(rows),
            category=category,
            share=count / len(rows),
            typical=[collection.picture(row) for row in nearest],
        )
        found.append(cluster)
    return sorted(found, key=lambda cluster: -cluster.size)
