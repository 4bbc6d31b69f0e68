"""Pictures in tar files, as WebDataset's shards are, read where they lie.

A picture's path goes on below the tar file, as in shards/000.tar/shoes/0001.jpg. What a sample's
.cls or .json says of it are its labels: https://github.com/webdataset/webdataset#the-webdataset-format
"""

import hashlib
import io
import os
import posixpath
import re
import sys
import tarfile
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from arrays import archive, read_archive
from utils import (
    PICTURE_SUFFIXES,
    MissingPictureError,
    PictureError,
    UserError,
    atomic_write,
    can_be_listed,
    parsed_json,
    read_picture,
    shown,
)

CHECKPOINT = ".pth.tar"  # what PyTorch's users call their models, tar files or not
MOST = 1 << 28  # bytes of a picture
LABEL = 1 << 16  # bytes of a label, and of what tar has to say of a member
WORDS = 255  # characters of a category or an item
KEPT = "models/tars"  # below DATASET_BASE: where pictures lie in tar files
OPENED = 256  # tar files whose members are kept in memory
FORMS = {"names": ("U", 0), "places": ("i", 2), "categories": ("U", 0), "items": ("U", 0),
         "stamp": ("i", 1)}  # fmt: skip
INSIDE = re.compile(r"(?<=[^/]\.tar)/", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True)
class Members:
    """The n pictures of a tar file, in order of their names.

    Attributes
    ----------
    names : n, unique
    places : n x 2, int64; where each begins, and its length in bytes
    categories, items : n; "" where no label tells
    """

    names: list[str]
    places: np.ndarray
    categories: list[str]
    items: list[str]

    def row(self, name: str) -> int | None:
        """The row of a name; None where there is none."""
        row = bisect_left(self.names, name)
        return row if row < len(self.names) and self.names[row] == name else None


def is_tar(file: str) -> bool:
    """Whether a file is to be looked into, by its name."""
    return file.lower().endswith(".tar") and not file.lower().endswith(CHECKPOINT)


def split(path: Path | str) -> tuple[str, str] | None:
    """The tar file and the member that a path leads to; None where it leads to a file."""
    text = str(path)
    for slash in INSIDE.finditer(text):
        if os.path.isfile(text[: slash.start()]):  # a folder may be called so, too
            return text[: slash.start()], text[slash.end() :]
    return None


def parts_of(folder: Path, path: str) -> list[str]:
    """The path of a picture below a folder, divided at "/".

    Without a tar file, whose name tells nothing of a picture.
    """
    inside = split(f"{folder}/{path}")
    if inside is None:
        return path.split("/")
    *above, _ = inside[0].removeprefix(f"{folder}/").split("/")
    return [*above, *inside[1].split("/")]


def members_of(tar: Path, kept: Path | None = None) -> Members:
    """The pictures of a tar file.

    Parameters
    ----------
    tar : not compressed, or nothing in it could be read by its place
    kept : folder of what was found before, since every header of a tar file has to be read for it

    Raises
    ------
    UserError : it is no tar file, damaged, or cannot be read
    """
    try:
        status = os.stat(tar)
    except OSError as error:
        raise UserError(f"{shown(tar)}: cannot be read: {error.strerror}") from None
    return _members_of(tar, kept, status.st_size, status.st_ino, status.st_ctime_ns)


@lru_cache(maxsize=OPENED)
def _members_of(tar: Path, kept: Path | None, *stamp: int) -> Members:
    if kept is None:
        return _scan(tar)
    digest = hashlib.sha256(os.path.realpath(tar).encode(errors="surrogateescape")).hexdigest()
    place = kept / f"{digest[:32]}.npz"
    with suppress(ValueError):
        found = read_archive(place, FORMS)
        names, *labels = (
            str(found[name]).split("\n")[:-1] for name in ("names", "categories", "items")
        )
        shapes = {(len(column), 2) for column in (names, *labels)}
        if found["stamp"].tolist() == [*stamp] and shapes == {found["places"].shape}:
            return Members(names, found["places"], *labels)
    members = _scan(tar)
    columns = {
        name: "".join(each + "\n" for each in getattr(members, name))
        for name in ("names", "categories", "items")
    }
    with suppress(UserError), atomic_write(place) as part:
        part.write_bytes(archive(stamp=np.array(stamp), places=members.places, **columns))
    return members


