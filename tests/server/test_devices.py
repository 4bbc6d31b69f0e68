"""The page on screens of any size, with keys, fingers and cameras, in a real headless browser."""

from pathlib import Path

import pytest

from tests.server.web_browser import NARROW, ROOMY, Watched, expect

pytest_plugins = ("tests.server.web_base", "tests.server.web_browser")


def test_keys_are_enough(at: Watched, ids: list[str]) -> None:
    at.open(f"/?picture={ids[7]}")
    first = at.answered()
    press = at.page.keyboard.press
    press("Tab")
    expect(at.page.locator(".skip")).to_be_focused()
    press("Enter")
    press("Tab")
    cards = at.page.locator("#grid .from")
    expect(cards.first).to_be_focused()
    press("ArrowRight")
    expect(cards.nth(1)).to_be_focused()
    press("ArrowDown")
    press("ArrowUp")
    expect(cards.nth(1)).to_be_focused()
    press("w")
    expect(at.page.locator("#why")).to_be_visible()
    press("Escape")
    expect(at.page.locator("#why")).to_be_hidden()
    expect(cards.nth(1)).to_be_focused()
    second = at.after(lambda: press("Enter"))
    assert second != first
    expect(cards.first).to_be_focused()
    press("ArrowRight")
    at.after(lambda: press("+"))
    expect(at.page.locator("#likes .like")).to_have_count(1)
    expect(cards.nth(1)).to_be_focused()
    for _ in range(40):
        press("Shift+Tab")
        if at.page.evaluate("document.activeElement.id") == "balance":
            break
    else:
        raise AssertionError("the slider cannot be reached by Tab")
    before = float(at.page.locator("#balance").input_value())
    at.after(lambda: press("ArrowRight"))
    assert at.options()["balance"] > before


@pytest.mark.parametrize("size", [NARROW, ROOMY], ids=["narrow", "wide"])
def test_it_fits_the_screen(at: Watched, photo: Path, size: dict) -> None:
    """At 400 px no view has to be scrolled sideways."""
    at.page.set_viewport_size(size)

    def fits() -> None:
        width = at.page.evaluate("document.scrollingElement.scrollWidth")
        assert width <= size["width"]

    at.open()
    fits()
    at.upload(photo)
    fits()
    if size is NARROW:
        expect(at.page.locator("#balance")).to_be_hidden()
        at.page.locator("#options > summary").click()
    expect(at.page.locator("#balance")).to_be_visible()
    fits()
    columns = at.page.locator("#grid .card").evaluate_all(
        "all => all.filter((card) => card.offsetTop === all[0].offsetTop).length"
    )
    assert columns >= (2 if size is NARROW else 6)
    at.page.get_by_role("button", name="Why").first.click()
    expect(at.page.locator("#why")).to_be_visible()
    fits()
    at.page.keyboard.press("Escape")
    at.page.get_by_role("button", name="Map").click()
    expect(at.page.locator("#mapstatus")).to_contain_text("263 pictures")
    fits()


def test_it_has_a_light_and_a_dark_theme(at: Watched) -> None:
    """The system's, until the button is used; its choice is remembered."""

    def paper() -> str:
        return at.page.evaluate("getComputedStyle(document.body).backgroundColor")

    at.page.emulate_media(color_scheme="light")
    at.open()
    light = paper()
    at.page.emulate_media(color_scheme="dark")
    dark = paper()
    assert dark != light
    at.page.click("#theme")
    assert paper() == light
    at.page.reload()
    at.page.wait_for_selector("html[data-ready]")
    assert paper() == light
    at.page.click("#theme")
    at.page.emulate_media(color_scheme="light")
    assert paper() == dark


def test_the_description_loads_nothing_from_elsewhere(at: Watched) -> None:
    at.page.goto(at.address + "/docs")
    expect(at.page.locator(".opblock-summary-path").first).to_be_visible()
    assert any("swagger-ui-bundle" in one.url for one in at.requests)


