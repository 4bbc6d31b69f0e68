"""A folder of one's own photos -> DeepFashion's annotation files; the photos stay in place."""

import re
from pathlib import Path

import numpy as np

from annotations import ANNO_FOLDERS, UNKNOWN, write_list
from collection import SPLIT_FOLDERS, can_be_listed, find_pictures, held_out, is_split
from utils import UserError

OFFICIAL = (*ANNO_FOLDERS, "Eval", "Img", "in_shop")


def import_folder(
    folder: Path,
    base: Path,
    categories: int,
    val_share: float,
    item_level: bool,
    item_pattern: str | None,
) -> None:
    """Write the annotation files for a folder of photos and say what to run next.

    `base`/img becomes a link to the folder. A split in train/, val/ or validation/, and test/
    folders is kept; else a share of each category's items (pictures, where there are no items) is
    held out. Items also get the in-shop lists: of a held-out item, the first picture (of each
    colour, where colours are known) becomes gallery, the others queries.

    Parameters
    ----------
    folder : photos in category folders; with `item_level` in item folders below those
    base : DATASET_BASE, where the annotation files go
    categories : the CATEGORIES setting, for a word where the folder has more
    val_share : share held out, 0 to 1
    item_level : the folder of each picture is its item, what lies above it the category; the file
        name up to the first "_" is the colour where pictures of an item share it
    item_pattern : regular expression searched in each path below `folder`; group `item` is the
        item; `color` and `category`, where the expression has them, colour and category

    Raises
    ------
    UserError : no photos, a bad pattern, or `base` holds another data set
    """
    paths = _usable_paths(folder)
    parts = [path.split("/") for path in paths]
    split = is_split(parts)
    inner = [part[1:] if split else part for part in parts]
    category, item, color = _labels(paths, inner, item_level, item_pattern)
    if split:
        partition = np.array([SPLIT_FOLDERS[part[0]] for part in parts])
    else:
        partition = _hold_out(category, np.where(item == "", np.array(paths), item), val_share)

    _link(base, folder)
    names = sorted(set(category.tolist()))
    number = {name: i + 1 for i, name in enumerate(names)}
    listed = ["img/" + path for path in paths]
    # Types 1 to 3 (upper, lower, full body) are DeepFashion's; of one's own photos none is known.
    write_list(
        base / "Anno" / "list_category_cloth.txt",
        ("category_name", "category_type"),
        [(name, 1) for name in names],
    )
    write_list(
        base / "Anno" / "list_category_img.txt",
        ("image_name", "category_label"),
        [(path, number[name]) for path, name in zip(listed, category, strict=True)],
    )
    write_list(
        base / "Eval" / "list_eval_partition.txt",
        ("image_name", "evaluation_status"),
        zip(listed, partition, strict=True),
    )
    for name in ("list_eval_partition.txt", "list_color_inshop.txt"):  # of an earlier import
        (base / "in_shop" / name).unlink(missing_ok=True)
    if (item != "").any():
        _write_items(base, listed, item, color, partition)
    _report(base, folder, names, item, partition, categories)


def _usable_paths(folder: Path) -> list[str]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder")
    found = find_pictures(folder)
    paths = [path for path in found if can_be_listed(path)]
    for path in sorted(set(found) - set(paths)):
        print(f"left out, its name cannot stand in a list: {path!a}")
    if not paths:
        raise UserError(f"{folder}: no pictures below it")
    return paths


