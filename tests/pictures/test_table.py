"""table.py: rows of a table, and the choice of the validation pictures."""

from pathlib import Path

import numpy as np
import pytest

from pictures.deepfashion import read_attribute, read_inshop
from pictures.table import Pictures, choose_validation
from tests.pictures.test_deepfashion import ATTRIBUTE, INSHOP, write


@pytest.mark.parametrize(
    ("groups", "share", "count"),
    [(0, 0.5, 0), (1, 0.9, 0), (2, 0.01, 1), (2, 0.9, 1), (4, 0.95, 3), (10, 0.3, 3)],
)
def test_some_groups_are_chosen_and_some_not(groups: int, share: float, count: int) -> None:
    names = np.array([f"item {i}" for i in range(groups)] * 2, str)
    chosen = choose_validation(names, share)
    assert len(set(names[chosen])) == count
    assert chosen.sum() == 2 * count


def test_select_takes_the_same_rows_of_every_column(tmp_path: Path) -> None:
    found = read_attribute(write(tmp_path, ATTRIBUTE), 50)

    def rows(pictures: Pictures) -> list[tuple[object, ...]]:
        columns = (pictures.paths, pictures.categories, pictures.partitions, pictures.boxes[:, 2])
        return list(zip(*(list(column) for column in columns), pictures.types, strict=True))

    whole = rows(found)
    assert rows(found.select(np.array([3, 0, 0]))) == [whole[3], whole[0], whole[0]]
    assert rows(found.select(np.array([False, True, True, False]))) == whole[1:3]
    assert rows(found.in_partition("val", "test")) == whole[2:]
    assert len(found.in_partition("query")) == 0
    assert found.select(np.array([2])).category_names == found.category_names
    shop = read_inshop(write(tmp_path, INSHOP))
    assert shop.select(np.array([3, 1])).types.tolist() == [2, 1]
