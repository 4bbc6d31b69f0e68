"""Draw a small collection of garments in DeepFashion's own layout, for the demo and the tests.

    python -m tools.synthetic --dataset-base data/demo --items 400 --views 4 --inshop-items 150

Nothing is downloaded. The same seed and sizes give the same files, byte for byte.
"""

import argparse
import json
import multiprocessing
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np

from pictures.lists import write_list
from tools.synthetic.garments import CATEGORY_NAMES
from tools.synthetic.items import PATTERNS, Item, make_item
from tools.synthetic.pictures import KINDS, Box, draw_view
from utils import UserError, atomic_write, end_by_ctrl_c, parse_args, progress_bar

VIEW_NUMBERS = {"front": 1, "side": 2, "back": 3, "full": 4, "additional": 7}  # in file names
PARTITIONS = ("train", "val", "test", "train", "train", "train", "train")
ATTRIBUTE_SIZE, INSHOP_SIZE = (240, 300), (256, 256)  # width, height in px
INSHOP_NUMBERS = 1_000_000  # in-shop items are numbered from here, so that no two are the same
JPEG_QUALITY = 90
MARKER = "synthetic.json"
FOREIGN = ("Anno", "Anno_coarse", "Anno_fine", "Eval", "Img", "img", "in_shop")


class Picture(NamedTuple):
    """A picture to draw; `path` is relative to DATASET_BASE."""

    path: str
    item: Item
    variant: int
    view: int
    kind: str | None
    size: tuple[int, int]
    partition: str


Drawn = list[tuple[Picture, Box]]


def plan_attribute(items: int, views: int, seed: int) -> list[list[Picture]]:
    """The pictures of each item of the attribute part, all of one item in one partition."""
    plan = []
    for number in range(items):
        round_, category = divmod(number, len(CATEGORY_NAMES))
        # Too few for an item of each category in each partition: at least fill the partitions.
        turn = round_ if items >= 3 * len(CATEGORY_NAMES) else number
        item = make_item(category + 1, seed, number)
        words = PATTERNS[item.pattern], item.colours[0][0], CATEGORY_NAMES[category]
        folder = f"img/{'_'.join(words)}_{number + 1:05d}"
        plan.append(
            [
                Picture(
                    path=f"{folder}/img_{view + 1:08d}.jpg",
                    item=item,
                    variant=0,
                    view=view,
                    kind=None if view else "front",
                    size=ATTRIBUTE_SIZE,
                    partition=PARTITIONS[turn % len(PARTITIONS)],
                )
                for view in range(views)
            ]
        )
    return plan


def plan_inshop(items: int, seed: int) -> list[list[Picture]]:
    """The pictures of each in-shop item: half of the items train, the others query and gallery."""
    plan = []
    for number in range(items):
        round_, category = divmod(number, len(CATEGORY_NAMES))
        item = make_item(category + 1, seed, INSHOP_NUMBERS + number)
        rng = np.random.default_rng([seed, item.number, 0, 1])
        folder = f"in_shop/img/WOMEN/{CATEGORY_NAMES[category]}/id_{number + 1:08d}"
        pictures = []
        for variant in range(len(item.colours)):
            kinds = ["front", *rng.permutation(KINDS[1:])[: rng.integers(1, 5)].tolist()]
            # Every colour has a query and a gallery picture, whichever way it is seen.
            status = ("query", "gallery") if rng.random() < 0.5 else ("gallery", "query")
            for view, kind in enumerate(kinds):
                name = f"{variant + 1:02d}_{VIEW_NUMBERS[kind]}_{kind}.jpg"
                partition = "train" if (round_ + category) % 2 == 0 else status[view % 2]
                pictures.append(
                    Picture(f"{folder}/{name}", item, variant, view, kind, INSHOP_SIZE, partition)
                )
        plan.append(sorted(pictures))
    return plan


