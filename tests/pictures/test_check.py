"""data_check.py: what `python data.py check` finds in small data sets with known faults."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import USES, main
from pictures.samplers import TrainBatches
from pictures.splits import read_splits
from tests.conftest import ROOT
from utils import UserError, parse_args

BOXES = {
    "img/Tees/sound.png": "02 03 30 20",
    "img/Tees/outside.png": "05 05 41 24",
    "img/Coats/empty.png": "09 05 09 20",
    "img/Coats/beyond.png": "40 00 50 20",
}
PARTS = {
    "img/Tees/sound.png": "train",
    "img/Tees/outside.png": "train",
    "img/Tees/twin.png": "val",
    "img/Coats/empty.png": "train",
    "img/Coats/beyond.png": "val",
    "img/Coats/missing.png": "train",
    "img/Coats/torn.jpg": "train",
    "img/Coats/tested.jpg": "test",
}


def write(base: Path, name: str, rows: list[str]) -> None:
    (base / name).parent.mkdir(parents=True, exist_ok=True)
    (base / name).write_text("\n".join([str(len(rows)), "columns", *rows]))


def draw(path: Path) -> None:
    """A picture of 40 x 24 px, another for each path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(list(str(path).encode()))
    Image.fromarray(rng.integers(0, 256, (24, 40, 3), dtype=np.uint8)).save(path)


def data_set(base: Path, boxes: dict[str, str], parts: dict[str, str]) -> Path:
    """Lists of Tees and Coats, and sound pictures."""
    number = {"Tees": 1, "Coats": 2}
    write(base, "Anno/list_category_cloth.txt", [f"{name} 1" for name in number])
    write(base, "Anno/list_category_img.txt", [f"{p} {number[p.split('/')[1]]}" for p in parts])
    write(base, "Anno/list_bbox.txt", [f"{path} {box}" for path, box in boxes.items()])
    write(base, "Eval/list_eval_partition.txt", [f"{path} {part}" for path, part in parts.items()])
    for path in parts:
        draw(base / path)
    return base


OLD = ["--recipe", "original", "--per-class", "4"]  # a metric loss also without items


def check(base: Path, capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str]:
    """Exit status of the command, and what it prints."""
    status = main(["check", "--dataset-base", str(base), "--num-workers", "0", *argv])
    return status, capsys.readouterr().out


def test_every_fault_is_counted_and_named(tmp_path: Path) -> None:
    base = data_set(tmp_path, BOXES, PARTS)
    (base / "img/Coats/missing.png").unlink()
    for name in ("img/Coats/torn.jpg", "img/Coats/tested.jpg"):
        (base / name).write_bytes((base / name).read_bytes()[:200])
    (base / "img/Tees/twin.png").write_bytes((base / "img/Tees/sound.png").read_bytes())
    command = [sys.executable, str(ROOT / "data.py"), "check", "--dataset-base", str(base)]
    result = subprocess.run([*command, "--num-workers", "2"], capture_output=True, text=True)
    assert (result.returncode, "Traceback" in result.stderr) == (0, False)

    titles = re.findall(r"^ +([\d,]+) (\w.*)$((?:\n {10}\S.*)*)", result.stdout, re.MULTILINE)
    found = {title: (int(count), names.split("\n")[1:]) for count, title, names in titles}
    said = {title.split()[0]: (count, [n.strip() for n in names])
            for title, (count, names) in found.items()}  # fmt: skip
    assert said["missing"] == (1, ["img/Coats/missing.png"])
    assert said["box"] == (1, ["img/Tees/outside.png"])
    assert said["duplicates"] == (1, ["img/Tees/sound.png = img/Tees/twin.png"])
    assert "1 times across partitions" in result.stdout
    count, faults = said["unreadable,"]
    assert (count, len(faults)) == (4, 4)
    for name in ("empty.png", "beyond.png", "torn.jpg", "tested.jpg"):
        assert sum(name in fault for fault in faults) == 1, name
    # Empty box, box beyond the picture, torn and missing: the test part is not trained on.
    assert "training leaves out 4 pictures that cannot be read or cropped\n" in result.stdout
    assert re.search(r"^Tees +2 +1 +0$", result.stdout, re.MULTILINE)
    assert re.search(r"^Coats +3 +1 +1$", result.stdout, re.MULTILINE)
    assert re.search(r"^total +5 +2 +1$", result.stdout, re.MULTILINE)


