"""DeepFashion's benchmarks -> tables of pictures.

Attribute prediction, in-shop and consumer-to-shop retrieval are read in the layout of this project
(`Anno/`, `Eval/`, `img/`) or as the official archives unpack (`Anno_coarse/`, `Img/img/`).
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from pictures.lists import AnnotationList, read_list
from pictures.table import (
    INSHOP_PARTITIONS,
    PARTITIONS,
    Pictures,
    align,
    category_column,
    clean,
    merge,
    number_categories,
)
from utils import UserError

ANNO_FOLDERS = ("Anno", "Anno_coarse", "Anno_fine")
INSHOP_FOLDERS = ("img", "img_highres")  # of pictures; the archive has one or both
CONSUMER, CONSUMER_BOXES = "consumer_to_shop", "list_bbox_consumer2shop.txt"
COLOR_LIST = "list_color_inshop.txt"
ASSIGNED_LIST = "list_category_assigned.txt"  # the categories that are a model's guess
UNKNOWN_COLOR = "-"  # in it, where a cell cannot be empty
OWN_TYPE = "0"  # as the type of every category: the lists are of somebody's own photos
STATUS = f"evaluation_status ({', '.join(PARTITIONS)})"
INSHOP_STATUS = f"evaluation_status ({', '.join(INSHOP_PARTITIONS)})"
CORNERS = ("x_1", "y_1", "x_2", "y_2")


def attribute_list(base: Path) -> Path | None:
    """The attribute benchmark's picture list below `base`, None where there is none."""
    return _first_existing(base, ANNO_FOLDERS, "list_category_img.txt")


def inshop_list(base: Path) -> Path | None:
    """The in-shop benchmark's partition list below `base`, None where there is none."""
    return _first_existing(base / "in_shop", ("", "Eval"), "list_eval_partition.txt")


def consumer_list(base: Path) -> Path | None:
    """The consumer-to-shop benchmark's list of pairs below `base`, None where there is none."""
    return _first_existing(base / CONSUMER, ("", "Eval"), "list_eval_partition.txt")


def has_items(base: Path) -> bool:
    """Whether one of the benchmarks of items, in-shop or consumer-to-shop, is below `base`."""
    return bool(inshop_list(base) or consumer_list(base))


def has_color_names(base: Path) -> bool:
    """Whether colours have names that mean the same for every item, not numbers of their own."""
    return (base / "in_shop" / COLOR_LIST).is_file()


def read_assigned(base: Path) -> dict[str, float]:
    """The pictures whose category was assigned by a model, not given, with its probability."""
    place = base / "Anno" / ASSIGNED_LIST
    if not place.exists():
        return {}
    listed = read_list(place, ("image_name", "probability (0 to 1)"))
    return dict(zip(listed.paths(), listed.shares(1).tolist(), strict=True))


def _first_existing(base: Path, folders: Iterable[str], name: str) -> Path | None:
    return next((p for folder in folders if (p := base / folder / name).exists()), None)


def read_attribute(base: Path, categories: int) -> Pictures:
    """Read the attribute-prediction benchmark; a `UserError` for a missing or malformed list.

    Kept are the pictures of categories 1 to `categories`, or all of a collection of one's own.
    """
    list_path = attribute_list(base) or base / "Anno" / "list_category_img.txt"
    names, paths, labels, own = _read_labels(list_path.parent)
    categories = len(names) if own else categories

    partition_path = base / "Eval" / "list_eval_partition.txt"
    listed = read_list(partition_path, ("image_name", STATUS))
    row_of = align(paths, listed.paths())
    if (row_of < 0).any():
        missing = paths[int(np.argmin(row_of))]
        raise UserError(f"{partition_path}: no row for {missing!r} of {list_path}; add it")
    partitions = listed.names(1, PARTITIONS)[row_of]

    below = _below(base, ("", "Img/", ""), paths)
    columns = {}
    box_path = list_path.parent / "list_bbox.txt"
    if box_path.exists():
        listed = read_list(box_path, ("image_name", *CORNERS))
        columns["boxes"] = _of_paths(paths, listed, listed.boxes())
    pictures = Pictures.of(below, labels, names[:categories], partitions, **columns)
    return pictures.select(labels < categories)


