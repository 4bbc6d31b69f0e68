"""splits.py: training, validation and test pictures never overlap."""

import os
import shutil
from pathlib import Path

import pytest

import data
from pictures.collection import read_labelled
from pictures.deepfashion import ASSIGNED_LIST, read_inshop
from pictures.lists import write_list
from pictures.splits import read_splits
from utils import UserError


def test_deepfashions_val_part_and_some_items_are_kept(drawn: Path) -> None:
    parts = read_splits(drawn, 20, True, 0.2)
    labelled, inshop = read_labelled(drawn, 20, 0.2), read_inshop(drawn)
    assert set(parts.validation.paths) == set(labelled.in_partition("val").paths)
    trained, items = set(parts.train.paths), set(parts.validation_items.items.tolist())
    every = inshop.in_partition("train")
    assert len(items) == round(0.2 * len(set(every.items.tolist())))
    # Whole items: no picture of theirs is trained on, all others' are.
    for path, item in zip(every.paths, every.items.tolist(), strict=True):
        assert (path in trained) != (item in items)
    assert not trained & set(parts.validation.paths)
    measured = {*labelled.in_partition("test").paths, *inshop.in_partition("query").paths}
    measured |= set(inshop.in_partition("gallery").paths)
    assert not measured & (
        trained | set(parts.validation.paths) | set(parts.validation_items.paths)
    )
    photos = labelled.in_partition("train").paths
    assert parts.train.paths[: len(photos)] == photos
    assert read_splits(drawn, 20, True, 0.2).validation_items.paths == parts.validation_items.paths


@pytest.mark.parametrize("learned", [True, False])
def test_the_folders_of_items_are_categories_too(drawn: Path, learned: bool) -> None:
    """DeepFashion's in-shop pictures have a category: the folder above the item's."""
    parts = read_splits(drawn, 20, True, 0.2, item_categories=learned)
    photos = read_labelled(drawn, 20, 0.2)
    names, train = parts.category_names, parts.train
    count = len(photos.in_partition("train"))
    assert names[: len(photos.category_names)] == photos.category_names
    assert parts.validation.category_names == photos.category_names
    assert parts.labelled == (len(train) if learned else count)
    folders = [path.split("/")[-3] for path in train.paths[count : parts.labelled]]
    found = [names[number] for number in train.categories[count : parts.labelled].tolist()]
    assert [name.casefold() for name in found] == [name.casefold() for name in folders]
    assert learned == bool(found)
    assert (len(names) > len(photos.category_names)) == (set(found) > set(photos.category_names))


def test_without_a_test_part_val_is_measured_and_training_pictures_are_kept(shared: Path) -> None:
    photos = shared / "photos"
    parts = read_splits(photos, 20, False, 0.1)
    assert (len(parts.train), len(parts.validation), len(parts.validation_items)) == (2761, 307, 0)
    assert all(path.startswith("train/") for path in [*parts.train.paths, *parts.validation.paths])
    assert not set(parts.train.paths) & set(parts.validation.paths)
    for name in range(10):  # of each category its share
        share = (parts.validation.categories == name).sum() / (
            (parts.validation.categories == name).sum() + (parts.train.categories == name).sum()
        )
        assert share == pytest.approx(0.1, abs=0.01)


def test_a_kept_item_is_kept_from_cross_entropy_too(shared: Path, tmp_path: Path) -> None:
    """In an imported folder the same pictures have categories and items."""
    base = tmp_path / "men"
    photos = str(shared / "inshop-men/img/MEN")
    data.main(["import", photos, "--item-level", "--dataset-base", str(base)])
    parts = read_splits(base, 20, True, 0.2)
    inshop = read_inshop(base)
    item_of = dict(zip(inshop.paths, inshop.items.tolist(), strict=True))
    kept = set(parts.validation_items.items.tolist())
    assert len(kept) > 5
    assert kept == {item_of[path] for path in parts.validation.paths}
    assert not kept & {item_of[path] for path in parts.train.paths}
    tested = set(inshop.in_partition("query", "gallery").items.tolist())
    assert not tested & (kept | set(parts.train.items.tolist()))


def test_nothing_to_keep_is_refused(tmp_path: Path, shared: Path) -> None:
    (tmp_path / "a").mkdir()
    photo = next((shared / "photos/train/hat").iterdir())
    (tmp_path / "a" / "one.jpg").symlink_to(photo)
    with pytest.raises(UserError, match=r"no picture in its (train|validation) part"):
        read_splits(tmp_path, 20, False, 0.1)


