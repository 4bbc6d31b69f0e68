"""lists.py: what is written is read back; a long list is read as a whole."""

import string
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pictures.lists import read_list, write_list
from utils import UserError

# Any printable name may be first, with blanks before and within it; then words without blanks.
NAME = st.text(st.characters(exclude_categories=["C", "Zl", "Zp"]), min_size=1, max_size=12).filter(
    lambda text: text == text.rstrip()
)
WORD = st.text(string.ascii_letters + string.digits + "_./'\"ßé服", min_size=1, max_size=8)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), width=st.integers(1, 4))
def test_written_list_is_read_back(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, width: int
) -> None:
    rows = data.draw(st.lists(st.tuples(NAME, *[WORD] * (width - 1)), max_size=6))
    path, columns = tmp_path_factory.getbasetemp() / "list.txt", [f"c{i}" for i in range(width)]
    write_list(path, columns, iter(rows))
    assert list(zip(*read_list(path, columns).cells, strict=True)) == rows


def test_long_list_is_read_whole_and_a_bad_row_far_down_is_named(tmp_path: Path) -> None:
    path, columns = tmp_path / "list.txt", ("image_name", "label")
    for count in (511, 512, 513, 1300):
        rows = [(f"a picture {i}.jpg", str(i % 7)) for i in range(count)]
        write_list(path, columns, rows)
        assert list(zip(*read_list(path, columns).cells, strict=True)) == rows
    lines = path.read_text().split("\n")
    lines[1199] = "picture"
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match=r"list\.txt:1200: expected image_name label; found 'pict"):
        read_list(path, columns)
