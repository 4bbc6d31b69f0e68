"""An evaluation as one HTML file: figures, curves, confusions and the queries that went worst.

The file needs nothing beside it: no network, no script, no photo once it is written.
"""

import base64
import io
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path, PurePosixPath

import numpy as np

from evaluation.charts import category_name, draw_confusion, draw_curve, in_order, scrolled
from evaluation.metrics import Figure
from evaluation.protocols import Outcome
from features.database import FeatureDatabase
from pictures.collection import picture_file
from pictures.decode import PictureError, read_picture
from utils import atomic_write

HARDEST = 12  # queries shown as pictures
ANSWERS = 5  # of each of those
THUMB, QUALITY = 160, 80  # px of the longer side, JPEG

NAMES = {"map": "mAP", "map@r": "mAP@R", "mrr": "MRR"}
CHANCE_OF = {"p@1", "recall@1"}  # what `Outcome.chance` belongs to


@dataclass(frozen=True)
class Table:
    """A table shown below the tasks.

    Attributes
    ----------
    title, note : above it; the note may be empty
    header : of each column
    rows : as many cells each, plain values: text, a number, two numbers, or None for an empty
        cell; the first one names its row
    formats : of each column, how `str.format` shows its values
    """

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    formats: Sequence[str]

    def shown(self) -> list[list[str]]:
        """The rows as text."""
        return [
            [_shown(cell, form) for cell, form in zip(row, self.formats, strict=True)]
            for row in self.rows
        ]

    def as_json(self) -> dict[str, object]:
        """The table as plain values."""
        return {name: getattr(self, name) for name in ("title", "note", "header", "rows")}


def _shown(cell: object, form: str) -> str:
    if cell is None:
        return ""
    return form.format(*cell) if isinstance(cell, tuple) else form.format(cell)


def write_report(
    path: Path,
    title: str,
    facts: Sequence[tuple[str, str]],
    outcomes: Sequence[Outcome],
    database: FeatureDatabase,
    tables: Sequence[Table],
) -> None:
    """Write an evaluation as one HTML file.

    Parameters
    ----------
    path : the file, replaced when the new one is whole
    title : heading of the page
    facts : names and values of what was measured and how, shown at the top
    outcomes : one for each task
    database : what the outcomes' rows belong to; its photos may be missing
    tables : shown at the end
    """
    figures = [outcome.figures() for outcome in outcomes]
    parts = [f"<h1>{escape(title)}</h1>", _facts(facts)]
    if len(outcomes) > 1:
        parts.append(_overview(outcomes, figures))
    for i, outcome in enumerate(outcomes):
        parts.append(_task(f"task-{i + 1}", outcome, figures[i], database))
    parts += map(_plain, tables)
    page = PAGE.format(title=escape(title), style=STYLE, body="\n".join(parts))
    with atomic_write(path) as part:
        part.write_text(page, encoding="utf-8", errors="replace")


def hardest(outcome: Outcome, most: int = HARDEST) -> list[int]:
    """Places of the queries whose first right answer came last, worst first, one of each group."""
    rank = np.where(outcome.first > 0, outcome.first, np.iinfo(np.int64).max)
    chosen: dict[object, int] = {}
    for place in np.argsort(-rank, kind="stable").tolist():
        chosen.setdefault(outcome.task.groups[place].item(), place)
        if len(chosen) == most:
            break
    return list(chosen.values())


def _label(measure: str) -> str:
    return escape(NAMES.get(measure, measure.capitalize()))


def _interval(figure: Figure) -> str:
    return f"{100 * figure.ci95[0]:.1f} to {figure.ci95[1]:.1%}"


