"""Measure the feature database by the published protocols.

--protocol inshop    every query asks the gallery for its item: Recall@K, mAP@R, MRR; also the
                     upper-body part alone, and for its item in its colour
--protocol category  every picture of the test part asks for the others of its category: P@1,
                     P@10, mAP; and the classifier's top-1, top-3 and top-5 accuracy
--protocol folder    both, as far as the data set has them (default)

Needs the feature database and the annotation lists; the photos only for the pictures of --report.
"""

import argparse
import hashlib
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from config import DISTANCE
from evaluation.metrics import top_k_metrics
from evaluation.protocols import (
    Outcome,
    Task,
    category_task,
    gallery_engine,
    item_tasks,
    of_gallery,
    query_features,
    run_task,
)
from evaluation.query_ablation import gains_table, signals_table
from evaluation.report import Table, write_report
from evaluation.tune_weights import fit_weights
from features.arrays import read_archive
from features.database import CLASSIFIER, CLASSIFIER_FORMS, DEEP, FeatureDatabase, open_database
from pictures.annotations import align, inshop_list, read_inshop
from search.clusters import Clusters, KMeansEngine, nprobe_of, open_clusters
from search.engine import Engine
from search.signals import Signal, describe_distance, signals_of
from utils import UserError, parse_args, parsed_json, run_script

MAIN = ("category", "item")  # tasks; the others are parts of them
PROTOCOLS = ("inshop", "category", "folder")


def tasks_of(
    database: FeatureDatabase, protocol: str, val_share: float, partition: str | None
) -> list[Task]:
    """The tasks of a protocol, the main one first.

    Raises
    ------
    UserError : there is nothing to ask with
    """
    base = database.base
    tasks: list[Task] = []
    if protocol != "inshop":
        task = category_task(database, val_share, partition)
        tasks += [task] if task else []
    if protocol == "inshop" or (protocol == "folder" and inshop_list(base)):
        tasks += item_tasks(database)
    if not tasks:
        advice = unextracted(database) or "see `python data.py check`"
        raise UserError(
            f"{base}: the feature database holds nothing that --protocol {protocol} could ask;"
            f" {advice}"
        )
    return tasks


def unextracted(database: FeatureDatabase) -> str:
    """What to do where none of the in-shop queries and gallery is in the database; "" elsewhere."""
    if inshop_list(database.base) is None:
        return ""
    measured = read_inshop(database.base).in_partition("query", "gallery")
    if not len(measured) or (align(measured.paths, database.paths) >= 0).any():
        return ""
    return (
        "its in-shop pictures were not extracted; run: python feature_extractor.py"
        f" --dataset-base {database.base} --enable-inshop-dataset"
    )


def engine_of(
    kind: str,
    signals: Sequence[Signal],
    gallery: np.ndarray,
    clusters: Clusters | None,
    nprobe: int,
) -> Engine:
    """An engine over a gallery, exact or k-means with `nprobe` of the database's clusters."""
    if kind == "exact" or clusters is None:
        return gallery_engine(signals, gallery)
    return KMeansEngine(
        of_gallery(signals, gallery), replace(clusters, labels=clusters.labels[gallery]), nprobe
    )


def read_classifier(database: FeatureDatabase) -> tuple[np.ndarray, np.ndarray]:
    """The weight, K x D, and bias, K, of the first model's classifier.

    Raises
    ------
    UserError : it belongs to other features
    """
    path = database.base / CLASSIFIER
    weight, bias = read_archive(path, CLASSIFIER_FORMS).values()
    logits = len(database.metadata.models[0].network.categories)
    if weight.shape != (logits, database.deep[0].shape[1]) or bias.shape != (logits,):
        raise UserError(
            f"{path}: not the classifier of these features; run: python feature_extractor.py"
            f" --dataset-base {database.base}"
        )
    return weight, bias


def with_classifier(
    database: FeatureDatabase, outcome: Outcome, classifier: tuple[np.ndarray, np.ndarray]
) -> Outcome:
    """The outcome with the top-1, top-3 and top-5 accuracy of the first model's classifier.

    The logits are made from the stored embeddings. A category that the classifier was not trained
    on counts as wrong; where it was trained on none that is asked, it has no accuracy.

    Parameters
    ----------
    database, outcome : of a task by category
    classifier : see `read_classifier`
    """
    rows = outcome.task.queries
    trained = database.metadata.models[0].network.categories
    number = {name: i for i, name in enumerate(trained)}
    targets = np.array([number.get(database.category(row), -1) for row in rows.tolist()])
    if (targets < 0).all():
        return outcome
    weight, bias = classifier
    logits = database.deep[0][rows] @ weight.T + bias
    return replace(outcome, values={**outcome.values, **top_k_metrics(logits, targets)})


