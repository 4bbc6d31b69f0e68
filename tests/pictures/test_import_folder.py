"""import_folder.py: a folder of one's own photos, imported by `data.py import`, read back."""

import re
import subprocess
from collections import Counter, defaultdict
from pathlib import Path

import pytest

from data import main
from pictures.collection import read_collection
from pictures.deepfashion import read_inshop
from pictures.folder import picture_file
from pictures.splits import read_splits
from pictures.table import Pictures
from tests.pictures.test_collection import touch
from utils import UserError

PATTERN = r"(?P<item>\w+)-(?P<color>[\w ]+)-\d+\.jpg$"


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
    """No item is divided; of those not in train the first picture of each colour is gallery."""
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
    validation = Counter(
        path.split("/")[0] for path, p in column(found, found.partitions).items() if p == "val"
    )
    assert validation == {"Tees": 4, "Long Coats": 2}
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
        (["--in-shop"], "--in-shop is about items: add --item-level or --item-pattern REGEX"),
        (["--gallery", "1"], "--gallery is about items: add --item-level or --item-pattern"),
        (["--item-level", "--gallery", "(1"], r"--gallery '\(1': "),
        (
            ["--item-level", "--gallery", "9"],
            "'9': matches none of 1 pictures that",
        ),
        (
            ["--item-level", "--gallery", ""],
            "'': matches every one of 1 pictures that",
        ),
        (["--item-level", "--test", "--gallery", "Tees"], "matches every one of 2 pictures"),
        (["--in-shop", "--item-pattern", "(?P<item>9)?"], "matches no picture"),
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
    (tmp_path / "a.tar").touch()
    for folder, said in [("none", "no such folder"), (".", "no pictures below it"),
                         ("a.tar", r"an archive\? unpack it first")]:  # fmt: skip
        with pytest.raises(UserError, match=said):
            run_import(tmp_path / folder, tmp_path / "set")
    with pytest.raises(UserError, match="name the folder"):
        main(["import"])


@pytest.mark.parametrize(
    "file",
    [
        "Anno/list_category_img.txt",
        "img/Tees/1.jpg",
        "Anno_coarse/list_category_img.txt",
        "Eval/list_eval_partition.txt",
        "in_shop/list_eval_partition.txt",
    ],
)
def test_other_data_set_is_refused_and_left_alone(tmp_path: Path, file: str) -> None:
    photos = touch(tmp_path / "photos", *[f"Tees/{i}/1.jpg" for i in range(4)])
    base = touch(tmp_path / "set", file)
    (base / file).write_text("somebody's")
    with pytest.raises(UserError, match="another data set"):
        run_import(photos, base, "--item-level")
    assert [p.relative_to(base).as_posix() for p in base.rglob("*") if p.is_file()] == [file]
    assert (base / file).read_text() == "somebody's"
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


def test_folder_with_test_alone_is_all_test(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photos = touch(tmp_path / "photos", "test/Tees/1.jpg", "test/Hats/2.jpg")
    found = run_import(photos, tmp_path / "set")
    assert found.partitions.tolist() == ["test", "test"]
    assert categories(found) == {"test/Tees/1.jpg": "Tees", "test/Hats/2.jpg": "Hats"}
    assert "train.py" not in capsys.readouterr().out


def test_all_categories_of_ones_own_are_used_whatever_deepfashions_setting(tmp_path: Path) -> None:
    names = [f"kind {i:02}/{j}.jpg" for i in range(25) for j in range(3)]
    base = tmp_path / "set"
    run_import(touch(tmp_path / "photos", *names), base)
    found = read_collection(base, 20, False, 0.1)
    assert (len(found), len(found.category_names)) == (75, 25)
    assert categories(found) == {name: name.split("/")[0] for name in names}
    assert set(read_splits(base, 1, False, 0.1).train.categories.tolist()) == set(range(25))


def test_names_that_differ_in_case_are_imported_as_one_category(tmp_path: Path) -> None:
    names = ["Dress/1.jpg", "Dress/2.jpg", "dress/3.jpg", " Hats/4.jpg", "Hats/5.jpg"]
    found = run_import(touch(tmp_path / "photos", *names), tmp_path / "set")
    assert found.category_names == ["Dress", "Hats"]
    assert list(categories(found).values()).count("Dress") == 3


@pytest.mark.parametrize(
    "files",
    [
        [f"IMG_{i:04}.jpg" for i in range(12)],  # one prefix
        [f"{'IMG' if i % 2 else 'DSC'}_{i // 2:04}.jpg" for i in range(12)],  # of two cameras
        [f"2024{i % 3:04}_{i // 3:06}.jpg" for i in range(12)],  # dates
        [f"sku{i // 3}_{i % 3}.jpg" for i in range(12)],  # an item's number
        [f"{('front', 'back', 'side')[i % 3]}_{i // 3}.jpg" for i in range(12)],
        [f"{i % 3 + 1}_{('front', 'back', 'side')[i % 3]}.jpg" for i in range(12)],
        [f"name{i}_{i}.jpg" for i in range(12)],
        [f"{('product', 'lifestyle')[i % 2]}_{i % 3 // 2}.jpg" for i in range(12)],
    ],
)
def test_file_names_that_prove_no_color_give_none(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], files: list[str]
) -> None:
    names = [f"Tees/item {i // 3}/{file}" for i, file in enumerate(files)]
    base = tmp_path / "set"
    found = run_import(touch(tmp_path / "photos", *names), base, "--item-level", "--test")
    assert set(found.colors) == {""}
    assert len(set(found.items)) == 4
    assert "colors: unknown" in capsys.readouterr().out


