"""Find the pictures of the collection that are most similar to one or more query pictures.

    python retrieval.py photo.jpg
    python retrieval.py img/Striped_Tee/img_00000001.jpg --top-n 10 --output results.jpg

Prints the answer of every engine (exact, k-means) and the time of every step.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps

from annotations import find_box
from config import parse_args
from data import Transform, eval_transform
from index import (
    Answer,
    Engine,
    ExactEngine,
    FeatureDatabase,
    KMeansEngine,
    describe_distance,
    open_clusters,
    open_database,
    signals_of,
)
from net import FeatureNet, Network, extract_features, find_model, load_net, pick_device
from sheet import SheetRow, draw_sheet
from utils import Stopwatch, UserError, atomic_write, read_picture, run_script, sha256_of

STEPS = ("loading model", "loading features", "extracting", "exact query", "k-means query")
Box = tuple[int, int, int, int]


@dataclass(frozen=True)
class Query:
    """One query picture.

    Attributes
    ----------
    name : as the user gave it
    image : 3 x crop_size x crop_size, the network's input
    thumbnail : RGB, cropped to the garment where its box is known
    """

    name: str
    image: torch.Tensor
    thumbnail: Image.Image


def find_query(base: Path, name: str) -> Path:
    """The file a query means: as given, or relative to DATASET_BASE or its in-shop part.

    Raises
    ------
    UserError : there is none
    """
    places = [Path(), base, base / "in_shop", base / "Img", base / "in_shop" / "Img"]
    found = next((place / name for place in places if (place / name).is_file()), None)
    if found is None:
        raise UserError(f"{name}: no such file, neither here nor below {base} or its in_shop/")
    return found


def read_query(
    base: Path, name: str, path: Path, box: Box | None, crop: bool, transform: Transform
) -> Query:
    """Read a query picture.

    Parameters
    ----------
    base : DATASET_BASE
    name : the user's argument
    path : its file
    box : cut it to this box, x1 y1 x2 y2 in px; None takes a picture of the collection as the
        feature database took it, and any other one whole
    crop : the feature database's pictures were cut to their boxes
    transform : RGB picture -> tensor

    Raises
    ------
    PictureError : no picture, or a box outside it
    """
    if box is None and crop:
        below = os.path.relpath(os.path.abspath(path), os.path.abspath(base))
        box = None if below.startswith("..") else find_box(base, Path(below).as_posix())
        box = box if box and box[2] > 0 else None
    picture = read_picture(path, box)
    return Query(name, transform(picture), ImageOps.contain(picture, (400, 400)))


def extract_queries(
    net: FeatureNet, queries: Sequence[Query], device: torch.device, amp: str, batch_size: int
) -> list[np.ndarray]:
    """Deep features Q x D and colour features Q x 3T of the queries, float32.

    `amp` is the type the feature database was made with, so that equal pictures get equal features.
    """
    dtype = None if amp == "float32" else getattr(torch, amp)
    parts = []
    for start in range(0, len(queries), batch_size):
        images = torch.stack([query.image for query in queries[start : start + batch_size]])
        parts.append(extract_features(net, images, device, dtype))
    return [np.concatenate(signal) for signal in zip(*parts, strict=True)]


def load_model(
    database: FeatureDatabase, dumped: str, device: torch.device
) -> tuple[FeatureNet, Network]:
    """Load the model that made the feature database.

    Raises
    ------
    UserError : DUMPED_MODEL is missing or another one
    """
    again = f"run: python feature_extractor.py --dataset-base {database.base}"
    if not {"model", "network", "settings"} <= set(database.info):
        raise UserError(f"{database.base}: all_feat.json does not name a model; {again}")
    path = find_model(database.base, dumped)
    made_by = database.info["model"]
    if sha256_of(path) != made_by["sha256"]:
        raise UserError(
            f"{path} is not the model that made the feature database ({made_by['file']}, SHA-256"
            f" {made_by['sha256'][:12]}...); {again} --dumped-model {dumped}"
        )
    net, network = load_net(path, Network(**database.info["network"]))
    features = FeatureNet(net, database.info["settings"]["COLOR_TOP_N"]).eval()
    return features.to(device, memory_format=torch.channels_last), network


def as_records(database: FeatureDatabase, answer: Answer) -> list[dict[str, Any]]:
    """An answer as plain values, for JSON and for people."""
    return [
        {
            "rank": rank + 1,
            "path": database.paths[row],
            "distance": float(distance),
            "deep": float(parts[0]),
            "color": float(parts[1]),
            "category": database.category(row),
        }
        for rank, (row, distance, parts) in enumerate(
            zip(answer.rows, answer.distances, answer.parts, strict=True)
        )
    ]


def print_answer(title: str, records: Sequence[dict[str, Any]]) -> None:
    """One engine's answer to one query as a table."""
    print(f"\n{title}")
    width = max([len(record["category"]) for record in records] + [8])
    print(f"{'rank':>5}{'distance':>12}{'deep':>12}{'color':>12}  {'category':<{width}}  path")
    for r in records:
        print(
            f"{r['rank']:>5}{r['distance']:>12.5f}{r['deep']:>12.5f}{r['color']:>12.5f}"
            f"  {r['category']:<{width}}  {r['path']}"
        )


