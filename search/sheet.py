"""Queries and their answers side by side, as one picture."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageOps

from pictures.decode import PictureError, read_picture
from pictures.folder import picture_file
from search.certainty import as_percent
from search.duplicates import remark
from search.fonts import write
from utils import shown

TILE = (168, 210)  # px, of a picture
GAP = 14
CAPTION = 44
TITLE = 34
ACROSS = 8  # answers in a line, at most

PAPER, INK, PALE, LINE, ACCENT = "#ffffff", "#1d1d1f", "#6e6e73", "#d9d9de", "#c2410c"

# What was searched and how, the query in RGB, and the answers: each with rank, path, distance and
# category; marked as `remark` does, with its probability where known.
Row = tuple[str, Image.Image, Sequence[dict[str, Any]]]


def draw_sheet(base: Path, rows: Sequence[Row]) -> Image.Image:
    """Draw every query at the left, its answers at the right with rank, distance and category.

    Parameters
    ----------
    base : DATASET_BASE, which the paths of the answers are relative to
    rows : one for each query and engine

    Returns
    -------
    RGB picture; its size follows from the number of answers.
    """
    step = (TILE[0] + GAP, TILE[1] + CAPTION + GAP)
    most = max([len(records) for _, _, records in rows] + [1])
    across = -(-most // -(-most // ACROSS))  # spread evenly over as few lines as it takes
    lines = [max(-(-len(records) // across), 1) for _, _, records in rows]
    width = 3 * GAP + step[0] * (across + 1)
    height = GAP + sum(TITLE + step[1] * count for count in lines)
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for (title, query, records), count in zip(rows, lines, strict=True):
        write(draw, (GAP, top), shown(title), INK, 17, width - 2 * GAP)
        top += TITLE
        _tile(sheet, (GAP, top), query, "query", "", ACCENT)
        for i, record in enumerate(records):
            corner = (2 * GAP + step[0] * (1 + i % across), top + step[1] * (i // across))
            sure = record.get("probability")
            caption = f"{record['rank']}   d {record['distance']:.4f}"
            caption += "" if sure is None else f"   {as_percent(sure)}"
            marks = remark(record.get("copies", 1), record.get("duplicate_of"))
            below = "; ".join(filter(None, (record["category"], marks)))
            try:
                file = picture_file(base, record["path"])
                picture = read_picture(file, min_side=max(TILE), truncated=True)
            except PictureError:
                picture = None
            _tile(sheet, corner, picture, caption, below, LINE)
        top += step[1] * count
    return sheet


def words_tile(text: str) -> Image.Image:
    """Words as the picture of a query."""
    tile = Image.new("RGB", TILE, PAPER)
    for i, line in enumerate(textwrap.wrap(text, 16)[:8]):
        write(ImageDraw.Draw(tile), (GAP, GAP + 24 * i), shown(line), INK, 18, TILE[0] - 2 * GAP)
    return tile


def _tile(
    sheet: Image.Image,
    corner: tuple[int, int],
    picture: Image.Image | None,
    caption: str,
    below: str,
    frame: str,
) -> None:
    """One picture in its frame, with two lines of text below; None for a file that is gone."""
    x, y = corner
    draw = ImageDraw.Draw(sheet)
    draw.rectangle((x, y, x + TILE[0] - 1, y + TILE[1] - 1), PAPER, frame, 3 if not below else 1)
    if picture is None:
        write(draw, (x + GAP, y + TILE[1] // 2 - 8), "cannot be read", PALE, 15, TILE[0])
    else:
        small = ImageOps.contain(picture, (TILE[0] - 8, TILE[1] - 8))
        sheet.paste(small, (x + (TILE[0] - small.width) // 2, y + (TILE[1] - small.height) // 2))
    write(draw, (x + 2, y + TILE[1] + 4), caption, INK, 16, TILE[0])
    write(draw, (x + 2, y + TILE[1] + 23), shown(below), PALE, 14, TILE[0] - 4)
