"""The page in a real headless browser."""

import re
from pathlib import Path

import pytest

from tests.server.web_base import png_of
from tests.server.web_browser import Watched, expect

pytest_plugins = ("tests.server.web_base", "tests.server.web_browser")


def test_an_upload_shows_answers_with_distance_category_and_path(at: Watched, photo: Path) -> None:
    at.open()
    expect(at.page.locator("#grid .card")).to_have_count(24)  # to start from
    expect(at.page.locator("#text")).to_be_hidden()  # no model knows words
    at.upload(photo)
    card = at.page.locator("#grid .card").first
    expect(card.locator(".rank")).to_have_text("1")
    expect(card.locator(".distance")).to_have_text(re.compile(r"^\d+\.\d{3}$"))
    expect(card.locator(".path")).to_have_text(re.compile(r"^(in_shop/)?img/.*\.jpg$"))
    expect(card.locator("img")).to_have_js_property("complete", True)
    assert card.locator("img").evaluate("img => img.naturalWidth") > 50
    expect(at.page.locator("#status")).to_contain_text(
        re.compile(r"network \d+ ms.*ranking \d+ ms")
    )


def test_a_picture_may_be_dropped_or_pasted(at: Watched) -> None:
    at.open()
    data = png_of("#b3202c").hex()
    for kind in ("drop", "paste"):
        at.after(lambda kind=kind: at.page.evaluate(
            """([kind, hex]) => {
                const bytes = new Uint8Array(hex.match(/../g).map((pair) => parseInt(pair, 16)));
                const data = new DataTransfer();
                data.items.add(new File([bytes], "a.png", { type: "image/png" }));
                const Kind = kind === "drop" ? DragEvent : ClipboardEvent;
                const given = kind === "drop" ? { dataTransfer: data } : { clipboardData: data };
                const event = new Kind(kind, { bubbles: true, cancelable: true, ...given });
                document.body.dispatchEvent(event);
            }""", [kind, data]))  # fmt: skip
        at.answered()
        if kind == "drop":
            at.after(lambda: at.page.click("#clear"))
    assert at.uploads() == [1, 1]


def test_a_box_searches_for_its_part_of_the_picture(at: Watched, photo: Path) -> None:
    at.open()
    at.upload(photo)
    whole = at.paths()
    box = at.page.locator("#picture").bounding_box()
    x, y, width, height = box["x"], box["y"], box["width"], box["height"]

    def draw() -> None:
        at.page.mouse.move(x + 0.1 * width, y + 0.1 * height)
        at.page.mouse.down()
        at.page.mouse.move(x + 0.4 * width, y + 0.5 * height, steps=4)
        at.page.mouse.up()

    part = at.after(draw)
    assert part != whole
    size = at.page.locator("#preview").evaluate("img => [img.naturalWidth, img.naturalHeight]")
    wanted = [0.1 * size[0], 0.1 * size[1], 0.4 * size[0], 0.5 * size[1]]
    assert at.options()["box"] == pytest.approx(wanted, abs=2)
    at.page.locator("#box").focus()
    at.after(lambda: at.page.keyboard.press("ArrowRight"))
    assert at.options()["box"][0] == pytest.approx(wanted[0] + 0.02 * size[0], abs=2)
    assert at.after(lambda: at.page.click("#whole")) == whole


def test_the_slider_ranks_again_without_another_upload(at: Watched, photo: Path) -> None:
    at.open()
    at.upload(photo)
    seen = at.paths()
    slider = at.page.locator("#balance")
    by_color = at.after(lambda: slider.fill("1"))
    assert at.options()["balance"] == 1
    by_cut = at.after(lambda: slider.fill("0"))
    assert len({tuple(paths) for paths in (seen, by_color, by_cut)}) == 3
    assert at.uploads() == [1]
    expect(at.page.locator("#status")).not_to_contain_text("network")
    expect(at.page.locator("#balancetext")).to_have_text("Cut and texture only.")


