"""Measure the feature database by the published protocols.

--protocol inshop    every query searches the gallery for its item: Recall@K, mAP@R, MRR; also
                     the upper-body part alone, and for its item in its colour
--protocol category  every picture of the test part searches for the others of its category: P@1,
                     P@10, mAP; and the classifier's top-1, top-3 and top-5 accuracy
--protocol folder    both, as far as the data set has them (default)

Needs the feature database and the annotation lists; the photos only for the pictures of --report.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from config import DISTANCE
from evaluation.classifier import read_classifier, with_accuracy
from evaluation.protocols import (
    MAIN_TASKS,
    PROTOCOLS,
    Outcome,
    Task,
    extraction_advice,
    gallery_engine,
    of_gallery,
    query_features,
    run_task,
    tasks_of,
)
from evaluation.query_ablation import methods_table, signals_table
from evaluation.report import write_report
from evaluation.table import Table
from evaluation.tune_weights import tune_weights
from features.database import DEEP, FeatureDatabase, open_database
from network.device import pick_device
from search.clusters import Clusters, KMeansEngine, nprobe_of, open_clusters
from search.engine import Engine
from search.signals import Signal, describe_distance, signals_of
from utils import UserError, parse_args, parsed_json, run_script

USES = ("DATASET_BASE", "VAL_SHARE", *DISTANCE, "NPROBE", "TARGET_RECALL", "DEVICE")


def engine_of(
    signals: Sequence[Signal],
    gallery: np.ndarray,
    clusters: Clusters | None,
    nprobe: int,
    device: torch.device,
) -> Engine:
    """An engine over a gallery: k-means with `nprobe` of the database's clusters, or exact."""
    if clusters is None:
        return gallery_engine(signals, gallery, device)
    narrowed = replace(clusters, labels=clusters.labels[gallery])
    return KMeansEngine(of_gallery(signals, gallery), narrowed, nprobe, fill=False)


def as_json(
    facts: dict[str, Any], outcomes: Sequence[Outcome], tables: Sequence[Table]
) -> dict[str, Any]:
    """The figures of the main tasks at the top level, those of all tasks below "parts"."""
    parts: dict[str, Any] = {}
    top: dict[str, Any] = {}
    for outcome in outcomes:
        task = outcome.task
        counts = {"queries": len(task.queries), "gallery": len(task.gallery)}
        figures = {name: asdict(figure) for name, figure in outcome.figures().items()}
        parts[task.name] = {**counts, "chance": outcome.chance, **figures}
        if task.name in MAIN_TASKS:
            top |= figures
    ablation = {"query_ablation": [table.as_json() for table in tables]} if tables else {}
    return {**facts, **top, "parts": parts, **ablation}


def print_figures(record: dict[str, Any], before: dict[str, Any] | None) -> None:
    """Print the figures with their intervals, beside earlier ones where there are any."""
    print(f"{record['engine']}, {record['distance']}")
    earlier = before["parts"] if before else {}
    data = before["data"] if before else {}
    other = [name for name, digest in record["data"].items() if data.get(name, digest) != digest]
    if other:
        print(f"the earlier figures ({', '.join(other)}) are of other queries or another gallery")
    for name, part in record["parts"].items():
        print(f"\n{_figure_table(name, part, earlier.get(name, {}) if before else None)}")


def _figure_table(name: str, part: dict[str, Any], before: dict[str, Any] | None) -> Table:
    """The figures of a task; earlier ones in a column of their own unless `before` is None."""
    header, formats = ["", "now", "95% interval", "chance"], ["{}", "{:.2%}", "{:.2%} to {:.2%}"]
    rows: list[list[object]] = []
    for key, figure in part.items():
        if isinstance(figure, dict):
            chance = part["chance"] if key in {"p@1", "recall@1"} else None
            rows.append([key, figure["value"], figure["ci95"], chance])
    if before is not None:
        header.insert(1, "before")
        formats.insert(1, "{:.2%}")
        for row in rows:
            row.insert(1, before.get(str(row[0]), {}).get("value"))
    title = f"same {name}: {part['queries']:,} queries, {part['gallery']:,} pictures in the gallery"
    return Table(title, "", header, rows, [*formats, "{:.2%}"])


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--protocol", choices=PROTOCOLS, default="folder", help="see above (default: folder)")
    add("--engine", choices=("exact", "kmeans"), default="exact", help="default: exact")
    add("--json", action="store_true", help="print the figures as JSON")
    add("--report", type=Path, metavar="FILE", help="write them as an HTML page with pictures")
    add(
        "--against",
        type=Path,
        metavar="FILE",
        help="print earlier figures beside these, from the output of --json in a file",
    )
    add(
        "--query-ablation",
        action="store_true",
        help="also measure each query-time method (expansion, re-ranking ...) and each signal",
    )
    add(
        "--tune-weights",
        action="store_true",
        help="find the weights of the signals on the validation split, and measure nothing else",
    )


