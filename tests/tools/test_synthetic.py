"""The drawn collection: its files, its boxes, and what a learner can and cannot tell from it."""

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from sklearn.linear_model import RidgeClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tools.synthetic.draw import (
    ATTRIBUTE_SIZE,
    INSHOP_SIZE,
    main,
    make_collection,
    plan_attribute,
    plan_inshop,
)
from tools.synthetic.garments import CATEGORY_NAMES
from tools.synthetic.items import make_item
from tools.synthetic.pictures import KINDS, draw_view
from utils import UserError

SIZES = {"items": 24, "views": 2, "inshop_items": 6}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("collection")
    make_collection(folder, **SIZES, seed=3)
    return folder


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def rows_of(path: Path, columns: str) -> list[list[str]]:
    """A parser of its own: count line, column line, rows without blanks in their cells."""
    count, names, *rows = path.read_text(encoding="ascii").splitlines()
    assert names.split() == columns.split()
    assert int(count) == len(rows) > 0
    cells = [row.split() for row in rows]
    assert {len(row) for row in cells} == {len(columns.split())}
    assert len({len(row) - len(row.split(None, 1)[1]) for row in rows}) == 1  # padded
    return cells


def same_for_both(a: np.ndarray, b: np.ndarray, tolerance: int) -> tuple[int, int, int, int]:
    """Box of the pixels that do not depend on the background."""
    same = np.abs(a.astype(int) - b).max(axis=2) <= tolerance
    x, y = np.flatnonzero(same.any(axis=0)), np.flatnonzero(same.any(axis=1))
    return x[0], y[0], x[-1] + 1, y[-1] + 1


def test_bytes_depend_on_seed_and_sizes_alone(base: Path, tmp_path: Path) -> None:
    make_collection(tmp_path / "again", **SIZES, seed=3, processes=2)
    make_collection(tmp_path / "other", **SIZES, seed=4)
    assert digests(base) == digests(tmp_path / "again")
    assert digests(base) != digests(tmp_path / "other")


def test_a_picture_does_not_depend_on_how_many_there_are() -> None:
    few, many = plan_attribute(70, 2, seed=0), plan_attribute(100, 3, seed=0)
    assert [p.path for p in few[5]] == [p.path for p in many[5][:2]]
    assert few[5][1].item == many[5][1].item


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("category", range(1, 21), ids=CATEGORY_NAMES)
def test_box_is_the_extent_of_the_garment(category: int, kind: str) -> None:
    width, height = ATTRIBUTE_SIZE
    for view in range(2):
        item = make_item(category, 0, 100 + category)
        white = np.full((height, width, 3), 255, np.float32)
        a, box = draw_view(item, 0, view, kind, background=white)
        b, again = draw_view(item, 0, view, kind, background=np.zeros_like(white))
        assert box == again
        assert 0 <= box[0] < box[2] <= width
        assert 0 <= box[1] < box[3] <= height
        assert np.abs(np.subtract(box, same_for_both(a, b, tolerance=40))).max() <= 2
        outside = np.ones((height, width), bool)
        outside[box[1] : box[3], box[0] : box[2]] = False
        if outside.any():
            assert np.abs(a.astype(int) - b)[outside].max(axis=1).min() > 60


def test_attribute_part_has_the_layout_of_deepfashion(base: Path) -> None:
    cloth = rows_of(base / "Anno/list_category_cloth.txt", "category_name category_type")
    assert cloth == [[name, "1"] for name in CATEGORY_NAMES]
    labels = rows_of(base / "Anno/list_category_img.txt", "image_name category_label")
    boxes = rows_of(base / "Anno/list_bbox.txt", "image_name x_1 y_1 x_2 y_2")
    parts = rows_of(base / "Eval/list_eval_partition.txt", "image_name evaluation_status")
    paths = [row[0] for row in labels]
    assert len(set(paths)) == SIZES["items"] * SIZES["views"]
    assert paths == [row[0] for row in boxes] == [row[0] for row in parts]
    assert {row[1] for row in parts} == {"train", "val", "test"}
    for (path, label), (_, *box) in zip(labels, boxes, strict=True):
        assert f"_{CATEGORY_NAMES[int(label) - 1]}_" in path
        assert cv2.imread(str(base / path)).shape[1::-1] == ATTRIBUTE_SIZE
        assert all(len(cell) == 3 for cell in box)
        x1, y1, x2, y2 = map(int, box)
        assert 0 <= x1 < x2 <= ATTRIBUTE_SIZE[0]
        assert 0 <= y1 < y2 <= ATTRIBUTE_SIZE[1]
    assert sorted(paths) == sorted(p.relative_to(base).as_posix() for p in base.glob("img/*/*"))


def test_inshop_part_has_the_layout_of_deepfashion(base: Path) -> None:
    shop = base / "in_shop"
    parts = rows_of(shop / "list_eval_partition.txt", "image_name item_id evaluation_status")
    columns = "image_name clothes_type pose_type x_1 y_1 x_2 y_2"
    boxes = rows_of(shop / "list_bbox_inshop.txt", columns)
    assert [row[0] for row in parts] == [row[0] for row in boxes]
    for (path, item, _), (_, kind, pose, *box) in zip(parts, boxes, strict=True):
        img, women, category, folder, name = path.split("/")
        assert (img, women, folder) == ("img", "WOMEN", item)
        assert category in CATEGORY_NAMES
        assert name.endswith(f"_{KINDS[int(pose) - 1]}.jpg")
        assert kind == "1"
        assert cv2.imread(str(shop / path)).shape[1::-1] == INSHOP_SIZE
        x1, y1, x2, y2 = map(int, box)
        assert 0 <= x1 < x2 <= INSHOP_SIZE[0]
        assert 0 <= y1 < y2 <= INSHOP_SIZE[1]
    assert len(parts) == len(list(shop.glob("img/WOMEN/*/*/*.jpg")))


