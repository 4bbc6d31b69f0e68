"""Deep features -> clusters, and the recall of a search of some of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from features.database import DEEP, FeatureDatabase, unit_rows
from search.clusters import CLUSTERS, Clusters, open_clusters, save_clusters
from search.engine import Engine
from search.exact import exact_engine
from search.quantised import open_quantised
from search.recall import nearest_others
from search.signals import Signal, describe_distance, signals_of
from utils import UserError, command, evenly_spaced

FITTED = 256  # rows for each cluster, as in FAISS: k-means gains next to nothing by more
QUERIES = 200  # pictures that the recall is measured with
ANSWERS = 10  # of each
BLOCK = 8192  # rows at once
STALE = 0.2  # share of pictures assigned later, above which to cluster again


def cluster(
    features: np.ndarray, normalised: bool, n_clusters: int, seed: int, queries: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """k-means, started by k-means++, on up to `FITTED` evenly spaced rows for each cluster.

    Parameters
    ----------
    features : N x D, float32
    normalised : scale them to length 1 first
    n_clusters : K; 0: the square root of N
    seed : of the start
    queries : rows to measure the recall with; not fitted to where there are enough others

    Returns
    -------
    Centroids K x D, float32, and the cluster of each row, N, int32: that of its nearest centroid.

    Raises
    ------
    UserError : fewer rows than clusters, or a value that is no number
    """
    from sklearn.cluster import KMeans  # 2 s, which an extraction seldom needs

    def read(rows: np.ndarray) -> np.ndarray:
        return unit_rows(features[rows]) if normalised else features[rows]

    count = len(features)
    n_clusters = n_clusters or math.isqrt(count)
    if count < n_clusters:
        raise UserError(
            f"N_CLUSTERS is {n_clusters}, but there are {count} pictures; lower it: --n-clusters"
        )
    if not np.isfinite([features.min(), features.max()]).all():
        raise UserError(f"{DEEP}: holds NaN or infinity; extract the features again")
    others = np.setdiff1d(np.arange(count), queries)
    rows = others if len(others) >= max(n_clusters, len(queries)) else np.arange(count)
    places = evenly_spaced(len(rows), FITTED * n_clusters)
    fitted = KMeans(n_clusters, n_init="auto", random_state=seed).fit(read(rows[places]))
    centroids = fitted.cluster_centers_.astype(np.float32)
    return centroids, nearest_centroids(features, centroids, normalised)


def nearest_centroids(features: np.ndarray, centroids: np.ndarray, normalised: bool) -> np.ndarray:
    """The nearest of K centroids of each row: N x D, K x D -> N, int32."""
    from sklearn.metrics import pairwise_distances_argmin

    labels = [np.empty(0, np.int32)]
    for start in range(0, len(features), BLOCK):
        block = features[start : start + BLOCK]
        block = unit_rows(block) if normalised else block
        labels.append(pairwise_distances_argmin(block, centroids).astype(np.int32))
    return np.concatenate(labels)


def measure_recall(
    signals: Sequence[Signal], clusters: Clusters, exact: Engine, queries: np.ndarray
) -> np.ndarray:
    """Recall@10 of the k-means engine against the exact one, for every number of clusters.

    Candidates are ranked exactly: one of the true 10 nearest is found if, and only if, its cluster
    is searched. So one exact search gives the recall for all numbers of clusters.

    Parameters
    ----------
    signals : the terms of the distance
    clusters : of the first signal's features; their `recall` is not read
    exact : ranks the whole collection by the same signals
    queries : rows of the collection used as queries; each is excluded from its own answer

    Returns
    -------
    K, float64: the share of the true answers found with 1, 2 ... K clusters searched.
    """
    order = clusters.order(signals[0].features[queries])
    rank = np.argsort(order, axis=1)  # of each cluster, in each query's order
    found = np.zeros(len(clusters.centroids))
    searched = np.arange(1, len(found) + 1)
    sizes = np.bincount(clusters.labels, minlength=len(found))
    least = (np.cumsum(sizes[order], axis=1) <= ANSWERS).sum(1) + 1  # that have as many others
    total = 0
    for i, truth in enumerate(nearest_others(exact, signals, queries, ANSWERS)):
        ranks = rank[i, clusters.labels[truth]]
        found += (ranks[:, None] < np.maximum(searched, least[i])).sum(0)
        total += len(truth)
    return found / max(total, 1)


def save_measured(
    database: FeatureDatabase, signals: Sequence[Signal], clusters: Clusters, queries: np.ndarray
) -> tuple[Clusters, Path]:
    """Measure the recall of clusters, and save them and the quantised features in their order.

    Parameters as for `measure_recall`. Returns the clusters with their recall, and their file.
    """
    recall = measure_recall(signals, clusters, exact_engine(database, signals), queries)
    clusters = replace(clusters, recall=recall)
    path = save_clusters(database.base, clusters)
    open_quantised(database, signals, clusters.by_cluster)  # so that no query has to make them
    return clusters, path


def follow(distance: Mapping[str, Any], database: FeatureDatabase) -> None:
    """Update the clusters, if there are any, after the database that they belong to was updated.

    Every picture is assigned to its nearest centroid, and the recall is measured again. A message
    says when many pictures came later. Clusters of other features stay: a query refuses them.

    Parameters
    ----------
    distance : the arguments of `signals_of`
    database : the updated one
    """
    before = database.metadata.follows
    if not before or not (database.base / CLUSTERS).exists():
        return
    try:
        old = open_clusters(database, before)
    except UserError:  # they have been updated already, or never belonged to it
        return
    signals = signals_of(database, **distance)
    labels = nearest_centroids(database.deep[0], old.centroids, old.normalised)
    moved = replace(
        old,
        labels=labels,
        features=database.metadata.sha256[DEEP],
        distance=describe_distance(signals),
        assigned=old.assigned + database.metadata.came,
    )
    _, path = save_measured(database, signals, moved, evenly_spaced(len(labels), QUERIES))
    print(f"{path}: follows the update")
    if moved.assigned > STALE * len(labels):
        print(
            f"{moved.assigned:,} of {len(labels):,} pictures came after the clusters were made;"
            f" cluster again: {command('kmeans.py', database.base)}"
        )