def save_sheet(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of the path's suffix.

    Raises
    ------
    UserError : the format cannot hold it
    """
    try:
        with atomic_write(path) as part:
            picture.save(part, Image.EXTENSION[path.suffix.lower()], quality=92)
    except (OSError, ValueError) as error:
        size = f"{picture.width} x {picture.height} px"
        raise UserError(f"--output {path}: cannot write {size}: {error}") from None


def show(picture: Image.Image, title: str) -> None:
    """Show a picture in a window until a key is pressed, where there is a display."""
    on_linux = sys.platform.startswith("linux")
    if on_linux and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        print("--show: there is no display; --output results.jpg writes a file", file=sys.stderr)
        return
    import cv2

    cv2.imshow(title, cv2.cvtColor(np.asarray(picture), cv2.COLOR_RGB2BGR))
    # A closed window ends it too; a key alone would leave the script waiting for ever.
    while cv2.waitKey(100) < 0 and cv2.getWindowProperty(title, cv2.WND_PROP_VISIBLE) > 0:
        pass
    cv2.destroyAllWindows()


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from 1 on")
    return int(text)


def _output(text: str) -> Path:
    Image.init()
    if Image.EXTENSION.get(Path(text).suffix.lower()) not in Image.SAVE:
        raise argparse.ArgumentTypeError(f"{text!r}: write a .jpg, .png or .webp file")
    return Path(text)


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "img_path",
        nargs="+",
        help="query picture: a path, or one relative to DATASET_BASE or its in_shop/",
    )
    add("--top-n", type=_positive, default=5, metavar="N", help="answers a query (default: 5)")
    add("--engine", choices=("exact", "kmeans"), help="only this engine (default: both)")
    add(
        "--bbox",
        type=int,
        nargs=4,
        metavar=("X1", "Y1", "X2", "Y2"),
        help="cut the query pictures to this box first, in px",
    )
    add("--category", metavar="NAME", help="search this category only")
    add("--json", action="store_true", help="print JSON and nothing else")
    add("--output", type=_output, metavar="FILE", help="write the answers as a picture")
    add("--show", action="store_true", help="show them in a window, where there is a display")


def _engines(
    database: FeatureDatabase,
    metrics: tuple[str, str],
    color_weight: float,
    nprobe: int,
    wanted: str | None,
    category: str | None,
) -> dict[str, tuple[Engine, str]]:
    """The engines to ask, by name, each with a title that says what it searches."""
    signals = signals_of(database, metrics, color_weight)
    distance = describe_distance(signals)
    engines: dict[str, tuple[Engine, str]] = {}
    if wanted != "kmeans":
        engines["exact"] = (
            ExactEngine(signals),
            f"exact: all {len(database.paths):,} pictures, {distance}",
        )
    if wanted != "exact":
        try:
            clusters = open_clusters(database)
        except UserError as error:
            if wanted:
                raise
            print(f"no k-means answer: {error}", file=sys.stderr)
            return engines
        engine = KMeansEngine(signals, clusters, nprobe)
        title = f"k-means: {engine.nprobe} of {len(clusters.centroids)} clusters"
        if clusters.distance == distance and not category:
            title += f", recall@10 {clusters.recall[engine.nprobe - 1]:.3f}, see kmeans.py"
        else:
            title += ", recall not measured " + (
                "within a category" if category else "with this distance (run kmeans.py with it)"
            )
        engines["kmeans"] = (engine, title)
    return engines


def main(argv: Sequence[str] | None = None) -> None:
    uses = ("data set", "feature database", "ranking", "machine")
    config, args = parse_args(argv, __doc__ or "", uses, _arguments)
    base = config.DATASET_BASE
    device = pick_device(config.DEVICE)
    watch = Stopwatch()

    with watch.step("loading features"):
        database = open_database(base)
        rows = database.rows_of(args.category) if args.category else None
        engines = _engines(
            database,
            config.DISTANCE_METRIC,
            config.COLOR_WEIGHT,
            config.NPROBE,
            args.engine,
            args.category,
        )
    box = tuple(args.bbox) if args.bbox else None
    paths = [find_query(base, name) for name in args.img_path]
    with watch.step("loading model"):
        net, network = load_model(database, config.DUMPED_MODEL, device)
    settings = database.info["settings"]
    transform = eval_transform(network.img_size, network.crop_size)
    with watch.step("extracting"):
        queries = [
            read_query(base, name, path, box, settings["CROP_TO_BBOX"], transform)
            for name, path in zip(args.img_path, paths, strict=True)
        ]
        features = extract_queries(net, queries, device, settings["AMP"], config.EXTRACT_BATCH_SIZE)

    output: list[dict[str, Any]] = []
    sheet: list[SheetRow] = []
    for i, query in enumerate(queries):
        if not args.json:
            print(f"\nquery: {query.name}" if i else f"query: {query.name}")
        for name, (engine, title) in engines.items():
            step = {"exact": "exact query", "kmeans": "k-means query"}[name]
            took = Stopwatch()
            with watch.step(step), took.step(step):
                answer = engine.search([f[i : i + 1] for f in features], args.top_n, rows)[0]
            if not np.isfinite(answer.distances).all():
                raise UserError(
                    f"DISTANCE_METRIC {','.join(config.DISTANCE_METRIC)}: no finite distance to"
                    f" {query.name}: a metric that does not suit these features"
                )
            records = as_records(database, answer)
            if not args.json:
                print_answer(title, records)
            shared = {k: v for k, v in watch.seconds.items() if not k.endswith("query")}
            output.append(
                {
                    "query": query.name,
                    "engine": name,
                    "results": records,
                    "seconds": {**shared, **took.seconds},
                }
            )
            sheet.append(SheetRow(title, query.thumbnail, records))
    if args.json:
        print(json.dumps(output, indent=1, ensure_ascii=False))
    else:
        print("\ntime cost")
        for step in STEPS:
            if step in watch.seconds:
                print(f"  {watch.seconds[step]:8.4f} s  {step}")
    if args.output or args.show:
        picture = draw_sheet(base, sheet)
        if args.output:
            save_sheet(picture, args.output)
            print(f"\n{args.output}", file=sys.stderr if args.json else sys.stdout)
        if args.show:
            show(picture, "deep-fashion-retrieval")


if __name__ == "__main__":
    run_script(main)
