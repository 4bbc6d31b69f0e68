"""The engines on random features, beside other libraries.

Every function returns rows of the table.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy.spatial.distance import cdist

from evaluation.metrics import item_metrics
from evaluation.protocols import Task, of_gallery, query_features, run_task
from features.database import FeatureDatabase, open_database, unit_rows
from search.engine import Answer, Engine, ExactEngine
from search.engines import open_engine
from search.exact import exact_engine
from search.matrix import MatrixEngine
from search.recall import recall_of
from search.signals import Signal, signals_of
from tools.benchmark.inputs import QUERIES, make_database, random_features
from tools.benchmark.rows import Row, compare, compare_times, in_units
from tools.benchmark.sizes import Sizes
from tools.benchmark.timing import Run, interleaved, run_project

K = 10  # answers of a query whose recall is measured
TOP_N = 5  # answers of an exact query, as many as retrieval.py shows
RECALL = 0.99


def queries_of(count: int) -> list[np.ndarray]:
    """Embeddings and colour features of pictures outside the collection."""
    return [features.numpy() for features in random_features(QUERIES, count)]


def search_one(engine: Engine, queries: Sequence[np.ndarray], i: int, k: int) -> Answer:
    """The answer to one of several queries."""
    return engine.search([features[[i]] for features in queries], k)[0]


def open_random(folder: Path, rows: int) -> FeatureDatabase:
    """The feature database of as many random pictures; made where it is not there."""
    base = folder.resolve() / str(rows)
    make_database(base, rows)
    return open_database(base)


def signals_with(database: FeatureDatabase, metric: str, color_weight: float) -> list[Signal]:
    """Deep and colour features, both by one metric."""
    return signals_of(database, (metric, metric), (), color_weight, 0.0)


def loading(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """Opening the feature database."""
    base = open_random(folder, sizes.rows).base
    seconds = interleaved({"open": lambda _: open_database(base)}, 5 * sizes.rounds)["open"]
    met = seconds <= 0.01
    yield Row("opening the feature database", in_units(seconds), target="<= 10 ms", met=met)


def exact_queries(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """One query, and many at once: `cdist`, FAISS, and reading the matrix once."""
    database, queries = open_random(folder, sizes.rows), queries_of(sizes.queries)
    for metric in ("euclidean", "cosine"):
        yield from _exact_queries(database, queries, metric, sizes.rounds)


def _exact_queries(
    database: FeatureDatabase, queries: list[np.ndarray], metric: str, rounds: int
) -> Iterator[Row]:
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    engine = exact_engine(database, signals_with(database, metric, 0.1))
    deep, color = np.array(database.deep[0]), np.array(database.color)
    matrix = torch.from_numpy(deep)
    stored, queried = (unit_rows(x) if metric == "cosine" else x for x in (deep, queries[0]))
    flat = faiss.IndexFlatL2(deep.shape[1])
    flat.add(stored)

    def by_cdist(i: int) -> np.ndarray:
        deep_query, color_query = (features[[i]] for features in queries)
        sums = cdist(deep_query, deep, metric) + 0.1 * cdist(color_query, color, metric)
        return sums[0].argsort(kind="stable")[:TOP_N]

    def here(i: int) -> np.ndarray:
        return search_one(engine, queries, i, TOP_N).rows

    for i in range(3):
        if here(i).tolist() != by_cdist(i).tolist():
            raise RuntimeError(f"{metric}: the answer is not that of cdist")
    one: dict[str, Run] = {
        "here": here,
        "flat": lambda i: flat.search(queried[[i]], TOP_N),
        "read": lambda _: matrix.sum(),
    }
    seconds = interleaved(one, 5 * rounds) | interleaved({"cdist": by_cdist}, rounds)
    what = f"one exact query, {metric}"
    yield compare_times(what, seconds["here"], "cdist", seconds["cdist"], "<= 0.067")
    yield compare_times(what, seconds["here"], "FAISS IndexFlatL2", seconds["flat"], "<= 0.25")
    yield compare_times(what, seconds["here"], "a read of the matrix", seconds["read"], "<= 1")
    many: dict[str, Run] = {
        "here": lambda _: engine.search(queries, TOP_N),
        "flat": lambda _: flat.search(queried, TOP_N),
    }
    seconds = interleaved(many, rounds)
    what = f"{len(queried):,} exact queries at once, {metric}"
    yield compare_times(what, seconds["here"], "FAISS IndexFlatL2", seconds["flat"], "<= 0.6")


def kmeans_queries(folder: Path, sizes: Sizes) -> Iterator[Row]:
    """A k-means query of recall@10 0.99, beside FAISS with as many clusters and that recall."""
    import faiss

    database = open_random(folder, sizes.rows)
    run_project("kmeans.py", database.base, f"--n-clusters={sizes.clusters}", "--color-weight=0")
    signals = signals_with(database, "euclidean", 0.0)
    opened = open_engine(database, signals, "kmeans", 0, RECALL)
    queries = queries_of(min(200, sizes.queries))
    truth = rows_of(exact_engine(database, signals).search(queries, K))
    recall = recall_of(rows_of(opened.engine.search(queries, K)), truth)
    deep = np.array(database.deep[0])
    index = faiss.IndexIVFFlat(faiss.IndexFlatL2(deep.shape[1]), deep.shape[1], sizes.clusters)
    index.train(deep[:: max(1, len(deep) // (1000 * sizes.clusters))])
    index.add(deep)
    index.nprobe, peer_recall = 0, 0.0
    while peer_recall < min(recall, RECALL):
        index.nprobe += 1
        peer_recall = recall_of(list(index.search(queries[0], K)[1]), truth)
    runs: dict[str, Run] = {
        "here": lambda i: search_one(opened.engine, queries, i, K),
        "faiss": lambda i: index.search(queries[0][[i]], K),
    }
    seconds = interleaved(runs, 10 * sizes.rounds)
    what = f"k-means query, {opened.searched}, recall@{K} {recall:.3f}"
    peer = f"FAISS IVF, {index.nprobe} of {sizes.clusters}, {peer_recall:.3f}"
    yield compare_times(what, seconds["here"], peer, seconds["faiss"], "<= 0.5")


def rows_of(answers: Sequence[Answer]) -> list[np.ndarray]:
    """The rows of each answer."""
    return [answer.rows for answer in answers]


def inshop_evaluation(_: Path, sizes: Sizes) -> Iterator[Row]:
    """The in-shop protocol on as many pictures as DeepFashion has."""
    queries, gallery = sizes.evaluated
    rows, items = queries + gallery, max(2, queries // 4)
    features = queries_of(rows)
    signals = [
        Signal(name, matrix, "euclidean", weight)
        for name, matrix, weight in zip(("deep", "color"), features, (1.0, 0.1), strict=True)
    ]
    task = Task(
        name="item",
        queries=np.arange(queries),
        gallery=np.arange(queries, rows),
        labels=np.arange(rows) % items,
        groups=np.arange(queries) % items,
        metrics=item_metrics,
    )
    queried = query_features(task, signals)
    engine, peer = MatrixEngine(of_gallery(signals, task.gallery)), ExactEngine(signals)
    few = [matrix[:64] for matrix in queried]
    runs: dict[str, Run] = {
        "here": lambda _: run_task(task, engine, queried),
        "cdist": lambda _: peer.search(few, gallery, task.gallery),
    }
    seconds = interleaved(runs, 1)
    other = seconds["cdist"] * queries / len(few[0])
    what = f"in-shop evaluation, {queries:,} x {gallery:,}"
    yield compare(
        what, in_units(seconds["here"]), f"cdist and argsort: {in_units(other)}",
        seconds["here"] / other, "<= 0.5",
    )  # fmt: skip