def test_a_part_without_a_readable_picture_cannot_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of truncated files the setting makes readable ones."""
    parts = {"img/Tees/a.jpg": "train", "img/Coats/b.jpg": "val", "img/Coats/c.jpg": "test"}
    base = data_set(tmp_path, {}, parts)
    content = (base / "img/Coats/b.jpg").read_bytes()
    (base / "img/Coats/b.jpg").write_bytes(content[: len(content) * 3 // 4])
    fault = "training would fail: no picture of its validation part can be read"
    status, said = check(base, capsys)
    assert (status, fault in said) == (1, True)
    status, said = check(base, capsys, "--truncated", "accept")
    assert (status, "leaves out" in said) == (0, False)


def test_clean_set_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = data_set(tmp_path, {"img/Tees/sound.png": BOXES["img/Tees/sound.png"]}, PARTS)
    status, said = check(base, capsys)
    assert (status, "ready for training" in said, "would fail" in said) == (0, True, False)
    for fault in ("missing", "unreadable", "box reaches outside", "duplicates"):
        assert re.search(rf"^ +0 {fault}", said, re.MULTILINE), fault


def test_categories_left_out_are_said_and_one_alone_cannot_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = check(data_set(tmp_path, {}, PARTS), capsys, "--categories", "1", *OLD)
    assert status == 1
    assert "5 pictures of other categories are left out: CATEGORIES is 1" in said
    assert "training would fail: no balanced batches can be drawn" in said


NO_METRIC = ["--triplet-weight", "0"]
TRIPLETS = ["--recipe", "original", "--per-class", "0"]
SHARE = "--inshop-dataset-percent"


def first_batches(base: Path, inshop: bool, argv: list[str]) -> list:
    """What training would draw, by its own code."""
    config, _ = parse_args([*argv, "--dataset-base", str(base)], "", USES)
    parts = read_splits(base, config.CATEGORIES, inshop, config.VAL_SHARE)
    size = 4 if config.TRIPLET_WEIGHT and (inshop or config.RECIPE == "original") else 0
    share = config.INSHOP_DATASET_PERCENT if inshop else 0.0
    sizes = (parts.labelled, 2, size, share, config.PER_CLASS)
    return list(TrainBatches(parts.train, *sizes, seed=0))


@pytest.mark.parametrize(
    ("parts", "argv", "fault"),
    [
        ("Tees train, Tees train, Tees val, Coats test", OLD, "no balanced batches"),
        ("Tees train, Tees train, Tees val, Coats test", NO_METRIC, ""),
        ("Tees train, Coats train, Coats val, Tees test", TRIPLETS, "no triplets can be drawn"),
        ("Tees train, Coats train, Coats val, Tees test", [], ""),
        ("Tees train, Coats train, Tees train, Coats test", [], ""),
        ("Tees train, Coats train, Tees train", [], ""),  # of which one of the Tees is kept
        ("Tees train, Coats train, Coats val", [], "no picture in its validation"),
        ("Tees val, Coats test", [], "no picture in its train"),
    ],
)
def test_lists_that_cannot_be_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: str, argv: list[str], fault: str
) -> None:
    rows = [row.split() for row in parts.split(", ")]
    pictures = {f"img/{kind}/{i}.png": part for i, (kind, part) in enumerate(rows)}
    base = data_set(tmp_path, {}, pictures)
    status, said = check(base, capsys, *argv)
    assert status == said.count("no training as things are") == bool(fault)
    assert said.count("training would fail: ") == said.count(f"training would fail: {fault}")
    assert said.count("training would fail: ") == bool(fault)
    assert said.count("extraction and evaluation need no train part") == ("train" not in parts)
    if fault:
        with pytest.raises(UserError):
            first_batches(base, False, argv)
    else:
        assert first_batches(base, False, argv)


ALONE = {
    "Tees/a/1.png": "id_1 train",
    "Tees/a/2.png": "id_1 train",
    "Tees/b/1.png": "id_2 train",
    "Tees/b/2.png": "id_2 train",
    "Tees/c/1.png": "id_3 train",
    "Tees/c/2.png": "id_3 train",
    "Coats/d/1.png": "id_4 query",
    "Coats/d/2.png": "id_4 gallery",
    "Coats/e/1.png": "id_5 query",
}


def inshop_alone(base: Path, items: dict[str, str]) -> Path:
    rows = [f"img/MEN/{path} {rest}" for path, rest in items.items()]
    write(base, "in_shop/list_eval_partition.txt", rows)
    for path in items:
        draw(base / "in_shop/img/MEN" / path)
    return base


@pytest.mark.parametrize(
    ("argv", "fault"),
    [
        (OLD, "no balanced batches"),
        ([], ""),
        (NO_METRIC, ""),
        (["--enable-inshop-dataset"], ""),
        (["--enable-inshop-dataset", SHARE, "0", *OLD], "no balanced batches"),
        (["--enable-inshop-dataset", *TRIPLETS], "no triplets can be drawn"),
        (["--enable-inshop-dataset", *TRIPLETS, SHARE, "1"], ""),
    ],
)
def test_inshop_part_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], argv: list[str], fault: str
) -> None:
    base = inshop_alone(tmp_path, ALONE)
    status, said = check(base, capsys, *argv)
    assert "lists of items alone" in said
    assert re.search(r"^ +train +val +query +gallery$", said, re.MULTILINE)
    assert re.search(r"^Coats +0 +0 +2 +1$", said, re.MULTILINE)
    assert re.search(r"^Tees +4 +2 +0 +0$", said, re.MULTILINE)
    assert "5 items; 1 with a single view" in said
    assert "1 queries whose item is not in the gallery" in said
    assert re.findall(r"^(\d+) pictures$", said, re.MULTILINE) == ["9"]
    assert status == said.count("training would fail: ") == bool(fault)
    assert f"training would fail: {fault}" in said or not fault
    inshop = "--enable-inshop-dataset" in argv
    if fault:
        with pytest.raises(UserError):
            first_batches(base, inshop, argv)
    else:
        assert first_batches(base, inshop, argv)


def test_inshop_part_to_be_measured_only(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = inshop_alone(tmp_path, {p: row for p, row in ALONE.items() if "train" not in row})
    (base / "in_shop/img/MEN/Coats/e/1.png").unlink()
    status, said = check(base, capsys)
    assert (status, said.count("training would fail: ")) == (1, 1)
    assert "training would fail: no picture in its train part\n" in said
    assert "extraction and evaluation need no train part" in said
    assert " in_shop/img/MEN/Coats/e/1.png\n" in said


def test_plain_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [f"{kind}/{i}.png" for kind in ("Tees", "Coats") for i in range(4)]:
        draw(tmp_path / "two" / name)
        draw(tmp_path / "one" / name.split("/")[1])
    assert check(tmp_path / "two", capsys)[0] == 0
    status, said = check(tmp_path / "one", capsys, *OLD)
    assert (status, "a plain folder of photos" in said) == (1, True)
    with pytest.raises(UserError, match="no such folder"):
        check(tmp_path / "none", capsys)


def test_inshop_part_is_reported_and_counts_where_it_is_used(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = data_set(tmp_path, {}, PARTS)
    items = {"a/1.png": "id_1 train", "a/2.png": "id_1 train", "b/1.png": "id_2 train",
             "c/1.png": "id_3 query", "c/2.png": "id_3 query", "d/1.png": "id_4 query",
             "d/2.png": "id_4 gallery"}  # fmt: skip
    rows = [f"img/MEN/Tees/{path} {rest}" for path, rest in items.items()]
    write(base, "in_shop/list_eval_partition.txt", rows)
    for path in items:
        draw(base / "in_shop/img/MEN/Tees" / path)
    status, said = check(base, capsys)
    assert status == 0
    assert "4 items; 1 with a single view" in said
    assert "2 queries whose item is not in the gallery" in said
    assert "trained on, too" not in said
    assert re.search(r"^Tees +3 +0 +3 +1$", said, re.MULTILINE)

    (base / "in_shop/img/MEN/Tees/a/2.png").unlink()
    for argv, expected in [([], 0), (["--enable-inshop-dataset"], 1)]:
        status, said = check(base, capsys, *argv)
        assert status == expected
        assert " in_shop/img/MEN/Tees/a/2.png\n" in said


def test_items_of_the_test_part_that_are_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = data_set(tmp_path, {}, PARTS)
    parts = {"a/1": "id_1 train", "a/2": "id_1 query", "b/1": "id_2 train", "b/2": "id_2 gallery",
             "c/1": "id_3 query", "c/2": "id_3 gallery"}  # fmt: skip
    write(base, "in_shop/list_eval_partition.txt",
          [f"img/MEN/Tees/{path}.png {rest}" for path, rest in parts.items()])  # fmt: skip
    for path in parts:
        draw(base / f"in_shop/img/MEN/Tees/{path}.png")
    assert "2 items of the test part are trained on, too" in check(base, capsys)[1]
