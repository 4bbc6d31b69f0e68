"""A plain folder of photos: its pictures, its split, and its table."""

import os
import re
import sys
from collections import Counter
from functools import cache
from pathlib import Path

import numpy as np

from pictures.decode import PictureError
from pictures.formats import EXTRAS, INSTALL, kind_of
from pictures.table import Pictures, choose_validation_by_category, number_categories
from utils import UserError, one_line, shown

SPLIT_FOLDERS = {"train": "train", "val": "val", "validation": "val", "test": "test"}
MADE_FOLDERS = frozenset({"models"})  # what this project itself writes below DATASET_BASE
MADE_FILE = re.compile(r"all_\w+(\.\w+)?\.(npy|npz|json|list)")
MAX_KINDS = 8  # of files left out that are named


def find_pictures(folder: Path, leave_out: frozenset[str] = frozenset()) -> list[str]:
    """Paths of all pictures below a folder, relative to it, sorted.

    Linked folders are searched, each folder once; hidden ones are not. A folder that cannot be read
    is named on standard error, and files that are no pictures are counted there.

    Parameters
    ----------
    folder : where to search
    leave_out : folders at its top that are not searched
    """
    found, seen, others = [], set(), Counter[str]()
    for place, folders, files in os.walk(folder, onerror=_report_unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        relative = Path(place).relative_to(folder)
        skipped = leave_out if not relative.parts else ()
        folders[:] = sorted(f for f in folders if f[0] != "." and f not in skipped)
        for file in files:
            if file[0] == "." or MADE_FILE.fullmatch(file):
                continue
            if kind := kind_of(os.path.join(place, file)):
                others[kind] += 1
            else:
                found.append((relative / file).as_posix())
    _report_others(folder, others)
    return sorted(found)


def _report_others(folder: Path, others: Counter[str]) -> None:
    """Say how many files of each kind are no pictures, and how some could be read."""
    if not others:
        return
    total, kinds = others.total(), others.most_common(MAX_KINDS)
    named = [f"{count:,} {one_line(kind)}" for kind, count in kinds]
    rest = total - sum(count for _, count in kinds)
    named += [f"{rest:,} more"] if rest else []
    needs = [kind for kind in EXTRAS if kind in others]
    remedy = f"; for {' and '.join(needs)}: {INSTALL}" if needs else ""
    files = "1 file is" if total == 1 else f"{total:,} files are"
    _print_once(f"{shown(folder)}: {files} left out, no picture: {', '.join(named)}{remedy}")


def _report_unreadable(error: OSError) -> None:
    _print_once(f"{shown(error.filename)}: left out, as it cannot be read: {error.strerror}")


@cache
def _print_once(line: str) -> None:  # a script may read a folder more than once
    print(line, file=sys.stderr)


def can_be_listed(path: str) -> bool:
    """Whether a path can be written to a list of files: one line of UTF-8, without NUL."""
    return not any(character in "\n\r\0" or "\ud800" <= character <= "\udfff" for character in path)


def picture_file(base: Path, path: str) -> Path:
    """The file of a picture of a collection.

    Pictures below `base` belong to the collection, also those in linked folders. A picture that is
    itself a link must lead to one of these folders.

    Parameters
    ----------
    base : DATASET_BASE
    path : relative to it, as in a table of pictures

    Raises
    ------
    PictureError : it lies outside the collection, or its name cannot be in a list of files
    """
    file = base / path
    if not can_be_listed(path):
        raise PictureError(f"{shown(file)}: rename it: it cannot stand in a list of files")
    if os.path.isabs(path) or ".." in file.parts[len(base.parts) :]:
        raise PictureError(f"{shown(file)}: lies outside {shown(base)}")
    if os.path.islink(file):  # few are; following the folders of all pictures would be slow
        target = Path(os.path.realpath(file))
        folders = map(os.path.realpath, file.parents[: len(file.parts) - len(base.parts)])
        if not any(target.is_relative_to(folder) for folder in folders):
            raise PictureError(
                f"{shown(file)}: is a link out of {shown(base)}; put the picture itself there, or"
                " make its folder the link"
            )
    return file


def is_split(parts: list[list[str]]) -> bool:
    """Whether a folder is split into train/, val/ or validation/, and test/.

    It is if it has a train/, or only such folders: a folder with test/ alone is a test set, not a
    collection whose one category is called "test".

    Parameters
    ----------
    parts : the paths of its pictures, split at "/"

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
            f"{'/'.join(other[0])!r} is beside train/: move it into train/, validation/ or test/,"
            " or out of this folder"
        )
    return True


def read_folder(base: Path, val_share: float) -> Pictures:
    """Read a plain folder of photos: one folder per category, or none.

    A split into train/, val/ or validation/, and test/ folders is kept; else `val_share` of each
    category's pictures become val. The table also has pictures that cannot be read, see
    `picture_file`.

    Parameters
    ----------
    base : DATASET_BASE
    val_share : share of the pictures for validation, 0 to 1

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
    names, labels = number_categories(base, [folder[0] if folder else "all" for folder in folders])
    if split:
        partitions = np.array([SPLIT_FOLDERS[part[0]] for part in parts], "<U7")
    else:
        validation = choose_validation_by_category(labels, np.array(paths), val_share)
        partitions = np.where(validation, "val", "train").astype("<U7")
    return Pictures.without_items(paths, labels, names, partitions)
