"""Find the weights of the signals on the validation split: pictures that training did not use."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.figures import Table
from evaluation.metrics import balanced_score, category_metrics, item_metrics, validation_score
from evaluation.protocols import Task, count_relevant
from features.database import FeatureDatabase
from pictures.deepfashion import has_items, read_items
from pictures.splits import Splits, read_splits
from pictures.table import Pictures, align
from search.engine import ExactEngine
from search.signals import Signal, describe_distance, weighted_sum
from utils import UserError, evenly_spaced

MAX_QUERIES, MAX_GALLERY = 500, 4000
FACTORS = (0.0, *(2.0 ** (step / 2) for step in range(-12, 9)))
MAX_ROUNDS = 5
METRICS = {"category": "category mAP@R", "item": "item MRR"}


@dataclass(frozen=True)
class ValidationDistances:
    """Distances among validation pictures, of each signal.

    Attributes
    ----------
    name : category or item
    parts : S x Q x N, float64; infinite from a picture to itself
    correct : Q x N, bool; the picture is a correct answer; each query has one
    """

    name: str
    parts: np.ndarray
    correct: np.ndarray

    def score(self, weights: np.ndarray) -> tuple[float, int]:
        """`metrics.validation_score` with these weights of the signals, S."""
        order = np.argsort(weighted_sum(self.parts, weights), axis=1, kind="stable")
        hits = np.take_along_axis(self.correct, order, axis=1)
        return validation_score(hits, self.correct.sum(1), self.name == "item")


def validation_tasks(
    database: FeatureDatabase, val_share: float, whole: bool = False
) -> list[Task]:
    """The validation split of a data set as tasks, see `splits.read_splits`.

    Validation pictures with a category are queries for each other; those of validation items
    search all in-shop training pictures for the others of their item. Pictures without a correct
    answer are no queries.

    Parameters
    ----------
    database : of the data set
    val_share : of the pictures are validated on where no model was trained
    whole : validation pictures search the training pictures, too, and where no model was trained
        every item is validated on

    Raises
    ------
    UserError : a model does not record its split, or the splits differ, or are of other data; or
        no validation picture is in the feature database
    """
    base, splits = database.base, _splits(database, val_share)
    categories = np.asarray(database.categories)
    rows = _rows(database, splits.validation)
    rows = rows[categories[rows] >= 0]
    searched = np.union1d(rows, _rows(database, splits.train)) if whole else rows
    gallery = searched[categories[searched] >= 0]
    tasks = [_with_answers("category", rows, gallery, categories)]
    if len(splits.validation_items):
        inshop = read_items(base).in_partition("train", "val")
        # Not the database's items: extracted without the in-shop part, it has none.
        place = align(database.paths, inshop.paths)
        labels = np.where(place >= 0, inshop.items[place], "")
        gallery = _rows(database, inshop)
        untrained = all(model.held_out is None for model in database.metadata.models)
        queries = gallery if whole and untrained else _rows(database, splits.validation_items)
        gallery = np.union1d(gallery, searched) if whole else gallery
        tasks.append(_with_answers("item", queries, gallery, labels))
    found = [task for task in tasks if len(task.queries)]
    if not found:
        raise UserError(
            f"{base}: no two validation pictures of one item or category in the feature database"
        )
    return found


def _with_answers(name: str, rows: np.ndarray, gallery: np.ndarray, labels: np.ndarray) -> Task:
    """The task of those of some rows that have a correct answer."""
    queries = np.sort(rows[count_relevant(rows, gallery, labels) > 0])
    metrics = item_metrics if name == "item" else category_metrics
    return Task(name, queries, gallery, labels, labels[queries], metrics)


def validation_distances(task: Task, signals: Sequence[Signal]) -> ValidationDistances:
    """Those of at most `MAX_QUERIES` and about `MAX_GALLERY` pictures of a task."""
    gallery, labels = task.gallery, task.labels
    queries = spaced(task.queries, MAX_QUERIES)
    # An item has few pictures, and each is a correct answer: only others are removed.
    needed = np.isin(labels[gallery], labels[queries]) & (task.name == "item")
    others = spaced(gallery[~needed], max(MAX_GALLERY - int(needed.sum()), 0))
    gallery = np.sort(np.concatenate([gallery[needed], others]))
    queries = queries[count_relevant(queries, gallery, labels) > 0]
    features = [signal.features[queries] for signal in signals]
    parts = ExactEngine(signals).parts(features, gallery)
    itself = queries[:, None] == gallery
    parts[:, itself] = np.inf
    correct = (labels[queries][:, None] == labels[gallery]) & ~itself
    return ValidationDistances(task.name, parts, correct)


def spaced(rows: np.ndarray, max_count: int) -> np.ndarray:
    """Up to `max_count` of some rows, evenly spaced and ascending."""
    return np.sort(rows)[evenly_spaced(len(rows), max_count)]


def _rows(database: FeatureDatabase, pictures: Pictures) -> np.ndarray:
    rows = align(pictures.paths, database.paths)
    return rows[rows >= 0]


def _splits(database: FeatureDatabase, val_share: float) -> Splits:
    """The splits of the models; `val_share` is for untrained ones, which used no picture."""
    base = database.base
    trained = [model for model in database.metadata.models if model.held_out is not None]
    if not trained:
        return read_splits(base, len(database.category_names), has_items(base), val_share)
    recorded = []
    for model in trained:
        if not isinstance(model.held_out, dict):
            raise UserError(
                f"{model.file}: does not record its validation split; train it with train.py,"
                " then extract again"
            )
        recorded.append(model.held_out)
        if model.held_out != recorded[0]:
            raise UserError(
                f"{model.file}: its validation split is not that of {trained[0].file};"
                " train both on one data set with the same VAL_SHARE"
            )
    split = recorded[0]
    categories = split.get("categories", len(trained[0].network.categories))
    splits = read_splits(base, categories, split["inshop"], split["val_share"])
    if splits.digest() != split["digest"]:
        raise UserError(
            f"{base}: not the data set, or not the splits, that {trained[0].file} was trained on;"
            " use that data set"
        )
    return splits


def best_weights(tasks: Sequence[ValidationDistances], start: np.ndarray) -> np.ndarray:
    """Coordinate ascent on the mean score of all queries; the first signal keeps its weight.

    Parameters
    ----------
    tasks : to score
    start : S, the weights to start from; the first one above 0

    Returns
    -------
    S, float64.
    """
    flat = np.concatenate([task.parts.reshape(len(start), -1) for task in tasks], axis=1)
    spreads = np.array([part[np.isfinite(part)].std() for part in flat])
    unit = start[0] * spreads[0] / np.maximum(spreads, 1e-12)
    weights, best = start.astype(np.float64), _balanced(tasks, start)
    for _ in range(MAX_ROUNDS):
        before = weights.copy()
        for i in range(1, len(weights)):
            for factor in FACTORS:
                trial = weights.copy()
                trial[i] = factor * unit[i]
                score = _balanced(tasks, trial)
                if score > best:
                    weights, best = trial, score
        if (weights == before).all():
            break
    return weights


def _balanced(tasks: Sequence[ValidationDistances], weights: np.ndarray) -> float:
    return balanced_score([task.score(weights) for task in tasks])


def tune_weights(database: FeatureDatabase, signals: Sequence[Signal], val_share: float) -> None:
    """Find the weights, and print what each signal adds and the settings that use the weights."""
    tasks = [validation_distances(t, signals) for t in validation_tasks(database, val_share)]
    start = np.array([signal.weight for signal in signals])
    start[0] = start[0] or 1.0
    weights = np.array([float(f"{weight:.3g}") for weight in best_weights(tasks, start)])
    trials = {"before": start, "tuned": weights}
    trials |= {f"{s.name} alone": np.eye(len(signals))[i] for i, s in enumerate(signals)}
    rows = []
    for name, trial in trials.items():
        scores = [task.score(trial) for task in tasks]
        both = [balanced_score(scores)] * (len(tasks) > 1)
        rows.append((name, *(score for score, _ in scores), *both))
    counts = ", ".join(f"{len(task.correct):,} by {task.name}" for task in tasks)
    heads = [METRICS[task.name] for task in tasks] + ["mean of both"] * (len(tasks) > 1)
    formats = ["{}", *["{:.2%}"] * len(heads)]
    note = f"before: {describe_distance(signals)}"
    print(Table(f"validation queries: {counts}", note, ["", *heads], rows, formats))
    found = dict(zip([signal.name for signal in signals], weights, strict=True))
    deep = [f"{weight:g}" for name, weight in found.items() if name.startswith("deep")]
    print("\nlines for .env:")
    print(f"FASHION_MODEL_WEIGHTS={','.join(deep)}")
    print(f"FASHION_COLOR_WEIGHT={found['color']:g}")
    if "palette" in found:
        print(f"FASHION_PALETTE_WEIGHT={found['palette']:g}")
