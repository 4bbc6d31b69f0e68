"""A plain folder of photos: its pictures, its split, and its table."""

import os
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import numpy as np

from pictures.decode import PictureError
from pictures.formats import EXTRAS, INSTALL, kind_of
from pictures.table import Pictures, choose_validation_by_category, number_categories
from utils import UserError, atomic_write, print_once, shown

SPLIT_FOLDERS = {  # compared without case
    "train": "train", "val": "val", "valid": "val", "validation": "val", "test": "test",
}  # fmt: skip
SYSTEM_FOLDERS = frozenset((  # of NAS, Windows and macOS, in lower case: copies and deleted files
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot", "@tmp", "@__thumb",
    "~snapshot", "trashbox", "network trash folder", "temporary items", "lost+found",
    "$recycle.bin", "recycler", "recycled", "system volume information", "found.000", "__macosx",
))  # fmt: skip
LINK_ROOTS = "allowed_roots.txt"
# What this project writes below DATASET_BASE; a picture of such a name is a picture.
MADE_FILE = re.compile(
    r"all_\w+(\.\w+)*\.(npy|npz|json|list)|.+\.pth\.tar|kmeans\.m|milvus\.(json|db.*)"
    rf"|events\.out\.tfevents.*|{LINK_ROOTS}"
)
MAX_KINDS = 8  # of files left out that are named


