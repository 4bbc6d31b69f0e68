"""Pictures in tar files, as WebDataset's shards are, read where they lie.

A picture's path goes on below the tar file, as in shards/000.tar/shoes/0001.jpg. What a sample's
.cls or .json says of it are its labels: https://github.com/webdataset/webdataset#the-webdataset-format
"""

import hashlib
import io
import os
import posixpath
import tarfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from arrays import read_archive
from utils import (
    PICTURE_SUFFIXES,
    MissingPictureError,
    PictureError,
    UserError,
    atomic_write,
    parsed_json,
    read_picture,
    shown,
)

SUFFIX = ".tar"
MOST = 1 << 30  # bytes of a picture
LABEL = 1 << 16  # bytes of a label
KEPT = "models/tars"  # below DATASET_BASE: where pictures lie in tar files
OPENED = 256  # tar files whose members are kept in memory
FORMS = {"names": ("U", 1), "places": ("i", 2), "categories": ("U", 1), "items": ("U", 1),
         "stamp": ("i", 1)}  # fmt: skip


@dataclass(frozen=True)
class Members:
    """The n pictures of a tar file, in order of their names.

    Attributes
    ----------
    names : n, str, unique
    places : n x 2, int64; where each begins, and its length in bytes
    categories, items : n, str; "" where no label tells
    """

    names: np.ndarray
    places: np.ndarray
    categories: np.ndarray
    items: np.ndarray

    def row(self, name: str) -> int | None:
        """The row of a name; None where there is none."""
        row = int(np.searchsorted(self.names, name))
        return row if row < len(self.names) and self.names[row] == name else None


def split(path: str) -> tuple[str, str] | None:
    """The tar file and the member that a path leads to; None where it leads to a file."""
    at = path.lower().find(SUFFIX + "/")
    return None if at < 0 else (path[: at + len(SUFFIX)], path[at + len(SUFFIX) + 1 :])


def parts_of(path: str) -> list[str]:
    """A picture's path, divided at "/", without tar files: their names tell nothing of it."""
    *folders, file = path.split("/")
    return [*(folder for folder in folders if not folder.lower().endswith(SUFFIX)), file]


def members_of(tar: Path, kept: Path | None = None) -> Members:
    """The pictures of a tar file.

    Parameters
    ----------
    tar : not compressed, or nothing in it could be read by its place
    kept : folder of what was found before, since every header of a tar file has to be read for it

    Raises
    ------
    OSError : it cannot be read
    UserError : it is no tar file, or damaged
    """
    status = os.stat(tar)
    return _members_of(tar, kept, status.st_size, status.st_ino, status.st_mtime_ns)


@lru_cache(maxsize=OPENED)
def _members_of(tar: Path, kept: Path | None, *stamp: int) -> Members:
    if kept is None:
        return _scan(tar)
    digest = hashlib.sha256(os.path.realpath(tar).encode(errors="surrogateescape")).hexdigest()
    place = kept / f"{digest[:32]}.npz"
    with suppress(ValueError):
        found = read_archive(place, FORMS)
        if found.pop("stamp").tolist() == [*stamp]:
            return Members(**found)
    members = _scan(tar)
    with suppress(UserError), atomic_write(place) as part, open(part, "wb") as file:
        np.savez(file, stamp=np.array(stamp, np.int64), **vars(members))
    return members


def _scan(tar: Path) -> Members:
    """Read all headers of a tar file, and the labels."""
    found: dict[str, tuple[int, int]] = {}
    labels: dict[str, dict[str, str]] = {}
    try:
        with tarfile.open(tar, "r:") as archive:
            while (member := archive.next()) is not None:
                archive.members.clear()  # or it keeps all
                name = posixpath.normpath(member.name).lstrip("/")
                file = posixpath.basename(name)
                if not member.isreg() or file.startswith(".") or name.startswith("../"):
                    continue
                suffix = posixpath.splitext(file)[1].lower()
                if suffix in PICTURE_SUFFIXES:
                    found[name] = (member.offset_data, member.size)
                elif suffix in (".cls", ".json") and member.size <= LABEL:
                    content = archive.extractfile(member)
                    told = _labels(suffix, content.read() if content else b"")
                    labels.setdefault(_sample(name), {}).update(told)
            end = archive.offset
        with open(tar, "rb") as content:  # tarfile takes a damaged header for the end
            content.seek(end)
            if content.read(tarfile.BLOCKSIZE).strip(b"\0"):
                raise tarfile.ReadError(f"damaged at byte {end:,}")
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise UserError(
            f"{shown(tar)}: cannot be read as a tar file: {error}; it must be whole, and not"
            " compressed"
        ) from None
    names = sorted(found)
    told = [labels.get(_sample(name), {}) for name in names]
    return Members(
        names=np.array(names, str),
        places=np.array([found[name] for name in names], np.int64).reshape(-1, 2),
        categories=np.array([each.get("category", "") for each in told], str),
        items=np.array([each.get("item", "") for each in told], str),
    )


