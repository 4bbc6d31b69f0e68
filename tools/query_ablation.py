"""What each method at query time gives and costs, and what each signal adds.

    python -m tools.query_ablation --dataset-base data/mine

Methods: one picture an item, several pictures as one query. All are measured with the exact engine.

    python -m tools.query_ablation --dataset-base data/mine --boxes

Of a collection cut to boxes: what whole query pictures lose, and what found boxes win back.
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import astuple, replace

import numpy as np
import torch
from torchvision.ops import box_iou

from config import DISTANCE
from evaluation.figures import Table
from evaluation.metrics import summarise
from evaluation.protocols import (
    MAIN_TASKS,
    Outcome,
    Task,
    of_gallery,
    query_features,
    run_task,
    tasks_of,
)
from features.database import open_database
from network.device import pick_device
from network.garments import Box
from pictures.collection import read_collection
from pictures.decode import read_picture
from pictures.deepfashion import has_items
from pictures.folder import picture_file
from pictures.table import align
from search import Searcher
from search.duplicates import CollapsedEngine
from search.engine import Engine
from search.matrix import MatrixEngine
from search.query import Query, mean_features
from search.signals import Signal, describe_distance, signals_of
from utils import UserError, evenly_spaced, parse_args, run_script

USES = ("DATASET_BASE", "VAL_SHARE", *DISTANCE, "DUMPED_MODEL", "MODELS", "DEVICE")
MAX_QUERIES = 1000
PERCENT, CHANGE, INTERVAL = "{:.2%}", "{:+.2%}", "{:+.2%} to {:+.2%}"

Cells = tuple[object, ...]


def sample_queries(task: Task, max_queries: int) -> Task:
    """The task with about `max_queries` of its queries, evenly spaced; groups stay whole."""
    _, first, group = np.unique(task.groups, return_index=True, return_inverse=True)
    wanted = max(1, len(first) * max_queries // len(task.queries))
    if wanted >= len(first):
        return task
    chosen = np.argsort(first)[evenly_spaced(len(first), wanted)]
    keep = np.isin(group, chosen)
    return replace(task, queries=task.queries[keep], groups=task.groups[keep])


def _sample_note(sampled: Task, task: Task) -> str:
    if len(sampled.queries) == len(task.queries):
        return f"All {len(task.queries):,} queries."
    return f"{len(sampled.queries):,} of the {len(task.queries):,} queries, evenly spaced."


def _metric_names(task: Task) -> tuple[str, str, str]:
    """The metric that differences are given in, and two more."""
    return ("p@1", "p@10", "map") if task.name == "category" else ("recall@1", "recall@10", "mrr")


def _means(values: dict[str, np.ndarray], task: Task) -> list[float]:
    return [float(values[name].mean()) for name in _metric_names(task)]


def methods_table(task: Task, engine: Engine, signals: Sequence[Signal]) -> Table:
    """Measure every query-time method on up to `MAX_QUERIES` queries of a task.

    `engine` is over the task's gallery, `signals` are of the whole feature database.

    Returns
    -------
    For each method the main metrics, the difference of the first one from plain search with its
    paired 95% interval, and the time of a query.
    """
    sampled = sample_queries(task, MAX_QUERIES)
    features = query_features(sampled, signals)
    methods: dict[str, Engine] = {"plain": engine}
    if task.name == "item":
        items = task.labels[task.gallery]
        methods["best picture of each item"] = CollapsedEngine(engine, items)
    main, *others = _metric_names(task)
    outcomes = {name: _timed(sampled, method, features) for name, method in methods.items()}
    plain = outcomes["plain"][0]
    rows: list[Cells] = []
    for name, (outcome, cost) in outcomes.items():
        difference = summarise(outcome.values[main] - plain.values[main], sampled.groups)
        rows.append((name, *_means(outcome.values, task), *astuple(difference), cost))
    if task.name == "item":
        rows.append(_joint_queries(plain, engine, features))
    return Table(
        f"Query-time methods, same {task.name}",
        f"Difference of {main} from plain search, paired 95% interval; search time of one query."
        f" {_sample_note(sampled, task)}",
        ("", main, *others, "difference", "95% interval", "ms a query"),
        rows,
        ("{}", PERCENT, PERCENT, PERCENT, CHANGE, INTERVAL, "{:.2f}"),
    )


def _timed(task: Task, engine: Engine, features: Sequence[np.ndarray]) -> tuple[Outcome, float]:
    """The outcome, and the time of a query in ms."""
    start = time.perf_counter()
    outcome = run_task(task, engine, features)
    return outcome, 1000 * (time.perf_counter() - start) / len(task.queries)


def _joint_queries(plain: Outcome, engine: Engine, features: Sequence[np.ndarray]) -> Cells:
    """All pictures of an item as one query, compared with the mean of its single queries."""
    task, main = plain.task, _metric_names(plain.task)[0]
    items, first, group = np.unique(
        task.labels[task.queries], return_index=True, return_inverse=True
    )
    members = [group == number for number in range(len(items))]
    single_queries = [mean_features([f[rows] for f in features]) for rows in members]
    joint = [np.concatenate(own) for own in zip(*single_queries, strict=True)]
    by_item = replace(task, queries=task.queries[first], groups=items)
    outcome, cost = _timed(by_item, engine, joint)
    single = np.bincount(group, plain.values[main]) / np.bincount(group)
    difference = summarise(outcome.values[main] - single, items)
    name = f"all pictures of an item as one query ({len(items):,})"
    return (name, *_means(outcome.values, task), *astuple(difference), cost)


def signals_table(task: Task, signals: Sequence[Signal]) -> Table:
    """Measure each signal alone, and what it adds to the others; ranked exactly.

    Parameters
    ----------
    task : the queries and their gallery; up to `MAX_QUERIES` queries are used
    signals : of the whole feature database, with the weights that rank
    """
    sampled = sample_queries(task, MAX_QUERIES)
    main, *others = _metric_names(task)

    def values_of(chosen: Sequence[Signal]) -> dict[str, np.ndarray]:
        engine = MatrixEngine(of_gallery(chosen, task.gallery))
        return run_task(sampled, engine, query_features(sampled, chosen)).values

    every = values_of(signals)
    rows: list[Cells] = [("all", *_means(every, task), None, None)]
    for signal in signals:
        alone = _means(values_of([replace(signal, weight=1.0)]), task)
        rest = [other for other in signals if other is not signal and other.weight]
        adds: Cells = (None, None)
        if signal.weight and rest:
            adds = astuple(summarise(every[main] - values_of(rest)[main], sampled.groups))
        rows.append((f"{signal.name} alone (weight {signal.weight:g})", *alone, *adds))
    return Table(
        f"Signals, same {task.name}, ranked exactly",
        f"Adds: {main} of all signals minus that of all but this one, paired 95% interval."
        f" {_sample_note(sampled, task)}",
        ("", main, *others, "adds", "95% interval"),
        rows,
        ("{}", PERCENT, PERCENT, PERCENT, CHANGE, INTERVAL),
    )


def cuts_table(task: Task, engine: Engine, searcher: Searcher) -> Table:
    """Measure queries cut to their annotated boxes, whole, and cut to the garment that is found.

    `engine` is over the gallery of the task.

    Raises
    ------
    UserError : no query has a box, or the model finds no garments
    """
    database = searcher.database
    base, val_share = database.base, searcher.config.VAL_SHARE
    listed = read_collection(base, len(database.category_names), has_items(base), val_share)
    place = align(database.paths, listed.paths)
    boxes = np.where(place[:, None] >= 0, listed.boxes[place], 0)
    keep = boxes[task.queries, 2] > 0
    if not keep.any():
        raise UserError(f"{base}: no query picture has a box in list_bbox.txt")
    boxed = replace(task, queries=task.queries[keep], groups=task.groups[keep])
    sampled = sample_queries(boxed, MAX_QUERIES)
    cuts: dict[str, list[Box]] = {name: [] for name in ("annotated", "whole", "found")}
    queries: dict[str, list[Query]] = {name: [] for name in cuts}
    for row in sampled.queries.tolist():
        picture = read_picture(picture_file(base, database.paths[row]))
        whole, own = (0, 0, *picture.size), tuple(boxes[row].tolist())
        found = searcher.finder(picture)
        for name, box in zip(cuts, (own, whole, *found[:1], whole), strict=False):
            cuts[name].append(box)
            queries[name].append(searcher.read(picture, box))
    true = torch.tensor(cuts["annotated"])
    outcomes = {
        name: run_task(sampled, engine, searcher.extract(own)) for name, own in queries.items()
    }
    main, *_ = _metric_names(task)
    best = outcomes["annotated"].values[main]
    rows = [
        (
            name,
            float(box_iou(true, torch.tensor(cuts[name])).diagonal().mean()),
            *_means(outcome.values, task),
            *astuple(summarise(outcome.values[main] - best, sampled.groups)),
        )
        for name, outcome in outcomes.items()
    ]
    return Table(
        f"The part of the query pictures that is searched, same {task.name}",
        f"Difference of {main} from annotated boxes, paired 95% interval."
        f" {_sample_note(sampled, boxed)}",
        ("", "IoU", *_metric_names(task), "difference", "95% interval"),
        rows,
        ("{}", "{:.3f}", PERCENT, PERCENT, PERCENT, CHANGE, INTERVAL),
    )


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--boxes", action="store_true", help="see above")


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse_args(
        argv,
        __doc__ or "",
        USES,
        _arguments,
    )
    device = pick_device(config.DEVICE)
    database = open_database(config.DATASET_BASE)
    signals = signals_of(database, **config.distance)
    print(describe_distance(signals))
    for task in tasks_of(database, "folder", config.VAL_SHARE):
        if task.name in MAIN_TASKS:
            engine = MatrixEngine(of_gallery(signals, task.gallery), device)
            if args.boxes:
                print(f"\n{cuts_table(task, engine, Searcher(config.DATASET_BASE, config))}")
                return
            print(f"\n{methods_table(task, engine, signals)}")
            print(f"\n{signals_table(task, signals)}")


if __name__ == "__main__":
    run_script(main)
