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
    collection: Collection, memory: QueryMemory, options: SearchOptions, watch: Stopwatch
) -> SearchAnswer:
    """Answer a search; a search by nothing, with evenly spaced pictures of the collection.

    `memory` has the uploaded pictures, `watch` records the seconds.

    Raises
    ------
    UserError : the engine is not set up
    """
    with watch.step("ranking"):
        query = query_features(collection, memory, options)
        signals = [] if query is None else signals_for(collection, options, query)
        category = _category_for(collection, options, query)
        rows = collection.database.rows_of(category) if category else None
        if query is None:
            rows = np.arange(len(collection)) if rows is None else rows
            rows = rows[evenly_spaced(len(rows), options.count)]
            answer = Answer(rows, np.full(len(rows), np.nan), np.empty((len(rows), 0)))
            searched, recall = "nothing: evenly spaced pictures", None
        else:
            answer, searched, recall = _rank(collection, signals, rows, query, options)
        answers = _found(collection, signals, answer)
    return SearchAnswer(
        query=options.query,
        answers=answers,
        engine="exact" if options.other_color else options.engine,
        searched=searched,
        recall=recall,
        category=category,
        weights={signal.name: signal.weight for signal in signals},
        seconds=dict(watch.seconds),
        collection=collection.version,
    )


def _rank(
    collection: Collection,
    signals: Sequence[Signal],
    rows: np.ndarray | None,
    query: Features,
    options: SearchOptions,
) -> tuple[Answer, str, float | None]:
    """The answer without the pictures of the query, what was searched, and the expected recall.

    For other colours, the weights of colour become negative, among the `CUT_NEIGHBOURS` nearest by
    the deep signals: most of the collection has another colour.
    """
    if options.other_color:
        named, count = _cut_engine(collection), max(CUT_NEIGHBOURS, 2 * options.count)
    else:
        weights = [signal.weight for signal in signals]
        named, count = collection.engine(options.engine, weights), options.count
    engine: Engine = _Without(named.engine, [*options.pictures, *options.like, *options.unlike])
    if options.per_item:
        engine = CollapsedEngine(engine, collection.database.items)
    answer = engine.search(query, count, rows)[0]
    if options.other_color:
        near = np.sort(answer.rows)
        answer = ExactEngine(_scale(signals, 1, -1)).search(query, options.count, near)[0]
        return answer, f"different colours first among the {len(near):,} nearest in cut", None
    return answer, named.searched, named.recall if rows is None or named.name == "exact" else None


class _Without:
    """The answers of an engine without some pictures.

    Below `CollapsedEngine`, so that another picture of an item can take the place of such a one.
    """

    def __init__(self, inner: Engine, excluded: list[int]) -> None:
        self.inner = inner
        self.excluded = excluded

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
