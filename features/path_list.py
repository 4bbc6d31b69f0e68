"""The list of paths of a feature database, of which a query needs a few."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError


class PathList(Sequence[str]):
    """Lines of a UTF-8 file, which is opened now and read when the first of them is needed.

    Parameters
    ----------
    path : the file, at least one line
    count : number of its lines
    remedy : what to do where it has another number of them, for the message

    Raises
    ------
    ValueError, OSError : it cannot be opened
    UserError : on first use, where it has another number of lines
    """

    def __init__(self, path: Path, count: int, remedy: str) -> None:
        self.path = path
        self.lines = count
        self.remedy = remedy
        if not path.is_file():  # opening a pipe would wait for its writer
            raise ValueError("no such file")
        self._bytes = np.memmap(path, np.uint8, "r")

    @cached_property
    def _ends(self) -> np.ndarray:
        ends = np.flatnonzero(self._bytes == ord("\n"))
        if len(ends) != self.lines:
            raise UserError(f"{self.path}: has {len(ends)} rows, not {self.lines}; {self.remedy}")
        return ends

    def __len__(self) -> int:
        return self.lines

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(self.lines))]
        if not -self.lines <= row < self.lines:
            raise IndexError(row)
        row %= self.lines
        start = self._ends[row - 1] + 1 if row else 0
        return self._bytes[start : self._ends[row]].tobytes().decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        _ = self._ends  # the check
        return iter(self._bytes.tobytes().decode("utf-8").split("\n")[:-1])
