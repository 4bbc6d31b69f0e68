"""The annotation files of an import, in DeepFashion's form, and the link to its photos."""

from pathlib import Path

import numpy as np

from pictures.deepfashion import ANNO_FOLDERS, ASSIGNED_LIST, COLOR_LIST, OWN_TYPE, UNKNOWN_COLOR
from pictures.lists import write_list
from pictures.table import number_categories
from utils import UserError

IMG = "img"  # the link to the photos
OFFICIAL = (*ANNO_FOLDERS, "Eval", "Img")  # what a part of somebody else's data set consists of
ITEM_LIST = "list_eval_partition.txt"
CATEGORY_LISTS = ("list_category_cloth.txt", "list_category_img.txt")


# The N pictures of a folder, N str by the name of a column: those of `csv_list.COLUMNS`; status,
# train, query or gallery ("" where the item is unknown); probability ("" of a category that a model
# has not assigned).
Columns = dict[str, np.ndarray]


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


def write_inshop_alone(base: Path, folder: Path, photos: Columns, with_categories: bool) -> Columns:
    """The in-shop lists alone, and its category lists where no path has them; what is in them."""
    has_item = photos["item"] != ""
    if not has_item.all():
        print(f"{(~has_item).sum()} pictures without an item are left out")
    photos = select(photos, has_item)
    _link(base, base / "in_shop", folder, (*OFFICIAL, ITEM_LIST))
    _remove_old(base / "in_shop")
    if with_categories:
        _write_categories(base / "in_shop", photos)
    _write_items(base / "in_shop", photos)
    return photos


def write_both_parts(base: Path, folder: Path, photos: Columns) -> None:
    """The attribute lists, and in-shop lists where there are items."""
    inshop = base / "in_shop"
    apart = any((inshop / name).exists() for name in (IMG, "Img"))  # with pictures of its own
    has_item = photos["item"] != ""
    if apart and has_item.any():
        raise UserError(
            f"{inshop}: holds another data set; import items with --in-shop, or set DATASET_BASE to"
            " a folder of its own"
        )
    _link(base, base, folder, OFFICIAL if apart else (*OFFICIAL, "in_shop"))
    _write_categories(base / "Anno", photos)
    rows = zip(photos["path"], photos["partition"], strict=True)
    write_list(base / "Eval" / ITEM_LIST, ("image_name", "evaluation_status"), rows)
    if not apart:
        _remove_old(inshop)
    if has_item.any():
        _write_items(inshop, select(photos, has_item))


def select(photos: Columns, rows: np.ndarray) -> Columns:
    return {name: column[rows] for name, column in photos.items()}


def _remove_old(inshop: Path) -> None:
    """Remove the lists of an earlier import: the next one may not write all of them."""
    for name in (ITEM_LIST, COLOR_LIST, *CATEGORY_LISTS):
        (inshop / name).unlink(missing_ok=True)


def _write_categories(place: Path, photos: Columns) -> None:
    """The categories, and which of them were assigned by a model, with their probabilities."""
    names, label = number_categories(place, photos["category"].tolist())
    # Types 1 to 3 (upper, lower, full body) are DeepFashion's; of one's own photos none is known.
    cloth = [(name, OWN_TYPE) for name in names]
    write_list(place / CATEGORY_LISTS[0], ("category_name", "category_type"), cloth)
    rows = zip(photos["path"], label + 1, strict=True)
    write_list(place / CATEGORY_LISTS[1], ("image_name", "category_label"), rows)
    (place / ASSIGNED_LIST).unlink(missing_ok=True)
    assigned = select(photos, photos["probability"] != "")
    if len(assigned["path"]):
        rows = zip(assigned["path"], assigned["probability"], strict=True)
        write_list(place / ASSIGNED_LIST, ("image_name", "probability"), rows)


def _write_items(inshop: Path, photos: Columns) -> None:
    """Items and colours; ids are numbered, since a row is split at blanks."""
    ids = [f"id_{i + 1:08d}" for i in np.unique(photos["item"], return_inverse=True)[1]]
    columns = ("image_name", "item_id", "evaluation_status")
    write_list(inshop / ITEM_LIST, columns, zip(photos["path"], ids, photos["status"], strict=True))
    color = np.where(photos["color"] == "", UNKNOWN_COLOR, photos["color"])
    write_list(
        inshop / COLOR_LIST, ("image_name", "color"), zip(photos["path"], color, strict=True)
    )
    if "query" not in photos["status"]:
        print("no item outside train has two pictures of a colour: items cannot be evaluated")
