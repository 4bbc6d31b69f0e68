"""Cluster the deep features, so that a query searches a part of the collection only.

Writes models/kmeans.m below DATASET_BASE, with the recall of a query that searches 1, 2 ...
clusters, measured on pictures of the collection.
"""

import time
from collections.abc import Sequence

import numpy as np

from config import DISTANCE
from features.database import DEEP, open_database
from search.clustering import QUERIES, cluster, save_measured
from search.clusters import Clusters, nprobe_of
from search.signals import describe_distance, signals_of
from utils import evenly_spaced, parse_args, run_script

USES = ("DATASET_BASE", *DISTANCE, "N_CLUSTERS", "NPROBE", "TARGET_RECALL", "SEED")


def main(argv: Sequence[str] | None = None) -> None:
    config, _ = parse_args(argv, __doc__ or "", USES)
    database = open_database(config.DATASET_BASE)
    signals = signals_of(database, **config.distance)
    normalised = signals[0].metric == "cosine"

    start = time.perf_counter()
    features = database.deep[0]
    queries = evenly_spaced(len(features), QUERIES)
    centroids, labels = cluster(features, normalised, config.N_CLUSTERS, config.SEED, queries)
    seconds = time.perf_counter() - start

    unmeasured = Clusters(
        centroids=centroids,
        labels=labels,
        features=database.metadata.sha256[DEEP],
        normalised=normalised,
        distance=describe_distance(signals),
        recall=np.zeros(0),
    )
    clusters, path = save_measured(database, signals, unmeasured, queries)

    sizes = np.sort(np.bincount(labels, minlength=len(centroids)))
    print(f"{len(labels):,} pictures in {len(centroids)} clusters: {seconds:.2f} s")
    print(
        f"pictures a cluster: {sizes[0]:,} to {sizes[-1]:,}, median {int(np.median(sizes)):,}\n"
        f"all sizes: {' '.join(map(str, sizes[::-1]))}"
    )
    print(f"distance: {clusters.distance}\n\nclusters searched  recall@10")
    chosen = nprobe_of(clusters, config.NPROBE, config.TARGET_RECALL)
    powers = {2**i for i in range(12) if 2**i < len(centroids)}
    for nprobe in sorted(powers | {chosen, len(centroids)}):
        mark = "  <- a query searches these" if nprobe == chosen else ""
        print(f"{nprobe:>17}  {clusters.recall[nprobe - 1]:9.3f}{mark}")
    print(f"\n{path}")


if __name__ == "__main__":
    run_script(main)
