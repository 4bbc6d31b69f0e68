"""Features of an unfinished extraction, in files: they survive a kill, and the next run goes on."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from features.arrays import archive, read_archive
from utils import atomic_write


@dataclass(frozen=True)
class Chunk:
    """A file with the features of some pictures: an array for each matrix, by its name.

    Attributes
    ----------
    file : where it lies
    rows : numbers of its pictures in the extraction, int64, in the order of the features
    errors : why some of these could not be read, by their numbers
    """

    file: Path
    rows: np.ndarray
    errors: dict[int, str]


def save_chunk(
    folder: Path, rows: np.ndarray, errors: Sequence[str], features: Mapping[str, np.ndarray]
) -> None:
    """Save features; `errors` says why a picture has none, or "".

    Raises
    ------
    UserError : it cannot be written
    """
    with atomic_write(folder / f"{rows[0]:012d}.npz") as part:
        part.write_bytes(archive(rows=rows, errors=np.array(errors, str), **features))


def read_chunks(folder: Path) -> list[Chunk]:
    """What this and earlier runs have saved; a damaged chunk is removed."""
    found = []
    for file in sorted(folder.glob("*.npz")):
        try:
            rows, errors = read_archive(file, {"rows": ("i", 1), "errors": ("U", 1)}).values()
        except ValueError:
            file.unlink()
            continue
        unreadable = np.flatnonzero(errors != "")
        found.append(Chunk(file, rows, {int(rows[i]): str(errors[i]) for i in unreadable}))
    return found


def missing_rows(chunks: Iterable[Chunk], total: int) -> np.ndarray:
    """The pictures of an extraction of `total` that are in no chunk, int64, ascending."""
    return np.setdiff1d(np.arange(total), np.concatenate([[], *(chunk.rows for chunk in chunks)]))


def split_rows(rows: np.ndarray, parts: int, size: int) -> list[np.ndarray]:
    """Split missing pictures among `parts` processes, which differ by at most one batch of `size`.

    The batches are those of one process that was not interrupted, so the features are the same.
    """
    batches = np.array_split(np.unique(rows // size), parts)
    return [rows[np.isin(rows // size, share)] for share in batches]
