"""collection.py: the two parts of a data set as one table."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from pictures.collection import read_collection, read_labelled
from pictures.folder import find_pictures
from pictures.splits import read_splits
from pictures.table import Pictures
from utils import UserError


def touch(base: Path, *names: str) -> Path:
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).touch()
    return base


def category_of(pictures: Pictures) -> dict[str, str]:
    names = [pictures.category_names[number] for number in pictures.categories]
    return dict(zip(pictures.paths, names, strict=True))


def partition_of(pictures: Pictures) -> dict[str, str]:
    return dict(zip(pictures.paths, pictures.partitions.tolist(), strict=True))


LISTS = {
    "Anno/list_category_cloth.txt": "3\nname type\nTees 1\nCoats 1\nHats 1\n",
    "Anno/list_category_img.txt": "3\nname label\nimg/a.jpg 2\nimg/b.jpg 1\nimg/c.jpg 3\n",
    "Anno/list_bbox.txt": "2\nname x1 y1 x2 y2\nimg/a.jpg 1 2 3 4\nimg/b.jpg 5 6 7 8\n",
    "Eval/list_eval_partition.txt": "3\nname status\nimg/a.jpg train\nimg/b.jpg val\n"
    "img/c.jpg train\n",
    "in_shop/list_eval_partition.txt": "4\nname item status\nimg/MEN/Tees/i1/02_1.jpg id_1 train\n"
    "img/b.jpg id_2 query\nimg/MEN/Denim/i2/01_1.jpg id_2 gallery\nimg/MEN/Tees/i1/03_1.jpg id_1"
    " train\n",
    "in_shop/list_bbox_inshop.txt": "2\nname type pose x1 y1 x2 y2\n"
    "img/MEN/Tees/i1/02_1.jpg 3 1 9 9 99 99\nimg/b.jpg 2 1 10 11 12 13\n",
}


def listed(base: Path) -> Path:
    for name, text in LISTS.items():
        touch(base, name)
        (base / name).write_text(text)
    return base


def test_both_parts_become_one_table(tmp_path: Path) -> None:
    merged = read_collection(listed(tmp_path), 20, inshop=True, val_share=0.1)
    columns = zip(
        merged.paths,
        [merged.category_names[number] for number in merged.categories],
        merged.partitions.tolist(),
        merged.boxes.tolist(),
        merged.items.tolist(),
        merged.colors.tolist(),
        merged.types.tolist(),
        strict=True,
    )
    assert list(columns) == [
        ("img/a.jpg", "Coats", "train", [1, 2, 3, 4], "", "", 0),
        ("img/b.jpg", "Tees", "val", [5, 6, 7, 8], "id_2", "", 2),
        ("img/c.jpg", "Hats", "train", [0] * 4, "", "", 0),
        ("img/MEN/Tees/i1/02_1.jpg", "Tees", "train", [0] * 4, "id_1", "02", 3),
        ("img/MEN/Denim/i2/01_1.jpg", "Denim", "gallery", [0] * 4, "id_2", "01", 0),
        ("img/MEN/Tees/i1/03_1.jpg", "Tees", "train", [0] * 4, "id_1", "03", 0),
    ]
    assert merged.types.dtype == np.int8
    assert merged.category_names == ["Tees", "Coats", "Hats", "Denim"]


def test_category_limit_and_inshop_setting(tmp_path: Path) -> None:
    base = listed(tmp_path)
    assert read_collection(base, 20, False, 0.1).paths == ["img/a.jpg", "img/b.jpg", "img/c.jpg"]
    merged = read_collection(base, 1, True, 0.1)
    assert merged.paths[0] == "img/b.jpg"
    assert (len(merged), merged.category_names) == (4, ["Tees", "Denim"])


def test_what_is_missing_is_said(tmp_path: Path) -> None:
    (tmp_path / "a.tar").touch()
    for name, said in [("none", "no such folder"), ("", "no pictures below it"),
                       ("a.tar", r"an archive\? unpack it first")]:  # fmt: skip
        base = tmp_path / name
        with pytest.raises(UserError, match=f"{base}: {said}; set DATASET_BASE"):
            read_collection(base, 20, False, 0.1)
    touch(tmp_path, "Tees/1.jpg")
    with pytest.raises(UserError, match=r"no in_shop/list_eval_partition\.txt"):
        read_collection(tmp_path, 20, True, 0.1)


def inshop_alone(base: Path, rows: dict[str, str]) -> Path:
    """A data set that has only in_shop/; of all pictures, the first has a box and a type."""
    text = "".join(f"{path}  {rest}\n" for path, rest in rows.items())
    touch(base, "in_shop/list_eval_partition.txt", "in_shop/img/nothing")
    (base / "in_shop/list_eval_partition.txt").write_text(f"{len(rows)}\ncolumns\n{text}")
    box = f"1\ncolumns\n{next(iter(rows))} 3 1 9 9 99 99\n"
    (base / "in_shop/list_bbox_inshop.txt").write_text(box)
    return base


ALONE = {
    **{f"img/MEN/Tees/t{i}/0{v}_1.jpg": f"id_{i} train" for i in range(8) for v in (1, 2)},
    "img/MEN/Denim/d1/01_1.jpg": "id_20 query",
    "img/WOMEN/Tees/d1/01_2.jpg": "id_20 gallery",
    "img/short/01_3.jpg": "id_21 gallery",
}


@pytest.mark.parametrize(("share", "count"), [(0.01, 1), (0.25, 2), (0.99, 7)])
def test_inshop_part_alone_is_a_labelled_data_set(tmp_path: Path, share: float, count: int) -> None:
    found = read_labelled(inshop_alone(tmp_path, ALONE), 1, share)
    assert found.paths == [f"in_shop/{path}" for path in ALONE]
    assert found.items.tolist() == [row.split()[0] for row in ALONE.values()]
    assert found.colors.tolist() == [path[-8:-6] for path in ALONE]
    assert found.types.tolist() == [3] + [0] * 18
    assert not found.boxes.any()
    names = [found.category_names[i] for i in found.categories]
    assert names == ["Tees"] * 16 + ["Denim", "Tees", "all"]
    assert found.partitions[16:].tolist() == ["query", "gallery", "gallery"]
    assert set(found.partitions[:16]) == {"train", "val"}
    val = set(found.in_partition("val").items.tolist())
    assert len(val) == count
    assert not val & set(found.in_partition("train").items.tolist())


def test_inshop_part_alone_is_listed_once_with_and_without_the_setting(tmp_path: Path) -> None:
    inshop_alone(tmp_path, ALONE)
    tables = [read_collection(tmp_path, 20, inshop, 0.25) for inshop in (False, True)]
    for found in tables:
        assert sorted(found.paths) == sorted(f"in_shop/{path}" for path in ALONE)
        assert Counter(found.partitions.tolist()) == {
            "train": 12, "val": 4, "query": 1, "gallery": 2
        }  # fmt: skip
    assert category_of(tables[0]) == category_of(tables[1])
    assert partition_of(tables[0]) == partition_of(tables[1])
    assert tables[0].items.tolist() == tables[1].items.tolist()


@pytest.mark.parametrize("inshop", [False, True])
def test_inshop_part_alone_can_be_trained_on(tmp_path: Path, inshop: bool) -> None:
    base = inshop_alone(tmp_path, ALONE)
    val = set(read_labelled(base, 20, 0.25).in_partition("val").paths)
    parts = read_splits(base, 20, inshop, 0.25)
    assert len(parts.train) == parts.labelled == 12
    assert set(parts.validation.paths) == val
    assert not val & set(parts.train.paths)
    two = {path: row for path, row in ALONE.items() if row in ("id_0 train", "id_1 train")}
    found = read_labelled(inshop_alone(base, two), 20, 0.1)
    assert Counter(found.partitions.tolist()) == {"train": 2, "val": 2}


def test_inshop_part_to_be_measured_only(tmp_path: Path) -> None:
    rows = {path: row for path, row in ALONE.items() if "train" not in row}
    base = inshop_alone(tmp_path, rows)
    assert read_labelled(base, 20, 0.1).partitions.tolist() == ["query", "gallery", "gallery"]
    for inshop in (False, True):
        assert len(read_collection(base, 20, inshop, 0.1)) == 3


def test_real_photos(shared: Path) -> None:
    found = read_collection(shared / "photos", 20, False, 0.1)
    on_disk = {p.relative_to(shared / "photos").as_posix() for p in shared.glob("photos/*/*/*.jpg")}
    assert set(found.paths) == on_disk == set(find_pictures(shared / "photos"))
    assert (len(found), len(found.category_names)) == (3409, 10)
    for path, category in category_of(found).items():
        assert path.split("/")[1] == category
    for path, part in partition_of(found).items():
        assert {"train": "train", "validation": "val"}[path.split("/")[0]] == part