def test_partitions_are_disjoint_by_item() -> None:
    plan = plan_attribute(400, 3, seed=0)
    assert all(len({p.partition for p in pictures}) == 1 for pictures in plan)
    first = [pictures[0] for pictures in plan]
    share = {p: sum(f.partition == p for f in first) / 400 for p in ("train", "val", "test")}
    assert share == pytest.approx({"train": 0.7, "val": 0.15, "test": 0.15}, abs=0.02)
    assert len({(f.partition, f.item.category) for f in first}) == 60


def test_every_inshop_query_has_a_gallery_picture_of_its_colour() -> None:
    plan = plan_inshop(150, seed=0)
    parts = [{p.partition for p in pictures} for pictures in plan]
    assert all(part in ({"train"}, {"query", "gallery"}) for part in parts)
    assert sum(part == {"train"} for part in parts) == pytest.approx(75, abs=10)
    assert {len(pictures[0].item.colours) for pictures in plan} == {1, 2, 3}
    every = [p for pictures in plan for p in pictures]
    assert len({p.path for p in every}) == len(every)
    gallery = {(p.item.number, p.variant) for p in every if p.partition == "gallery"}
    assert {(p.item.number, p.variant) for p in every if p.partition == "query"} == gallery


def test_views_of_an_item_differ_and_items_are_shared_by_no_two() -> None:
    item = make_item(10, 0, 9)
    views = [draw_view(item, 0, view)[0] for view in range(3)]
    assert not any(np.array_equal(views[i], views[i - 1]) for i in range(3))
    cuts = {make_item(10, 0, number).cut for number in range(50)}
    assert len(cuts) == 50


def test_category_shows_in_shape_and_not_in_colour() -> None:
    edges, colours, labels = [], [], []
    for number in range(20 * 24):
        item = make_item(number % 20 + 1, 1, number)
        picture, (x1, y1, x2, y2) = draw_view(item, 0, 0, "front")
        garment = picture[y1:y2, x1:x2]
        grey = cv2.resize(cv2.cvtColor(garment, cv2.COLOR_RGB2GRAY), (96, 96)).astype(np.float32)
        slopes = [np.abs(cv2.Sobel(grey, cv2.CV_32F, 1, 0)), np.abs(cv2.Sobel(grey, -1, 0, 1))]
        small = [cv2.resize(np.minimum(s, 80), (16, 16), interpolation=cv2.INTER_AREA)
                 for s in slopes]  # fmt: skip
        edges.append(np.append(np.ravel(small), (y2 - y1) / (x2 - x1)))
        histogram = cv2.calcHist([garment], [0, 1, 2], None, [4, 4, 4], [0, 256] * 3).ravel()
        colours.append(histogram / histogram.sum())
        labels.append(item.category)
    labels, train = np.array(labels), np.arange(len(labels)) < 20 * 16

    def accuracy(features: list[np.ndarray]) -> float:
        table = np.array(features)
        model = make_pipeline(StandardScaler(), RidgeClassifier(alpha=300))
        return model.fit(table[train], labels[train]).score(table[~train], labels[~train])

    assert accuracy(edges) > 0.6  # chance is 0.05
    assert accuracy(colours) < 0.15


def test_a_complete_collection_is_kept_and_another_one_replaced(tmp_path: Path) -> None:
    sizes = {"items": 3, "views": 1, "inshop_items": 2}
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "mine.pth").write_bytes(b"weights")
    first = make_collection(tmp_path, **sizes, seed=0)
    assert first["drawn"] == first["pictures"] > 3
    assert make_collection(tmp_path, **sizes, seed=0) == {**first, "drawn": 0}
    picture = next(tmp_path.glob("img/*/*.jpg"))
    picture.unlink()
    assert make_collection(tmp_path, **sizes, seed=0) == first
    assert picture.exists()
    assert make_collection(tmp_path, **{**sizes, "inshop_items": 0}, seed=1)["pictures"] == 3
    assert not (tmp_path / "in_shop").exists()
    assert len(list(tmp_path.glob("img/*/*.jpg"))) == 3
    assert (tmp_path / "models" / "mine.pth").read_bytes() == b"weights"


@pytest.mark.parametrize("name", ["Anno", "img", "in_shop", "Img"])
def test_a_foreign_collection_is_left_alone(tmp_path: Path, name: str) -> None:
    (tmp_path / name).mkdir()
    (tmp_path / name / "list_bbox.txt").write_text("mine")
    before = digests(tmp_path)
    with pytest.raises(UserError, match="did not make"):
        main(["--dataset-base", str(tmp_path), "--items", "2"])
    assert digests(tmp_path) == before


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["--dataset-base", str(tmp_path), "--items", "2", "--views", "1", "--processes", "1"]
    main([*command, "--inshop-items", "0"])
    assert "2 pictures of 2 items" in capsys.readouterr().out
    main([*command, "--inshop-items", "0"])
    assert "nothing to do" in capsys.readouterr().out
    with pytest.raises(SystemExit, match="2"):
        main([*command, "--views", "0"])
    assert "'0' is not a whole number from 1 up" in capsys.readouterr().err
