"""store.py: features that survive a kill, and a database that is the old one or the new one."""

import os
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from features import writer as store
from features.arrays import map_array
from features.database import (
    CATEGORY,
    CLASSIFIER,
    COLOR,
    CONTENT,
    DEEP,
    INFO,
    ITEM,
    LIST,
    open_database,
)
from features.metadata import FeatureSettings, ModelRecord
from features.writer import (
    Shard,
    Stacked,
    missing,
    place_of,
    read_shards,
    remove_partial,
    shared_out,
    write_database,
)
from net import Network
from pictures.folder import read_folder
from tests.conftest import Killed
from utils import UserError

COLUMNS = {DEEP: (4, "<f4"), COLOR: (3, "<f4"), CONTENT: (32, "|u1")}
MODELS = [ModelRecord(file="a", sha256="0" * 64, network=Network("a", 4, ["dress"], 64, 64))]
SETTINGS = FeatureSettings(
    COLOR_TOP_N=1, PALETTE=False, FLIP=False, CROP_TO_BBOX=True, AMP="float32"
)
FILES = {CATEGORY, CLASSIFIER, COLOR, CONTENT, DEEP, INFO, ITEM, LIST}


def pictures(base: Path, count: int):
    """A table of pictures that are not looked at."""
    for i in range(count):
        (base / "dress").mkdir(exist_ok=True)
        (base / "dress" / f"{i:02d}.jpg").touch()
    return read_folder(base, 0.1).select(np.arange(count))


def features(count: int, seed: float) -> list[np.ndarray]:
    rows = np.arange(count)[:, None] + seed
    return [(rows + np.arange(width)).astype(dtype) for width, dtype in COLUMNS.values()]


def shard(base: Path, planned: range, seed: float, key: str = "k") -> Shard:
    """A finished one."""
    found = Shard(base / ".extract_1" / place_of(planned.start), key, planned, COLUMNS)
    rows = features(planned.stop, seed)
    found.append([feature[planned.start :] for feature in rows], [""] * len(planned))
    found.save()
    return found


def stacked(shards: list[Shard]) -> dict[str, Stacked]:
    return {name: Stacked([shard.matrix(name) for shard in shards]) for name in COLUMNS}


def write(base: Path, count: int, seed: float, unreadable: tuple[int, ...] = ()) -> None:
    head = np.full((1, 4), seed, np.float32), np.zeros(1, np.float32)
    places = np.arange(count)
    places[list(unreadable)] = -1
    matrices = stacked([shard(base, range(count), seed)])
    write_database(base, pictures(base, count), matrices, places, head, MODELS, SETTINGS)


def read(base: Path, key: str = "k", total: int = 9, columns=None) -> list[Shard]:
    return read_shards(base / ".extract_1", key, columns or COLUMNS, total)


def test_what_was_saved_is_taken_up_and_nothing_else(tmp_path: Path) -> None:
    """Guards `save` and `_read_shard`: what was added later is not believed."""
    first = Shard(tmp_path / ".extract_1" / place_of(0), "k", range(9), COLUMNS)
    first.append([a[:4] for a in features(9, 0)], ["", "torn", "", ""])
    first.save()
    first.append([a[4:6] for a in features(9, 7)], ["", "lost"])
    (found,) = read(tmp_path)
    assert (found.rows, found.errors) == (range(4), {1: "torn"})
    assert missing([found], 9) == [range(4, 9)]
    shard(tmp_path, range(4, 9), 0)
    both = read(tmp_path)
    assert missing(both, 9) == []
    for matrix, expected in zip(stacked(both).values(), features(9, 0), strict=True):
        assert np.array_equal(matrix.take(np.arange(9)), expected)
        assert np.array_equal(matrix.take(np.array([8, 0, 4, 3, 3])), expected[[8, 0, 4, 3, 3]])
        assert matrix.dtype == expected.dtype


OTHERS = {
    "another key": ({"key": "other"}, lambda folder: None),
    "fewer pictures": ({"total": 8}, lambda folder: None),
    "another matrix": ({"columns": {**COLUMNS, "x": (1, "<f4")}}, lambda folder: None),
    "a torn matrix": ({}, lambda f: (f / DEEP).write_bytes((f / DEEP).read_bytes()[:-1])),
    "another place": ({}, lambda folder: folder.rename(folder.with_name(place_of(1)))),
    "a file": ({}, lambda f: (remove_partial(f), f.write_text("x"))),
}


