"""Speed of the engines on made-up features, beside their peers."""

import os
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.spatial.distance import cdist

import kmeans as kmeans_script
from evaluation.metrics import item_metrics
from evaluation.protocols import Task, gallery_engine, of_gallery, query_features, run_task
from features.database import FeatureDatabase, open_database, unit_rows
from search.clusters import Clusters, KMeansEngine, open_clusters
from search.engine import Answer, Engine, ExactEngine
from search.exact import exact_engine
from search.quantised import open_codes
from search.recall import recall_of
from search.signals import Signal, signals_of
from tools.benchmark.data import made_up, make_database
from tools.benchmark.table import Row, compare_times, in_units

K = 10  # answers that a recall is of; exact queries ask for 5, as a user does
ASKED = 10**9  # seed of the queries: none of them is in the collection
LISTS = 50  # clusters, ours and FAISS's
TARGET = 0.99
PAUSE = 0.003  # s, in which threads of the one before stop spinning; soon after, cores sleep

Run = Callable[[int], Any]


def interleaved(runs: dict[str, Run], rounds: int) -> dict[str, float]:
    """Median seconds of each of some functions, called by turns with the number of the round."""
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for number in range(-1, rounds):
        for name, run in runs.items():
            time.sleep(PAUSE)
            start = time.perf_counter()
            run(number % rounds)
            if number >= 0:  # the first is to warm up
                seconds[name].append(time.perf_counter() - start)
    return {name: statistics.median(values) for name, values in seconds.items()}


def _rows(answers: Sequence[Answer]) -> list[np.ndarray]:
    return [answer.rows for answer in answers]


def _signals(database: FeatureDatabase, metric: str, color_weight: float = 0.1) -> list[Signal]:
    return signals_of(database, (metric, metric), (), color_weight, 0.0)


def exact_queries(base: Path, rounds: int) -> Iterator[Row]:
    """One query, and 1,000 at once: `cdist`, FAISS, and reading the matrix once."""
    import faiss

    faiss.omp_set_num_threads(torch.get_num_threads())
    database = open_database(base)
    queries, colors = made_up(ASKED, 1000)
    deep, color = np.array(database.deep[0]), np.array(database.color)
    matrix = torch.from_numpy(deep)
    for metric in ("euclidean", "cosine"):
        engine = exact_engine(database, _signals(database, metric))
        scaled = [unit_rows(x) if metric == "cosine" else x for x in (deep, queries)]
        flat = faiss.IndexFlatL2(deep.shape[1])
        flat.add(scaled[0])

        def old(i: int, metric: str = metric) -> np.ndarray:
            near = cdist(queries[[i]], deep, metric) + 0.1 * cdist(colors[[i]], color, metric)
            return near[0].argsort(kind="stable")[:5]

        def ours(i: int, engine: Engine = engine) -> list[Answer]:
            return engine.search([queries[[i]], colors[[i]]], 5)

        if any(ours(i)[0].rows.tolist() != old(i).tolist() for i in range(3)):
            raise RuntimeError(f"{metric}: not the answer of cdist")
        runs: dict[str, Run] = {
            "ours": ours,
            "flat": lambda i, flat=flat, asked=scaled[1]: flat.search(asked[[i]], 5),
            "read": lambda _: matrix.sum(),
        }
        seconds = interleaved(runs, 5 * rounds) | interleaved({"cdist": old}, rounds)
        what = f"one exact query, {metric}"
        yield compare_times(what, seconds["ours"], "cdist", seconds["cdist"], 1 / 15)
        yield compare_times(what, seconds["ours"], "FAISS IndexFlatL2", seconds["flat"], 1 / 4)
        yield compare_times(what, seconds["ours"], "a read of the matrix", seconds["read"], 1.0)
        runs = {
            "ours": lambda _, engine=engine: engine.search([queries, colors], 5),
            "flat": lambda _, flat=flat, asked=scaled[1]: flat.search(asked, 5),
        }
        seconds = interleaved(runs, rounds)
        what = f"1,000 exact queries at once, {metric}"
        yield compare_times(what, seconds["ours"], "FAISS IndexFlatL2", seconds["flat"], 0.6)


