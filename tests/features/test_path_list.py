"""lines.py: lines of a file as a list, read when they are asked for."""

from pathlib import Path

import pytest

from features.path_list import Lines
from utils import UserError


@pytest.mark.parametrize("lines", [[], [""], ["a"], ["a", "", "dress/платье ドレス.jpg", "z"]])
def test_it_is_the_list_of_the_lines(tmp_path: Path, lines: list[str]) -> None:
    """Guards `__getitem__`, `__iter__` and `__len__` against each other."""
    path = tmp_path / "list"
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    found = Lines(path, len(lines), "again")
    assert list(found) == lines
    assert [found[i] for i in range(len(found))] == lines
    assert [found[i - len(lines)] for i in range(len(lines))] == lines
    assert found[:2] == lines[:2]
    for row in (len(lines), -len(lines) - 1):
        with pytest.raises(IndexError):
            found[row]


def test_it_stays_what_it_was_when_opened(tmp_path: Path) -> None:
    """Guards that it is opened at once: a file that is put in its place belongs to others."""
    path = tmp_path / "list"
    path.write_text("old\n")
    found = Lines(path, 1, "again")
    (tmp_path / "new").write_text("new\n")
    (tmp_path / "new").replace(path)
    assert found[0] == "old"


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_lines_is_an_error_that_names_both(tmp_path: Path, count: int) -> None:
    """Guards the check in `_ends`, also for who takes them all."""
    path = tmp_path / "list"
    path.write_text("a\nb\n")
    for ask in (list, lambda lines: lines[0]):
        with pytest.raises(UserError, match=f"list: has 2 rows, not {count}; run it again"):
            ask(Lines(path, count, "run it again"))


def test_no_file_is_an_error_at_once(tmp_path: Path) -> None:
    """Guards `is_file`: a pipe would be waited for."""
    with pytest.raises(ValueError, match="no such file"):
        Lines(tmp_path / "none", 0, "again")
