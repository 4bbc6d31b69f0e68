"""The interface of an engine, and the engine that ranks all pictures by `cdist`."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from search.signals import Signal, weighted_sum

BLOCK = 8192  # rows a call of cdist, which copies them to float64
MEMORY = 64 << 20  # bytes of distances that an exact search holds at once


@dataclass(frozen=True)
class Answer:
    """The answer to one query, nearest first.

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


def smallest(distances: np.ndarray, k: int) -> np.ndarray:
    """Places of the k smallest of N values, in the order of a stable `argsort` (NaN last)."""
    if k < len(distances):
        limit = np.partition(distances, k - 1)[k - 1]
        if not np.isnan(limit):
            # All values equal to the limit, of which the first ones are taken.
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
                places = smallest(distances, k)
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