def kmeans_queries(base: Path, rounds: int) -> Iterator[Row]:
    """As many lists searched as recall@10 of 0.99 takes, of as many, in FAISS and here."""
    import faiss

    database = open_database(base)
    signals = _signals(database, "euclidean", 0.0)
    truth_engine = exact_engine(database, signals)
    queries, colors = made_up(ASKED, 200)
    asked = [queries, colors]
    truth = _rows(truth_engine.search(asked, K))
    clusters = _clusters(base, LISTS)
    codes = open_codes(database, signals, clusters.by_cluster)
    deep = np.array(database.deep[0])
    ivf = faiss.IndexIVFFlat(faiss.IndexFlatL2(deep.shape[1]), deep.shape[1], LISTS)
    ivf.train(deep[:: max(1, len(deep) // (1000 * LISTS))])
    ivf.add(deep)
    ours, our_recall, nprobe = _fewest(
        lambda n: KMeansEngine(signals, clusters, n, codes), asked, truth, LISTS
    )
    theirs, recall = 0, 0.0
    while recall < min(our_recall, TARGET):
        theirs += 1
        ivf.nprobe = theirs
        recall = recall_of(ivf.search(queries, K)[1], truth)
    runs: dict[str, Run] = {
        "ours": lambda i: ours.search([q[[i]] for q in asked], K),
        "ivf": lambda i: ivf.search(queries[[i]], K),
    }
    seconds = interleaved(runs, 10 * rounds)
    what = f"k-means query, {nprobe} of {LISTS} clusters, recall@10 {our_recall:.3f}"
    peer = f"FAISS IVF, {theirs} of {LISTS}, {recall:.3f}"
    yield compare_times(what, seconds["ours"], peer, seconds["ivf"], 0.5)


def _clusters(base: Path, count: int) -> Clusters:
    quietly(
        kmeans_script.main,
        [f"--dataset-base={base}", f"--n-clusters={count}", "--color-weight=0"],
    )
    return open_clusters(open_database(base))


def _fewest(
    engine_of: Callable[[int], Engine], asked: list[np.ndarray], truth: list[np.ndarray], most: int
) -> tuple[Engine, float, int]:
    """The engine of the smallest number that reaches the recall, and that number."""
    for number in range(1, most + 1):
        engine = engine_of(number)
        recall = recall_of(_rows(engine.search(asked, K)), truth)
        if recall >= TARGET or number == most:
            return engine, recall, number
    raise AssertionError


def loading(base: Path, rounds: int) -> Iterator[Row]:
    """Opening the feature database, and what a process's first query takes more than others."""
    seconds = interleaved({"open": lambda _: open_database(base)}, 5 * rounds)["open"]
    yield {
        "what": "opening the feature database",
        "ours": in_units(seconds),
        "peer": "",
        "ratio": None,
        "target": "<= 10 ms",
        "held": seconds <= 0.01,
    }


def quietly(main: Callable[[Sequence[str]], Any], argv: Sequence[str]) -> None:
    """Run a script's main without what it prints."""
    with tempfile.TemporaryFile("w") as away:
        kept = os.dup(1)
        os.dup2(away.fileno(), 1)
        try:
            main(argv)
        finally:
            os.dup2(kept, 1)
            os.close(kept)


def growth(base: Path, count: int, rounds: int) -> Iterator[Row]:
    """Time, memory and recall of each engine on a collection of `count` pictures.

    Yields
    ------
    "engine", "rows", "seconds" of one query, "recall" (recall@10), "bytes" that it reads or holds,
    "making" (seconds to make what it needs).
    """
    make_database(base, count)
    database = open_database(base)
    signals = _signals(database, "euclidean")
    queries = list(made_up(ASKED, 20))
    start = time.perf_counter()
    scan = exact_engine(database, signals)  # makes the codes
    made = time.perf_counter() - start
    truth = _rows(scan.search(queries, K))

    def told(engine: Engine, name: str, size: int, making: float, times: int) -> Row:
        run: dict[str, Run] = {name: lambda i: engine.search([q[[i]] for q in queries], K)}
        seconds = interleaved(run, times)[name]
        recall = recall_of(_rows(engine.search(queries, K)), truth)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        return {
            "engine": name, "rows": count, "seconds": seconds, "recall": recall, "bytes": size,
            "making": making, "peak": peak,
        }  # fmt: skip

    features = sum(signal.features.nbytes for signal in signals)
    coded = features // 4
    yield told(scan, "exact", coded, made, min(10 * rounds, 20))
    lists = max(LISTS, round(count**0.5 / 8))
    start = time.perf_counter()
    clusters = _clusters(base, lists)
    codes = open_codes(database, signals, clusters.by_cluster)
    made = time.perf_counter() - start
    engine, _, nprobe = _fewest(
        lambda n: KMeansEngine(signals, clusters, n, codes), queries, truth, lists
    )
    size = round(coded * nprobe / lists)
    yield told(engine, f"k-means, {nprobe} of {lists}", size, made, 20)
    if features < 8 << 30:
        yield told(ExactEngine(signals), "cdist", features, 0.0, 3)


def inshop_evaluation(_: Path, rounds: int) -> Iterator[Row]:
    """The in-shop protocol with as many pictures as DeepFashion has, by one of its tasks."""
    queries, gallery, items = 14_218, 12_612, 3_985
    rows = queries + gallery
    matrices = zip(("deep", "color"), made_up(ASKED, rows), (1.0, 0.1), strict=True)
    signals = [Signal(name, x, "euclidean", weight) for name, x, weight in matrices]
    task = Task(
        name="item",
        queries=np.arange(queries),
        gallery=np.arange(queries, rows),
        labels=np.arange(rows) % items,
        groups=np.arange(queries) % items,
        metrics=item_metrics,
    )
    narrowed = of_gallery(signals, task.gallery)
    features = query_features(task, signals)
    start = time.perf_counter()
    run_task(task, gallery_engine(signals, task.gallery), features)
    seconds = time.perf_counter() - start
    exact, few = ExactEngine(narrowed), [feature[:64] for feature in features]
    peer = interleaved({"cdist": lambda _: exact.search(few, gallery)}, rounds)["cdist"]
    yield {
        "what": f"in-shop evaluation, {queries:,} x {gallery:,}",
        "ours": in_units(seconds),
        "peer": f"cdist and argsort, by 64 queries: {in_units(peer * queries / 64)}",
        "ratio": round(seconds / (peer * queries / 64), 3),
        "target": "seconds",
        "held": seconds < 60,
    }
