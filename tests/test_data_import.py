"""data_import.py: a folder of one's own photos, imported by `python data.py import`, read back."""

import re
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from annotations import Pictures, read_inshop
from collection import read_collection
from data import main
from utils import UserError

PATTERN = r"(?P<item>\w+)-(?P<color>[\w ]+)-\d+\.jpg$"


def touch(base: Path, *names: str) -> Path:
    for name in names:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).touch()
    return base


def run_import(folder: Path, base: Path, *argv: str) -> Pictures:
    """Import, then read everything back."""
    assert main(["import", str(folder), "--dataset-base", str(base), *argv]) == 0
    inshop = (base / "in_shop" / "list_eval_partition.txt").exists()
    return read_collection(base, 1000, inshop, 0.1)


def column(pictures: Pictures, values: object) -> dict[str, str]:
    return dict(zip((path.removeprefix("img/") for path in pictures.paths), values, strict=True))


def categories(pictures: Pictures) -> dict[str, str]:
    return column(pictures, [pictures.category_names[i] for i in pictures.categories])


def check_protocol(base: Path, whole: Pictures) -> None:
    """No item is divided; of a held-out one the first picture of each colour is gallery."""
    status = dict(zip(whole.paths, whole.partitions.tolist(), strict=True))
    inshop = read_inshop(base)
    parts, views = defaultdict(set), defaultdict(list)
    for row, path in enumerate(inshop.paths):
        parts[inshop.items[row]].add(status[path])
        views[inshop.items[row], inshop.colors[row]].append((path, inshop.partitions[row]))
    assert {len(part) for part in parts.values()} == {1}
    assert {part for (part,) in parts.values()} == {"train", "val"}
    for (item, _), pictures in views.items():
        expected = ["train"] * len(pictures)
        if parts[item] == {"val"}:
            expected = ["gallery"] + ["query"] * (len(pictures) - 1)
        assert [part for _, part in sorted(pictures)] == expected


def test_category_folders_are_linked_and_listed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"Tees/{i:02}.jpg" for i in range(20)] + [f"Long Coats/a b {i}.png" for i in range(10)]
    photos = touch(tmp_path / "photos", *names, "Tees/notes.txt", ".trash/0.jpg")
    found = run_import(photos, tmp_path / "set", "--val-share", "0.2")
    assert (tmp_path / "set" / "img").is_symlink()
    assert (tmp_path / "set" / "img").resolve() == photos
    assert {p.name for p in (tmp_path / "set").iterdir()} == {"Anno", "Eval", "img"}
    assert categories(found) == {name: name.split("/")[0] for name in names}
    assert all((tmp_path / "set" / path).exists() for path in found.paths)
    held = Counter(
        path.split("/")[0] for path, p in column(found, found.partitions).items() if p == "val"
    )
    assert held == {"Tees": 4, "Long Coats": 2}
    assert set(found.items) == {""}

    head = (tmp_path / "set" / "Anno" / "list_category_img.txt").read_text().split("\n")
    assert head[0] == "30"
    assert re.fullmatch(r"img/Long Coats/a b 0\.png +1", head[2])
    said = capsys.readouterr().out
    assert "30 pictures (24 train, 6 val, 0 test) of 2 categories" in said
    assert f"python train.py --dataset-base {tmp_path / 'set'}\n" in said


def test_split_folders_are_kept(tmp_path: Path) -> None:
    split = {"train/Tees/1.jpg": "train", "validation/Tees/2.jpg": "val", "test/Hats/3.jpg": "test"}
    found = run_import(touch(tmp_path / "photos", *split), tmp_path / "set")
    assert column(found, found.partitions) == split
    assert set(categories(found).values()) == {"Tees", "Hats"}


def test_item_folders(tmp_path: Path) -> None:
    names = [
        f"{category}/{item}/{color}_{view}.jpg"
        for category, items in {"MEN/Tees": 12, "MEN/Coats": 3}.items()
        for item in range(items)
        for color in ("dark blue", "red")
        for view in ("1_front", "2_back", "3_side")[: 1 + item % 3]
    ]
    photos = touch(tmp_path / "photos", *names)
    found = run_import(photos, tmp_path / "set", "--item-level", "--val-share", "0.25")
    assert categories(found) == {name: name.rsplit("/", 2)[0] for name in names}
    assert column(found, found.colors) == {
        name: "dark_blue" if "dark" in name else "red" for name in names
    }
    # Item 0 of Tees is another garment than item 0 of Coats: folders and ids pair off one to one.
    pairs = {(path.rsplit("/", 1)[0], item) for path, item in column(found, found.items).items()}
    assert len(pairs) == len({pair[0] for pair in pairs}) == len({pair[1] for pair in pairs}) == 15
    check_protocol(tmp_path / "set", found)
    with pytest.raises(UserError, match=r"flat\.jpg does not lie in CATEGORY/ITEM/"):
        run_import(touch(photos, "MEN/flat.jpg"), tmp_path / "other", "--item-level")


