"""The annotation files of an import, in DeepFashion's form, and the link to its photos."""

from pathlib import Path

from pictures.csv_list import Photo
from pictures.deepfashion import (
    ANNO_FOLDERS,
    ASSIGNED_LIST,
    COLOR_LIST,
    INSHOP_FOLDERS,
    OWN_TYPE,
    UNKNOWN_COLOR,
)
from pictures.lists import write_list
from pictures.table import number_categories
from utils import UserError

IMG = "img"  # the link to the photos
OFFICIAL = (*ANNO_FOLDERS, "Eval", "Img")  # what a part of somebody else's data set consists of
ITEM_LIST = "list_eval_partition.txt"
CATEGORY_LISTS = ("list_category_cloth.txt", "list_category_img.txt")


def _link(base: Path, place: Path, folder: Path, others: tuple[str, ...]) -> None:
    """Make `place`/img a link to the folder, if no data set with one of `others` is there."""
    link, target = place / IMG, folder.resolve()
    if target in (base.resolve(), place.resolve()):
        raise UserError(f"{folder}: set DATASET_BASE to another folder, for the annotation files")
    for part in {base / IMG, base / "in_shop" / IMG} - {link}:
        if part.resolve() == target:
            raise UserError(
                f"{part}: is {folder} already; each picture would be listed twice; set DATASET_BASE"
                " to another folder"
            )
    if link.is_symlink() and link.resolve() == target:
        return
    if link.is_symlink() and not link.exists():  # of photos that were moved
        link.unlink()
    elif link.exists() or link.is_symlink() or any((place / name).exists() for name in others):
        raise UserError(f"{place}: holds another data set; set DATASET_BASE to a folder of its own")
    place.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target, target_is_directory=True)


def write_inshop_alone(
    base: Path, folder: Path, photos: list[Photo], with_categories: bool
) -> None:
    """The in-shop lists of photos with items, and category lists where no path has them."""
    _link(base, base / "in_shop", folder, (*OFFICIAL, ITEM_LIST))
    _remove_old(base / "in_shop")
    if with_categories:
        _write_categories(base / "in_shop", photos)
    _write_items(base / "in_shop", photos)


def write_both_parts(base: Path, folder: Path, photos: list[Photo]) -> None:
    """The attribute lists, and in-shop lists where there are items."""
    inshop = base / "in_shop"
    # With pictures of its own.
    apart = any((inshop / name).exists() for name in (*INSHOP_FOLDERS, "Img"))
    with_items = [photo for photo in photos if photo.item]
    if apart and with_items:
        raise UserError(
            f"{inshop}: holds another data set; import items with --in-shop, or set DATASET_BASE to"
            " a folder of its own"
        )
    _link(base, base, folder, OFFICIAL if apart else (*OFFICIAL, "in_shop"))
    _write_categories(base / "Anno", photos)
    rows = [(photo.path, photo.partition) for photo in photos]
    write_list(base / "Eval" / ITEM_LIST, ("image_name", "evaluation_status"), rows)
    if not apart:
        _remove_old(inshop)
    if with_items:
        _write_items(inshop, with_items)


def _remove_old(inshop: Path) -> None:
    """Remove the lists of an earlier import: the next one may not write all of them."""
    for name in (ITEM_LIST, COLOR_LIST, *CATEGORY_LISTS):
        (inshop / name).unlink(missing_ok=True)


def _write_categories(place: Path, photos: list[Photo]) -> None:
    """The categories, and which of them were assigned by a model, with their probabilities."""
    names, numbers = number_categories(place, [photo.category for photo in photos])
    # Types 1 to 3 (upper, lower, full body) are DeepFashion's; of one's own photos none is known.
    cloth = [(name, OWN_TYPE) for name in names]
    write_list(place / CATEGORY_LISTS[0], ("category_name", "category_type"), cloth)
    labels = [(photo.path, i + 1) for photo, i in zip(photos, numbers.tolist(), strict=True)]
    write_list(place / CATEGORY_LISTS[1], ("image_name", "category_label"), labels)
    (place / ASSIGNED_LIST).unlink(missing_ok=True)
    assigned = [(photo.path, photo.probability) for photo in photos if photo.probability]
    if assigned:
        write_list(place / ASSIGNED_LIST, ("image_name", "probability"), assigned)


def _write_items(inshop: Path, photos: list[Photo]) -> None:
    """Items and colours; ids are numbered, since a row is split at blanks."""
    number = {item: i for i, item in enumerate(sorted({photo.item for photo in photos}), 1)}
    items = [(photo.path, f"id_{number[photo.item]:08d}", photo.status) for photo in photos]
    write_list(inshop / ITEM_LIST, ("image_name", "item_id", "evaluation_status"), items)
    colors = [(photo.path, photo.color or UNKNOWN_COLOR) for photo in photos]
    write_list(inshop / COLOR_LIST, ("image_name", "color"), colors)
    if all(photo.status != "query" for photo in photos):
        print("no item outside train has two pictures of a colour: items cannot be evaluated")
