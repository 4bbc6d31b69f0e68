"""import_folder.py: items, by themselves or beside photos with categories, imported, read back."""

import re
import shlex
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data import main
from pictures.collection import read_collection
from pictures.deepfashion import read_inshop
from tests.conftest import run
from tests.pictures.test_collection import touch
from tests.pictures.test_import_folder import categories, column, run_import
from utils import UserError

ITEMS = [
    f"MEN/{category}/{item}/{color}_{view}.jpg"
    for category, items in {"Tees": "ab", "Long Coats": "a"}.items()
    for item in items
    for color in ("blue", "red")
    for view in ("back", "main")
]


def statuses(base: Path) -> dict[str, str]:
    inshop = read_inshop(base)
    paths = (path.partition("img/")[2] for path in inshop.paths)
    return dict(zip(paths, inshop.partitions.tolist(), strict=True))


def next_commands(said: str, base: Path) -> list[str]:
    """The commands printed last, as a shell takes them apart, without `python` and the folder."""
    lines = map(shlex.split, re.findall("^  (python .*)$", said, re.MULTILINE))
    return [" ".join(line[1:]).replace(f" --dataset-base {base}", "") for line in lines]


def test_in_shop_part_beside_an_attribute_part_in_either_order(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = touch(tmp_path / "photos", *[f"Tees/{i}.jpg" for i in range(10)])
    items = touch(tmp_path / "items", *ITEMS)
    tables = []
    for name, first in (("one", True), ("other", False)):
        base = tmp_path / name
        if first:
            run_import(photos, base)
            capsys.readouterr()
        run_import(items, base, "--in-shop", "--item-level")
        said = capsys.readouterr().out
        tables.append(run_import(photos, base))  # once more, or for the first time
        capsys.readouterr()
        assert (base / "img").resolve() == photos
        assert (base / "in_shop" / "img").resolve() == items
        assert {path.name for path in (base / "in_shop").iterdir()} == {
            "img", "list_eval_partition.txt", "list_color_inshop.txt"
        }  # fmt: skip
    assert next_commands(said, base) == [
        f"{script} --enable-inshop-dataset"
        for script in ("data.py check", "train.py", "feature_extractor.py")
    ]
    assert "12 pictures (8 train, 2 query, 2 gallery) of 2 categories and 3 items" in said
    one, other = tables
    assert one.paths == other.paths
    assert one.partitions.tolist() == other.partitions.tolist()
    assert one.paths[10:] == [f"in_shop/img/{path}" for path in sorted(ITEMS)]
    assert all((base / path).exists() for path in one.paths)
    named = dict(zip(one.paths, (one.category_names[i] for i in one.categories), strict=True))
    assert named["img/Tees/0.jpg"] == named["in_shop/img/MEN/Tees/b/red_main.jpg"] == "Tees"
    assert named["in_shop/img/MEN/Long Coats/a/red_main.jpg"] == "Long Coats"
    assert Counter(one.partitions[:10].tolist()) == {"train": 9, "val": 1}
    for path, color, item in zip(one.paths[10:], one.colors[10:], one.items[10:], strict=True):
        assert path.rsplit("/", 1)[1].split("_")[0] == color
        assert item
    assert len(set(one.items[10:])) == 3


def test_in_shop_import_alone_is_a_data_set(tmp_path: Path) -> None:
    base, items = tmp_path / "set", touch(tmp_path / "items", *ITEMS)
    found = run_import(items, base, "--in-shop", "--item-level")
    assert {path.name for path in base.iterdir()} == {"in_shop"}
    assert found.paths == [f"in_shop/img/{path}" for path in sorted(ITEMS)]
    assert Counter(found.partitions.tolist()) == {"train": 4, "val": 4, "query": 2, "gallery": 2}
    again = run_import(touch(items, "MEN/Tees/c/red_1.jpg"), base, "--in-shop", "--item-level")
    assert len(again) == 13


def test_in_shop_categories_are_folders_without_a_number(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"{top}/{i}/{v}.jpg" for top in ("MEN/Tees", "WOMEN/Tees", "Hats") for i in (1, 2)
             for v in (1, 2)]  # fmt: skip
    photos = touch(tmp_path / "photos", *names)
    found = run_import(photos, tmp_path / "a", "--in-shop", "--item-level")
    assert "of 2 categories and 6 items" in capsys.readouterr().out
    assert (found.category_names, len(set(found.items))) == (["Hats", "Tees"], 6)
    run_import(photos, tmp_path / "b", "--item-level")
    assert "of 3 categories and 6 items" in capsys.readouterr().out


def test_in_shop_categories_of_a_pattern_are_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ["shoot/Long Coat-1-red.jpg", "shoot/Long Coat-1-blue.jpg", "shoot/Tee-2-red.jpg",
             "shoot/Tee-2-blue.jpg", "Hats/hat 3-red.jpg", "shoot/group.jpg"]  # fmt: skip
    photos, base = touch(tmp_path / "photos", *names), tmp_path / "set"
    pattern = r"((?P<category>[A-Z][\w ]+)-)?(?P<item>\d)-(?P<color>\w+)"
    found = run_import(photos, base, "--in-shop", "--item-pattern", pattern)
    kinds = {path.removeprefix("in_shop/"): kind for path, kind in categories(found).items()}
    assert kinds == {
        "img/shoot/Long Coat-1-red.jpg": "Long Coat",
        "img/shoot/Long Coat-1-blue.jpg": "Long Coat",
        "img/shoot/Tee-2-red.jpg": "Tee",
        "img/shoot/Tee-2-blue.jpg": "Tee",
        "img/Hats/hat 3-red.jpg": "Hats",
    }
    assert "1 pictures without an item are left out" in capsys.readouterr().out
    # By folders, what the pattern said is forgotten.
    touch(tmp_path / "photos", "new/Tees/4/1_1.jpg")
    for name in names:
        (photos / name).unlink()
    found = run_import(photos, base, "--in-shop", "--item-level")
    assert list(categories(found).values()) == ["Tees"]
    assert not (base / "in_shop" / "list_category_img.txt").exists()


@pytest.mark.parametrize(
    ("file", "argv", "said"),
    [
        ("in_shop/list_eval_partition.txt", ["--in-shop"], "in_shop: holds another data set"),
        ("in_shop/Eval/list_eval_partition.txt", ["--in-shop"], "in_shop: holds another data set"),
        ("in_shop/Img/img/1.jpg", ["--in-shop"], "in_shop: holds another data set"),
        ("in_shop/img/1.jpg", ["--in-shop"], "in_shop: holds another data set"),
        ("in_shop/img/1.jpg", [], "in_shop: holds another data set; import items with --in-shop"),
        ("in_shop/Img/img/1.jpg", [], "in_shop: holds another data set; import items with"),
    ],
)
def test_another_in_shop_part_is_refused_and_left_alone(
    tmp_path: Path, file: str, argv: list[str], said: str
) -> None:
    items, base = touch(tmp_path / "items", *ITEMS), touch(tmp_path / "set", file)
    (base / file).write_text("somebody's")
    with pytest.raises(UserError, match=said):
        run_import(items, base, "--item-level", *argv)
    assert [p.relative_to(base).as_posix() for p in base.rglob("*") if p.is_file()] == [file]
    assert (base / file).read_text() == "somebody's"


def test_in_shop_import_refuses_what_would_list_pictures_twice(tmp_path: Path) -> None:
    items, base = touch(tmp_path / "items", *ITEMS), tmp_path / "set"
    run_import(items, base)
    with pytest.raises(UserError, match=r"set/img: is .*items already"):
        run_import(items, base, "--in-shop", "--item-level")
    assert not (base / "in_shop").exists()
    run_import(items, tmp_path / "other", "--in-shop", "--item-level")
    with pytest.raises(UserError, match=r"in_shop/img: is .*items already"):
        run_import(items, tmp_path / "other")
    more = touch(tmp_path / "more", *ITEMS)
    with pytest.raises(UserError, match="in_shop: holds another data set"):
        run_import(more, tmp_path / "other", "--in-shop", "--item-level")
    with pytest.raises(UserError, match="set DATASET_BASE to another folder"):
        run_import(items, items, "--in-shop", "--item-level")


@pytest.mark.parametrize(
    ("file", "folder"),
    [
        ("in_shop/Eval/list_eval_partition.txt", "in_shop/Img/img"),
        ("in_shop/list_eval_partition.txt", "in_shop/img_highres"),
    ],
)
def test_plain_import_leaves_an_official_in_shop_part_alone(
    tmp_path: Path, file: str, folder: str
) -> None:
    base = touch(tmp_path / "set", file, f"{folder}/MEN/Tees/i1/02_1.jpg")
    text = "1\ncolumns\nimg/MEN/Tees/i1/02_1.jpg id_1 train\n"
    (base / file).write_text(text)
    main(["import", str(touch(tmp_path / "photos", "Hats/1.jpg")), "--dataset-base", str(base)])
    assert (base / file).read_text() == text
    merged = read_collection(base, 20, True, 0.1)
    assert merged.paths == ["img/Hats/1.jpg", f"{folder}/MEN/Tees/i1/02_1.jpg"]


@pytest.mark.parametrize("place", [[], ["--in-shop"]])
def test_gallery_names_the_pictures_of_the_gallery(tmp_path: Path, place: list[str]) -> None:
    base, items = tmp_path / "set", touch(tmp_path / "items", *ITEMS)
    before = run_import(items, base, *place, "--item-level")
    default = statuses(base)
    found = run_import(items, base, *place, "--item-level", "--gallery", r"_main\.")
    assert before.items.tolist() == found.items.tolist()
    status = statuses(base)
    assert Counter(status.values()) == {"train": 8, "query": 2, "gallery": 2}
    for path, part in status.items():
        assert (part == "train") == (default[path] == "train")
        if part != "train":
            assert part == ("gallery" if "_main." in path else "query")
            assert default[path] == ("query" if "_main." in path else "gallery")
    # Also the folders count, and the case does; an item may then have gallery pictures alone.
    run_import(items, base, *place, "--item-level", "--test", "--gallery", "^MEN/Tees/a")
    for path, part in statuses(base).items():
        assert part == ("gallery" if path.startswith("MEN/Tees/a") else "query")


def test_test_holds_out_everything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = ["train/Tees/1.jpg", "validation/Tees/2.jpg", "test/Hats/3.jpg"]
    found = run_import(touch(tmp_path / "photos", *names), tmp_path / "set", "--test")
    assert set(column(found, found.partitions).items()) == {(name, "test") for name in names}
    said = capsys.readouterr().out
    assert "3 pictures (0 train, 0 val, 3 test) of 2 categories" in said
    assert next_commands(said, tmp_path / "set") == [
        "feature_extractor.py --dumped-model MODEL",
        "evaluate.py",
    ]

    items, base = touch(tmp_path / "items", *ITEMS), tmp_path / "items set"
    found = run_import(items, base, "--test", "--item-level")
    assert set(found.partitions) == {"test"}
    assert statuses(base) == {p: "gallery" if "back" in p else "query" for p in ITEMS}
    commands = next_commands(capsys.readouterr().out, base)
    assert commands == [
        "feature_extractor.py --dumped-model MODEL --enable-inshop-dataset",
        "evaluate.py",
    ]


def test_nonsense_is_one_line_and_status_2(tmp_path: Path) -> None:
    photos = touch(tmp_path / "photos", *ITEMS)
    done = run("data.py", "import", photos, "--in-shop", "--dataset-base", tmp_path / "s", check=2)
    assert done.stderr.startswith("data.py: --in-shop is about items")
    assert done.stderr.count("\n") == 1
    assert done.stdout == ""


def test_real_photos_and_real_items_as_one_data_set(shared: Path, tmp_path: Path) -> None:
    base, items = tmp_path / "set", shared / "inshop-men" / "img"
    run_import(shared / "photos", base)
    found = run_import(items, base, "--in-shop", "--item-level")
    labelled, inshop = found.select(np.arange(3409)), found.select(np.arange(3409, len(found)))
    assert all(path.startswith("img/") for path in labelled.paths)
    folder = {"train": "train", "val": "validation"}
    for path, part in zip(labelled.paths, labelled.partitions.tolist(), strict=True):
        assert path.split("/")[1] == folder[part]
    assert set(inshop.partitions) == {"train", "query", "gallery"}
    on_disk = {f"in_shop/img/{p.relative_to(items).as_posix()}" for p in items.rglob("*.jpg")}
    assert (len(inshop), set(inshop.paths)) == (326, on_disk)
    assert len(set(inshop.items)) == 72
    names = [inshop.category_names[i] for i in inshop.categories]
    folders = [path.split("/")[3] for path in inshop.paths]
    # The photos have folders of these names in small letters.
    same = {"Pants": "pants", "Shorts": "shorts"}
    assert names == [same.get(folder, folder) for folder in folders]
    assert all((base / path).is_file() for path in found.paths)


@pytest.mark.parametrize("folder", ["img", "img/MEN"])
def test_real_items_to_be_measured_only_are_the_published_task(
    shared: Path, tmp_path: Path, folder: str
) -> None:
    base = tmp_path / "set"
    argv = ["--in-shop", "--test", "--gallery", r"_main\.", "--item-level"]
    found = run_import(shared / "inshop-men" / folder, base, *argv)
    assert Counter(found.partitions.tolist()) == {"query": 127, "gallery": 199}
    assert len(set(found.items)) == 72
    for path, part in zip(found.paths, found.partitions.tolist(), strict=True):
        assert (part == "gallery") == path.endswith("_main.jpg")
