"""A folder of one's own photos -> DeepFashion's annotation files; the photos stay in place."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import ImageColor

from pictures.csv_list import SUFFIXES, Photo, listable_pictures, read_picture_list
from pictures.folder import SPLIT_FOLDERS, allow_roots, is_split, leads_out, link_remedy
from pictures.import_lists import IMG, write_both_parts, write_inshop_alone
from pictures.table import (
    INSHOP_PARTITIONS,
    PARTITIONS,
    choose_validation_by_category,
    number_categories,
)
from utils import UserError, command, shown

NOT_COLORS = frozenset((  # how file names begin that cameras, phones and shops give
    "img", "dsc", "dscn", "dscf", "dcim", "imgp", "mg", "pxl", "mvimg", "pano", "photo", "image",
    "picture", "pic", "foto", "bild", "vid", "scan", "screenshot", "whatsapp", "signal", "fb",
    "front", "back", "side", "left", "right", "top", "bottom", "full", "flat", "main", "detail",
    "additional", "model", "view", "small", "medium", "large", "thumb", "original",
))  # fmt: skip
MAX_NAMES = 5  # of colours that are printed

Names = tuple[str, str, str]  # category, item and colour, "" where unknown
# Photos -> of each its category, "" where it cannot be read, and the probability, 0 to 1.
Assign = Callable[[Sequence[Path]], list[tuple[str, float]]]


def import_folder(
    folder: Path,
    base: Path,
    val_share: float,
    *,
    columns: str | None,
    roots: Sequence[str],
    item_level: bool,
    item_pattern: str | None,
    inshop: bool,
    gallery: str | None,
    test: bool,
    assign: Assign | None,
) -> None:
    """Write the annotation files for a folder of photos and print what to run next.

    `base`/img, or `base`/in_shop/img, becomes a link to the folder. A split into train/, val/ or
    validation/, and test/ is kept; else `val_share` of each category's items (pictures, where there
    are no items) become val. Of each item outside train, the first picture (of each colour) is
    gallery, the others are queries.

    Parameters
    ----------
    folder : the photos, or a CSV list beside them, see `csv_list`, which replaces folders' names
    base : DATASET_BASE, where the annotation files go
    val_share : share for validation, 0 to 1
    columns : of a CSV list, see `csv_list.read_picture_list`
    roots : the ALLOWED_ROOTS setting, see `folder.allow_roots`
    item_level, item_pattern, inshop, gallery, test : see `python data.py --help`
    assign : finds the categories of the photos that neither a folder nor the list gives one

    Raises
    ------
    UserError : no photos, a bad option, or `base` has another data set
    """
    if item_level and item_pattern:
        raise UserError("--item-level and --item-pattern exclude each other; give one of them")
    folder, photos = _read_photos(folder, columns)
    with_items = item_level or item_pattern or any(photo.item for photo in photos)
    for option, given in (("--in-shop", inshop), ("--gallery", gallery is not None)):
        if given and not with_items:
            raise UserError(f"{option} is about items: add --item-level or --item-pattern REGEX")
    roots = allow_roots(base, roots)
    photos = _without_links_out(folder, photos, roots)
    split, names = _split_and_names(photos, item_level, item_pattern, inshop)
    _name(folder, photos, names, None if inshop else assign)
    _choose_partitions(photos, split, val_share, test)
    _choose_statuses(photos, gallery)
    for photo in photos:
        photo.path = f"{IMG}/{photo.path}"
    if inshop:
        if without := sum(not photo.item for photo in photos):
            print(f"{without} pictures without an item are left out")
        photos = [photo for photo in photos if photo.item]
        write_inshop_alone(base, folder, photos, not item_level)
    else:
        write_both_parts(base, folder, photos)
    allow_roots(base, roots)
    _report(base, folder, photos, inshop)


def _split_and_names(
    photos: list[Photo], item_level: bool, item_pattern: str | None, inshop: bool
) -> tuple[bool, list[Names]]:
    """Whether the top folders are partitions, and what the paths say of each photo."""
    parts = [photo.path.split("/") for photo in photos]
    try:
        split = is_split(parts)
    except UserError:
        if not all(photo.partition for photo in photos):
            raise
        split = False
    inner = [part[1:] if split else part for part in parts]
    if item_level:
        return split, _from_folders(inner, inshop)
    return split, _from_pattern([photo.path for photo in photos], inner, item_pattern)


def _read_photos(folder: Path, columns: str | None) -> tuple[Path, list[Photo]]:
    """The folder of the photos, and they, with what a CSV list says of them."""
    if folder.suffix.lower() in SUFFIXES and folder.is_file():
        return folder.parent, read_picture_list(folder, columns)
    if not folder.is_dir():
        state = "no such folder; name the folder of the photos, or a list"
        if folder.is_file():
            state = f"an archive? unpack it first; a list? save it as {', '.join(SUFFIXES)}"
        raise UserError(f"{shown(folder)}: {state}")
    if columns:
        raise UserError("--columns is about a CSV list; name the list instead of its folder")
    photos = [Photo(path) for path in listable_pictures(folder)]
    if not photos:
        raise UserError(f"{shown(folder)}: no pictures below it; name the folder of the photos")
    return folder, photos


def _without_links_out(folder: Path, photos: list[Photo], roots: Sequence[str]) -> list[Photo]:
    """The photos without links that reading refuses, see `folder.picture_file`."""
    targets = {photo.path: leads_out(folder, photo.path, roots) for photo in photos}
    refused = [path for path, target in targets.items() if target]
    if not refused:
        return photos
    fault = (
        f"{len(refused):,} of {len(targets):,} pictures are links out of {shown(folder)}, such as"
        f" {shown(refused[0])}; {link_remedy([targets[path] for path in refused])}"
    )
    if len(refused) == len(targets):
        raise UserError(fault)
    print(f"left out: {fault}")
    return [photo for photo in photos if not targets[photo.path]]


def _name(folder: Path, photos: list[Photo], names: Sequence[Names], assign: Assign | None) -> None:
    """Give photos the categories, items and colours that a list does not give them.

    Those of folders and file names, `names`; where a list has categories, a missing one is missing.
    """
    listed = any(photo.category for photo in photos)
    for photo, (category, item, color) in zip(photos, names, strict=True):
        photo.category = photo.category if listed else category
        photo.item = photo.item or item
        photo.color = photo.color or color
    unknown = [photo for photo in photos if not photo.category]
    if assign and unknown:
        found = assign([folder / photo.path for photo in unknown])
        for photo, (name, probability) in zip(unknown, found, strict=True):
            photo.category, photo.probability = name, f"{probability:.3f}" if name else ""
        print(
            f"{sum(bool(photo.category) for photo in unknown):,} categories were assigned by a"
            " model: evaluate.py does not count them and train.py does not train on them;"
            " data.py check shows the doubtful ones"
        )
    elif not listed:
        for photo in unknown:
            photo.category = "all"
    categories, numbers = number_categories(folder, [photo.category for photo in photos])
    for photo, number in zip(photos, numbers.tolist(), strict=True):
        photo.category = [*categories, ""][number]


def _expression(option: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"{option} {text!r}: {error}; write a regular expression") from None


def _choose_partitions(photos: list[Photo], split: bool, val_share: float, test: bool) -> None:
    """train, val or test for each photo: what the list says, else its top folder, else a share.

    A partition that is listed for one picture of an item holds for all of the item. With `test`
    all are test.
    """
    if test:
        for photo in photos:
            photo.partition = "test"
        return
    groups = [photo.item or photo.path for photo in photos]
    if split:
        drawn = [SPLIT_FOLDERS[photo.path.split("/")[0].lower()] for photo in photos]
    else:
        categories = np.array([photo.category for photo in photos])
        chosen = choose_validation_by_category(categories, np.array(groups), val_share)
        drawn = np.where(chosen, "val", "train").tolist()
    pairs = zip(groups, photos, strict=True)
    listed = {group: photo.partition for group, photo in pairs if photo.partition}
    for photo, group, partition in zip(photos, groups, drawn, strict=True):
        photo.partition = photo.partition or listed.get(group, partition)


def _from_folders(inner: list[list[str]], inshop: bool) -> list[Names]:
    """Category, item and colour of each picture by --item-level."""
    flat = next((part for part in inner if len(part) < 3), None)
    if flat:
        raise UserError(
            f"--item-level: {shown('/'.join(flat))} does not lie in CATEGORY/ITEM/; move it there,"
            " or use --item-pattern"
        )
    # The item's whole path: two categories may number their items alike.
    items = ["/".join(part[:-1]) for part in inner]
    category = [part[-3] if inshop else "/".join(part[:-2]) for part in inner]
    return list(zip(category, items, _colors(items, [part[-1] for part in inner]), strict=True))


def _colors(items: list[str], files: list[str]) -> list[str]:
    """The colour of each picture, by its file name up to the first "_"; "" where that proves none.

    It is one if pictures of the same view, the rest of the name, differ in it, if two items share
    one, and if an item has two pictures of one. Words of cameras and views, dates, and words that
    all items have are none, except numbers of up to three digits and what is called a color.
    """
    split = [file.split("_", 1) if "_" in file else ("", file) for file in files]
    colors = ["_".join(color.lower().split()) for color, _ in split]
    of_color = defaultdict(set)
    for color, item in zip(colors, items, strict=True):
        of_color[color].add(item)
    everywhere = {c for c, found in of_color.items() if len(found) == len(set(items))}
    for i, color in enumerate(colors):
        words = re.findall(r"[^\W\d_]+", color)
        named = color.isdigit() or not ImageColor.colormap.keys().isdisjoint(words)
        unproven = color in everywhere and not named
        if unproven or re.search(r"\d{4}", color) or (words and words[0] in NOT_COLORS):
            colors[i] = ""
    rows = [row for row in zip(colors, items, split, strict=True) if row[0]]
    of_view = defaultdict(set)
    for color, _, (_, view) in rows:
        of_view[view].add(color)
    proven = (
        len({row[:2] for row in rows}) < len(rows)
        and any(len(found) > 1 for found in of_view.values())
        and any(len(of_color[color]) > 1 for color, *_ in rows)
    )
    if not proven and any("_" in file for file in files):
        print(
            "colors: unknown, as file names do not show that they begin with colors;"
            " --item-pattern can say where they are"
        )
    return colors if proven else [""] * len(colors)


def _from_pattern(
    paths: list[str], inner: list[list[str]], item_pattern: str | None
) -> list[Names]:
    """Category, item and colour of each picture by --item-pattern."""
    categories = [part[0] if len(part) > 1 else "" for part in inner]
    if not item_pattern:
        return [(category, "", "") for category in categories]
    pattern = _expression("--item-pattern", item_pattern)
    if "item" not in pattern.groupindex:
        raise UserError(f"--item-pattern {item_pattern!r}: has no group (?P<item>...); add it")
    matches = [pattern.search(path) for path in paths]
    unmatched = [path for path, match in zip(paths, matches, strict=True) if not match]
    if unmatched:
        matched = f"{len(paths) - len(unmatched)} of {len(paths)} pictures"
        print(f"--item-pattern matches {matched}; not, for instance, {shown(unmatched[0])}")
    names = []
    for category, match in zip(categories, matches, strict=True):
        group = match.groupdict(default="") if match else {}
        color = "_".join(group.get("color", "").lower().split())
        names.append((group.get("category") or category, group.get("item", ""), color))
    if not any(item for _, item, _ in names):
        raise UserError(
            f"--item-pattern {item_pattern!r}: matches no picture, such as {shown(paths[0])}"
        )
    return names


def _choose_statuses(photos: list[Photo], gallery: str | None) -> None:
    """train, query or gallery for each photo that has an item."""
    for photo in photos:
        photo.status = "train" if photo.item else ""
    tested = [photo for photo in photos if photo.item and photo.partition != "train"]
    if gallery is None:
        first: dict[tuple[str, str], Photo] = {}
        chosen = [first.setdefault((photo.item, photo.color), photo) is photo for photo in tested]
    else:
        pattern = _expression("--gallery", gallery)
        chosen = [bool(pattern.search(photo.path)) for photo in tested]
        if len(set(chosen)) < 2:
            found = "every one" if any(chosen) else "none"
            raise UserError(
                f"--gallery {gallery!r}: matches {found} of {len(tested)} pictures that"
                " are not in train; queries and gallery need some each"
            )
    for photo, in_gallery in zip(tested, chosen, strict=True):
        photo.status = "gallery" if in_gallery else "query"


def _report(base: Path, folder: Path, photos: list[Photo], inshop: bool) -> None:
    names = INSHOP_PARTITIONS if inshop else PARTITIONS
    column = [photo.status if inshop else photo.partition for photo in photos]
    parts = ", ".join(f"{column.count(name)} {name}" for name in names)
    kinds = {photo.category for photo in photos} - {""}
    items = {photo.item for photo in photos} - {""}
    colors = sorted({photo.color for photo in photos} - {""})
    print(f"{shown(folder)}: {len(column)} pictures ({parts}) of {len(kinds)} categories", end="")
    print(f" and {len(items)} items" if items else "")
    if colors:
        more = ", ..." if len(colors) > MAX_NAMES else ""
        print(f"{len(colors)} colors: {', '.join(colors[:MAX_NAMES])}{more}")
    unknown = sum(not photo.category for photo in photos)
    if unknown:
        print(f"{unknown} pictures without a category: they can be found, but are not trained on")
    options = ["--enable-inshop-dataset"] if items else []
    print(f"annotation files are in {shown(base)}; next:")
    if "train" in column:
        scripts = ("data.py check", "train.py", "feature_extractor.py")
        commands = [command(script, base, *options) for script in scripts]
    else:  # nothing to train on, and so no model of its own
        extract = command("feature_extractor.py", base, "--dumped-model", "MODEL", *options)
        commands = [extract, command("evaluate.py", base)]
    for line in commands:
        print(f"  {line}")
