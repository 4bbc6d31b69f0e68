"""Copies: the query's own picture in a collection, files of the same content, near-duplicates."""

from collections.abc import Collection, Sequence
from contextlib import suppress

import numpy as np
from scipy.spatial.distance import cdist

from features.database import FeatureDatabase, unit_rows
from pictures.folder import picture_file
from search.signals import Signal
from utils import UserError, command, sha256_of

# Distances below which two pictures are near-duplicates, see docs/search.md.
NEAR_DEEP, NEAR_PALETTE = 0.35, 0.15  # of embeddings of length 1, of palettes


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
        with suppress(OSError, UserError):  # it may be gone
            file = picture_file(self.database.base, self.database.paths[row])
            size = file.stat().st_size
            return size in dict(self.files) and (size, sha256_of(file)) in self.files
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
