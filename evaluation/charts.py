"""The drawings of the report, as inline SVG: recall curves and confusions of categories."""

from html import escape

import numpy as np

from evaluation.metrics import bootstrap_means
from evaluation.protocols import Outcome
from features.database import FeatureDatabase

MOST_RANKS = 50  # of the recall curve
UNKNOWN, NO_ANSWER = -1, -2  # beside the numbers of categories
SPECIAL = {UNKNOWN: "unknown", NO_ANSWER: "no answer"}


def scrolled(name: str, content: str) -> str:
    """What may be wider than the screen; the keyboard reaches it, too."""
    region = f'<div class="scroll" role="region" tabindex="0" aria-label="{escape(name)}">'
    return f"{region}{content}</div>"


def recall_curve(first: np.ndarray, groups: np.ndarray, ranks: int) -> np.ndarray:
    """Share of queries with a right answer among the first K, for K = 1 to `ranks`.

    Parameters
    ----------
    first : Q, rank of the first right answer, from 1; 0 where there is none
    groups : Q; whole groups are bootstrap_means, as by `measures.summarise`
    ranks : largest K

    Returns
    -------
    3 x K: the share, and the lower and upper end of its 95% bootstrap interval.
    """
    found = (first[:, None] > 0) & (first[:, None] <= np.arange(1, ranks + 1))
    means = bootstrap_means(found.astype(np.float64), groups)
    return np.stack([found.mean(axis=0), *np.percentile(means, [2.5, 97.5], axis=0)])


def confusion(
    outcome: Outcome, database: FeatureDatabase
) -> tuple[list[int], list[int], np.ndarray]:
    """How often queries of a category got a first answer of each category.

    Returns
    -------
    Categories of the rows (the queries') and of the columns (the same, then further ones of first
    answers; -1 unknown, -2 no answer), and the counts, rows x columns.
    """
    asked = database.categories[outcome.task.queries]
    best = outcome.answers[:, 0]
    got = np.where(best >= 0, database.categories[best], NO_ANSWER)
    rows = in_order(asked)
    columns = rows + [number for number in in_order(got) if number not in rows]
    place = {number: i for i, number in enumerate(columns)}
    counts = np.zeros((len(rows), len(columns)), np.int64)
    np.add.at(counts, ([place[a] for a in asked.tolist()], [place[g] for g in got.tolist()]), 1)
    return rows, columns, counts


def in_order(numbers: np.ndarray) -> list[int]:
    """Each category once, what is none of them last."""
    return sorted(np.unique(numbers).tolist(), key=lambda number: (number < 0, abs(number)))


def category_name(number: int, database: FeatureDatabase) -> str:
    """Name of a category by its number, or of what is none."""
    return SPECIAL[number] if number < 0 else database.category_names[number]


def _text(x: float, y: float, text: str, kind: str = "mid") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{kind}">{text}</text>'


