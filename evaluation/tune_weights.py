"""Find the weights of the signals on training pictures that training never saw."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluation.metrics import pooled_score, validation_score
from evaluation.protocols import count_relevant
from features.database import FeatureDatabase
from pictures.annotations import Pictures, align, inshop_list, read_inshop
from pictures.splits import Splits, read_splits
from search.engine import ExactEngine
from search.signals import Signal, describe_distance, weighted_sum
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
    right : Q x N, bool; the picture is a right answer; each query has one
    """

    name: str
    parts: np.ndarray
    right: np.ndarray

    def score(self, weights: np.ndarray) -> tuple[float, int]:
        """`metrics.validation_score` with these weights of the signals, S."""
        order = np.argsort(weighted_sum(self.parts, weights), axis=1, kind="stable")
        hits = np.take_along_axis(self.right, order, axis=1)
        return validation_score(hits, self.right.sum(1), self.name == "item")


def _held_out(
    name: str,
    signals: Sequence[Signal],
    queries: np.ndarray,
    gallery: np.ndarray,
    labels: np.ndarray,
) -> list[HeldOut]:
    """The task, thinned; none where no query has an answer.

    Queries and gallery are rows of the database, labels are of all its rows.
    """
    queries = _spread(queries[count_relevant(queries, gallery, labels) > 0], MOST_QUERIES)
    # An item has few pictures, and each is an answer: only the others may go.
    kept = np.isin(labels[gallery], labels[queries]) & (name == "item")
    others = _spread(gallery[~kept], max(MOST_GALLERY - int(kept.sum()), 0))
    gallery = np.sort(np.concatenate([gallery[kept], others]))
    queries = queries[count_relevant(queries, gallery, labels) > 0]
    if not len(queries):
        return []
    features = [signal.features[queries] for signal in signals]
    parts = ExactEngine(signals).parts(features, gallery)
    itself = queries[:, None] == gallery
    parts[:, itself] = np.inf
    return [HeldOut(name, parts, (labels[queries][:, None] == labels[gallery]) & ~itself)]


def _spread(rows: np.ndarray, most: int) -> np.ndarray:
    places = np.linspace(0, len(rows) - 1, min(len(rows), most)).round().astype(int)
    return np.sort(rows)[places]


def _rows(database: FeatureDatabase, pictures: Pictures) -> np.ndarray:
    rows = align(pictures.paths, database.paths)
    return rows[rows >= 0]


def _parts(database: FeatureDatabase, val_share: float) -> Splits:
    """What the models were trained on, and what was held out.

    Parameters
    ----------
    database : of the data set
    val_share : of untrained models, which have seen nothing

    Raises
    ------
    UserError : that is not known, differs between the models, or is of other data
    """
    base, models = database.base, database.metadata.models
    trained = [model for model in models if model.held_out is not None]
    if not trained:
        inshop = inshop_list(base) is not None
        return read_splits(base, len(database.category_names), inshop, val_share)
    for model in trained:
        if not isinstance(model.held_out, dict):
            raise UserError(
                f"{model.file}: does not say what was held out from its training;"
                " train it with train.py, then extract again"
            )
        if model.held_out != trained[0].held_out:
            raise UserError(
                f"{model.file}: other pictures were held out from its training than from that"
                f" of {trained[0].file}; train both on one data set, divided alike"
            )
    said, categories = trained[0].held_out, len(trained[0].network.categories)
    parts = read_splits(base, categories, said["inshop"], said["val_share"])
    if parts.digest() != said["digest"]:
        raise UserError(
            f"{base}: the data set, or its division, is another than the one that"
            f" {trained[0].file} was trained on; fit the weights on that one"
        )
    return parts


def held_out_tasks(
    database: FeatureDatabase, signals: Sequence[Signal], val_share: float
) -> list[HeldOut]:
    """The held-out training pictures of a data set as tasks, see `splits.read_splits`.

    Held-out pictures with categories ask for each other; those of held-out items ask all in-shop
    training pictures for their item's others. Who has no answer does not ask.

    Parameters
    ----------
    database : of the data set
    signals : of the database
    val_share : share of the pictures to hold out where no model was trained

    Raises
    ------
    UserError : see `_parts`; or nothing was held out, or it is not in the feature database
    """
    base, parts = database.base, _parts(database, val_share)
    categories = np.asarray(database.categories)
    held = _rows(database, parts.validation)
    held = held[categories[held] >= 0]
    tasks = _held_out("category", signals, held, held, categories)
    if len(parts.validation_items):
        inshop = read_inshop(base).in_partition("train")
        # Not those of the database: extracted without the in-shop part, it has none.
        item_of = align(database.paths, inshop.paths)
        labels = np.where(item_of >= 0, inshop.items[item_of], "")
        items, gallery = _rows(database, parts.validation_items), _rows(database, inshop)
        tasks += _held_out("item", signals, items, gallery, labels)
    if not tasks:
        raise UserError(f"{base}: no held-out training picture in the database to fit weights on")
    return tasks


def best_weights(tasks: Sequence[HeldOut], start: np.ndarray) -> np.ndarray:
    """Coordinate ascent on the mean score of all queries; the first signal keeps its weight.

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
    weights, best = start.astype(np.float64), _pooled(tasks, start)
    for _ in range(ROUNDS):
        before = weights.copy()
        for i in range(1, len(weights)):
            for factor in FACTORS:
                trial = weights.copy()
                trial[i] = factor * unit[i]
                score = _pooled(tasks, trial)
                if score > best:
                    weights, best = trial, score
        if (weights == before).all():
            break
    return weights


def _finite(task: HeldOut, signal: int) -> np.ndarray:
    return task.parts[signal][np.isfinite(task.parts[signal])]


def _pooled(tasks: Sequence[HeldOut], weights: np.ndarray) -> float:
    return pooled_score([task.score(weights) for task in tasks])


def fit_weights(database: FeatureDatabase, signals: Sequence[Signal], val_share: float) -> None:
    """Find the weights, say what each signal adds, and print the settings to use them by."""
    tasks = held_out_tasks(database, signals, val_share)
    start = np.array([signal.weight for signal in signals])
    start[0] = start[0] or 1.0
    weights = best_weights(tasks, start)
    weights = np.array([float(f"{weight:.3g}") for weight in weights])
    counts = ", ".join(f"{task.right.shape[0]:,} by {task.name}" for task in tasks)
    print(f"held-out training pictures that ask: {counts}")
    measures = {"category": "category mAP@R", "item": "item MRR"}
    heads = [measures[task.name] for task in tasks] + ["both, by picture"] * (len(tasks) > 1)
    print(" " * 34 + "".join(f"{head:>18}" for head in heads))

    def show(name: str, weights: np.ndarray) -> None:
        scores = [task.score(weights) for task in tasks]
        shown = [score for score, _ in scores] + [pooled_score(scores)] * (len(tasks) > 1)
        print(f"{name:<34}{''.join(f'{score:>18.2%}' for score in shown)}")

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
