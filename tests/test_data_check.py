"""data_check.py: what `python data.py check` finds in small data sets with known faults."""

import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image

from data import main
from utils import UserError

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
    assert (result.returncode, "Traceback" in result.stderr) == (1, False)

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
    assert "training would fail: 4 of the pictures it reads cannot be read" in result.stdout
    assert re.search(r"^Tees +2 +1 +0$", result.stdout, re.MULTILINE)
    assert re.search(r"^Coats +3 +1 +1$", result.stdout, re.MULTILINE)
    assert re.search(r"^total +5 +2 +1$", result.stdout, re.MULTILINE)


def test_clean_set_is_ready(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base = data_set(tmp_path, {"img/Tees/sound.png": BOXES["img/Tees/sound.png"]}, PARTS)
    status, said = check(base, capsys)
    assert (status, "ready for training" in said, "would fail" in said) == (0, True, False)
    for fault in ("missing", "unreadable", "box reaches outside", "duplicates"):
        assert re.search(rf"^ +0 {fault}", said, re.MULTILINE), fault


def test_categories_left_out_are_said_and_one_alone_cannot_be_trained(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    status, said = check(data_set(tmp_path, {}, PARTS), capsys, "--categories", "1")
    assert status == 1
    assert "5 pictures of other categories are left out: CATEGORIES is 1" in said
    assert "training would fail: 1 category with pictures in the train part" in said


@pytest.mark.parametrize(
    ("parts", "fault"),
    [
        ({"Tees/1.png": "train", "Tees/2.png": "train", "Tees/3.png": "val"}, "1 category with"),
        ({"Tees/1.png": "train", "Coats/2.png": "train", "Tees/3.png": "train"}, "no picture in"),
        ({"Tees/1.png": "train", "Coats/2.png": "train", "Coats/3.png": "val"}, "no category has"),
        ({"Tees/1.png": "val", "Coats/2.png": "test"}, "0 category with"),
    ],
)
def test_lists_that_cannot_be_trained_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: dict[str, str], fault: str
) -> None:
    base = data_set(tmp_path, {}, {f"img/{path}": part for path, part in parts.items()})
    status, said = check(base, capsys)
    assert status == 1
    assert f"training would fail: {fault}" in said
    assert "no training as things are" in said


def test_plain_folders(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in [f"{kind}/{i}.png" for kind in ("Tees", "Coats") for i in range(4)]:
        draw(tmp_path / "two" / name)
        draw(tmp_path / "one" / name.split("/")[1])
    assert check(tmp_path / "two", capsys)[0] == 0
    status, said = check(tmp_path / "one", capsys)
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
    assert re.search(r"^Tees +3 +3 +1$", said, re.MULTILINE)

    (base / "in_shop/img/MEN/Tees/a/2.png").unlink()
    for argv, expected in [([], 0), (["--enable-inshop-dataset"], 1)]:
        status, said = check(base, capsys, *argv)
        assert status == expected
        assert " in_shop/img/MEN/Tees/a/2.png\n" in said