def draw_item(base: Path, pictures: Sequence[Picture]) -> list[Box]:
    """Draw and write the pictures of one item; returns the boxes of the garments."""
    boxes = []
    (base / pictures[0].path).parent.mkdir(parents=True, exist_ok=True)
    for picture in pictures:
        rgb, box = draw_view(
            picture.item, picture.variant, picture.view, picture.kind, picture.size
        )
        bgr = cv2.cvtColor(rgb, cv2.COLOR_RGB2BGR)
        jpeg = cv2.imencode(".jpg", bgr, (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))[1]
        # Not by atomic_write: the marker file says whether the whole collection is there.
        (base / picture.path).write_bytes(jpeg.tobytes())
        boxes.append(box)
    return boxes


def write_lists(base: Path, attribute: Drawn, inshop: Drawn) -> None:
    """Write DeepFashion's lists for pictures and their boxes."""
    name, box = ("image_name",), ("x_1", "y_1", "x_2", "y_2")
    anno, evaluation, shop = base / "Anno", base / "Eval", base / "in_shop"
    cloth = [(category, 1) for category in CATEGORY_NAMES]
    write_list(anno / "list_category_cloth.txt", ("category_name", "category_type"), cloth)
    rows: list[tuple[object, ...]] = [(p.path, p.item.category) for p, _ in attribute]
    write_list(anno / "list_category_img.txt", (*name, "category_label"), rows)
    rows = [(p.path, *_padded(b)) for p, b in attribute]
    write_list(anno / "list_bbox.txt", name + box, rows)
    rows = [(p.path, p.partition) for p, _ in attribute]
    write_list(evaluation / "list_eval_partition.txt", (*name, "evaluation_status"), rows)
    if not inshop:
        return
    short = [(p.path.removeprefix("in_shop/"), p, b) for p, b in inshop]
    rows = [(path, path.split("/")[-2], p.partition) for path, p, _ in short]
    columns: tuple[str, ...] = (*name, "item_id", "evaluation_status")
    write_list(shop / "list_eval_partition.txt", columns, rows)
    rows = [(path, 1, KINDS.index(p.kind) + 1, *_padded(b)) for path, p, b in short]
    columns = (*name, "clothes_type", "pose_type", *box)
    write_list(shop / "list_bbox_inshop.txt", columns, rows)


def _padded(box: Box) -> list[str]:
    return [f"{value:03d}" for value in box]


def read_marker(base: Path) -> dict | None:
    """Read the marker file: parameters and counts of the collection; None where there is none.

    Raises
    ------
    UserError : there is a collection that this script did not make
    """
    try:
        return dict(json.loads((base / MARKER).read_text(encoding="utf-8")))
    except FileNotFoundError:
        found = next((name for name in FOREIGN if (base / name).exists()), None)
    except (ValueError, TypeError):
        found = MARKER
    if found is None:
        return None
    raise UserError(
        f"{base} holds a {found} that this script did not make; nothing was written:"
        " name another folder by --dataset-base"
    )


def is_complete(base: Path, parameters: dict, marker: dict | None) -> bool:
    """Whether the collection below `base` has these parameters and is complete."""
    if marker is None or not marker.get("complete") or marker.get("parameters") != parameters:
        return False
    pictures = sum(1 for part in ("img", "in_shop/img") for _ in (base / part).rglob("*.jpg"))
    lists = sum(1 for part in ("Anno", "Eval", "in_shop") for _ in (base / part).glob("list_*.txt"))
    return pictures == marker["pictures"] and lists == marker["lists"]


