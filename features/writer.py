"""The one way to write a feature database.

No old file is touched before all new ones are on the disk. Then all_feat.json is removed first and
comes back last: without it the other files are no database, so that old and new files are never
read together.
"""

import glob
import io
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
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
from utils import atomic_write, sha256_of, sync_folder

BLOCK = 8192  # rows copied at once
OUTDATED = ("all_feat_*.npy", "all_plain_feat_*", PALETTE, "all_*.codes.npy", "all_*.bounds.npy")


class Stacked:
    """Matrices of the same width, n x D each, read as if one lay below the other."""

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        self.width = parts[0].shape[1]
        self.dtype = parts[0].dtype

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Some of the rows, in any order: M -> M x D."""
        found = np.empty((len(rows), self.width), self.dtype)
        number = np.searchsorted(self.ends, rows, side="right")
        for i, part in enumerate(self.parts):
            wanted = number == i
            if wanted.any():
                found[wanted] = part[rows[wanted] - (self.ends[i] - len(part))]
        return found

    def npy(self, rows: np.ndarray) -> Iterator[bytes | memoryview]:
        """The content of a .npy file of some of the rows, block by block."""
        header, shape = io.BytesIO(), (len(rows), self.width)
        form = {"descr": self.dtype.str, "fortran_order": False, "shape": shape}
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
    rows = np.flatnonzero(places >= 0)
    with atomic_write(base / INFO) as info_part, ExitStack() as stack:  # the first is renamed last

        def write(name: str, content: Iterable[Any]) -> str:
            part = stack.enter_context(atomic_write(base / name))
            _write(part, content)
            return sha256_of(part)

        sha256 = {name: write(name, matrix.npy(places[rows])) for name, matrix in matrices.items()}
        weight, bias = classifier
        others = {
            CATEGORY: write(CATEGORY, [_npy(pictures.categories[rows])]),
            ITEM: write(ITEM, [_npy(pictures.items[rows].astype(str))]),
            CONTENT: sha256.pop(CONTENT),
            CLASSIFIER: write(CLASSIFIER, [archive(weight=weight, bias=bias)]),
            LIST: write(LIST, (f"{pictures.paths[row]}\n".encode() for row in rows)),
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
        _write(info_part, [metadata.to_json()])
        (base / INFO).unlink(missing_ok=True)
        sync_folder(base)
        for file in [file for pattern in OUTDATED for file in base.glob(pattern)]:
            file.unlink(missing_ok=True)


def finish_writing(base: Path) -> None:
    """Rename the files of a new database where `write_database` was killed while it did so.

    The old database is gone by then, and an update would have nothing to keep. Where the new one is
    not whole, nothing is done.
    """
    for info_part in [] if (base / INFO).exists() else base.glob(f".{INFO}.*.part"):
        try:
            metadata = Metadata.from_json(info_part.read_bytes())
            found = {name: _find(base, name, digest) for name, digest in metadata.checksums.items()}
        except (OSError, ValueError, StopIteration):
            continue
        for name, file in found.items():
            os.replace(file, base / name)
        os.replace(info_part, base / INFO)
        sync_folder(base)
        return


def _find(base: Path, name: str, sha256: str) -> Path:
    """The file of this content, renamed already or not."""
    candidates = [base / name, *base.glob(f".{glob.escape(name)}.*.part")]
    return next(file for file in candidates if file.exists() and sha256_of(file) == sha256)


def _write(part: Path, content: Iterable[Any]) -> None:
    """Write a file and sync it: some file systems say only then that there is no space."""
    with open(part, "wb") as file:
        file.writelines(content)
        file.flush()
        os.fsync(file.fileno())


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()
