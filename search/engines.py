"""The engines by name, each with what it searches and what it is expected to find."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from features.database import FeatureDatabase
from search.clusters import CLUSTERS, KMeansEngine, nprobe_of, open_clusters
from search.engine import Engine
from search.exact import exact_engine
from search.low_precision import Copies
from search.quantised import open_quantised
from search.signals import Signal, describe_distance
from utils import command, print_once

ENGINES = {"exact": "exact", "kmeans": "k-means", "milvus": "Milvus"}
# The scripts that make what an engine needs.
SCRIPTS = {"kmeans": "kmeans.py", "milvus": "milvus_push.py"}
MAX_EXACT = 1_000_000  # pictures that an exact search is good for


@dataclass(frozen=True)
class NamedEngine:
    """An engine with its description.

    Attributes
    ----------
    name : one of `ENGINES`
    engine : ranks the collection
    searched : what it searches, as text
    recall : expected recall@10 against the exact engine; None where it was not measured with this
        distance
    """

    name: str
    engine: Engine
    searched: str
    recall: float | None


def advise_clusters(recall: float | None, target_recall: float) -> None:
    """Print one line, once, where k-means searches fewer clusters than TARGET_RECALL needs."""
    if recall is not None and recall < target_recall:
        print_once(
            f"k-means finds {recall:.1%} of the nearest pictures, TARGET_RECALL is"
            f" {target_recall:.1%}: set NPROBE to 0 (as many clusters as that takes), or higher"
        )


def advise_engine(database: FeatureDatabase) -> None:
    """Print one line, once, where another engine serves a collection better than the exact one."""
    count = len(database.categories)
    if count > MAX_EXACT:
        ready = (database.base / CLUSTERS).is_file()
        first = "" if ready else f"run: {command('kmeans.py', database.base)}; then "
        better = f"the k-means engine answers sooner; {first}use --engine kmeans"
        print_once(f"{count:,} pictures: {better}")


def open_engine(
    database: FeatureDatabase,
    signals: Sequence[Signal],
    name: str,
    nprobe: int,
    target_recall: float,
    milvus: Mapping[str, Any] | None = None,
    device: torch.device | None = None,
    copies: Copies | None = None,
) -> NamedEngine:
    """Open an engine of a feature database.

    Parameters
    ----------
    name : one of `ENGINES`
    nprobe, target_recall : the settings NPROBE and TARGET_RECALL
    milvus : the settings `Config.milvus`, for the engine of that name
    device, copies : see `MatrixEngine`

    Raises
    ------
    UserError : what the engine needs is missing, damaged or of other features
    AwayError : a server does not answer, or not yet
    """
    distance = describe_distance(signals)
    if name == "exact":
        searched = f"all {len(database.categories):,} pictures, {distance}"
        if not device or device.type != "cuda":
            advise_engine(database)
        return NamedEngine(name, exact_engine(database, signals, device, copies), searched, 1.0)
    if name == "kmeans":
        clusters = open_clusters(database)
        quantised = open_quantised(database, signals, clusters.by_cluster)
        nprobe = nprobe_of(clusters, nprobe, target_recall)
        kmeans = KMeansEngine(signals, clusters, nprobe, quantised)
        searched = f"{nprobe} of {len(clusters.centroids)} clusters"
        recall = float(clusters.recall[nprobe - 1]) if clusters.distance == distance else None
        advise_clusters(recall, target_recall)
        return NamedEngine(name, kmeans, searched, recall)
    from search.milvus import open_milvus  # its library is an extra

    exact = exact_engine(database, signals, device, copies)
    engine, record = open_milvus(database, signals, milvus or {}, exact)
    searched = f"{engine.candidates:,} candidates of each signal"
    recall = record.recall if record and record.distance == distance else None
    return NamedEngine(name, engine, searched, recall)