def test_a_click_searches_from_an_answer_and_back_returns(at: Watched, ids: list[str]) -> None:
    at.open(f"/?picture={ids[7]}")
    first = at.answered()
    second = at.after(lambda: at.page.locator("#grid .from").nth(2).click())
    assert second != first
    assert first[2] not in second
    assert "picture=" in at.page.url
    at.after(lambda: at.page.go_back())
    assert at.paths() == first
    at.after(lambda: at.page.go_forward())
    assert at.paths() == second


def test_a_link_to_a_picture_that_is_gone_says_so(at: Watched) -> None:
    at.refusals = 2  # the search, and the picture
    at.open(f"/?picture={'0' * 16}")
    expect(at.page.locator("#preview")).to_be_hidden()
    expect(at.page.locator("#boxhint")).to_have_text("This picture cannot be shown.")


def test_filters_narrow_the_answers(at: Watched, ids: list[str]) -> None:
    at.open(f"/?picture={ids[200]}")
    at.answered()
    at.after(lambda: at.page.select_option("#category", "Blouse"))
    cards = at.page.locator("#grid .about > span:nth-child(2)").all_text_contents()
    assert all(text.startswith("Blouse") for text in cards)
    at.after(lambda: at.page.select_option("#category", ""))
    at.after(lambda: at.page.check("#peritem"))
    titles = at.page.locator("#grid .about > span:nth-child(2)").evaluate_all(
        "all => all.map((one) => one.title).filter(Boolean)"
    )
    assert len(titles) == len(set(titles)) > 3
    at.after(lambda: at.page.select_option("#engine", "kmeans"))
    expect(at.page.locator("#status")).to_contain_text(re.compile(r"[1-5] of 6 clusters"))
    expect(at.page.locator("#status")).to_contain_text("expected recall")
    assert at.page.locator("#engine option[value=milvus]").evaluate("one => one.disabled")


def test_a_hundred_answers_are_shown(at: Watched, ids: list[str]) -> None:
    at.open(f"/?picture={ids[200]}")
    at.answered()
    paths = at.after(lambda: at.page.select_option("#count", "100"))
    assert len(set(paths)) == 100


def test_a_colour_without_and_with_a_picture(at: Watched) -> None:
    at.open()
    red = at.after(lambda: at.page.click("[data-color='#b3202c']"))
    expect(at.page.locator("[data-color='#b3202c']")).to_have_attribute("aria-pressed", "true")
    blue = at.after(lambda: at.page.click("[data-color='#2c5fa8']"))
    assert set(red[:5]).isdisjoint(blue[:5])
    at.after(lambda: at.page.locator("#grid .from").first.click())
    assert at.options()["color"] == "#2c5fa8"
    assert len(at.options()["pictures"]) == 1


def test_more_like_less_like_and_other_colour(at: Watched, ids: list[str]) -> None:
    at.open(f"/?picture={ids[7]}")
    plain = at.answered()
    more = at.page.get_by_role("button", name="more like this")
    liked = at.after(lambda: more.nth(4).click())
    assert plain[4] not in liked
    expect(at.page.locator("#likes .like")).to_have_count(1)
    at.after(lambda: at.page.get_by_role("button", name="less like this", exact=True).first.click())
    expect(at.page.locator("#likes .unlike")).to_have_count(1)
    assert len(at.options()["like"]) == len(at.options()["unlike"]) == 1
    for _ in range(2):
        at.after(lambda: at.page.locator("#likes button").first.click())
    assert at.paths() == plain
    expect(at.page.locator("#feedback")).to_be_hidden()
    at.after(lambda: at.page.check("#othercolor"))
    expect(at.page.locator("#status")).to_contain_text("different colours first")


def test_several_pictures_are_one_query(at: Watched, photo: Path) -> None:
    at.open()
    at.upload(photo)
    one = at.paths()
    both = at.after(lambda: at.choose(png_of("#2c5fa8")))
    assert both != one
    assert at.uploads() == [1, 2]
    expect(at.page.locator("#pictures li")).to_have_count(2)
    assert at.after(lambda: at.page.get_by_label("remove picture 2").click()) == one


