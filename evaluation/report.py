"""The tables of an evaluation, and its report: curves, confusions, the hardest queries.

The file needs no network, no script and, once written, no photo. Its layout is in report.html.
"""

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from sklearn.metrics import confusion_matrix

from evaluation.figures import Table
from evaluation.metrics import bootstrap_means
from evaluation.protocols import Outcome
from evaluation.reliability import table_of
from features.database import FeatureDatabase
from pictures.decode import PictureError, read_picture
from pictures.folder import picture_file
from utils import atomic_write

MAX_RANKS = 50  # of the recall curve
MAX_HARDEST, MAX_TILES = 12, 5  # hardest queries, and answers of each
THUMBNAIL, QUALITY = 160, 80  # px of the longer side, JPEG
AT_CHANCE = ("p@1", "recall@1")  # whose expected value of a random order is shown


def write_report(
    path: Path,
    title: str,
    facts: dict[str, Any],
    outcomes: Sequence[Outcome],
    database: FeatureDatabase,
    certainty: dict[str, Any] | None = None,
) -> None:
    """Write an evaluation as one HTML file.

    Parameters
    ----------
    path : the file, replaced when the new one is complete
    title : heading of the page
    facts : what was measured and how: names and plain values, shown at the top
    outcomes : one for each task
    database : of the outcomes' rows; its photos may be missing
    certainty : what `reliability.measure` has found
    """
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined)
    environment.trim_blocks = environment.lstrip_blocks = True
    page = environment.get_template("report.html").render(
        title=title,
        facts={name: _fact(value) for name, value in facts.items()},
        tasks=[_section(outcome, database) for outcome in outcomes],
        sure=certainty and {"table": table_of(certainty), "curve": certainty["curve"]},
    )
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8", errors="replace")


def _fact(value: object) -> str:
    """A value of JSON as text; of a SHA-256 its first digits."""
    if isinstance(value, list):
        return "; ".join(map(_fact, value))
    if isinstance(value, dict):
        names = {name: "" if name in ("file", "sha256") else f"{name}: " for name in value}
        return ", ".join(names[name] + _fact(entry) for name, entry in value.items())
    text = str(value)
    return f"SHA-256 {text[:16]}" if re.fullmatch("[0-9a-f]{64}", text) else text


def _section(outcome: Outcome, database: FeatureDatabase) -> dict[str, Any]:
    """What the page shows of a task."""
    return {
        "name": outcome.task.name,
        "figures": figures_of(outcome),
        "curve": recall_curve(outcome),
        "categories": by_category(outcome, database),
        "confusion": confusion(outcome, database),
        "hardest": [_query(outcome, place, database) for place in hardest(outcome)],
    }


def figures_of(outcome: Outcome) -> Table:
    """The mean of each metric with its interval."""
    task = outcome.task
    rows = [
        (name, figure.value, figure.ci95, outcome.chance if name in AT_CHANCE else None)
        for name, figure in outcome.figures().items()
    ]
    title = (
        f"same {task.name}: {len(task.queries):,} queries,"
        f" {len(task.gallery):,} pictures in the gallery"
    )
    formats = ("{}", "{:.2%}", "{:.2%} to {:.2%}", "{:.2%}")
    return Table(title, "", ("", "value", "95% interval", "chance"), rows, formats)


def recall_curve(outcome: Outcome) -> list[tuple[int, float, float, float]]:
    """Share of queries with a correct answer among the first K, for K = 1 to `MAX_RANKS`.

    Of each K, up to the size of the gallery: K, the share, and the lower and upper end of its 95%
    bootstrap interval, in percent.
    """
    ranks = np.arange(1, min(MAX_RANKS, len(outcome.task.gallery)) + 1)
    first = outcome.first[:, None]
    found = ((first > 0) & (first <= ranks)).astype(np.float64)
    means = bootstrap_means(found, outcome.task.groups)
    low, high = np.percentile(means, [2.5, 97.5], axis=0)
    shares = 100 * np.stack([found.mean(axis=0), low, high], axis=1)
    return [(k, *share) for k, share in zip(ranks.tolist(), shares.tolist(), strict=True)]


