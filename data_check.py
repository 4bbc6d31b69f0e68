"""A report on a data set: what would disturb training or figures, before either is started."""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from joblib import Parallel, delayed

from annotations import (
    INSHOP_PARTITIONS,
    PARTITIONS,
    Pictures,
    attribute_list,
    inshop_list,
    read_inshop,
)
from collection import read_labelled
from utils import PictureError, progress_bar, read_picture


def check_data_set(
    base: Path,
    categories: int,
    inshop: bool,
    val_share: float,
    crop: bool,
    triplets: bool,
    jobs: int,
) -> int:
    """Read every list and every picture of a data set and print what is found.

    Parameters
    ----------
    base : DATASET_BASE
    categories : keep categories 1 to this number
    inshop : training will use the in-shop part; it is reported whenever it is there
    val_share : as for `collection.read_folder`
    crop : training will cut pictures to their boxes
    triplets : training will draw triplets
    jobs : processes that read pictures

    Returns
    -------
    Exit status: 1 where training would fail, else 0.

    Raises
    ------
    UserError : nothing there, or a malformed list
    """
    labelled = read_labelled(base, categories, val_share)
    kind = "DeepFashion's lists" if attribute_list(base) else "a plain folder of photos"
    print(f"{base}: {kind}\n")
    _print_table(labelled, PARTITIONS)
    every = read_labelled(base, np.iinfo(np.int16).max, val_share)
    if len(every) > len(labelled):
        left = len(every) - len(labelled)
        print(f"{left:,} pictures of other categories are left out: CATEGORIES is {categories}")
    fatal = _training_faults(labelled, triplets)

    items = read_inshop(base) if inshop_list(base) or inshop else None
    tables = [(labelled, True)]
    if items is not None:
        print("\nin-shop part")
        _print_table(items, INSHOP_PARTITIONS)
        _print_items(items)
        if inshop and triplets:
            train = items.in_partition("train")
            fatal += _triplet_faults("item", train.items.tolist())
        known = set(labelled.paths)
        others = items.select(np.array([path not in known for path in items.paths], bool))
        tables += [(others, inshop)] if len(others) else []

    print()
    trained = 0
    for table, used in tables:
        unusable = _check_pictures(base, table, jobs, crop and table is labelled)
        trained += unusable if used else 0
    if trained:
        fatal.append(f"{trained} of the pictures it reads cannot be read or cropped")
    for fault in fatal:
        print(f"training would fail: {fault}")
    print("no training as things are" if fatal else "ready for training")
    return 1 if fatal else 0


def _print_table(pictures: Pictures, partitions: Iterable[str]) -> None:
    """Pictures per category and partition."""
    partitions = list(partitions)
    names = pictures.category_names
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


def _training_faults(pictures: Pictures, triplets: bool) -> list[str]:
    """What the lists alone say against training on categories."""
    train = pictures.in_partition("train")
    faults = _triplet_faults("category", train.categories.tolist()) if triplets else []
    if not len(train) and not triplets:
        faults.append("no picture in the train part")
    if not len(pictures.in_partition("val")):
        faults.append("no picture in the val part")
    return faults


def _triplet_faults(kind: str, labels: list) -> list[str]:
    """What would keep triplets from being drawn."""
    sizes = Counter(labels)
    if len(sizes) < 2:
        return [f"{len(sizes)} {kind} with pictures in the train part; triplets need two"]
    if max(sizes.values()) < 2:
        return [f"no {kind} has two pictures in the train part: no triplets"]
    return []


def _inspect(path: Path, box: tuple[int, int, int, int] | None) -> tuple[str, str, str]:
    """One picture: the kind of its fault ("" for none), its words, SHA-256 of its bytes."""
    if not path.exists():
        return "missing", "", ""
    try:
        picture = read_picture(path)
    except PictureError as error:
        return "unreadable", str(error), ""
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if box is None:
        return "", "", digest
    x1, y1, x2, y2 = box
    if x1 >= min(x2, picture.width) or y1 >= min(y2, picture.height):
        return (
            "empty box",
            f"{path}: the box {' '.join(map(str, box))} leaves nothing of it",
            digest,
        )
    if x2 > picture.width or y2 > picture.height:
        return "box", "", digest
    return "", "", digest


def _check_pictures(base: Path, pictures: Pictures, jobs: int, crop: bool) -> int:
    """Read the pictures, print what is wrong with them; return how many training trips over."""
    tasks = (
        delayed(_inspect)(base / path, tuple(box) if box[2] > 0 else None)
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
    trained = np.isin(pictures.partitions, ("train", "val"))
    unusable = 0
    for row, (kind, message, digest) in enumerate(results):
        faults[kind].append(message or pictures.paths[row])
        unusable += kind in fatal and bool(trained[row])
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
        [" = ".join(pictures.paths[row] for row in rows) for rows in copies],
    )
    return unusable


def _print_some(title: str, names: list[str], most: int = 10) -> None:
    print(f"{len(names):>9,} {title}")
    for name in names[:most]:
        print(f"          {name}")
    if len(names) > most:
        print(f"          and {len(names) - most:,} more")
