"""deepfashion.py: DeepFashion's lists, hand-written with the quirks that the real ones have."""

from pathlib import Path

import numpy as np
import pytest

from pictures.deepfashion import find_box, read_attribute, read_inshop
from utils import UserError

# A byte-order mark, CRLF, blanks within names, padded columns, rows that end in blanks, a missing
# last newline, zero-padded boxes, and rows in another order in every list.
ATTRIBUTE = {
    "Anno/list_category_cloth.txt": "\ufeff3\r\ncategory_name  category_type\r\n"
    "Tee            1\r\nTrench Coat    1   \r\nMaxi Skirt     2\r\n",
    "Anno/list_category_img.txt": "4\nimage_name  category_label\n"
    "img/Sheer Blouse/img 1.jpg           2\n"
    "img/c/2.jpg                          1   \n"
    "img/c/3.jpg                          03\n"
    "img/d/4.jpg 1",
    "Anno/list_bbox.txt": "3\nimage_name  x_1  y_1  x_2  y_2\n"
    "img/d/4.jpg                          001 002 030 040\n"
    "img/c/2.jpg                          000 000 000 000\n"
    "img/Sheer Blouse/img 1.jpg           072 079 232 273  \n",
    "Eval/list_eval_partition.txt": "4\r\nimage_name  evaluation_status\r\n"
    "img/c/3.jpg  test\r\nimg/d/4.jpg  val \r\nimg/c/2.jpg  train\r\n"
    "img/Sheer Blouse/img 1.jpg  train",
}
PATHS = ["img/Sheer Blouse/img 1.jpg", "img/c/2.jpg", "img/c/3.jpg", "img/d/4.jpg"]
BOXES = [[72, 79, 232, 273], [0, 0, 0, 0], [0, 0, 0, 0], [1, 2, 30, 40]]
INSHOP = {
    "in_shop/list_eval_partition.txt": "\ufeff4\r\nimage_name item_id evaluation_status\r\n"
    "img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg   id_00000001 train   \r\n"
    "img/WOMEN/Blouses_Shirts/id_00000001/02_3_back.jpg    id_00000001 train   \r\n"
    "img/MEN/Denim/id_00000007/01_7_additional.jpg         id_00000007 query   \r\n"
    "img/MEN/Denim/id_00000007/plain.jpg                   id_00000007 gallery ",
    "in_shop/list_bbox_inshop.txt": "3\nimage_name clothes_type pose_type x_1 y_1 x_2 y_2\n"
    "img/MEN/Denim/id_00000007/plain.jpg                   2 6 009 008 107 206\n"
    "img/WOMEN/Blouses_Shirts/id_00000001/02_3_back.jpg    1 3 050 049 208 235\n"
    "img/WOMEN/Blouses_Shirts/id_00000001/02_1_front.jpg   1 1 005 006 007 008\n",
}
# How the official archives unpack: list -> its place there.
OFFICIAL = {
    "Anno/": "Anno_coarse/",
    "in_shop/list_eval": "in_shop/Eval/list_eval",
    "in_shop/list_bbox": "in_shop/Anno/list_bbox",
}


def write(base: Path, lists: dict[str, str], places: dict[str, str] | None = None) -> Path:
    for name, text in lists.items():
        for here, there in (places or {}).items():
            name = name.replace(here, there) if name.startswith(here) else name
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(text.encode())
    return base


@pytest.mark.parametrize(
    ("places", "folder", "prefix"),
    [
        ({}, "img", ""),
        ({}, "Img/img", "Img/"),
        (OFFICIAL, "Img/img", "Img/"),
        (OFFICIAL, "img", ""),
    ],
)
def test_attribute_lists_are_joined_by_path(
    tmp_path: Path, places: dict[str, str], folder: str, prefix: str
) -> None:
    base = write(tmp_path, ATTRIBUTE, places)
    (base / folder).mkdir(parents=True)
    found = read_attribute(base, 50)
    assert found.paths == [prefix + path for path in PATHS]
    assert found.category_names == ["Tee", "Trench Coat", "Maxi Skirt"]
    assert found.categories.tolist() == [1, 0, 2, 0]
    assert found.partitions.tolist() == ["train", "train", "test", "val"]
    assert found.boxes.tolist() == BOXES
    assert found.items.tolist() == found.colors.tolist() == [""] * 4
    assert (found.types.dtype, found.types.tolist()) == (np.int8, [0] * 4)
    for path, box in zip(found.paths, BOXES, strict=True):
        listed = path != prefix + "img/c/3.jpg"
        assert find_box(base, path) == (tuple(box) if listed else None)
    assert find_box(base, prefix + "img/c/2.jp") is None


def test_categories_setting_keeps_the_first_ones(tmp_path: Path) -> None:
    base = write(tmp_path, ATTRIBUTE)
    assert read_attribute(base, 2).paths == [PATHS[i] for i in (0, 1, 3)]
    assert read_attribute(base, 2).boxes.tolist() == [BOXES[i] for i in (0, 1, 3)]
    assert read_attribute(base, 1).partitions.tolist() == ["train", "val"]
    assert read_attribute(base, 1).category_names == ["Tee"]


