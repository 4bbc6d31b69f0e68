"""A search of the page: what is searched by, becomes features; engines rank; numbers become words.

The query is moved towards the answers that are liked and away from those that are not by Rocchio's
formula, with the weights of Manning, Raghavan and Schuetze, Introduction to Information Retrieval
(2008), chapter 9.
"""

import secrets
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
import torch

from features.database import unit_rows
from network.color import CHROMA, MEAN, PALETTE_BINS, STD, lab_of_rgb
from search.engine import Answer, Engine, ExactEngine
from search.engines import NamedEngine
from search.query import Query
from search.rerank import CollapsedEngine
from search.signals import Signal
from server.collection import Collection, Recent
from server.schemas import Found, SearchAnswer, SearchOptions
from utils import Stopwatch, UserError

LIKE, UNLIKE = 0.75, 0.15  # weights beside the query's 1
KEPT_SECONDS = 1800.0
KEPT = 256  # queries
SPREAD = (12.0, 8.0, 8.0)  # of L, a and b around a colour that is searched by: light and shade
ASKED = 20  # answers that tell the category of a query
SHORTLIST = 200  # nearest in cut, of which those far in colour are wanted

Features = list[np.ndarray]  # of each signal 1 x D


class QueryError(UserError):
    """Not in such a way can be searched."""


class UnknownError(UserError):
    """The collection has no such picture or category, or the query is not kept any more."""


@dataclass(frozen=True)
class Kept:
    """The uploaded pictures of a query, which can be searched by again.

    Attributes
    ----------
    models : SHA-256 of the models that made the features
    features : of each picture
    queries : as the networks took them
    until : when they are forgotten, by `time.monotonic`
    """

    models: list[str]
    features: list[Features]
    queries: list[Query]
    until: float


class Memory:
    """Queries of the last half hour, by names that cannot be guessed."""

    def __init__(self) -> None:
        self.kept: Recent[Kept] = Recent(KEPT)

    def keep(self, collection: Collection, features: list[Features], queries: list[Query]) -> str:
        """Keep the pictures of a query; returns its name."""
        name = secrets.token_hex(16)
        until = time.monotonic() + KEPT_SECONDS
        self.kept.put(name, Kept(_models(collection), features, queries, until))
        return name

    def get(self, collection: Collection, name: str) -> Kept:
        """The pictures of an earlier query.

        Raises
        ------
        UnknownError : they are, or they are of other models
        """
        kept = self.kept.get(name)
        if not kept or kept.until < time.monotonic() or kept.models != _models(collection):
            raise UnknownError("this query is forgotten; send its pictures again")
        return kept


def _models(collection: Collection) -> list[str]:
    return [model.sha256 for model in collection.database.metadata.models]


def features_of(collection: Collection, rows: Sequence[int]) -> list[Features]:
    """Features of pictures of the collection."""
    return [[signal.features[row : row + 1] for signal in collection.signals] for row in rows]


def require_pictures(collection: Collection, options: SearchOptions, *others: int) -> None:
    """Refuse options that name a picture or a category that the collection does not have.

    Raises
    ------
    UnknownError
    """
    for row in (*options.pictures, *options.like, *options.unlike, *others):
        if row >= len(collection):
            raise UnknownError(f"no picture {row}; there are {len(collection):,}")
    if options.category:
        try:
            collection.database.rows_of(options.category)
        except UserError as error:
            raise UnknownError(str(error).removeprefix("--")) from None


def color_features_of(signals: Sequence[Signal], color: str) -> dict[str, np.ndarray]:
    """The colour signals of a garment of one colour, by name: 1 x D each.

    Its palette is a normal distribution around the colour, as light and shade spread it.

    Parameters
    ----------
    signals : of the collection
    color : #rrggbb
    """
    rgb = np.array([int(color[i : i + 2], 16) for i in (1, 3, 5)], np.float64) / 255
    normalised = ((rgb - MEAN) / STD).astype(np.float32)
    lab = lab_of_rgb(torch.tensor(rgb)[None])[0].numpy()
    step = np.array([100, 2 * CHROMA, 2 * CHROMA]) / PALETTE_BINS
    low = np.array([0, -CHROMA, -CHROMA])
    along = []
    for value, spread, width, start in zip(lab, SPREAD, step, low, strict=True):
        middle = start + (np.arange(PALETTE_BINS) + 0.5) * width
        share = np.exp(-0.5 * ((middle - np.clip(value, middle[0], middle[-1])) / spread) ** 2)
        along.append(share / share.sum())
    palette = np.sqrt(np.einsum("l,a,b->lab", *along)).astype(np.float32).reshape(1, -1)
    made = {}
    for signal in signals:
        if signal.name == "palette":
            made["palette"] = palette
        elif signal.name == "color":
            cells = signal.features.shape[1] // 3
            made["color"] = np.repeat(normalised, cells)[None]
    return made


