"""The JSON interface: its description, errors, metrics, pictures."""

import io
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from server.live import Collection
from tests.server.web_base import Server, post

pytest_plugins = ("tests.server.web_base",)
NOBODY = "0" * 16  # no picture's id


def test_the_description_is_served(client: httpx.Client) -> None:
    """Every route of the interface is in it, with its errors as problems."""
    described = client.get("/openapi.json").json()
    assert described["openapi"].startswith("3.")
    assert set(described["paths"]) == {
        "/api/search", "/api/explain", "/api/collection", "/api/map", "/api/items/{id}",
        "/api/image/{id}", "/api/health", "/api/metrics",
    }  # fmt: skip
    for path in described["paths"].values():
        for operation in path.values():
            for status, response in operation["responses"].items():
                if status[0] in "45":
                    assert list(response["content"]) == ["application/problem+json"]
    form = described["paths"]["/api/search"]["post"]["requestBody"]["content"]
    name = form["multipart/form-data"]["schema"]["$ref"].rpartition("/")[2]
    assert set(described["components"]["schemas"][name]["properties"]) == {"file", "options"}


def test_the_page_of_the_description_names_no_other_host(client: httpx.Client) -> None:
    page = client.get("/docs").text
    assert "swagger" in page
    for address in re.findall(r"""(?:src|href)=["']([^"']+)""", page):
        assert not re.match(r"(https?:)?//", address)
        if not address.startswith("data:"):
            assert client.get(address).status_code == 200


@pytest.mark.parametrize(
    ("status", "send"),
    [
        (404, lambda client: client.get(f"/api/items/{NOBODY}")),
        (404, lambda client: client.get(f"/api/image/{NOBODY}")),
        (404, lambda client: client.get("/api/nothing")),
        (404, lambda client: client.get("/page/nothing.js")),
        (405, lambda client: client.get("/api/search")),
        (405, lambda client: client.delete(f"/api/items/{NOBODY}")),
        (405, lambda client: client.post("/page/main.js")),
        (413, lambda client: post(client, b"0" * 20_000_001)),
        (415, lambda client: client.post("/api/search", json={"pictures": [NOBODY]})),
        (415, lambda client: client.post("/api/search")),
        (422, lambda client: client.get("/api/items/first")),
        (422, lambda client: client.get("/api/items/7")),
        (422, lambda client: client.get(f"/api/image/{NOBODY}?size=15")),
        (422, lambda client: client.get(f"/api/image/{NOBODY}?size=4096")),
        (409, lambda client: post(client, b"no picture")),
        (409, lambda client: post(client, text="a red dress")),  # no model knows words
        (422, lambda client: client.post("/api/search", files={"options": (None, "{")})),
        (422, lambda client: client.post("/api/search", files={"options": (None, b"\xff")})),
        (422, lambda client: client.post("/api/search", files={"other": (None, "1")})),
        (422, lambda client: client.post("/api/search", files={"file": (None, "text")})),
        (400, lambda client: client.post("/api/search", content=b"--y", headers={
            "Content-Type": "multipart/form-data; boundary=x"})),
        (400, lambda client: client.post("/api/search", content=b"--y", headers={
            "Content-Type": "multipart/form-data"})),
        (422, lambda client: client.post("/api/explain", content=b"{")),
        (422, lambda client: client.post("/api/explain", content=b"\xff\xfe")),
        (422, lambda client: client.post("/api/explain", json={"search": {}})),
        (404, lambda client: client.post("/api/explain", json={"search": {}, "answer": NOBODY})),
    ],
)  # fmt: skip
def test_every_error_is_a_problem(client: httpx.Client, status: int, send: Callable) -> None:
    """RFC 9457: five members; the detail says what is wrong."""
    response = send(client)
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    problem = response.json()
    assert list(problem) == ["type", "title", "status", "detail", "instance"]
    assert problem["status"] == status
    assert problem["instance"] == response.request.url.path
    assert len(problem["detail"]) > 8


