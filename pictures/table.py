"""The table of pictures that all readers give, and what is computed on its columns."""

import hashlib
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError, print_once, shown

PARTITIONS = ("train", "val", "test")
INSHOP_PARTITIONS = ("train", "query", "gallery")
MAX_CATEGORIES = 1 << 15  # their numbers are int16


@dataclass(frozen=True)
class Pictures:
    """A table of N pictures, one array or list a column.

    Attributes
    ----------
    paths : N paths relative to DATASET_BASE, with "/" on every system
    categories : N, int16; index into `category_names`, -1 where unknown
    category_names : names of the categories, by number
    partitions : N, str; train, val, test, or train, val, query, gallery for items
    boxes : N x 4, int32; x1 y1 x2 y2 of the garment in px, all 0 where there is none
    items : N, str; the garment's id, "" where unknown
    colors : N, str; the colour variant of the item, "" where unknown
    types : N, int8; clothes type: 1 upper, 2 lower, 3 full body, 0 where unknown
    """

    paths: list[str]
    categories: np.ndarray
    category_names: list[str]
    partitions: np.ndarray
    boxes: np.ndarray
    items: np.ndarray
    colors: np.ndarray
    types: np.ndarray

    @classmethod
    def of(
        cls,
        paths: list[str],
        categories: np.ndarray,
        category_names: list[str],
        partitions: np.ndarray,
        **columns: np.ndarray,
    ) -> "Pictures":
        """A table whose boxes, items, colours and types are unknown, but for those of `columns`."""
        count = len(paths)
        unknown = np.full(count, "", "<U1")
        boxes, types = np.zeros((count, 4), np.int32), np.zeros(count, np.int8)
        empty = {"boxes": boxes, "items": unknown, "colors": unknown, "types": types}
        return cls(paths, categories, category_names, partitions, **empty | columns)

    def __len__(self) -> int:
        return len(self.paths)

    def select(self, rows: np.ndarray) -> "Pictures":
        """The rows of a mask or an index array, in its order."""
        rows = np.flatnonzero(rows) if rows.dtype == bool else rows
        arrays: dict[str, Any] = {
            n: c[rows] for n, c in vars(self).items() if isinstance(c, np.ndarray)
        }
        return replace(self, paths=[self.paths[row] for row in rows.tolist()], **arrays)

    def in_partition(self, *names: str) -> "Pictures":
        """The pictures of the named partitions."""
        return self.select(np.isin(self.partitions, names))


def align(paths: Sequence[str], other: Sequence[str]) -> np.ndarray:
    """For each path its row in another list, int64, -1 where it is missing."""
    if paths == other:
        return np.arange(len(paths))
    row_of = {path: row for row, path in enumerate(other)}
    return np.array([row_of.get(path, -1) for path in paths], np.int64)


def category_column(where: Path, numbers: Sequence[int] | np.ndarray, count: int) -> np.ndarray:
    """Numbers of `count` categories as a column, N, int16; a `UserError` for too many of them."""
    if count > MAX_CATEGORIES:
        raise UserError(
            f"{where}: {count:,} categories; up to {MAX_CATEGORIES:,} are possible: join some"
        )
    return np.array(numbers, np.int16)


def clean(name: str) -> str:
    """A name in Unicode's form NFC, without blanks at its ends, single ones within."""
    return " ".join(unicodedata.normalize("NFC", name).split())


def category_key(name: str) -> str:
    """What the names of one category have in common: they may differ in blanks, form and case."""
    return clean(name).casefold()


def number_categories(where: Path, categories: Sequence[str]) -> tuple[list[str], np.ndarray]:
    """Number the categories of N pictures; "" is unknown.

    Names that differ in case only are one category, spelled as most pictures have it; a warning
    names them with `where`.

    Returns
    -------
    The sorted names, cleaned, and a `category_column`, -1 where unknown.
    """
    counts = Counter(categories)
    spellings: dict[str, Counter[str]] = defaultdict(Counter)
    keys = {name: category_key(name) for name in counts}
    for name, key in keys.items():
        spellings[key][clean(name)] += counts[name]
    spellings.pop("", None)
    chosen = {key: min(s, key=lambda name: (-s[name], name)) for key, s in spellings.items()}
    for key, same in spellings.items():
        if len(same) > 1:
            print_once(
                f"{shown(where)}: taken as one category, {shown(chosen[key])}:"
                f" {', '.join(map(shown, sorted(same)))}; rename one if they are two"
            )
    number = {key: i for i, key in enumerate(sorted(chosen, key=lambda key: chosen[key]))}
    numbers = [number.get(keys[name], -1) for name in categories]
    return sorted(chosen.values()), category_column(where, numbers, len(number))


def choose_validation(groups: np.ndarray, share: float) -> np.ndarray:
    """Choose groups (items, or single pictures) for validation.

    The choice depends on the hashes of the names alone: the same names always give the same split.

    Parameters
    ----------
    groups : N names; equal names stay together
    share : share of the groups to choose, 0 to 1; of two groups or more, at least one is chosen and
        at least one is not

    Returns
    -------
    Mask of N.
    """
    names = sorted(set(groups.tolist()), key=_digest)
    count = min(max(round(share * len(names)), 1), len(names) - 1) if len(names) > 1 else 0
    return np.isin(groups, names[:count])


def choose_validation_by_category(
    categories: np.ndarray, groups: np.ndarray, share: float
) -> np.ndarray:
    """Choose `share` of the groups of each category, see `choose_validation`: a mask of N.

    A group that is chosen in one category is chosen in all.
    """
    chosen: set[str] = set()
    for category in np.unique(categories):
        own = groups[categories == category]
        chosen |= set(own[choose_validation(own, share)].tolist())
    return np.isin(groups, list(chosen))


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


def merge(labelled: Pictures, inshop: Pictures) -> Pictures:
    """Both parts of a data set as one table: the labelled pictures, then the other in-shop ones.

    Categories of the same name become one. A picture in both parts keeps its category, partition
    and box, and gets its item, colour variant and clothes type.
    """
    if not len(inshop):
        return labelled
    row_of = align(labelled.paths, inshop.paths)
    both = row_of >= 0
    new = inshop.select(np.setdiff1d(np.arange(len(inshop)), row_of[both]))
    names = list(labelled.category_names)
    number = {category_key(name): i for i, name in reversed([*enumerate(names)])}
    for i in np.unique(new.categories[new.categories >= 0]).tolist():
        name = inshop.category_names[i]
        if number.setdefault(category_key(name), len(names)) == len(names):
            names.append(name)
    renumber = [number.get(category_key(name), -1) for name in inshop.category_names]
    renumbered = np.array([*renumber, -1])[new.categories]  # unknown is -1, the last
    category = category_column(Path("in_shop"), renumbered, len(names))
    items, colors, types = inshop.items[row_of], inshop.colors[row_of], inshop.types[row_of]
    return Pictures(
        paths=labelled.paths + new.paths,
        categories=np.concatenate([labelled.categories, category]),
        category_names=names,
        partitions=np.concatenate([labelled.partitions, new.partitions]),
        boxes=np.concatenate([labelled.boxes, new.boxes]),
        items=np.concatenate([np.where(both, items, labelled.items), new.items]),
        colors=np.concatenate([np.where(both, colors, labelled.colors), new.colors]),
        types=np.concatenate([np.where(both, types, labelled.types), new.types]),
    )
