"""shards.py: features that survive a kill, and what the next run takes from them."""

from pathlib import Path

import numpy as np
import pytest

from features.database import COLOR, CONTENT, DEEP
from features.shards import (
    Shard,
    missing_rows,
    read_shards,
    shard_name,
    split_rows,
)

COLUMNS = {DEEP: (4, "<f4"), COLOR: (3, "<f4"), CONTENT: (32, "|u1")}


def features(count: int, seed: float) -> list[np.ndarray]:
    rows = np.arange(count)[:, None] + seed
    return [(rows + np.arange(width)).astype(dtype) for width, dtype in COLUMNS.values()]


def shard(base: Path, planned: range, seed: float, key: str = "k") -> Shard:
    """A finished one."""
    found = Shard(base / ".extract_1" / shard_name(planned.start), key, planned, COLUMNS)
    rows = features(planned.stop, seed)
    found.append([feature[planned.start :] for feature in rows], [""] * len(planned))
    found.save()
    return found


def read(base: Path, key: str = "k", columns=None) -> list[Shard]:
    return read_shards(base / ".extract_1", key, columns or COLUMNS)


def test_what_was_saved_is_read_and_nothing_else(tmp_path: Path) -> None:
    """What was added after the last save is not read."""
    first = Shard(tmp_path / ".extract_1" / shard_name(0), "k", range(9), COLUMNS)
    first.append([a[:4] for a in features(9, 0)], ["", "torn", "", ""])
    first.save()
    first.append([a[4:6] for a in features(9, 7)], ["", "lost"])
    (found,) = read(tmp_path)
    assert (found.rows, found.errors) == (range(4), {1: "torn"})
    assert missing_rows([found], 9) == [range(4, 9)]
    shard(tmp_path, range(4, 9), 0)
    both = read(tmp_path)
    assert missing_rows(both, 9) == []
    for name, expected in zip(COLUMNS, features(9, 0), strict=True):
        matrix = np.concatenate([shard.matrix(name) for shard in both])
        assert matrix.dtype == expected.dtype
        assert np.array_equal(matrix, expected)


OTHERS = {
    "another key": ({"key": "other"}, lambda folder: None),
    "another matrix": ({"columns": {**COLUMNS, "x": (1, "<f4")}}, lambda folder: None),
    "a torn matrix": ({}, lambda f: (f / DEEP).write_bytes((f / DEEP).read_bytes()[:-1])),
}


@pytest.mark.parametrize(("query", "change"), OTHERS.values(), ids=OTHERS)
def test_shards_of_another_extraction_are_removed(tmp_path: Path, query: dict, change) -> None:
    """By the key and the size of each file."""
    change(shard(tmp_path, range(9), 0).folder)
    assert read(tmp_path, **query) == []
    assert list((tmp_path / ".extract_1").iterdir()) == []


def test_of_two_with_the_same_pictures_one_is_removed(tmp_path: Path) -> None:
    shard(tmp_path, range(6), 0)
    shard(tmp_path, range(4, 9), 0)
    shard(tmp_path, range(6, 8), 0)
    found = read(tmp_path)
    assert [each.rows for each in found] == [range(6), range(6, 8)]
    assert missing_rows(found, 9) == [range(8, 9)]


@pytest.mark.parametrize(
    "state",
    ["", "[]", "5", '{"key": "k"}', '{"key": "k", "start": 0, "done": -1, "errors": {}}',
     '{"key": "k", "start": 0, "done": 10, "errors": {}}',
     '{"key": "k", "start": 0, "done": 0, "errors": {}}',
     '{"key": "k", "start": 0, "done": 2.0, "errors": {}}',
     '{"key": "k", "start": "0", "done": 2, "errors": {}}',
     '{"key": "k", "start": 0, "done": 2, "errors": []}',
     '{"key": "k", "start": 0, "done": 2, "errors": {"x": "y"}}',
    ],
)  # fmt: skip
def test_a_state_that_makes_no_sense_is_ignored(tmp_path: Path, state: str) -> None:
    (shard(tmp_path, range(9), 0).folder / "state.json").write_text(state)
    assert read(tmp_path) == []


@pytest.mark.parametrize("processes", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("gaps", [[range(97)], [range(16, 48), range(64, 97)], []])
def test_missing_rows_are_split_by_whole_batches(gaps: list[range], processes: int) -> None:
    """By hand: each picture once, in order, no batch split, no process with two batches more."""
    parts = split_rows(gaps, processes, 16, 97)
    assert len(parts) == processes
    rows = [row for part in parts for planned in part for row in planned]
    assert rows == [row for gap in gaps for row in gap]
    runs = [planned for part in parts for planned in part]
    assert all(len(run) and run.start % 16 == 0 for run in runs)
    assert all(run.stop % 16 == 0 or run.stop == 97 for run in runs)
    batches = [sum(-(-len(run) // 16) for run in part) for part in parts]
    assert max(batches) - min(batches) <= 1
