"""What lies below DATASET_BASE, annotated or a plain folder of photos -> one table of pictures."""

import hashlib
import os
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np

from pictures.annotations import (
    Pictures,
    align,
    attribute_list,
    blank,
    by_name,
    category_column,
    inshop_list,
    read_attribute,
    read_inshop,
)
from pictures.decode import PICTURE_SUFFIXES, PictureError
from utils import UserError, can_be_listed, shown

SPLIT_FOLDERS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
MADE_FOLDERS = frozenset({"models"})  # what this project itself writes below DATASET_BASE


def find_pictures(folder: Path, leave_out: frozenset[str] = frozenset()) -> list[str]:
    """Paths of all pictures below a folder, relative to it, sorted.

    Linked folders are entered, each folder once; hidden ones are left out, and so are the
    `leave_out` at the top. One that cannot be read is named on standard error.

    Parameters
    ----------
    folder, leave_out : where to look, and where not
    """
    found, seen = [], set()
    for place, folders, files in os.walk(folder, onerror=_say_left_out, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        skipped = leave_out if Path(place) == folder else frozenset()
        folders[:] = sorted(f for f in folders if f[0] != "." and f not in skipped)
        relative = Path(place).relative_to(folder)
        for file in (file for file in files if file[0] != "."):
            if os.path.splitext(file)[1].lower() in PICTURE_SUFFIXES:
                found.append((relative / file).as_posix())
    return sorted(found)


def _say_left_out(error: OSError) -> None:
    _say_once(f"{shown(error.filename)}: left out, as it cannot be read: {error.strerror}")


@cache
def _say_once(line: str) -> None:  # a script may well read a folder more than once
    print(line, file=sys.stderr)


def picture_file(base: Path, path: str) -> Path:
    """The file of a picture of a collection.

    Pictures and folders below `base` belong to it, and what folders there are links to. A picture
    that is a link itself has to lead to one of them.

    Parameters
    ----------
    base : DATASET_BASE
    path : relative to it, as in a table of pictures

    Raises
    ------
    PictureError : it lies outside the collection, or its name cannot stand in a list of files
    """
    file = base / path
    if not can_be_listed(path):
        raise PictureError(f"{shown(file)}: rename it: it cannot stand in a list of files")
    if os.path.isabs(path) or ".." in file.parts[len(base.parts) :]:
        raise PictureError(f"{shown(file)}: lies outside {shown(base)}")
    if os.path.islink(file):  # few are; to follow the folders of all would take its time
        target = Path(os.path.realpath(file))
        folders = map(os.path.realpath, file.parents[: len(file.parts) - len(base.parts)])
        if not any(target.is_relative_to(folder) for folder in folders):
            raise PictureError(
                f"{shown(file)}: is a link out of {shown(base)}; put the picture itself there, or"
                " make its folder the link"
            )
    return file


def is_split(parts: list[list[str]]) -> bool:
    """Whether a folder is split in train/, val/ or validation/, and test/.

    It is where it has a train/, or nothing but such folders: one with test/ alone is a test set,
    not a collection whose one category is called "test".

    Parameters
    ----------
    parts : the paths of its pictures, divided at "/"

    Raises
    ------
    UserError : train/ is there, but so are pictures outside the split
    """
    tops = {part[0] if len(part) > 1 else "" for part in parts}
    if "train" not in tops and not tops <= SPLIT_FOLDERS.keys():
        return False
    other = [part for part in parts if len(part) == 1 or part[0] not in SPLIT_FOLDERS]
    if other:
        raise UserError(
            f"{'/'.join(other[0])!r} lies beside train/: move it into train/, validation/ or test/,"
            " or away"
        )
    return True


def held_out(groups: np.ndarray, share: float) -> np.ndarray:
    """Choose which of some groups (items, or single pictures) are held out for validation.

    Parameters
    ----------
    groups : N names; equal names stay together
    share : share of the groups to hold out, 0 to 1; where there are two or more, at least one of
        them is held out, and one is not

    Returns
    -------
    Mask of N. It hangs on the names alone, so the same folder is always split in the same way.
    """
    names = sorted(set(groups.tolist()), key=_digest)
    count = min(max(round(share * len(names)), 1), len(names) - 1) if len(names) > 1 else 0
    return np.isin(groups, names[:count])


def _digest(name: str) -> bytes:
    return hashlib.sha256(name.encode(errors="surrogateescape")).digest()


def held_out_of_each(categories: np.ndarray, groups: np.ndarray, share: float) -> np.ndarray:
    """Choose as `held_out` does, `share` of the groups of each category.

    Parameters
    ----------
    categories : N, of any type
    groups : N names; a group that is chosen in one category is held out in all
    share : as for `held_out`

    Returns
    -------
    Mask of N.
    """
    chosen: set[str] = set()
    for category in np.unique(categories):
        own = groups[categories == category]
        chosen |= set(own[held_out(own, share)].tolist())
    return np.isin(groups, list(chosen))


def read_folder(base: Path, val_share: float) -> Pictures:
    """Read a plain folder of photos: one folder per category, or none.

    A split in train/, val/ or validation/, and test/ folders is kept; else `val_share` of each
    category's pictures are held out. Pictures that cannot be read, for their names too, are in it:
    see `picture_file`.

    Raises
    ------
    UserError : no such folder, no picture in it, or too many folders
    """
    paths = find_pictures(base, MADE_FOLDERS) if base.is_dir() else []
    if not paths:
        state = "no pictures below it" if base.is_dir() else "no such folder"
        state = "an archive? unpack it first" if base.is_file() else state
        raise UserError(f"{base}: {state}; set DATASET_BASE (--dataset-base) to a data set")
    parts = [path.split("/") for path in paths]
    split = is_split(parts)
    folders = [part[1:-1] if split else part[:-1] for part in parts]
    names, label = by_name(base, [folder[0] if folder else "all" for folder in folders])
    if split:
        partitions = np.array([SPLIT_FOLDERS[part[0]] for part in parts], "<U7")
    else:
        held = held_out_of_each(label, np.array(paths), val_share)
        partitions = np.where(held, "val", "train").astype("<U7")
    return Pictures(
        paths=paths,
        categories=label,
        category_names=names,
        partitions=partitions,
        boxes=np.zeros((len(paths), 4), np.int32),
        items=blank(len(paths)),
        colors=blank(len(paths)),
        types=np.zeros(len(paths), np.int8),
    )


def read_labelled(base: Path, categories: int, val_share: float) -> Pictures:
    """Read what has categories below `base`: attribute lists, else in-shop lists, else folders.

    In-shop pictures alone have their folders as categories. Whole items of their train partition,
    `val_share` of them, become val; query and gallery keep their names. As in `merge`, they lose
    their boxes.

    Parameters
    ----------
    base : DATASET_BASE
    categories : keep categories 1 to this number of the attribute lists; folders have no numbers
    val_share : as for `read_folder`

    Raises
    ------
    UserError : none of them is there, or a list is malformed
    """
    if attribute_list(base) is not None:
        return read_attribute(base, categories)
    if inshop_list(base) is None:
        return read_folder(base, val_share)
    inshop = read_inshop(base)
    train = np.flatnonzero(inshop.partitions == "train")
    partitions = inshop.partitions.copy()
    partitions[train[held_out(inshop.items[train], val_share)]] = "val"
    return replace(inshop, partitions=partitions, boxes=np.zeros_like(inshop.boxes))


def read_collection(base: Path, categories: int, inshop: bool, val_share: float) -> Pictures:
    """Read all pictures of a data set, each once, whatever its partition.

    Parameters
    ----------
    base : DATASET_BASE
    categories : keep categories 1 to this number of the attribute benchmark
    inshop : add the in-shop part; a picture in both parts keeps its category, gets its item.
        Where there are no attribute lists, the in-shop part is there in any case
    val_share : as for `read_folder`

    Raises
    ------
    UserError : nothing there, or a list is malformed
    """
    labelled = read_labelled(base, categories, val_share)
    return merge(labelled, read_inshop(base)) if inshop else labelled


def merge(labelled: Pictures, inshop: Pictures) -> Pictures:
    """Both parts as one table: the labelled pictures first, then the in-shop ones not among them.

    Categories of the same name become one. A picture in both keeps its category, partition and
    box, and gets its item, colour variant and clothes type. In-shop pictures lose their boxes: the
    benchmark's protocol takes them whole.
    """
    if not len(inshop):
        return labelled
    row_of = align(labelled.paths, inshop.paths)
    both = row_of >= 0
    new = inshop.select(np.setdiff1d(np.arange(len(inshop)), row_of[both]))
    used = np.unique(new.categories).tolist()
    names = list(labelled.category_names)
    names += [n for n in (inshop.category_names[i] for i in used) if n not in names]
    renumber = np.array([names.index(n) if n in names else -1 for n in inshop.category_names])
    category = renumber[new.categories]
    category = category_column(Path("in_shop"), category, len(names))
    items, colors, types = inshop.items[row_of], inshop.colors[row_of], inshop.types[row_of]
    return Pictures(
        paths=labelled.paths + new.paths,
        categories=np.concatenate([labelled.categories, category]),
        category_names=names,
        partitions=np.concatenate([labelled.partitions, new.partitions]),
        boxes=np.concatenate([labelled.boxes, np.zeros_like(new.boxes)]),
        items=np.concatenate([np.where(both, items, labelled.items), new.items]),
        colors=np.concatenate([np.where(both, colors, labelled.colors), new.colors]),
        types=np.concatenate([np.where(both, types, labelled.types), new.types]),
    )