def read_inshop(base: Path) -> Pictures:
    """Read the in-shop retrieval benchmark below `base`/in_shop.

    An item's category is the folder above the item's (`img/WOMEN/Dresses/id_00000001/...` is a
    Dresses), or "all" where the path has no two folders; its colour variant is the file name up to
    the first "_". Lists that only `data.py import` writes into in_shop/ replace what the paths say:
    `list_color_inshop.txt`, and `list_category_img.txt` with `list_category_cloth.txt`, in the form
    of those in Anno/. Pictures are below in_shop/, in img/ or else in img_highres/, or below `base`
    itself where an import has made both parts' lists.

    Raises
    ------
    UserError : a list is missing or malformed
    """
    list_path = inshop_list(base)
    if list_path is None:
        raise UserError(
            f"{base}: no in_shop/list_eval_partition.txt; import items (--in-shop), or set"
            " ENABLE_INSHOP_DATASET to false"
        )
    listed = read_list(list_path, ("image_name", "item_id", INSHOP_STATUS))
    paths = listed.paths()
    inshop = base / "in_shop"
    names, categories = number_categories(list_path, _inshop_categories(inshop, paths))
    return Pictures.of(
        _below(base, ("in_shop/", "in_shop/Img/", "Img/", ""), paths, INSHOP_FOLDERS),
        categories,
        names,
        listed.names(2, INSHOP_PARTITIONS),
        items=np.array(listed.cells[1], str),
        colors=np.array(_inshop_colors(inshop, paths), str),
        **_boxes_and_types(paths, inshop, "list_bbox_inshop.txt", "pose_type"),
    )


def read_consumer(base: Path) -> Pictures:
    """Read the consumer-to-shop retrieval benchmark below `base`/consumer_to_shop.

    Of the test pairs the consumer pictures are the queries and the shop pictures the gallery. A
    picture of several pairs is one row. Categories are those of the paths, as in `read_inshop`.

    Raises
    ------
    UserError : a list is missing or malformed, or a picture has two items or partitions
    """
    list_path = consumer_list(base) or base / CONSUMER / "list_eval_partition.txt"
    columns = ("image_pair_name_1", "image_pair_name_2", "item_id", STATUS)
    listed = read_list(list_path, columns)
    statuses = listed.names(3, PARTITIONS).tolist()
    facts: dict[str, tuple[str, str]] = {}
    for column, tested in enumerate(("query", "gallery")):
        pairs = zip(listed.cells[column], listed.cells[2], statuses, strict=True)
        for line, (path, item, status) in enumerate(pairs, start=3):
            fact = item, tested if status == "test" else status
            if facts.setdefault(path, fact) != fact:
                known = " ".join(facts[path])
                raise UserError(
                    f"{list_path}:{line}: {path!r} is {known} in another row, here"
                    f" {' '.join(fact)}; correct one"
                )
    paths = list(facts)
    folder = base / CONSUMER
    names, categories = number_categories(list_path, _inshop_categories(folder, paths))
    return Pictures.of(
        _below(base, (f"{CONSUMER}/Img/", f"{CONSUMER}/"), paths),
        categories,
        names,
        np.array([status for _, status in facts.values()], "<U7"),
        items=np.array([item for item, _ in facts.values()], str),
        **_boxes_and_types(paths, folder, CONSUMER_BOXES, "source_type"),
    )


def read_items(base: Path) -> Pictures:
    """Read the items of both benchmarks, as far as they are there.

    In-shop pictures lose their boxes: that protocol uses whole pictures. Both benchmarks number
    their items from 1; where both are there, the consumer-to-shop ids begin with its folder.
    """
    consumer = read_consumer(base) if consumer_list(base) else None
    if consumer and inshop_list(base) is None:
        return consumer
    inshop = read_inshop(base)
    inshop = replace(inshop, boxes=np.zeros_like(inshop.boxes))
    if consumer is None:
        return inshop
    items = np.char.add(f"{CONSUMER}/", consumer.items.astype(str))
    return merge(inshop, replace(consumer, items=items))


def _below(
    base: Path, places: Sequence[str], paths: list[str], folders: Sequence[str] = ("img",)
) -> list[str]:
    """Paths below the first place with one of the folders, the first of these, else the last."""
    found = ((place, f) for place in places for f in folders if (base / place / f).exists())
    place, folder = next(found, (places[-1], "img"))
    return [place + re.sub("^img/", f"{folder}/", path) for path in paths]


