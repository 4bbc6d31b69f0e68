"""Find the weights of the signals on training pictures that training never saw."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from annotations import Pictures, align, inshop_list, read_inshop
from holdout import read_parts
from index import ExactEngine, FeatureDatabase, Signal, describe_distance
from measures import held_out_score
from utils import UserError

MOST_QUERIES, MOST_GALLERY = 500, 4000
FACTORS = (0.0, *(2.0 ** (step / 2) for step in range(-12, 9)))
ROUNDS = 5


@dataclass(frozen=True)
class HeldOut:
    """Distances among held-out pictures, signal by signal.

    Attributes
    ----------
    name : category or item
    parts : S x Q x N, float64; infinite from a picture to itself
    right : Q x N, bool; the picture is a right answer
    """

    name: str
    parts: np.ndarray
    right: np.ndarray

    def score(self, weights: np.ndarray) -> float:
        """`measures.held_out_score` with these weights of the signals, S."""
        with np.errstate(invalid="ignore"):
            distances = np.tensordot(weights, self.parts, 1)
        distances[np.isinf(self.parts[0])] = np.inf
        order = np.argsort(distances, axis=1, kind="stable")
        hits = np.take_along_axis(self.right, order, axis=1)
        return held_out_score(hits, self.right.sum(1), self.name == "item")


def _held_out(
    name: str,
    signals: Sequence[Signal],
    queries: np.ndarray,
    gallery: np.ndarray,
    labels: np.ndarray,
) -> HeldOut:
    """Queries and gallery are rows of the database, labels are of all its rows."""
    queries, gallery = _spread(queries, MOST_QUERIES), _spread(gallery, MOST_GALLERY)
    features = [signal.features[queries] for signal in signals]
    parts = ExactEngine(signals).parts(features, gallery)
    itself = queries[:, None] == gallery
    parts[:, itself] = np.inf
    return HeldOut(name, parts, (labels[queries][:, None] == labels[gallery]) & ~itself)


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    places = np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int)
    return np.sort(rows)[places]


def _rows(database: FeatureDatabase, pictures: Pictures) -> np.ndarray:
    rows = align(pictures.paths, database.paths)
    return rows[rows >= 0]


def held_out_tasks(
    database: FeatureDatabase, signals: Sequence[Signal], val_share: float
) -> list[HeldOut]:
    """The held-out training pictures of a data set as tasks, see `holdout.read_parts`.

    Held-out pictures with categories ask for each other; those of held-out items ask all in-shop
    training pictures for their item's others.

    Raises
    ------
    UserError : nothing was held out, or it is not in the feature database
    """
    base, inshop = database.base, inshop_list(database.base) is not None
    parts = read_parts(base, len(database.category_names), inshop, val_share)
    held = _rows(database, parts.held)
    tasks = []
    if len(held) > 1:
        labels = np.asarray(database.categories)
        tasks.append(_held_out("category", signals, held, held, labels))
    items = _rows(database, parts.items)
    if len(items):
        gallery = _rows(database, read_inshop(base).in_partition("train"))
        tasks.append(_held_out("item", signals, items, gallery, np.asarray(database.items)))
    tasks = [task for task in tasks if task.right.any()]
    if not tasks:
        raise UserError(f"{base}: no held-out training picture in the database to fit weights on")
    return tasks


def best_weights(tasks: Sequence[HeldOut], start: np.ndarray) -> np.ndarray:
    """Coordinate ascent on the mean score of the tasks; the first signal keeps its weight.

    Parameters
    ----------
    tasks : what to do well
    start : S, the weights to start from; the first one above 0

    Returns
    -------
    S, float64.
    """
    spreads = np.array(
        [np.std(np.concatenate([_finite(t, i) for t in tasks])) for i in range(len(start))]
    )
    unit = start[0] * spreads[0] / np.maximum(spreads, 1e-12)
    weights, best = start.astype(np.float64), _mean_score(tasks, start)
    for _ in range(ROUNDS):
        before = weights.copy()
        for i in range(1, len(weights)):
            for factor in FACTORS:
                trial = weights.copy()
                trial[i] = factor * unit[i]
                score = _mean_score(tasks, trial)
                if score > best:
                    weights, best = trial, score
        if (weights == before).all():
            break
    return weights


def _finite(task: HeldOut, signal: int) -> np.ndarray:
    return task.parts[signal][np.isfinite(task.parts[signal])]


def _mean_score(tasks: Sequence[HeldOut], weights: np.ndarray) -> float:
    return float(np.mean([task.score(weights) for task in tasks]))


def fit_weights(database: FeatureDatabase, signals: Sequence[Signal], val_share: float) -> None:
    """Find the weights, say what each signal adds, and print the settings to use them by."""
    tasks = held_out_tasks(database, signals, val_share)
    start = np.array([signal.weight for signal in signals])
    start[0] = start[0] or 1.0
    weights = best_weights(tasks, start)
    weights = np.array([float(f"{weight:.3g}") for weight in weights])
    counts = ", ".join(f"{task.right.shape[0]:,} by {task.name}" for task in tasks)
    print(f"held-out training pictures that ask: {counts}")
    measures = {"category": "mAP@R", "item": "MRR"}
    print(" " * 34 + "".join(f"{task.name + ' ' + measures[task.name]:>16}" for task in tasks))

    def show(name: str, weights: np.ndarray) -> None:
        scores = "".join(f"{task.score(weights):>16.2%}" for task in tasks)
        print(f"{name:<34}{scores}")

    show(f"before: {describe_distance(signals)}"[:33], start)
    show("fitted", weights)
    for i, signal in enumerate(signals):
        if weights[i] and np.count_nonzero(weights) > 1:
            without = weights.copy()
            without[i] = 0
            show(f"fitted without {signal.name}", without)
        alone = np.zeros_like(weights)
        alone[i] = 1
        show(f"{signal.name} alone", alone)
    found = dict(zip([signal.name for signal in signals], weights, strict=True))
    deep = [f"{weight:g}" for name, weight in found.items() if name.startswith("deep")]
    print("\nlines for .env:")
    print(f"FASHION_MODEL_WEIGHTS={','.join(deep)}")
    print(f"FASHION_COLOR_WEIGHT={found['color']:g}")
    if "palette" in found:
        print(f"FASHION_PALETTE_WEIGHT={found['palette']:g}")