def draw_curve(outcome: Outcome) -> str:
    """The recall curve with its band."""
    ranks = min(MOST_RANKS, len(outcome.task.gallery))
    shares = recall_curve(outcome.first, outcome.task.groups, ranks)
    left, right, top, bottom = 58, 466, 14, 252  # in a drawing of 480 x 300
    x = np.linspace(left, right, ranks)
    values, low, high = bottom - shares * (bottom - top)
    step = 10 if ranks > 20 else 5 if ranks > 10 else 1
    ticks = [k for k in range(1, ranks + 1) if k == 1 or k % step == 0]
    said = ", ".join(f"{shares[0, k - 1]:.1%} at K = {k}" for k in ticks)
    parts = [
        '<svg class="curve" viewBox="0 0 480 300" role="img">',
        f"<title>Recall curve: {said}</title>",
        _text((left + right) / 2, 292, "first K answers"),
        f'<g transform="translate(12 {(top + bottom) / 2}) rotate(-90)">',
        _text(0, 0, "queries with a right one") + "</g>",
    ]
    for y, percent in zip(np.linspace(bottom, top, 6), range(0, 101, 20), strict=True):
        parts.append(f'<path class="grid" d="M{left} {y:.1f}H{right}"/>')
        parts.append(_text(left - 8, y + 4, f"{percent}%", "end"))
    for k in ticks:
        parts.append(f'<path class="grid" d="M{x[k - 1]:.1f} {top}V{bottom}"/>')
        parts.append(_text(x[k - 1], bottom + 18, str(k)))
    band = [*zip(x, low, strict=True), *zip(x[::-1], high[::-1], strict=True)]
    for tag, points in (("polygon", band), ("polyline", [*zip(x, values, strict=True)])):
        corners = " ".join(f"{px:.1f},{py:.1f}" for px, py in points)
        parts.append(f'<{tag} points="{corners}"/>')
    for k, (share, least, most) in enumerate(shares.T, start=1):
        note = f"<title>K = {k}: {share:.1%} ({100 * least:.1f} to {most:.1%})</title>"
        place = f'cx="{x[k - 1]:.1f}" cy="{values[k - 1]:.1f}"'
        parts.append(f'<circle {place} r="2.2">{note}</circle>')
    return "".join(parts) + "</svg>"


def draw_confusion(outcome: Outcome, database: FeatureDatabase) -> str:
    """The confusion as a drawing, "" where there are not two categories to confuse."""
    rows, columns, counts = confusion(outcome, database)
    if sum(number >= 0 for number in columns) < 2:
        return ""
    names = [category_name(number, database) for number in columns]
    short = [escape(name if len(name) <= 20 else name[:19] + "…") for name in names]
    cell = max(16, min(40, 800 // len(columns)))
    left = 16 + 7 * min(20, max(map(len, names)))
    right, bottom = left + cell * len(columns), left + cell * len(rows)
    across = "".join(f"M{left} {y}H{right}" for y in range(left, bottom + 1, cell))
    down = "".join(f"M{x} {left}V{bottom}" for x in range(left, right + 1, cell))
    width, height = right + left // 2, bottom + 2
    parts = [
        f'<svg width="{width}" height="{height}" viewBox="0 0 {width} {height}" role="img">',
        f'<title>Confusion of categories</title><path class="grid" d="{across}{down}"/>',
    ]
    for i, name in enumerate(short):
        at = left + cell * i + cell / 2
        parts.append(f"<g><title>{escape(names[i])}</title>")
        if i < len(rows):
            parts.append(_text(left - 8, at + 4, name, "end"))
        turned = f'<g transform="translate({at + 3} {left - 7}) rotate(-60)">'
        parts.append(f"{turned}{_text(0, 0, name, 'start')}</g></g>")
    for i, j in zip(*np.nonzero(counts), strict=True):
        count, total = int(counts[i, j]), int(counts[i].sum())
        note = f"{names[i]} answered by {names[j]}: {count:,} of {total:,}"
        square = _cell(left + cell * j, left + cell * i, cell, count / total, rows[i] == columns[j])
        parts.append(f"<g><title>{escape(note)}</title>{square}</g>")
    return f"""<h3>Confusion of categories</h3>
<p>Rows: the query's category. Columns: the category of its first answer. Each cell: its share of
the row, in percent; the pointer shows the counts.</p>
{scrolled("Confusion of categories", "".join(parts) + "</svg>")}"""


def _cell(x: int, y: int, size: int, share: float, same: bool) -> str:
    opacity = 0.1 + 0.9 * share  # the faintest stays visible
    shape = f'x="{x + 0.5}" y="{y + 0.5}" width="{size - 1}" height="{size - 1}"'
    square = f'<rect {shape} class="{"same" if same else "other"}" fill-opacity="{opacity:.2f}"/>'
    if size < 22:  # px that a number needs
        return square
    number = f"{100 * share:.0f}" if share >= 0.005 else "&lt;1"
    kind = "mid on" if opacity > 0.75 else "mid"
    return square + _text(x + size / 2, y + size / 2 + 4, number, kind)
