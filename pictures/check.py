"""A report on a data set: what would stop training or distort figures, before either is started."""

from collections import Counter, defaultdict
from collections.abc import Sequence
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path

from pictures.collection import read_labelled, require_photos
from pictures.decode import PictureError, read_picture, refuse_sheet
from pictures.deepfashion import (
    ASSIGNED_LIST,
    attribute_list,
    has_items,
    read_assigned,
    read_items,
)
from pictures.folder import leads_out, link_remedy, picture_file
from pictures.samplers import TrainBatches
from pictures.splits import read_splits
from pictures.table import MAX_CATEGORIES, PARTITIONS, Pictures, merge
from utils import UserError, progress_bar, sha256_of, shown

ITEM_PARTITIONS = ("train", "val", "query", "gallery")
DRAWN = 1000  # triplets or pictures that are drawn for the metric loss, to see if they can be
DOUBTFUL = 0.5  # probability of an assigned category, below which it is shown
MAX_NAMES = 10  # printed of each kind of fault


def check_data_set(
    base: Path,
    categories: int,
    val_share: float,
    crop: bool,
    jobs: int,
    *,
    truncated: bool,
    inshop: bool,
    inshop_share: float,
    metric: bool,
    per_class: int,
) -> int:
    """Read every list and every picture of a data set and print what is found.

    Parameters
    ----------
    base, categories, val_share : as for `read_splits`
    crop : training will cut pictures to their boxes
    jobs : threads that read pictures
    truncated : as for `read_picture`
    inshop : training will use the items; the part is reported whenever it is there
    inshop_share, per_class : as for `samplers.TrainBatches`
    metric : training will use a metric loss

    Returns
    -------
    Exit status: 1 where training would fail, else 0. A `UserError` for no picture, or a malformed
    list.
    """
    pictures = _print_tables(base, categories, val_share, inshop)
    faults: list[str] = []
    used: dict[str, list[str]] = {}
    try:
        splits = read_splits(base, categories, inshop, val_share)
        used = {"train": splits.train.paths, "validation": splits.validation.paths,
                "validation of items": splits.validation_items.paths}  # fmt: skip
        sizes = (splits.labelled, splits.labelled, DRAWN if metric else 0)
        list(TrainBatches(splits.train, *sizes, inshop_share, per_class, seed=0))
    except UserError as error:  # names the folder and this command, too
        faults.append(str(error).removeprefix(f"{base}: ").split(";")[0])

    print()
    unusable = _check_pictures(base, pictures, jobs, crop, truncated)
    for name, paths in used.items():
        if paths and unusable.issuperset(paths):
            faults.append(f"no picture of its {name} part can be read")
    if left_out := unusable & set().union(*used.values()):
        print(f"training leaves out {len(left_out):,} pictures that cannot be read or cropped")
    for fault in faults:
        print(f"training would fail: {fault}")
    print("no training as things are" if faults else "ready for training")
    if "train" not in pictures.partitions:
        print("extraction and evaluation need no train part")
    return 1 if faults else 0


def _print_tables(base: Path, categories: int, val_share: float, inshop: bool) -> Pictures:
    """Print what the lists have; all their pictures."""
    require_photos(base)
    labelled = read_labelled(base, categories, val_share)
    items = read_items(base) if has_items(base) or inshop else None
    alone = items is not None and attribute_list(base) is None
    kind = "lists in DeepFashion's form" if attribute_list(base) else "a plain folder of photos"
    print(f"{shown(base)}: {'lists of items alone' if alone else kind}\n")
    _print_table(labelled, ITEM_PARTITIONS if alone else PARTITIONS)
    _print_assigned(base, labelled)
    others = len(read_labelled(base, MAX_CATEGORIES, val_share)) - len(labelled)
    if others:
        print(f"{others:,} pictures of other categories are left out: CATEGORIES is {categories}")
    if items is None:
        return labelled
    if not alone:
        print("\nitems")
        _print_table(items, ITEM_PARTITIONS)
    _print_items(items)
    return merge(labelled, items)


def _print_table(pictures: Pictures, partitions: Sequence[str]) -> None:
    """Pictures per category and partition."""
    rows = {shown(name): pictures.categories == i for i, name in enumerate(pictures.category_names)}
    if (unknown := pictures.categories < 0).any():
        rows["(unknown)"] = unknown
    rows["total"] = pictures.categories >= -1
    width = max(8, *map(len, rows))
    print(" " * width + "".join(f"{partition:>10}" for partition in partitions))
    for name, chosen in rows.items():
        count = Counter(pictures.partitions[chosen].tolist())
        print(f"{name:<{width}}" + "".join(f"{count[p]:>10,}" for p in partitions))