def _labels(
    paths: list[str], inner: list[list[str]], item_level: bool, item_pattern: str | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Category, item and colour of each picture, N str each; "" where unknown."""
    if item_level and item_pattern:
        raise UserError("--item-level and --item-pattern exclude each other")
    if item_level:
        flat = next((p for p, part in zip(paths, inner, strict=True) if len(part) < 3), None)
        if flat:
            raise UserError(f"--item-level: {flat} does not lie in CATEGORY/ITEM/")
        # The item's whole path: two categories may well number their items alike.
        items = ["/".join(part[:-1]) for part in inner]
        category = ["/".join(part[:-2]) for part in inner]
        return np.array(category), np.array(items), _prefixes(paths, items)
    category = [part[0] if len(part) > 1 else "all" for part in inner]
    if not item_pattern:
        return np.array(category), np.full(len(paths), ""), np.full(len(paths), "")
    try:
        pattern = re.compile(item_pattern)
    except re.error as error:
        raise UserError(f"--item-pattern {item_pattern!r}: {error}") from None
    if "item" not in pattern.groupindex:
        raise UserError(f"--item-pattern {item_pattern!r}: has no group (?P<item>...)")
    groups = [match.groupdict() if (match := pattern.search(p)) else {} for p in paths]
    unmatched = [path for path, group in zip(paths, groups, strict=True) if not group]
    if unmatched:
        print(f"--item-pattern matches {len(paths) - len(unmatched)} of {len(paths)} pictures; not,"
              f" for instance, {unmatched[0]}")  # fmt: skip
    if len(unmatched) == len(paths):
        raise UserError(f"--item-pattern {item_pattern!r}: matches no picture")
    category = [g.get("category") or c for g, c in zip(groups, category, strict=True)]
    items = [group.get("item") or "" for group in groups]
    colors = [re.sub(r"\s+", "_", group.get("color") or "") for group in groups]
    return np.array(category), np.array(items), np.array(colors)


def _prefixes(paths: list[str], items: list[str]) -> np.ndarray:
    """Colours as DeepFashion has them, the file name up to its first "_".

    Where no two pictures of an item share one, it is something else: "" for all.
    """
    files = [path.rsplit("/", 1)[-1] for path in paths]
    shades = [re.sub(r"\s+", "_", f.split("_")[0]) if "_" in f else "" for f in files]
    shared = len(set(zip(items, shades, strict=True))) < len(paths)
    return np.array(shades if shared else [""] * len(paths))


def _hold_out(category: np.ndarray, group: np.ndarray, share: float) -> np.ndarray:
    """train or val for each picture: a share of each category's groups, none of them divided."""
    chosen: set[str] = set()
    for name in np.unique(category):
        groups = group[category == name]
        chosen |= set(groups[held_out(groups, share)].tolist())
    return np.where(np.isin(group, list(chosen)), "val", "train")


def _link(base: Path, folder: Path) -> None:
    link, target = base / "img", folder.resolve()
    if base.resolve() == target:
        raise UserError(f"{folder}: set DATASET_BASE to another folder, for the annotation files")
    if link.is_symlink() and link.resolve() == target:
        return
    if link.exists() or link.is_symlink() or any((base / name).exists() for name in OFFICIAL):
        raise UserError(f"{base}: holds another data set; set DATASET_BASE to a folder of its own")
    base.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target, target_is_directory=True)


def _write_items(
    base: Path, listed: list[str], item: np.ndarray, color: np.ndarray, partition: np.ndarray
) -> None:
    """The in-shop lists; ids are numbered, since a row is split at blanks."""
    rows = np.flatnonzero(item != "")
    number = {name: i + 1 for i, name in enumerate(sorted(set(item[rows].tolist())))}
    seen: set[tuple[str, str]] = set()
    cells, colors = [], []
    for row in rows.tolist():
        shade = str(color[row]) or UNKNOWN
        status = "train"
        if partition[row] != "train":
            status = "query" if (item[row], shade) in seen else "gallery"
            seen.add((item[row], shade))
        cells.append((listed[row], f"id_{number[item[row]]:08d}", status))
        colors.append((listed[row], shade))
    columns = ("image_name", "item_id", "evaluation_status")
    write_list(base / "in_shop" / "list_eval_partition.txt", columns, cells)
    write_list(base / "in_shop" / "list_color_inshop.txt", ("image_name", "color"), colors)
    if not any(status == "query" for *_, status in cells):
        print("no held-out item has two pictures of a colour: nothing to measure items with")


def _report(
    base: Path,
    folder: Path,
    names: list[str],
    item: np.ndarray,
    partition: np.ndarray,
    categories: int,
) -> None:
    parts = ", ".join(f"{(partition == p).sum()} {p}" for p in ("train", "val", "test"))
    items = len(set(item[item != ""].tolist()))
    print(f"{folder}: {len(item)} pictures ({parts}) of {len(names)} categories", end="")
    print(f" and {items} items" if items else "")
    options = f" --dataset-base {base}"
    options += " --enable-inshop-dataset" if items else ""
    options += f" --categories {len(names)}" if len(names) > categories else ""
    print(f"annotation files are in {base}; next:")
    for script in ("data.py check", "train.py", "feature_extractor.py"):
        print(f"  python {script}{options}")
