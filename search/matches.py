"""What is found for a query: the pictures of an answer with all that is known of each."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from features.database import FeatureDatabase
from search.certainty import NEIGHBOURS, Calibration, Certainty, certainty_of
from search.duplicates import CollapsedEngine, contents, count_copies, near_duplicates
from search.engine import Answer, Engine
from search.signals import Signal


@dataclass(frozen=True)
class Match:
    """One picture of an answer.

    Attributes
    ----------
    rank : from 1, the most similar picture first
    row : of the collection
    path : relative to DATASET_BASE
    distance : weighted sum of `parts`, in units of the metrics; smaller is more similar
    category : its name, "" where unknown
    item : the garment's id, "" where unknown
    parts : by the name of each signal (deep, color, palette), the metric's value before its weight
    copies : pictures of the collection with its content; 1 unless duplicates are collapsed
    duplicate_of : rank of the first answer that it is a near-duplicate of, 0 for the query, or None
    probability : that it shows the query's item, if the collection has it; None where it is not
        known: without a calibration; see `search.certainty`
    """

    rank: int
    row: int
    path: str
    distance: float
    category: str
    item: str
    parts: dict[str, float]
    copies: int = 1
    duplicate_of: int | None = None
    probability: float | None = None


class Matches(list[Match]):
    """The matches of one query.

    Attributes
    ----------
    present : the probability that the collection has the query's item; None where it is not known
    left_out : paths of the pictures that are the query itself
    """

    present: float | None = None
    left_out: Sequence[str] = ()


def find(
    database: FeatureDatabase,
    engine: Engine,
    signals: Sequence[Signal],
    query: Sequence[np.ndarray],
    count: int,
    rows: np.ndarray | None = None,
    *,
    left_out: Callable[[np.ndarray], np.ndarray] | None = None,
    per_item: bool = False,
    collapse: bool = False,
    calibration: Calibration | None = None,
    min_probability: float = 0.0,
) -> Matches:
    """Search by an engine, without repeats; with probabilities where there is a calibration.

    Parameters
    ----------
    database : the collection
    engine : ranks it by `signals`
    query : for each signal 1 x D
    rows : see `Engine.search`
    left_out : see `CollapsedEngine`

    The others are those of `Searcher.search`.
    """
    keys = [contents(database)] if collapse else []
    keys += [database.items] if per_item else []
    at_least = NEIGHBOURS if calibration else 0
    ranking = CollapsedEngine(engine, *keys, left_out=left_out, at_least=at_least)
    (answer,) = ranking.search(query, count, rows)
    sure = None
    if calibration:
        sure = certainty_of(calibration, ranking.near[0], calibration.labels(database))
    found = matches_of(database, answer, signals, query, collapse, sure)
    matches = Matches(m for m in found if (m.probability or 0.0) >= min_probability)
    matches.present = sure.present if sure else None
    return matches


def matches_of(
    database: FeatureDatabase,
    answer: Answer,
    signals: Sequence[Signal],
    query: Sequence[np.ndarray],
    collapse: bool = False,
    sure: Certainty | None = None,
) -> list[Match]:
    """The pictures of an answer; copies are counted where it is collapsed."""
    rows = answer.rows.tolist()
    copies = count_copies(database, answer.rows) if collapse else [1] * len(rows)
    near = near_duplicates(signals, query, answer.rows)
    names = [signal.name for signal in signals]
    return [
        Match(
            rank=i + 1,
            row=row,
            path=database.paths[row],
            distance=float(answer.distances[i]),
            category=database.category(row),
            item=str(database.items[row]),
            parts=dict(zip(names, answer.parts[i].tolist(), strict=True)),
            copies=copies[i],
            duplicate_of=near[i],
            probability=sure.of_rows.get(row) if sure else None,
        )
        for i, row in enumerate(rows)
    ]