def make_collection(
    base: Path, items: int, views: int, inshop_items: int, seed: int, processes: int = 1
) -> dict[str, int]:
    """Draw a collection in DeepFashion's layout, unless it is there already.

    Parameters
    ----------
    base : DATASET_BASE
    items, views : items of the attribute part, and pictures of each
    inshop_items : items of the in-shop part, each in one to three colours with two to five views
    seed : the same seed and sizes give the same files, byte for byte
    processes : that draw at the same time

    Returns
    -------
    Counts: `items`, `pictures`, and `drawn`, the pictures drawn by this call.

    Raises
    ------
    UserError : `base` holds a collection that this script did not make
    """
    parameters = {"seed": seed, "items": items, "views": views, "inshop_items": inshop_items}
    plan = plan_attribute(items, views, seed) + plan_inshop(inshop_items, seed)
    counts = {"items": len(plan), "pictures": sum(map(len, plan))}
    marker = read_marker(base)
    if is_complete(base, parameters, marker):
        return counts | {"drawn": 0}
    _write_marker(base, {"parameters": parameters, "complete": False})
    for part in ("img", "Anno", "Eval", "in_shop"):
        if (base / part).exists():
            shutil.rmtree(base / part)
    with progress_bar(counts["pictures"], "drawing", "picture") as bar:
        drawn = []
        for pictures, boxes in zip(plan, _draw_all(base, plan, processes), strict=True):
            drawn.append(list(zip(pictures, boxes, strict=True)))
            bar.update(len(pictures))
    write_lists(base, list(chain(*drawn[:items])), list(chain(*drawn[items:])))
    lists = 6 if inshop_items else 4
    _write_marker(base, {"parameters": parameters, "complete": True, "lists": lists} | counts)
    return counts | {"drawn": counts["pictures"]}


def _draw_all(base: Path, plan: list[list[Picture]], processes: int) -> Iterator[list[Box]]:
    if processes == 1:
        yield from (draw_item(base, pictures) for pictures in plan)
        return
    context = multiprocessing.get_context("spawn")  # OpenCV's threads do not survive a fork
    with ProcessPoolExecutor(processes, context, _prepare_process) as pool:
        yield from pool.map(partial(draw_item, base), plan, chunksize=8)


def _end_with_parent() -> None:
    """Let a process of the pool end by Ctrl-C, and soon after its parent has ended.

    Otherwise it would wait for more work for ever.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    end_by_ctrl_c()

    def watch() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _prepare_process() -> None:
    """Make drawing fast in a process that does nothing else."""
    _end_with_parent()
    cv2.setNumThreads(1)  # the pictures are too small to share
    # Allocated and freed: from here on glibc keeps memory of this size between pictures instead of
    # handing it back to the kernel after each, which took a third of the time.
    np.empty(24 << 20, np.uint8)


def _write_marker(base: Path, content: dict) -> None:
    with atomic_write(base / MARKER) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


# The command


def _at_least(least: int) -> Callable[[str], int]:
    def number(text: str) -> int:
        if not text.isdecimal() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} up")
        return int(text)

    return number


def _add_arguments(parser: argparse.ArgumentParser) -> None:
    for flag, least, default, meaning in (
        ("--items", 1, 400, "items of the attribute part"),
        ("--views", 1, 4, "pictures of each of these items"),
        ("--inshop-items", 0, 150, "items of the in-shop part, 0 for none"),
        ("--processes", 1, min(4, os.cpu_count() or 1), "processes that draw"),
    ):
        shown = f"{meaning} (default: {default})"
        parser.add_argument(flag, type=_at_least(least), default=default, metavar="N", help=shown)


def main(argv: Sequence[str] | None = None) -> int | None:
    settings, args = parse_args(
        argv,
        "Draw a small collection of garments in DeepFashion's own layout; nothing is downloaded.",
        uses=("DATASET_BASE", "SEED"),
        add_arguments=_add_arguments,
    )
    base, start = settings.DATASET_BASE, time.perf_counter()
    _prepare_process()
    sizes = args.items, args.views, args.inshop_items
    try:
        counts = make_collection(base, *sizes, settings.SEED, args.processes)
    except OSError as error:
        raise UserError(f"{error.filename or base}: {error.strerror}") from error
    total = f"{base}: {counts['pictures']} pictures of {counts['items']} items"
    if not counts["drawn"]:
        print(f"{total}, made before with these settings; nothing to do")
        return None
    seconds = time.perf_counter() - start
    print(f"{total} in {seconds:.1f} s, {counts['drawn'] / seconds:.0f} pictures/s")
    return None