def _table(name: str, header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of ready HTML; columns of numbers stand at the right."""
    number = re.compile(r"(<[^>]*>)*(&lt;|[-+−±])?\d|$")
    columns = zip(header, *rows, strict=True)
    kinds = [' class="n"' if all(map(number.match, c[1:])) else "" for c in columns]
    head = [f'<th scope="col"{k}>{cell}</th>' for k, cell in zip(kinds, header, strict=True)]
    lines = [head]
    for first, *others in rows:
        cells = [f"<td{k}>{cell}</td>" for k, cell in zip(kinds[1:], others, strict=True)]
        lines.append([f'<th scope="row">{first}</th>', *cells])
    top, *body = ["<tr>" + "".join(line) + "</tr>" for line in lines]
    table = f"<table><thead>{top}</thead><tbody>{''.join(body)}</tbody></table>"
    return scrolled(name, table)


def _plain(table: Table) -> str:
    header, *rows = [[escape(cell) for cell in row] for row in (table.header, *table.shown())]
    note = f"<p>{escape(table.note)}</p>" if table.note else ""
    return f"<h2>{escape(table.title)}</h2>{note}{_table(table.title, header, rows)}"


def _facts(facts: Iterable[tuple[str, str]]) -> str:
    lines = "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts)
    return f"<dl>{lines}</dl>" if lines else ""


def _overview(outcomes: Sequence[Outcome], figures: Sequence[dict[str, Figure]]) -> str:
    rows = []
    for i, outcome in enumerate(outcomes):
        name, figure = next(iter(figures[i].items()))
        link = f'<a href="#task-{i + 1}">{escape(outcome.task.name.capitalize())}</a>'
        rows.append([link, _label(name), f"{figure.value:.1%}", _interval(figure)])
    header = ["Right is the same", "Measure", "Value", "95% interval"]
    return f"<h2>Overview</h2>{_table('Overview', header, rows)}"


def _task(
    anchor: str, outcome: Outcome, figures: dict[str, Figure], database: FeatureDatabase
) -> str:
    task, groups = outcome.task, len(np.unique(outcome.task.groups))
    of_items = f" of {groups:,} items" if groups < len(task.queries) else ""
    rows = []
    for name, figure in figures.items():
        chance = f"{outcome.chance:.1%}" if name in CHANCE_OF else ""
        rows.append([_label(name), f"{figure.value:.1%}", _interval(figure), chance])
    table = _table("Figures", ["Measure", "Value", "95% interval", "Chance"], rows)
    return f"""<h2 id="{anchor}">{escape(task.name.capitalize())}</h2>
<p>{len(task.queries):,} queries{of_items}, {len(task.gallery):,} pictures in the gallery.</p>
<div class="pair"><div><h3>Figures</h3>{table}</div>
<div><h3>Recall curve</h3>{draw_curve(outcome)}</div></div>
<h3>By category of the query, worst first</h3>
{_categories(outcome, database)}
{draw_confusion(outcome, database)}
<h3>Hardest queries</h3>
<ol>{_hardest(outcome, database)}</ol>"""


def _categories(outcome: Outcome, database: FeatureDatabase) -> str:
    """Each measure's mean by category, with a bar for the first measure."""
    asked = database.categories[outcome.task.queries]
    lines = []
    for number in in_order(asked):
        means = [float(value[asked == number].mean()) for value in outcome.values.values()]
        lines.append((means, category_name(number, database), int((asked == number).sum())))
    rows = []
    for means, name, count in sorted(lines, key=lambda line: line[0][0]):
        bar = f'<span class="bar"><i style="width:{means[0]:.1%}"></i></span>'
        main, *others = [f"{mean:.1%}" for mean in means]
        rows.append([escape(name), f"{count:,}", f"{bar}<span>{main}</span>", *others])
    return _table("By category", ["Category", "Queries", *map(_label, outcome.values)], rows)


def _hardest(outcome: Outcome, database: FeatureDatabase) -> str:
    task, items = outcome.task, []
    for place in hardest(outcome):
        query, rank = int(task.queries[place]), int(outcome.first[place])
        right = task.labels == task.labels[query]
        said = f"First right answer at rank {rank:,}" if rank else "No right answer found"
        if not right[task.gallery[task.gallery != query]].any():
            said = "No right picture in the gallery"
        tiles = [_tile(database, query, "query", "Query")]
        shown = outcome.answers[place, :ANSWERS]
        for i, row in enumerate(shown[shown >= 0].tolist(), start=1):
            kind, mark = ("right", "✓") if right[row] else ("wrong", "✗")
            tiles.append(_tile(database, row, kind, f"{i} {mark} {kind}"))
        said += f"</b><small>{escape(database.paths[query])}</small>"
        items.append(f'<li><p><b>{said}</p><div class="tiles">{"".join(tiles)}</div></li>')
    return "\n".join(items)


def _tile(database: FeatureDatabase, row: int, kind: str, caption: str) -> str:
    path = database.paths[row]
    try:
        thumbnail = _thumbnail(picture_file(database.base, path))
        photo = f'<img src="{thumbnail}" alt="{escape(path)}">'
    except PictureError:
        photo = '<span class="gone">no photo</span>'
    category = escape(category_name(int(database.categories[row]), database))
    name = f'<span title="{escape(path)}">{escape(PurePosixPath(path).name)}</span>'
    below = f"<figcaption><b>{caption}</b><span>{category}</span>{name}</figcaption>"
    return f'<figure class="{kind}">{photo}{below}</figure>'


def _thumbnail(path: Path) -> str:
    """A small JPEG of a photo, as a data URI."""
    picture = read_picture(path)
    picture.thumbnail((THUMB, THUMB))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


PAGE = """<!DOCTYPE html>
<html lang="en-GB">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body><main>
{body}
<h2>How to read the figures</h2>
<p>Recall@K: share of queries with a right answer among the first K. P@K: share of right ones among
the first K answers. mAP: mean average precision of the whole ranking; mAP@R: up to rank R, the
number of right pictures. MRR: mean of 1 / rank of the first right answer. Intervals are 95%
bootstrap intervals; queries of one item are drawn together.</p>
</main></body>
</html>
"""

STYLE = """
:root { --paper: #fff; --ink: #1d1d1f; --pale: #5f6168; --line: #dddee3; --soft: #eeeff2;
  --accent: #1f5fbf; --warm: #c2570c; --good: #14783c; --bad: #b3261e; }
@media screen and (prefers-color-scheme: dark) { :root { --paper: #15171b; --ink: #e6e6e9;
  --pale: #a0a3ab; --line: #33363e; --soft: #24272d; --accent: #6ea8fe; --warm: #f0a05a;
  --good: #4cc38a; --bad: #ff7b72; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--paper); color: var(--ink); print-color-adjust: exact;
  font: 16px/1.5 system-ui, sans-serif; }
main { max-width: 68rem; margin: 0 auto; padding: 2rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; letter-spacing: -0.02em; margin: 0 0 1rem; }
h2 { font-size: 1.4rem; letter-spacing: -0.01em; margin: 3.5rem 0 0.5rem; }
h3 { font-size: 1.05rem; margin: 2rem 0 0.5rem; }
p { margin: 0 0 0.75rem; max-width: 44rem; color: var(--pale); }
a { color: var(--accent); }
small { display: block; font-size: 0.8rem; color: var(--pale); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: 0.25rem 1.5rem; margin: 0;
  font-size: 0.9rem; }
dt { color: var(--pale); }
dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; font-size: 0.9rem; font-variant-numeric: tabular-nums; }
th, td { padding: 0.35rem 1.25rem 0.35rem 0; border-bottom: 1px solid var(--line);
  text-align: left; font-weight: 400; }
th, .n { white-space: nowrap; }
th:last-child, td:last-child { padding-right: 0; }
thead th { color: var(--pale); font-size: 0.8rem; }
.n { text-align: right; }
.scroll { overflow-x: auto; }
.pair { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 27rem), 1fr));
  gap: 0 2rem; }
.bar { display: inline-block; width: 4rem; height: 0.55rem; background: var(--soft);
  border-radius: 2px; overflow: hidden; }
.bar + span { display: inline-block; width: 4.2em; }
.bar i { display: block; height: 100%; background: var(--accent); }
svg { display: block; font-size: 12px; fill: var(--ink); }
.curve { width: 100%; max-width: 36rem; }
.end { text-anchor: end; } .mid { text-anchor: middle; } .on { fill: var(--paper); }
.grid { stroke: var(--line); fill: none; }
polygon { fill: var(--accent); fill-opacity: 0.18; }
polyline { fill: none; stroke: var(--accent); stroke-width: 2; }
circle { fill: var(--accent); stroke: transparent; stroke-width: 12px; }
.same { fill: var(--accent); } .other { fill: var(--warm); }
ol { list-style: none; margin: 0; padding: 0; }
li { display: grid; grid-template-columns: 13rem 1fr; gap: 0.5rem 1.5rem; padding: 1rem 0;
  border-top: 1px solid var(--line); break-inside: avoid; }
li p { margin: 0; color: var(--ink); overflow-wrap: anywhere; }
.tiles { display: grid; grid-template-columns: repeat(6, minmax(0, 1fr)); gap: 0.75rem; }
figure { margin: 0; --frame: var(--pale); }
.right { --frame: var(--good); } .wrong { --frame: var(--bad); }
.right b, .wrong b { color: var(--frame); }
img, .gone { display: block; width: 100%; aspect-ratio: 3 / 4; object-fit: contain;
  background: var(--soft); border: 3px solid var(--frame); border-radius: 6px; }
.gone { display: grid; place-items: center; background: var(--line); font-size: 0.8rem; }
figcaption { margin-top: 0.3rem; font-size: 0.8rem; line-height: 1.35; }
figcaption > * { display: block; overflow: hidden; text-overflow: ellipsis; white-space: nowrap; }
figcaption span + span { color: var(--pale); }
@media (max-width: 48rem) { li, dl { grid-template-columns: 1fr; } dl { gap: 0; }
  dd { margin-bottom: 0.5rem; } .tiles { grid-template-columns: repeat(3, minmax(0, 1fr)); } }
@media print { main { max-width: none; padding: 0; } .scroll { overflow: visible; }
  body { font-size: 12px; } svg { max-width: 100%; height: auto; }
  h2, h3 { break-after: avoid; } tr, svg { break-inside: avoid; } }
"""
