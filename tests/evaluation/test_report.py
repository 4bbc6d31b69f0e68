"""The HTML report: what it says, that it stands alone, and that no name can break it."""

import base64
import io
from dataclasses import dataclass, field, fields
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from evaluation.charts import confusion, recall_curve
from evaluation.metrics import item_metrics, summarise
from evaluation.protocols import Outcome, Task
from evaluation.report import Table, hardest, write_report
from features.database import FeatureDatabase

COLORS = [
    (200, 30, 30),
    (30, 160, 30),
    (30, 30, 200),
    (200, 200, 30),
    (30, 200, 200),
    (200, 30, 200),
]
NASTY = """<b>&amp;"'{x}%s<i>"""


@dataclass
class Node:
    """An element of a page."""

    tag: str
    attributes: dict[str, str]
    children: list = field(default_factory=list)

    def all(self, tag: str, kind: str = "") -> list["Node"]:
        """Elements below this one, in order; those of a class only, if one is given."""
        found = []
        for child in self.children:
            if isinstance(child, Node):
                kinds = child.attributes.get("class", "").split()
                found += [child] * (child.tag == tag and (not kind or kind in kinds))
                found += child.all(tag, kind)
        return found

    @property
    def text(self) -> str:
        return "".join(c if isinstance(c, str) else c.text for c in self.children)

    def table(self) -> list[list[str]]:
        """The cells of a table, the header first."""
        return [[c.text for c in row.children] for row in self.all("tr")]