@pytest.mark.parametrize(("asked", "change"), OTHERS.values(), ids=OTHERS)
def test_those_of_another_extraction_are_dropped(tmp_path: Path, asked: dict, change) -> None:
    """Guards the key, the name of the folder, the rows, and the size of each file."""
    change(shard(tmp_path, range(9), 0).folder)
    assert read(tmp_path, **asked) == []
    assert list((tmp_path / ".extract_1").iterdir()) == []


def test_of_two_with_the_same_pictures_one_is_dropped(tmp_path: Path) -> None:
    """Guards `free` in `read_shards`: the gaps would be wrong."""
    shard(tmp_path, range(6), 0)
    shard(tmp_path, range(4, 9), 0)
    shard(tmp_path, range(6, 8), 0)
    found = read(tmp_path)
    assert [each.rows for each in found] == [range(6), range(6, 8)]
    assert missing(found, 9) == [range(8, 9)]


@pytest.mark.parametrize(
    "state",
    ["", "[]", "5", '{"key": "k"}', '{"key": "k", "start": 0, "done": -1, "errors": {}}',
     '{"key": "k", "start": 0, "done": 10, "errors": {}}',
     '{"key": "k", "start": 0, "done": 0, "errors": {}}',
     '{"key": "k", "start": 0, "done": 2.0, "errors": {}}',
     '{"key": "k", "start": "0", "done": 2, "errors": {}}',
     '{"key": "k", "start": 0, "done": 2, "errors": []}',
     '{"key": "k", "start": 0, "done": 2, "errors": {"x": "y"}}',
     '{"key": "k", "start": 0, "done": 2, "errors": {"2": "y"}}'],
)  # fmt: skip
def test_a_state_that_makes_no_sense_is_as_none(tmp_path: Path, state: str) -> None:
    """Guards the checks and the `except` in `_read_shard`."""
    (shard(tmp_path, range(9), 0).folder / "state.json").write_text(state)
    assert read(tmp_path) == []