def test_the_inshop_part_alone_is_divided_by_whole_items(drawn: Path, tmp_path: Path) -> None:
    base = tmp_path / "alone"
    shutil.copytree(drawn / "in_shop", base / "in_shop", copy_function=os.link)
    for inshop in (True, False):
        parts = read_splits(base, 20, inshop, 0.2)
        kept = set(parts.validation.items.tolist())
        assert kept
        assert not kept & set(parts.train.items.tolist())
        assert set(parts.validation_items.items.tolist()) == (kept if inshop else set())
        tested = set(read_inshop(base).in_partition("query", "gallery").items.tolist())
        assert not tested & (kept | set(parts.train.items.tolist()))


def split_of_photos(shared: Path, folder: Path, parts: dict[str, int]) -> None:
    """A folder of photos by partition and category."""
    for part, count in parts.items():
        for name in ("dress", "hat"):
            (folder / part / name).mkdir(parents=True)
            photos = sorted((shared / "photos/train" / name).iterdir())
            for photo in photos[count : 2 * count] if part != "train" else photos[-count:]:
                (folder / part / name / f"{part}{photo.name}").symlink_to(photo)


def test_inshop_queries_are_in_no_split(shared: Path, tmp_path: Path) -> None:
    """An imported folder's val pictures are in-shop queries and gallery, too."""
    photos, base = tmp_path / "photos", tmp_path / "base"
    for group in ("Pants", "Tees"):
        items = sorted((shared / "inshop-men/img/MEN" / group).iterdir())[:24]
        for i, item in enumerate(items):
            part = ("train", "train", "val", "test")[i % 4]
            (photos / part / group).mkdir(parents=True, exist_ok=True)
            (photos / part / group / item.name).symlink_to(item, target_is_directory=True)
    data.main(["import", str(photos), "--item-level", "--dataset-base", str(base)])
    measured = set(read_inshop(base).in_partition("query", "gallery").paths)
    assert measured & set(read_labelled(base, 20, 0.2).in_partition("val").paths)
    for inshop in (True, False):
        parts = read_splits(base, 20, inshop, 0.3)
        assert len(parts.validation)
        assert not measured & {
            *parts.train.paths,
            *parts.validation.paths,
            *parts.validation_items.paths,
        }


def test_training_and_test_alone_hold_out_training_pictures(shared: Path, tmp_path: Path) -> None:
    split_of_photos(shared, tmp_path, {"train": 10, "test": 4})
    parts = read_splits(tmp_path, 20, False, 0.2)
    assert (len(parts.train), len(parts.validation)) == (16, 4)
    assert all(path.startswith("train/") for path in [*parts.train.paths, *parts.validation.paths])


def test_the_digest_tells_divisions_apart(shared: Path, tmp_path: Path) -> None:
    split_of_photos(shared, tmp_path, {"train": 10, "test": 4})
    digest = read_splits(tmp_path, 20, False, 0.2).digest()
    assert read_splits(tmp_path, 20, False, 0.2).digest() == digest
    assert read_splits(tmp_path, 20, False, 0.3).digest() != digest


@pytest.mark.parametrize("assigned", ["", "category"])
def test_an_items_pictures_without_a_category_teach_none(
    tmp_path: Path, shared: Path, assigned: str
) -> None:
    """Nor where a model has assigned theirs: seen to fail, by the names of their folders."""
    lines = ["path,category,item"]
    for number, item in enumerate(sorted((shared / "inshop-men/img/MEN/Tees").iterdir())):
        for file in item.iterdir():
            (tmp_path / item.name).mkdir(exist_ok=True)
            shutil.copyfile(file, tmp_path / item.name / file.name)
            category = ("", "Tees", "Shirts")[number % 3]
            lines.append(f"{item.name}/{file.name},{category},{item.name}")
    (tmp_path / "list.csv").write_text("\n".join(lines))
    base = tmp_path / "base"
    data.main(["import", str(tmp_path / "list.csv"), "--dataset-base", str(base)])
    table = read_labelled(base, 20, 0.2)
    named = set(table.select(table.categories >= 0).paths)
    if assigned:
        number = table.category_names.index("Shirts")
        shirts = table.select(table.categories == number).paths
        rows = [(path, "0.9") for path in shirts]
        write_list(base / "Anno" / ASSIGNED_LIST, ("image_name", "probability"), rows)
        named -= set(shirts)
    parts = read_splits(base, 20, True, 0.2)
    taught = parts.train.paths[: parts.labelled]
    assert taught
    assert set(taught) <= named
    assert set(parts.category_names) <= {"Tees", "Shirts"}
    assert not set(parts.train.paths) <= named  # the others still teach items
