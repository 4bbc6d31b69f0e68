"""checksums.py: a file that has changed is found, one that has not is not read again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from features.checksums import CHECKED, first_wrong
from tests.conftest import ROOT
from tests.pictures.test_odd_pictures import LESS_THAN_ROOT
from utils import sha256_of


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """Two files and what they are."""
    for name in ("a", "b"):
        (tmp_path / name).write_text(f"content of {name}")
    return {name: sha256_of(tmp_path / name) for name in ("a", "b")}


def changed(base: Path, files: dict[str, str], read: list[str] | None = None) -> str:
    """The first changed file, "" for none; those that were read are added to a list."""
    found = first_wrong(base, files, lambda name: (read if read is not None else []).append(name))
    return found[0] if found else ""


def test_a_change_of_one_byte_is_found_though_size_and_time_are_as_before(
    tmp_path: Path, files: dict[str, str]
) -> None:
    """Guards the time of the last change in `file_stamp`; that of the last writing can be set."""
    assert changed(tmp_path, files) == ""
    status = (tmp_path / "b").stat()
    (tmp_path / "b").write_text("content of B")
    os.utime(tmp_path / "b", ns=(status.st_atime_ns, status.st_mtime_ns))
    assert changed(tmp_path, files) == "b"
    assert changed(tmp_path, files) == "b"  # nor is it remembered as right
    (tmp_path / "b").write_text("content of b")
    assert changed(tmp_path, files) == ""


def test_another_file_and_another_hash_are_found(tmp_path: Path, files: dict[str, str]) -> None:
    """The checksum is remembered with the stamp."""
    assert changed(tmp_path, files) == ""
    (tmp_path / "new").write_text("content of A")
    os.replace(tmp_path / "new", tmp_path / "a")
    assert changed(tmp_path, files) == "a"
    assert changed(tmp_path, {**files, "a": sha256_of(tmp_path / "a")}) == ""
    assert changed(tmp_path, files) == "a"


def test_a_file_that_is_removed_meanwhile_is_named(tmp_path: Path, files: dict[str, str]) -> None:
    """Guards both `except OSError`: an update removes files which a reader has just opened."""

    def remove_b(_: str) -> str:
        (tmp_path / "b").unlink()
        return ""

    gone = "b", "No such file or directory"
    assert first_wrong(tmp_path, files, remove_b) == gone  # after its stamp was taken
    assert first_wrong(tmp_path, files, lambda _: "") == gone  # before


def test_a_file_is_read_once(tmp_path: Path, files: dict[str, str]) -> None:
    read: list[str] = []
    assert changed(tmp_path, files, read) == ""
    assert read == ["a", "b"]
    assert changed(tmp_path, files, read) == ""
    assert read == ["a", "b"]
    (tmp_path / "b").touch()
    assert changed(tmp_path, files, read) == ""
    assert read == ["a", "b", "b"]


def test_a_wrong_content_is_reported_each_time(tmp_path: Path, files: dict[str, str]) -> None:
    """The stamps are not written then."""
    for _ in range(2):
        assert first_wrong(tmp_path, files, {"a": "", "b": "odd"}.get) == ("b", "odd")


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": 5}', "\0", '{"a": NaN}', "[" * 9999])
def test_damaged_stamps_are_ignored(tmp_path: Path, files: dict[str, str], content: str) -> None:
    (tmp_path / CHECKED).write_text(content)
    assert changed(tmp_path, files) == ""
    (tmp_path / "a").write_text("content of A")
    assert changed(tmp_path, files) == "a"


def test_where_stamps_cannot_be_saved_files_are_read_each_time(
    tmp_path: Path, files: dict[str, str]
) -> None:
    """A query needs no right to write."""
    tmp_path.chmod(0o555)
    code = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r})\n"
        "from features.checksums import first_wrong\n"
        f"from pathlib import Path\n"
        f"print(first_wrong(Path({str(tmp_path)!r}), {files}, lambda name: ''))"
    )
    command = [*LESS_THAN_ROOT, sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True)
    tmp_path.chmod(0o755)
    assert (done.stdout, done.stderr) == ("None\n", "")
