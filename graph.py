"""Build a graph (HNSW) of the feature database, along which a query finds its nearest pictures.

    pip install -r requirements-graph.txt
    python graph.py

Writes models/graph.hnsw below DATASET_BASE, with the recall of a query, measured on pictures that
are not in the graph yet. The pictures that a walk along the graph reaches are ranked exactly.
"""

if __name__ == "__main__":
    import interrupt

    interrupt.catch()

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from command_line import parse_args
from hnsw import LEAST, Graph, K, Space, library, new_index, save_graph, used_signals, walk
from index import (
    Engine,
    ExactEngine,
    Signal,
    describe_distance,
    open_database,
    signals_of,
)
from kmeans import held_out
from scan import exact_engine
from utils import UserError, progress_bar, run_script

EXPANSIONS = [round(12 * 1.1**i) for i in range(55)]  # of a query, 12 to 2062: those measured
QUERIES = 1000  # pictures that it is measured on
DOUBT = 1.0  # standard errors above the target that it must lie: it is reached five times of six
SAMPLE, ASKED = 16384, 64  # pictures, and queries among them, that tell the scale
KEPT = 0.95  # of their true neighbours, that integers must leave among the first 2 K
BLOCK = 8192  # rows at once


def _read(used: Sequence[Signal], rows: np.ndarray) -> list[np.ndarray]:
    """Features of some rows; a UserError where a value is no number."""
    features = [signal.features[rows] for signal in used]
    for signal, part in zip(used, features, strict=True):
        if not np.isfinite(part).all():
            raise UserError(f"{signal.name}: holds NaN or infinity; extract the features again")
    return features


