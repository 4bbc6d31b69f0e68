"""A search: the features of a query and the options -> ranked answers for the page."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from fastapi import HTTPException

from search.certainty import Calibration
from search.duplicates import OwnPicture, contents
from search.engine import Answer, ExactEngine
from search.engines import NamedEngine
from search.matches import Match, Matches, find, matches_of
from search.query import Stopwatch
from search.signals import Signal
from server.live import Collection, Features
from server.query_features import query_features
from server.schemas import Found, SearchAnswer, SearchOptions
from utils import UserError, command, evenly_spaced

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
    """The signals with the weights of a search, or the one that words are searched by.

    Raises
    ------
    UserError : no signal has a weight
    """
    if options.text:
        return collection.words.signals
    by_picture = _is_by_picture(collection, query)
    signals = balanced(collection.signals, options.balance if by_picture else 1)
    if not any(signal.weight for signal in signals):
        raise UserError("no signal has a weight; move the balance, or see the server's settings")
    return signals


def _is_by_picture(collection: Collection, query: Features) -> bool:
    """Whether a query has more than a colour."""
    pairs = zip(collection.signals, query, strict=True)
    return any(features.any() for signal, features in pairs if _is_deep(signal))


def _category_for(collection: Collection, options: SearchOptions, query: Features | None) -> str:
    """The category to search, "" for all.

    That of the options; for other colours that of the query, else the most frequent one among its
    nearest pictures.
    """
    if options.category or not options.other_color or query is None:
        return options.category or ""
    rows = [collection.row(picture) for picture in options.pictures[:1]]
    if not rows or not collection.database.category(rows[0]):
        rows = _cut_engine(collection).engine.search(query, CATEGORY_NEIGHBOURS)[0].rows.tolist()
    return Counter(map(collection.database.category, rows)).most_common(1)[0][0]


def _rows_of(collection: Collection, category: str) -> np.ndarray:
    """The rows of a category; 404 where there is none."""
    try:
        return collection.database.rows_of(category)
    except UserError as error:
        raise HTTPException(404, str(error).removeprefix("--")) from None


def _cut_engine(collection: Collection) -> NamedEngine:
    """The exact engine by the deep signals only."""
    signals = _scale(collection.signals, 1, 0)
    return collection.engine("exact", [signal.weight for signal in signals])


def search(collection: Collection, options: SearchOptions, watch: Stopwatch) -> SearchAnswer:
    """Answer a search; a search by nothing, with evenly spaced pictures of the collection.

    `watch` records the seconds.

    Raises
    ------
    UserError : the engine is not set up
    """
    if options.text:
        options = options.model_copy(update={"engine": "exact", "other_color": False})
    with watch.step("ranking"):
        query = query_features(collection, options)
        if options.other_color and query is not None and not _is_by_picture(collection, query):
            options = options.model_copy(update={"other_color": False})
        files = collection.uploaded(options.query).files if options.query else ()
        own = OwnPicture(collection.database, files)
        signals = [] if query is None else signals_for(collection, options, query)
        category = _category_for(collection, options, query)
        rows = _rows_of(collection, category) if category else None
        if query is None:
            rows = np.arange(len(collection)) if rows is None else rows
            rows = rows[evenly_spaced(len(rows), options.count)]
            answer = Answer(rows, np.full(len(rows), np.nan), np.empty((len(rows), 0)))
            collapses = _collapses(collection, options)
            matches = Matches(matches_of(collection.database, answer, [], [], collapses))
            searched, recall, same = "nothing: evenly spaced pictures", None, None
        else:
            calibration = _calibration_for(collection, signals, options)
            same = calibration.same if calibration else None
            matches, searched, recall = _rank(
                collection, signals, rows, query, options, own, calibration
            )
    return SearchAnswer(
        query=options.query,
        answers=[_found(collection, match, signals) for match in matches],
        same=same,
        present=matches.present,
        left_out=[collection.database.paths[row] for row in own.rows],
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
    own: OwnPicture,
    calibration: Calibration | None,
) -> tuple[Matches, str, float | None]:
    """The matches without the query's pictures, what was searched, and the expected recall.

    For other colours, the weights of colour become negative, among the `CUT_NEIGHBOURS` nearest by
    the deep signals: most of the collection has another colour.
    """
    if options.other_color:
        named, count = _cut_engine(collection), max(CUT_NEIGHBOURS, 2 * options.count)
    else:
        weights, count = [signal.weight for signal in signals], options.count
        words = bool(options.text)
        named = collection.words.engine if words else collection.engine(options.engine, weights)
    collapses, database = _collapses(collection, options), collection.database
    content = contents(database) if collapses else np.array([], "S32")
    pictures = [*options.pictures, *options.like, *options.unlike]
    listed = np.array([collection.row(picture) for picture in pictures], np.int64)

    def left_out(rows: np.ndarray) -> np.ndarray:
        found = np.isin(rows, listed)
        if collapses:
            found |= np.isin(content[rows], content[listed]) & (content[rows] != b"")
        return found | own(rows) if own.files else found

    matches = find(
        database,
        named.engine,
        signals,
        query,
        count,
        rows,
        left_out=left_out,
        per_item=options.per_item,
        collapse=collapses,
        calibration=calibration,
        min_probability=options.min_probability,
    )
    if options.other_color:
        near = np.sort(np.array([match.row for match in matches], np.int64))
        answer = ExactEngine(_scale(signals, 1, -1)).search(query, options.count, near)[0]
        matches = Matches(matches_of(database, answer, signals, query, collapses))
        return matches, f"different colours first among the {len(near):,} nearest in cut", None
    return matches, named.searched, named.recall if rows is None or named.name == "exact" else None


def _calibration_for(
    collection: Collection, signals: Sequence[Signal], options: SearchOptions
) -> Calibration | None:
    """The calibration, where a search is by pictures alone and with the weights of the settings.

    Raises
    ------
    UserError : the least probability is more than 0, but this search has no probabilities
    """
    weights, own = ([signal.weight for signal in one] for one in (signals, collection.signals))
    colors = options.color or options.other_color
    changed = options.like or options.unlike or options.text or colors or weights != own
    calibration = None if changed else collection.calibration
    if options.min_probability and not calibration:
        raise UserError(
            "min_probability: this search has no probabilities; search by pictures alone, with the"
            f" default balance, after: {command('evaluate.py --calibrate', collection.base)}"
        )
    return calibration


def _collapses(collection: Collection, options: SearchOptions) -> bool:
    """Whether copies are one answer; older databases do not know them."""
    return options.collapse_duplicates and collection.database.content is not None


def _found(collection: Collection, match: Match, signals: Sequence[Signal]) -> Found:
    """A match for the page."""
    parts = {s.name: match.parts[s.name] for s in signals if s.weight}
    return Found(**vars(match) | collection.picture(match.row).model_dump() | {"parts": parts})
