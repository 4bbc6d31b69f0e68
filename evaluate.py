"""Measure the feature database by the published protocols.

--protocol inshop    every query searches the gallery for its item: Recall@K, mAP@R, MRR; also
                     the upper-body part alone, and for its item in its colour
--protocol consumer  every consumer picture searches the shop pictures for its item: the same,
                     where Recall@K is the top-K retrieval accuracy; and for each category
--protocol category  every picture of the test part searches for the others of its category: P@1,
                     P@10, mAP; and the classifier's top-1, top-3 and top-5 accuracy
--protocol folder    all, as far as the data set has them (default)

Needs the feature database and the annotation lists; the photos only for the pictures of --report.
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from config import DISTANCE
from evaluation.calibrate import calibrate
from evaluation.classifier import with_accuracy
from evaluation.protocols import (
    CONSUMER_TASK,
    MAIN_TASKS,
    PROTOCOLS,
    Outcome,
    Task,
    of_gallery,
    query_features,
    run_task,
    tasks_of,
)
from evaluation.reliability import as_searched, measure, table_of
from evaluation.report import by_category, figures_of, write_report
from evaluation.tune_weights import tune_weights
from features.database import DEEP, FeatureDatabase, open_database
from network.device import pick_device
from pictures.deepfashion import inshop_list
from search.certainty import open_calibration
from search.clusters import KMeansEngine, nprobe_of, open_clusters
from search.engine import Engine
from search.matrix import MatrixEngine
from search.signals import Signal, describe_distance, signals_of
from utils import UserError, parse_args, run_script

USES = ("DATASET_BASE", "VAL_SHARE", *DISTANCE, "NPROBE", "TARGET_RECALL", "DEVICE")


def as_json(
    facts: dict[str, Any], outcomes: Sequence[Outcome], database: FeatureDatabase
) -> dict[str, Any]:
    """The figures of the main tasks at the top level, those of all tasks below "parts"."""
    top: dict[str, Any] = {}
    parts: dict[str, Any] = {}
    for outcome in outcomes:
        task = outcome.task
        counts = {"queries": len(task.queries), "gallery": len(task.gallery)}
        figures = {name: asdict(figure) for name, figure in outcome.figures().items()}
        parts[task.name] = {**counts, "chance": outcome.chance, **figures}
        if task.name == CONSUMER_TASK:
            names = ("queries", *outcome.values)
            parts[task.name]["categories"] = {
                category: dict(zip(names, values, strict=True))
                for category, *values in by_category(outcome, database).rows
            }
        if task.name in MAIN_TASKS:
            top |= figures | top  # of several tasks the first
    return {**facts, **top, "parts": parts}


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--protocol", choices=PROTOCOLS, default="folder", help="see above (default: folder)")
    add("--engine", choices=("exact", "kmeans"), default="exact", help="default: exact")
    add("--json", action="store_true", help="print the figures as JSON")
    add("--report", type=Path, metavar="FILE", help="write them as an HTML page with pictures")
    helps = {
        "--tune-weights": (tune_weights, "find the weights of the signals"),
        "--calibrate": (calibrate, "find how distances become probabilities, and store it"),
    }
    for flag, (run, found) in helps.items():
        text = f"{found}, on the validation split, and measure nothing else"
        add(flag, action="store_const", dest="instead", const=(flag, run), help=text)


def _outcomes(
    database: FeatureDatabase,
    signals: Sequence[Signal],
    tasks: Sequence[Task],
    engine_of: Callable[[np.ndarray], Engine],
) -> tuple[list[Outcome], dict[str, Any] | None]:
    """The outcome of each task, and what `measure` says where there is a calibration."""
    outcomes, certainty = [], None
    calibration = open_calibration(database, signals)
    # Items of one benchmark compete with those of the other, too, where there are both.
    items = "item" if inshop_list(database.base) else CONSUMER_TASK
    measured = items if calibration and calibration.same == "item" else "category"
    for task in tasks:
        outcome = run_task(task, engine_of(task.gallery), query_features(task, signals))
        if calibration and task.name == measured:
            whole = as_searched(task, len(database.categories))
            certainty = measure(whole, engine_of(whole.gallery), signals, calibration)
        outcomes.append(with_accuracy(database, outcome) if task.name == "category" else outcome)
    return outcomes, certainty


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse_args(argv, __doc__ or "", USES, _arguments)
    database = open_database(config.DATASET_BASE)
    signals = signals_of(database, **config.distance)
    if args.instead:
        flag, run = args.instead
        if (args.protocol, args.engine, args.json, args.report) != ("folder", "exact", False, None):
            raise UserError(f"{flag} measures nothing else; omit the flags beside it")
        run(database, signals, config.VAL_SHARE)
        return
    device = pick_device(config.DEVICE)
    clusters = open_clusters(database) if args.engine == "kmeans" else None
    nprobe = nprobe_of(clusters, config.NPROBE, config.TARGET_RECALL) if clusters else 0

    def engine_of(gallery: np.ndarray) -> Engine:
        narrowed = of_gallery(signals, gallery)
        if clusters is None:
            return MatrixEngine(narrowed, device)
        own = replace(clusters, labels=clusters.labels[gallery])
        return KMeansEngine(narrowed, own, nprobe, fill=False)

    tasks = tasks_of(database, args.protocol, config.VAL_SHARE)
    outcomes, certainty = _outcomes(database, signals, tasks, engine_of)
    metadata = database.metadata
    facts = {
        "protocol": args.protocol,
        "engine": f"kmeans, nprobe {nprobe}" if clusters else "exact",
        "date": time.strftime("%Y-%m-%d"),
        "models": [{"file": model.file, "sha256": model.sha256} for model in metadata.models],
        "features": metadata.sha256[DEEP],
        "pictures": metadata.pictures,
        "settings": metadata.settings.model_dump(),
        "distance": describe_distance(signals),
    }
    if args.json:
        also = {"certainty": certainty} if certainty else {}
        print(json.dumps(as_json(facts, outcomes, database) | also, indent=1))
    else:
        print(f"{facts['engine']}, {facts['distance']}")
        for outcome in outcomes:
            print(f"\n{figures_of(outcome)}")
            if outcome.task.name == CONSUMER_TASK:
                print(by_category(outcome, database))
        if certainty:
            print(f"\n{table_of(certainty)}")
    if args.report:
        title = f"Evaluation of {database.base}"
        write_report(args.report, title, facts, outcomes, database, certainty)
        print(args.report, file=sys.stderr if args.json else sys.stdout)


if __name__ == "__main__":
    run_script(main)
