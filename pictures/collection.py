"""What is below DATASET_BASE, DeepFashion's lists or a plain folder -> one table of pictures."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np

from pictures.deepfashion import (
    attribute_list,
    has_items,
    read_assigned,
    read_attribute,
    read_items,
)
from pictures.folder import read_folder
from pictures.table import Pictures, choose_validation, merge
from utils import UserError, shown


def require_photos(base: Path) -> None:
    """Raise a `UserError` where the photos of an import are no longer where they were."""
    for link in (base / "img", base / "in_shop" / "img"):
        if link.is_symlink() and not link.exists():
            raise UserError(
                f"{shown(link)}: the link leads nowhere; put the photos back to"
                f" {shown(os.path.realpath(link))}, or import them again from where they are"
            )


def read_labelled(base: Path, categories: int, val_share: float, assigned: bool = True) -> Pictures:
    """Read the pictures with categories: attribute lists, else lists of items, else a plain folder.

    Where there are lists of items alone, the folders are the categories, and the items of
    `choose_items` become val. A `UserError` for no picture or a malformed list.

    Parameters
    ----------
    base : DATASET_BASE
    categories : as for `read_attribute`
    val_share : as for `read_folder`
    assigned : with the categories that a model has assigned; else they are unknown
    """
    if attribute_list(base) is not None:
        pictures = read_attribute(base, categories)
        if not assigned and (guessed := read_assigned(base)):
            pictures.categories[np.isin(pictures.paths, list(guessed))] = -1
        return pictures
    if not has_items(base):
        return read_folder(base, val_share)
    items = read_items(base)
    train = np.flatnonzero(np.isin(items.partitions, ("train", "val")))
    partitions = items.partitions.copy()
    partitions[train[choose_items(items.select(train), val_share)]] = "val"
    return replace(items, partitions=partitions)


def choose_items(items: Pictures, share: float) -> np.ndarray:
    """The pictures that validate, those of val, else of a `share` of the items: a mask of N."""
    val = items.partitions == "val"
    return val if val.any() else choose_validation(items.items, share)


def read_collection(base: Path, categories: int, inshop: bool, val_share: float) -> Pictures:
    """Read all pictures of a data set, each once, of every partition.

    Parameters
    ----------
    base, categories, val_share : as for `read_labelled`
    inshop : add the items, see `merge`. Without attribute lists they are read in any case
    """
    require_photos(base)
    labelled = read_labelled(base, categories, val_share)
    return merge(labelled, read_items(base)) if inshop else labelled