def find_pictures(folder: Path) -> list[str]:
    """Paths of all pictures below a folder, relative to it, sorted.

    Linked folders are searched, each folder once; hidden ones and those of systems are not. A
    folder that cannot be read is named on standard error, and files that are no pictures are
    counted there.
    """
    found, seen, others = [], set(), Counter[str]()
    for place, folders, files in os.walk(folder, onerror=_report_unreadable, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            folders.clear()
            continue
        seen.add(real)
        relative = Path(place).relative_to(folder)
        folders[:] = sorted(f for f in folders if not is_left_out(f))
        for file in files:
            if is_left_out(file):
                continue
            kind = kind_of(os.path.join(place, file))
            if not kind:
                found.append((relative / file).as_posix())
            elif not MADE_FILE.fullmatch(file):
                others[kind] += 1
    if others:
        kinds = [f"{count:,} {shown(kind)}" for kind, count in others.most_common(MAX_KINDS)]
        kinds += ["..."] if len(others) > MAX_KINDS else []
        needs = " and ".join(kind for kind in EXTRAS if kind in others)
        remedy = f"; for {needs}: {INSTALL}" if needs else ""
        print_once(f"{shown(folder)}: left out, no picture: {', '.join(kinds)}{remedy}")
    return sorted(found)


def is_left_out(name: str) -> bool:
    """Whether a file or folder is hidden, a system's, or Milvus Lite's."""
    return name[0] == "." or name.lower() in SYSTEM_FOLDERS or name == "milvus.db"


def is_made(path: str) -> bool:
    """Whether this project makes a file: by its name, if it holds no picture."""
    return bool(MADE_FILE.fullmatch(os.path.basename(path))) and bool(kind_of(path))


def _report_unreadable(error: OSError) -> None:
    print_once(
        f"{shown(error.filename)}: left out, as it cannot be read: {error.strerror}; change its"
        " permissions if it holds pictures"
    )


def can_be_listed(path: str) -> bool:
    """Whether a path can be written to a list of files: one line of UTF-8, without NUL."""
    return not any(character in "\n\r\0" or "\ud800" <= character <= "\udfff" for character in path)


def picture_file(base: Path, path: str) -> Path:
    """The file of a picture of a collection; `path` is relative to `base`.

    Pictures below `base` belong to the collection, also those in linked folders. A picture that is
    itself a link must lead to one of these folders, or below one of `allowed_roots`.

    Raises
    ------
    PictureError : it lies outside the collection, or its name cannot be in a list of files
    """
    file = base / path
    if not can_be_listed(path):
        raise PictureError(f"{shown(file)}: rename it: it cannot stand in a list of files")
    if os.path.isabs(path) or ".." in file.parts[len(base.parts) :]:
        raise PictureError(f"{shown(file)}: lies outside {shown(base)}")
    if target := leads_out(base, path):
        raise PictureError(
            f"{shown(file)}: is a link out of {shown(base)}; {link_remedy([target])}"
        )
    return file


def leads_out(base: Path, path: str, roots: Sequence[str] | None = None) -> str:
    """Where the link leads that a picture is, if the collection does not allow it; else "".

    `roots` are the folders where links may lead; None: the data set's own.
    """
    file = base / path
    if not os.path.islink(file):  # few are; following the folders of all pictures would be slow
        return ""
    folders = [os.path.realpath(p) for p in file.parents[: len(file.parts) - len(base.parts)]]
    folders += allowed_roots(base) if roots is None else roots
    target = os.path.realpath(file)
    return "" if any(Path(target).is_relative_to(folder) for folder in folders) else target


def link_remedy(targets: Sequence[str]) -> str:
    """What to do about links to these files."""
    root = os.path.commonpath([os.path.dirname(target) for target in targets])
    return (
        "put the picture itself there, or set ALLOWED_ROOTS (--allowed-roots) to the folder that"
        f" it leads to: {shown(root)}"
    )


def allowed_roots(base: Path) -> list[str]:
    """The folders outside a data set where links to pictures may lead."""
    with suppress(OSError):
        text = (base / LINK_ROOTS).read_text("utf-8", errors="surrogateescape")
        return [root for root in text.splitlines() if root]
    return []


def allow_roots(base: Path, roots: Sequence[str]) -> list[str]:
    """Add ALLOWED_ROOTS to those of a data set, and record them if its folder is there."""
    old = allowed_roots(base)
    every = list(dict.fromkeys([*old, *map(os.path.realpath, roots)]))
    for root in every[len(old) :]:
        if not os.path.isdir(root) or not can_be_listed(root):
            raise UserError(f"ALLOWED_ROOTS: {shown(root)}: no such folder; name one, or none")
    if every != old and base.is_dir():
        with atomic_write(base / LINK_ROOTS) as part:
            part.write_text("".join(f"{root}\n" for root in every), "utf-8")
    return every


def is_split(parts: list[list[str]]) -> bool:
    """Whether a folder is split into train/, val/ (valid/, validation/) and test/, in any case.

    It is if it has a train/, or only such folders: a folder with test/ alone is a test set, not a
    collection whose one category is called "test". `parts` are the paths of its pictures, split at
    "/". A `UserError` where train/ is there, but so are pictures outside the split.
    """
    tops = {part[0].lower() if len(part) > 1 else "" for part in parts}
    if "train" not in tops and not tops <= SPLIT_FOLDERS.keys():
        return False
    other = [part for part in parts if len(part) == 1 or part[0].lower() not in SPLIT_FOLDERS]
    if other:
        raise UserError(
            f"{'/'.join(other[0])!r} is beside train/: move it into train/, validation/ or test/,"
            " or out of this folder"
        )
    return True


def read_folder(base: Path, val_share: float) -> Pictures:
    """Read a plain folder of photos: one folder per category, or none.

    A split into train/, val/ or validation/, and test/ folders is kept; else `val_share` of each
    category's pictures, 0 to 1, become val. The table also has pictures that cannot be read, see
    `picture_file`. A `UserError` for no such folder, no picture in it, or too many folders.
    """
    paths = find_pictures(base) if base.is_dir() else []
    if not paths:
        state = "no pictures below it" if base.is_dir() else "no such folder"
        state = "an archive? unpack it first" if base.is_file() else state
        raise UserError(f"{base}: {state}; set DATASET_BASE (--dataset-base) to a data set")
    parts = [path.split("/") for path in paths]
    split = is_split(parts)
    folders = [part[1:-1] if split else part[:-1] for part in parts]
    names, labels = number_categories(base, [folder[0] if folder else "all" for folder in folders])
    if split:
        partitions = np.array([SPLIT_FOLDERS[part[0].lower()] for part in parts], "<U7")
    else:
        validation = choose_validation_by_category(labels, np.array(paths), val_share)
        partitions = np.where(validation, "val", "train").astype("<U7")
    return Pictures.of(paths, labels, names, partitions)
