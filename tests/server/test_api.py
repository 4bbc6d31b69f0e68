"""The JSON interface: its description, its errors, its figures, its pictures."""

import io
import re
from collections.abc import Callable

import httpx
import pytest
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

from server.collection import Collection
from tests.server.web_base import post

pytest_plugins = ("tests.server.web_base",)


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
                if int(status) >= 400:
                    assert list(response["content"]) == ["application/problem+json"]
    form = described["paths"]["/api/search"]["post"]["requestBody"]["content"]
    assert set(form["multipart/form-data"]["schema"]["properties"]) == {"file", "options"}


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
        (404, lambda client: client.get("/api/items/263")),
        (404, lambda client: client.get("/api/image/263")),
        (404, lambda client: client.get("/api/image/0?v=older")),
        (404, lambda client: client.get("/api/nothing")),
        (404, lambda client: client.get("/page/nothing.js")),
        (405, lambda client: client.get("/api/search")),
        (405, lambda client: client.delete("/api/items/0")),
        (405, lambda client: client.post("/page/main.js")),
        (413, lambda client: post(client, b"0" * 20_000_001)),
        (415, lambda client: client.post("/api/search", json={"pictures": [0]})),
        (415, lambda client: client.post("/api/search")),
        (422, lambda client: client.get("/api/items/first")),
        (422, lambda client: client.get("/api/items/-1")),
        (422, lambda client: client.get("/api/image/0?size=15")),
        (422, lambda client: client.get("/api/image/0?size=4096")),
        (409, lambda client: post(client, b"no picture")),
        (422, lambda client: client.post("/api/search", files={"options": (None, "{")})),
        (422, lambda client: client.post("/api/search", files={"options": (None, b"\xff")})),
        (422, lambda client: client.post("/api/search", files={"other": (None, "1")})),
        (422, lambda client: client.post("/api/search", files={"file": (None, "text")})),
        (422, lambda client: client.post("/api/search", content=b"--y", headers={
            "Content-Type": "multipart/form-data; boundary=x"})),
        (422, lambda client: client.post("/api/search", content=b"--y", headers={
            "Content-Type": "multipart/form-data"})),
        (422, lambda client: client.post("/api/explain", content=b"{")),
        (422, lambda client: client.post("/api/explain", content=b"\xff\xfe")),
        (422, lambda client: client.post("/api/explain", json={"search": {}})),
        (404, lambda client: client.post("/api/explain", json={"search": {}, "answer": 263})),
    ],
)  # fmt: skip
def test_every_error_is_a_problem(client: httpx.Client, status: int, send: Callable) -> None:
    """RFC 9457: five members, of which the detail says what is wrong in words."""
    response = send(client)
    assert response.status_code == status, response.text
    assert response.headers["Content-Type"] == "application/problem+json"
    told = response.json()
    assert list(told) == ["type", "title", "status", "detail", "instance"]
    assert told["status"] == status
    assert told["instance"] == response.request.url.path
    assert len(told["detail"]) > 8
    if status == 405:
        assert response.headers["Allow"]


def test_the_metrics_can_be_read_by_prometheus(client: httpx.Client) -> None:
    """And count what is asked, by route and status; what no route names is one line of all."""

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
        ("/api/items/7", "/api/items/{id}", "200"),
        ("/api/items/999", "/api/items/{id}", "404"),
        ("/api/collection", "/api/collection", "200"),
        ("/no/such/page", "other", "404"),
    ]:
        before = count(route, status)
        client.get(path)
        assert count(route, status) == before + 1


def test_a_picture_of_the_collection_is_told(client: httpx.Client, collection: Collection) -> None:
    told = client.get("/api/items/200").json()
    assert told["path"] == collection.database.paths[200]
    assert told["category"] == collection.database.category(200)
    assert told["item"] == str(collection.database.items[200])
    assert client.get(told["image"]).status_code == 200


@pytest.mark.parametrize(("size", "side"), [(64, 64), (100, 128), (384, 300), (2048, 300)])
def test_pictures_are_scaled_down_never_up(client: httpx.Client, size: int, side: int) -> None:
    response = client.get(f"/api/image/0?size={size}")
    assert response.headers["Content-Type"] == "image/jpeg"
    assert response.headers["Cache-Control"] == "no-cache"
    with Image.open(io.BytesIO(response.content)) as picture:
        assert max(picture.size) == side


def test_what_is_named_by_its_version_is_kept_by_the_browser(client: httpx.Client) -> None:
    address = client.get("/api/items/3").json()["image"]
    assert "immutable" in client.get(address).headers["Cache-Control"]


def test_the_collection_is_told(client: httpx.Client, collection: Collection) -> None:
    told = client.get("/api/collection").json()
    assert told["pictures"] == len(collection)
    assert sum(told["categories"].values()) == len(collection)
    assert told["items"] == len(set(collection.database.items.tolist()) - {""})
    engines = {one["name"]: one for one in told["engines"]}
    assert engines["exact"]["ready"]
    assert engines["exact"]["recall"] == 1
    assert engines["kmeans"]["searched"] == "4 of 6 clusters"
    assert not engines["milvus"]["ready"]
    assert "run: python milvus_push.py" in engines["milvus"]["reason"]
    assert str(collection.config.DATASET_BASE.parent) not in client.get("/api/collection").text
