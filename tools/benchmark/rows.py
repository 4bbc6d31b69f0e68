"""One row of results, how it is judged and how it is printed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from utils import atomic_write

COLUMNS = ("what", "here", "compared with", "ratio", "target", "met")


@dataclass(frozen=True)
class Row:
    """One comparison.

    Attributes
    ----------
    what : what is measured
    here, peer : the two figures with their units
    ratio : figure here / figure of the peer; None without a peer
    target : bound of the ratio, as in "<= 1.25"; empty for none
    met : whether the ratio keeps the target; None without a target
    """

    what: str
    here: str
    peer: str = ""
    ratio: float | None = None
    target: str = ""
    met: bool | None = None


def compare(what: str, here: str, peer: str, ratio: float, target: str = "") -> Row:
    """A row whose target, if any, is a bound of the ratio: "<= 1.25" or ">= 0.9"."""
    met = None
    if target:
        sign, bound = target.split()
        met = ratio <= float(bound) if sign == "<=" else ratio >= float(bound)
    return Row(what, here, peer, round(ratio, 3), target, met)


def compare_times(what: str, here: float, peer: str, other: float, target: str = "") -> Row:
    """A row of two times in seconds."""
    return compare(what, in_units(here), f"{peer}: {in_units(other)}", here / other, target)


def compare_rates(
    what: str, unit: str, here: float, peer: str, other: float, target: str = ""
) -> Row:
    """A row of two rates in `unit` per second."""
    shown = (f"{rate:,.{0 if rate >= 100 else 2}f} {unit}/s" for rate in (here, other))
    ours, theirs = shown
    return compare(what, ours, f"{peer}: {theirs}", here / other, target)


def in_units(seconds: float) -> str:
    """Seconds as text with a fitting unit: 8.3 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def head() -> str:
    """The first two lines of the Markdown table."""
    return f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}"


def as_markdown(row: Row) -> str:
    """One line of the Markdown table."""
    met = {True: "yes", False: "**no**", None: ""}[row.met]
    ratio = "" if row.ratio is None else f"{row.ratio:.3g}"
    return f"| {' | '.join((row.what, row.here, row.peer, ratio, row.target, met))} |"


def write_rows(path: Path, facts: dict[str, Any], rows: Sequence[Row]) -> None:
    """Write facts about the machine and the rows as JSON."""
    content = facts | {"rows": [asdict(row) for row in rows]}
    with atomic_write(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", "utf-8")
