"""Find the pictures of the collection that are most similar to one or more query pictures.

    python retrieval.py photo.jpg
    python retrieval.py img/Striped_Tee/img_00000001.jpg --top-n 10 --output results.jpg
    python retrieval.py --text "red floral dress"                 by an image-text model
    python retrieval.py photo.jpg --text "in blue"                both together

Prints the answers of the exact and the k-means engine (or of --engine) and the time of every step.
"""

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageShow

from config import DISTANCE, MILVUS, WORDS
from pictures.decode import sheet_mark
from search import Searcher
from search.certainty import as_percent, describe_presence
from search.duplicates import remark
from search.engines import ENGINES, SCRIPTS, NamedEngine
from search.matches import Match
from search.query import Cut, Query, Stopwatch, find_query
from search.sheet import Row, draw_sheet
from utils import UserError, atomic_write, parse_args, run_script, shown

USES = (
    *("DATASET_BASE", "TRUNCATED", "DUMPED_MODEL", "MODELS", "EXTRACT_BATCH_SIZE", *DISTANCE),
    *("NPROBE", "TARGET_RECALL", *WORDS, *MILVUS, "DEVICE"),
)


def as_record(match: Match) -> dict[str, Any]:
    """A match as plain values, for JSON, the table and the picture."""
    record = {"rank": match.rank, "path": match.path, "distance": match.distance}
    record |= {"probability": match.probability, **match.parts}
    record |= {"category": match.category, "item": match.item}
    return {**record, "copies": match.copies, "duplicate_of": match.duplicate_of}


def print_answer(
    title: str, names: Sequence[str], records: Sequence[dict[str, Any]], same: str | None
) -> None:
    """One engine's answer to one query as a table.

    `names` are those of the signals, `same` is what probabilities are of, see `Calibration`.
    """
    print(f"\n{title}")
    width = max([len(record["category"]) for record in records] + [8])
    names = ["distance", *names]
    heads = "".join(f"{name:>12}" for name in names)
    sure = f"{f'same {same}':>15}" if same else ""
    print(f"{'rank':>5}{sure}{heads}  {'category':<{width}}  path")
    for record in records:
        values = f"{as_percent(record['probability']):>15}" if same else ""
        values += "".join(f"{record[name]:>12.5f}" for name in names)
        line = f"{record['rank']:>5}{values}  {record['category']:<{width}}  {record['path']}"
        said = remark(record["copies"], record["duplicate_of"])
        print(shown(f"{line}  ({said})" if said else line))


def print_remarks(present: float | None, own: Sequence[str]) -> None:
    """What is to be said below an answer, see `Searcher.rank`."""
    if present is not None:
        print(f"the item is {describe_presence(present)}")
    if own:
        print(shown(f"left out, as the query itself: {', '.join(own)}"))


def save_sheet(picture: Image.Image, path: Path) -> None:
    """Write a picture in the format of the path's suffix."""
    try:
        with atomic_write(path) as part:
            kind = Image.EXTENSION[path.suffix.lower()]
            picture.save(part, kind, quality=92, exif=sheet_mark())
    except (OSError, ValueError) as error:
        size = f"{picture.width} x {picture.height} px"
        raise UserError(f"--output {path}: cannot write {size}: {error}") from None


def show(picture: Image.Image) -> None:
    """Show a picture in the system's viewer, where there is a display."""
    on_linux = sys.platform.startswith("linux")
    has_display = not on_linux or os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
    if not (has_display and ImageShow.show(picture)):
        print("--show: no display, or no program for it; use --output", file=sys.stderr)


def number_from_1(text: str) -> int:  # argparse shows the name of such a function
    if (number := int(text)) < 1:
        raise ValueError
    return number


def number_from_0_to_1(text: str) -> float:
    if not 0 <= (share := float(text)) <= 1:
        raise ValueError
    return share


def _side(text: str) -> int | str:
    return text if text == "auto" else int(text)


def _output(text: str) -> Path:
    Image.init()
    if Image.EXTENSION.get(Path(text).suffix.lower()) not in Image.SAVE:
        raise argparse.ArgumentTypeError(f"{text!r}: write a .jpg, .png or .webp file")
    return Path(text)


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "img_path",
        nargs="*",
        help="query picture: a path, or one relative to DATASET_BASE or its in_shop/",
    )
    words = "words, alone or added to each query picture"
    add("--text", type=str.strip, default="", metavar="WORDS", help=words)
    add(
        "--top-n",
        type=number_from_1,
        default=5,
        metavar="N",
        help="answers a query (default: 5)",
    )
    add("--engine", choices=tuple(ENGINES), help="only this engine (default: exact, kmeans)")
    add(
        "--bbox",
        type=_side,
        nargs="+",
        metavar="X1 Y1 X2 Y2|auto",
        help="cut the query pictures to this box first, in px; auto: to the garment in each",
    )
    add("--category", metavar="NAME", help="search this category only")
    add("--together", action="store_true", help="the query pictures show one item: one query")
    add("--per-item", action="store_true", help="show the best picture of each item only")
    add("--collapse-duplicates", action="store_true", help="show each content once, count copies")
    add("--with-own", action="store_true", help="show the query itself, if it is in the collection")
    sure = "only answers this sure"
    add("--min-probability", type=number_from_0_to_1, default=0.0, metavar="P", help=sure)
    add("--json", action="store_true", help="print JSON and nothing else")
    add("--output", type=_output, metavar="FILE", help="write the answers as a picture")
    add("--show", action="store_true", help="show them in the system's viewer")


