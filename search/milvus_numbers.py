"""The numbers by which Milvus knows pictures; unlike their rows, an update does not move them."""

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from features.arrays import map_array
from features.database import FeatureDatabase
from search.signals import Signal
from utils import UserError, atomic_write

BLOCK = 8192  # rows hashed at once


def file_of(name: str) -> str:
    """Where the numbers that belong to a collection of Milvus lie, below DATASET_BASE."""
    return f"models/{name}.numbers.npy"


class Numbers:
    """Which row of a feature database has which number, and the other way round.

    Parameters
    ----------
    table : 2 x N, int64; the number of each row, and the rows in order of their numbers
    """

    def __init__(self, table: np.ndarray) -> None:
        self.table = table
        self.of_rows, self.order = table

    def rows(self, numbers: np.ndarray) -> np.ndarray:
        """Rows of some numbers; those that no row has are left out."""
        places = np.searchsorted(self.of_rows, numbers, sorter=self.order)
        rows = self.order[np.minimum(places, len(self.order) - 1)]
        return rows[self.of_rows[rows] == numbers]


def make_numbers(database: FeatureDatabase) -> Numbers:
    """The numbers of a feature database: each is a hash of the picture's path.

    Raises
    ------
    UserError : two paths have the same one, a chance of 1 in 4,000 among 100 million
    """
    hashes = (hashlib.blake2b(path.encode(), digest_size=8).digest() for path in database.paths)
    numbers = np.frombuffer(b"".join(hashes), "<i8").astype(np.int64)
    order = np.argsort(numbers)
    same = np.flatnonzero(np.diff(numbers[order]) == 0)
    if len(same):
        first, second = (database.paths[int(order[same[0] + i])] for i in (0, 1))
        raise UserError(
            f"{database.base}: {first} and {second} have the same number in Milvus; rename one"
        )
    return Numbers(np.stack([numbers, order]))


def save_numbers(base: Path, name: str, numbers: Numbers) -> None:
    """Keep the numbers that belong to a collection of Milvus, and drop those of others."""
    path = base / file_of(name)
    with atomic_write(path) as part, open(part, "wb") as file:
        np.save(file, numbers.table)
    for other in (base / "models").glob("*.numbers.npy"):
        if other != path:
            other.unlink(missing_ok=True)


def open_numbers(database: FeatureDatabase, name: str) -> Numbers:
    """The numbers of a feature database, from their file or, where there is none, made anew."""
    try:
        table = map_array(database.base / file_of(name), "<i8", 2)
        count = len(database.categories)
        if table.shape == (2, count) and 0 <= table[1].min() <= table[1].max() < count:
            return Numbers(table)
    except (OSError, ValueError):
        pass
    return make_numbers(database)


def versions_of(database: FeatureDatabase, signals: Sequence[Signal]) -> np.ndarray:
    """A hash of all that Milvus is told of each picture: N, int64."""
    count = len(database.categories)
    versions = np.empty(count, np.int64)
    for start in range(0, count, BLOCK):
        block = slice(start, min(start + BLOCK, count))
        features = [np.ascontiguousarray(signal.features[block]) for signal in signals]
        for i, row in enumerate(range(block.start, block.stop)):
            told = f"{database.category(row)}\n{database.items[row]}\n".encode()
            digest = hashlib.blake2b(told, digest_size=8)
            for values in features:
                digest.update(values[i])
            versions[row] = int.from_bytes(digest.digest(), "little", signed=True)
    return versions
