"""The feature database on disk: the names of its files, and the one way to read it."""

import json
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import map_array, read_archive
from features.metadata import Metadata
from pictures.table import category_key
from utils import UserError, atomic_write, command, file_stamp, sha256_of

DEEP, COLOR, PALETTE = "all_feat.npy", "all_color_feat.npy", "all_palette_feat.npy"
CATEGORY, ITEM, CONTENT = "all_category.npy", "all_item.npy", "all_content.npy"
CLASSIFIER = "all_classifier.npz"
CLASSIFIER_FORMS = {"weight": ("f", 2), "bias": ("f", 1)}
LIST, INFO = "all_feat.list", "all_feat.json"
FEATURES_FORM = ("<f4", 2)
FORMS = {CATEGORY: ("<i2", 1), CONTENT: ("|u1", 2), ITEM: ("<U", 1)}  # of the other matrices
CHECKED = ".all_feat.stamps"
MAX_TRIES, PAUSE = 20, 0.05  # s; an extraction replaces the files in a few ms


class PathList(Sequence[str]):
    """Lines of a UTF-8 file, which are decoded when they are needed: a query shows a few.

    Parameters
    ----------
    path : the file, at least one line
    count : number of its lines

    Raises
    ------
    ValueError, OSError : it cannot be opened, or has another number of lines
    """

    def __init__(self, path: Path, count: int) -> None:
        self._bytes = np.memmap(path, np.uint8, "r")
        ends = np.flatnonzero(self._bytes == ord("\n"))
        if len(ends) != count:
            raise ValueError(f"has {len(ends)} lines, not {count}")
        self._starts = np.concatenate([[0], ends + 1])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        row = range(len(self))[row]  # an IndexError beyond the end
        line = self._bytes[self._starts[row] : self._starts[row + 1] - 1]
        return line.tobytes().decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return iter(self._bytes.tobytes().decode("utf-8").split("\n")[:-1])


@dataclass(frozen=True)
class FeatureDatabase:
    """The features of N pictures, opened for reading; the matrices stay on disk until used.

    Attributes
    ----------
    base : DATASET_BASE
    deep : for each model N x D, float32, the embeddings
    color : N x 3T, float32, the colour features
    palette : N x 512, float32, the palettes; None where the database has none
    paths : N paths relative to `base`
    categories : N, int16; index into `category_names`, -1 where unknown
    category_names : names of the categories
    items : N, str; the garment's id, "" where unknown
    metadata : what made the features, counts, checksums
    content : N x 32, uint8; the SHA-256 of each picture, see `incremental.digest_of`; None where
        it is not known
    """

    base: Path
    deep: tuple[np.ndarray, ...]
    color: np.ndarray
    palette: np.ndarray | None
    paths: Sequence[str]
    categories: np.ndarray
    category_names: list[str]
    items: np.ndarray
    metadata: Metadata
    content: np.ndarray | None = None

    def category(self, row: int) -> str:
        """Name of a picture's category, "" where unknown."""
        number = int(self.categories[row])
        return self.category_names[number] if number >= 0 else ""

    def rows_of(self, category: str) -> np.ndarray:
        """Rows of the pictures of a category, int64, ascending.

        Raises
        ------
        UserError : no picture has such a category
        """
        key = category_key(category)
        numbers = [i for i, name in enumerate(self.category_names) if category_key(name) == key]
        rows = np.flatnonzero(np.isin(self.categories, numbers))
        if not len(rows):
            used = np.unique(self.categories[self.categories >= 0])
            names = ", ".join(sorted(self.category_names[i] for i in used))
            raise UserError(f"--category {category!r}: no such category; there are {names}")
        return rows


def deep_file(number: int) -> str:
    """Name of the file of a model's embeddings; models are numbered from 0."""
    return f"all_feat_{number + 1}.npy" if number else DEEP


def deep_name(number: int) -> str:
    """Name of the signal of a model's embeddings; models are numbered from 0."""
    return f"deep_{number + 1}" if number else "deep"


