"""The feature database as it is written: unfinished features that survive a kill, then files."""

import glob
import hashlib
import io
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from operator import index
from pathlib import Path
from typing import Any, BinaryIO

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
from utils import atomic_write, parsed_json, sha256_of, sync_folder, writing

BLOCK = 8192  # rows copied at once

Columns = Mapping[str, tuple[int, str]]  # of each matrix its width and dtype, by its file's name


def npy_header(shape: tuple[int, int], dtype: str = "<f4") -> bytes:
    """The first bytes of a .npy file that holds a matrix."""
    header = io.BytesIO()
    facts = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


class Shard:
    """The features of consecutive pictures of an unfinished extraction; they survive a kill.

    A process that extracts writes shards of its own, in hidden folders; what it leaves, others take
    as it is. The matrices are written as files, not mapped: on a full disk a mapped page kills the
    process.

    Parameters
    ----------
    folder : where it lies
    key : what the extraction depends on
    planned : the pictures that it is for, by their numbers in the extraction
    columns : its matrices

    Attributes
    ----------
    done : those of them that are in it
    errors : why some of these could not be read, by their numbers
    """

    def __init__(self, folder: Path, key: str, planned: range, columns: Columns) -> None:
        self.folder = folder
        self.key = key
        self.planned = planned
        self.columns = columns
        self.done = 0
        self.errors: dict[int, str] = {}
        self.files: dict[str, BinaryIO] = {}

    @property
    def rows(self) -> range:
        """The pictures that are in it."""
        return self.planned[: self.done]

    def append(self, features: Sequence[np.ndarray], errors: Sequence[str]) -> None:
        """Add the features of the next pictures, one array a matrix, and why one has none.

        Raises
        ------
        UserError : it cannot be written
        """
        if not self.files:
            with writing(self.folder):
                remove_partial(self.folder)
                self.folder.mkdir(parents=True)
                for name in self.columns:
                    self.files[name] = open(self.folder / name, "wb")  # noqa: SIM115
        for (name, (_, dtype)), feature in zip(self.columns.items(), features, strict=True):
            with writing(self.folder / name):
                self.files[name].write(np.ascontiguousarray(feature, dtype).data)
        self.errors |= {self.rows.stop + i: reason for i, reason in enumerate(errors) if reason}
        self.done += len(errors)

    def save(self) -> None:
        """Make what was added survive: first the features, then the word that they are there."""
        for name, file in self.files.items():
            with writing(self.folder / name):
                _sync(file)
        rows = {"start": self.rows.start, "done": self.done}
        state = {"key": self.key, **rows, "errors": self.errors}
        with atomic_write(self.folder / "state.json") as part:
            part.write_text(json.dumps(state), "utf-8")

    def matrix(self, name: str) -> np.ndarray:
        """One of its matrices, mapped."""
        width, dtype = self.columns[name]
        return np.memmap(self.folder / name, dtype, "r", shape=(self.done, width))


def read_shards(folder: Path, key: str, columns: Columns, total: int) -> list[Shard]:
    """What other runs of an extraction have left, in order; everything else there is removed.

    Parameters
    ----------
    folder : of the shards of one model
    key, columns : see `Shard`
    total : pictures of the extraction
    """
    found: list[Shard] = []
    for place in sorted(folder.iterdir()) if folder.is_dir() else []:
        shard = _read_shard(place, key, columns)
        free = found[-1].rows.stop if found else 0
        if shard and free <= shard.rows.start and shard.rows.stop <= total:
            found.append(shard)
        else:
            remove_partial(place)
    return found


def _read_shard(folder: Path, key: str, columns: Columns) -> Shard | None:
    """A shard that was saved; None where it is another extraction's, or was never whole."""
    try:
        state = parsed_json((folder / "state.json").read_text("utf-8"))
        start, done = index(state["start"]), index(state["done"])
        if state["key"] != key or folder.name != place_of(start):
            return None
        shard = Shard(folder, key, range(start, start + done), columns)
        shard.done = done
        for name, (width, dtype) in columns.items():
            size = (folder / name).stat().st_size
            if not 0 < done * width * np.dtype(dtype).itemsize <= size:
                return None
        shard.errors = {int(row): str(reason) for row, reason in state["errors"].items()}
        if not all(row in shard.rows for row in shard.errors):
            return None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return shard


def place_of(start: int) -> str:
    """The name of a shard's folder; names in their order are the shards in theirs."""
    return f"{start:012d}"


def missing(shards: Sequence[Shard], total: int) -> list[range]:
    """The pictures of an extraction that are in none of its shards, which are in order."""
    ends = [0, *(shard.rows.stop for shard in shards)]
    starts = [*(shard.rows.start for shard in shards), total]
    return [range(a, b) for a, b in zip(ends, starts, strict=True) if a < b]


def shared_out(gaps: Sequence[range], ranks: int, batch: int, total: int) -> list[list[range]]:
    """What is missing of an extraction, in as many parts, which differ by at most one batch.

    The batches are those of an undisturbed run of one process, and so the features are, too.

    Parameters
    ----------
    gaps : what is missing; each begins with a whole batch
    ranks : number of parts
    batch : pictures of a batch
    total : pictures of the extraction

    Returns
    -------
    Of each rank consecutive pictures, in order.
    """
    starts = [np.arange(gap.start, gap.stop, batch) for gap in gaps]
    parts = np.array_split(np.concatenate([np.empty(0, np.int64), *starts]), ranks)
    return [
        [
            range(int(run[0]), min(int(run[-1]) + batch, total))
            for run in np.split(part, np.flatnonzero(np.diff(part) != batch) + 1)
            if len(run)
        ]
        for part in parts
    ]


