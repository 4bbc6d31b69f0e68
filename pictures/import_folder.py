"""A folder of one's own photos -> DeepFashion's annotation files; the photos stay in place."""

import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from PIL import ImageColor

from pictures.csv_list import COLUMNS, SUFFIXES, read_picture_list
from pictures.folder import (
    SPLIT_FOLDERS,
    allow_roots,
    can_be_listed,
    find_pictures,
    is_split,
    leads_out,
    link_remedy,
)
from pictures.import_lists import IMG, Columns, select, write_both_parts, write_inshop_alone
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

# Photos -> of each its category, "" where it cannot be read, and the probability, 0 to 1.
Assign = Callable[[Sequence[Path]], list[tuple[str, float]]]


def import_folder(
    folder: Path,
    base: Path,
    val_share: float,
    *,
    columns: str | None = None,
    roots: Sequence[str] = (),
    item_level: bool = False,
    item_pattern: str | None = None,
    inshop: bool = False,
    gallery: str | None = None,
    test: bool = False,
    assign: Assign | None = None,
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
    folder, photos = _read_names(folder, columns)
    roots = allow_roots(base, roots)
    photos = _without_links_out(folder, photos, roots)
    _check_options(photos, item_level, item_pattern, inshop, gallery)
    paths = photos["path"].tolist()
    parts = [path.split("/") for path in paths]
    split = _is_split(parts, photos["partition"])
    inner = [part[1:] if split else part for part in parts]
    if item_level:
        found = _from_folders(inner, inshop)
    else:
        found = _from_pattern(paths, inner, item_pattern)
    photos = _labelled(folder, photos, inner, found, None if inshop else assign)
    if test:
        photos["partition"] = np.full(len(parts), "test")
    tops = [part[0] for part in parts] if split else None
    photos["partition"] = _partitions(photos, tops, val_share)
    photos["status"] = _statuses(photos, gallery)
    photos["path"] = np.array([f"{IMG}/{path}" for path in paths])
    if inshop:
        photos = write_inshop_alone(base, folder, photos, not item_level)
    else:
        write_both_parts(base, folder, photos)
    allow_roots(base, roots)
    _report(base, folder, photos, inshop)


def _labelled(
    folder: Path,
    photos: Columns,
    inner: list[list[str]],
    found: Sequence[Sequence[str]],
    assign: Assign | None,
) -> Columns:
    """The photos with the categories, items and colours that names gave where a list has none.

    Parameters
    ----------
    folder, photos, assign : as in `import_folder`
    inner : N, the parts of each path, without a split's folder
    found : categories, items and colours by the names of folders and files, each N
    """
    given = photos["category"] != ""
    for name, guessed in zip(("category", "item", "color"), found, strict=True):
        if name != "category" or not photos[name].astype(bool).any():  # a missing one is missing
            photos[name] = np.where(photos[name] == "", guessed, photos[name])
    flat = np.array([len(part) == 1 for part in inner]) & (photos["category"] == "all") & ~given
    photos = _assigned(folder, photos, flat, assign)
    names, numbers = number_categories(folder, photos["category"].tolist())
    photos["category"] = np.array([*names, ""])[numbers]
    return photos


def _check_options(
    photos: Columns, item_level: bool, item_pattern: str | None, inshop: bool, gallery: str | None
) -> None:
    """A `UserError` where options of `import_folder` do not go together."""
    if item_level and item_pattern:
        raise UserError("--item-level and --item-pattern exclude each other; give one of them")
    with_items = item_level or item_pattern or (photos["item"] != "").any()
    for option, given in (("--in-shop", inshop), ("--gallery", gallery is not None)):
        if given and not with_items:
            raise UserError(f"{option} is about items: add --item-level or --item-pattern REGEX")


def _read_names(folder: Path, columns: str | None) -> tuple[Path, Columns]:
    """The folder of the photos, and the columns of its CSV list, "" where there is none."""
    if folder.suffix.lower() in SUFFIXES and folder.is_file():
        return folder.parent, read_picture_list(folder, columns)
    if not folder.is_dir():
        state = "no such folder; name the folder of the photos, or a list"
        if folder.is_file():
            state = f"an archive? unpack it first; a list? save it as {', '.join(SUFFIXES)}"
        raise UserError(f"{shown(folder)}: {state}")
    if columns:
        raise UserError("--columns is about a CSV list; name the list instead of its folder")
    found = find_pictures(folder)
    paths = [path for path in found if can_be_listed(path) and path == path.rstrip()]
    for path in sorted(set(found) - set(paths)):
        print(f"left out, its name cannot stand in a list; rename it: {path!a}")
    if not paths:
        raise UserError(f"{shown(folder)}: no pictures below it; name the folder of the photos")
    unknown = np.full(len(paths), "")
    return folder, dict.fromkeys(COLUMNS, unknown) | {"path": np.array(paths)}


def _without_links_out(folder: Path, photos: Columns, roots: Sequence[str]) -> Columns:
    """The photos without links that reading refuses, see `folder.picture_file`."""
    targets = [leads_out(folder, path, roots) for path in photos["path"].tolist()]
    refused = list(filter(None, targets))
    if not refused:
        return photos
    fault = (
        f"{len(refused):,} of {len(targets):,} pictures are links out of {shown(folder)}, such as"
        f" {shown(photos['path'][targets.index(refused[0])])}; {link_remedy(refused)}"
    )
    if len(refused) == len(targets):
        raise UserError(fault)
    print(f"left out: {fault}")
    return select(photos, np.array([not target for target in targets]))


def _assigned(folder: Path, photos: Columns, flat: np.ndarray, assign: Assign | None) -> Columns:
    """The photos with the categories that `assign` finds, marked by their probabilities.

    It is used where the category is unknown, and for the photos of no folder, `flat`.
    """
    photos["probability"] = np.full(len(flat), "", "<U5")
    rows = np.flatnonzero(flat | (photos["category"] == ""))
    if assign is None or not len(rows):
        return photos
    found = assign([folder / path for path in photos["path"][rows].tolist()])
    category = photos["category"].astype(object)
    category[rows] = [name for name, _ in found]
    photos["category"] = category.astype(str)
    photos["probability"][rows] = marks = [f"{p:.3f}" if name else "" for name, p in found]
    print(
        f"{sum(map(bool, marks)):,} categories were assigned by a model: evaluate.py does not count"
        " them and train.py does not train on them; data.py check shows the doubtful ones"
    )
    return photos


def _expression(option: str, text: str) -> re.Pattern[str]:
    try:
        return re.compile(text)
    except re.error as error:
        raise UserError(f"{option} {text!r}: {error}; write a regular expression") from None


def _is_split(parts: list[list[str]], partitions: np.ndarray) -> bool:
    try:
        return is_split(parts)
    except UserError:
        if (partitions == "").any():
            raise
        return False  # the list has a partition for every picture


def _partitions(photos: Columns, tops: list[str] | None, val_share: float) -> np.ndarray:
    """train, val or test for each picture: what the list says, else its top folder, else a share.

    A partition that is listed for one picture of an item holds for all of the item.
    """
    group = np.where(photos["item"] == "", photos["path"], photos["item"])
    if tops:
        partition = np.array([SPLIT_FOLDERS[top.lower()] for top in tops])
    else:
        chosen = choose_validation_by_category(photos["category"], group, val_share)
        partition = np.where(chosen, "val", "train")
    pairs = list(zip(group.tolist(), photos["partition"].tolist(), strict=True))
    of_group = {name: value for name, value in pairs if value}
    listed = np.array([value or of_group.get(name, "") for name, value in pairs])
    return np.where(listed == "", partition, listed)


def _from_folders(inner: list[list[str]], inshop: bool) -> tuple[list[str], ...]:
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
    return category, items, _colors(items, [part[-1] for part in inner])


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
    pairs = {(color, item) for color, item, _ in rows}
    proven = len(pairs) < len(rows) and all(
        any(len(names) > 1 for names in found)
        for found in (of_view.values(), [of_color[color] for color, _, _ in rows])
    )
    if not proven and any("_" in file for file in files):
        print(
            "colors: unknown, as file names do not show that they begin with colors;"
            " --item-pattern can say where they are"
        )
    return colors if proven else [""] * len(colors)


def _from_pattern(
    paths: list[str], inner: list[list[str]], item_pattern: str | None
) -> tuple[list[str], ...]:
    """Category, item and colour of each picture by --item-pattern; "" where unknown."""
    category = [part[0] if len(part) > 1 else "all" for part in inner]
    if not item_pattern:
        return category, [""] * len(inner), [""] * len(inner)
    pattern = _expression("--item-pattern", item_pattern)
    if "item" not in pattern.groupindex:
        raise UserError(f"--item-pattern {item_pattern!r}: has no group (?P<item>...); add it")
    groups = [match.groupdict() if (match := pattern.search(path)) else {} for path in paths]
    unmatched = [path for path, group in zip(paths, groups, strict=True) if not group]
    if unmatched:
        matched = f"{len(paths) - len(unmatched)} of {len(paths)} pictures"
        print(f"--item-pattern matches {matched}; not, for instance, {shown(unmatched[0])}")
    items = [group.get("item") or "" for group in groups]
    if not any(items):
        raise UserError(
            f"--item-pattern {item_pattern!r}: matches no picture, such as {shown(paths[0])}"
        )
    category = [g.get("category") or c for g, c in zip(groups, category, strict=True)]
    return category, items, ["_".join((g.get("color") or "").lower().split()) for g in groups]


def _statuses(photos: Columns, gallery: str | None) -> np.ndarray:
    """train, query or gallery for each picture that has an item, else ""."""
    path, item, color = photos["path"], photos["item"], photos["color"]
    status = np.where(item == "", "", "train").astype("<U7")
    tested = np.flatnonzero((item != "") & (photos["partition"] != "train"))
    if gallery is not None:
        pattern = _expression("--gallery", gallery)
        chosen = np.array([pattern.search(name) is not None for name in path[tested]], bool)
        if chosen.all() or not chosen.any():
            found = "every one" if len(tested) and chosen.all() else "none"
            raise UserError(
                f"--gallery {gallery!r}: matches {found} of {len(tested)} pictures that"
                " are not in train; queries and gallery need some each"
            )
    else:
        groups = list(zip(item[tested], color[tested], strict=True))
        first = {group: i for i, group in reversed(list(enumerate(groups)))}
        chosen = np.array([first[group] == i for i, group in enumerate(groups)], bool)
    status[tested] = np.where(chosen, "gallery", "query")
    return status


def _report(base: Path, folder: Path, photos: Columns, inshop: bool) -> None:
    names, column = PARTITIONS, photos["partition"]
    if inshop:
        names, column = INSHOP_PARTITIONS, photos["status"]
    parts = ", ".join(f"{(column == name).sum()} {name}" for name in names)
    kinds, items, colors = (
        sorted(set(photos[name].tolist()) - {""}) for name in ("category", "item", "color")
    )
    print(f"{shown(folder)}: {len(column)} pictures ({parts}) of {len(kinds)} categories", end="")
    print(f" and {len(items)} items" if items else "")
    if colors:
        more = ", ..." if len(colors) > MAX_NAMES else ""
        print(f"{len(colors)} colors: {', '.join(colors[:MAX_NAMES])}{more}")
    unknown = int((photos["category"] == "").sum())
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
