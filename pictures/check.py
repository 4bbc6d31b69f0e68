"""A report on a data set: what would disturb training or figures, before either is started."""

from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from pictures.annotations import (
    INSHOP_PARTITIONS,
    PARTITIONS,
    Pictures,
    attribute_list,
    inshop_list,
    read_inshop,
)
from pictures.collection import picture_file, read_labelled
from pictures.decode import MissingPictureError, PictureError, read_picture
from pictures.splits import Splits, read_splits
from utils import UserError, end_with_parent, progress_bar, sha256_of, shown


def check_data_set(
    base: Path,
    categories: int,
    val_share: float,
    crop: bool,
    jobs: int,
    *,
    inshop: bool,
    inshop_share: float,
    metric: bool,
    per_class: int,
) -> int:
    """Read every list and every picture of a data set and print what is found.

    Parameters
    ----------
    base : DATASET_BASE
    categories : keep categories 1 to this number
    val_share : as for `collection.read_folder`
    crop : training will cut pictures to their boxes
    jobs : processes that read pictures
    inshop : training will use the in-shop part; it is reported whenever it is there
    inshop_share, per_class : as for `data.TrainBatches`
    metric : training will use a metric loss

    Returns
    -------
    Exit status: 1 where training would fail, else 0.

    Raises
    ------
    UserError : nothing there, or a malformed list
    """
    labelled = read_labelled(base, categories, val_share)
    items = read_inshop(base) if inshop_list(base) or inshop else None
    alone = items is not None and attribute_list(base) is None
    kind = "DeepFashion's lists" if attribute_list(base) else "a plain folder of photos"
    print(f"{shown(base)}: {'in-shop lists alone' if alone else kind}\n")
    _print_table(labelled, ("train", "val", "query", "gallery") if alone else PARTITIONS)
    every = read_labelled(base, np.iinfo(np.int16).max, val_share)
    if len(every) > len(labelled):
        left = len(every) - len(labelled)
        print(f"{left:,} pictures of other categories are left out: CATEGORIES is {categories}")

    tables = [labelled]
    if items is not None:
        if not alone:
            print("\nin-shop part")
            _print_table(items, INSHOP_PARTITIONS)
        _print_items(items)
        known = set(labelled.paths)
        others = items.select(np.array([path not in known for path in items.paths], bool))
        tables += [others] if len(others) else []

    fatal, used = [], set()
    try:
        parts = read_splits(base, categories, inshop, val_share)
    except UserError as error:  # names the folder and this command, too
        fatal.append(str(error).removeprefix(f"{base}: ").split(";")[0])
    else:
        used = {
            path
            for part in (parts.train, parts.validation, parts.validation_items)
            for path in part.paths
        }
        fatal += _metric_faults(parts, inshop_share if inshop else 0.0, per_class) if metric else []

    print()
    unusable = sum(_check_pictures(base, t, jobs, crop and t is labelled, used) for t in tables)
    if unusable:
        fatal.append(f"{unusable} of the pictures it reads cannot be read or cropped")
    for fault in fatal:
        print(f"training would fail: {fault}")
    print("no training as things are" if fatal else "ready for training")
    if "train" not in labelled.partitions:
        print("extraction and evaluation need no train part")
    return 1 if fatal else 0


def _print_table(pictures: Pictures, partitions: Iterable[str]) -> None:
    """Pictures per category and partition."""
    partitions = list(partitions)
    names = [shown(name) for name in pictures.category_names]
    width = max([len(name) for name in names] + [8])
    cells = Counter(zip(pictures.categories.tolist(), pictures.partitions.tolist(), strict=True))
    print(" " * width + "".join(f"{name:>10}" for name in partitions))
    for i, name in enumerate(names):
        row = "".join(f"{cells[i, partition]:>10,}" for partition in partitions)
        print(f"{name:<{width}}{row}")
    total = "".join(f"{(pictures.partitions == name).sum():>10,}" for name in partitions)
    print(f"{'total':<{width}}{total}")