def test_colors_of_file_names_are_reported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    views = ("1_front", "2_back")
    names = [f"Tees/{i}/{c}_{v}.jpg" for i in "ab" for c in ("Red", "red", "02") for v in views]
    photos = touch(tmp_path / "photos", *names, "Tees/a/IMG_1.jpg")
    found = run_import(photos, tmp_path / "set", "--item-level")
    assert Counter(found.colors.tolist()) == {"red": 8, "02": 4, "": 1}
    assert "2 colors: 02, red\n" in capsys.readouterr().out


def test_links_are_judged_as_reading_does(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As Hugging Face and DVC lay a data set; one picture is no link."""
    photos, base = touch(tmp_path / "photos", "hat/0.jpg"), tmp_path / "set"
    for i in range(1, 4):
        touch(tmp_path / "cache", f"{i:02}/blob")
        (photos / "hat" / f"{i}.jpg").symlink_to(f"../../cache/{i:02}/blob")
    assert run_import(photos, base).paths == ["img/hat/0.jpg"]
    said = capsys.readouterr().out
    assert f"left out: 3 of 4 pictures are links out of {photos}, such as hat/1.jpg;" in said
    assert f"--allowed-roots) to the folder that it leads to: {tmp_path}/cache\n" in said
    found = run_import(photos, base, "--allowed-roots", f"{tmp_path}/cache")
    assert len(found) == 4
    assert all(picture_file(base, path).exists() for path in found.paths)
    assert len(run_import(photos, base)) == 4  # it is recorded
    (photos / "hat/0.jpg").unlink()
    with pytest.raises(UserError, match="3 of 3 pictures are links out"):
        run_import(photos, tmp_path / "other")


def test_photos_that_were_moved_are_one_error_and_can_be_imported_again(tmp_path: Path) -> None:
    photos, base = touch(tmp_path / "summer photos", "hat/1.jpg", "hat/2.jpg"), tmp_path / "set"
    run_import(photos, base)
    photos.rename(tmp_path / "moved")
    for read in (lambda: read_collection(base, 20, False, 0.1),
                 lambda: main(["check", "--dataset-base", str(base)])):  # fmt: skip
        with pytest.raises(UserError, match="set/img: the link leads nowhere; put the photos back"):
            read()
    assert len(run_import(tmp_path / "moved", base)) == 2


def test_printed_commands_run_in_a_shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = tmp_path / "it's $HOME & so"
    run_import(touch(tmp_path / "my photos", "a/1.jpg", "a/2.jpg"), base)
    printed = re.findall("^  (python .*)$", capsys.readouterr().out, re.MULTILINE)
    assert len(printed) == 3
    for line in printed:
        shell = f"python() {{ printf '%s\\n' \"$@\"; }}; {line}"
        seen = subprocess.check_output(["sh", "-c", shell], text=True).splitlines()
        assert seen[-2:] == ["--dataset-base", str(base)]
