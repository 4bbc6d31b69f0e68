"""DeepFashion's form of a list: reading, checking and writing one file.

Line 1 is the number of rows, line 2 the names of the columns, then one row a line in columns padded
with blanks. The first column (a path or a name) may contain blanks, so rows are split from the
right.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

import numpy as np

from utils import UserError, atomic_write


@dataclass(frozen=True)
class AnnotationList:
    """The cells of a list, by column. Each method checks one column and converts it.

    Attributes
    ----------
    path : the file, for error messages
    columns : what each column is, for error messages
    cells : the columns, each a list of N strings; row i is line i + 3 of the file
    """

    path: Path
    columns: Sequence[str]
    cells: list[list[str]]

    def paths(self) -> list[str]:
        """The first column, in which no picture may occur twice."""
        paths = self.cells[0]
        if len(set(paths)) < len(paths):
            first = np.unique(paths, return_index=True)[1]
            row = int(np.setdiff1d(np.arange(len(paths)), first)[0])
            found, line = f"{self.path}:{row + 3}: {paths[row]!r}", paths.index(paths[row]) + 3
            raise UserError(f"{found} is in line {line} already; remove one")
        return paths

    def numbers(self, column: int, lowest: int = 0, highest: int = 10**9) -> np.ndarray:
        """A column of whole numbers from `lowest` to `highest`, N, int64."""
        cells = self.cells[column]
        self._require(np.array([_is_number(cell) for cell in cells], bool))
        values = np.array(cells, np.int64)
        self._require((values >= lowest) & (values <= highest))
        return values

    def names(self, column: int, allowed: Sequence[str]) -> np.ndarray:
        """A column in which each cell is one of the `allowed` names, N, str."""
        self._require(np.array([cell in allowed for cell in self.cells[column]], bool))
        return np.array(self.cells[column], "<U7")

    def shares(self, column: int) -> np.ndarray:
        """A column of numbers from 0 to 1, N, float64."""
        cells = self.cells[column]
        sound = [re.fullmatch(r"0(\.\d+)?|1(\.0+)?", cell) for cell in cells]
        self._require(np.array(sound, bool))
        return np.array(cells, np.float64)

    def boxes(self) -> np.ndarray:
        """The last four columns, N x 4, int32."""
        width = len(self.columns)
        corners = [self.numbers(column) for column in range(width - 4, width)]
        return np.stack(corners, axis=1).astype(np.int32)

    def _require(self, sound: np.ndarray) -> None:
        """Raise the `UserError` of the first row that is False in a mask of N, if there is one."""
        if not sound.all():
            row = int(np.argmin(sound))
            found = " ".join(column[row] for column in self.cells)
            _refuse(self.path, row + 3, self.columns, found)


def read_list(path: Path, columns: Sequence[str]) -> AnnotationList:
    """Read a list; a byte-order mark, CRLF and a missing last newline are accepted.

    `columns` says what each column is, for error messages; all but the first are free of blanks.

    Raises
    ------
    UserError : the file cannot be read, line 1 is no number or not the number of rows, or a row has
        too few columns; it names file, line and what was expected
    """
    try:
        lines = path.read_text("utf-8-sig").rstrip().split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; a list must be there") from None
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise UserError(f"{path}:{line}: not UTF-8 text: {error.reason}; save it so") from None
    count = lines[0].strip()
    if not _is_number(count):
        raise UserError(f"{path}:1: expected the number of rows, found {count[:60]!r}; add it")
    width = len(columns)
    cells: list[list[str]] = [[] for _ in columns]
    # By blocks: a list for every row of a large file at once would keep the garbage collector busy
    # for most of the time.
    for start in range(2, len(lines), 512):
        rows = [line.rsplit(None, width - 1) for line in lines[start : start + 512]]
        for number, row in enumerate(rows, start):
            if len(row) != width:
                _refuse(path, number + 1, columns, lines[number])
        for column, block in zip(cells, zip(*rows, strict=True), strict=True):
            column.extend(block)
    if int(count) != len(cells[0]):
        raise UserError(
            f"{path}:1: announces {int(count)} rows, but {len(cells[0])} rows follow; get the whole"
            " list, or correct the number"
        )
    return AnnotationList(path, columns, cells)


def write_list(path: Path, columns: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    """Write a list, as `read_list` reads it, with columns padded to equal width."""
    cells = [[str(cell) for cell in row] for row in rows]
    widths = [max((len(row[i]) for row in cells), default=0) for i in range(len(columns) - 1)]
    with atomic_write(path) as part, open(part, "w", encoding="utf-8", newline="\n") as file:
        file.write(f"{len(cells)}\n{'  '.join(columns)}\n")
        for row in cells:
            padded = [cell.ljust(width) for cell, width in zip(row, widths, strict=False)]
            file.write("  ".join([*padded, row[-1]]) + "\n")


def _refuse(path: Path, line: int, columns: Sequence[str], found: str) -> NoReturn:
    raise UserError(
        f"{path}:{line}: expected {' '.join(columns)}; found {found[:200]!r}; correct it"
    )


def _is_number(cell: str) -> bool:
    """ASCII digits alone, unlike what `int` takes, and few enough for int32."""
    return cell.isascii() and cell.isdecimal() and len(cell) < 10
