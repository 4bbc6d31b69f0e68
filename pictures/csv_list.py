"""A list of pictures with what is known of each, as CSV with a line of column names.

path,category,item,color,partition
shoes/0001.jpg,Shoes,A-17,red,train
"""

import codecs
import csv
import io
import os
import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

from pictures.folder import SPLIT_FOLDERS, can_be_listed, find_pictures
from pictures.table import category_key, clean
from utils import UserError, shown

SUFFIXES = (".csv", ".tsv", ".txt")
COLUMNS = ("path", "category", "item", "color", "partition")
DELIMITERS = ",;\t|"
MISSING = frozenset(("", "-", "nan", "none", "null", "na", "n/a", "#n/a", "<na>"))  # lower case
MAX_NAMES = 5  # printed of the rows that are left out


@dataclass(eq=False)
class Photo:
    """A picture to import; "" is unknown.

    Attributes
    ----------
    path : relative to the folder of the photos
    partition : train, val or test
    status : of a picture with an item: train, query or gallery
    probability : of a category that a model has assigned
    """

    path: str
    category: str = ""
    item: str = ""
    color: str = ""
    partition: str = ""
    status: str = ""
    probability: str = ""


def listable_pictures(folder: Path) -> list[str]:
    """`find_pictures` without those whose names cannot stand in a list, which are printed."""
    found = find_pictures(folder)
    paths = [path for path in found if can_be_listed(path) and path == path.rstrip()]
    for path in sorted(set(found) - set(paths)):
        print(f"left out, its name cannot stand in a list; rename it: {path!a}")
    return paths


def read_picture_list(file: Path, columns: str | None = None) -> list[Photo]:
    """Read a list of pictures, in UTF-8, UTF-16 or Windows-1252, with any of `DELIMITERS`.

    Rows whose picture is not there, or there twice, or that have more cells than line 1, are left
    out and counted. Paths are below the list's folder. Cells of `MISSING` are empty.

    Parameters
    ----------
    file : with a column path, see `_Finder`, and any others of `COLUMNS`; other columns are not
        used. A partition is one of `SPLIT_FOLDERS`
    columns : the list's names of columns, where they are others: path=id,category=articleType

    Raises
    ------
    UserError : the list is malformed, with file and line, or none of its files is there
    """
    text = _decoded(file)
    head = re.split(r"[\r\n]", text, maxsplit=1)[0]
    delimiter = max(DELIMITERS, key=head.count)
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    photos: dict[str, Photo] = {}
    left_out = []
    try:
        names = next(rows, [])
        if head.lower() == f"sep={delimiter}":  # a line that Excel writes
            names = next(rows, [])
        place = _places(file, names, columns)
        finder = _Finder(file.parent)
        for cells in rows:
            line, extra = f"line {rows.line_num}", cells[len(names) :]
            row = {name: cells[i] for name, i in place.items() if i < len(cells)}
            path = finder.find(row.get("path", ""))
            if any(map(str.strip, extra)):
                left_out.append(f"{line} has {len(cells)} columns, not {len(names)}")
            elif path in photos:
                left_out.append(f"{line}: {shown(path)} once more")
            elif path:
                photos[path] = _photo(path, row, f"{shown(file)}:{rows.line_num}")
            elif any(map(str.strip, cells)):
                left_out.append(f"{line}: no picture {row.get('path', '')!r}, or several")
    except csv.Error as error:
        line = f"{shown(file)}:{rows.line_num}"
        raise UserError(f"{line}: {error}; save the list as CSV again") from None
    example = "; ".join([*left_out[:MAX_NAMES], *(["..."] if len(left_out) > MAX_NAMES else [])])
    if not photos:
        raise UserError(
            f"{shown(file)}: no pictures in it{', ' if example else ''}{example}; its paths are"
            f" those below {shown(file.parent)}; --columns path=NAME takes another column"
        )
    if left_out:
        print(f"{shown(file)}: {len(left_out):,} rows are left out: {example}")
    return list(photos.values())


class _Finder:
    """The pictures below a list's folder, looked up by what the list says of them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        # By path, then more and more forgiving.
        self.levels: list[dict[str, list[str]]] = [defaultdict(list) for _ in range(5)]
        for path in listable_pictures(folder):
            key = _key(path)
            name = key.rpartition("/")[2]
            forms = (path, key, os.path.splitext(key)[0], name, os.path.splitext(name)[0])
            for level, form in zip(self.levels, forms, strict=True):
                level[form].append(path)

    def find(self, cell: str) -> str:
        """The path of a picture below the folder, "" where there is none, or several.

        Forgiven are blanks around it, backslashes, case, Unicode's form and a missing suffix. A
        cell without a folder also finds the one picture of its name in any folder.
        """
        path = cell.strip().replace("\\", "/")
        if os.path.isabs(path):
            path = os.path.relpath(path, os.path.abspath(self.folder))
        path = os.path.normpath(path)
        key = _key(path)
        exact, *others = self.levels
        found = exact.get(path) or next((level[key] for level in others if key in level), [])
        return found[0] if len(found) == 1 else ""


def _key(path: str) -> str:
    return "/".join(map(category_key, path.split("/")))


def _decoded(file: Path) -> str:
    content = file.read_bytes()
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return content.decode("utf-16", "replace")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:
        fault = "not UTF-8, read as Windows-1252; if names look wrong, save it as UTF-8"
        print(f"{shown(file)}: {fault}")
        return content.decode("cp1252", "replace")


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
        source[name] = category_key(column)
    for name, column in source.items():
        if column not in names and (name == "path" or column != name):
            raise UserError(
                f"{shown(file)}:1: no column {shown(column)!r}; it has {_listed(cells)}: name path"
                f" and any of {', '.join(COLUMNS[1:])} there, or say which is which, as in"
                " --columns path=id,category=articleType"
            )
        if names.count(column) > 1:
            raise UserError(f"{shown(file)}:1: has two columns {shown(column)}; rename one")
    place = {name: names.index(column) for name, column in source.items() if column in names}
    others = [cell for i, cell in enumerate(cells) if cell.strip() and i not in place.values()]
    if others:
        print(f"{shown(file)}: columns that are not used: {_listed(others)}")
    return place


def _listed(names: list[str]) -> str:
    return shown(", ".join(name.strip() for name in names if name.strip())[:200]) or "none"


def _photo(path: str, cells: dict[str, str], where: str) -> Photo:
    """One row, with the names of partitions and colours that this project uses."""
    row = {name: clean(cell) for name, cell in cells.items()}
    row = {name: "" if cell.lower() in MISSING else cell for name, cell in row.items()}
    row["color"] = row.get("color", "").replace(" ", "_").lower()
    partition = row.get("partition", "").lower()
    if partition and partition not in SPLIT_FOLDERS:
        raise UserError(
            f"{where}: partition {shown(partition)!r}; it may be {', '.join(SPLIT_FOLDERS)}, or"
            " empty: then it is drawn"
        )
    row["partition"] = SPLIT_FOLDERS.get(partition, "")
    return Photo(**row | {"path": path})
