"""The one way to write a feature database.

The new files are written to a folder of their own; all_feat.json comes last. Then all_feat.json of
the old database is removed, the new files replace the old ones, and all_feat.json again comes last:
old and new files are never read together, and a killed run is finished by the next one.
"""

import hashlib
import io
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import archive
from features.database import (
    CATEGORY,
    CLASSIFIER,
    CONTENT,
    DEEP,
    INFO,
    ITEM,
    LIST,
    PALETTE,
    FeatureDatabase,
)
from features.metadata import FeatureSettings, Metadata, ModelRecord
from pictures.table import Pictures
from utils import UserError, atomic_write, sync_folder, writing

NEW = ".extract_new"  # the folder of the new files
BLOCK = 8192  # rows copied at once
OUTDATED = (
    "all_feat_[0-9].npy",
    "all_feat_[0-9][0-9].npy",
    PALETTE,
    "all_*.codes.npy",
    "all_*.bounds.npy",
)


@dataclass(frozen=True)
class Stacked:
    """A matrix whose rows lie in several files, which are opened when they are needed.

    Attributes
    ----------
    name : of the matrix; its key in an .npz file
    parts : .npy and .npz files, and the numbers of the rows that each has, ascending
    """

    name: str
    parts: Sequence[tuple[Path, np.ndarray]]

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Some of the rows, in any order: M -> M x D."""
        found, order = [], []
        first, last = rows.min(), rows.max()
        for file, numbers in self.parts:
            if numbers[-1] < first or numbers[0] > last:  # most of a large extraction's chunks
                continue
            places = np.minimum(np.searchsorted(numbers, rows), len(numbers) - 1)
            here = numbers[places] == rows
            if here.any():
                array = np.load(file, mmap_mode="r")
                part = array if isinstance(array, np.ndarray) else array[self.name]
                found.append(part[places[here]])
                order.append(np.flatnonzero(here))
        return np.concatenate(found)[np.argsort(np.concatenate(order))]

    def npy(self, rows: np.ndarray) -> Iterator[bytes | memoryview]:
        """The content of a .npy file of some of the rows, block by block."""
        header, row = io.BytesIO(), self.take(rows[:1])
        shape = len(rows), row.shape[1]
        form = {"descr": row.dtype.str, "fortran_order": False, "shape": shape}
        np.lib.format.write_array_header_1_0(header, form)
        yield header.getvalue()
        for start in range(0, len(rows), BLOCK):
            yield self.take(rows[start : start + BLOCK]).data


def write_database(
    base: Path,
    pictures: Pictures,
    matrices: Mapping[str, Stacked],
    places: np.ndarray,
    classifier: tuple[np.ndarray, np.ndarray],
    models: Sequence[ModelRecord],
    settings: FeatureSettings,
    old: FeatureDatabase | None = None,
) -> None:
    """Write the files of a feature database, without the rows of unreadable pictures.

    Parameters
    ----------
    base : DATASET_BASE
    pictures : the table of the N pictures
    matrices : by the names of their files
    places : the row of each picture in the matrices, N, int64; -1: it is unreadable
    classifier : of the first model, weight K x D and bias K
    models, settings : see `Metadata`
    old : the database that is updated, if its rows are the first in the matrices

    Raises
    ------
    UserError : it cannot be written; the old one is as it was
    """
    rows, new = np.flatnonzero(places >= 0), base / NEW
    shutil.rmtree(new, ignore_errors=True)
    try:
        sha256 = {name: _write(new / name, m.npy(places[rows])) for name, m in matrices.items()}
        weight, bias = classifier
        others = {
            CATEGORY: _write(new / CATEGORY, [_npy(pictures.categories[rows])]),
            ITEM: _write(new / ITEM, [_npy(pictures.items[rows].astype(str))]),
            CONTENT: sha256.pop(CONTENT),
            CLASSIFIER: _write(new / CLASSIFIER, [archive(weight=weight, bias=bias)]),
            LIST: _write(new / LIST, (f"{pictures.paths[row]}\n".encode() for row in rows)),
        }
        metadata = Metadata(
            models=list(models),
            settings=settings,
            pictures=len(rows),
            skipped=[pictures.paths[row] for row in np.flatnonzero(places < 0)],
            category_names=pictures.category_names,
            sha256=sha256,
            sha256_others=others,
            follows=old.metadata.sha256[DEEP] if old else "",
            came=int((places >= len(old.categories)).sum()) if old else 0,
        )
        with atomic_write(new / INFO) as part:
            part.write_bytes(metadata.to_json())
    except UserError:
        shutil.rmtree(new)  # the disk may be full
        raise
    finish_writing(base)


def finish_writing(base: Path) -> None:
    """Replace the old files by the new ones, where these are whole; else nothing is done."""
    new = base / NEW
    if not (new / INFO).exists():
        return
    metadata = Metadata.from_json((new / INFO).read_bytes())
    with writing(base):
        (base / INFO).unlink(missing_ok=True)
        sync_folder(base)
        for file in [file for pattern in OUTDATED for file in base.glob(pattern)]:
            if file.name not in metadata.sha256:
                file.unlink(missing_ok=True)
        for name in metadata.checksums:
            if (new / name).exists():  # else a run that was killed has done it
                os.replace(new / name, base / name)
        sync_folder(base)
        os.replace(new / INFO, base / INFO)
        sync_folder(base)
        new.rmdir()


def _write(path: Path, content: Iterable[Any]) -> str:
    """Write a file and sync it: a full disk may show only then. Returns its SHA-256."""
    digest = hashlib.sha256()
    with writing(path):
        path.parent.mkdir(exist_ok=True)
        with open(path, "wb") as file:
            for block in content:
                digest.update(block)
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
    return digest.hexdigest()


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()
