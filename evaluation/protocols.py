"""Who asks whom, and which answers are right: the published protocols on a feature database."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np

from evaluation.metrics import Figure, category_measures, color_measures, item_measures, summarise
from features.database import FeatureDatabase
from pictures.annotations import align, has_color_names, read_inshop
from pictures.collection import read_labelled
from search.engine import Engine
from search.signals import Signal
from utils import progress_bar

BLOCK = 64  # queries at once
SHOWN = 10  # answers of each query that are kept for a report
UPPER = 1  # clothes type of list_bbox_inshop.txt

Measures = Callable[[np.ndarray, np.ndarray], dict[str, np.ndarray]]


@dataclass(frozen=True)
class Task:
    """A protocol's queries, gallery and truth.

    Attributes
    ----------
    name : what an answer has to share with its query, as in "item" or "category"
    queries, gallery : rows of the feature database, ascending; a query that lies in the gallery
        does not answer itself
    labels : of all rows of the feature database; an answer with its query's label is right
    groups : Q; queries of one group (the views of an item, where items are known) are not
        independent of each other
    measures : hits Q x N and number of right pictures Q -> values of each query
    """

    name: str
    queries: np.ndarray
    gallery: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    measures: Measures

    @cached_property
    def relevant(self) -> np.ndarray:
        """See `relevant_of`."""
        return relevant_of(self.queries, self.gallery, self.labels)


@dataclass(frozen=True)
class Outcome:
    """How an engine did on a task.

    Attributes
    ----------
    task : what was asked
    values : of each measure, Q
    chance : expected p@1 (recall@1) of answers in random order
    first : Q, rank of the first right answer, from 1; 0 where there was none
    answers : Q x up to 10 rows of the feature database, nearest first; -1 where there are fewer
    """

    task: Task
    values: dict[str, np.ndarray]
    chance: float
    first: np.ndarray
    answers: np.ndarray

    def figures(self) -> dict[str, Figure]:
        """The mean of each measure over the queries, with its interval."""
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


def relevant_of(queries: np.ndarray, gallery: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """How many right pictures, itself not among them, the gallery has for each query: Q, int64.

    Parameters
    ----------
    queries, gallery, labels : as in `Task`
    """
    of_label = dict(zip(*np.unique(labels[gallery], return_counts=True), strict=True))
    counts = np.array([of_label.get(label, 0) for label in labels[queries]], np.int64)
    return counts - np.isin(queries, gallery)


def judge(
    task: Task, block: slice, found: Sequence[np.ndarray]
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Compare the answers to some queries of a task with the truth.

    Parameters
    ----------
    task : what was asked
    block : the places of q queries among the task's
    found : of each of them places in the gallery, nearest first

    Returns
    -------
    answers : q x up to `SHOWN` rows of the feature database, -1 where there are fewer
    first : q, rank of the first right answer, 0 where there is none
    values : of each measure, q
    """
    labels, gallery, queries = task.labels, task.gallery, task.queries[block]
    hits = np.zeros((len(queries), len(gallery)), bool)
    answers = np.full((len(queries), SHOWN), -1)
    for i, (query, places) in enumerate(zip(queries, found, strict=True)):
        rows = gallery[places]
        rows = rows[rows != query]
        hits[i, : len(rows)] = labels[rows] == labels[query]
        answers[i, : len(rows[:SHOWN])] = rows[:SHOWN]
    # A query in the gallery has one answer less than there are pictures.
    width = len(gallery) - 1 if np.isin(queries, gallery).all() else len(gallery)
    values = task.measures(hits[:, :width], task.relevant[block])
    return answers, np.where(hits.any(1), hits.argmax(1) + 1, 0), values


def blocks_of(task: Task) -> list[slice]:
    """The places of a task's queries, a block at a time."""
    return [slice(start, start + BLOCK) for start in range(0, len(task.queries), BLOCK)]


