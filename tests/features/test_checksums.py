"""Checksums: a file that has changed is found, one that has not is not read again."""

import os
from pathlib import Path

import pytest

from features import database
from features.database import CHECKED, first_wrong
from utils import sha256_of


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Two files and what they are."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"content of {name}")
    return {name: sha256_of(tmp_path / name) for name in ("a", "b")}


def test_a_change_of_one_byte_is_found_though_size_and_time_are_as_before(
    tmp_path: Path, files: dict[str, str]
) -> None:
    """Guards the time of the last change in `file_stamp`; that of the last writing can be set."""
    assert first_wrong(tmp_path, files) == ""
    status = (tmp_path / "b").stat()
    (tmp_path / "b").write_text("content of B")
    os.utime(tmp_path / "b", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert first_wrong(tmp_path, files) == "b"
    assert first_wrong(tmp_path, files) == "b"  # nor is it remembered as right
    (tmp_path / "b").write_text("content of b")
    assert first_wrong(tmp_path, files) == ""


def test_another_file_and_another_hash_are_found(tmp_path: Path, files: dict[str, str]) -> None:
    """The checksum is remembered with the stamp."""
    assert first_wrong(tmp_path, files) == ""
    (tmp_path / "new").write_text("content of A")
    os.replace(tmp_path / "new", tmp_path / "a")
    assert first_wrong(tmp_path, files) == "a"
    assert first_wrong(tmp_path, {**files, "a": sha256_of(tmp_path / "a")}) == ""
    assert first_wrong(tmp_path, files) == "a"


def test_a_file_that_is_removed_meanwhile_is_named(tmp_path: Path, files: dict[str, str]) -> None:
    """An update removes files which a reader has just opened."""
    (tmp_path / "b").unlink()
    assert first_wrong(tmp_path, files) == "b"


def test_a_file_is_read_once(
    tmp_path: Path, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    monkeypatch.setattr(
        database, "sha256_of", lambda path: read.append(path.name) or sha256_of(path)
    )
    for wanted in (["a", "b"], ["a", "b"]):
        assert first_wrong(tmp_path, files) == ""
        assert read == wanted
    (tmp_path / "b").touch()
    assert first_wrong(tmp_path, files) == ""
    assert read == ["a", "b", "b"]


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 5}', "\0", '{"a": NaN}', "7"])
def test_damaged_stamps_are_ignored(tmp_path: Path, files: dict[str, str], content: str) -> None:
    (tmp_path / CHECKED).write_text(content)
    assert first_wrong(tmp_path, files) == ""
    (tmp_path / "a").write_text("content of A")
    assert first_wrong(tmp_path, files) == "a"
