"""The published protocols on a feature database: queries, gallery and correct answers."""

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np

from evaluation.metrics import (
    Figure,
    category_metrics,
    color_metrics,
    first_hit,
    item_metrics,
    summarise,
)
from features.database import FeatureDatabase
from pictures.collection import read_labelled
from pictures.deepfashion import (
    consumer_list,
    has_color_names,
    has_items,
    inshop_list,
    read_consumer,
    read_inshop,
    read_items,
)
from pictures.table import align
from search.engine import Engine
from search.signals import Signal
from utils import UserError, command, progress_bar

BLOCK = 64  # queries at once
MAX_ANSWERS = 10  # of each query, for the report
UPPER_BODY = 1  # clothes type of list_bbox_inshop.txt
PROTOCOLS = ("inshop", "consumer", "category", "folder")
CONSUMER_TASK = "item, consumer to shop"
MAIN_TASKS = ("category", "item", CONSUMER_TASK)  # the others are parts of the last two

Metrics = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Task:
    """The queries, the gallery and the correct answers of a protocol.

    Attributes
    ----------
    name : what a correct answer has in common with its query: "item", "category" ...
    queries, gallery : rows of the feature database, ascending; a query that lies in the gallery
        is not among its own answers
    labels : of all rows of the feature database; an answer with its query's label is correct
    groups : Q; queries of one group (the views of an item, where items are known) are not
        independent of each other
    metrics : hits Q x N and number of correct pictures Q -> values of each query
    """

    name: str
    queries: np.ndarray
    gallery: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    metrics: Metrics

    @cached_property
    def relevant(self) -> np.ndarray:
        """See `count_relevant`."""
        return count_relevant(self.queries, self.gallery, self.labels)


@dataclass(frozen=True)
class Outcome:
    """The answers of an engine to the queries of a task, compared with the correct ones.

    Attributes
    ----------
    task : the queries and their gallery
    values : of each metric, Q
    chance : expected p@1 (recall@1) of answers in random order
    first : Q, rank of the first correct answer, from 1; 0 where there was none
    answers : Q x `MAX_ANSWERS` rows of the feature database, nearest first; -1 where there are
        fewer
    """

    task: Task
    values: dict[str, np.ndarray]
    chance: float
    first: np.ndarray
    answers: np.ndarray

    def figures(self) -> dict[str, Figure]:
        """The mean of each metric over the queries, with its interval."""
        return {name: summarise(v, self.task.groups) for name, v in self.values.items()}


def of_gallery(signals: Sequence[Signal], gallery: np.ndarray) -> list[Signal]:
    """The signals with a gallery as their collection: rows of it, in its order.

    Metrics that take parameters from the collection keep those of the whole one, so that a gallery
    is ranked as a query of the whole collection is.
    """
    narrowed = [replace(signal, features=signal.features[gallery]) for signal in signals]
    for whole, part in zip(signals, narrowed, strict=True):
        vars(part)["parameters"] = whole.parameters  # where the cached property looks first
    return narrowed


def query_features(task: Task, signals: Sequence[Signal]) -> list[np.ndarray]:
    """Of each signal of the whole feature database, the features of a task's queries: Q x D."""
    return [signal.features[task.queries] for signal in signals]