def as_json(
    facts: dict[str, Any], outcomes: Sequence[Outcome], tables: Sequence[Table]
) -> dict[str, Any]:
    """The figures of the main tasks at the top level, those of all tasks below "parts"."""
    parts: dict[str, Any] = {}
    top: dict[str, Any] = {}
    for outcome in outcomes:
        task = outcome.task
        counts = {"queries": len(task.queries), "gallery": len(task.gallery)}
        cells = {name: figure.as_json() for name, figure in outcome.figures().items()}
        parts[task.name] = {**counts, "chance": outcome.chance, **cells}
        if task.name in MAIN:
            top |= cells
    gains = {"gains": [table.as_json() for table in tables]} if tables else {}
    return {**facts, **top, "parts": parts, **gains}


def print_table(record: dict[str, Any], before: dict[str, Any] | None) -> None:
    """The figures in percent with their intervals, beside earlier ones where there are any."""
    print(f"{record['engine']}, {record['distance']}")
    other = _other_data(record, before) if before else []
    if other:
        print(f"the earlier figures ({', '.join(other)}) are of other queries or another gallery")
    for name, part in record["parts"].items():
        print(f"\nright {name}: {part['queries']:,} queries, {part['gallery']:,} in the gallery")
        old = (before or {}).get("parts", {}).get(name, {})
        head = f"  {'':<12}{'before':>9}" if before else f"  {'':<12}"
        print(f"{head}{'now':>9}{'95% interval':>19}{'chance':>9}")
        for key, figure in part.items():
            if not isinstance(figure, dict):
                continue
            was = f"{old[key]['value']:9.2%}" if _is_figure(old.get(key)) else " " * 9
            low, high = figure["ci95"]
            chance = f"{part['chance']:9.2%}" if key in {"p@1", "recall@1"} else ""
            print(
                f"  {key:<12}{was if before else ''}{figure['value']:9.2%}"
                f"{f'{low:.2%} to {high:.2%}':>19}{chance}"
            )


def _other_data(record: dict[str, Any], before: dict[str, Any]) -> list[str]:
    """The tasks that both records have, but not of the same pictures and labels."""
    earlier, data = before.get("data"), record["data"]
    known = earlier if isinstance(earlier, dict) else {}
    return [name for name in data if name in before["parts"] and known.get(name) != data[name]]


def print_plain(table: Table) -> None:
    """A table of the report on the terminal."""
    rows = [list(table.header), *table.shown()]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print(f"\n{table.title}")
    for row in rows:
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  " + "  ".join([row[0].ljust(widths[0]), *cells]))
    if table.note:
        print(f"  {table.note}")


USES = ("DATASET_BASE", "VAL_SHARE", *DISTANCE, "NPROBE", "TARGET_RECALL")


def _arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--protocol", choices=PROTOCOLS, default="folder", help="see above (default: folder)")
    add("--engine", choices=("exact", "kmeans"), default="exact", help="default: exact")
    add(
        "--partition",
        choices=("train", "val", "test", "all"),
        help="of the category protocol (default: test, or val where there is no test part)",
    )
    add("--json", action="store_true", help="print the figures as JSON")
    add("--report", type=Path, metavar="FILE", help="write them as an HTML page with pictures")
    add(
        "--against",
        type=Path,
        metavar="FILE",
        help="show earlier figures beside these, from a file that --json was written to",
    )
    add("--gains", action="store_true", help="measure every query-time gain and every signal, too")
    add(
        "--fit-weights",
        action="store_true",
        help="find the weights of the signals on held-out training pictures, and nothing else",
    )


def _refuse_beside_fit(args: argparse.Namespace) -> None:
    """Name the first flag that --fit-weights would have to ignore."""
    ignored = {
        "--protocol": args.protocol != "folder",
        "--engine kmeans": args.engine == "kmeans",
        "--partition": args.partition,
        "--json": args.json,
        "--report": args.report,
        "--against": args.against,
        "--gains": args.gains,
    }
    flag = next((flag for flag, given in ignored.items() if given), None)
    if flag:
        raise UserError(f"{flag}: --fit-weights measures nothing else; leave {flag} away")