def _refuse_with_tune_weights(args: argparse.Namespace) -> None:
    """Raise for the first flag that --tune-weights would ignore."""
    defaults = {"protocol": "folder", "engine": "exact", "tune_weights": True}
    for name, value in vars(args).items():
        if value and value != defaults.get(name):
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"{flag}: --tune-weights measures nothing else; omit {flag}")


def _earlier(path: Path) -> dict[str, Any]:
    """The record in the file of --against."""
    try:
        record = parsed_json(path.read_bytes())
        record["parts"].items(), record["data"].items()
    except (OSError, ValueError) as error:
        raise UserError(f"--against {path}: {error}") from None
    except (AttributeError, KeyError, TypeError):
        raise UserError(f"--against {path}: not written by evaluate.py --json") from None
    return record


def _facts(
    database: FeatureDatabase, args: argparse.Namespace, nprobe: int, tasks: Sequence[Task]
) -> dict[str, Any]:
    """What was measured, with which models and data: for JSON and the report."""
    metadata = database.metadata
    return {
        "protocol": args.protocol,
        "engine": args.engine if args.engine == "exact" else f"kmeans, nprobe {nprobe}",
        "date": time.strftime("%Y-%m-%d"),
        "models": [{"file": m.file, "sha256": m.sha256} for m in metadata.models],
        "features": metadata.sha256[DEEP],
        "pictures": metadata.pictures,
        "settings": metadata.settings.model_dump(),
        "data": {task.name: task.digest(database.paths) for task in tasks},
    }


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse_args(argv, __doc__ or "", USES, _arguments)
    if args.tune_weights:
        _refuse_with_tune_weights(args)
    if args.json and args.against:
        raise UserError("--against: --json prints no earlier figures; omit one of the two")
    before = _earlier(args.against) if args.against else None
    device = pick_device(config.DEVICE)
    database = open_database(config.DATASET_BASE)
    signals = signals_of(database, **config.distance)
    if args.tune_weights:
        tune_weights(database, signals, config.VAL_SHARE)
        return
    clusters = open_clusters(database) if args.engine == "kmeans" else None
    nprobe = nprobe_of(clusters, config.NPROBE, config.TARGET_RECALL) if clusters else 0
    classifier = read_classifier(database)
    tasks = tasks_of(database, args.protocol, config.VAL_SHARE)
    advice = extraction_advice(database) if args.protocol == "folder" else ""
    if advice:
        print(f"by category only: {advice}", file=sys.stderr)

    outcomes, tables = [], []
    for task in tasks:
        engine = engine_of(signals, task.gallery, clusters, nprobe, device)
        outcome = run_task(task, engine, query_features(task, signals))
        if task.name == "category":
            outcome = with_accuracy(database, outcome, classifier)
        outcomes.append(outcome)
        if args.query_ablation and task.name in MAIN_TASKS:
            tables.append(methods_table(task, engine, signals))
            tables.append(signals_table(task, signals, database.plain))

    facts = {**_facts(database, args, nprobe, tasks), "distance": describe_distance(signals)}
    if args.json:
        print(json.dumps(as_json(facts, outcomes, tables), indent=1))
    else:
        print_figures(as_json(facts, outcomes, tables), before)
        for table in tables:
            print(f"\n{table}")
    if args.report:
        title = f"Evaluation of {database.base}"
        write_report(args.report, title, facts, outcomes, database, tables)
        print(args.report, file=sys.stderr if args.json else sys.stdout)


if __name__ == "__main__":
    run_script(main)
