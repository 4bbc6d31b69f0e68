"""PathList: lines of a file as a list, decoded when they are needed."""

from pathlib import Path

import pytest

from features.database import PathList


@pytest.mark.parametrize("lines", [[""], ["a"], ["a", "", "dress/платье ドレス.jpg", "z"]])
def test_it_is_the_list_of_the_lines(tmp_path: Path, lines: list[str]) -> None:
    """By row, by slice and as a whole."""
    path = tmp_path / "list"
    path.write_text("".join(line + "\n" for line in lines), "utf-8")
    found = PathList(path, len(lines))
    assert list(found) == lines
    assert [found[i] for i in range(len(found))] == lines
    assert [found[i - len(lines)] for i in range(len(lines))] == lines
    assert found[:2] == lines[:2]
    for row in (len(lines), -len(lines) - 1):
        with pytest.raises(IndexError):
            found[row]


def test_it_stays_what_it_was_when_opened(tmp_path: Path) -> None:
    """A file that replaces it later belongs to another database."""
    path = tmp_path / "list"
    path.write_text("old\n")
    found = PathList(path, 1)
    (tmp_path / "new").write_text("new\n")
    (tmp_path / "new").replace(path)
    assert found[0] == "old"


@pytest.mark.parametrize("count", [1, 3])
def test_another_number_of_lines_is_an_error_that_names_both(tmp_path: Path, count: int) -> None:
    path = tmp_path / "list"
    path.write_text("a\nb\n")
    with pytest.raises(ValueError, match=f"has 2 lines, not {count}"):
        PathList(path, count)


def test_no_file_is_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        PathList(tmp_path / "none", 0)
