"""A list of pictures with what is known of each, as CSV with a line of column names.

path,category,item,color,partition
shoes/0001.jpg,Shoes,A-17,red,train
"""

import csv
import os
from pathlib import Path

import numpy as np

from pictures.folder import SPLIT_FOLDERS, can_be_listed
from utils import UserError, shown

SUFFIX = ".csv"
COLUMNS = ("path", "category", "item", "color", "partition")


def read_picture_list(file: Path) -> dict[str, np.ndarray]:
    """Read a list of pictures.

    Parameters
    ----------
    file : with a column path, of paths relative to the list's folder or absolute ones below it, and
        any others of `COLUMNS`; a partition is train, val, validation or test

    Returns
    -------
    All columns, N str each; "" where the list has no value.

    Raises
    ------
    UserError : the list is malformed, with file and line
    """
    found: dict[str, dict[str, str]] = {}
    try:
        with open(file, newline="", encoding="utf-8-sig") as lines:
            rows = csv.reader(lines, strict=True)
            names = _column_names(file, next(rows, []))
            for cells in filter(None, rows):
                where = f"{shown(file)}:{rows.line_num}"
                if len(cells) != len(names):
                    raise UserError(f"{where}: {len(cells)} columns, line 1 has {len(names)}")
                row = _row(dict(zip(names, cells, strict=True)), file.parent, where)
                if found.setdefault(row["path"], row) is not row:
                    raise UserError(f"{where}: {shown(row['path'])} is there twice")
    except OSError as error:
        raise UserError(f"{shown(file)}: cannot be read: {error.strerror or error}") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{shown(file)}: is not UTF-8 text: {error.reason}") from None
    except csv.Error as error:
        raise UserError(f"{shown(file)}:{rows.line_num}: {error}") from None
    if not found:
        raise UserError(f"{shown(file)}: no pictures in it")
    rows_found = found.values()
    return {name: np.array([row.get(name, "") for row in rows_found], str) for name in COLUMNS}


def _column_names(file: Path, cells: list[str]) -> list[str]:
    names = [name.strip().lower() for name in cells]
    unknown = sorted(set(names) - set(COLUMNS))
    if "path" not in names or unknown or len(set(names)) < len(names):
        has = f"has {shown(unknown[0])!r}" if unknown else f"has {', '.join(names)}"
        raise UserError(
            f"{shown(file)}:1: must name columns, path and any of {', '.join(COLUMNS[1:])};"
            f" it {has}"
        )
    return names


def _row(cells: dict[str, str], folder: Path, where: str) -> dict[str, str]:
    """One row, checked, with the names of partitions and colours that this project uses."""
    row = {name: " ".join(cell.split()) for name, cell in cells.items()}
    row["path"] = _path(cells["path"].strip(), folder, where)
    row["color"] = row.get("color", "").replace(" ", "_")
    partition = row.get("partition", "")
    if partition and partition not in SPLIT_FOLDERS:
        raise UserError(
            f"{where}: partition {shown(partition)!r}; it may be {', '.join(SPLIT_FOLDERS)}"
        )
    row["partition"] = SPLIT_FOLDERS.get(partition, "")
    return row


def _path(path: str, folder: Path, where: str) -> str:
    """A path relative to the list's folder."""
    if os.path.isabs(path):
        path = os.path.relpath(path, os.path.abspath(folder))
    path = os.path.normpath(path).replace(os.sep, "/") if path else ""
    if path in ("", ".") or path.split("/")[0] == ".." or not can_be_listed(path):
        raise UserError(f"{where}: {shown(path)!r} is no path below {shown(folder)}")
    return path
