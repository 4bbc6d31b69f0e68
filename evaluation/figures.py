"""A table of figures, for the terminal and the report."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Table:
    """A table of figures.

    Attributes
    ----------
    title, note : shown with it; the note may be empty
    header : name of each column; the first column names the rows
    rows : as many cells each, plain values: text, a number, two numbers, or None for an empty cell
    formats : of each column, how `str.format` shows its values
    """

    title: str
    note: str
    header: Sequence[str]
    rows: Sequence[Sequence[object]]
    formats: Sequence[str]

    def as_text(self) -> list[list[str]]:
        """The rows as text."""
        return [
            [_text(cell, form) for cell, form in zip(row, self.formats, strict=True)]
            for row in self.rows
        ]

    def __str__(self) -> str:
        rows = [list(self.header), *self.as_text()]
        widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
        lines = [self.title]
        for first, *others in rows:
            cells = [cell.rjust(width) for cell, width in zip(others, widths[1:], strict=True)]
            lines.append("  " + "  ".join([first.ljust(widths[0]), *cells]).rstrip())
        return "\n".join([*lines, f"  {self.note}"] if self.note else lines)


def _text(cell: object, form: str) -> str:
    if cell is None:
        return ""
    return form.format(*cell) if isinstance(cell, tuple) else form.format(cell)
