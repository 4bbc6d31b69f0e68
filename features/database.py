"""The feature database on disk, and the engines that rank it.

The distance of a picture to a query is the weighted sum of its signals, smaller is nearer:
d = metric0(deep) + COLOR_WEIGHT * metric1(colour) + PALETTE_WEIGHT * metric1(palette), with a
deep term for each further model.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from features.arrays import all_finite, map_array, read_archive
from features.checksums import first_wrong
from features.metadata import Metadata
from features.path_list import Lines
from utils import UserError

DEEP, COLOR, PALETTE = "all_feat.npy", "all_color_feat.npy", "all_palette_feat.npy"
CATEGORY, ITEM = "all_category.npy", "all_item.npy"
CONTENT = "all_content.npy"
CLASSIFIER = "all_classifier.npz"
CLASSIFIER_FORMS = {"weight": ("f", 2), "bias": ("f", 1)}
LIST, INFO = "all_feat.list", "all_feat.json"
OTHERS = (CATEGORY, ITEM, LIST)  # beside the features
TRIES, PAUSE = 20, 0.05  # s; an extraction replaces the files in a few ms


@dataclass(frozen=True)
class FeatureDatabase:
    """The features of N pictures, opened for reading; the matrices stay on disk until used.

    Attributes
    ----------
    base : DATASET_BASE
    deep : of each model, N x D, float32, the embeddings
    color : N x 3T, float32, the colour features
    palette : N x 512, float32, the palettes; None where the database has none
    plain : as `deep`, without the mirror images that are in it; empty where none are
    paths : N paths relative to `base`
    categories : N, int16; index into `category_names`, -1 where unknown
    category_names : names of the categories
    items : N, str; the garment's id, "" where unknown
    metadata : what made the features, counts, checksums
    content : N x 32, uint8; what each was made of, see `changes.look`; None where that is not known
    """

    base: Path
    deep: tuple[np.ndarray, ...]
    color: np.ndarray
    palette: np.ndarray | None
    plain: tuple[np.ndarray, ...]
    paths: Sequence[str]
    categories: np.ndarray
    category_names: list[str]
    items: np.ndarray
    metadata: Metadata
    content: np.ndarray | None = None

    @property
    def info(self) -> dict[str, Any]:  # TODO: the last users go to `metadata`
        return self.metadata.model_dump()

    def category(self, row: int) -> str:
        """Name of a picture's category, "" where unknown."""
        number = int(self.categories[row])
        return self.category_names[number] if number >= 0 else ""

    def rows_of(self, category: str) -> np.ndarray:
        """Rows of the pictures of a category.

        Raises
        ------
        UserError : no picture has such a category
        """
        lower = [name.lower() for name in self.category_names]
        number = lower.index(category.lower()) if category.lower() in lower else -2
        rows = np.flatnonzero(self.categories == number)
        if not len(rows):
            used = np.unique(self.categories[self.categories >= 0])
            names = ", ".join(sorted(self.category_names[i] for i in used))
            raise UserError(f"--category {category!r}: no such category; there are {names}")
        return rows


def deep_file(number: int) -> str:
    """Name of the matrix of the model with this number, from 0."""
    return f"all_feat_{number + 1}.npy" if number else DEEP


def plain_file(number: int) -> str:
    """Name of the model's matrix without mirror images, which `FLIP` adds to measure its gain."""
    return f"all_plain_feat_{number + 1}.npy"


def open_database(base: Path) -> FeatureDatabase:
    """Open the feature database of a data set.

    Where an extraction is replacing it, this is done again: old and new files never come together.

    Raises
    ------
    UserError : it is missing or unfinished, or its files do not belong together, or are not those
        that all_feat.json describes
    """
    for _ in range(TRIES):
        before = _read_info(base)
        try:
            database, failure = _open_files(base, before), None
        except UserError as error:
            failure = error
        # It goes before any other file does, and comes back last.
        absent = before is None and (base / LIST).exists()
        if before == _read_info(base) and not absent:
            break
        time.sleep(PAUSE)
    if failure:
        raise failure
    return database


def _read_info(base: Path) -> bytes | None:
    try:
        return (base / INFO).read_bytes() if (base / INFO).is_file() else None
    except OSError:
        return None


def _open_files(base: Path, described: bytes | None) -> FeatureDatabase:
    """Open the files that a content of all_feat.json describes."""
    again = f"run: python feature_extractor.py --dataset-base {base}"
    if described is None:
        raise UserError(f"{base}: no feature database ({INFO}); {again}")

    def refuse(name: str, fault: object) -> NoReturn:
        raise UserError(f"{base / name}: {fault}; {again}")

    try:
        metadata = Metadata.from_json(described)
    except ValueError as error:
        refuse(INFO, f"damaged, or of another version: {error}")
    count, category_names = metadata.pictures, metadata.category_names
    models = range(len(metadata.models))
    deep = [deep_file(number) for number in models]
    plain = [plain_file(number) for number in models] if metadata.settings.FLIP else []
    names = [*deep, *plain, COLOR, *([PALETTE] if metadata.settings.PALETTE else [])]
    columns: dict[str, Any] = {}
    content = [CONTENT] if CONTENT in metadata.sha256_others else []  # before, it was not written
    for name in (*names, *OTHERS, *content):
        try:
            columns[name] = _open_column(base / name, count, again)
        except (OSError, ValueError) as error:
            refuse(name, error)
        if len(columns[name]) != count:
            refuse(name, f"has {len(columns[name])} rows, {INFO} says {count}")
    try:
        read_archive(base / CLASSIFIER, CLASSIFIER_FORMS)
    except ValueError as error:
        refuse(CLASSIFIER, error)
    if not -1 <= columns[CATEGORY].min() <= columns[CATEGORY].max() < len(category_names):
        refuse(CATEGORY, f"holds other categories than the {len(category_names)} of {INFO}")
    hashes = metadata.checksums
    unnamed = [name for name in (*columns, CLASSIFIER) if name not in hashes]
    if unnamed:
        refuse(INFO, f"damaged, or of another version: no SHA-256 of {unnamed[0]}")
    hashes = {name: hashes[name] for name in (*columns, CLASSIFIER)}
    wrong = first_wrong(base, hashes, lambda name: _fault(columns.get(name)))
    if wrong:
        refuse(*wrong)
    return FeatureDatabase(
        base=base,
        deep=tuple(columns[name] for name in deep),
        color=columns[COLOR],
        palette=columns.get(PALETTE),
        plain=tuple(columns[name] for name in plain),
        paths=columns[LIST],
        categories=columns[CATEGORY],
        category_names=category_names,
        items=columns[ITEM],
        metadata=metadata,
        content=columns.get(CONTENT),
    )


def _open_column(path: Path, count: int, again: str) -> Any:
    """A file of the database, of which each row is a picture's."""
    if path.name == LIST:
        return Lines(path, count, again)
    forms = {CATEGORY: ("<i2", 1), CONTENT: ("|u1", 2), ITEM: ("<U", 1)}
    return map_array(path, *forms.get(path.name, ("<f4", 2)))


def _fault(column: Any) -> str:
    """What is wrong within a column, "" for nothing."""
    try:
        if isinstance(column, np.ndarray) and column.dtype.kind == "f" and not all_finite(column):
            return "holds NaN or infinity"
        if isinstance(column, Lines) or (column is not None and column.dtype.kind == "U"):
            "".join(column).encode()
    except UnicodeDecodeError as error:
        return f"line {error.object.count(10, 0, error.start) + 1} is not UTF-8 text"
    except (ValueError, SystemError):  # of numbers that are no character
        return "holds what is no text"
    return ""


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