def count_relevant(queries: np.ndarray, gallery: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Number of correct pictures in the gallery, without the query itself: Q, int64; see `Task`."""
    of_label = dict(zip(*np.unique(labels[gallery], return_counts=True), strict=True))
    counts = np.array([of_label.get(label, 0) for label in labels[queries]], np.int64)
    return counts - np.isin(queries, gallery)


def run_task(task: Task, engine: Engine, features: Sequence[np.ndarray]) -> Outcome:
    """Search with every query of a task and compare the answers with the correct ones.

    Parameters
    ----------
    task : the queries and their gallery
    engine : over the task's gallery, see `of_gallery`
    features : of the queries, see `query_features`
    """
    labels, gallery = task.labels, task.gallery
    inside = np.isin(task.queries, gallery)
    # A query in the gallery has one answer fewer than there are pictures.
    width = len(gallery) - 1 if inside.all() else len(gallery)
    answers = np.full((len(task.queries), MAX_ANSWERS), -1)
    first, values = [], []
    with progress_bar(len(task.queries), f"searching, {task.name}", "query picture") as bar:
        for start in range(0, len(task.queries), BLOCK):
            block = slice(start, start + BLOCK)
            found = engine.search([feature[block] for feature in features], len(gallery))
            hits = np.zeros((len(found), len(gallery)), bool)
            for i, (query, answer) in enumerate(zip(task.queries[block], found, strict=True)):
                rows = gallery[answer.rows]
                rows = rows[rows != query]
                hits[i, : len(rows)] = labels[rows] == labels[query]
                answers[start + i, : len(rows[:MAX_ANSWERS])] = rows[:MAX_ANSWERS]
            first.append(first_hit(hits))
            values.append(task.metrics(hits[:, :width], task.relevant[block]))
            bar.update(len(found))
    return Outcome(
        task,
        {name: np.concatenate([value[name] for value in values]) for name in values[0]},
        float((task.relevant / (len(gallery) - inside)).mean()),
        np.concatenate(first),
        answers,
    )


def category_task(database: FeatureDatabase, val_share: float) -> Task | None:
    """Retrieval by category: every picture of a partition is a query for the others of it.

    The partition is test; of the in-shop part alone query and gallery; of a data set without a
    test part val, see `collection.read_labelled` for `val_share`. Categories that a model has
    assigned are not measured. None where fewer than two of its pictures are in the database.
    """
    names = database.category_names
    labelled = read_labelled(database.base, len(names), val_share, assigned=False)
    parts = set(labelled.partitions.tolist())
    measured = next((p for p in (("test",), ("query", "gallery")) if set(p) & parts), ("val",))
    part = labelled.in_partition(*measured)
    rows = align(part.select(part.categories >= 0).paths, database.paths)
    labels = np.asarray(database.categories)
    rows = np.sort(rows[rows >= 0])
    rows = rows[labels[rows] >= 0]
    if len(rows) < 2:
        return None
    _, groups = np.unique(database.items[rows], return_inverse=True)
    groups = np.where(database.items[rows] != "", groups, -1 - rows)
    return Task("category", rows, rows, labels, groups, category_metrics)


def item_tasks(database: FeatureDatabase, name: str = "item") -> list[Task]:
    """Every query picture searches the gallery for its item.

    Parameters
    ----------
    database : of the data set
    name : "item" for in-shop retrieval, `CONSUMER_TASK` for consumer-to-shop retrieval

    Returns
    -------
    Up to four tasks, on the pictures that are in the database; one without a query or without a
    gallery is omitted: `name` (the published protocol), "item, upper body" (queries and gallery of
    upper-body clothes only), "item and color" (queries whose gallery has their colour), and
    "color" (any item of the query's colour, where colours have names).

    Raises
    ------
    UserError : the benchmark's list is missing or malformed
    """
    pictures = (read_consumer if name == CONSUMER_TASK else read_inshop)(database.base)
    place = align(database.paths, pictures.paths)
    known = place >= 0
    item = np.where(known, pictures.items[place], "")
    part = np.where(known, pictures.partitions[place], "")
    color = np.where(known, pictures.colors[place], "")
    both = np.char.add(np.char.add(item.astype(str), "\n"), color.astype(str))
    queries, gallery = np.flatnonzero(part == "query"), np.flatnonzero(part == "gallery")
    upper = np.where(known, pictures.types[place], 0) == UPPER_BODY
    upper &= ~upper[queries].all()  # else it would be the whole protocol a second time
    uppers = gallery[upper[gallery]]
    colored = queries[(color[queries] != "") & np.isin(both[queries], both[gallery])]
    # Numbers count the colours of one item; only names mean the same for all items.
    named = queries[(color[queries] != "") & ~np.char.isdigit(color[queries].astype(str))]
    named = named if has_color_names(database.base) else named[:0]
    tasks = [
        (name, queries, gallery, item, item_metrics),
        (f"{name}, upper body", queries[upper[queries]], uppers, item, item_metrics),
        ("item and color", colored, gallery, both, item_metrics),
        ("color", named, gallery, color, color_metrics),
    ]
    return [
        Task(what, rows, searched, labels, item[rows], metrics)
        for what, rows, searched, labels, metrics in tasks
        if len(rows) and len(searched)
    ]


def tasks_of(database: FeatureDatabase, protocol: str, val_share: float) -> list[Task]:
    """The tasks of a protocol, the main one first, without those that no answer can be right in.

    Parameters
    ----------
    database : of the data set
    protocol : one of `PROTOCOLS`; folder takes all others, as far as the data set has them
    val_share : as for `category_task`

    Raises
    ------
    UserError : there is no query with a correct picture in the gallery
    """
    base = database.base
    tasks: list[Task] = []
    if protocol in ("category", "folder"):
        task = category_task(database, val_share)
        tasks += [task] if task else []
    if protocol == "inshop" or (protocol == "folder" and inshop_list(base)):
        tasks += item_tasks(database)
    if protocol == "consumer" or (protocol == "folder" and consumer_list(base)):
        tasks += item_tasks(database, CONSUMER_TASK)
    measured = [task for task in tasks if task.relevant.any()]
    advice = extraction_advice(database) if protocol == "folder" or not measured else ""
    if not measured:
        advice = advice or f"see {command('data.py check', base)}"
        which = " with a correct picture in the gallery" if tasks else ""
        raise UserError(
            f"{base}: the feature database holds no query{which} for --protocol {protocol};"
            f" {advice}"
        )
    if advice and protocol == "folder":
        print(f"by category only: {advice}", file=sys.stderr)
    for name in sorted({task.name for task in tasks} - {task.name for task in measured}):
        print(f"same {name}: not measured: no query has a correct answer", file=sys.stderr)
    return measured


def extraction_advice(database: FeatureDatabase) -> str:
    """The command to run where no query or gallery picture of an item was extracted; else ""."""
    if not has_items(database.base):
        return ""
    measured = read_items(database.base).in_partition("query", "gallery")
    if not len(measured) or (align(measured.paths, database.paths) >= 0).any():
        return ""
    again = command("feature_extractor.py", database.base, "--enable-inshop-dataset")
    return f"its pictures of items were not extracted; run: {again}"