def remove_partial(folder: Path) -> None:
    """Delete shards, or one: first the word that they are there, then the features."""
    if not folder.is_dir():
        folder.unlink(missing_ok=True)
        return
    for state in [folder / "state.json", *folder.glob("*/state.json")]:
        state.unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


class Stacked:
    """Matrices of the same width, read as if one lay below the other.

    Parameters
    ----------
    parts : n x D each
    """

    def __init__(self, parts: Sequence[np.ndarray]) -> None:
        self.parts = parts
        self.ends = np.cumsum([len(part) for part in parts])
        self.width = parts[0].shape[1]
        self.dtype = parts[0].dtype

    def take(self, rows: np.ndarray) -> np.ndarray:
        """Some of the rows, of any order."""
        found = np.empty((len(rows), self.width), self.dtype)
        place = np.searchsorted(self.ends, rows, side="right")
        for number, part in enumerate(self.parts):
            wanted = place == number
            if wanted.any():
                found[wanted] = part[rows[wanted] - (self.ends[number] - len(part))]
        return found


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
    """Write the files of the feature database, without the rows of unreadable pictures.

    Nothing of an old one is touched before all of the new one is on the disk. Then all_feat.json
    goes first and comes last: without it the other files are no database, so that old and new ones
    are never read together.

    Parameters
    ----------
    base : DATASET_BASE
    pictures : the table
    matrices : by the names of their files
    places : the row of each picture in them, N, int64; -1: it is left out
    classifier : of the first model, weight K x D and bias K
    models, settings : for all_feat.json, see `Metadata`
    old : the database that this one comes of, if its rows are the first in the matrices

    Raises
    ------
    UserError : it cannot be written; the old one is as it was
    """
    kept = np.flatnonzero(places >= 0)
    with ExitStack() as stack:
        info_part = stack.enter_context(atomic_write(base / INFO))  # entered first: renamed last

        def write(name: str, content: bytes) -> str:
            part = stack.enter_context(atomic_write(base / name))
            _write_whole(part, content)
            return sha256_of(part)

        hashes = {}
        for name, source in matrices.items():
            part = stack.enter_context(atomic_write(base / name))
            hashes[name] = _write_rows(part, source, places[kept])
        arrays = {CATEGORY: pictures.categories[kept], ITEM: pictures.items[kept].astype(str)}
        others = {name: write(name, _npy(array)) for name, array in arrays.items()}
        others[CONTENT] = hashes.pop(CONTENT)
        weight, bias = classifier
        others[CLASSIFIER] = write(CLASSIFIER, archive(weight=weight, bias=bias))
        lines = "".join(pictures.paths[row] + "\n" for row in kept)
        others[LIST] = write(LIST, lines.encode())
        metadata = Metadata(
            models=list(models),
            settings=settings,
            pictures=len(kept),
            skipped=[pictures.paths[row] for row in np.flatnonzero(places < 0)],
            category_names=pictures.category_names,
            sha256=hashes,
            sha256_others=others,
            follows=old.metadata.sha256[DEEP] if old else "",
            came=int((places >= len(old.categories)).sum()) if old else 0,
        )
        _write_whole(info_part, metadata.to_json())
        (base / INFO).unlink(missing_ok=True)
        sync_folder(base)
        outdated = [*base.glob("all_feat_*.npy"), *base.glob("all_plain_feat_*"), base / PALETTE]
        for file in [*outdated, *base.glob("all_*.codes.npy"), *base.glob("all_*.bounds.npy")]:
            file.unlink(missing_ok=True)


def finish_writing(base: Path) -> None:
    """Give the files of a new database their names, where `write_database` was killed meanwhile.

    The old one is gone by then, and with it what an update would keep. Where the new one is not
    whole, nothing is done.
    """
    infos = [] if (base / INFO).exists() else [*base.glob(f".{INFO}.*.part")]
    for info_part in infos:
        try:
            info = parsed_json(info_part.read_bytes())
            hashes = {**info["sha256"], **info["sha256_others"]}
            found = {}
            for name, digest in hashes.items():
                candidates = [base / name, *base.glob(f".{glob.escape(name)}.*.part")]
                found[name] = next(f for f in candidates if f.exists() and sha256_of(f) == digest)
        except (OSError, ValueError, KeyError, TypeError, StopIteration):
            continue
        for name, file in found.items():
            os.replace(file, base / name)
        os.replace(info_part, base / INFO)
        sync_folder(base)
        return


def _write_whole(part: Path, content: bytes) -> None:
    with open(part, "wb") as file:
        file.write(content)
        _sync(file)


def _write_rows(part: Path, source: Stacked, rows: np.ndarray) -> str:
    """Write some rows of a matrix as .npy; returns the file's SHA-256."""
    digest = hashlib.sha256()
    with open(part, "wb") as file:

        def write(content: Any) -> None:
            file.write(content)
            digest.update(content)

        write(npy_header((len(rows), source.width), source.dtype.str))
        for start in range(0, len(rows), BLOCK):
            write(source.take(rows[start : start + BLOCK]).data)
        _sync(file)
    return digest.hexdigest()


def _sync(file: BinaryIO) -> None:
    """Have it on the disk: some file systems say only then that there is no space."""
    file.flush()
    os.fsync(file.fileno())


def _npy(array: np.ndarray) -> bytes:
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()
