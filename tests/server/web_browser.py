"""What the tests of the page share: a real headless browser with the page of a small collection."""

import json
import os
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from tests.server.web_base import Server, query_file

try:
    from playwright import sync_api
except ImportError:
    pytest.skip("playwright is not installed", allow_module_level=True)
expect = sync_api.expect
expect.set_options(timeout=30_000)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if not CHROMIUM:
    pytest.skip("no chromium is installed", allow_module_level=True)

FLAGS = ["--disable-background-networking", "--use-fake-device-for-media-stream",
         "--host-resolver-rules=MAP shop.example 127.0.0.1"]  # fmt: skip
if hasattr(os, "geteuid") and os.geteuid() == 0:
    FLAGS.append("--no-sandbox")
ROOMY, NARROW = {"width": 1600, "height": 1000}, {"width": 400, "height": 800}


@pytest.fixture(scope="module")
def browser() -> Iterator:
    """Debian's Chromium."""
    with sync_api.sync_playwright() as playwright:
        running = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield running
        running.close()


# Playwright does not see the fields of a form with files: record what the page sends.
RECORD = """
    window.searches = [];
    const send = window.fetch;
    window.fetch = (address, options) => {
        const body = options?.body;
        if (body instanceof FormData)
            window.searches.push([body.getAll("file").length, body.get("options")]);
        return send(address, options);
    };
"""


class Watched:
    """An opened page, with its requests and errors."""

    def __init__(self, page, address: str) -> None:
        self.page = page
        self.address = address
        self.requests: list = []
        self.errors: list[str] = []
        self.refusals = 0  # expected error responses, which the browser logs
        page.add_init_script(RECORD)
        page.on("request", lambda request: self.requests.append(request))
        page.on("pageerror", lambda error: self.errors.append(str(error)))
        page.on("console", lambda message: self.log(message))

    def log(self, message) -> None:
        """Keep what is logged as an error."""
        if message.type == "error":
            self.errors.append(message.text)

    def open(self, path: str = "/") -> None:
        """Load the page and wait until it is ready."""
        self.page.goto(self.address + path)
        self.page.wait_for_selector("html[data-ready]")

    def until(self, expression: str) -> None:
        """Wait until an expression is true; the page's policy forbids Playwright's own way."""
        end = time.monotonic() + 30
        while not self.page.evaluate(expression):
            assert time.monotonic() < end, expression
            time.sleep(0.02)

    def uploads(self) -> list[int]:
        """The number of pictures that each search sent, where it sent some."""
        return [files for files, _ in self.page.evaluate("window.searches") if files]

    def options(self) -> dict:
        """Of the last search."""
        return json.loads(self.page.evaluate("window.searches.at(-1)[1]"))

    def upload(self, *files: Path | bytes) -> None:
        """Choose files, and wait for the answers."""
        self.choose(*files)
        self.answered()

    def choose(self, *files: Path | bytes) -> None:
        """Choose files by the page's own field."""
        found = [
            {"name": "a.jpg", "mimeType": "image/jpeg",
             "buffer": one if isinstance(one, bytes) else one.read_bytes()}
            for one in files
        ]  # fmt: skip
        self.page.set_input_files("#file", found)

    def answered(self, count: int = 20) -> list[str]:
        """Wait for answers; their paths."""
        expect(self.page.locator("#status b")).to_contain_text(f"{count} answers")
        return self.paths()

    def paths(self) -> list[str]:
        """Of the answers shown, in their order."""
        return self.page.locator("#grid .path").all_text_contents()

    def after(self, act) -> list[str]:
        """Do something that searches, and wait for its answers; their paths."""
        with self.page.expect_response("**/api/search") as response:
            act()
        count = len(response.value.json()["answers"])
        expect(self.page.locator("#grid .card")).to_have_count(count)
        first = response.value.json()["answers"][0]["path"]
        expect(self.page.locator("#grid .path").first).to_have_text(first)
        expect(self.page.locator("#status")).not_to_have_text("Searching …")
        return self.paths()


@pytest.fixture
def at(browser, server: Server) -> Iterator[Watched]:
    """The page on a wide screen; no request leaves this machine, no error is logged."""
    with browser.new_context(viewport=ROOMY) as context:
        watched = Watched(context.new_page(), server.address)
        yield watched
        hosts = {urlsplit(one.url).hostname for one in watched.requests
                 if not one.url.startswith(("data:", "blob:"))}  # fmt: skip
        refused = [one for one in watched.errors if "the server responded with a status" in one]
        assert len(refused) == watched.refusals
        assert [one for one in watched.errors if one not in refused] == []
        assert hosts == {"127.0.0.1"}


@pytest.fixture
def photo(served: Path) -> Path:
    """A picture to search by."""
    return query_file(served)
