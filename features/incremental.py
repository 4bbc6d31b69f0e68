"""What an extraction need not do again: the features of an old database, and of a stopped run.

Pictures are compared by the SHA-256 of their content. To read those only that were touched, the
stamps of all are saved beside the database: without them, each picture is read once more.
A run that was stopped leaves its features in chunks.
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import archive, read_archive
from features.database import CONTENT, INFO, LIST, FeatureDatabase, open_database
from features.metadata import ModelRecord
from pictures.decode import PictureError
from pictures.folder import picture_file
from pictures.table import Pictures, align
from utils import UserError, atomic_write, file_stamp, progress_bar

STAMPS_FILE = ".all_content.npz"
STAMP, DIGEST = 3 + 4, 32  # numbers: size, inode, time of the last change, box; bytes
# Settings that an update must share.
SAME_SETTINGS = ("COLOR_TOP_N", "PALETTE", "FLIP", "CROP_TO_BBOX", "TRANSFORM")


def digest_of(base: Path, path: str, box: np.ndarray, crop: bool) -> bytes:
    """The SHA-256 of what a picture holds.

    Parameters
    ----------
    base, path : see `folder.picture_file`
    box : x1, y1, x2, y2, int32
    crop : whether its features are those of the box, which then is part of the content

    Returns
    -------
    32 bytes; none where it cannot be read.
    """
    with suppress(OSError, PictureError):
        file = picture_file(base, path)
        if file.is_file():  # opening a pipe would wait for its writer
            return hashlib.sha256((box.tobytes() if crop else b"") + file.read_bytes()).digest()
    return b""


def database_to_update(
    base: Path, models: Sequence[ModelRecord], settings: Mapping[str, Any]
) -> FeatureDatabase | None:
    """The database of a data set; None, with a message, where its features cannot be kept.

    Parameters
    ----------
    base : DATASET_BASE
    models : that extract now
    settings : of the extraction, see `FeatureSettings`; in other arithmetic features can be kept
    """
    if not (base / INFO).exists():
        return None
    database = open_database(base)
    metadata = database.metadata
    if [model.sha256 for model in metadata.models] != [model.sha256 for model in models]:
        reason = "it was made by another model"
    elif any(getattr(metadata.settings, name) != settings[name] for name in SAME_SETTINGS):
        reason = "it was made with other settings"
    elif database.content is None:
        reason = "it is of an older version, which did not look at what pictures hold"
    else:
        return database
    print(f"{base / INFO}: {reason}; all pictures are extracted again")
    return None


def find_changes(
    base: Path, database: FeatureDatabase | None, pictures: Pictures, crop: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Compare the pictures of a collection with those that a database was made of.

    A picture that was moved or copied keeps its features.

    Parameters
    ----------
    base : DATASET_BASE
    database : with `content`; None: there is none, and all pictures are new
    pictures : the table of the N pictures as they are now
    crop : see `digest_of`

    Returns
    -------
    For each picture the row of the database that has its features, N, int64, -1 where none has;
    and its stamp, N x 7, int64, zeros where it cannot be read.
    """
    paths, boxes = pictures.paths, pictures.boxes
    now, origin = np.zeros((len(paths), STAMP), np.int64), np.full(len(paths), -1)
    for row, path in enumerate(paths):
        with suppress(OSError, ValueError):
            now[row] = [*file_stamp(f"{base}/{path}"), *boxes[row]]
    if database is None or database.content is None:
        return origin, now
    old = align(paths, list(database.paths))
    untouched = (old >= 0) & (now == _read_stamps(database)[old]).all(1) & now.any(1)
    origin[untouched] = old[untouched]
    rest = np.flatnonzero(~untouched)
    row_of = {digest.tobytes(): row for row, digest in enumerate(database.content)}
    with progress_bar(len(rest), "comparing", "picture", shown=len(rest) > 0) as bar:
        for row in rest.tolist():
            origin[row] = row_of.get(digest_of(base, paths[row], boxes[row], crop), -1)
            bar.update()
    return origin, now


def _read_stamps(database: FeatureDatabase) -> np.ndarray:
    """The stamps of the pictures of a database, N x 7; zeros where they are not known."""
    count = len(database.categories)
    with suppress(ValueError):
        file = read_archive(database.base / STAMPS_FILE, {"stamps": ("i", 2), "made_of": ("U", 0)})
        if file["made_of"] == _pictures_of(database) and file["stamps"].shape == (count, STAMP):
            return file["stamps"]
    return np.zeros((count, STAMP), np.int64)


def save_stamps(database: FeatureDatabase, stamps: np.ndarray) -> None:
    """Save the stamps of the pictures of a database, N x 7, int64."""
    with suppress(UserError), atomic_write(database.base / STAMPS_FILE) as part:
        part.write_bytes(archive(stamps=stamps, made_of=_pictures_of(database)))


def _pictures_of(database: FeatureDatabase) -> str:
    """The checksums of the pictures of a database, by name and by content."""
    others = database.metadata.sha256_others
    return f"{others[LIST]} {others[CONTENT]}"


def is_same(database: FeatureDatabase, pictures: Pictures, places: np.ndarray) -> bool:
    """Whether a database would be written as it is; `places` as for `writer.write_database`."""
    rows, skipped = np.flatnonzero(places >= 0), np.flatnonzero(places < 0)
    return (
        np.array_equal(places[rows], np.arange(len(database.categories)))
        and [pictures.paths[row] for row in rows] == list(database.paths)
        and [pictures.paths[row] for row in skipped] == database.metadata.skipped
        and pictures.category_names == database.category_names
        and np.array_equal(pictures.categories[rows], database.categories)
        and np.array_equal(pictures.items[rows].astype(str), database.items)
    )


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
