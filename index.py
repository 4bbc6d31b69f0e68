"""The feature database on disk, and the engines that rank it.

The distance of a picture to a query is the weighted sum of its signals, smaller is nearer:
d = metric0(deep) + COLOR_WEIGHT * metric1(colour) + PALETTE_WEIGHT * metric1(palette), with a
deep term for each further model.

    python index.py push   loads the feature database into Milvus
"""

import argparse
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NoReturn, Protocol

import numpy as np
from scipy.spatial.distance import cdist

from arrays import all_finite, map_array, read_archive
from description import read_description
from lines import Lines
from stamps import first_wrong
from utils import UserError, run_script

DEEP, COLOR, PALETTE = "all_feat.npy", "all_color_feat.npy", "all_palette_feat.npy"
CATEGORY, ITEM = "all_category.npy", "all_item.npy"
CONTENT = "all_content.npy"
CLASSIFIER = "all_classifier.npz"
CLASSIFIER_FORMS = {"weight": ("f", 2), "bias": ("f", 1)}
LIST, INFO = "all_feat.list", "all_feat.json"
OTHERS = (CATEGORY, ITEM, LIST)  # beside the features
BLOCK = 8192  # rows a call of cdist, which copies them to float64
MEMORY = 64 << 20  # bytes of distances that an exact search holds at once
TRIES, PAUSE = 20, 0.05  # s; an extraction replaces the files in a few ms


@dataclass(frozen=True)
class FeatureDatabase:
    """The features of N pictures, opened for reading; the matrices stay on disk until used.

    Attributes
    ----------
    base : DATASET_BASE
    deep : of each model, N x D, float32, the embeddings
    color : N x 3T, float32, the colour features
    palette : N x 512, float32, the palettes; None where the database has none
    plain : as `deep`, without the mirror images that are in it; empty where none are
    paths : N paths relative to `base`
    categories : N, int16; index into `category_names`, -1 where unknown
    category_names : names of the categories
    items : N, str; the garment's id, "" where unknown
    info : all_feat.json: the models and the settings that made the features, counts, hashes
    content : N x 32, uint8; what each was made of, see `changes.look`; None where that is not known
    """

    base: Path
    deep: tuple[np.ndarray, ...]
    color: np.ndarray
    palette: np.ndarray | None
    plain: tuple[np.ndarray, ...]
    paths: Sequence[str]
    categories: np.ndarray
    category_names: list[str]
    items: np.ndarray
    info: dict[str, Any]
    content: np.ndarray | None = None

    def category(self, row: int) -> str:
        """Name of a picture's category, "" where unknown."""
        number = int(self.categories[row])
        return self.category_names[number] if number >= 0 else ""

    def rows_of(self, category: str) -> np.ndarray:
        """Rows of the pictures of a category.

        Raises
        ------
        UserError : no picture has such a category
        """
        lower = [name.lower() for name in self.category_names]
        number = lower.index(category.lower()) if category.lower() in lower else -2
        rows = np.flatnonzero(self.categories == number)
        if not len(rows):
            used = np.unique(self.categories[self.categories >= 0])
            names = ", ".join(sorted(self.category_names[i] for i in used))
            raise UserError(f"--category {category!r}: no such category; there are {names}")
        return rows


def deep_file(number: int) -> str:
    """Name of the matrix of the model with this number, from 0."""
    return f"all_feat_{number + 1}.npy" if number else DEEP


def plain_file(number: int) -> str:
    """Name of the model's matrix without mirror images, which `FLIP` adds to measure its gain."""
    return f"all_plain_feat_{number + 1}.npy"


def open_database(base: Path) -> FeatureDatabase:
    """Open the feature database of a data set.

    Where an extraction is replacing it, this is done again: old and new files never come together.

    Raises
    ------
    UserError : it is missing or unfinished, or its files do not belong together, or are not those
        that all_feat.json describes
    """
    for _ in range(TRIES):
        before = _read_info(base)
        try:
            database, failure = _open_files(base, before), None
        except UserError as error:
            failure = error
        # It goes before any other file does, and comes back last.
        absent = before is None and (base / LIST).exists()
        if before == _read_info(base) and not absent:
            break
        time.sleep(PAUSE)
    if failure:
        raise failure
    return database


def _read_info(base: Path) -> bytes | None:
    try:
        return (base / INFO).read_bytes() if (base / INFO).is_file() else None
    except OSError:
        return None


