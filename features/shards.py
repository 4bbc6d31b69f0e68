"""Features of an unfinished extraction on disk: they survive a kill, and the next run goes on."""

import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from utils import atomic_write, writing

STATE = "state.json"

Columns = Mapping[str, tuple[int, str]]  # width and dtype of each matrix, by its file's name


class _State(BaseModel):
    """What state.json says of a shard."""

    model_config = ConfigDict(strict=True)

    key: str
    start: int
    done: int = Field(gt=0)
    errors: dict[int, str]


@dataclass
class Shard:
    """The features of consecutive pictures of an unfinished extraction.

    Each process of an extraction writes its own shards, in hidden folders. The matrices are written
    as files, not mapped: on a full disk, writing to a mapped page kills the process.

    Parameters
    ----------
    folder : where it lies
    key : a hash of all that the features depend on
    planned : numbers of the pictures that it is for, in the extraction
    columns : its matrices
    done : how many of them are in it
    errors : why some of these could not be read, by their numbers
    """

    folder: Path
    key: str
    planned: range
    columns: Columns
    done: int = 0
    errors: dict[int, str] = field(default_factory=dict)
    files: dict[str, BinaryIO] = field(default_factory=dict)

    @property
    def rows(self) -> range:
        """Numbers of the pictures that are in it."""
        return self.planned[: self.done]

    def append(self, features: Sequence[np.ndarray], errors: Sequence[str]) -> None:
        """Add the next B pictures: for each matrix B x its width; why a picture has none, or ""."""
        if not self.files:
            with writing(self.folder):
                shutil.rmtree(self.folder, ignore_errors=True)
                self.folder.mkdir(parents=True)
                for name in self.columns:
                    self.files[name] = open(self.folder / name, "wb")  # noqa: SIM115
        for (name, (_, dtype)), feature in zip(self.columns.items(), features, strict=True):
            with writing(self.folder / name):
                self.files[name].write(np.ascontiguousarray(feature, dtype).data)
        self.errors |= {self.rows.stop + i: reason for i, reason in enumerate(errors) if reason}
        self.done += len(errors)

    def save(self) -> None:
        """Make what was added survive a kill: first the features, then the state."""
        for name, file in self.files.items():
            with writing(self.folder / name):
                file.flush()
                os.fsync(file.fileno())
        state = _State(key=self.key, start=self.rows.start, done=self.done, errors=self.errors)
        with atomic_write(self.folder / STATE) as part:
            part.write_text(state.model_dump_json(), "utf-8")

    def matrix(self, name: str) -> np.ndarray:
        """One of its matrices, `done` x its width, mapped."""
        width, dtype = self.columns[name]
        return np.memmap(self.folder / name, dtype, "r", shape=(self.done, width))


def read_shards(folder: Path, key: str, columns: Columns) -> list[Shard]:
    """The shards of a model that earlier runs have saved, in order; all others are removed."""
    found: list[Shard] = []
    for place in sorted(folder.iterdir()) if folder.is_dir() else []:
        shard = _read_shard(place, key, columns)
        if shard and (not found or found[-1].rows.stop <= shard.rows.start):
            found.append(shard)
        else:
            shutil.rmtree(place)
    return found


def _read_shard(folder: Path, key: str, columns: Columns) -> Shard | None:
    """A saved shard; None where it is not whole, or another extraction's."""
    try:
        state = _State.model_validate_json((folder / STATE).read_bytes())
        whole = all(
            state.done * width * np.dtype(dtype).itemsize <= (folder / name).stat().st_size
            for name, (width, dtype) in columns.items()
        )
    except (OSError, ValueError):
        return None
    planned = range(state.start, state.start + state.done)
    shard = Shard(folder, key, planned, columns, state.done, state.errors)
    return shard if whole and state.key == key else None


def shard_name(start: int) -> str:
    """The name of a shard's folder; in the order of the names, shards are in the order of rows."""
    return f"{start:012d}"


def missing_rows(shards: Sequence[Shard], total: int) -> list[range]:
    """The pictures of an extraction that are in none of its shards, which are in order."""
    ends = [0, *(shard.rows.stop for shard in shards)]
    starts = [*(shard.rows.start for shard in shards), total]
    return [range(a, b) for a, b in zip(ends, starts, strict=True) if a < b]


def split_rows(rows: Sequence[range], parts: int, batch: int, total: int) -> list[list[range]]:
    """Split the missing pictures of an extraction: for each of `parts` processes its ranges.

    Each range begins with a whole batch, of `batch` pictures. Parts differ by at most one batch.
    The batches are those of one process that was not interrupted, so the features are the same.
    """
    starts = [start for gap in rows for start in range(gap.start, gap.stop, batch)]
    return [
        [
            range(int(run[0]), min(int(run[-1]) + batch, total))
            for run in np.split(share, np.flatnonzero(np.diff(share) != batch) + 1)
            if len(run)
        ]
        for share in np.array_split(np.array(starts, np.int64), parts)
    ]