DRAWN = """canvases => canvases.map((canvas) => {
    const { data } = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
    return new Set(new Uint32Array(data.buffer)).size;
})"""  # the number of different pixels
PIXELS = "canvases => canvases.map((canvas) => canvas.toDataURL())"


def test_why_shows_bars_and_similar_regions(at: Watched, ids: list[str]) -> None:
    at.open(f"/?picture={ids[7]}")
    at.answered()
    at.page.get_by_role("button", name="Why").nth(2).click()
    dialog = at.page.locator("#why")
    expect(dialog).to_be_visible()
    expect(dialog.locator("h2")).to_have_text("Why answer 3 has its rank")
    expect(dialog.locator(".bar")).to_have_count(3)
    distance = at.page.locator("#grid .distance").nth(2).inner_text()
    expect(dialog.locator("#bars")).to_contain_text(f"Distance: {distance}")
    canvases = dialog.locator("canvas")
    expect(canvases).to_have_count(2)
    assert min(canvases.evaluate_all(DRAWN)) > 100
    regions = canvases.evaluate_all(PIXELS)
    canvases.first.hover(position={"x": 30, "y": 30})
    assert canvases.evaluate_all(PIXELS) != regions
    dialog.get_by_role("button", name="Colour cells").click()
    assert min(canvases.evaluate_all(DRAWN)) > 100
    cells = canvases.evaluate_all(PIXELS)
    assert all(one != other for one, other in zip(cells, regions, strict=True))
    at.page.keyboard.press("Escape")
    expect(dialog).to_be_hidden()


def test_the_map_shows_points_and_a_click_searches(at: Watched) -> None:
    at.open()
    at.page.get_by_role("button", name="Map").click()
    expect(at.page.locator("#mapstatus")).to_contain_text("263 pictures")
    expect(at.page.locator("#clusters li")).to_have_count(6)
    expect(at.page.locator("#legend li").first).to_be_visible()
    canvas = at.page.locator("#canvas")
    assert canvas.evaluate_all(DRAWN)[0] > 10
    spot = canvas.evaluate(
        """canvas => {
            const context = canvas.getContext("2d"), { width, height } = canvas;
            const { data } = context.getImageData(0, 0, width, height);
            const place = data.findIndex((value, i) => i % 4 === 3 && value === 255) >> 2;
            const ratio = width / canvas.clientWidth;
            return { x: (place % width) / ratio, y: Math.floor(place / width) / ratio };
        }"""
    )
    at.after(lambda: canvas.click(position={"x": spot["x"], "y": spot["y"] + 2}))
    expect(at.page.locator("#search")).to_be_visible()
    assert len(at.options()["pictures"]) == 1
    at.page.get_by_role("button", name="Map").click()
    at.after(lambda: at.page.locator("#clusters button").first.click())


def test_a_wrong_file_shows_an_error_and_the_next_one_works(at: Watched, photo: Path) -> None:
    at.open()
    at.refusals = 1
    at.choose(b"no picture at all")
    alert = at.page.get_by_role("alert")
    expect(alert).to_contain_text("The picture: cannot be read as a picture")
    expect(alert).to_be_visible()
    expect(at.page.locator("#busy")).to_be_hidden()
    at.page.click("#clear")
    expect(alert).to_be_hidden()
    at.upload(photo)


def test_too_large_a_file_shows_an_error(at: Watched) -> None:
    at.open()
    at.refusals = 1
    at.page.evaluate(
        """() => {
            const data = new DataTransfer();
            data.items.add(new File([new Uint8Array(21e6)], "a.png", { type: "image/png" }));
            const event = new DragEvent("drop", { bubbles: true, dataTransfer: data });
            document.body.dispatchEvent(event);
        }"""
    )
    expect(at.page.get_by_role("alert")).to_contain_text("More than 20 MB")
