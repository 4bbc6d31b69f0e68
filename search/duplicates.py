"""Answers without repeats: of one item or content, the query itself; near-duplicates are named."""

import os
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress

import numpy as np
from scipy.spatial.distance import cdist

from features.database import FeatureDatabase, unit_rows
from pictures.folder import picture_file
from search.engine import Answer, Engine
from search.signals import Signal
from utils import UserError, command, sha256_of

# Distances below which two pictures are near-duplicates, see docs/search.md.
NEAR_DEEP, NEAR_PALETTE = 0.35, 0.15  # of embeddings of length 1, of palettes


class CollapsedEngine:
    """Answers with the nearest picture of each item or content, and without some pictures.

    Parameters
    ----------
    inner : what finds the pictures
    keys : each N, the items or contents of its collection, "" where unknown: such pictures all stay
    left_out : which of n rows not to answer with: n -> n, bool
    at_least : number of pictures to find, also for fewer answers

    Attributes
    ----------
    near : what the last search has found for each query, without the rows that are left out
    """

    def __init__(
        self,
        inner: Engine,
        *keys: np.ndarray,
        left_out: Callable[[np.ndarray], np.ndarray] | None = None,
        at_least: int = 0,
    ) -> None:
        self.inner = inner
        self.keys = keys
        self.left_out = left_out
        self.at_least = at_least
        self.near: list[Answer] = []

    def search(
        self, queries: Sequence[np.ndarray], k: int, rows: np.ndarray | None = None
    ) -> list[Answer]:
        """See `Engine.search`; `k` is a number of answers that stay."""
        wanted = max(k, self.at_least) + 1  # one is often left out
        while True:
            found = self.inner.search(queries, wanted, rows)
            self.near = found
            if self.left_out:
                self.near = [_take(answer, ~self.left_out(answer.rows)) for answer in found]
            answers = [self._collapse(answer) for answer in self.near]
            short = [len(answer.rows) < k for answer in answers]
            more = [len(answer.rows) == wanted for answer in found]
            # Items of many pictures take many ranks: search for more until there are enough.
            if not np.any(np.logical_and(short, more)):
                return [_take(answer, slice(k)) for answer in answers]
            wanted *= 4

    def _collapse(self, answer: Answer) -> Answer:
        """Only the first picture of each key."""
        for keys in self.keys:
            found = keys[answer.rows]
            first = found == found.dtype.type()
            first[np.unique(found, return_index=True)[1]] = True
            answer = _take(answer, first)
        return answer


def _take(answer: Answer, places: np.ndarray | slice) -> Answer:
    """Some places of an answer, in their order."""
    return Answer(answer.rows[places], answer.distances[places], answer.parts[places])


class OwnPicture:
    """Says which pictures of a collection are `Query.files`; `rows` are those that were found."""

    def __init__(self, database: FeatureDatabase, files: Collection[tuple[int, str]]) -> None:
        self.database = database
        self.files = files
        self.rows: list[int] = []

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """See `CollapsedEngine`."""
        own = np.array([self._is_own(row) for row in rows.tolist()], bool)
        self.rows += [row for row in rows[own].tolist() if row not in self.rows]
        return own

    def _is_own(self, row: int) -> bool:
        # Not by the content that the database stores: a box may be part of it.
        base, path = self.database.base, self.database.paths[row]
        with suppress(OSError, ValueError, UserError):  # it may be gone
            size = os.stat(os.path.join(base, path)).st_size  # first, as it is quick
            known = size in dict(self.files)
            return known and (size, sha256_of(picture_file(base, path))) in self.files
        return False


def contents(database: FeatureDatabase) -> np.ndarray:
    """The SHA-256 of every picture, N, 32 bytes; a `UserError` where the database has none."""
    if database.content is None:
        again = f"run: {command('feature_extractor.py', database.base)}"
        raise UserError(f"{database.base}: an older feature database, without contents; {again}")
    return database.content.view("S32")[:, 0]


def count_copies(database: FeatureDatabase, rows: np.ndarray) -> list[int]:
    """Of each of some rows, how many pictures of the collection have its content, with itself."""
    begin = contents(database).view("<u8")[::4]  # 8 bytes tell them apart; 0: unknown
    found = begin[np.isin(begin, begin[rows])]
    return [int((found == one).sum()) if one else 1 for one in begin[rows]]


def near_duplicates(
    signals: Sequence[Signal], query: Sequence[np.ndarray], rows: np.ndarray
) -> list[int | None]:
    """The near-duplicates among a query (of each signal 1 x D) and its answers, nearest first.

    Returns
    -------
    Of each answer the rank of the first picture that it is a near-duplicate of: 0 the query, from
    1 the answers before it; None: of none of these, or the collection has no palettes.
    """
    palette = next((i for i, signal in enumerate(signals) if signal.name == "palette"), None)
    if palette is None:
        return [None] * len(rows)
    both = [np.vstack([query[i], signals[i].features[rows]]) for i in (0, palette)]
    deep = unit_rows(both[0])
    near = (cdist(deep, deep) < NEAR_DEEP) & (cdist(both[1], both[1]) < NEAR_PALETTE)
    earlier = np.tril(near, -1)[1:]
    return [int(one.argmax()) if one.any() else None for one in earlier]


def remark(copies: int, duplicate_of: int | None) -> str:
    """What a table or a sheet says of an answer's copies; "" where there is nothing to say."""
    remarks = [f"{copies} copies"] if copies > 1 else []
    if duplicate_of is not None:
        remarks.append(f"near-duplicate of {duplicate_of or 'the query'}")
    return ", ".join(remarks)
