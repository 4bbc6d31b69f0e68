"""The consumer-to-shop benchmark: its lists, its splits, and `data.py check` of them."""

import re
from pathlib import Path

import pytest
import torch
from PIL import Image

import data
from config import Config
from net import Architecture, initial_net
from network.distributed import Distributed
from pictures.collection import read_collection
from pictures.deepfashion import find_box, read_consumer
from pictures.samplers import TrainBatches
from pictures.splits import read_splits
from search.query import find_query
from tests.pictures.test_check import draw
from tests.pictures.test_deepfashion import INSHOP, write
from training.loaders import build_loaders
from utils import UserError

BLOUSE, SKIRT = "img/CLOTHING/Blouse/id_00000001", "img/DRESSES/Skirt/id_00000007"
COAT, TEE = "img/CLOTHING/Coat/id_00000002", "img/TOPS/T_Shirt/id_00000009"
# Two consumer pictures and two shop pictures of an item are four pairs.
PAIRS = "consumer_to_shop/list_eval_partition.txt"
CONSUMER_BOXES = "consumer_to_shop/list_bbox_consumer2shop.txt"
CONSUMER = {
    PAIRS: "7\r\nimage_pair_name_1 image_pair_name_2 item_id evaluation_status\r\n"
    f"{BLOUSE}/comsumer_01.jpg   {BLOUSE}/shop_01.jpg   id_00000001 test  \r\n"
    f"{BLOUSE}/comsumer_01.jpg   {BLOUSE}/shop_02.jpg   id_00000001 test  \r\n"
    f"{BLOUSE}/comsumer_02.jpg   {BLOUSE}/shop_01.jpg   id_00000001 test  \r\n"
    f"{BLOUSE}/comsumer_02.jpg   {BLOUSE}/shop_02.jpg   id_00000001 test  \r\n"
    f"{SKIRT}/comsumer_01.jpg    {SKIRT}/shop_01.jpg    id_00000007 train \r\n"
    f"{COAT}/comsumer_01.jpg     {COAT}/shop_01.jpg     id_00000002 val   \r\n"
    f"{TEE}/comsumer_01.jpg      {TEE}/shop_01.jpg      id_00000009 train ",
    CONSUMER_BOXES: "2\nimage_name clothes_type source_type x_1 y_1 x_2 y_2\n"
    f"{BLOUSE}/shop_02.jpg       1 1 005 002 033 020\n"
    f"{SKIRT}/comsumer_01.jpg    2 2 001 003 030 022\n",
}
OFFICIAL = {
    "consumer_to_shop/list_eval": "consumer_to_shop/Eval/list_eval",
    "consumer_to_shop/list_bbox": "consumer_to_shop/Anno/list_bbox",
}
PLACES = [({}, "consumer_to_shop/"), (OFFICIAL, "consumer_to_shop/Img/")]


def photos(base: Path, prefix: str) -> None:
    for path in re.findall(r"img/\S+jpg", CONSUMER[PAIRS]):
        draw(base / prefix / path)


@pytest.mark.parametrize(("places", "prefix"), PLACES)
def test_each_picture_of_the_pairs_is_a_row(tmp_path: Path, places: dict, prefix: str) -> None:
    base = write(tmp_path, CONSUMER, places)
    (base / prefix / "img").mkdir(parents=True)
    found = read_consumer(base)
    names = [found.category_names[i] for i in found.categories]
    columns = (found.items, found.partitions, found.boxes, found.types)
    facts = zip(names, *(column.tolist() for column in columns), strict=True)
    rows = dict(zip(found.paths, facts, strict=True))
    nothing = [0, 0, 0, 0]
    expected = {
        f"{BLOUSE}/comsumer_01.jpg": ("Blouse", "id_00000001", "query", nothing, 0),
        f"{BLOUSE}/comsumer_02.jpg": ("Blouse", "id_00000001", "query", nothing, 0),
        f"{BLOUSE}/shop_01.jpg": ("Blouse", "id_00000001", "gallery", nothing, 0),
        f"{BLOUSE}/shop_02.jpg": ("Blouse", "id_00000001", "gallery", [5, 2, 33, 20], 1),
        f"{SKIRT}/comsumer_01.jpg": ("Skirt", "id_00000007", "train", [1, 3, 30, 22], 2),
        f"{SKIRT}/shop_01.jpg": ("Skirt", "id_00000007", "train", nothing, 0),
        f"{COAT}/comsumer_01.jpg": ("Coat", "id_00000002", "val", nothing, 0),
        f"{COAT}/shop_01.jpg": ("Coat", "id_00000002", "val", nothing, 0),
        f"{TEE}/comsumer_01.jpg": ("T_Shirt", "id_00000009", "train", nothing, 0),
        f"{TEE}/shop_01.jpg": ("T_Shirt", "id_00000009", "train", nothing, 0),
    }
    assert rows == {prefix + path: row for path, row in expected.items()}
    # A picture that is searched for by its path is cut as the database has cut it.
    assert find_box(base, f"{prefix}{SKIRT}/comsumer_01.jpg") == (1, 3, 30, 22)
    assert find_box(base, f"{prefix}{SKIRT}/shop_01.jpg") is None
    photos(base, prefix)
    assert find_query(base, f"{TEE}/shop_01.jpg") == base / prefix / TEE / "shop_01.jpg"