def test_item_pattern_with_color_and_category_groups(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [
        f"shoot{item % 2}/{kind}-{item}-{color}-{view}.jpg"
        for item, kind in enumerate(["Tee", "Coat", "Hat"] * 6)
        for color in ("dark blue", "red")
        for view in range(1 + item % 4)
    ]
    photos = touch(tmp_path / "photos", *names, "shoot0/group picture.jpg")
    pattern = r"(?P<category>\w+)-" + PATTERN
    found = run_import(photos, tmp_path / "set", "--item-pattern", pattern, "--val-share", "0.3")
    colors, kinds, items = (
        column(found, found.colors),
        categories(found),
        column(found, found.items),
    )
    for name in names:
        kind, _, color, _ = name.split("/")[1].split("-")
        assert (kinds[name], colors[name]) == (kind, color.replace(" ", "_"))
    assert (kinds["shoot0/group picture.jpg"], items["shoot0/group picture.jpg"]) == ("shoot0", "")
    pairs = {(name.split("-")[1], items[name]) for name in names}
    assert len(pairs) == len({pair[1] for pair in pairs}) == 18
    check_protocol(tmp_path / "set", found)
    said = capsys.readouterr().out
    assert f"matches {len(names)} of {len(names) + 1} pictures; not, for instance, shoot0/" in said


def test_item_in_two_categories_is_not_divided(tmp_path: Path) -> None:
    names = [f"{c}/{i}-red-{v}.jpg" for i in range(30) for c in ("Sale", "Tees") for v in range(2)]
    photos = touch(tmp_path / "photos", *names)
    found = run_import(photos, tmp_path / "set", "--item-pattern", PATTERN)
    check_protocol(tmp_path / "set", found)


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["--item-pattern", "(?P<item>"], r"--item-pattern '\(\?P<item>': "),
        (["--item-pattern", r"(\w+)-"], r"has no group \(\?P<item>"),
        (["--item-pattern", r"(?P<item>\d{9})"], "matches no picture"),
        (["--item-pattern", "(?P<item>1)", "--item-level"], "exclude each other"),
    ],
)
def test_bad_item_options_are_refused_and_nothing_is_written(
    tmp_path: Path, argv: list[str], said: str
) -> None:
    photos = touch(tmp_path / "photos", "Tees/1/1.jpg", "Tees/2/2.jpg")
    with pytest.raises(UserError, match=said):
        run_import(photos, tmp_path / "set", *argv)
    assert not (tmp_path / "set").exists()


def test_folder_without_pictures_or_name_is_refused(tmp_path: Path) -> None:
    for folder, said in [("none", "no such folder"), (".", "no pictures below it")]:
        with pytest.raises(UserError, match=said):
            run_import(tmp_path / folder, tmp_path / "set")
    with pytest.raises(UserError, match="name the folder"):
        main(["import"])


@pytest.mark.parametrize(
    "held",
    [
        "Anno/list_category_img.txt",
        "img/Tees/1.jpg",
        "Anno_coarse/list_category_img.txt",
        "Eval/list_eval_partition.txt",
        "in_shop/list_eval_partition.txt",
    ],
)
def test_other_data_set_is_refused_and_left_alone(tmp_path: Path, held: str) -> None:
    photos = touch(tmp_path / "photos", *[f"Tees/{i}/1.jpg" for i in range(4)])
    base = touch(tmp_path / "set", held)
    (base / held).write_text("somebody's")
    with pytest.raises(UserError, match="another data set"):
        run_import(photos, base, "--item-level")
    assert [p.relative_to(base).as_posix() for p in base.rglob("*") if p.is_file()] == [held]
    assert (base / held).read_text() == "somebody's"
    with pytest.raises(UserError, match="set DATASET_BASE to another folder"):
        run_import(photos, photos)


def test_import_again_takes_new_pictures_and_forgets_the_items_of_before(tmp_path: Path) -> None:
    names = [f"Tees/{i}-red-{v}.jpg" for i in range(4) for v in range(2)]
    photos, base = touch(tmp_path / "photos", *names), tmp_path / "set"
    found = run_import(photos, base, "--item-pattern", PATTERN)
    assert (len(found), set(found.colors)) == (8, {"red"})
    touch(photos, "Hats/9-blue-0.jpg")
    found = run_import(photos, base, "--item-pattern", r"(?P<item>\w+)-")
    assert (len(found), set(found.colors)) == (9, {""})
    found = run_import(photos, base)
    assert (len(found), set(found.items)) == (9, {""})


def test_real_photos_of_items(shared: Path, tmp_path: Path) -> None:
    folder = shared / "inshop-men" / "img"
    found = run_import(folder, tmp_path / "set", "--item-level", "--val-share", "0.3")
    on_disk = {p.relative_to(folder).as_posix() for p in folder.rglob("*.jpg")}
    assert set(categories(found)) == on_disk
    assert (len(found), len(set(found.items)), len(found.category_names)) == (326, 72, 6)
    assert categories(found) == {path: path.rsplit("/", 2)[0] for path in on_disk}
    assert column(found, found.colors) == {
        path: path.rsplit("/", 1)[1].split("_")[0] for path in on_disk
    }
    pairs = {(path.rsplit("/", 1)[0], item) for path, item in column(found, found.items).items()}
    assert len(pairs) == 72
    check_protocol(tmp_path / "set", found)
    assert Counter(read_inshop(tmp_path / "set").partitions.tolist())["query"] > 0
