"""Behind Debian's nginx, set up as docs/server.md says: below a prefix, by a name of its own."""

import os
import re
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest

from tests.conftest import ROOT, free_port
from tests.server.web_base import Server, png_of, post, serving
from tests.server.web_browser import ROOMY, Watched, expect

pytest_plugins = ("tests.server.web_base", "tests.server.web_browser")
TEMPORARY = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@pytest.fixture(scope="module")
def inner(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server that nginx passes requests to."""
    folder = tmp_path_factory.mktemp("proxy") / "run"
    with serving(served, folder, "--public-url", "http://shop.example/search/") as running:
        yield running


@pytest.fixture(scope="module")
def outer(inner: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[int]:
    """The port of nginx, which has the configuration of the documentation, ports aside."""
    nginx = shutil.which("nginx") or shutil.which("/usr/sbin/nginx")
    if not nginx:
        pytest.skip("nginx is not installed")
    folder, port = tmp_path_factory.mktemp("nginx"), free_port()
    page = (ROOT / "docs" / "server.md").read_text()
    (block,) = re.findall(r"```nginx\n(.*?)```", page, re.DOTALL)
    block = block.replace("listen 80;", f"listen 127.0.0.1:{port};")
    block = block.replace("127.0.0.1:8000", urlsplit(inner.address).netloc)
    head = "user root;" if os.geteuid() == 0 else ""
    paths = " ".join(f"{name}_temp_path {folder}/{name};" for name in TEMPORARY)
    http = f"http {{ access_log off; {paths} {block} }}"
    (folder / "nginx.conf").write_text(f"{head} pid {folder}/pid; events {{}} {http}")
    command = [nginx, "-p", folder, "-c", "nginx.conf", "-e", "errors", "-g", "daemon off;"]
    process = subprocess.Popen(command)
    end = time.monotonic() + 30
    while socket.socket().connect_ex(("127.0.0.1", port)):
        assert process.poll() is None, (folder / "errors").read_text()
        assert time.monotonic() < end
        time.sleep(0.02)
    yield port
    process.terminate()
    process.wait(timeout=30)


@pytest.fixture
def visitor(outer: int) -> Iterator[httpx.Client]:
    """A client of nginx, which sends what a browser at http://shop.example/search/ sends."""
    headers = {"Host": "shop.example", "Origin": "http://shop.example"}
    address = f"http://127.0.0.1:{outer}/search"
    with httpx.Client(base_url=address, headers=headers, timeout=60, trust_env=False) as client:
        yield client


def test_a_search_passes_and_one_from_elsewhere_does_not(visitor: httpx.Client) -> None:
    """Large ones, too, up to MAX_UPLOAD, which is 20 MB."""
    photo = png_of("#b3202c") + bytes(19_000_000)
    response = post(visitor, photo, count=3)
    assert response.status_code == 200, response.text
    image = response.json()["answers"][0]["image"]
    assert visitor.get(f"/{image}").headers["Content-Type"] == "image/jpeg"
    visitor.headers["Origin"] = "http://evil.example"
    refused = post(visitor, photo[:9000], count=3)
    assert refused.status_code == 403
    assert "PUBLIC_URL" in refused.json()["detail"]


def test_the_address_without_a_slash_leads_to_the_page(visitor: httpx.Client) -> None:
    response = visitor.get(str(visitor.base_url).rstrip("/"))
    assert response.status_code == 301
    assert urlsplit(response.headers["Location"]).path == "/search/"


@pytest.mark.parametrize("host", ["shop.example", "localhost"])
def test_a_proxy_may_pass_the_prefix_and_the_host_or_not(inner: Server, host: str) -> None:
    headers = {"Host": host, "Origin": "https://shop.example"}
    with httpx.Client(base_url=inner.address, headers=headers, trust_env=False) as client:
        for path in ("/api/health", "/search/api/health", "/search/page/main.js", "/docs"):
            assert client.get(path).status_code == 200
        servers = client.get("/search/openapi.json").json()["servers"]
        assert servers == [{"url": "/search"}]


def test_the_page_works_below_the_prefix(browser, outer: int, photo: Path) -> None:
    """All of it, by relative addresses: search, pictures, explanation, map, description."""
    with browser.new_context(viewport=ROOMY) as context:
        at = Watched(context.new_page(), f"http://shop.example:{outer}/search")
        at.open()
        at.upload(photo)
        expect(at.page.locator("#grid img").first).to_have_js_property("complete", True)
        assert at.page.locator("#grid img").first.evaluate("img => img.naturalWidth") > 50
        at.page.get_by_role("button", name="Why").first.click()
        expect(at.page.locator("#why")).to_be_visible()
        at.page.keyboard.press("Escape")
        at.after(lambda: at.page.locator("#grid .from").first.click())
        at.page.reload()
        at.answered()
        at.page.get_by_role("button", name="Map").click()
        expect(at.page.locator("#clusters img").first).to_have_js_property("complete", True)
        at.page.get_by_role("link", name="API").click()
        expect(at.page.locator(".opblock-summary-path").first).to_be_visible()
        places = [urlsplit(one.url) for one in at.requests if one.url.startswith("http")]
        assert {one.hostname for one in places} == {"shop.example"}
        assert all(one.path.startswith("/search/") for one in places)
        assert at.errors == []