def test_boxes_are_optional(tmp_path: Path) -> None:
    base = write(tmp_path, {name: text for name, text in ATTRIBUTE.items() if "bbox" not in name})
    assert read_attribute(base, 3).boxes.tolist() == [[0, 0, 0, 0]] * 4
    assert find_box(base, PATHS[0]) is None


def test_box_of_a_picture_is_not_that_of_a_longer_name(tmp_path: Path) -> None:
    rows = "img/a.jpg (2).jpg 5 6 7 8\nimg/a.jpg  1 2 3 4\n"
    write(tmp_path, {"Anno/list_bbox.txt": f"2\nimage_name x_1 y_1 x_2 y_2\n{rows}"})
    assert find_box(tmp_path, "img/a.jpg") == (1, 2, 3, 4)
    assert find_box(tmp_path, "img/a.jpg (2).jpg") == (5, 6, 7, 8)


@pytest.mark.parametrize("other", ["img", "Img/img"])
def test_large_inshop_pictures_beside_the_attribute_part_and_small_ones(
    tmp_path: Path, other: str
) -> None:
    """The boxes of the attribute part are of small pictures: it has no large ones."""
    base = write(tmp_path, {**ATTRIBUTE, **INSHOP})
    for folder in (other, "in_shop/Img/img_highres", "Img/img_highres"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    assert read_inshop(base).paths[0].startswith("in_shop/Img/img_highres/WOMEN/")
    assert read_attribute(base, 20).paths[0] == f"{other[:-3]}{PATHS[0]}"
    (base / "in_shop/Img/img").mkdir()
    assert read_inshop(base).paths[0].startswith("in_shop/Img/img/WOMEN/")


@pytest.mark.parametrize(
    ("places", "folder", "prefix"),
    [
        ({}, "in_shop/img", "in_shop/"),
        (OFFICIAL, "in_shop/Img/img", "in_shop/Img/"),
        (OFFICIAL, "in_shop/Img/img_highres", "in_shop/Img/"),
        ({}, "img", ""),
    ],
)
def test_inshop_lists_in_every_layout(
    tmp_path: Path, places: dict[str, str], folder: str, prefix: str
) -> None:
    base = write(tmp_path, INSHOP, places)
    (base / folder).mkdir(parents=True)
    found = read_inshop(base)
    path = f"{Path(folder).name}/WOMEN/Blouses_Shirts/id_00000001/02_3_back.jpg"
    assert found.paths[1] == prefix + path
    assert found.items.tolist() == ["id_00000001"] * 2 + ["id_00000007"] * 2
    assert found.partitions.tolist() == ["train", "train", "query", "gallery"]
    assert found.category_names == ["Blouses_Shirts", "Denim"]
    assert found.categories.tolist() == [0, 0, 1, 1]
    assert found.colors.tolist() == ["02", "02", "01", ""]
    assert found.boxes.tolist() == [[5, 6, 7, 8], [50, 49, 208, 235], [0] * 4, [9, 8, 107, 206]]
    assert (found.types.dtype, found.types.tolist()) == (np.int8, [1, 1, 0, 2])


def test_clothes_types_are_optional(tmp_path: Path) -> None:
    base = write(tmp_path, {name: text for name, text in INSHOP.items() if "bbox" not in name})
    assert read_inshop(base).types.tolist() == [0] * 4


def test_inshop_category_is_the_folder_above_the_items_if_there_is_one(tmp_path: Path) -> None:
    folders = {"img/MEN/Long Coats/7/a.jpg": "Long Coats", "img/Tees/7/b.jpg": "Tees",
               "img/7/c.jpg": "all", "img/d.jpg": "all", "e.jpg": "all"}  # fmt: skip
    rows = "".join(f"{path}  id_{i} train\n" for i, path in enumerate(folders))
    write(tmp_path, {"in_shop/list_eval_partition.txt": f"5\nname item status\n{rows}"})
    found = read_inshop(tmp_path)
    assert [found.category_names[i] for i in found.categories] == list(folders.values())


def test_inshop_lists_of_this_project_name_categories(tmp_path: Path) -> None:
    own = {
        "in_shop/list_category_cloth.txt": "3\nname type\nLong Coats 1\nHats 1\nDenim 1\n",
        "in_shop/list_category_img.txt": "2\nname label\nimg/MEN/Denim/id_00000007/plain.jpg 1\n"
        "img/WOMEN/Blouses_Shirts/id_00000001/02_3_back.jpg 3\n",
    }
    found = read_inshop(write(tmp_path, {**INSHOP, **own}))
    names = [found.category_names[i] for i in found.categories]
    assert names == ["Blouses_Shirts", "Denim", "Denim", "Long Coats"]
    assert found.category_names == ["Blouses_Shirts", "Denim", "Long Coats"]
    with pytest.raises(UserError, match=r"Anno/list_category_cloth\.txt: cannot be read"):
        read_attribute(tmp_path, 20)


def test_colour_list_of_this_project_names_colours(tmp_path: Path) -> None:
    color = "1\nimage_name color\nimg/MEN/Denim/id_00000007/plain.jpg  dark_blue\n"
    base = write(tmp_path, {**INSHOP, "in_shop/list_color_inshop.txt": color})
    assert read_inshop(base).colors.tolist() == ["02", "02", "01", "dark_blue"]


LABELS, BOX_LIST = "Anno/list_category_img.txt", "Anno/list_bbox.txt"
EVAL, SHOP = "Eval/list_eval_partition.txt", "in_shop/list_eval_partition.txt"
SHOP_BOXES = "in_shop/list_bbox_inshop.txt"


@pytest.mark.parametrize(
    ("name", "old", "new", "said"),
    [
        (LABELS, "img/c/3.jpg                          03", "img/c/3.jpg",
         ":5: expected image_name category_label (1 to 3); found 'img/c/3.jpg'"),
        (LABELS, "03", "x", ":5: expected image_name category_label (1 to 3); found 'img/c/3"),
        (LABELS, "03", "1_0", ":5: expected image_name category_label"),
        (LABELS, "03", "0", ":5: expected image_name category_label (1 to 3); found 'img/c/3.jpg"),
        (LABELS, "03", "4", ":5: expected image_name category_label (1 to 3); found 'img/c/3.jpg"),
        (LABELS, "03", "9" * 30, ":5: expected image_name category_label (1 to 3)"),
        (LABELS, "img/d/4.jpg", "img/c/2.jpg", ":6: 'img/c/2.jpg' is in line 4 already"),
        (LABELS, "4\nimage", "5\nimage", ":1: announces 5 rows, but 4 rows follow"),
        (LABELS, "4\nimage", "3\nimage", ":1: announces 3 rows, but 4 rows follow"),
        (LABELS, "4\nimage", "image", ":1: expected the number of rows, found 'image_name"),
        (LABELS, "03\n", "03\n\n", ":6: expected image_name category_label (1 to 3); found ''"),
        (LABELS, None, "", ":1: expected the number of rows, found ''"),
        (BOX_LIST, "002 030", "2.5 030", ":3: expected image_name x_1 y_1 x_2 y_2; found 'img/d"),
        (BOX_LIST, "002 030", "-02 030", ":3: expected image_name x_1 y_1 x_2 y_2; found 'img/d"),
        (BOX_LIST, "002 030", "002 99999999999", ":3: expected image_name x_1 y_1 x_2 y_2"),
        (BOX_LIST, "img/c/2.jpg", "img/d/4.jpg", ":4: 'img/d/4.jpg' is in line 3 already"),
        (BOX_LIST, "4.jpg                          001", "4.jpg", ":3: expected image_name x_1"),
        (EVAL, "val ", "dev", ":4: expected image_name evaluation_status (train, val, test); foun"),
        (EVAL, "val ", "Train", ":4: expected image_name evaluation_status (train, val, test)"),
        (EVAL, "img/d/4", "img/d/5", ": no row for 'img/d/4.jpg' of "),
        (EVAL, None, None, ": cannot be read: "),
        (SHOP, "gallery", "val", ":6: expected image_name item_id evaluation_status (train, query"),
        (SHOP, "id_00000007 query", "query", ":5: expected image_name item_id evaluation_status"),
        (SHOP_BOXES, "2 6 009", "0 6 009", ":3: expected image_name clothes_type (1 to 3) pose_"),
        (SHOP_BOXES, "1 3 050", "4 3 050", ":4: expected image_name clothes_type (1 to 3) pose_"),
        (SHOP_BOXES, "1 3 050", "x 3 050", ":4: expected image_name clothes_type (1 to 3) pose_"),
    ],
)  # fmt: skip
def test_malformed_list_is_an_error_with_file_line_and_what_was_expected(
    tmp_path: Path, name: str, old: str | None, new: str | None, said: str
) -> None:
    base = write(tmp_path, {**ATTRIBUTE, **INSHOP})
    if new is None:
        (base / name).unlink()
    else:
        text = (base / name).read_text("utf-8")
        assert old is None or text.count(old) == 1
        (base / name).write_text(text.replace(old, new) if old else new, "utf-8")
    with pytest.raises(UserError) as error:
        read_inshop(base) if name in (SHOP, SHOP_BOXES) else read_attribute(base, 20)
    assert str(error.value).startswith(f"{base / name}{said}")


def test_missing_lists_are_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"Anno/list_category_cloth\.txt: cannot be read"):
        read_attribute(tmp_path, 20)
    with pytest.raises(UserError, match=r"no in_shop/list_eval_partition\.txt"):
        read_inshop(tmp_path)