def fit_space(signals: Sequence[Signal]) -> Space:
    """The space for a distance, from up to `SAMPLE` evenly spread pictures.

    Raises
    ------
    UserError : a metric is neither euclidean nor cosine; NaN or infinity in the sample
    """
    used = used_signals(signals)
    rows = held_out(len(used[0].features), SAMPLE)
    sample = _read(used, rows)
    asked = held_out(len(rows), ASKED)
    near = [replace(signal, features=part) for signal, part in zip(used, sample, strict=True)]
    answers = ExactEngine(near).search([part[asked] for part in sample], K)
    typical = np.nan_to_num(np.mean([answer.parts.mean(axis=0) for answer in answers], axis=0))
    scales = [
        math.sqrt(signal.weight / (2 * m if signal.metric != "cosine" and m > 0 else 2))
        for signal, m in zip(used, typical.tolist(), strict=True)
    ]
    space = Space(
        names=[signal.name for signal in used],
        metrics=[signal.metric for signal in used],
        factor=np.repeat(scales, [part.shape[1] for part in sample]),
        offset=np.zeros(1),
        dtype="int8",
    )
    wide = space.place(sample)
    space = replace(space, offset=wide.mean(axis=0))
    size = np.abs(wide - space.offset)
    # Queries may go a little beyond the sample; but a few values far out would coarsen the steps.
    usual = np.quantile(size[:: len(size) // 2048 + 1], 0.9999)
    step = min(1.25 * size.max(), 1.5 * usual) / 127 or 1.0
    space = replace(space, factor=space.factor / step, offset=space.offset / step)
    vectors = torch.from_numpy(space.encode(sample)[0].astype(np.float32))
    found = torch.cdist(vectors[asked], vectors).topk(min(2 * K, len(rows)), largest=False).indices
    pairs = zip(found.numpy(), answers, strict=True)
    kept = np.mean([np.isin(answer.rows, own).mean() for own, answer in pairs])
    return space if kept >= KEPT else replace(space, dtype="float16")


def _add(index: Any, space: Space, used: Sequence[Signal], rows: np.ndarray, title: str) -> None:
    """Add rows to the graph, but for those that have no distance: zeros under cosine."""
    with progress_bar(len(rows), title, "picture") as bar:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            features = _read(used, block)
            vectors, _ = space.encode(features)
            placed = np.ones(len(block), bool)
            for signal, part in zip(used, features, strict=True):
                if signal.metric == "cosine":
                    placed &= part.any(axis=1)
            if placed.any():
                index.add(block[placed], vectors[placed], threads=torch.get_num_threads())
            bar.update(len(block))


def true_answers(exact: Engine, signals: Sequence[Signal], asked: np.ndarray) -> np.ndarray:
    """The `K` pictures nearest to each of Q that are asked with, none of which counts: Q x K.

    -1 where the last of them has equals among the others, so that any of those would do.
    """
    others = np.setdiff1d(np.arange(len(signals[0].features)), asked)
    truth = np.full((len(asked), K), -1)
    with progress_bar(len(asked), "measuring", "picture") as bar:
        for start in range(0, len(asked), ASKED):
            part = asked[start : start + ASKED]
            answers = exact.search([signal.features[part] for signal in signals], K + 1, others)
            for own, answer in zip(truth[start:], answers, strict=False):
                if len(answer.rows) > K and answer.distances[K - 1] < answer.distances[K]:
                    own[:] = answer.rows[:K]
            bar.update(len(part))
    return truth


@dataclass(frozen=True)
class Step:
    """What a query finds with one expansion: see `Graph`; `seconds` are those of its walk."""

    expansion: int
    candidates: int
    recall: float
    seconds: float
    reached: bool


def measure(
    index: Any, count: int, vectors: np.ndarray, truth: np.ndarray, target: float
) -> list[Step]:
    """Recall with growing expansions, up to the first that reaches a target, with few candidates.

    As candidates are ranked exactly, a true answer is found if, and only if, it is one of them.

    Parameters
    ----------
    index : the graph
    count : pictures that it is to have
    vectors : Q x D; of pictures that are not in it yet
    truth : Q x K; their true answers
    target : recall
    """
    steps = []
    for expansion in EXPANSIONS:
        if count < LEAST * expansion:  # then the engine searches exactly
            return [*steps, Step(expansion, expansion, 1.0, math.nan, True)]
        if not len(truth):
            return [Step(EXPANSIONS[-1], EXPANSIONS[-1], math.nan, math.nan, False)]
        start = time.perf_counter()
        found = walk(index, vectors, expansion)
        seconds = (time.perf_counter() - start) / len(vectors)
        place = np.full(truth.shape, expansion)
        for own, rows, near in zip(place, truth, found, strict=True):
            match, at = np.nonzero(rows[:, None] == near)
            own[match] = at
        for candidates in range(K + 2, expansion + 1):
            share = (place < candidates).mean(axis=1)
            error = share.std() / math.sqrt(len(share))
            reached = bool(share.mean() - DOUBT * error >= target)
            if reached or candidates == expansion:
                steps.append(Step(expansion, candidates, float(share.mean()), seconds, reached))
                break
        if reached:
            break
    return steps


def build_graph(
    signals: Sequence[Signal], features: dict[str, str], exact: Engine, target: float
) -> tuple[Graph, list[Step]]:
    """Build a graph, with as many threads as torch has, and measure it.

    It takes the memory of its vectors, and 280 bytes a picture for the links. Only with one thread
    it is the same graph each time.

    Parameters
    ----------
    signals : the terms of the distance
    features : SHA-256 of each matrix
    exact : tells the true answers
    target : recall@10 that a query is to have

    Raises
    ------
    UserError : see `fit_space`; NaN or infinity among the features
    """
    used = used_signals(signals)
    count = len(used[0].features)
    space = fit_space(signals)
    index = new_index(space)
    asked = held_out(count, min(QUERIES, count // 4))
    _add(index, space, used, np.setdiff1d(np.arange(count), asked), "building")
    truth = true_answers(exact, signals, asked)
    vectors, sound = space.encode(_read(used, asked))
    sound &= truth[:, 0] >= 0
    steps = measure(index, count, vectors[sound], truth[sound], target)
    _add(index, space, used, asked, "completing")
    last = steps[-1]
    words = describe_distance(signals)
    return Graph(index, space, last.expansion, last.candidates, last.recall, words, features), steps


def main(argv: Sequence[str] | None = None) -> None:
    config, _ = parse_args(argv, __doc__ or "", ("data set", "ranking", "machine"))
    base = config.DATASET_BASE
    database = open_database(base)
    signals = signals_of(database, **config.distance)
    library()  # what is missing is said before anything is made
    used_signals(signals)
    exact = exact_engine(database, signals)

    start = time.perf_counter()
    graph, steps = build_graph(signals, database.info["sha256"], exact, config.TARGET_RECALL)
    seconds = time.perf_counter() - start
    path = save_graph(base, graph)

    space = graph.space
    print(f"{len(graph.index):,} pictures, {len(space.factor)} x {space.dtype}: {seconds:.2f} s")
    print(f"distance: {graph.distance}\n\nexpansion  candidates  recall@10   walk, ms")
    for step in steps[::-3][::-1]:
        mark = "  <- of a query" if step is steps[-1] else ""
        numbers = f"{step.expansion:>9}  {step.candidates:>10}  {step.recall:9.3f}"
        print(f"{numbers}  {1000 * step.seconds:9.3f}{mark}")
    if not steps[-1].reached:
        print(f"TARGET_RECALL, {config.TARGET_RECALL:g}, is not reached")
    print(f"\n{path}")


if __name__ == "__main__":
    run_script(main)