def _boxes_and_types(
    paths: list[str], folder: Path, name: str, column: str
) -> dict[str, np.ndarray]:
    """Boxes and clothes types of a list in `folder` or its Anno/, if it is there."""
    box_path = _first_existing(folder, ("", "Anno"), name)
    if box_path is None:
        return {}
    listed = read_list(box_path, ("image_name", "clothes_type (1 to 3)", column, *CORNERS))
    types = listed.numbers(1, 1, 3).astype(np.int8)  # upper, lower, full body
    columns = {"boxes": listed.boxes(), "types": types}
    return {name: _of_paths(paths, listed, values) for name, values in columns.items()}


def _of_paths(paths: list[str], listed: AnnotationList, column: np.ndarray) -> np.ndarray:
    """The rows of a column that belong to the paths; 0 for a path that is not listed."""
    row_of = align(paths, listed.paths())
    rows = np.zeros((len(paths), *column.shape[1:]), column.dtype)
    rows[row_of >= 0] = column[row_of[row_of >= 0]]
    return rows


def _read_labels(folder: Path) -> tuple[list[str], list[str], np.ndarray, bool]:
    """Names of all categories of a folder's lists, N paths, N labels from 0, -1 where unknown.

    Last, whether `data.py import` has made the lists.
    """
    cloth_path = folder / "list_category_cloth.txt"
    names, types = read_list(cloth_path, ("category_name", "category_type")).cells
    own = set(types) == {OWN_TYPE}
    columns = ("image_name", f"category_label ({0 if own else 1} to {len(names)})")
    listed = read_list(folder / "list_category_img.txt", columns)
    labels = listed.numbers(1, 0 if own else 1, len(names)) - 1
    labels = category_column(cloth_path, labels, len(names))
    return list(map(clean, names)), listed.paths(), labels, own


def _inshop_categories(inshop: Path, paths: list[str]) -> list[str]:
    """The category name of each picture of an item, see `read_inshop`."""
    folders = [path.removeprefix("img/").split("/")[:-1] for path in paths]
    categories = [folder[-2] if len(folder) > 1 else "all" for folder in folders]
    if not (inshop / "list_category_img.txt").exists():
        return categories
    names, listed, labels, _ = _read_labels(inshop)
    names.append("")  # of label -1
    name_of = {path: names[label] for path, label in zip(listed, labels.tolist(), strict=True)}
    return [name_of.get(path, name) for path, name in zip(paths, categories, strict=True)]


def _inshop_colors(inshop: Path, paths: list[str]) -> list[str]:
    """The colour variant of each in-shop picture, "" where unknown, see `read_inshop`."""
    files = [path.rsplit("/", 1)[-1] for path in paths]
    colors = [file.split("_")[0] if "_" in file else "" for file in files]
    if not has_color_names(inshop.parent):
        return colors
    listed = read_list(inshop / COLOR_LIST, ("image_name", "color"))
    color_of = dict(zip(listed.paths(), listed.cells[1], strict=True))
    colors = [color_of.get(path, color) for path, color in zip(paths, colors, strict=True)]
    return ["" if color == UNKNOWN_COLOR else color for color in colors]


def find_box(base: Path, path: str) -> tuple[int, int, int, int] | None:
    """The box of one picture, if the database is cut to it, without reading the whole list.

    `path` is relative to `base`, as in the list of the feature database.

    Returns
    -------
    x1, y1, x2, y2 in px; None where there is no list, or no row of this form for the picture.
    """
    part = path.removeprefix(f"{CONSUMER}/")
    if part == path:
        box_path, between = _first_existing(base, ANNO_FOLDERS, "list_bbox.txt"), rb""
    else:
        folder, between = base / CONSUMER, 2 * rb"[ \t]+\d{1,9}"  # the types of clothes and source
        box_path = _first_existing(folder, ("", "Anno"), CONSUMER_BOXES)
    if box_path is None:
        return None
    name = re.escape(part.removeprefix("Img/").encode(errors="surrogateescape")) + between
    row = re.compile(rb"\n" + name + 4 * rb"[ \t]+(\d{1,9})" + rb"\s*?$", re.MULTILINE)
    try:
        found = row.search(box_path.read_bytes())
    except OSError as error:
        raise UserError(f"{box_path}: cannot be read: {error.strerror}") from None
    if not found:
        return None
    x1, y1, x2, y2 = map(int, found.groups())
    return x1, y1, x2, y2
