"""What has changed since the features of a collection were made, by the content of its pictures.

Whether a picture was touched at all, the system tells without reading it: so the stamps of all are
kept beside the database. They are no part of it: without them each picture is read once more.
"""

import hashlib
import os
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from features.arrays import archive, read_archive
from features.database import CONTENT, INFO, LIST, FeatureDatabase, open_database
from features.metadata import ModelRecord
from pictures.decode import PictureError
from pictures.folder import picture_file
from pictures.table import Pictures, align
from utils import UserError, atomic_write, progress_bar

KNOWN = ".all_content.npz"
STAMP = 3 + 4  # size, inode, time of the last change, and the box
DIGEST = 32
SAME = ("COLOR_TOP_N", "PALETTE", "FLIP", "CROP_TO_BBOX")  # settings that features depend on
STAMP_BYTES = 8 * STAMP


def look(base: Path, path: str, box: np.ndarray, crop: bool) -> np.ndarray:
    """What a picture is made of: its stamp and the SHA-256 of its content.

    To be called before it is read: what is written to it later will have another stamp.

    Parameters
    ----------
    base, path : see `collection.picture_file`
    box : x1, y1, x2, y2, int32
    crop : whether its features are those of the box, which then is part of the content

    Returns
    -------
    56 + 32 bytes, uint8; zeros where it cannot be read.
    """
    with suppress(OSError, PictureError), open_file(picture_file(base, path)) as content:
        return fingerprint(content, box, crop)
    return np.zeros(STAMP_BYTES + DIGEST, np.uint8)


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading; to open a pipe would wait for its writer."""
    if not stat.S_ISREG(os.stat(path).st_mode):
        raise FileNotFoundError(path)
    return open(path, "rb")


def fingerprint(content: BinaryIO, box: np.ndarray, crop: bool) -> np.ndarray:
    """What `look` gives, of an open file, which is read and then at its beginning again."""
    stamp = _stamp_of(content.fileno(), box)
    digest = hashlib.sha256(box.tobytes() if crop else b"")
    while block := content.read(1 << 20):
        digest.update(block)
    content.seek(0)
    return np.concatenate([stamp.view(np.uint8), np.frombuffer(digest.digest(), np.uint8)])


def _stamp_of(file: str | int, box: np.ndarray) -> np.ndarray:
    """Size in bytes, inode, time of the last change in ns, and box of a picture, int64."""
    status = os.stat(file)
    if not stat.S_ISREG(status.st_mode):
        raise FileNotFoundError(file)
    return np.array([status.st_size, status.st_ino, status.st_ctime_ns, *box], np.int64)


@dataclass(frozen=True)
class Changes:
    """How a collection differs from its database.

    Attributes
    ----------
    origin : of each picture the row of the database that has its features, N, int64; -1: none has
    stamps : of each picture, N x 7, int64; zeros where `origin` is -1
    """

    origin: np.ndarray
    stamps: np.ndarray


def database_to_update(
    base: Path, records: Sequence[ModelRecord], settings: dict[str, Any], amp: str
) -> FeatureDatabase | None:
    """The database of a data set, None, with a word, where its features cannot be kept.

    Parameters
    ----------
    base : DATASET_BASE
    records : what all_feat.json is to say of the models
    settings : those that the features depend on, but for AMP
    amp : the setting AMP: `auto` keeps features of any arithmetic, the others also float32
    """
    if not (base / INFO).exists():
        return None
    database = open_database(base)
    metadata, reason = database.metadata, ""
    kinds = {"float32", {"bf16": "bfloat16", "fp16": "float16"}.get(amp, "float32")}
    if [model.sha256 for model in metadata.models] != [record.sha256 for record in records]:
        reason = "it was made by another model"
    elif any(getattr(metadata.settings, name) != settings[name] for name in SAME):
        reason = "it was made with other settings"
    elif amp != "auto" and metadata.settings.AMP not in kinds:
        reason = f"it was made in {metadata.settings.AMP}"
    elif database.content is None:
        reason = "it is of an older version, which did not look at what pictures hold"
    if reason:
        print(f"{base / INFO}: {reason}; all pictures are extracted anew")
    return None if reason else database


def all_new(count: int) -> Changes:
    """Those of a collection that has no database."""
    return Changes(np.full(count, -1), np.zeros((count, STAMP), np.int64))


def find_changes(database: FeatureDatabase, pictures: Pictures, crop: bool) -> Changes:
    """Compare the pictures of a collection with those that a database was made of.

    A picture that was moved or copied has the features of what it was.

    Parameters
    ----------
    database : with `content`
    pictures : the collection as it is now
    crop : see `look`
    """
    base, paths, boxes = database.base, pictures.paths, pictures.boxes
    now = np.zeros((len(paths), STAMP), np.int64)
    for row, path in enumerate(paths):
        with suppress(OSError, ValueError):
            now[row] = _stamp_of(f"{base}/{path}", boxes[row])
    old = align(paths, list(database.paths))
    known = _read_stamps(database)
    untouched = (old >= 0) & (now == known[old]).all(1) & now.any(1)
    origin = np.where(untouched, old, -1)
    rest = np.flatnonzero(~untouched)
    if not len(rest):
        return Changes(origin, now)
    row_of = {digest.tobytes(): row for row, digest in enumerate(database.content)}
    with progress_bar(len(rest), "comparing", "picture") as bar:
        for row in rest.tolist():
            seen = look(base, paths[row], boxes[row], crop)
            now[row] = seen[:STAMP_BYTES].view(np.int64)
            if seen.any():  # else it cannot be read
                origin[row] = row_of.get(seen[STAMP_BYTES:].tobytes(), -1)
            bar.update()
    now[origin < 0] = 0
    return Changes(origin, now)


def _read_stamps(database: FeatureDatabase) -> np.ndarray:
    """The stamps of the pictures of a database, N x 7; zeros where they are not known."""
    count = len(database.categories)
    with suppress(ValueError):
        known = read_archive(database.base / KNOWN, {"stamps": ("i", 2), "made_of": ("U", 0)})
        if known["made_of"] == _made_of(database) and known["stamps"].shape == (count, STAMP):
            return known["stamps"]
    return np.zeros((count, STAMP), np.int64)


def save_stamps(database: FeatureDatabase, stamps: np.ndarray) -> None:
    """Keep the stamps of the pictures of a database, N x 7, int64."""
    with suppress(UserError), atomic_write(database.base / KNOWN) as part:
        part.write_bytes(archive(stamps=stamps, made_of=_made_of(database)))


def _made_of(database: FeatureDatabase) -> str:
    """The pictures of a database by name and content."""
    others = database.metadata.sha256_others
    return f"{others[LIST]} {others[CONTENT]}"


def is_same(database: FeatureDatabase, pictures: Pictures, places: np.ndarray) -> bool:
    """Whether a database would be written as it is.

    Parameters
    ----------
    database : the one there is
    pictures : the collection
    places : of each picture, the row of the database that has its features, or else what is no row;
        -1: it is left out
    """
    kept = np.flatnonzero(places >= 0)
    count = len(database.categories)
    names: Sequence[str] = [pictures.paths[row] for row in kept]
    return (
        len(kept) == count
        and np.array_equal(places[kept], np.arange(count))
        and names == list(database.paths)
        and pictures.category_names == database.category_names
        and np.array_equal(pictures.categories[kept], database.categories)
        and np.array_equal(pictures.items[kept].astype(str), database.items)
        and database.metadata.skipped == [pictures.paths[r] for r in np.flatnonzero(places < 0)]
    )