def combined(
    asked: Sequence[Features], liked: Sequence[Features], unliked: Sequence[Features]
) -> Features:
    """One query: the mean of what is asked with, moved by what is liked and what is not."""
    terms = [(part, 1 / len(asked)) for part in asked]
    terms += [(part, LIKE / len(liked)) for part in liked]
    terms += [(part, -UNLIKE / len(unliked)) for part in unliked]
    total = sum(weight for _, weight in terms)
    result = []
    for i, first in enumerate(asked[0]):
        moved = np.sum([weight / total * part[i] for part, weight in terms], axis=0)
        lengths = [np.linalg.norm(part[i]) for part, _ in terms]
        if np.allclose(lengths, lengths[0], rtol=1e-3):  # normalised features stay so
            moved = lengths[0] * unit_rows(moved)
        result.append(moved.astype(first.dtype))
    return result


def search(
    collection: Collection,
    memory: Memory,
    options: SearchOptions,
    name: str | None,
    watch: Stopwatch,
) -> SearchAnswer:
    """Answer a search; by nothing, with pictures evenly spread over the collection.

    Parameters
    ----------
    collection : is searched
    memory : has the uploaded pictures
    options : what to search by, and how
    name : of the uploaded pictures in `memory`, where there are some
    watch : takes the time

    Raises
    ------
    UnknownError : the uploaded pictures are not kept any more
    UserError : the engine has not what it needs
    """
    with watch.step("ranking"):
        query = features_asked(collection, memory, options, name)
        if query is None:
            return _browse(collection, options, watch)
        signals, rows, category = narrowed(collection, options, query)
        excluded = {*options.pictures, *options.like, *options.unlike}
        if options.other_color:
            answer, named = _other_color(collection, signals, query, rows, options, excluded)
        else:
            named = collection.engine(options.engine, signals)
            engine: Engine = _Without(named.engine, excluded)
            if options.per_item:
                engine = CollapsedEngine(engine, collection.database.items)
            answer = engine.search(query, options.count, rows)[0]
        answers = _as_found(collection, signals, answer)
    measured = rows is None and not options.other_color
    return SearchAnswer(
        query=name,
        answers=answers,
        engine=named.name,
        searched=named.searched,
        recall=named.recall if measured or named.name == "exact" else None,
        category=category,
        weights={signal.name: signal.weight for signal in signals},
        seconds=dict(watch.seconds),
        collection=collection.version,
    )


def _browse(collection: Collection, options: SearchOptions, watch: Stopwatch) -> SearchAnswer:
    """Some pictures to begin with."""
    category = options.category or ""
    every = np.arange(len(collection))
    rows = collection.database.rows_of(category) if category else every
    places = np.linspace(0, len(rows) - 1, min(options.count, len(rows))).astype(np.int64)
    answers = [
        Found(**collection.item(row).model_dump(), rank=rank, distance=None, parts={})
        for rank, row in enumerate(rows[np.unique(places)].tolist(), 1)
    ]
    return SearchAnswer(
        query=None,
        answers=answers,
        engine=options.engine,
        searched="nothing: these are evenly spread",
        recall=None,
        category=category,
        weights={},
        seconds=dict(watch.seconds),
        collection=collection.version,
    )


def features_asked(
    collection: Collection, memory: Memory, options: SearchOptions, name: str | None
) -> Features | None:
    """The features of all that is searched by, as one query; None: it is nothing.

    Raises
    ------
    UnknownError : the uploaded pictures are not kept any more
    """
    uploaded = memory.get(collection, name).features if name else []
    asked = uploaded + features_of(collection, options.pictures)
    liked = features_of(collection, options.like)
    unliked = features_of(collection, options.unlike)
    if not asked:
        asked, liked = liked, []
    colors = color_features_of(collection.signals, options.color) if options.color else {}
    if not asked:
        if not colors:
            return None
        empty = [np.zeros((1, s.features.shape[1]), np.float32) for s in collection.signals]
        return [colors.get(s.name, e) for s, e in zip(collection.signals, empty, strict=True)]
    query = combined(asked, liked, unliked)
    pairs = zip(collection.signals, query, strict=True)
    return [colors.get(signal.name, features) for signal, features in pairs]


