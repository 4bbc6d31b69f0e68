"""Measure the feature database: how many answers are of the right category, and the right item.

Categories: every picture of the held-out part (test, or val where there is none) asks for the
others of that part. Items: every in-shop query asks the in-shop gallery.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from annotations import align, inshop_list, read_inshop
from collection import read_labelled
from config import parse_args
from index import ExactEngine, open_database, signals_of
from utils import UserError, run_script

BLOCK = 256  # queries at once


def average_precision(hits: np.ndarray) -> np.ndarray:
    """Average precision of ranked lists.

    Parameters
    ----------
    hits : Q x N, bool; whether the answer of each rank is right

    Returns
    -------
    Q, float64: the mean, over the right answers, of the precision at their ranks; 0 without any.
    """
    precision = hits.cumsum(1) / np.arange(1, hits.shape[1] + 1)
    return (precision * hits).sum(1) / np.maximum(hits.sum(1), 1)


def measure(
    engine: ExactEngine, queries: np.ndarray, gallery: np.ndarray, labels: np.ndarray
) -> dict[str, float]:
    """Rank a gallery for every query and count the right answers.

    Parameters
    ----------
    engine : over the whole collection
    queries, gallery : rows of the collection; a query that is in the gallery does not answer itself
    labels : N, what makes an answer right: category or item

    Returns
    -------
    p@1, p@10 (shares of right answers among the first 1 and 10), recall@10 (share of queries with
    a right one among the first 10), map (mean average precision), and chance (p@1 of a random
    order), each over the queries and in 0 to 1.
    """
    features = [signal.features for signal in engine.signals]
    sums = dict.fromkeys(("p@1", "p@10", "recall@10", "map", "chance"), 0.0)
    for start in range(0, len(queries), BLOCK):
        block = queries[start : start + BLOCK]
        distances = engine.distances([f[block] for f in features], gallery)
        itself = block[:, None] == gallery
        distances[itself] = np.inf
        order = np.argsort(distances, axis=1, kind="stable")
        right = (labels[gallery] == labels[block][:, None]) & ~itself
        hits = np.take_along_axis(right, order, axis=1)
        answers = (~itself).sum(1)
        sums["p@1"] += hits[:, 0].sum()
        sums["p@10"] += (hits[:, :10].sum(1) / np.minimum(answers, 10)).sum()
        sums["recall@10"] += hits[:, :10].any(1).sum()
        sums["map"] += average_precision(hits).sum()
        sums["chance"] += (right.sum(1) / answers).sum()
    return {name: float(value / len(queries)) for name, value in sums.items()}


def evaluate(
    base: Path,
    metrics: tuple[str, str],
    color_weight: float,
    val_share: float,
) -> dict[str, dict[str, float]]:
    """Measure a feature database by category and, where there are items, by item.

    Returns
    -------
    For "category" and "item" the figures of `measure`, and the number of queries.

    Raises
    ------
    UserError : no feature database, no annotation, or no held-out picture in the database
    """
    database = open_database(base)
    engine = ExactEngine(signals_of(database, metrics, color_weight))
    labelled = read_labelled(base, len(database.category_names), val_share)
    parts = set(labelled.partitions.tolist())
    held = labelled.in_partition("test" if "test" in parts else "val")
    rows = align(held.paths, database.paths)
    rows = np.sort(rows[rows >= 0])
    results = {}
    if len(rows) > 1:
        figures = measure(engine, rows, rows, database.categories)
        results["category"] = {"queries": len(rows), **figures}
    if inshop_list(base) is not None:
        inshop = read_inshop(base)
        place = align(database.paths, inshop.paths)
        items = np.where(place >= 0, inshop.items[place], "")
        part = np.where(place >= 0, inshop.partitions[place], "")
        queries, gallery = np.flatnonzero(part == "query"), np.flatnonzero(part == "gallery")
        if len(queries) and len(gallery):
            figures = measure(engine, queries, gallery, items)
            results["item"] = {"queries": len(queries), **figures}
    if not results:
        raise UserError(f"{base}: the feature database holds no val or test picture to ask with")
    return results


def print_table(now: dict[str, Any], before: dict[str, Any] | None) -> None:
    """The figures in percent, beside earlier ones where there are any."""
    print(f"{'':26}{'before':>9}{'now':>9}" if before else f"{'':26}{'':>9}{'now':>9}", end="")
    print(f"{'chance':>9}")
    names = {"p@1": "first answer right", "p@10": "right among first 10", "map": "mAP"}
    for kind, figures in now.items():
        print(f"right {kind}, {figures['queries']:,} queries")
        shown = names if kind == "category" else {**names, "recall@10": "one of first 10 right"}
        for key, name in shown.items():
            old = before.get(kind, {}).get(key) if before else None
            was = f"{old:9.1%}" if old is not None else " " * 9
            chance = f"{figures['chance']:9.1%}" if key in {"p@1", "p@10"} else ""
            print(f"  {name:<24}{was}{figures[key]:9.1%}{chance}")


def _arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the figures as JSON")
    parser.add_argument(
        "--against",
        type=Path,
        metavar="FILE",
        help="show earlier figures beside these, from a file that --json was written to",
    )


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse_args(argv, __doc__ or "", ("data set", "ranking"), _arguments)
    before = None
    if args.against:
        try:
            before = json.loads(args.against.read_text("utf-8"))
        except (OSError, ValueError) as error:
            raise UserError(f"--against {args.against}: {error}") from None
    results = evaluate(
        config.DATASET_BASE, config.DISTANCE_METRIC, config.COLOR_WEIGHT, config.VAL_SHARE
    )
    if args.json:
        print(json.dumps(results, indent=1))
    else:
        print_table(results, before)


if __name__ == "__main__":
    run_script(main)