@pytest.mark.parametrize("ranks", [1, 2, 3, 5, 40])
@pytest.mark.parametrize("gaps", [[range(97)], [range(16, 48), range(64, 97)], []])
def test_what_is_missing_is_shared_out_by_whole_batches(gaps: list[range], ranks: int) -> None:
    """By hand: each picture once, in order, no batch torn, nobody with two batches more."""
    parts = shared_out(gaps, ranks, 16, 97)
    assert len(parts) == ranks
    rows = [row for part in parts for planned in part for row in planned]
    assert rows == [row for gap in gaps for row in gap]
    runs = [planned for part in parts for planned in part]
    assert all(len(run) and run.start % 16 == 0 for run in runs)
    assert all(run.stop % 16 == 0 or run.stop == 97 for run in runs)
    batches = [sum(-(-len(run) // 16) for run in part) for part in parts]
    assert max(batches) - min(batches) <= 1


def test_the_database_is_what_was_extracted_without_what_could_not_be_read(tmp_path: Path) -> None:
    """Guards `_write_rows` and the hashes."""
    write(tmp_path, 9, 0.5, unreadable=(2, 8))
    database = open_database(tmp_path)
    rows = [0, 1, 3, 4, 5, 6, 7]
    assert list(database.paths) == [f"dress/{row:02d}.jpg" for row in rows]
    assert np.array_equal(database.deep[0], features(9, 0.5)[0][rows])
    assert np.array_equal(database.color, features(9, 0.5)[1][rows])
    assert database.metadata.skipped == ["dress/02.jpg", "dress/08.jpg"]
    assert set(database.metadata.checksums) == FILES - {INFO}


def test_a_kill_at_any_step_leaves_the_old_the_new_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: dict[str, int]
) -> None:
    """Guards that all is written before all_feat.json goes, and that it comes back last.

    The writing is cut off at each call that changes the folder, with nothing tidied up.
    """
    monkeypatch.setattr("features.database.PAUSE", 0)
    write(tmp_path, 9, 0.5)
    old = open_database(tmp_path).deep[0].copy()
    seen = []
    for step in range(200):
        calls["left"] = 9999
        write(tmp_path, 9, 0.5)
        calls["left"] = step
        try:
            write(tmp_path, 7, 3.5)
            break
        except (Killed, UserError):
            pass
        calls["left"] = 9999
        if not (tmp_path / INFO).exists():
            with pytest.raises(UserError, match="no feature database"):
                open_database(tmp_path)
            seen.append("none")
        else:
            found = open_database(tmp_path)
            seen.append("old" if np.array_equal(found.deep[0], old) else "new")
            assert seen[-1] == "old" or np.array_equal(found.deep[0], features(7, 3.5)[0])
            assert len(list(found.paths)) == len(found.deep[0]) == len(found.items)
        write(tmp_path, 7, 3.5)  # the next run
        assert np.array_equal(open_database(tmp_path).deep[0], features(7, 3.5)[0])
        assert not list(tmp_path.glob(".*.part"))
    assert list(dict.fromkeys(seen)) == ["old", "none", "new"]
    assert seen == sorted(seen, key=["old", "none", "new"].index)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_disk_that_fills_at_the_last_moment_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Guards each `_sync` in store.py: some systems say only then that space is short."""
    write(tmp_path, 9, 0.5)
    matrices, rows = stacked([shard(tmp_path, range(9), 3.5)]), np.arange(9)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    sync = os.fsync

    def full(descriptor: int) -> None:
        inodes = [path.stat().st_ino for path in tmp_path.glob(f".{name}.*.part")]
        if os.fstat(descriptor).st_ino in inodes:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    head = np.ones((1, 4), np.float32), np.zeros(1, np.float32)
    with pytest.raises(UserError, match=r"all_.*: cannot be written: No space left on device"):
        write_database(tmp_path, pictures(tmp_path, 9), matrices, rows, head, MODELS, SETTINGS)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before


def test_who_reads_all_the_while_sees_the_old_or_the_new_one(tmp_path: Path) -> None:
    """Guards the second look at all_feat.json in `open_database`, and the wait for it."""
    counts = {0.5: 9, 3.5: 7}
    write(tmp_path, 9, 0.5)
    stop, wrong, reads = threading.Event(), [], []

    def read() -> None:
        while not stop.is_set():
            try:
                found = open_database(tmp_path)
                seed = float(found.deep[0][0, 0])
                right = features(counts[seed], seed)
                same = np.array_equal(found.deep[0], right[0])
                same &= np.array_equal(found.color, right[1])
                same &= len(list(found.paths)) == counts[seed] == len(found.categories)
                reads.append(seed)
                if not same:
                    wrong.append("mixed")
            except Exception as error:
                wrong.append(repr(error))

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(15):
        for seed, count in reversed(counts.items()):
            write(tmp_path, count, seed)
            time.sleep(0.1)  # without a pause it may, on a busy machine, never be whole
    stop.set()
    thread.join()
    assert wrong == []
    assert set(reads) == set(counts)


def test_partial_features_go_word_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the order in `remove_partial`: killed in between, no half of them is believed."""
    shard(tmp_path, range(9), 0.5)

    def killed(*_: object, **__: object) -> None:
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(store.shutil, "rmtree", killed)
        with pytest.raises(Killed):
            remove_partial(tmp_path / ".extract_1")
    assert read(tmp_path) == []


def test_rows_are_counted_in_64_bits(tmp_path: Path) -> None:
    """A sparse file of more rows than 32 bits count; guards `Stacked` and `map_array`."""
    rows = 2**31 + 5
    made = np.lib.format.open_memmap(tmp_path / "long.npy", "w+", np.int8, (rows, 1))
    made[-1], made[3] = 7, 5
    made.flush()
    part = map_array(tmp_path / "long.npy", "|i1", 2)
    wanted = np.array([rows - 1, 3, 2 * rows - 1, rows + 3, rows])
    assert Stacked([part, part]).take(wanted)[:, 0].tolist() == [7, 5, 7, 5, 0]
