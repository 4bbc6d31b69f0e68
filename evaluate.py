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

from annotations import inshop_list
from clusters import Clusters, KMeansEngine, open_clusters
from command_line import parse_args
from config import Config
from fit import fit_weights
from gains import gains_table, signals_table
from index import (
    CLASSIFIER,
    DEEP,
    Engine,
    ExactEngine,
    FeatureDatabase,
    Signal,
    describe_distance,
    open_database,
    signals_of,
)
from measures import top_k_measures
from protocols import (
    Outcome,
    Task,
    category_task,
    item_tasks,
    of_gallery,
    query_features,
    run_task,
)
from report import Table, write_report
from utils import UserError, run_script, sha256_of

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
        task = category_task(database, base, val_share, partition)
        tasks += [task] if task else []
    if protocol == "inshop" or (protocol == "folder" and inshop_list(base)):
        tasks += item_tasks(database, base)
    if not tasks:
        raise UserError(
            f"{base}: the feature database holds nothing that --protocol {protocol} could ask;"
            " see `python data.py check`"
        )
    return tasks


def engine_of(
    kind: str,
    signals: Sequence[Signal],
    gallery: np.ndarray,
    clusters: Clusters | None,
    nprobe: int,
) -> Engine:
    """An engine over a gallery, exact or k-means with `nprobe` of the database's clusters."""
    narrowed = of_gallery(signals, gallery)
    if kind == "exact" or clusters is None:
        return ExactEngine(narrowed)
    return KMeansEngine(narrowed, replace(clusters, labels=clusters.labels[gallery]), nprobe)


def with_classifier(database: FeatureDatabase, outcome: Outcome) -> Outcome:
    """The outcome with the top-1, top-3 and top-5 accuracy of the first model's classifier.

    The logits are made from the stored embeddings. A category that the classifier was not trained
    on counts as wrong.
    """
    rows = outcome.task.queries
    with np.load(database.base / CLASSIFIER, allow_pickle=False) as file:
        logits = database.deep[0][rows] @ file["weight"].T + file["bias"]
    trained = database.info["models"][0]["network"]["categories"]
    number = {name: i for i, name in enumerate(trained)}
    targets = np.array([number.get(database.category(row), -1) for row in rows.tolist()])
    return replace(outcome, values={**outcome.values, **top_k_measures(logits, targets)})


def as_json(facts: dict[str, Any], outcomes: Sequence[Outcome]) -> dict[str, Any]:
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
    return {**facts, **top, "parts": parts}


def print_table(record: dict[str, Any], before: dict[str, Any] | None) -> None:
    """The figures in percent with their intervals, beside earlier ones where there are any."""
    print(f"{record['engine']}, {record['distance']}")
    for name, part in record["parts"].items():
        print(f"\nright {name}: {part['queries']:,} queries, {part['gallery']:,} in the gallery")
        old = (before or {}).get("parts", {}).get(name, {})
        head = f"  {'':<12}{'before':>9}" if before else f"  {'':<12}"
        print(f"{head}{'now':>9}{'95% interval':>19}{'chance':>9}")
        for key, figure in part.items():
            if not isinstance(figure, dict):
                continue
            was = f"{old[key]['value']:9.2%}" if key in old else " " * 9
            low, high = figure["ci95"]
            chance = f"{part['chance']:9.2%}" if key in {"p@1", "recall@1"} else ""
            print(
                f"  {key:<12}{was if before else ''}{figure['value']:9.2%}"
                f"{f'{low:.2%} to {high:.2%}':>19}{chance}"
            )


def print_plain(table: Table) -> None:
    """A table of the report on the terminal."""
    widths = [max(map(len, column)) for column in zip(table.header, *table.rows, strict=True)]
    print(f"\n{table.title}")
    for row in (table.header, *table.rows):
        cells = [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        print("  " + "  ".join([row[0].ljust(widths[0]), *cells]))
    if table.note:
        print(f"  {table.note}")


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


def _earlier(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        record = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"--against {path}: {error}") from None
    if not isinstance(record, dict) or "parts" not in record:
        raise UserError(f"--against {path}: not written by evaluate.py --json")
    return record


def _facts(config: Config, database: FeatureDatabase, args: argparse.Namespace) -> dict[str, Any]:
    """What was measured, and with which model and data: for JSON and the report."""
    info = database.info
    return {
        "protocol": args.protocol,
        "engine": args.engine if args.engine == "exact" else f"kmeans, nprobe {config.NPROBE}",
        "date": time.strftime("%Y-%m-%d"),
        "models": [{key: m[key] for key in ("file", "sha256")} for m in info["models"]],
        "features": sha256_of(database.base / DEEP),
        "pictures": info["pictures"],
        "settings": info["settings"],
    }


def _digest(database: FeatureDatabase, tasks: Sequence[Task]) -> str:
    """SHA-256 of what is asked and of what is right, whatever the features are."""
    digest = hashlib.sha256()
    for task in tasks:
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
        elif name in {"features", "data"}:
            value = f"SHA-256 {value}"
        shown.append((name, str(value)))
    return shown


def main(argv: Sequence[str] | None = None) -> None:
    config, args = parse_args(argv, __doc__ or "", ("data set", "ranking"), _arguments)
    before = _earlier(args.against)
    database = open_database(config.DATASET_BASE)
    signals = signals_of(database, **config.distance)
    if args.fit_weights:
        fit_weights(database, signals, config.VAL_SHARE)
        return
    clusters = open_clusters(database) if args.engine == "kmeans" else None
    outcomes, tables = [], []
    tasks = tasks_of(database, args.protocol, config.VAL_SHARE, args.partition)
    for task in tasks:
        engine = engine_of(args.engine, signals, task.gallery, clusters, config.NPROBE)
        outcome = run_task(task, engine, query_features(task, signals))
        by_category = task.name == "category"
        outcomes.append(with_classifier(database, outcome) if by_category else outcome)
        if args.gains and task.name in MAIN:
            tables += [
                gains_table(outcome, engine, signals, database.plain),
                signals_table(task, signals),
            ]
    facts = {
        **_facts(config, database, args),
        "data": _digest(database, tasks),
        "distance": describe_distance(signals),
    }
    record = as_json(facts, outcomes)
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