COUNT = """() => {
    window.streams = [];
    const original = navigator.mediaDevices.getUserMedia.bind(navigator.mediaDevices);
    navigator.mediaDevices.getUserMedia = async (wanted) => {
        const stream = await original(wanted);
        streams.push(stream);
        return stream;
    };
}"""


@pytest.fixture
def allowed(at: Watched) -> Watched:
    """The page with a camera, which shows a moving picture of the browser's own."""
    at.page.context.grant_permissions(["camera"])
    return at


def test_a_photograph_is_a_query(allowed: Watched) -> None:
    """The camera is on while the dialog is open, and no longer."""
    at = allowed
    at.open()
    on = "document.getElementById('viewfinder').srcObject?.active ?? false"
    at.page.evaluate(COUNT)
    at.page.evaluate("photograph.click(), photograph.click()")
    expect(at.page.locator("#shoot")).to_be_focused()
    assert at.page.evaluate(on)
    at.page.keyboard.press("Escape")
    expect(at.page.locator("#camera")).to_be_hidden()
    at.until(f"!({on})")
    at.page.click("#photograph")
    expect(at.page.locator("#shoot")).to_be_enabled()
    size = at.page.evaluate("[viewfinder.videoWidth, viewfinder.videoHeight]")
    at.after(lambda: at.page.dblclick("#shoot"))
    expect(at.page.locator("#camera")).to_be_hidden()
    assert at.uploads() == [1]
    preview = at.page.locator("#preview")
    expect(preview).to_be_visible()
    assert preview.evaluate("one => [one.naturalWidth, one.naturalHeight]") == size
    assert at.page.evaluate("streams.length") == 2
    at.until("!streams.some((stream) => stream.active)")


def test_a_refused_camera_shows_an_error(at: Watched) -> None:
    at.open()
    at.page.click("#photograph")
    expect(at.page.locator("#error")).to_contain_text("The camera is not allowed for this page")
    expect(at.page.locator("#camera")).to_be_hidden()


def test_a_phone_uses_its_own_camera(browser, server, photo: Path) -> None:
    """And two fingers zoom the map, one moves it."""
    phone = {"viewport": NARROW, "has_touch": True, "is_mobile": True}
    with browser.new_context(**phone) as context:
        at = Watched(context.new_page(), server.address)
        at.open()
        with at.page.expect_file_chooser() as chooser:
            at.page.tap("#photograph")
        assert chooser.value.element.get_attribute("capture") == "environment"
        chooser.value.set_files(photo)
        at.answered()
        at.page.get_by_role("button", name="Map").tap()
        expect(at.page.locator("#mapstatus")).to_contain_text("263 pictures")
        canvas = at.page.locator("#canvas")
        canvas.scroll_into_view_if_needed()
        box = canvas.bounding_box()
        middle = (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        hand = context.new_cdp_session(at.page)

        def touch(kind: str, *fingers: tuple[float, float]) -> None:
            points = [{"x": middle[0] + x, "y": middle[1] + y} for x, y in fingers]
            hand.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        def drawn() -> str:
            at.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => done()))")
            return canvas.evaluate("canvas => canvas.toDataURL()")

        before = drawn()
        touch("touchStart", (-20, 0), (20, 0))
        for step in range(1, 9):
            touch("touchMove", (-20 - 8 * step, 0), (20 + 8 * step, 0))
        touch("touchEnd")
        apart = drawn()
        assert apart != before
        touch("touchStart", (-84, 0), (84, 0))
        for step in range(1, 9):
            touch("touchMove", (-84 + 8 * step, 0), (84 - 8 * step, 0))
        touch("touchEnd")
        together = drawn()
        assert together != apart
        touch("touchStart", (0, 0))
        touch("touchMove", (0, 30))
        touch("touchMove", (0, 60))
        touch("touchEnd")
        assert drawn() != together
        expect(at.page.locator("#map")).to_be_visible()  # it was no click on a picture
