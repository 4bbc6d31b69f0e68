"""The lines of the benchmark's table."""

from typing import Any

Row = dict[str, Any]
COLUMNS = ("what", "ours", "peer", "ratio", "target", "held")


def compare(what: str, ours: str, peer: str, ratio: float | None, target: str) -> Row:
    """One line: the arguments by name, and "held", None without a target.

    Parameters
    ----------
    what : is measured
    ours, peer : figures with their units
    ratio : ours over the peer's, None where there is none
    target : of the ratio, as in "<= 1.25"; empty for none
    """
    held = None
    if target and ratio is not None:
        sign, limit = target.split()
        held = ratio <= float(limit) if sign == "<=" else ratio >= float(limit)
    shown = None if ratio is None else round(ratio, 3)
    return dict(zip(COLUMNS, (what, ours, peer, shown, target, held), strict=True))


def compare_times(what: str, ours: float, peer: str, theirs: float, most: float) -> Row:
    """One line: two times in seconds, and the ratio that is wanted at most."""
    shown = in_units(ours), f"{peer}: {in_units(theirs)}"
    return compare(what, *shown, ours / theirs, f"<= {most:.3g}")


def in_units(seconds: float) -> str:
    """Seconds for people: 8.3 ms."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds * 1e6:.3g} µs"


def as_markdown(row: Row) -> str:
    """The line of a Markdown table."""
    held = {True: "yes", False: "**no**", None: ""}[row["held"]]
    ratio = "" if row["ratio"] is None else f"{row['ratio']:.3g}"
    return f"| {row['what']} | {row['ours']} | {row['peer']} | {ratio} | {row['target']} | {held} |"
