"""Cluster the deep features, so that a query need not look at every picture.

Writes models/kmeans.m below DATASET_BASE, with the recall of a query that searches 1, 2 ...
clusters, measured on pictures of the collection.
"""

import time
from collections.abc import Sequence

import numpy as np
from sklearn.cluster import KMeans

from clusters import Clusters, by_cluster_of, save_clusters
from codes import open_codes
from command_line import parse_args
from index import (
    DEEP,
    ExactEngine,
    Signal,
    describe_distance,
    open_database,
    signals_of,
    unit_rows,
)
from utils import UserError, run_script, sha256_of


def cluster(features: np.ndarray, n_clusters: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """k-means, started by k-means++.

    Parameters
    ----------
    features : N x D, float32
    n_clusters : K
    seed : of the start

    Returns
    -------
    Centroids K x D, float32, and the cluster of each row, N, int32.

    Raises
    ------
    UserError : fewer rows than clusters, or a value that is no number
    """
    if len(features) < n_clusters:
        raise UserError(f"N_CLUSTERS is {n_clusters}, but there are {len(features)} pictures")
    if not np.isfinite(features).all():
        raise UserError(f"{DEEP}: holds NaN or infinity; extract the features again")
    fitted = KMeans(n_clusters, n_init="auto", random_state=seed).fit(features)
    return fitted.cluster_centers_.astype(np.float32), fitted.labels_.astype(np.int32)


def measure_recall(
    signals: Sequence[Signal], clusters: Clusters, queries: int = 200, k: int = 10
) -> np.ndarray:
    """Recall@k of the k-means engine against the exact one, for every number of clusters.

    Candidates are ranked exactly, so one of the true k nearest is found if, and only if, its
    cluster is searched: one exact search tells the recall for all numbers at once.

    Parameters
    ----------
    signals : the terms of the distance
    clusters : of the first signal's features; their `recall` is not read
    queries : pictures of the collection to ask with, evenly spread; each is left out of its answer
    k : answers to compare

    Returns
    -------
    K, float64: the share of the true answers found with 1, 2 ... K clusters searched.
    """
    count = len(clusters.labels)
    asked = np.unique(np.linspace(0, count - 1, min(queries, count)).astype(np.int64))
    features = [signal.features[asked] for signal in signals]
    order = clusters.order(features[0])
    rank = np.argsort(order, axis=1)  # of each cluster, in each query's order
    found = np.zeros(len(clusters.centroids))
    total = 0
    for i, answer in enumerate(ExactEngine(signals).search(features, k + 1)):
        truth = answer.rows[answer.rows != asked[i]][:k]
        ranks = rank[i, clusters.labels[truth]]
        found += (ranks[:, None] <= np.arange(len(found))).sum(0)
        total += len(truth)
    return found / max(total, 1)


def main(argv: Sequence[str] | None = None) -> None:
    config, _ = parse_args(argv, __doc__ or "", ("data set", "ranking", "machine"))
    database = open_database(config.DATASET_BASE)
    if sha256_of(config.DATASET_BASE / DEEP) != database.info["sha256"][DEEP]:
        raise UserError(
            f"{config.DATASET_BASE / DEEP}: not the features that all_feat.json describes;"
            f" run: python feature_extractor.py --dataset-base {config.DATASET_BASE}"
        )
    signals = signals_of(database, **config.distance)
    normalised = signals[0].metric == "cosine"

    start = time.perf_counter()
    features = np.array(database.deep[0])
    features = unit_rows(features) if normalised else features
    centroids, labels = cluster(features, config.N_CLUSTERS, config.SEED)
    seconds = time.perf_counter() - start

    fitted = {
        "centroids": centroids,
        "labels": labels,
        "features": database.info["sha256"][DEEP],
        "normalised": normalised,
        "distance": describe_distance(signals),
    }
    recall = measure_recall(signals, Clusters(**fitted, recall=np.zeros(0)))
    clusters = Clusters(**fitted, recall=recall)
    path = save_clusters(config.DATASET_BASE, clusters)
    open_codes(database, signals, by_cluster_of(clusters))  # so that no query has to make them

    sizes = np.sort(np.bincount(labels, minlength=len(centroids)))
    print(f"{len(labels):,} pictures in {len(centroids)} clusters: {seconds:.2f} s")
    print(
        f"pictures a cluster: {sizes[0]:,} to {sizes[-1]:,}, median {int(np.median(sizes)):,}\n"
        f"all sizes: {' '.join(map(str, sizes[::-1]))}"
    )
    print(f"distance: {fitted['distance']}\n\nclusters searched  recall@10")
    steps = {2**i for i in range(12)} | {config.NPROBE, len(centroids)}
    for nprobe in sorted(step for step in steps if step <= len(centroids)):
        mark = "  <- NPROBE" if nprobe == config.NPROBE else ""
        print(f"{nprobe:>17}  {recall[nprobe - 1]:9.3f}{mark}")
    print(f"\n{path}")


if __name__ == "__main__":
    run_script(main)