def _open_engines(searcher: Searcher, name: str | None, text: str) -> list[NamedEngine]:
    """The engine of that name; None: the exact one and, where there are clusters, k-means.

    Words are searched exactly: they lie apart from the pictures that other engines are made for.
    """
    if text:
        if name not in (None, "exact"):
            print(f"--engine {name}: words are searched exactly", file=sys.stderr)
        return [searcher.words.engine]
    if name:
        return [searcher.engine(name)]
    engines = [searcher.engine("exact")]
    try:
        engines.append(searcher.engine("kmeans"))
    except UserError as error:
        print(f"no k-means answer: {error}", file=sys.stderr)
    return engines


def _title(named: NamedEngine, category: str | None) -> str:
    """What an engine searches, and what it is expected to find."""
    title = f"{ENGINES[named.name]}: {named.searched}"
    if named.name == "exact":
        return title
    script = SCRIPTS[named.name]
    if category:
        return f"{title}, recall not measured within a category"
    if named.recall is None:
        return f"{title}, recall not measured with this distance (run {script} with it)"
    return f"{title}, recall@10 {named.recall:.3f}, see {script}"


def _print_query(query: Query, first: bool) -> None:
    print("" if first else "\n", f"query: {shown(query.name)}", sep="")
    for n, garment in enumerate(query.garments):
        print("also found" if n else "cut to", *garment)


def _checked_box(base: Path, args: argparse.Namespace) -> Cut | None:
    """What to cut the queries to; a `UserError`, before anything slow, where they cannot be."""
    if not (args.img_path or args.text):
        raise UserError('name a query picture, or words: --text "red dress"')
    for name in args.img_path:
        find_query(base, name)
    if args.bbox == ["auto"]:
        return "auto"
    if args.bbox and (len(args.bbox) != 4 or "auto" in args.bbox):
        raise UserError("--bbox takes x1 y1 x2 y2, or auto; name the pictures before it")
    return tuple(args.bbox) if args.bbox else None


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse_args(argv, __doc__ or "", USES, _arguments)
    watch = Stopwatch()
    box = _checked_box(config.DATASET_BASE, args)
    searcher = Searcher(config.DATASET_BASE, config, watch)
    if args.category:
        searcher.database.rows_of(args.category)
    with watch.step("loading features"):
        engines = _open_engines(searcher, args.engine, args.text)
        signals = searcher.words.signals if args.text else searcher.signals
    names = [signal.name for signal in signals]
    with watch.step("extracting"):
        queries, features = searcher.prepare(args.img_path, args.text, box, args.together)

    options: dict[str, Any] = {
        "category": args.category,
        "per_item": args.per_item,
        "collapse": args.collapse_duplicates,
        "with_own": args.with_own,
        "min_probability": args.min_probability,
    }
    same = searcher.calibration.same if searcher.calibration and not args.text else None
    output: list[dict[str, Any]] = []
    sheet: list[Row] = []
    for i, query in enumerate(queries):
        if not args.json:
            _print_query(query, first=i == 0)
        for named in engines:
            title, step = _title(named, args.category), f"{ENGINES[named.name]} query"
            took = Stopwatch()
            with watch.step(step), took.step(step):
                one = [feature[i : i + 1] for feature in features]
                found = searcher.rank(query, one, args.top_n, engine=named.name, **options)
            records = [as_record(match) for match in found]
            if not args.json:
                print_answer(title, names, records, same)
                print_remarks(found.present, found.left_out)
            if args.min_probability and not records:
                line = f"{query.name}: no answer reaches a probability of {args.min_probability:g}"
                print(shown(line), file=sys.stderr if args.json else sys.stdout)
            shared = {k: v for k, v in watch.seconds.items() if not k.endswith("query")}
            facts: dict[str, Any] = {"query": query.name, "engine": named.name}
            if args.bbox == ["auto"]:
                facts["garments"] = query.garments
            facts |= {"present": found.present, "results": records, "left_out": found.left_out}
            output.append({**facts, "seconds": shared | took.seconds})
            sheet.append((title, query.thumbnail, records))
    if args.json:
        print(json.dumps(output, indent=1, ensure_ascii=False))
    else:
        print("\ntime cost")
        for step, taken in watch.seconds.items():
            print(f"  {taken:8.4f} s  {step}")
    if args.output or args.show:
        picture = draw_sheet(config.DATASET_BASE, sheet)
        if args.output:
            save_sheet(picture, args.output)
            print(f"\n{args.output}", file=sys.stderr if args.json else sys.stdout)
        if args.show:
            show(picture)


if __name__ == "__main__":
    run_script(main)