def _sample(name: str) -> str:
    """What the members of a sample have in common: the path to the first "." of the file name."""
    folder, file = posixpath.split(name)
    return posixpath.join(folder, file.split(".")[0])


def _labels(suffix: str, content: bytes) -> dict[str, str]:
    """What a label tells: .cls a category by name or number, .json category and item."""
    told: object = {"category": content.decode("utf-8", "replace")}
    if suffix == ".json":
        try:
            told = parsed_json(content)
        except ValueError:
            return {}
    known = told if isinstance(told, dict) else {}
    return {key: " ".join(str(known[key]).split()) for key in ("category", "item") if key in known}


def labels_of(
    folder: Path, paths: Sequence[str], kept: Path | None = None
) -> tuple[list[str], list[str]]:
    """Category and item of pictures, as the labels of tar files tell them; "" where none does.

    Parameters
    ----------
    folder, paths : of pictures below it
    kept : see `members_of`
    """
    categories, items = [""] * len(paths), [""] * len(paths)
    for i, path in enumerate(paths):
        parts = split(path)
        if parts:
            members = members_of(folder / parts[0], kept)
            row = members.row(parts[1])
            if row is not None:
                categories[i], items[i] = str(members.categories[row]), str(members.items[row])
    return categories, items


def open_member(tar: Path, name: str, kept: Path | None) -> BinaryIO:
    """The content of a picture in a tar file.

    Raises
    ------
    PictureError : there is no such picture, it is cut off or too large, or the tar file is damaged
    """
    path = f"{tar}/{name}"
    try:
        members = members_of(tar, kept)
        row = members.row(name)
        if row is None:
            raise FileNotFoundError
        start, size = members.places[row].tolist()
        with open(tar, "rb") as file:
            file.seek(start)
            content = file.read(min(size, MOST))
    except FileNotFoundError:
        raise MissingPictureError(f"{shown(path)}: no such file") from None
    except OSError as error:
        raise PictureError(f"{shown(path)}: cannot be read: {error.strerror or error}") from None
    except UserError as error:  # damaged since it was listed
        raise PictureError(str(error)) from None
    if size > MOST:
        raise PictureError(f"{shown(path)}: {size:,} bytes are too many for a picture")
    if len(content) < size:
        raise PictureError(f"{shown(path)}: the tar file ends in it")
    return io.BytesIO(content)


def is_member(path: str) -> bool:
    """Whether a path leads to a picture in a tar file that is there."""
    inside = split(path)
    if inside is None or not os.path.isfile(inside[0]):
        return False
    with suppress(OSError, UserError):
        return members_of(Path(inside[0])).row(inside[1]) is not None
    return False


def open_photo(file: Path, base: Path) -> BinaryIO:
    """Open a picture, which may lie in a tar file.

    Parameters
    ----------
    file : its path
    base : DATASET_BASE, which keeps where pictures lie in tar files

    Raises
    ------
    OSError : it cannot be opened
    PictureError : see `open_member`
    """
    inside = split(str(file))
    if inside and os.path.isfile(inside[0]):
        return open_member(Path(inside[0]), inside[1], base / KEPT)
    return open(file, "rb")


def read_photo(
    file: Path, base: Path, box: tuple[int, int, int, int] | None = None, least: int = 0
) -> Image.Image:
    """Read a picture as `utils.read_picture` does, which may lie in a tar file.

    Parameters
    ----------
    file, base : see `open_photo`
    box, least : see `utils.read_picture`

    Raises
    ------
    PictureError : it cannot be read as a picture
    """
    if split(str(file)) is None:
        return read_picture(file, box, least)
    try:
        content = open_photo(file, base)
    except OSError as error:  # of a folder called .tar
        raise PictureError(f"{shown(file)}: cannot be read: {error.strerror or error}") from None
    with content:
        return read_picture(content, box, least, str(file))
