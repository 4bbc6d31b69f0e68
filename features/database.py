"""The feature database on disk: the names of its files, and the one way to read it."""

import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from features.arrays import map_array, read_archive
from features.checksums import first_wrong
from features.metadata import Metadata
from features.path_list import PathList
from pictures.table import category_key
from utils import UserError, command

DEEP, COLOR, PALETTE = "all_feat.npy", "all_color_feat.npy", "all_palette_feat.npy"
CATEGORY, ITEM, CONTENT = "all_category.npy", "all_item.npy", "all_content.npy"
CLASSIFIER = "all_classifier.npz"
CLASSIFIER_FORMS = {"weight": ("f", 2), "bias": ("f", 1)}
LIST, INFO = "all_feat.list", "all_feat.json"
FEATURES_FORM = ("<f4", 2)
FORMS = {CATEGORY: ("<i2", 1), CONTENT: ("|u1", 2), ITEM: ("<U", 1)}  # of the other matrices
MAX_TRIES, PAUSE = 20, 0.05  # s; an extraction replaces the files in a few ms


@dataclass(frozen=True)
class FeatureDatabase:
    """The features of N pictures, opened for reading; the matrices stay on disk until used.

    Attributes
    ----------
    base : DATASET_BASE
    deep : for each model N x D, float32, the embeddings
    color : N x 3T, float32, the colour features
    palette : N x 512, float32, the palettes; None where the database has none
    plain : for each model N x D, float32, the embeddings without those of the mirror images; empty
        where `deep` has no mirror images
    paths : N paths relative to `base`
    categories : N, int16; index into `category_names`, -1 where unknown
    category_names : names of the categories
    items : N, str; the garment's id, "" where unknown
    metadata : what made the features, counts, checksums
    content : N x 32, uint8; the SHA-256 of each picture, see `incremental.look`; None where it is
        not known
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


def plain_file(number: int) -> str:
    """Name of the file of a model's embeddings without mirror images, which `FLIP` adds."""
    return f"all_plain_feat_{number + 1}.npy"


def open_database(base: Path) -> FeatureDatabase:
    """Open the feature database of a data set.

    If an extraction replaces it meanwhile, it is opened again: old and new files are never mixed.

    Raises
    ------
    UserError : it is missing or unfinished, or its files are not those that all_feat.json describes
    """
    for _ in range(MAX_TRIES):
        before = _read_info(base)
        try:
            database, failure = _open_files(base, before), None
        except UserError as error:
            failure = error
        # All_feat.json is removed before any other file is replaced, and comes back last.
        is_replaced = before is None and (base / LIST).exists()
        if before == _read_info(base) and not is_replaced:
            break
        time.sleep(PAUSE)
    if failure:
        raise failure
    return database


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
        models, settings = range(len(metadata.models)), metadata.settings
        deep = [deep_file(number) for number in models]
        plain = [plain_file(number) for number in models] if settings.FLIP else []
        names = [*deep, *plain, COLOR, CATEGORY, ITEM, LIST, CLASSIFIER]
        names += [PALETTE] if settings.PALETTE else []
        names += [CONTENT] if CONTENT in metadata.sha256_others else []  # older versions had none
        checksums = {name: metadata.checksums[name] for name in names}
        fault = ""
        for name in names:
            files[name] = _open_file(base / name, metadata)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(f"{base / name}: {fault}{': ' if fault else ''}{error}; {remedy}") from None
    wrong = first_wrong(base, checksums)
    if wrong:
        raise UserError(f"{base / wrong[0]}: {wrong[1]}; {remedy}")
    return FeatureDatabase(
        base=base,
        deep=tuple(files[name] for name in deep),
        color=files[COLOR],
        palette=files.get(PALETTE),
        plain=tuple(files[name] for name in plain),
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


def unit_rows(features: np.ndarray) -> np.ndarray:
    """Rows scaled to length 1; rows of zeros stay."""
    return features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
