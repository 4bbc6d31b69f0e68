"""writer.py: a database that is the old one or the new one, whatever ends the writer."""

import os
import shutil
import threading
import time
from pathlib import Path

import numpy as np
import pytest

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
from features.writer import Stacked, write_database
from net import Architecture
from pictures.folder import read_folder
from tests.conftest import Killed
from utils import UserError

MODELS = [ModelRecord(file="a", sha256="0" * 64, network=Architecture("a", 4, ["dress"], 64, 64))]
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


def features(count: int, seed: float) -> dict[str, np.ndarray]:
    rows = np.arange(count)[:, None] + seed
    columns = {DEEP: (4, np.float32), COLOR: (3, np.float32), CONTENT: (32, np.uint8)}
    return {name: (rows + np.arange(width)).astype(d) for name, (width, d) in columns.items()}


def stacked_file(folder: Path, matrix: np.ndarray, parts: list[np.ndarray]) -> Stacked:
    """A matrix in several files, .npy and .npz."""
    files = []
    for i, rows in enumerate(parts):
        file = folder / f"part{i}.np{'yz'[i % 2]}"
        if i % 2:
            np.savez(file, x=matrix[rows])
        else:
            np.save(file, matrix[rows])
        files.append((file, rows))
    return Stacked("x", files)


def stacked(base: Path, count: int, seed: float) -> dict[str, Stacked]:
    """In two parts, as of a database that is updated."""
    found = {}
    for name, matrix in features(count, seed).items():
        folder = base / f"parts {name} {count} {seed}"
        folder.mkdir(exist_ok=True)
        found[name] = stacked_file(folder, matrix, [np.arange(4), np.arange(4, count)])
    return found


def write(base: Path, count: int, seed: float, unreadable: tuple[int, ...] = ()) -> None:
    head = np.full((1, 4), seed, np.float32), np.zeros(1, np.float32)
    places = np.arange(count)
    places[list(unreadable)] = -1
    table = pictures(base, count)
    write_database(base, table, stacked(base, count, seed), places, head, MODELS, SETTINGS)


def test_files_of_the_users_own_stay(tmp_path: Path) -> None:
    write(tmp_path, 9, 0.5)
    own = tmp_path / "all_feat_before_tuning.npy", tmp_path / "all_feat_2.npy.bak"
    for file in own:
        shutil.copyfile(tmp_path / "all_feat.npy", file)
    shutil.copyfile(tmp_path / "all_feat.npy", tmp_path / "all_feat_2.npy")  # of a second model
    write(tmp_path, 9, 0.25)
    assert all(file.exists() for file in own)
    assert not (tmp_path / "all_feat_2.npy").exists()


def test_the_database_is_what_was_extracted_without_unreadable_pictures(tmp_path: Path) -> None:
    write(tmp_path, 9, 0.5, unreadable=(2, 8))
    database = open_database(tmp_path)
    rows = [0, 1, 3, 4, 5, 6, 7]
    assert list(database.paths) == [f"dress/{row:02d}.jpg" for row in rows]
    for name, matrix in features(9, 0.5).items():
        np.save(tmp_path / "expected.npy", matrix[rows])
        assert (tmp_path / name).read_bytes() == (tmp_path / "expected.npy").read_bytes()
    assert database.metadata.skipped == ["dress/02.jpg", "dress/08.jpg"]
    assert set(database.metadata.checksums) == FILES - {INFO}


def test_a_kill_at_any_step_leaves_the_old_the_new_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, calls: dict[str, int]
) -> None:
    """All is written before all_feat.json is removed, and it comes back last.

    The writing ends at each call that changes the folder, with nothing tidied up.
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
            assert seen[-1] == "old" or np.array_equal(found.deep[0], features(7, 3.5)[DEEP])
            assert len(list(found.paths)) == len(found.deep[0]) == len(found.items)
        write(tmp_path, 7, 3.5)  # the next run
        assert np.array_equal(open_database(tmp_path).deep[0], features(7, 3.5)[DEEP])
        assert not list(tmp_path.glob(".extract_*"))
    assert list(dict.fromkeys(seen)) == ["old", "none", "new"]
    assert seen == sorted(seen, key=["old", "none", "new"].index)


@pytest.mark.parametrize("name", sorted(FILES))
def test_a_disk_that_fills_at_the_last_moment_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Some file systems report that only at the fsync."""
    write(tmp_path, 9, 0.5)
    matrices, rows = stacked(tmp_path, 9, 3.5), np.arange(9)
    before = {name: (tmp_path / name).read_bytes() for name in FILES}
    sync = os.fsync

    def full(descriptor: int) -> None:
        inodes = [path.stat().st_ino for path in tmp_path.glob(f".extract_new/*{name}*")]
        if os.fstat(descriptor).st_ino in inodes:
            raise OSError(28, "No space left on device")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    head = np.ones((1, 4), np.float32), np.zeros(1, np.float32)
    with pytest.raises(UserError, match=r"all_.*: cannot be written: No space left on device"):
        write_database(tmp_path, pictures(tmp_path, 9), matrices, rows, head, MODELS, SETTINGS)
    assert {name: (tmp_path / name).read_bytes() for name in FILES} == before


def test_a_reader_meanwhile_sees_the_old_or_the_new_one(tmp_path: Path) -> None:
    """Guards that `open_database` reads all_feat.json again, and waits for it."""
    counts = {0.5: 9, 3.5: 7}
    write(tmp_path, 9, 0.5)
    stop, wrong, reads = threading.Event(), [], []

    def read() -> None:
        while not stop.is_set():
            try:
                found = open_database(tmp_path)
                seed = float(found.deep[0][0, 0])
                right = features(counts[seed], seed)
                same = np.array_equal(found.deep[0], right[DEEP])
                same &= np.array_equal(found.color, right[COLOR])
                same &= len(list(found.paths)) == counts[seed] == len(found.categories)
                reads.append(seed)
                if not same:
                    wrong.append("mixed")
            except Exception as error:
                wrong.append(repr(error))

    thread = threading.Thread(target=read)
    thread.start()
    for _ in range(8):
        for seed, count in reversed(counts.items()):
            write(tmp_path, count, seed)
            time.sleep(0.1)  # without a pause it may, on a busy machine, never be whole
    stop.set()
    thread.join()
    assert wrong == []
    assert set(reads) == set(counts)


def test_stacked_rows_are_taken_in_any_order(tmp_path: Path, rng: np.random.Generator) -> None:
    matrix = rng.random((12, 3))
    parts = [np.array(rows, int) for rows in ([0, 1, 2, 3], [9, 11], [4, 5, 6, 7, 8, 10])]
    rows = np.array([11, 0, 4, 3, 3, 5])
    found = stacked_file(tmp_path, matrix, parts).take(rows)
    assert np.array_equal(found, matrix[rows])