def open_database(base: Path) -> FeatureDatabase:
    """Open the feature database of a data set.

    If an extraction replaces it meanwhile, it is opened again: old and new files are never mixed.

    Raises
    ------
    UserError : it is missing or unfinished, or its files are not those that all_feat.json describes
    """
    for _ in range(MAX_TRIES):
        info = _read_info(base)
        try:
            return _open_files(base, info)
        except UserError as error:
            failure = error
        # All_feat.json is removed before any other file is replaced, and comes back last.
        is_replaced = info is None and (base / LIST).exists()
        if info == _read_info(base) and not is_replaced:
            break
        time.sleep(PAUSE)
    raise failure


def _read_info(base: Path) -> bytes | None:
    with suppress(OSError):
        return (base / INFO).read_bytes()
    return None


def _open_files(base: Path, info: bytes | None) -> FeatureDatabase:
    """Open the files that the content of all_feat.json describes."""
    remedy = f"run: {command('feature_extractor.py', base)}"
    if info is None:
        raise UserError(f"{base}: no feature database ({INFO}); {remedy}")
    name, fault = INFO, "damaged, or of another version"
    files: dict[str, Any] = {}
    try:
        metadata = Metadata.from_json(info)
        deep = [deep_file(number) for number in range(len(metadata.models))]
        names = [*deep, COLOR, CATEGORY, ITEM, LIST, CLASSIFIER]
        names += [PALETTE] if metadata.settings.PALETTE else []
        names += [CONTENT] if CONTENT in metadata.sha256_others else []  # older versions had none
        checksums = {name: metadata.checksums[name] for name in names}
        fault = ""
        for name in names:
            files[name] = _open_file(base / name, metadata)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{base / name}: {fault}{': ' if fault else ''}{error}; {remedy}") from None
    if wrong := first_wrong(base, checksums):
        raise UserError(f"{base / wrong}: not the file that {INFO} describes; {remedy}")
    return FeatureDatabase(
        base=base,
        deep=tuple(files[name] for name in deep),
        color=files[COLOR],
        palette=files.get(PALETTE),
        paths=files[LIST],
        categories=files[CATEGORY],
        category_names=metadata.category_names,
        items=files[ITEM],
        metadata=metadata,
        content=files.get(CONTENT),
    )


def _open_file(path: Path, metadata: Metadata) -> Any:
    """Open one file; a ValueError says what is wrong with its form."""
    count, names = metadata.pictures, metadata.category_names
    if path.name == LIST:
        return PathList(path, count)
    if path.name == CLASSIFIER:
        return read_archive(path, CLASSIFIER_FORMS)
    array = map_array(path, *FORMS.get(path.name, FEATURES_FORM))
    if len(array) != count:
        raise ValueError(f"has {len(array)} rows, {INFO} says {count}")
    if path.name == CATEGORY and not -1 <= array.min() <= array.max() < len(names):
        raise ValueError(f"holds other categories than the {len(names)} of {INFO}")
    return array


def first_wrong(base: Path, checksums: Mapping[str, str]) -> str:
    """Name of the first of some files that is missing or has another SHA-256, or "".

    Only files that have changed since the last call are read: under 1 s for 1 GB.

    Parameters
    ----------
    base : their folder, where the stamps are saved too if it can be written to
    checksums : the SHA-256 of each file by its name, 64 hexadecimal digits
    """
    before, now = {}, {}
    with suppress(OSError, ValueError, TypeError, RecursionError):
        before = dict(json.loads((base / CHECKED).read_bytes()))
    for name, sha256 in checksums.items():
        try:
            now[name] = [*file_stamp(base / name), sha256]
            if before.get(name) != now[name] and sha256_of(base / name) != sha256:
                return name
        except OSError:  # another process may just be replacing it
            return name
    if any(before.get(name) != now[name] for name in checksums):
        with suppress(UserError), atomic_write(base / CHECKED) as part:
            part.write_text(json.dumps(now), "utf-8")
    return ""


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
