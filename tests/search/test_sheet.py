"""The picture of the answers: where queries and answers stand in it."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from search.sheet import draw_sheet

RED, GREEN, BLUE = (255, 0, 0), (0, 128, 0), (0, 0, 255)


def solid(color: tuple[int, int, int], size=(60, 80)) -> Image.Image:
    return Image.new("RGB", size, color)


def answers(base: Path, colors, size=(60, 80)) -> list[dict]:
    records = []
    for rank, color in enumerate(colors, start=1):
        name = f"{'-'.join(map(str, color))}.png"
        solid(color, size).save(base / name)
        records.append({"rank": rank, "path": name, "distance": rank / 7, "category": "Tee"})
    return records


def place(sheet: Image.Image, color: tuple[int, int, int]) -> tuple[int, int, int, int]:
    """Left, top, right, bottom of a colour, which has to fill a rectangle of some size."""
    rows, columns = np.nonzero((np.asarray(sheet) == color).all(-1))
    assert len(rows) > 5000
    left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert len(rows) == (right - left) * (bottom - top)
    return left, top, right, bottom


def test_the_query_stands_left_of_its_answers_in_their_order(tmp_path: Path) -> None:
    sheet = draw_sheet(tmp_path, [("exact", solid(RED), answers(tmp_path, [GREEN, BLUE]))])
    assert sheet.mode == "RGB"
    places = [place(sheet, color) for color in (RED, GREEN, BLUE)]
    for one, following in pairwise(places):
        assert one[2] < following[0]
        assert (one[1], one[3]) == (following[1], following[3])
    assert places[-1][2] < sheet.width
    below = np.asarray(sheet)[places[0][3] :, places[1][0] : places[1][2]]
    assert (below != 255).any()  # rank and distance


def test_each_row_stands_below_the_one_before_with_its_own_query(tmp_path: Path) -> None:
    rows = [("exact", solid(RED), answers(tmp_path, [GREEN])),
            ("k-means", solid(BLUE), answers(tmp_path, [(9, 9, 99)]))]  # fmt: skip
    sheet = draw_sheet(tmp_path, rows)
    above, below = place(sheet, RED), place(sheet, BLUE)
    assert above[3] < below[1]
    assert above[0] == below[0]
    assert place(sheet, GREEN)[1] == above[1]
    assert place(sheet, (9, 9, 99))[1] == below[1]


@pytest.mark.parametrize("size", [(400, 100), (100, 400), (1, 1), (1000, 1000)])
def test_pictures_keep_their_proportions_and_stay_within_the_sheet(tmp_path: Path, size) -> None:
    row = ("exact", solid(RED), answers(tmp_path, [GREEN, BLUE], size))
    sheet = draw_sheet(tmp_path, [row])
    left, top, right, bottom = place(sheet, GREEN)
    assert (right - left) / (bottom - top) == pytest.approx(size[0] / size[1], rel=0.05)
    assert place(sheet, RED)[2] < left
    assert right < place(sheet, BLUE)[0]


def test_many_answers_wrap_in_reading_order(tmp_path: Path) -> None:
    colors = [(10 + 9 * i, 200 - 5 * i, 77) for i in range(21)]
    sheet = draw_sheet(tmp_path, [("exact", solid(RED), answers(tmp_path, colors))])
    places = [place(sheet, color) for color in colors]
    assert sorted(places, key=lambda p: (p[1], p[0])) == places
    assert len({p[1] for p in places}) > 1  # lines
    assert sheet.width < 2500
    assert min(p[0] for p in places) > place(sheet, RED)[2]


@pytest.mark.parametrize("records", [[], ["gone.jpg"], ["text.jpg", "gone.jpg"]])
def test_answers_that_are_missing_or_unreadable_leave_the_rest_as_it_is(
    tmp_path: Path, records: list[str]
) -> None:
    (tmp_path / "text.jpg").write_text("no picture")
    gone = [{"rank": 1, "path": name, "distance": 0.5, "category": ""} for name in records]
    row = ("a title longer than the sheet is wide " * 9, solid(RED),
                   [*gone, *answers(tmp_path, [GREEN] if records else [])])  # fmt: skip
    sheet = draw_sheet(tmp_path, [row])
    place(sheet, RED)
    if records:
        assert place(sheet, GREEN)[0] > place(sheet, RED)[2] + 100 * len(records)