def run_task(task: Task, engine: Engine, features: Sequence[np.ndarray]) -> Outcome:
    """Ask every query of a task and compare the answers with the truth.

    Parameters
    ----------
    task : what to ask
    engine : over the task's gallery, see `of_gallery`
    features : of the queries, see `query_features`
    """
    judged = []
    with progress_bar(len(task.queries), f"asking, {task.name}", "query picture") as bar:
        for block in blocks_of(task):
            found = engine.search([feature[block] for feature in features], len(task.gallery))
            judged.append(judge(task, block, [answer.rows for answer in found]))
            bar.update(len(found))
    answers, first, values = zip(*judged, strict=True)
    others = len(task.gallery) - np.isin(task.queries, task.gallery)
    return Outcome(
        task,
        {name: np.concatenate([value[name] for value in values]) for name in values[0]},
        float((task.relevant / others).mean()),
        np.concatenate(first),
        np.concatenate(answers),
    )


def category_task(
    database: FeatureDatabase, base: Path, val_share: float, partition: str | None
) -> Task | None:
    """Retrieval by category: every picture of a partition asks for the others of it.

    Parameters
    ----------
    database : of `base`
    base, val_share : as for `collection.read_labelled`
    partition : train, val, test or all; None takes test, or val where there is no test; of the
        in-shop part alone query and gallery

    Returns
    -------
    None where fewer than two pictures of the partition are in the database.
    """
    labelled = read_labelled(base, len(database.category_names), val_share)
    parts = set(labelled.partitions.tolist())
    measured = next((p for p in (("test",), ("query", "gallery")) if set(p) & parts), ("val",))
    if partition is not None:
        measured = tuple(parts) if partition == "all" else (partition,)
    held = labelled.in_partition(*measured)
    rows = align(held.paths, database.paths)
    labels = np.asarray(database.categories)
    rows = np.sort(rows[rows >= 0])
    rows = rows[labels[rows] >= 0]
    if len(rows) < 2:
        return None
    _, groups = np.unique(database.items[rows], return_inverse=True)
    groups = np.where(database.items[rows] != "", groups, -1 - rows)
    return Task("category", rows, rows, labels, groups, category_measures)


def item_tasks(database: FeatureDatabase, base: Path) -> list[Task]:
    """In-shop retrieval: every query picture asks the gallery for its item.

    Returns
    -------
    Tasks "item" (the published protocol), "item, upper body" (both sides alone), "item and color"
    (queries whose gallery has their colour), and "color" (any item of the query's colour, where
    colours have names), each where there is anything to ask; all on pictures that are in the
    database.

    Raises
    ------
    UserError : the in-shop list is missing or malformed
    """
    inshop = read_inshop(base)
    place = align(database.paths, inshop.paths)
    known = place >= 0
    item = np.where(known, inshop.items[place], "")
    part = np.where(known, inshop.partitions[place], "")
    color = np.where(known, inshop.colors[place], "")
    both = np.char.add(np.char.add(item.astype(str), "\n"), color.astype(str))
    queries, gallery = np.flatnonzero(part == "query"), np.flatnonzero(part == "gallery")
    upper = np.where(known, inshop.types[place], 0) == UPPER
    upper &= ~upper[queries].all()  # or it would be the whole over again
    colored = queries[(color[queries] != "") & np.isin(both[queries], both[gallery])]
    # Numbers count the colours of each item; only names mean the same in all of them.
    named = queries[(color[queries] != "") & ~np.char.isdigit(color[queries].astype(str))]
    named = named if has_color_names(base) else named[:0]
    tasks = [
        ("item", queries, gallery, item, item_measures),
        ("item, upper body", queries[upper[queries]], gallery[upper[gallery]], item, item_measures),
        ("item and color", colored, gallery, both, item_measures),
        ("color", named, gallery, color, color_measures),
    ]
    return [
        Task(name, asked, searched, labels, item[asked], measures)
        for name, asked, searched, labels, measures in tasks
        if len(asked) and len(searched)
    ]