def _open_files(base: Path, described: bytes | None) -> FeatureDatabase:
    """Open the files that a content of all_feat.json describes."""
    again = f"run: python feature_extractor.py --dataset-base {base}"
    if described is None:
        raise UserError(f"{base}: no feature database ({INFO}); {again}")

    def refuse(name: str, fault: object) -> NoReturn:
        raise UserError(f"{base / name}: {fault}; {again}")

    try:
        info = read_description(described)
    except ValueError as error:
        refuse(INFO, f"damaged, or of another version: {error}")
    count, category_names = info["pictures"], info["category_names"]
    models = range(len(info["models"]))
    deep = [deep_file(number) for number in models]
    plain = [plain_file(number) for number in models] if info["settings"]["FLIP"] else []
    names = [*deep, *plain, COLOR, *([PALETTE] if info["settings"]["PALETTE"] else [])]
    columns: dict[str, Any] = {}
    content = [CONTENT] if CONTENT in info["sha256_others"] else []  # before, it was not written
    for name in (*names, *OTHERS, *content):
        try:
            columns[name] = _open_column(base / name, count, again)
        except (OSError, ValueError) as error:
            refuse(name, error)
        if len(columns[name]) != count:
            refuse(name, f"has {len(columns[name])} rows, {INFO} says {count}")
    try:
        read_archive(base / CLASSIFIER, CLASSIFIER_FORMS)
    except ValueError as error:
        refuse(CLASSIFIER, error)
    if not -1 <= columns[CATEGORY].min() <= columns[CATEGORY].max() < len(category_names):
        refuse(CATEGORY, f"holds other categories than the {len(category_names)} of {INFO}")
    hashes = info["sha256"] | info["sha256_others"]
    unnamed = [name for name in (*columns, CLASSIFIER) if name not in hashes]
    if unnamed:
        refuse(INFO, f"damaged, or of another version: no SHA-256 of {unnamed[0]}")
    hashes = {name: hashes[name] for name in (*columns, CLASSIFIER)}
    wrong = first_wrong(base, hashes, lambda name: _fault(columns.get(name)))
    if wrong:
        refuse(*wrong)
    return FeatureDatabase(
        base=base,
        deep=tuple(columns[name] for name in deep),
        color=columns[COLOR],
        palette=columns.get(PALETTE),
        plain=tuple(columns[name] for name in plain),
        paths=columns[LIST],
        categories=columns[CATEGORY],
        category_names=category_names,
        items=columns[ITEM],
        info=info,
        content=columns.get(CONTENT),
    )


def _open_column(path: Path, count: int, again: str) -> Any:
    """A file of the database, of which each row is a picture's."""
    if path.name == LIST:
        return Lines(path, count, again)
    forms = {CATEGORY: ("<i2", 1), CONTENT: ("|u1", 2), ITEM: ("<U", 1)}
    return map_array(path, *forms.get(path.name, ("<f4", 2)))


def _fault(column: Any) -> str:
    """What is wrong within a column, "" for nothing."""
    try:
        if isinstance(column, np.ndarray) and column.dtype.kind == "f" and not all_finite(column):
            return "holds NaN or infinity"
        if isinstance(column, Lines) or (column is not None and column.dtype.kind == "U"):
            "".join(column).encode()
    except UnicodeDecodeError as error:
        return f"line {error.object.count(10, 0, error.start) + 1} is not UTF-8 text"
    except (ValueError, SystemError):  # of numbers that are no character
        return "holds what is no text"
    return ""


@dataclass(frozen=True)
class Signal:
    """One term of the distance.

    Attributes
    ----------
    name : for the answer's parts: deep, deep_2 (of a second model) ..., color, palette
    features : N x D, the collection
    metric : of scipy.spatial.distance.cdist
    weight : factor of the metric's value
    """

    name: str
    features: np.ndarray
    metric: str
    weight: float

    def distances(self, queries: np.ndarray, rows: np.ndarray | slice) -> np.ndarray:
        """The metric's values from Q queries to some rows of the collection: Q x rows, float64."""
        return cdist(queries, self.features[rows], self.metric, **self.parameters)

    @cached_property
    def parameters(self) -> dict[str, np.ndarray]:
        """What the metric takes from the collection: variances, or the inverse covariance."""
        if self.metric == "seuclidean":
            return {"V": np.var(self.features, axis=0, ddof=1, dtype=np.float64)}
        if self.metric == "mahalanobis":
            return {"VI": np.linalg.pinv(np.atleast_2d(np.cov(self.features, rowvar=False)))}
        return {}