def _categories(numbers: np.ndarray) -> list[int]:
    """Each category once, ascending; then -1, unknown."""
    return sorted(np.unique(numbers).tolist(), key=lambda number: (number < 0, number))


def _category_names(database: FeatureDatabase) -> list[str]:
    """By their numbers, with that of -1 at the end."""
    return [*database.category_names, "unknown"]


def by_category(outcome: Outcome, database: FeatureDatabase) -> Table:
    """The mean of each metric by category of the query, worst first."""
    queried = database.categories[outcome.task.queries]
    names = _category_names(database)
    rows: list[list[Any]] = []
    for number in _categories(queried):
        chosen = queried == number
        means = [float(value[chosen].mean()) for value in outcome.values.values()]
        rows.append([names[number], int(chosen.sum()), *means])
    rows.sort(key=lambda row: row[2])
    header = ["category", "queries", *outcome.values]
    formats = ["{}", "{:,}", *["{:.1%}"] * len(outcome.values)]
    return Table("By category", "", header, rows, formats)


def confusion(outcome: Outcome, database: FeatureDatabase) -> dict[str, Any] | None:
    """How often queries of a category got a first answer of each category; unknown: or none.

    "columns" are the queries' categories, then further ones of first answers; "rows" of each
    category of the queries its name and its counts. None where there are not two to confuse.
    """
    queried = database.categories[outcome.task.queries]
    best = outcome.answers[:, 0]
    answered = np.where(best >= 0, database.categories[best], -1)
    rows = _categories(queried)
    columns = rows + [number for number in _categories(answered) if number not in rows]
    if sum(number >= 0 for number in columns) < 2:
        return None
    names = [_category_names(database)[number] for number in columns]
    counts = confusion_matrix(queried, answered, labels=columns).tolist()
    return {"columns": names, "rows": list(zip(names, counts[: len(rows)], strict=False))}


def hardest(outcome: Outcome) -> list[int]:
    """Places of the queries whose first correct answer came last, worst first, one of each group.

    Up to `MAX_HARDEST`; queries without a correct answer come first.
    """
    rank = np.where(outcome.first > 0, outcome.first, np.iinfo(np.int64).max)
    chosen: dict[object, int] = {}
    for place in np.argsort(-rank, kind="stable").tolist():
        chosen.setdefault(outcome.task.groups[place].item(), place)
    return list(chosen.values())[:MAX_HARDEST]


def _query(outcome: Outcome, place: int, database: FeatureDatabase) -> dict[str, Any]:
    """A query and its first answers, as pictures with captions."""
    task = outcome.task
    query, rank = int(task.queries[place]), int(outcome.first[place])
    if not task.relevant[place]:
        result = "No correct picture in the gallery"
    elif rank:
        result = f"First correct answer at rank {rank:,}"
    else:
        result = "No correct answer found"
    tiles = [_tile(database, query, "query", "Query")]
    answers = outcome.answers[place, :MAX_TILES]
    for i, row in enumerate(answers[answers >= 0].tolist(), start=1):
        correct = task.labels[row] == task.labels[query]
        kind, mark = ("correct", "✓") if correct else ("wrong", "✗")
        tiles.append(_tile(database, row, kind, f"{i} {mark} {kind}"))
    return {"result": result, "path": database.paths[query], "tiles": tiles}


def _tile(database: FeatureDatabase, row: int, kind: str, caption: str) -> dict[str, Any]:
    return {
        "kind": kind,
        "caption": caption,
        "photo": _thumbnail(database.base, database.paths[row]),
        "category": database.category(row) or "unknown",
        "path": database.paths[row],
    }


def _thumbnail(base: Path, path: str) -> str | None:
    """A small JPEG of a photo, as a data URI; None where the photo is missing or damaged."""
    try:
        picture = read_picture(picture_file(base, path), truncated=True)
    except PictureError:
        return None
    picture.thumbnail((THUMBNAIL, THUMBNAIL))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