def test_the_metrics_can_be_read_by_prometheus(client: httpx.Client, ids: list[str]) -> None:
    """They count requests by route and status; those without a route together."""

    def count(route: str, status: str) -> float:
        response = client.get("/api/metrics")
        assert response.headers["Content-Type"].startswith("text/plain")
        families = {one.name: one for one in text_string_to_metric_families(response.text)}
        (pictures,) = families["fashion_collection_pictures"].samples
        assert pictures.value == 263
        return sum(
            sample.value
            for sample in families["fashion_request_seconds"].samples
            if sample.name.endswith("_count")
            and (sample.labels["route"], sample.labels["status"]) == (route, status)
        )

    for path, route, status in [
        (f"/api/items/{ids[7]}", "/api/items/{id}", "200"),
        (f"/api/items/{NOBODY}", "/api/items/{id}", "404"),
        ("/api/collection", "/api/collection", "200"),
        ("/no/such/page", "other", "404"),
    ]:
        before = count(route, status)
        client.get(path)
        assert count(route, status) == before + 1


def test_a_picture_of_the_collection_is_described(
    client: httpx.Client, collection: Collection, ids: list[str]
) -> None:
    found = client.get(f"/api/items/{ids[200]}").json()
    assert found["id"] == ids[200]
    assert found["path"] == collection.database.paths[200]
    assert found["category"] == collection.database.category(200)
    assert found["item"] == str(collection.database.items[200])
    assert client.get(found["image"]).status_code == 200


@pytest.mark.parametrize(("size", "side"), [(64, 64), (100, 100), (384, 300), (2048, 300)])
def test_pictures_are_scaled_down_never_up(
    client: httpx.Client, ids: list[str], size: int, side: int
) -> None:
    response = client.get(f"/api/image/{ids[0]}?size={size}")
    assert response.headers["Content-Type"] == "image/jpeg"
    assert response.headers["Cache-Control"] == "no-cache"
    with Image.open(io.BytesIO(response.content)) as picture:
        assert max(picture.size) == side


def test_a_picture_with_its_version_is_cached_by_the_browser(
    client: httpx.Client, ids: list[str]
) -> None:
    address = client.get(f"/api/items/{ids[3]}").json()["image"]
    assert "immutable" in client.get(address).headers["Cache-Control"]
    other = client.get(f"/api/image/{ids[3]}?v=older")
    assert (other.status_code, other.headers["Cache-Control"]) == (200, "no-cache")


def test_the_collection_is_described(client: httpx.Client, collection: Collection) -> None:
    found = client.get("/api/collection").json()
    assert found["pictures"] == len(collection)
    assert sum(found["categories"].values()) == len(collection)
    assert found["items"] == len(set(collection.database.items.tolist()) - {""})
    engines = {one["name"]: one for one in found["engines"]}
    assert engines["exact"]["ready"]
    assert engines["exact"]["recall"] == 1
    assert engines["kmeans"]["searched"] in [f"{n} of 6 clusters" for n in range(1, 6)]
    assert not engines["milvus"]["ready"]
    assert "run: python milvus_push.py" in engines["milvus"]["reason"]
    assert str(collection.base.parent) not in client.get("/api/collection").text


def test_schemathesis_finds_nothing(server: Server, tmp_path: Path) -> None:
    """Hundreds of requests are answered as the description says; none is a fault."""
    command = Path(sys.executable).with_name("schemathesis")
    if not shutil.which(command):
        pytest.skip("schemathesis is not installed; see requirements-dev.txt")
    done = subprocess.run(
        [command, "run", f"{server.address}/openapi.json", "--max-examples", "10", "--seed", "1",
         "--no-color", "--warnings", "off"],  # of ids, which it cannot guess
        cwd=tmp_path, capture_output=True, text=True, timeout=500,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-3000:]
    assert "No issues found" in done.stdout
