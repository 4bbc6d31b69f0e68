"""The HTML report: its figures, that it needs no other file, and that no name can break it."""

import base64
import io
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from xml.etree.ElementTree import Element, parse

import numpy as np
import pytest
from PIL import Image

from evaluation.metrics import item_metrics, summarise
from evaluation.protocols import Outcome, Task
from evaluation.report import confusion, hardest, recall_curve, write_report
from features.database import FeatureDatabase

COLORS = [
    (200, 30, 30),
    (30, 160, 30),
    (30, 30, 200),
    (200, 200, 30),
    (30, 200, 200),
    (200, 30, 200),
]
NASTY = """<b>&amp;"'{{x}}%s<i>"""


def collection(base: Path, categories, names, paths=None) -> FeatureDatabase:
    """A database without features."""
    known = {
        "base": base,
        "paths": paths or [f"img/{i}.png" for i in range(len(categories))],
        "categories": np.array(categories, np.int16),
        "category_names": list(names),
        "metadata": None,
    }
    return FeatureDatabase(**{f.name: known.get(f.name) for f in fields(FeatureDatabase)})


def outcome_of(
    labels, queries, first, answers, groups=None, values=None, name="item", gallery=None
):
    """An outcome with the given ranks and answers."""
    everything, queries = np.arange(len(labels)), np.array(queries)
    gallery = everything if gallery is None else np.array(gallery)
    groups = np.arange(len(queries)) if groups is None else np.array(groups)
    task = Task(name, queries, gallery, np.array(list(labels)), groups, item_metrics)
    first = np.array(first)
    rows = np.full((len(queries), 10), -1)
    for line, found in zip(rows, answers, strict=True):
        line[: len(found)] = found
    values = values or {"recall@1": (first == 1).astype(float)}
    return Outcome(task, {k: np.array(v, float) for k, v in values.items()}, 0.125, first, rows)


def small(base: Path, name: str = "item", names=("Tee", "Coat")) -> tuple[FeatureDatabase, Outcome]:
    """Six pictures of three items: Tee, Tee, Coat, Coat, unknown, unknown; all are queries."""
    database = collection(base, [0, 0, 1, 1, -1, -1], names)
    answers = [[1, 2, 3], [2, 0], [3], [4, 5, 2], [5, 1, 0, 2, 3], []]
    values = {"recall@1": [1, 0, 1, 0, 1, 0], "mrr": [1, 0.5, 1, 0.25, 1, 0]}
    groups = list("aabbcc")
    first = [1, 2, 1, 3, 1, 0]
    return database, outcome_of("aabbcc", range(6), first, answers, groups, values, name)


def draw(database: FeatureDatabase, size=(60, 80)) -> None:
    for path, color in zip(database.paths, COLORS, strict=True):
        (database.base / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, color).save(database.base / path)


def written(tmp_path: Path, database, outcomes, facts=None, title="T") -> Element:
    path = tmp_path / "out" / "report.html"
    write_report(path, title, facts or {}, outcomes, database)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return parse(path).getroot()  # noqa: S314


def text(element: Element) -> str:
    return " ".join("".join(element.itertext()).split())


def texts(element: Element, tag: str) -> list[str]:
    return [text(one) for one in element.iter(tag)]


def of_class(element: Element, tag: str, name: str) -> list[Element]:
    return [one for one in element.iter(tag) if name in one.get("class", "").split()]


def table_of(page: Element, name: str) -> list[list[str]]:
    """The cells of a table, the header first."""
    [region] = [r for r in of_class(page, "div", "scroll") if r.get("aria-label") == name]
    return [[text(cell) for cell in row] for row in region.iter("tr")]


