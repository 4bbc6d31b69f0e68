"""The list of paths of a feature database, of which a query needs a few."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np


class PathList(Sequence[str]):
    """Lines of a UTF-8 file, which are decoded when they are needed.

    Parameters
    ----------
    path : the file, at least one line
    count : number of its lines

    Raises
    ------
    ValueError, OSError : it cannot be opened, or has another number of lines
    """

    def __init__(self, path: Path, count: int) -> None:
        self._bytes = np.memmap(path, np.uint8, "r")
        ends = np.flatnonzero(self._bytes == ord("\n"))
        if len(ends) != count:
            raise ValueError(f"has {len(ends)} lines, not {count}")
        self._starts = np.concatenate([[0], ends + 1])

    def __len__(self) -> int:
        return len(self._starts) - 1

    def __getitem__(self, row: Any) -> Any:
        if isinstance(row, slice):
            return [self[i] for i in range(*row.indices(len(self)))]
        row = range(len(self))[row]  # an IndexError beyond the end
        line = self._bytes[self._starts[row] : self._starts[row + 1] - 1]
        return line.tobytes().decode("utf-8")

    def __iter__(self) -> Iterator[str]:
        return iter(self._bytes.tobytes().decode("utf-8").split("\n")[:-1])
