"""The feature database as it is written: unfinished features that survive a kill, then files."""

import hashlib
import io
import json
import os
import shutil
from collections.abc import Sequence
from contextlib import ExitStack
from operator import index
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from annotations import Pictures
from index import CATEGORY, CLASSIFIER, INFO, ITEM, LIST, PALETTE
from utils import atomic_write, parsed_json, sha256_of, sync_folder, writing

BLOCK = 8192  # rows copied at once


def npy_header(shape: tuple[int, int]) -> bytes:
    """The first bytes of a .npy file that holds a float32 matrix."""
    header = io.BytesIO()
    facts = {"descr": "<f4", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(header, facts)
    return header.getvalue()


def _place(count: int, width: int, row: int) -> int:
    """Where a row begins in such a file."""
    return len(npy_header((count, width))) + 4 * width * row


class PartialFeatures:
    """The features of one model's unfinished extraction, in a hidden folder; they survive a kill.

    The matrices are written as files, not mapped: on a full disk a mapped page kills the process.

    Parameters
    ----------
    folder : where they lie
    key : what the extraction depends on; features found there under another key are dropped
    count : number of pictures N
    widths : of each matrix, by its file's name

    Raises
    ------
    UserError : the folder cannot be written to
    """

    def __init__(self, folder: Path, key: str, count: int, widths: dict[str, int]) -> None:
        self.folder = folder
        self.key = key
        self.count = count
        self.widths = widths
        self.done = 0
        self.errors: dict[int, str] = {}
        state = self._read_state()
        with writing(folder):
            if state:
                self.done, self.errors = state["done"], state["errors"]
            else:
                remove_partial(folder)
                folder.mkdir(parents=True)
                for name, width in widths.items():
                    (folder / name).write_bytes(npy_header((count, width)))
            self.files = {name: open(folder / name, "r+b") for name in widths}  # noqa: SIM115

    def _read_state(self) -> dict[str, Any] | None:
        """What a killed run left of the same extraction; None where its features are not there."""
        try:
            state = parsed_json((self.folder / "state.json").read_text("utf-8"))
            if state["key"] != self.key or not 0 <= index(state["done"]) <= self.count:
                return None
            for name, width in self.widths.items():
                header = npy_header((self.count, width))
                with open(self.folder / name, "rb") as file:
                    whole = (
                        _place(self.count, width, state["done"]) <= os.fstat(file.fileno()).st_size
                    )
                    if not whole or file.read(len(header)) != header:
                        return None
            state["errors"] = {int(row): str(reason) for row, reason in state["errors"].items()}
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None
        return state

    def append(self, features: Sequence[np.ndarray], errors: Sequence[str]) -> None:
        """Add the features of the next pictures, one array a matrix."""
        for (name, width), feature in zip(self.widths.items(), features, strict=True):
            with writing(self.folder / name):
                self.files[name].seek(_place(self.count, width, self.done))
                self.files[name].write(np.ascontiguousarray(feature, "<f4").data)
        self.errors |= {self.done + i: reason for i, reason in enumerate(errors) if reason}
        self.done += len(errors)

    def save(self) -> None:
        """Make what was added survive: first the features, then the word that they are there."""
        for name, file in self.files.items():
            with writing(self.folder / name):
                _sync(file)
        state = {"key": self.key, "done": self.done, "errors": self.errors}
        with atomic_write(self.folder / "state.json") as part:
            part.write_text(json.dumps(state), "utf-8")

    def matrices(self) -> dict[str, np.ndarray]:
        """The finished features, mapped: N x width each, by the name of the file."""
        return {name: np.load(self.folder / name, mmap_mode="r") for name in self.widths}


def remove_partial(folder: Path) -> None:
    """Delete partial features: first the word that they are there, then the features."""
    (folder / "state.json").unlink(missing_ok=True)
    shutil.rmtree(folder, ignore_errors=True)


def write_database(
    base: Path,
    pictures: Pictures,
    partials: Sequence[PartialFeatures],
    unreadable: Sequence[int],
    classifier: tuple[np.ndarray, np.ndarray],
    facts: dict[str, Any],
) -> None:
    """Write the files of the feature database, without the rows of unreadable pictures.

    Nothing of an old one is touched before all of the new one is on the disk. Then all_feat.json
    goes first and comes last: without it the other files are no database, so that old and new ones
    are never read together.

    Parameters
    ----------
    base : DATASET_BASE
    pictures : the table
    partials : the finished extraction of each model
    unreadable : rows of the pictures that are left out, ascending
    classifier : of the first model, weight K x D and bias K
    facts : for all_feat.json

    Raises
    ------
    UserError : it cannot be written; the old one is as it was
    """
    kept = np.setdiff1d(np.arange(len(pictures)), unreadable)
    with ExitStack() as stack:
        info_part = stack.enter_context(atomic_write(base / INFO))  # entered first: renamed last

        def write(name: str, content: bytes) -> str:
            part = stack.enter_context(atomic_write(base / name))
            _write_whole(part, content)
            return sha256_of(part)

        hashes = {}
        for partial in partials:
            for name, source in partial.matrices().items():
                part = stack.enter_context(atomic_write(base / name))
                hashes[name] = _write_rows(part, source, kept)
        arrays = {CATEGORY: pictures.categories[kept], ITEM: pictures.items[kept].astype(str)}
        others = {name: write(name, _bytes_of(np.save, array)) for name, array in arrays.items()}
        weight, bias = classifier
        others[CLASSIFIER] = write(CLASSIFIER, _bytes_of(np.savez, weight=weight, bias=bias))
        lines = "".join(pictures.paths[row] + "\n" for row in kept)
        others[LIST] = write(LIST, lines.encode())
        info = {
            **facts,
            "pictures": len(kept),
            "skipped": [pictures.paths[row] for row in unreadable],
            "category_names": pictures.category_names,
            "sha256": hashes,
            "sha256_others": others,
        }
        _write_whole(info_part, json.dumps(info, indent=1).encode())
        (base / INFO).unlink(missing_ok=True)
        sync_folder(base)
        outdated = [*base.glob("all_feat_*.npy"), *base.glob("all_plain_feat_*"), base / PALETTE]
        for old in [*outdated, *base.glob("all_*.codes.npy"), *base.glob("all_*.bounds.npy")]:
            old.unlink(missing_ok=True)


def _write_whole(part: Path, content: bytes) -> None:
    with open(part, "wb") as file:
        file.write(content)
        _sync(file)


def _write_rows(part: Path, source: np.ndarray, kept: np.ndarray) -> str:
    """Write some rows of a matrix as .npy; returns the file's SHA-256."""
    digest = hashlib.sha256()
    with open(part, "wb") as file:

        def write(content: Any) -> None:
            file.write(content)
            digest.update(content)

        write(npy_header((len(kept), source.shape[1])))
        for start in range(0, len(kept), BLOCK):
            write(source[kept[start : start + BLOCK]].data)
        _sync(file)
    return digest.hexdigest()


def _sync(file: BinaryIO) -> None:
    """Have it on the disk: some file systems say only then that there is no space."""
    file.flush()
    os.fsync(file.fileno())


def _bytes_of(save: Any, *arrays: np.ndarray, **named: np.ndarray) -> bytes:
    content = io.BytesIO()
    save(content, *arrays, **named)
    return content.getvalue()