def test_figures_are_the_values_of_the_outcome_in_percent(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    outcome.values["recall@1"][:] = [1, 1, 1, 0, 0, 0]
    facts = {"engine": "exact", "models": [{"file": "a.pth", "sha256": "0" * 64}], "pictures": 6}
    page = written(tmp_path, database, [outcome], facts)
    low, high = summarise(outcome.values["recall@1"], outcome.task.groups).ci95
    assert low < 0.5 < high
    title = "same item: 6 queries, 6 pictures in the gallery"
    header, recall, mrr = table_of(page, title)
    assert header == ["", "value", "95% interval", "chance"]
    assert recall == ["recall@1", "50.00%", f"{low:.2%} to {high:.2%}", "12.50%"]
    assert mrr[:2] == ["mrr", "62.50%"]  # (1 + 1/2 + 1 + 1/4 + 1 + 0) / 6
    assert mrr[3] == ""  # chance was not measured
    assert texts(page, "dt") == ["engine", "models", "pictures"]
    assert texts(page, "dd") == ["exact", "a.pth, SHA-256 0000000000000000", "6"]
    assert title in texts(page, "h3")


def test_each_task_has_its_section_and_the_overview_links_to_it(tmp_path: Path) -> None:
    database, item = small(tmp_path)
    color = outcome_of("abcdef", [0], [0], [[1]], name="item and color")
    page = written(tmp_path, database, [item, color])
    links = {a.get("href"): text(a) for a in page.iter("a")}
    assert links == {f"#{h.get('id')}": text(h) for h in page.iter("h2") if h.get("id")}
    assert list(links.values()) == ["item", "item and color"]
    assert [row[:3] for row in table_of(page, "Overview")[1:]] == [
        ["item", "recall@1", "50.00%"], ["item and color", "recall@1", "0.00%"]]  # fmt: skip


def test_the_recall_curve_is_the_share_and_interval_of_each_k() -> None:
    first = np.array([1, 3, 0, 2, 51, 50, 1, 4])
    groups = np.array([0, 0, 1, 1, 1, 2, 3, 3])
    curve = recall_curve(outcome_of("a" * 60, range(8), first, [[]] * 8, groups))
    assert [k for k, *_ in curve] == list(range(1, 51))
    for k, share in zip((1, 2, 3, 4, 49, 50), (2, 3, 4, 5, 5, 6), strict=True):
        figure = summarise(((first > 0) & (first <= k)).astype(float), groups)
        assert share / 8 == figure.value
        assert curve[k - 1] == (k, *(pytest.approx(100 * x) for x in (figure.value, *figure.ci95)))


@pytest.mark.parametrize(("gallery", "ranks"), [(1, 1), (5, 5), (60, 50)])
def test_the_curve_is_drawn_in_the_units_of_the_figures(tmp_path: Path, gallery, ranks) -> None:
    database = collection(tmp_path, [0] * gallery, ["Tee"])
    outcome = outcome_of(["a"] * gallery, [0] * 4, [1, min(3, gallery), 0, 0], [[]] * 4)
    [drawing] = written(tmp_path, database, [outcome]).iter("svg")
    [line], [band] = drawing.iter("polyline"), drawing.iter("polygon")
    points = [tuple(map(float, point.split(","))) for point in line.get("points").split()]
    share = 25 if ranks > 2 else 50
    assert points[:1] + points[-1:] == [(1, share), (ranks, 50)]
    assert len(points) == ranks
    curve = recall_curve(outcome)
    lower = [f"{k},{round(low, 2)}" for k, _, low, _ in curve]
    upper = [f"{k},{round(high, 2)}" for k, _, _, high in reversed(curve)]
    assert band.get("points").split() == [*lower, *upper]
    assert text(drawing.find("title")).startswith(f"Recall curve: {share}.0% at K = 1")


def test_categories_are_listed_worst_first(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    outcome.values["recall@1"][:] = [1, 1, 0, 0, 1, 0]
    assert table_of(written(tmp_path, database, [outcome]), "By category") == [
        ["category", "queries", "recall@1", "mrr"],
        ["Coat", "2", "0.0%", "62.5%"],
        ["unknown", "2", "50.0%", "50.0%"],
        ["Tee", "2", "100.0%", "75.0%"],
    ]


def test_confusion_counts_by_hand(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    # Tee 0 -> 1 Tee, Tee 1 -> 2 Coat; Coat 2 -> 3 Coat, Coat 3 -> 4; 4 -> 5, 5 -> nothing
    assert confusion(outcome, database) == {
        "columns": ["Tee", "Coat", "unknown"],
        "rows": [("Tee", [1, 1, 0]), ("Coat", [0, 1, 1]), ("unknown", [0, 0, 2])],
    }


def test_categories_of_the_gallery_only_are_columns_after_those_of_the_queries() -> None:
    database = collection(Path("none"), [0, 1, 2], ["Anorak", "Blazer", "Coat"])
    assert confusion(outcome_of("abc", [1, 2], [0, 0], [[0], [1]]), database) == {
        "columns": ["Blazer", "Coat", "Anorak"],
        "rows": [("Blazer", [0, 0, 1]), ("Coat", [1, 0, 0])],
    }


def test_no_confusion_of_a_single_category(tmp_path: Path) -> None:
    outcome = outcome_of("aabb", range(4), [1] * 4, [[1], [0], [3], [2]])
    for categories, there in (([0, 0, 0, -1], False), ([-1] * 4, False), ([0, 0, 0, 1], True)):
        page = written(tmp_path, collection(tmp_path, categories, ["Tee", "Coat"]), [outcome])
        assert ("Confusion of categories" in texts(page, "h3")) == there


def test_the_confusion_shows_shares_and_counts(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    outcome.answers[1, 0] = 0
    page = written(tmp_path, database, [outcome])
    assert table_of(page, "Confusion of categories") == [
        ["", "Tee", "Coat", "unknown"],
        ["Tee", "100", "", ""],
        ["Coat", "", "50", "50"],
        ["unknown", "", "", "100"],
    ]
    assert [cell.get("title") for cell in page.iter("td") if cell.get("title")] == [
        "Tee answered by Tee: 2 of 2",
        "Coat answered by Coat: 1 of 2",
        "Coat answered by unknown: 1 of 2",
        "unknown answered by unknown: 2 of 2",
    ]
    same = [cell.get("title") for cell in of_class(page, "td", "same")]
    assert same == [f"{name} answered by {name}: {n} of 2" for name, n in
                    (("Tee", 2), ("Coat", 1), ("unknown", 2))]  # fmt: skip


def test_the_hardest_queries_are_the_last_found_one_of_each_item() -> None:
    first = [1, 0, 7, 3, 9, 0, 7]
    answers = [[]] * 7
    assert hardest(outcome_of("abcdefg", range(7), first, answers)) == [1, 5, 4, 2, 6, 3, 0]
    assert hardest(outcome_of("abcdefg", range(7), first, answers, list("xyzxyyz"))) == [1, 2, 3]
    many = outcome_of("a" * 30, range(30), range(1, 31), [[]] * 30)
    assert hardest(many) == list(range(29, 17, -1))


def test_hardest_queries_are_shown_with_their_answers(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    draw(database, size=(600, 800))
    items = list(written(tmp_path, database, [outcome]).iter("li"))
    assert [texts(item, "b")[0] for item in items] == [
        "No correct answer found",
        "First correct answer at rank 3",
        "First correct answer at rank 2",
    ]
    assert len(list(items[0].iter("figure"))) == 1
    query, *answers = items[1].iter("figure")
    assert [figure.get("class") for figure in answers] == ["wrong", "wrong", "correct"]
    captions = [texts(figure, "b")[0] for figure in answers]
    assert captions == ["1 ✗ wrong", "2 ✗ wrong", "3 ✓ correct"]
    assert texts(query, "span") == ["Coat", "3.png"]
    assert texts(answers[0], "span") == ["unknown", "4.png"]
    for figure, row in zip([query, *answers], [3, 4, 5, 2], strict=True):
        [image] = figure.iter("img")
        kind, _, data = image.get("src").partition(",")
        assert (kind, image.get("alt")) == ("data:image/jpeg;base64", f"img/{row}.png")
        picture = Image.open(io.BytesIO(base64.b64decode(data)))
        assert picture.size == (120, 160)
        assert np.abs(np.asarray(picture)[80, 60].astype(int) - COLORS[row]).max() < 12


def test_at_most_five_answers_are_shown(tmp_path: Path) -> None:
    database = collection(tmp_path, [0] * 12, ["Tee"])
    page = written(tmp_path, database, [outcome_of("a" * 12, [0], [1], [range(1, 11)])])
    assert [text(span) for span in of_class(page, "span", "file")] == [f"{i}.png" for i in range(6)]


def test_a_query_without_a_correct_picture_differs_from_one_that_failed(tmp_path: Path) -> None:
    database = collection(tmp_path, [0] * 4, ["Tee"])
    # The only picture with the first query's label is the query; the second one's is elsewhere.
    outcome = outcome_of("abcb", [0, 1], [0, 0], [[2], [2]], gallery=[0, 2, 3])
    results = [texts(item, "b")[0] for item in written(tmp_path, database, [outcome]).iter("li")]
    assert results == ["No correct picture in the gallery", "No correct answer found"]


def test_photos_that_are_missing_or_damaged_leave_grey_boxes(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    draw(database)
    (tmp_path / "img/4.png").unlink()
    (tmp_path / "img/2.png").write_text("no picture")
    figures = list(list(written(tmp_path, database, [outcome]).iter("li"))[1].iter("figure"))
    gone = [[text(box) for box in of_class(figure, "span", "gone")] for figure in figures]
    assert gone == [[], ["no photo"], [], ["no photo"]]  # rows 3, 4, 5, 2
    assert [len(list(figure.iter("img"))) for figure in figures] == [1, 0, 1, 0]


def test_names_from_data_are_text_whatever_they_hold(tmp_path: Path) -> None:
    database, outcome = small(tmp_path, name=NASTY, names=[NASTY, "Coat"])
    database.paths[:] = [f"img/{NASTY}{i}.png" for i in range(6)]
    draw(database)
    page = written(tmp_path, database, [outcome] * 2, {NASTY: NASTY}, NASTY)
    for tag in ("h1", "title", "dt", "dd"):
        assert texts(page, tag)[0] == NASTY
    assert [row[0] for row in table_of(page, "Overview")[1:]] == [NASTY] * 2
    item = next(page.iter("li"))
    [tile] = item.iter("figure")
    assert texts(item, "small")[0] == next(tile.iter("img")).get("alt") == database.paths[5]
    [name] = of_class(tile, "span", "file")
    assert (name.get("title"), text(name)) == (database.paths[5], f"{NASTY}5.png")
    titles = [cell.get("title") for cell in page.iter("td")]
    assert f"{NASTY} answered by Coat: 1 of 2" in titles
    starts = ("Query", "First", "No", *"12345")
    assert all(bold.startswith(starts) for bold in texts(page, "b"))


def test_the_page_needs_no_other_file_and_can_be_read_aloud(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    draw(database)
    page = written(tmp_path, database, [outcome] * 2)
    source = (tmp_path / "out/report.html").read_text("utf-8")
    for outside in ("http://", "https://", "url(", "@import"):
        assert outside not in source
    tags = [element.tag for element in page.iter()]
    assert not {"script", "link", "iframe", "object", "use", "base"} & set(tags)
    sources = [image.get("src") for image in page.iter("img")]
    assert sources
    assert all(source.startswith("data:image/jpeg;base64,") for source in sources)
    assert all(a.get("href").startswith("#") for a in page.iter("a"))
    assert page.get("lang") == "en-GB"
    levels = [int(tag[1]) for tag in tags if tag in {"h1", "h2", "h3", "h4"}]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert {th.get("scope") for th in page.iter("th")} == {"col", "row"}
    for drawing in page.iter("svg"):
        assert drawing.get("role") == "img"
        assert drawing[0].tag == "title"


def test_certainty_has_its_tables_and_a_reliability_curve(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    ci95 = (0.01, 0.09)
    scores = {
        "auroc": 0.8, "false_alarms": 0.25, "threshold_found": 0.9, "threshold_false_alarms": 0.5,
    }  # fmt: skip
    certainty = {
        "same": "item",
        "calibrated": "calibrated on 40 validation queries of 9 items",
        "ece@1": {"value": 0.043, "ci95": ci95},
        "ece@10": {"value": 0.021, "ci95": ci95},
        "auroc@10": {"probability": 0.97, "distance": 0.76},
        "curve": [(0.05, 0.1, 60), (0.9, 0.75, 8)],
        "open_set": {
            "queries": 6, "out": 3, "ece": {"value": 0.05, "ci95": ci95},
            "probability": scores, "distance": {**scores, "auroc": 0.7},
        },
    }  # fmt: skip
    path = tmp_path / "report.html"
    write_report(path, "T", {}, [outcome], database, certainty)
    page = parse(path).getroot()  # noqa: S314
    assert {"How sure", "Reliability"} <= {*texts(page, "h2"), *texts(page, "h3")}
    assert "5% said, 10% correct, 90% said, 75% correct" in " ".join(texts(page, "title"))
    table = table_of(page, f"probability of the same item, {certainty['calibrated']}")
    assert table[1] == ["calibration error, first answer", "0.043", "0.010 to 0.090"]
    assert ["open set, probability: AUROC", "0.800", ""] in table
    assert ["open set, distance: false alarms at 95% found", "0.250", ""] in table
    assert ["open set, distance: found at fixed", "0.900", ""] in table
    assert any(
        one.get("points", "").startswith("5.0,10.0 90.0,75.0") for one in page.iter("polyline")
    )