def narrowed(
    collection: Collection, options: SearchOptions, query: Features
) -> tuple[list[Signal], np.ndarray | None, str]:
    """The signals with the weights of the search, and the rows and the category to search in."""
    signals = collection.weighted(options.balance)
    if not any(features.any() for s, features in zip(signals, query, strict=True) if _is_deep(s)):
        # By a colour alone.
        signals = [replace(s, weight=0.0) if _is_deep(s) else s for s in collection.weighted(1.0)]
    if not any(signal.weight for signal in signals):
        raise UserError("no signal has a weight; move the balance, or see the server's settings")
    category = options.category or ""
    if options.other_color and not category:
        category = _category_of(collection, options, query)
    rows = collection.database.rows_of(category) if category else None
    return signals, rows, category


def _is_deep(signal: Signal) -> bool:
    return signal.name.startswith("deep")


def _category_of(collection: Collection, options: SearchOptions, query: Features) -> str:
    """The category of a query: its own, or the most frequent one among its nearest pictures."""
    if options.pictures:
        own = collection.database.category(options.pictures[0])
        if own:
            return own
    engine = collection.engine("exact", collection.weighted(0.0)).engine
    near = engine.search(query, ASKED)[0].rows.tolist()
    names = Counter(collection.database.category(row) for row in near)
    return names.most_common(1)[0][0]


def _other_color(
    collection: Collection,
    signals: list[Signal],
    query: Features,
    rows: np.ndarray | None,
    options: SearchOptions,
    excluded: set[int],
) -> tuple[Answer, NamedEngine]:
    """The nearest in cut, those far in colour first: colour's weights count negative.

    Of the `SHORTLIST` nearest by the deep signals alone, as anything is far in colour.
    """
    cut = [s if _is_deep(s) else replace(s, weight=0.0) for s in collection.signals]
    named = collection.engine("exact", cut)
    engine: Engine = _Without(named.engine, excluded)
    if options.per_item:
        engine = CollapsedEngine(engine, collection.database.items)
    wanted = max(SHORTLIST, 2 * options.count)
    near = np.sort(engine.search(query, wanted, rows)[0].rows)
    reversed_ = [s if _is_deep(s) else replace(s, weight=-s.weight) for s in signals]
    answer = ExactEngine(reversed_).search(query, options.count, near)[0]
    searched = f"far colours first among the {len(near):,} nearest in cut"
    return answer, replace(named, searched=searched)


class _Without:
    """The answers of an engine but for the pictures that are asked with.

    They are left out before items are told apart: else an item would be gone with its picture.
    """

    def __init__(self, inner: Engine, excluded: set[int]) -> None:
        self.inner = inner
        self.excluded = list(excluded)

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`."""
        answers = []
        for found in self.inner.search(queries, k + len(self.excluded), rows):
            kept = np.flatnonzero(~np.isin(found.rows, self.excluded))[:k]
            answers.append(Answer(found.rows[kept], found.distances[kept], found.parts[kept]))
        return answers


def _as_found(collection: Collection, signals: Sequence[Signal], answer: Answer) -> list[Found]:
    """An answer for the page."""
    found = []
    for row, distance, parts in zip(
        answer.rows.tolist(), answer.distances.tolist(), answer.parts.tolist(), strict=True
    ):
        named = zip(signals, parts, strict=True)
        values = {signal.name: _finite(part) for signal, part in named if signal.weight}
        found.append(
            Found(
                **collection.item(row).model_dump(),
                rank=len(found) + 1,
                distance=_finite(distance),
                parts=values,
            )
        )
    return found


def _finite(value: float) -> float | None:
    return value if np.isfinite(value) else None


def rgb_of_lab(lab: np.ndarray) -> list[str]:
    """CIELAB colours, N x 3, as #rrggbb."""
    rgb = cv2.cvtColor(np.asarray(lab, np.float32)[None], cv2.COLOR_LAB2RGB)[0]
    return [
        "#" + "".join(f"{round(255 * float(v)):02x}" for v in color.clip(0, 1)) for color in rgb
    ]