def _is_figure(value: object) -> bool:
    return isinstance(value, dict) and isinstance(value.get("value"), float)


def _earlier(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        record = parsed_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise UserError(f"--against {path}: {error}") from None
    parts = record.get("parts") if isinstance(record, dict) else None
    if not isinstance(parts, dict) or not all(isinstance(part, dict) for part in parts.values()):
        raise UserError(f"--against {path}: not written by evaluate.py --json")
    return record


def _facts(database: FeatureDatabase, args: argparse.Namespace, nprobe: int) -> dict[str, Any]:
    """What was measured, and with which model and data: for JSON and the report."""
    metadata = database.metadata
    return {
        "protocol": args.protocol,
        "engine": args.engine if args.engine == "exact" else f"kmeans, nprobe {nprobe}",
        "date": time.strftime("%Y-%m-%d"),
        "models": [{"file": m.file, "sha256": m.sha256} for m in metadata.models],
        "features": metadata.sha256[DEEP],
        "pictures": metadata.pictures,
        "settings": metadata.settings.model_dump(),
    }


def _digest(database: FeatureDatabase, task: Task) -> str:
    """SHA-256 of what is asked and of what is right, whatever the features are."""
    digest = hashlib.sha256()
    for rows in (task.queries, task.gallery):
        lines = [f"{database.paths[row]} {task.labels[row]}" for row in rows.tolist()]
        digest.update("\n".join([task.name, *lines, ""]).encode())
    return digest.hexdigest()


def _shown(facts: dict[str, Any]) -> list[tuple[str, str]]:
    """The facts in words, for the report."""
    shown = []
    for name, value in facts.items():
        if name == "models":
            value = "; ".join(f"{model['file']}, SHA-256 {model['sha256']}" for model in value)
        elif name == "settings":
            value = ", ".join(f"{key} {setting}" for key, setting in value.items())
        elif name == "data":
            value = "; ".join(f"{task}, SHA-256 {digest}" for task, digest in value.items())
        elif name == "features":
            value = f"SHA-256 {value}"
        shown.append((name, str(value)))
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse_args(argv, __doc__ or "", USES, _arguments)
    if args.fit_weights:
        _refuse_beside_fit(args)
    if args.json and args.against:
        raise UserError("--against: --json shows no earlier figures; leave one of the two away")
    before = _earlier(args.against)
    database = open_database(config.DATASET_BASE)
    signals = signals_of(database, **config.distance)
    if args.fit_weights:
        fit_weights(database, signals, config.VAL_SHARE)
        return
    clusters = open_clusters(database) if args.engine == "kmeans" else None
    nprobe = nprobe_of(clusters, config.NPROBE, config.TARGET_RECALL) if clusters else 0
    classifier = read_classifier(database)
    outcomes, tables = [], []
    tasks = tasks_of(database, args.protocol, config.VAL_SHARE, args.partition)
    advice = unextracted(database) if args.protocol == "folder" else ""
    if advice:
        print(f"by category only: {advice}", file=sys.stderr)
    for task in tasks:
        engine = engine_of(args.engine, signals, task.gallery, clusters, nprobe)
        outcome = run_task(task, engine, query_features(task, signals))
        by_category = task.name == "category"
        outcomes.append(with_classifier(database, outcome, classifier) if by_category else outcome)
        if args.gains and task.name in MAIN:
            tables += [
                gains_table(task, engine, signals),
                signals_table(task, signals, database.plain),
            ]
    facts = {
        **_facts(database, args, nprobe),
        "data": {task.name: _digest(database, task) for task in tasks},
        "distance": describe_distance(signals),
    }
    record = as_json(facts, outcomes, tables)
    if args.json:
        print(json.dumps(record, indent=1))
    else:
        print_table(record, before)
        for table in tables:
            print_plain(table)
    if args.report:
        title = f"Evaluation of {database.base}"
        write_report(args.report, title, _shown(facts), outcomes, database, tables)
        print(args.report, file=sys.stderr if args.json else sys.stdout)


if __name__ == "__main__":
    run_script(main)
