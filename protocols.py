"""Who asks whom, and which answers are right: the published protocols on a feature database."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from annotations import align, has_color_names, read_inshop
from collection import read_labelled
from index import Engine, FeatureDatabase, Signal
from measures import Figure, category_measures, color_measures, item_measures, summarise
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
    groups : Q; queries of one group are not independent of each other
    measures : hits Q x N and number of right pictures Q -> values of each query
    """

    name: str
    queries: np.ndarray
    gallery: np.ndarray
    labels: np.ndarray
    groups: np.ndarray
    measures: Measures


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
    """The signals with a gallery as their collection: rows of it, in its order."""
    return [replace(signal, features=signal.features[gallery]) for signal in signals]


def query_features(task: Task, signals: Sequence[Signal]) -> list[np.ndarray]:
    """Of each signal of the whole feature database, the features of a task's queries: Q x D."""
    return [signal.features[task.queries] for signal in signals]


def run_task(task: Task, engine: Engine, features: Sequence[np.ndarray]) -> Outcome:
    """Ask every query of a task and compare the answers with the truth.

    Parameters
    ----------
    task : what to ask
    engine : over the task's gallery, see `of_gallery`
    features : of the queries, see `query_features`
    """
    labels, gallery = task.labels, task.gallery
    of_label = dict(zip(*np.unique(labels[gallery], return_counts=True), strict=True))
    values: dict[str, list[np.ndarray]] = {}
    first, answers, chance = [], [], 0.0
    with progress_bar(len(task.queries), f"asking, {task.name}", "query picture") as bar:
        for start in range(0, len(task.queries), BLOCK):
            block = task.queries[start : start + BLOCK]
            asked = [feature[start : start + BLOCK] for feature in features]
            found = engine.search(asked, len(gallery))
            hits = np.zeros((len(block), len(gallery)), bool)
            shown = np.full((len(block), SHOWN), -1)
            for i, (query, answer) in enumerate(zip(block, found, strict=True)):
                rows = gallery[answer.rows]
                rows = rows[rows != query]
                hits[i, : len(rows)] = labels[rows] == labels[query]
                shown[i, : len(rows[:SHOWN])] = rows[:SHOWN]
            itself = np.isin(block, gallery)
            relevant = np.array([of_label.get(labels[q], 0) for q in block]) - itself
            # A query in the gallery has one answer less than there are pictures.
            width = len(gallery) - 1 if itself.all() else len(gallery)
            for name, value in task.measures(hits[:, :width], relevant).items():
                values.setdefault(name, []).append(value)
            first.append(np.where(hits.any(1), hits.argmax(1) + 1, 0))
            answers.append(shown)
            chance += float((relevant / (len(gallery) - itself)).sum())
            bar.update(len(block))
    return Outcome(
        task,
        {name: np.concatenate(value) for name, value in values.items()},
        chance / len(task.queries),
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
    return Task("category", rows, rows, labels, np.arange(len(rows)), category_measures)


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