def signals_of(
    database: FeatureDatabase,
    metrics: tuple[str, str],
    model_weights: Sequence[float],
    color_weight: float,
    palette_weight: float,
) -> list[Signal]:
    """The signals of a feature database: a deep one for each model, colour, and palette.

    Parameters
    ----------
    database : the features
    metrics : of the deep signals, and of colour and palette
    model_weights : of each model; empty for 1 each
    color_weight, palette_weight : of the colour signals

    Raises
    ------
    UserError : another number of weights than of models
    """
    models = len(database.deep)
    weights = list(model_weights) or [1.0] * models
    if len(weights) != models:
        raise UserError(
            f"MODEL_WEIGHTS has {len(weights)} weights, the feature database {models}"
            f" model{'s' if models > 1 else ''}"
        )
    names = [f"deep_{number + 1}" if number else "deep" for number in range(models)]
    deep = [
        Signal(name, features, metrics[0], weight)
        for name, features, weight in zip(names, database.deep, weights, strict=True)
    ]
    signals = [*deep, Signal("color", database.color, metrics[1], color_weight)]
    if database.palette is not None:
        signals.append(Signal("palette", database.palette, metrics[1], palette_weight))
    return signals


@dataclass(frozen=True)
class Answer:
    """The answer to one query, nearest first unless it is re-ranked.

    Attributes
    ----------
    rows : k, int64; rows of the collection
    distances : k, float64
    parts : k x S, float64; the value of each signal's metric, before its weight
    """

    rows: np.ndarray
    distances: np.ndarray
    parts: np.ndarray


class Engine(Protocol):
    """What ranks a collection."""

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """Find the nearest pictures.

        Parameters
        ----------
        queries : for each signal its features of the Q queries, Q x D
        k : number of answers; fewer where fewer pictures are searched
        rows : search these rows only, ascending; None for all

        Returns
        -------
        An answer for each query. Equal distances stand in order of their rows.
        """


def nearest(distances: np.ndarray, k: int) -> np.ndarray:
    """Places of the k smallest of N values, in the order of a stable `argsort` (NaN last)."""
    if k < len(distances):
        limit = np.partition(distances, k - 1)[k - 1]
        if not np.isnan(limit):
            # Every value equal to the limit stays in, or a tie would be cut in any order.
            places = np.flatnonzero(distances <= limit)
            return places[np.argsort(distances[places], kind="stable")][:k]
    return np.argsort(distances, kind="stable")[:k]


class ExactEngine:
    """Ranks every picture: the order is that of `cdist` and a stable `argsort`.

    Parameters
    ----------
    signals : the terms of the distance
    """

    def __init__(self, signals: Sequence[Signal]) -> None:
        self.signals = signals
        self.weights = [signal.weight for signal in signals]

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`."""
        count = len(self.signals[0].features) if rows is None else len(rows)
        # Of each query: its parts, and the sum with the term that is being added.
        step = max(1, MEMORY // (8 * max(count, 1) * (len(self.signals) + 2)))
        answers = []
        for start in range(0, len(queries[0]), step):
            parts = self.parts([features[start : start + step] for features in queries], rows)
            for i, distances in enumerate(weighted_sum(parts, self.weights)):
                places = nearest(distances, k)
                found = places if rows is None else rows[places]
                answers.append(Answer(found, distances[places], parts[:, i, places].T))
        return answers

    def distances(
        self, queries: Sequence[np.ndarray], rows: np.ndarray | None = None
    ) -> np.ndarray:
        """Distances of Q queries to the collection, or to some rows of it: Q x N, float64."""
        return weighted_sum(self.parts(queries, rows), self.weights)

    def parts(self, queries: Sequence[np.ndarray], rows: np.ndarray | None = None) -> np.ndarray:
        """The value of each signal's metric, before its weight: S x Q x N, float64."""
        count = len(self.signals[0].features) if rows is None else len(rows)
        parts = np.empty((len(self.signals), len(queries[0]), count))
        for start in range(0, count, BLOCK):
            block = slice(start, min(start + BLOCK, count))
            chosen = block if rows is None else rows[block]
            for i, (signal, query) in enumerate(zip(self.signals, queries, strict=True)):
                parts[i][:, block] = signal.distances(query, chosen)
        return parts


def weighted_sum(parts: np.ndarray, weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """S x Q x N values of the signals -> Q x N; a signal of weight 0 takes no part, be it NaN."""
    total = np.zeros(parts.shape[1:])
    for part, weight in zip(parts, weights, strict=True):
        if weight:
            total += weight * part
    return total


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)


def describe_distance(signals: Sequence[Signal]) -> str:
    """The distance in words, as in "deep euclidean + 0.1 color euclidean"."""
    return " + ".join(
        f"{'' if s.weight == 1 else f'{s.weight:g} '}{s.name} {s.metric}" for s in signals
    )


def main(argv: Sequence[str] | None = None) -> None:
    # What ranks is not to need what pushes.
    from command_line import parse_args
    from milvus_push import push

    def add_arguments(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("command", choices=("push",), help="load it into Milvus")

    about = "Load the feature database into Milvus; after a break it goes on where it was."
    push(parse_args(argv, about, ("data set", "ranking", "milvus"), add_arguments)[0])


if __name__ == "__main__":
    run_script(main)