class Page(HTMLParser):
    """A page as a tree; every element has to be closed in turn."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open = [Node("", {})]
        self.feed(path.read_text("utf-8"))
        self.close()
        assert len(self.open) == 1
        self.root = self.open[0]

    def handle_starttag(self, tag: str, attrs: list) -> None:
        assert len(dict(attrs)) == len(attrs)
        node = Node(tag, {name: value or "" for name, value in attrs})
        self.open[-1].children.append(node)
        if tag not in {"meta", "img"}:
            self.open.append(node)

    def handle_startendtag(self, tag: str, attrs: list) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in {"meta", "img"}:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop().tag == tag

    def handle_data(self, data: str) -> None:
        self.open[-1].children.append(data)


def collection(base: Path, categories, names, paths=None) -> FeatureDatabase:
    """A database without features, whatever else it has to have."""
    known = {
        "base": base,
        "paths": paths or [f"img/{i}.png" for i in range(len(categories))],
        "categories": np.array(categories, np.int16),
        "category_names": list(names),
        "metadata": None,
    }
    return FeatureDatabase(**{f.name: known.get(f.name) for f in fields(FeatureDatabase)})


def asked(labels, queries, first, answers, groups=None, values=None, name="item", gallery=None):
    """An outcome as written down."""
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
    """Six pictures of three items: Tee, Tee, Coat, Coat, unknown, unknown; everybody asks."""
    database = collection(base, [0, 0, 1, 1, -1, -1], names)
    answers = [[1, 2, 3], [2, 0], [3], [4, 5, 2], [5, 1, 0, 2, 3], []]
    values = {"recall@1": [1, 0, 1, 0, 1, 0], "mrr": [1, 0.5, 1, 0.25, 1, 0]}
    labels = list("aabbcc")
    return database, asked(
        labels, range(6), [1, 2, 1, 3, 1, 0], answers, list("aabbcc"), values, name
    )


def draw(database: FeatureDatabase, size=(60, 80)) -> None:
    for path, color in zip(database.paths, COLORS, strict=True):
        (database.base / path).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, color).save(database.base / path)


def written(tmp_path: Path, database: FeatureDatabase, outcomes, facts=(), tables=(), title="T"):
    path = tmp_path / "out" / "report.html"
    write_report(path, title, facts, outcomes, database, tables)
    assert [p.name for p in path.parent.iterdir()] == ["report.html"]
    return Page(path).root


def table_of(page: Node, name: str) -> list[list[str]]:
    [region] = [d for d in page.all("div", "scroll") if d.attributes["aria-label"] == name]
    return region.table()


def test_figures_are_the_values_of_the_outcome_in_percent(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    outcome.values["recall@1"][:] = [1, 1, 1, 0, 0, 0]
    page = written(tmp_path, database, [outcome], facts=[("Engine", "exact"), ("Date", "today")])
    low, high = summarise(outcome.values["recall@1"], outcome.task.groups).ci95
    assert low < 0.5 < high
    header, recall, mrr = table_of(page, "Figures")
    assert header == ["Measure", "Value", "95% interval", "Chance"]
    assert recall == ["Recall@1", "50.0%", f"{100 * low:.1f} to {100 * high:.1f}%", "12.5%"]
    assert mrr[:2] == ["MRR", "62.5%"]  # (1 + 1/2 + 1 + 1/4 + 1 + 0) / 6
    assert mrr[3] == ""  # chance was not measured
    assert [n.text for n in page.all("dt") + page.all("dd")] == ["Engine", "Date", "exact", "today"]
    assert "6 queries of 3 items, 6 pictures in the gallery" in page.text


def test_each_task_has_its_section_and_the_overview_links_to_it(tmp_path: Path) -> None:
    database, item = small(tmp_path)
    color = asked(list("abcdef"), [0], [0], [[1]], name="item and color")
    page = written(tmp_path, database, [item, color])
    links = {a.attributes["href"]: a.text for a in page.all("a")}
    titles = {f"#{h.attributes['id']}": h.text for h in page.all("h2") if "id" in h.attributes}
    assert links == titles
    assert list(titles.values()) == ["Item", "Item and color"]
    assert [row[:3] for row in table_of(page, "Overview")[1:]] == [
        ["Item", "Recall@1", "50.0%"], ["Item and color", "Recall@1", "0.0%"]]  # fmt: skip


def test_the_recall_curve_is_the_share_and_interval_of_each_k() -> None:
    first = np.array([1, 3, 0, 2, 51, 50, 1, 4])
    groups = np.array([0, 0, 1, 1, 1, 2, 3, 3])
    shares, low, high = recall_curve(first, groups, 50)
    assert shares[[0, 1, 2, 3, 48, 49]] == pytest.approx(np.array([2, 3, 4, 5, 5, 6]) / 8)
    for k in (1, 2, 10, 50):
        figure = summarise(((first > 0) & (first <= k)).astype(float), groups)
        assert (shares[k - 1], low[k - 1], high[k - 1]) == pytest.approx(
            (figure.value, *figure.ci95)
        )


@pytest.mark.parametrize(("gallery", "ranks"), [(1, 1), (5, 5), (60, 50)])
def test_the_curve_is_drawn_to_scale(tmp_path: Path, gallery: int, ranks: int) -> None:
    database = collection(tmp_path, [0] * gallery, ["Tee"])
    queries = [0] * 4
    outcome = asked(["a"] * gallery, queries, [1, min(3, gallery), 0, 0], [[]] * 4)
    [curve] = written(tmp_path, database, [outcome]).all("svg", "curve")
    assert curve.attributes["role"] == "img"
    assert curve.all("title")[0].text.startswith("Recall curve: ")
    points = [
        tuple(map(float, p.split(",")))
        for p in curve.all("polyline")[0].attributes["points"].split()
    ]
    ticks = {t.text: float(t.attributes["y"]) - 4 for t in curve.all("text", "end")}
    bottom, top = ticks["0%"], ticks["100%"]
    shares = [(bottom - y) / (bottom - top) for _, y in points]
    assert len(shares) == ranks
    assert shares[0] == pytest.approx(0.25 if ranks > 1 else 0.5, abs=0.01)
    assert shares[-1] == pytest.approx(0.5, abs=0.01)
    assert [x for x, _ in points] == sorted(x for x, _ in points)
    band = curve.all("polygon")[0].attributes["points"].split()
    heights = [float(p.split(",")[1]) for p in band]
    for i, (_, y) in enumerate(points):  # the lower end left to right, then the upper one back
        assert heights[i] >= y >= heights[-1 - i]


def test_categories_stand_worst_first(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    outcome.values["recall@1"][:] = [1, 1, 0, 0, 1, 0]
    assert table_of(written(tmp_path, database, [outcome]), "By category") == [
        ["Category", "Queries", "Recall@1", "MRR"],
        ["Coat", "2", "0.0%", "62.5%"],
        ["unknown", "2", "50.0%", "50.0%"],
        ["Tee", "2", "100.0%", "75.0%"],
    ]


def test_confusion_counts_by_hand(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    rows, columns, counts = confusion(outcome, database)
    assert (rows, columns) == ([0, 1, -1], [0, 1, -1, -2])
    # Tee 0 -> 1 Tee, Tee 1 -> 2 Coat; Coat 2 -> 3 Coat, Coat 3 -> 4; 4 -> 5, 5 -> nothing
    assert counts.tolist() == [[1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_categories_of_the_gallery_alone_are_columns_behind_those_of_the_queries() -> None:
    database = collection(Path("none"), [0, 1, 2], ["Anorak", "Blazer", "Coat"])
    outcome = asked("abc", [1, 2], [0, 0], [[0], [1]])
    rows, columns, counts = confusion(outcome, database)
    assert (rows, columns) == ([1, 2], [1, 2, 0])
    assert counts.tolist() == [[0, 0, 1], [1, 0, 0]]


def cells(page: Node) -> dict[str, str]:
    """Of the confusion: titles of its squares and the numbers in them."""
    groups = page.all("svg")[-1].all("g")
    return {g.all("title")[0].text: "".join(t.text for t in g.all("text"))
            for g in groups if g.all("rect")}  # fmt: skip


def test_the_confusion_shows_shares_and_counts(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    outcome.answers[1, 0] = 0
    assert cells(written(tmp_path, database, [outcome])) == {
        "Tee answered by Tee: 2 of 2": "100",
        "Coat answered by Coat: 1 of 2": "50",
        "Coat answered by unknown: 1 of 2": "50",
        "unknown answered by unknown: 1 of 2": "50",
        "unknown answered by no answer: 1 of 2": "50",
    }


@pytest.mark.parametrize(("count", "numbers"), [(10, True), (50, False)])
def test_many_categories_stay_within_a_wide_screen(tmp_path: Path, count, numbers) -> None:
    names = [f"category {i}" for i in range(count)]
    database = collection(tmp_path, range(count), names)
    answers = [[(i + 1) % count] for i in range(count)]
    page = written(tmp_path, database, [asked(range(count), range(count), [0] * count, answers)])
    shown = cells(page)
    assert len(shown) == count
    assert shown["category 3 answered by category 4: 1 of 1"] == ("100" if numbers else "")
    drawing = page.all("svg")[-1]
    assert float(drawing.attributes["width"]) <= 1040
    labels = [t.text for t in drawing.all("text") if t.text.startswith("cat")]
    assert sorted(labels) == sorted(names * 2)


def test_no_confusion_of_a_single_category(tmp_path: Path) -> None:
    outcome = asked("aabb", range(4), [1] * 4, [[1], [0], [3], [2]])
    for categories, there in (([0, 0, 0, -1], False), ([-1] * 4, False), ([0, 0, 0, 1], True)):
        page = written(tmp_path, collection(tmp_path, categories, ["Tee", "Coat"]), [outcome])
        assert ("Confusion of categories" in page.text) == there


def test_the_hardest_queries_are_the_last_found_one_of_each_item() -> None:
    first = [1, 0, 7, 3, 9, 0, 7]
    answers = [[]] * 7
    everyone = asked("abcdefg", range(7), first, answers)
    assert hardest(everyone) == [1, 5, 4, 2, 6, 3, 0]
    grouped = asked("abcdefg", range(7), first, answers, groups=list("xyzxyyz"))
    assert hardest(grouped) == [1, 2, 3]
    many = asked("a" * 30, range(30), range(1, 31), [[]] * 30)
    assert hardest(many) == list(range(29, 17, -1))


def picture_of(image: Node) -> Image.Image:
    kind, _, data = image.attributes["src"].partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


def test_hardest_queries_are_shown_with_their_answers(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    draw(database, size=(600, 800))
    page = written(tmp_path, database, [outcome])
    nothing, third, second = page.all("li")
    said = [item.all("b")[0].text for item in (nothing, third, second)]
    assert said == ["No right answer found", "First right answer at rank 3",
                    "First right answer at rank 2"]  # fmt: skip
    assert len(nothing.all("figure")) == 1
    query, *answers = third.all("figure")
    assert [f.attributes["class"] for f in answers] == ["wrong", "wrong", "right"]
    assert [f.all("b")[0].text for f in answers] == ["1 ✗ wrong", "2 ✗ wrong", "3 ✓ right"]
    assert [s.text for s in query.all("span")] == ["Coat", "3.png"]
    assert [s.text for s in answers[0].all("span")] == ["unknown", "4.png"]
    for figure, row in zip([query, *answers], [3, 4, 5, 2], strict=True):
        picture = picture_of(figure.all("img")[0])
        assert picture.size == (120, 160)
        assert np.abs(np.asarray(picture)[80, 60].astype(int) - COLORS[row]).max() < 12
        assert figure.all("img")[0].attributes["alt"] == f"img/{row}.png"


def test_at_most_five_answers_are_shown(tmp_path: Path) -> None:
    database = collection(tmp_path, [0] * 12, ["Tee"])
    page = written(tmp_path, database, [asked("a" * 12, [0], [1], [range(1, 11)])])
    names = [f.all("span")[-1].text for f in page.all("figure")]
    assert names == [f"{i}.png" for i in range(6)]


def test_a_query_that_had_nothing_to_find_is_told_from_one_that_failed(tmp_path: Path) -> None:
    database = collection(tmp_path, [0] * 4, ["Tee"])
    # The only picture with the first query's label is the query; the second one's is elsewhere.
    outcome = asked("abcb", [0, 1], [0, 0], [[2], [2]], gallery=[0, 2, 3])
    said = [item.all("b")[0].text for item in written(tmp_path, database, [outcome]).all("li")]
    assert said == ["No right picture in the gallery", "No right answer found"]


def test_photos_that_are_missing_or_damaged_leave_grey_boxes(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    draw(database)
    (tmp_path / "img/4.png").unlink()
    (tmp_path / "img/2.png").write_text("no picture")
    figures = written(tmp_path, database, [outcome]).all("li")[1].all("figure")
    gone = [[s.text for s in f.all("span", "gone")] for f in figures]
    assert gone == [[], ["no photo"], [], ["no photo"]]  # rows 3, 4, 5, 2
    assert [len(f.all("img")) for f in figures] == [1, 0, 1, 0]
    whole = written(tmp_path, collection(tmp_path / "gone", [0, 0, 1, 1, -1, -1], "TC"), [outcome])
    assert not whole.all("img")
    assert len(whole.all("span", "gone")) == len(whole.all("figure")) == 1 + 4 + 3


def test_names_from_data_are_text_whatever_they_hold(tmp_path: Path) -> None:
    database, outcome = small(tmp_path, name=NASTY, names=[NASTY, "Coat"])
    database.paths[:] = [f"img/{NASTY}{i}.png" for i in range(6)]
    draw(database)
    (tmp_path / database.paths[4]).unlink()
    table = Table(NASTY, NASTY, ["signal", NASTY], [[NASTY, "1"], ["deep", NASTY]], ["{}"] * 2)
    page = written(tmp_path, database, [outcome] * 2, [(NASTY, NASTY)], [table], NASTY)
    assert page.all("h1")[0].text == page.all("title")[0].text == NASTY
    assert [page.all(tag)[0].text for tag in ("dt", "dd")] == [NASTY, NASTY]
    assert table_of(page, NASTY) == [["signal", NASTY], [NASTY, "1"], ["deep", NASTY]]
    assert [row[0] for row in table_of(page, "Overview")[1:]] == [NASTY.capitalize()] * 2
    [tile] = page.all("li")[0].all("figure")
    assert page.all("li")[0].all("small")[0].text == database.paths[5]
    assert tile.all("img")[0].attributes["alt"] == database.paths[5]
    assert tile.all("span")[-1].attributes["title"] == database.paths[5]
    assert tile.all("span")[-1].text == f"{NASTY}5.png"
    assert f"{NASTY} answered by Coat: 1 of 2" in cells(page)
    marks = {b.text for b in page.all("b")}
    assert all(mark.startswith(("Query", "First", "No", *"12345")) for mark in marks)


def test_tables_are_shown_as_they_are(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    values = [["one view", 0.276, None], ["two views", 0.3125, (-0.004, 0.013)]]
    rows = [["one view", "27.6%", ""], ["two views", "31.2%", "-0.4% to +1.3%"]]
    formats = ["{}", "{:.1%}", "{:+.1%} to {:+.1%}"]
    gains = Table("Gains", "In points.", ["Query", "Recall@1", "Gain"], values, formats)
    tables = [gains, Table("Empty", "", ["Signal", "Value"], [], ["{}"] * 2)]
    page = written(tmp_path, database, [outcome], tables=tables)
    assert table_of(page, "Gains") == [["Query", "Recall@1", "Gain"], *rows]
    assert gains.as_json() == {"title": "Gains", "note": "In points.",
                               "header": ["Query", "Recall@1", "Gain"], "rows": values}  # fmt: skip
    assert table_of(page, "Empty") == [["Signal", "Value"]]
    titles = [h.text for h in page.all("h2")]
    assert titles.index("Item") < titles.index("Gains") < titles.index("Empty")
    assert "In points." in [p.text for p in page.all("p")]
    [region] = [d for d in page.all("div", "scroll") if d.attributes["aria-label"] == "Gains"]
    assert [c.text for c in region.all("td", "n")] == [c for row in rows for c in row[1:]]
    with pytest.raises(ValueError, match="zip"):
        Table("Ragged", "", ["a", "b"], [["1"]], ["{}"] * 2).shown()


def test_the_file_needs_nothing_else(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    draw(database)
    page = written(tmp_path, database, [outcome] * 2)
    text = (tmp_path / "out/report.html").read_text("utf-8")
    assert "http://" not in text
    assert "https://" not in text
    style = page.all("style")[0].text
    assert "url(" not in style
    assert "@import" not in style
    for tag in ("script", "link", "iframe", "object", "use", "base"):
        assert not page.all(tag)
    assert page.all("img")
    assert all(i.attributes["src"].startswith("data:image/jpeg;base64,") for i in page.all("img"))
    assert all(a.attributes["href"].startswith("#") for a in page.all("a"))


def test_the_page_can_be_read_aloud(tmp_path: Path) -> None:
    database, outcome = small(tmp_path)
    table = Table("t", "", ["a", "b"], [["c", "1"]], ["{}"] * 2)
    page = written(tmp_path, database, [outcome], tables=[table])
    [html] = page.all("html")
    assert html.attributes["lang"] == "en-GB"
    main = html.all("main")[0]
    levels = [int(n.tag[1]) for n in walk(main) if n.tag in {"h1", "h2", "h3", "h4"}]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(b <= a + 1 for a, b in pairwise(levels))
    assert {th.attributes.get("scope") for th in page.all("th")} == {"col", "row"}
    for drawing in page.all("svg"):
        assert drawing.attributes["role"] == "img"
        assert drawing.children[0].tag == "title"


def walk(node: Node):
    for child in node.children:
        if isinstance(child, Node):
            yield child
            yield from walk(child)