def _print_items(pictures: Pictures) -> None:
    """Items per partition, and what the protocol cannot use of them."""
    views = Counter(pictures.items.tolist())
    single = sum(count == 1 for count in views.values())
    print(f"{len(views):,} items; {single:,} with a single view (no triplet, no hit)")
    gallery = set(pictures.in_partition("gallery").items.tolist())
    lost = sum(item not in gallery for item in pictures.in_partition("query").items.tolist())
    if lost:
        print(f"{lost:,} queries whose item is not in the gallery: they can never be answered")


def _metric_faults(parts: Splits, inshop_share: float, per_class: int) -> list[str]:
    """What would keep `data.TrainBatches` from drawing the metric loss's pictures."""
    items = parts.train.items[parts.train.items != ""].tolist()
    kinds = {"category": parts.train.categories[: parts.labelled].tolist(), "item": items}
    drawn = ["item"] if inshop_share else ["category"]
    if not per_class and 0 < inshop_share < 1:
        drawn = ["category", "item"]
    faults = []
    for kind in drawn:
        sizes = Counter(kinds[kind])
        if len(sizes) < 2:
            faults.append(f"{len(sizes)} {kind} with pictures to train on; needed are two")
        elif not per_class and max(sizes.values()) < 2:
            faults.append(f"no {kind} has two pictures to train on: no triplets")
    return faults


def _inspect(base: Path, path: str, box: tuple[int, int, int, int] | None) -> tuple[str, str, str]:
    """One picture: the kind of its fault ("" for none), its words, SHA-256 of its bytes."""
    end_with_parent()
    try:
        file = picture_file(base, path)
        picture = read_picture(file)
    except MissingPictureError:
        return "missing", "", ""
    except PictureError as error:
        return "unreadable", str(error), ""
    digest = sha256_of(file)
    if box is None:
        return "", "", digest
    x1, y1, x2, y2 = box
    if x1 >= min(x2, picture.width) or y1 >= min(y2, picture.height):
        return (
            "empty box",
            f"{shown(file)}: the box {' '.join(map(str, box))} leaves nothing of it",
            digest,
        )
    if x2 > picture.width or y2 > picture.height:
        return "box", "", digest
    return "", "", digest


def _check_pictures(base: Path, pictures: Pictures, jobs: int, crop: bool, used: set[str]) -> int:
    """Read the pictures, print what is wrong with them; return how many of `used` that stops."""
    tasks = (
        delayed(_inspect)(base, path, tuple(box) if box[2] > 0 else None)
        for path, box in zip(pictures.paths, pictures.boxes.tolist(), strict=True)
    )
    parallel = Parallel(n_jobs=max(jobs, 1), return_as="generator")
    results = []
    with progress_bar(len(pictures), "reading", "picture") as bar:
        for result in parallel(tasks):
            results.append(result)
            bar.update()
    faults: dict[str, list[str]] = defaultdict(list)
    same: dict[str, list[int]] = defaultdict(list)
    fatal = {"missing", "unreadable", "empty box"} if crop else {"missing", "unreadable"}
    unusable = 0
    for row, (kind, message, digest) in enumerate(results):
        faults[kind].append(message or shown(pictures.paths[row]))
        unusable += kind in fatal and pictures.paths[row] in used
        if digest:
            same[digest].append(row)
    copies = [rows for rows in same.values() if len(rows) > 1]
    across = sum(len(set(pictures.partitions[rows].tolist())) > 1 for rows in copies)
    print(f"{len(pictures):,} pictures")
    _print_some("missing", faults["missing"])
    _print_some("unreadable, or with an empty box", faults["unreadable"] + faults["empty box"])
    _print_some("box reaches outside the picture (clipped)", faults["box"])
    _print_some(
        f"duplicates (the same bytes; {across:,} times across partitions)",
        [" = ".join(shown(pictures.paths[row]) for row in rows) for rows in copies],
    )
    return unusable


def _print_some(title: str, names: list[str], most: int = 10) -> None:
    print(f"{len(names):>9,} {title}")
    for name in names[:most]:
        print(f"          {name}")
    if len(names) > most:
        print(f"          and {len(names) - most:,} more")
