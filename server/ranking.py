"""A search: the features of a query and the options -> ranked answers for the page."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from search.engine import Answer, Engine, ExactEngine
from search.engines import NamedEngine
from search.rerank import CollapsedEngine
from search.signals import Signal
from server.collection import Collection
from server.query import Features, QueryMemory, query_features
from server.schemas import Found, SearchAnswer, SearchOptions
from utils import Stopwatch, UserError, evenly_spaced

CATEGORY_NEIGHBOURS = 20  # nearest pictures that decide the category of a query
CUT_NEIGHBOURS = 200  # nearest pictures in cut that are ranked by how far their colour is


def _is_deep(signal: Signal) -> bool:
    """Whether it is a network's embedding, not colour."""
    return signal.name.startswith("deep")


def _scale(signals: Sequence[Signal], deep: float, color: float) -> list[Signal]:
    """The signals with their weights multiplied."""
    return [replace(s, weight=s.weight * (deep if _is_deep(s) else color)) for s in signals]


def balanced(signals: Sequence[Signal], balance: float) -> list[Signal]:
    """The signals with their weights moved to the network's (0) or to colour (1)."""
    return _scale(signals, min(1.0, 2 * (1 - balance)), min(1.0, 2 * balance))


def signals_for(collection: Collection, options: SearchOptions, query: Features) -> list[Signal]:
    """The signals with the weights of a search.

    Raises
    ------
    UserError : no signal has a weight
    """
    signals = collection.signals
    if any(features.any() for s, features in zip(signals, query, strict=True) if _is_deep(s)):
        signals = balanced(signals, options.balance)
    else:  # by a colour alone
        signals = _scale(signals, 0, 1)
    if not any(signal.weight for signal in signals):
        raise UserError("no signal has a weight; move the balance, or see the server's settings")
    return signals


def _category_for(collection: Collection, options: SearchOptions, query: Features | None) -> str:
    """The category to search, "" for all.

    That of the options; for other colours that of the query, else the most frequent one among its
    nearest pictures.
    """
    if options.category or not options.other_color or query is None:
        return options.category or ""
    database = collection.database
    if options.pictures and database.category(options.pictures[0]):
        return database.category(options.pictures[0])
    answer = _cut_engine(collection).engine.search(query, CATEGORY_NEIGHBOURS)[0]
    names = Counter(database.category(row) for row in answer.rows.tolist())
    return names.most_common(1)[0][0]


def _cut_engine(collection: Collection) -> NamedEngine:
    """The exact engine by the deep signals only."""
    signals = _scale(collection.signals, 1, 0)
    return collection.engine("exact", [signal.weight for signal in signals])


def search(
    collection: Collection,
    memory: QueryMemory,
    options: SearchOptions,
    name: str | None,
    watch: Stopwatch,
) -> SearchAnswer:
    """Answer a search; a search by nothing, with evenly spaced pictures of the collection.

    `name` is that of the uploaded pictures in `memory`, None where there are none; `watch` records
    the seconds.

    Raises
    ------
    HTTPException : 404, the uploaded pictures are not kept any more
    UserError : the engine is not set up
    """
    with watch.step("ranking"):
        query = query_features(collection, memory, options, name)
        signals = [] if query is None else signals_for(collection, options, query)
        weights = {signal.name: signal.weight for signal in signals}
        category = _category_for(collection, options, query)
        rows = collection.database.rows_of(category) if category else None
        if query is None:
            named, answer = _browse(collection, rows, options)
        elif options.other_color:
            named, answer = _other_color(collection, signals, rows, query, options)
        else:
            named = collection.engine(options.engine, list(weights.values()))
            engine = _without_query(collection, named, options)
            answer = engine.search(query, options.count, rows)[0]
            if rows is not None and named.name != "exact":
                named = replace(named, recall=None)
        answers = _found(collection, signals, answer)
    return SearchAnswer(
        query=name,
        answers=answers,
        engine=named.name,
        searched=named.searched,
        recall=named.recall,
        category=category,
        weights=weights,
        seconds=dict(watch.seconds),
        collection=collection.version,
    )


def _browse(
    collection: Collection, rows: np.ndarray | None, options: SearchOptions
) -> tuple[NamedEngine, Answer]:
    """Some pictures to begin with."""
    rows = np.arange(len(collection)) if rows is None else rows
    rows = rows[evenly_spaced(len(rows), options.count)]
    answer = Answer(rows, np.full(len(rows), np.nan), np.empty((len(rows), 0)))
    engine = collection.engine().engine
    return NamedEngine(options.engine, engine, "nothing: evenly spaced pictures", None), answer


def _other_color(
    collection: Collection,
    signals: Sequence[Signal],
    rows: np.ndarray | None,
    query: Features,
    options: SearchOptions,
) -> tuple[NamedEngine, Answer]:
    """The nearest in cut, different colours first: the weights of colour become negative.

    Only the `CUT_NEIGHBOURS` nearest by the deep signals are ranked: most of the collection has
    another colour.
    """
    named = _cut_engine(collection)
    engine = _without_query(collection, named, options)
    count = max(CUT_NEIGHBOURS, 2 * options.count)
    near = np.sort(engine.search(query, count, rows)[0].rows)
    answer = ExactEngine(_scale(signals, 1, -1)).search(query, options.count, near)[0]
    searched = f"different colours first among the {len(near):,} nearest in cut"
    return replace(named, searched=searched, recall=None), answer


def _without_query(collection: Collection, named: NamedEngine, options: SearchOptions) -> Engine:
    """The engine, whose answers omit the pictures of the query, and show each item once."""
    engine: Engine = _Without(named.engine, {*options.pictures, *options.like, *options.unlike})
    return CollapsedEngine(engine, collection.database.items) if options.per_item else engine


class _Without:
    """The answers of an engine without some pictures.

    Below `CollapsedEngine`, so that another picture of an item can take the place of such a one.
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
            rest = np.flatnonzero(~np.isin(found.rows, self.excluded))[:k]
            answers.append(Answer(found.rows[rest], found.distances[rest], found.parts[rest]))
        return answers


def _found(collection: Collection, signals: Sequence[Signal], answer: Answer) -> list[Found]:
    """An answer for the page."""
    found = []
    for rank, row in enumerate(answer.rows.tolist(), 1):
        distance, values = float(answer.distances[rank - 1]), answer.parts[rank - 1].tolist()
        parts = {s.name: value for s, value in zip(signals, values, strict=True) if s.weight}
        item = collection.item(row).model_dump()
        found.append(Found(**item, rank=rank, distance=distance, parts=parts))
    return found
