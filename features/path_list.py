"""A list of many lines on disk, of which few are wanted."""

from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from utils import UserError


class Lines(Sequence[str]):
    """Lines of a UTF-8 file, opened now, read when first asked for: a query wants a few of many.

    Parameters
    ----------
    path : the file
    count : number of its lines
    again : what to do about another number of them

    Raises
    ------
    ValueError, OSError : it cannot be opened
    UserError : on first use, where it has another number of lines
    """

    def __init__(self, path: Path, count: int, again: str) -> None:
        self.path = path
        self.count = count
        self.again = again
        if not path.is_file():
            raise ValueError("no such file")
        empty = not path.stat().st_size
        self._bytes = np.zeros(0, np.uint8) if empty else np.memmap(path, np.uint8, "r")

    @cached_property
    def _ends(self) -> np.ndarray:
        ends = np.flatnonzero(self._bytes == ord("\n"))
        if len(ends) != self.count:
            raise UserError(f"{self.path}: has {len(ends)} rows, not {self.count}; {self.again}")
        return ends

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(self.count))]
        if not -self.count <= row < self.count:
            raise IndexError(row)
        row %= self.count
        start = self._ends[row - 1] + 1 if row else 0
        return self._bytes[start : self._ends[row]].tobytes().decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        _ = self._ends  # the check
        return iter(self._bytes.tobytes().decode("utf-8").split("\n")[:-1])
