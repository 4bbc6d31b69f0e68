"""A list of pictures with what is known of each, as CSV with a line of column names.

path,category,item,color,partition
shoes/0001.jpg,Shoes,A-17,red,train
"""

import codecs
import csv
import io
import os
import re
from contextlib import suppress
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pictures.folder import SPLIT_FOLDERS, can_be_listed, find_pictures
from pictures.table import category_key, clean
from utils import UserError, shown

SUFFIXES = (".csv", ".tsv", ".txt")
COLUMNS = ("path", "category", "item", "color", "partition")
DELIMITERS = ",;\t|"
MISSING = frozenset(("", "-", "nan", "none", "null", "na", "n/a", "#n/a", "<na>"))  # lower case
MAX_NAMES = 5  # printed of the rows that are left out


def read_picture_list(file: Path, columns: str | None = None) -> dict[str, np.ndarray]:
    """Read a list of pictures, in UTF-8, UTF-16 or Windows-1252, with any of `DELIMITERS`.

    Rows whose file is not there, or that have more cells than line 1, are left out and counted.

    Parameters
    ----------
    file : with a column path, see `_locate`, and any others of `COLUMNS`; other columns are not
        used. A partition is one of `SPLIT_FOLDERS`
    columns : the list's names of columns, where they are others: path=id,category=articleType

    Returns
    -------
    All columns of `COLUMNS`, N str each; "" where the list has no value, or one of `MISSING`. Paths
    are relative to the list's folder.

    Raises
    ------
    UserError : the list is malformed, with file and line, or none of its files is there
    """
    text = _decoded(file)
    head = re.split(r"[\r\n]", text, maxsplit=1)[0]
    delimiter = max(DELIMITERS, key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    try:
        if head.lower() == f"sep={delimiter}":  # a line that Excel writes
            next(rows)
        found, left_out = _read_rows(file, rows, columns)
    except csv.Error as error:
        line = f"{shown(file)}:{rows.line_num}"
        raise UserError(f"{line}: {error}; save the list as CSV again") from None
    example = "; ".join([*left_out[:MAX_NAMES], *(["..."] if len(left_out) > MAX_NAMES else [])])
    if not found:
        raise UserError(
            f"{shown(file)}: no pictures in it{', ' if example else ''}{example}; its paths are"
            f" those below {shown(file.parent)}; --columns path=NAME takes another column"
        )
    if left_out:
        print(f"{shown(file)}: {len(left_out):,} rows are left out: {example}")
    return {name: np.array([row[name] for row in found], str) for name in COLUMNS}


def _read_rows(
    file: Path, rows: Any, columns: str | None
) -> tuple[list[dict[str, str]], list[str]]:
    """The rows of the `csv.reader` of a list, and why others are left out."""
    found: list[dict[str, str]] = []
    left_out: list[str] = []
    files = _Files(file.parent)
    names: list[str] = next(rows, [])
    place = _places(file, names, columns)
    for cells in rows:
        line, where = f"line {rows.line_num}", f"{shown(file)}:{rows.line_num}"
        if any(cell.strip() for cell in cells[len(names) :]):
            left_out.append(f"{line} has {len(cells)} columns, not {len(names)}")
        elif any(map(str.strip, cells)):
            row = {name: cells[i] if i < len(cells) else "" for name, i in place.items()}
            path = files.find(row["path"], where)
            if path:
                found.append(_row(row, where) | {"path": path})
            else:
                left_out.append(f"{line}: no picture {shown(row['path'])!r}, or several")
    return found, left_out


class _Files:
    """The pictures below a list's folder, looked up by what the list says of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.line_of: dict[str, str] = {}

    def find(self, cell: str, where: str) -> str:
        """The path of a picture below the folder, "" where there is none, or several.

        Forgiven are blanks around it, backslashes, case, Unicode's form and a missing suffix. A
        cell without a folder also finds the one picture of its name in any folder.

        Raises
        ------
        UserError : no path below the folder, or the picture of another row
        """
        path = self._below(cell.strip())
        if not path:
            raise UserError(
                f"{where}: {shown(cell.strip())!r} is no path below {shown(self.folder)}; write it"
                " relative to that folder"
            )
        slashes = self._below(cell.strip().replace("\\", "/"))
        paths = (p for p in (self._below(cell), path, slashes) if p)
        found = next((p for p in paths if os.path.isfile(self.folder / p)), "")
        if not found:
            key = _key(slashes)
            levels = self._levels[:2] if "/" in key else self._levels
            similar: list[str] = next((level[key] for level in levels if key in level), [])
            found = similar[0] if len(similar) == 1 else ""
        if found and self.line_of.setdefault(found, where) != where:
            raise UserError(
                f"{where}: {shown(found)} is there twice, see {self.line_of[found]}; remove a row"
            )
        return found

    def _below(self, path: str) -> str:
        """A path relative to the folder; "" where it is not below."""
        if os.path.isabs(path):
            path = os.path.relpath(path, os.path.abspath(self.folder))
        path = os.path.normpath(path).replace(os.sep, "/") if path else "."
        below = path != "." and path.split("/")[0] != ".." and can_be_listed(path)
        return path if below else ""

    @cached_property
    def _levels(self) -> list[dict[str, list[str]]]:
        """Pictures by path, by path without suffix, by name, and by name without suffix."""
        levels: list[dict[str, list[str]]] = [{}, {}, {}, {}]
        for path in find_pictures(self.folder):
            key = _key(path)
            stem, name = os.path.splitext(key)[0], key.rpartition("/")[2]
            for level, form in zip(
                levels, (key, stem, name, os.path.splitext(name)[0]), strict=True
            ):
                level.setdefault(form, []).append(path)
        return levels


def _key(path: str) -> str:
    return "/".join(map(category_key, path.split("/")))


def _decoded(file: Path) -> str:
    try:
        content = file.read_bytes()
    except OSError as error:
        fault = error.strerror or error
        raise UserError(
            f"{shown(file)}: cannot be read: {fault}; name a list that can be"
        ) from None
    start = content[:2]
    encoding = "utf-8-sig"
    if start in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE):
        encoding = "utf-16"
    elif b"\0" in start:  # of a letter
        encoding = "utf-16-be" if start[0] == 0 else "utf-16-le"
    with suppress(UnicodeDecodeError):
        return content.decode(encoding)
    with suppress(UnicodeDecodeError):
        text = content.decode("cp1252")
        fault = "not UTF-8, read as Windows-1252; if names look wrong, save it as UTF-8"
        print(f"{shown(file)}: {fault}")
        return text
    raise UserError(
        f"{shown(file)}: is not UTF-8 text, nor UTF-16 or Windows-1252; save it as UTF-8"
    )


def _places(file: Path, cells: list[str], columns: str | None) -> dict[str, int]:
    """The number of each column of `COLUMNS` that the list has."""
    names = [category_key(name) for name in cells]
    source = {name: name for name in COLUMNS}
    for pair in columns.split(",") if columns else []:
        name, _, column = (part.strip() for part in pair.partition("="))
        if name not in COLUMNS or not column:
            raise UserError(
                f"--columns {columns!r}: write NAME=COLUMN,... with {', '.join(COLUMNS)} as NAME"
            )
        if category_key(column) not in names:
            raise UserError(
                f"{shown(file)}:1: no column {column!r}; it has {_listed(cells)}; name one"
            )
        source[name] = category_key(column)
    place = {name: names.index(column) for name, column in source.items() if column in names}
    if "path" not in place:
        raise UserError(
            f"{shown(file)}:1: must name columns, path and any of {', '.join(COLUMNS[1:])}; it has"
            f" {_listed(cells)}: say which is which, as in --columns path=id,category=articleType"
        )
    double = [column for column in source.values() if names.count(column) > 1]
    if double:
        raise UserError(f"{shown(file)}:1: has two columns {shown(double[0])}; rename one")
    others = [cell for i, cell in enumerate(cells) if cell.strip() and i not in place.values()]
    if others:
        print(f"{shown(file)}: columns that are not used: {_listed(others)}")
    return place


def _listed(names: list[str]) -> str:
    return shown(", ".join(name.strip() for name in names if name.strip())[:200]) or "none"


def _row(cells: dict[str, str], where: str) -> dict[str, str]:
    """One row, checked, with the names of partitions and colours that this project uses."""
    cleaned = {name: clean(cells.get(name, "")) for name in COLUMNS}
    row = {name: "" if cell.lower() in MISSING else cell for name, cell in cleaned.items()}
    row["color"] = row["color"].replace(" ", "_").lower()
    partition = row["partition"].lower()
    if partition and partition not in SPLIT_FOLDERS:
        raise UserError(
            f"{where}: partition {shown(partition)!r}; it may be {', '.join(SPLIT_FOLDERS)}, or"
            " empty: then it is drawn"
        )
    row["partition"] = SPLIT_FOLDERS.get(partition, "")
    return row
