"""The engines by name, each with what it searches and what it is expected to find."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from features.database import FeatureDatabase
from search.clusters import KMeansEngine, nprobe_of, open_clusters
from search.engine import Engine
from search.exact import exact_engine
from search.low_precision import Copies
from search.quantised import open_quantised
from search.signals import Signal, describe_distance

ENGINES = {"exact": "exact", "kmeans": "k-means", "milvus": "Milvus"}
# The scripts that make what an engine needs.
SCRIPTS = {"kmeans": "kmeans.py", "milvus": "milvus_push.py"}


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
        return NamedEngine(name, exact_engine(database, signals, device, copies), searched, 1.0)
    if name == "kmeans":
        clusters = open_clusters(database)
        quantised = open_quantised(database, signals, clusters.by_cluster)
        nprobe = nprobe_of(clusters, nprobe, target_recall)
        kmeans = KMeansEngine(signals, clusters, nprobe, quantised)
        searched = f"{nprobe} of {len(clusters.centroids)} clusters"
        recall = float(clusters.recall[nprobe - 1]) if clusters.distance == distance else None
        return NamedEngine(name, kmeans, searched, recall)
    from search.milvus import open_milvus  # its library is an extra

    exact = exact_engine(database, signals, device, copies)
    engine, record = open_milvus(database, signals, milvus or {}, exact)
    searched = f"{engine.candidates:,} candidates of each signal"
    recall = record.recall if record and record.distance == distance else None
    return NamedEngine(name, engine, searched, recall)
