"""How far the probabilities of answers can be trusted, measured on test items."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import numpy as np

from evaluation.calibrate import FOUND, competing_answers
from evaluation.figures import Table
from evaluation.metrics import auroc, calibration_error, reliability
from evaluation.protocols import Task, count_relevant
from evaluation.tune_weights import spaced
from pictures.table import choose_validation
from search.certainty import Calibration, certainty_of
from search.engine import Answer, Engine
from search.signals import Signal

FIRST = 10  # answers of each query
MAX_QUERIES = 2000


def as_searched(task: Task, count: int) -> Task:
    """A task as people search: all its pictures are queries of the whole collection of `count`.

    At most `MAX_QUERIES`, which have another picture of their label.
    """
    queries = spaced(np.union1d(task.queries, task.gallery), MAX_QUERIES)
    everything = np.arange(count)
    queries = queries[count_relevant(queries, everything, task.labels) > 0]
    # The views of an item are not independent of each other.
    groups = queries if task.name == "category" else task.labels[queries]
    return replace(task, queries=queries, gallery=everything, groups=groups)


def measure(
    task: Task, engine: Engine, signals: Sequence[Signal], calibration: Calibration
) -> dict[str, Any]:
    """Measure the probabilities of a task's answers.

    Parameters
    ----------
    task : see `as_searched`; its labels are those that the calibration is of
    engine : over its gallery
    signals : of the whole collection

    Returns
    -------
    "same", "calibrated" (in words), "ece@1" and "ece@10" (expected calibration error of the first
    answers), "auroc@10" of probability and distance, "curve" (see `metrics.reliability`) and, of
    items, "open_set".
    """
    answers = competing_answers(engine, signals, task.queries, task.gallery)
    width = min(FIRST, *(len(answer.rows) for answer in answers))
    rows = np.stack([answer.rows[:width] for answer in answers])
    probabilities = np.empty(rows.shape)
    for i, answer in enumerate(answers):
        of_rows = certainty_of(calibration, answer, task.labels).of_rows
        probabilities[i] = [of_rows.get(row, 0.0) for row in rows[i].tolist()]
    distances = np.stack([answer.distances[:width] for answer in answers])
    correct = task.labels[rows] == task.labels[task.queries][:, None]
    first, ten = (
        calibration_error(probabilities[:, :k], correct[:, :k], task.groups) for k in (1, width)
    )
    scores = {"probability": probabilities, "distance": -distances}
    found = {
        "same": calibration.same,
        "calibrated": calibration.described,
        "ece@1": asdict(first),
        f"ece@{FIRST}": asdict(ten),
        f"auroc@{FIRST}": {name: auroc(score, correct) for name, score in scores.items()},
        "curve": reliability(probabilities, correct),
    }
    if calibration.present:
        found["open_set"] = _open_set(task, engine, signals, calibration)
    return found


def _open_set(
    task: Task, engine: Engine, signals: Sequence[Signal], calibration: Calibration
) -> dict[str, Any]:
    """Half of the items of the queries are taken out of the gallery: which queries are these?

    Returns
    -------
    Number of "queries" and of those whose item is "out"; "ece" of the probability that it is there;
    of "probability" and "distance" the AUROC, the share of false alarms where 95% of the items are
    found, and the shares found and of false alarms with the threshold of the validation items.
    """
    queries, groups = task.queries, task.groups
    out = choose_validation(task.labels[queries].astype(str), 0.5)
    stays = ~np.isin(task.labels[task.gallery], task.labels[queries[out]])
    places = np.flatnonzero(stays)
    answers: list[Answer] = competing_answers(engine, signals, queries, task.gallery, places=places)
    certain = [certainty_of(calibration, answer, task.labels).present for answer in answers]
    present = np.array(certain, np.float64)
    distances = np.array([answer.distances[:1].sum() for answer in answers])
    found: dict[str, Any] = {
        "queries": len(queries),
        "out": int(out.sum()),
        "ece": asdict(calibration_error(present[:, None], ~out[:, None], groups)),
    }
    limits = calibration.thresholds
    for name, score, limit in (
        ("probability", present, limits["probability"]),
        ("distance", -distances, -limits["distance"]),
    ):
        own = np.quantile(score[~out], 1 - FOUND, method="lower")
        found[name] = {
            "auroc": auroc(score, ~out),
            "false_alarms": float((score[out] >= own).mean()),
            "threshold_found": float((score[~out] >= limit).mean()),
            "threshold_false_alarms": float((score[out] >= limit).mean()),
        }
    return found


def table_of(found: dict[str, Any]) -> Table:
    """What `measure` has found, for the terminal and the report."""
    rows: list[tuple[object, ...]] = [
        ("calibration error, first answer", *found["ece@1"].values()),
        (f"calibration error, first {FIRST}", *found[f"ece@{FIRST}"].values()),
    ]
    rows += [(f"AUROC of the {name}", v, None) for name, v in found[f"auroc@{FIRST}"].items()]
    note = ""
    if sets := found.get("open_set"):
        note = f"open set: half of the items taken out, of {sets['out']:,} of {sets['queries']:,}"
        note += " queries; fixed: the threshold that finds 95% of the validation queries"
        rows.append(("open set: calibration error", *sets["ece"].values()))
        heads = ("AUROC", "false alarms at 95% found", "found at fixed", "false alarms at fixed")
        for name in ("probability", "distance"):
            values = zip(heads, sets[name].values(), strict=True)
            rows += [(f"open set, {name}: {head}", value, None) for head, value in values]
    title = f"probability of the same {found['same']}, {found['calibrated']}"
    formats = ("{}", "{:.3f}", "{:.3f} to {:.3f}")
    return Table(title, note, ("", "value", "95% interval"), rows, formats)