def _print_assigned(base: Path, pictures: Pictures) -> None:
    """The categories that a model has assigned, the most doubtful ones first."""
    guessed = read_assigned(base)
    if not guessed:
        return
    print(
        f"{len(guessed):,} categories are assigned by a model: not trained on, not evaluated, until"
        f" {shown(base / 'Anno' / ASSIGNED_LIST)} is removed"
    )
    numbers = zip(pictures.paths, pictures.categories.tolist(), strict=True)
    lines = [
        f"{guessed[path]:.3f}  {shown(pictures.category_names[number])}  {shown(path)}"
        for path, number in numbers
        if guessed.get(path, 1) < DOUBTFUL
    ]
    _print_faults(f"of a probability below {DOUBTFUL}, doubtful", sorted(lines))


def _print_items(pictures: Pictures) -> None:
    """Items, and what the protocols cannot use of them."""
    views = Counter(pictures.items.tolist())
    single = sum(count == 1 for count in views.values())
    print(f"{len(views):,} items; {single:,} with a single view (no triplet, no hit)")
    items = {name: pictures.in_partition(name).items.tolist() for name in ITEM_PARTITIONS}
    tested = {*items["query"], *items["gallery"]}
    if both := tested & {*items["train"], *items["val"]}:
        print(f"{len(both):,} items of the test part are trained on, too: its figures are too good")
    gallery = set(items["gallery"])
    lost = sum(item not in gallery for item in items["query"])
    if lost:
        print(f"{lost:,} queries whose item is not in the gallery: they can never be answered")


def _check_pictures(
    base: Path, pictures: Pictures, jobs: int, crop: bool, truncated: bool
) -> set[str]:
    """Read the pictures, print their faults; return those that training cannot read."""
    faults: dict[str, list[str]] = defaultdict(list)
    rows_of: dict[str, list[int]] = defaultdict(list)
    fatal = {"missing", "link", "unreadable", *(["empty box"] if crop else [])}
    unusable = set()
    rows = zip(pictures.paths, pictures.boxes.tolist(), strict=True)
    # Threads, as Pillow decodes without Python's global lock.
    with ThreadPool(max(jobs, 1)) as pool, progress_bar(len(pictures), "reading", "picture") as bar:
        found = pool.imap(partial(_inspect, base, truncated), rows)
        for row, (kind, message, digest) in enumerate(found):
            faults[kind].append(message)
            if kind in fatal:
                unusable.add(pictures.paths[row])
            if digest:
                rows_of[digest].append(row)
            bar.update()
    print(f"{len(pictures):,} pictures")
    _print_faults("missing", faults["missing"])
    if links := faults["link"]:
        remedy = link_remedy([leads_out(base, path) for path in links])
        _print_faults(f"links out of the data set: {remedy}", list(map(shown, links)))
    _print_faults("unreadable, or with an empty box", faults["unreadable"] + faults["empty box"])
    _print_faults("box reaches outside the picture (clipped)", faults["box"])
    copies = [rows for rows in rows_of.values() if len(rows) > 1]
    across = sum(len(set(pictures.partitions[rows].tolist())) > 1 for rows in copies)
    names = [" = ".join(shown(pictures.paths[row]) for row in rows[:MAX_NAMES]) for rows in copies]
    title = f"duplicates (the same bytes; {across:,} times across partitions)"
    _print_faults(title, names)
    return unusable


def _inspect(base: Path, truncated: bool, row: tuple[str, list[int]]) -> tuple[str, str, str]:
    """One picture: the kind of its fault ("" for none), what is printed, SHA-256 of its bytes."""
    path, box = row
    try:
        if leads_out(base, path):
            return "link", path, ""
        file = picture_file(base, path)
        if not file.exists():
            return "missing", shown(path), ""
        picture, digest = read_picture(file, truncated=truncated), sha256_of(file)
        refuse_sheet(picture, file)
    except (PictureError, OSError) as error:
        return "unreadable", str(error), ""
    x1, y1, x2, y2 = box
    if x2 <= 0:
        return "", "", digest
    if x1 >= min(x2, picture.width) or y1 >= min(y2, picture.height):
        message = f"{shown(file)}: the box {' '.join(map(str, box))} leaves nothing of it"
        return "empty box", message, digest
    outside = x2 > picture.width or y2 > picture.height
    return ("box" if outside else ""), shown(path), digest


def _print_faults(title: str, names: list[str]) -> None:
    print(f"{len(names):>9,} {title}")
    for name in names[:MAX_NAMES]:
        print(f"          {name}")
    if len(names) > MAX_NAMES:
        print(f"          and {len(names) - MAX_NAMES:,} more")