class _Headers:
    """A tar file of which no more than headers and labels are read at once."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > LABEL:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self.file.read(size)


def _headers(file: BinaryIO) -> Iterator[tuple[tarfile.TarInfo, tarfile.TarFile]]:
    """The members of a tar file; raises many types where it is damaged, but does end."""
    with tarfile.open(fileobj=_Headers(file), mode="r:") as content:  # type: ignore[call-overload]
        before = -1
        while (member := content.next()) is not None:
            content.members.clear()  # or it keeps all
            if member.size < 0 or content.offset <= before:
                raise tarfile.ReadError(f"a wrong size at byte {member.offset:,}")
            before = content.offset
            yield member, content
        file.seek(content.offset)  # tarfile takes a damaged header for the end
        if file.read(1 << 20).strip(b"\0"):
            raise tarfile.ReadError(f"it goes on after its end at byte {content.offset:,}")


def _scan(tar: Path) -> Members:
    """Read all headers of a tar file, and the labels."""
    found: dict[str, tuple[int, int]] = {}
    labels: dict[str, dict[str, str]] = {}
    try:
        with open(tar, "rb") as file:
            for member, content in _headers(file):
                name = posixpath.normpath(member.name).lstrip("/")
                suffix = posixpath.splitext(name)[1].lower()
                hidden = any(part.startswith(".") for part in name.split("/"))
                if hidden or not member.isreg():
                    continue
                if suffix in PICTURE_SUFFIXES:
                    if member.issparse():
                        raise tarfile.ReadError(f"{shown(name)} is sparse")
                    if not can_be_listed(name):
                        print(f"{shown(f'{tar}/{name}')}: left out for its name", file=sys.stderr)
                        continue
                    found[name] = (member.offset_data, member.size)
                elif suffix in (".cls", ".json") and member.size <= LABEL:
                    told = content.extractfile(member)
                    words = _words(suffix, told.read() if told else b"")
                    labels.setdefault(_sample(name), {}).update(words)
    except Exception as error:  # a damaged file leads to many types
        reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise UserError(
            f"{shown(tar)}: cannot be read as a tar file: {shown(reason)}; it must be whole, and"
            " not compressed"
        ) from None
    names = sorted(found)
    told = [labels.get(_sample(name), {}) for name in names]
    return Members(
        names=names,
        places=np.array([found[name] for name in names], np.int64).reshape(-1, 2),
        categories=[each.get("category", "") for each in told],
        items=[each.get("item", "") for each in told],
    )


def _sample(name: str) -> str:
    """What the members of a sample have in common: the path to the first "." of the file name."""
    folder, file = posixpath.split(name)
    return posixpath.join(folder, file.split(".")[0])


def _words(suffix: str, content: bytes) -> dict[str, str]:
    """What a label tells: .cls a category by name or number, .json category and item."""
    told: object = {"category": content.decode("utf-8", "replace")}
    if suffix == ".json":
        try:
            told = parsed_json(content)
        except ValueError:
            return {}
    words = {}
    for key, value in told.items() if isinstance(told, dict) else ():
        if key in ("category", "item") and type(value) in (str, int, float):
            word = " ".join(str(value).split())
            if word.isprintable() and len(word) <= WORDS:
                words[key] = word
    return words


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
        inside = split(f"{folder}/{path}")
        if inside:
            members = members_of(Path(inside[0]), kept)
            row = members.row(inside[1])
            if row is not None:
                categories[i], items[i] = members.categories[row], members.items[row]
    return categories, items


def is_member(path: Path, base: Path) -> bool:
    """Whether a path leads to a picture in a tar file; for `base` see `open_photo`."""
    inside = split(path)
    with suppress(UserError):
        return (
            inside is not None
            and members_of(Path(inside[0]), base / KEPT).row(inside[1]) is not None
        )
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
    PictureError : it is not in the tar file, is cut off or too large, or the tar file is damaged
    """
    inside = split(file)
    if inside is None:
        return open(file, "rb")
    try:
        members = members_of(Path(inside[0]), base / KEPT)
    except UserError as error:  # damaged since it was listed
        raise PictureError(str(error)) from None
    row = members.row(inside[1])
    if row is None:
        raise MissingPictureError(f"{shown(file)}: no such file")
    start, size = members.places[row].tolist()
    if not 0 <= size <= MOST:
        raise PictureError(f"{shown(file)}: {size:,} bytes are too many for a picture")
    with open(inside[0], "rb") as tar:
        tar.seek(start)
        content = tar.read(size)
    if len(content) < size:
        raise PictureError(f"{shown(file)}: the tar file ends in it")
    return io.BytesIO(content)


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
    if split(file) is None:
        return read_picture(file, box, least)
    try:
        content = open_photo(file, base)
    except OSError as error:
        raise PictureError(f"{shown(file)}: cannot be read: {error.strerror or error}") from None
    with content:
        return read_picture(content, box, least, str(file))