def test_its_training_items_train_and_its_val_part_validates(tmp_path: Path) -> None:
    splits = read_splits(write(tmp_path, CONSUMER), 20, True, 0.5)
    assert set(splits.train.items) == {"id_00000007", "id_00000009"}
    assert set(splits.validation.items) == set(splits.validation_items.items) == {"id_00000002"}
    assert splits.train.boxes.any()


def test_beside_in_shop_items_of_the_same_number_stay_two(tmp_path: Path) -> None:
    """Their pictures are cut to their boxes, those of the in-shop benchmark are whole."""
    base = write(tmp_path, {**CONSUMER, **INSHOP})
    found = read_collection(base, 20, True, 0.1)
    assert len(found) == 10 + 4
    assert found.items.tolist().count("id_00000001") == 2
    assert found.items.tolist().count("consumer_to_shop/id_00000001") == 4
    boxed = [path for path, box in zip(found.paths, found.boxes, strict=True) if box.any()]
    assert len(boxed) == 2
    assert all(path.startswith("consumer_to_shop/") for path in boxed)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("id_00000007 train", "id_00000007 gallery", ":7: expected image_pair_name_1 image_pair"),
        ("id_00000007 train", "train", ":7: expected image_pair_name_1 image_pair_name_2 item_id"),
        ("7\r\n", "8\r\n", ":1: announces 8 rows, but 7 rows follow"),
        (
            f"{SKIRT}/shop_01",
            f"{TEE}/shop_01",
            ":9: '" + TEE + "/shop_01.jpg' is id_00000007 train",
        ),
        (f"{TEE}/shop_01", f"{BLOUSE}/comsumer_02", ":9: '" + BLOUSE + "/comsumer_02.jpg' is id_0"),
    ],
)
def test_a_malformed_list_of_pairs_names_line_and_fault(
    tmp_path: Path, old: str, new: str, said: str
) -> None:
    base = write(tmp_path, {**CONSUMER, PAIRS: CONSUMER[PAIRS].replace(old, new, 1)})
    with pytest.raises(UserError) as error:
        read_consumer(base)
    assert str(error.value).startswith(f"{base / PAIRS}{said}")


def test_missing_pairs_are_named(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"consumer_to_shop/list_eval_partition\.txt: cannot be read"
    ):
        read_consumer(tmp_path)


@pytest.mark.parametrize(("places", "prefix"), PLACES)
def test_check_reports_its_lists_and_pictures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], places: dict, prefix: str
) -> None:
    boxes = CONSUMER[CONSUMER_BOXES].replace("005 002 033", "005 002 041")  # of 40 px
    base = write(tmp_path, {**CONSUMER, CONSUMER_BOXES: boxes}, places)
    photos(base, prefix)
    (base / prefix / COAT / "shop_01.jpg").unlink()
    flags = ["--dataset-base", str(base), "--enable-inshop-dataset", "--num-workers", "0"]
    assert data.main(["check", *flags]) == 0  # training leaves the missing one out
    said = capsys.readouterr().out
    assert re.search(r"^ +train +val +query +gallery$", said, re.MULTILINE)
    assert re.search(r"^total +4 +2 +2 +2$", said, re.MULTILINE)
    assert re.search(r"^Blouse +0 +0 +2 +2$", said, re.MULTILINE)
    assert "4 items; 0 with a single view" in said
    assert re.search(rf"1 missing\n +{prefix}{COAT}/shop_01\.jpg", said)
    assert re.search(rf"1 box reaches outside .*\n +{prefix}{BLOUSE}/shop_02\.jpg", said)


def test_validation_cuts_them_to_their_boxes_as_extraction_does(tmp_path: Path) -> None:
    boxes = CONSUMER[CONSUMER_BOXES].replace(f"{SKIRT}/comsumer_01", f"{COAT}/comsumer_01")
    base = write(tmp_path, {**CONSUMER, CONSUMER_BOXES: boxes})
    photos(base, "consumer_to_shop/")
    for path in re.findall(r"img/\S+jpg", CONSUMER[PAIRS]):
        picture = Image.new("RGB", (40, 30), "blue")
        picture.paste("red", (1, 3, 30, 22))
        picture.save(base / "consumer_to_shop" / path, quality=95)
    config = Config(DATASET_BASE=base, ENABLE_INSHOP_DATASET=True, VAL_SHARE=0.5, NUM_WORKERS=0)
    splits = read_splits(base, 20, True, 0.5)
    net = initial_net(Architecture("resnet18", 16, splits.category_names, 64, 64), "none")
    batches = TrainBatches(splits.train, splits.labelled, 2, 2, 0.5, 2, 0)
    cpu = torch.device("cpu")
    _, _, validation = build_loaders(config, splits, batches, net, cpu, Distributed())
    images = torch.cat([batch[0] for batch in validation["item"][0]])
    red = [bool(image[..., 0].float().mean() > 200) for image in images]
    assert sorted(red) == [False, True]  # the shop picture has no box
