"""Access, limits and security headers of a real server."""

import asyncio
import base64
import json
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from fastapi.testclient import TestClient
from starlette.types import ASGIApp

from config import Config
from server import guard, ranking
from server.api import build_app
from server.guard import HEADERS
from server.live import LiveCollection
from tests.server.web_base import Server, post

pytest_plugins = ("tests.server.web_base",)
TOKEN, USER, PASSWORD = "a token", "ann", "pass:wörd"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def guarded(served: Path) -> ASGIApp:
    """The application with both kinds of authentication, for uploads up to 1 MB."""
    credentials = {"TOKEN": TOKEN, "USER": USER, "PASSWORD": PASSWORD}
    config = Config(DATASET_BASE=served, DEVICE="cpu", MAX_UPLOAD=1, **credentials, _env_file=None)
    return build_app(config, LiveCollection(config))


def basic(user: str, password: str) -> str:
    """The header of a name and a password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def guest(guarded: ASGIApp) -> Iterator[httpx.Client]:
    """A client of the guarded application without credentials."""
    with TestClient(guarded, "http://127.0.0.1", raise_server_exceptions=False) as client:
        yield client


@pytest.fixture
def member(guest: httpx.Client) -> httpx.Client:
    """A client of the guarded server with its token."""
    guest.headers["Authorization"] = f"Bearer {TOKEN}"
    return guest


@pytest.mark.parametrize(
    "credentials", [f"Bearer {TOKEN}", f"bearer {TOKEN}", basic("", TOKEN), basic("any", TOKEN),
                    basic(USER, PASSWORD)]
)  # fmt: skip
def test_right_credentials_give_access(guest: httpx.Client, credentials: str) -> None:
    headers = {"Authorization": credentials}
    assert guest.get("/api/health", headers=headers).status_code == 200


def check_unauthorised(response: httpx.Response) -> None:
    """Nothing but what to send."""
    assert response.status_code == 401
    schemes = response.headers["WWW-Authenticate"]
    assert schemes.startswith("Basic realm=")
    assert schemes.endswith(", Bearer")
    assert response.json()["title"] == "Unauthorized"
    assert response.headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize(
    "credentials", ["", "Bearer", "Bearer a", f"Bearer {TOKEN}s", f"Bearer {PASSWORD.encode()!r}",
                    basic(USER, "wrong"), basic("bob", PASSWORD), basic("", ""), basic(USER, ""),
                    "Basic !!", "Basic ü", f"Digest {TOKEN}", TOKEN]
)  # fmt: skip
def test_wrong_credentials_give_none(guest: httpx.Client, credentials: str) -> None:
    headers = {"Authorization": credentials.encode()} if credentials else {}
    check_unauthorised(guest.get("/api/health", headers=headers))


@pytest.mark.parametrize("path", ["/", "/api/image/0", "/page/main.js", "/docs", "/openapi.json"])
def test_no_path_is_open(guest: httpx.Client, path: str) -> None:
    check_unauthorised(guest.get(path))


def test_without_a_token_none_is_needed(client: httpx.Client) -> None:
    assert client.get("/api/health").status_code == 200
    assert client.get("/api/health", headers={"Authorization": "Bearer x"}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil"])
def test_another_host_is_refused(client: httpx.Client, host: str) -> None:
    """Guards against a page elsewhere whose name is made to lead here (DNS rebinding)."""
    assert client.get("/api/health", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8000", "LOCALHOST:80"])
def test_the_names_of_this_machine_are_accepted(client: httpx.Client, host: str) -> None:
    assert client.get("/api/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://127.0.0.1.evil.example", "null"]
)
def test_a_page_of_another_host_is_refused(client: httpx.Client, origin: str) -> None:
    response = client.post("/api/search", headers={"Origin": origin})
    assert response.status_code == 403
    assert client.get("/api/health", headers={"Origin": origin}).status_code == 403


def test_its_own_page_is_accepted(client: httpx.Client, server: Server) -> None:
    assert client.get("/api/health", headers={"Origin": server.address}).status_code == 200


@pytest.mark.parametrize("path", ["/api/search", "/api/explain"])
def test_too_long_a_body_is_refused(member: httpx.Client, path: str) -> None:
    """Before anything of it is read; so is one of unknown length."""
    response = member.post(path, content=b"0" * (MEGABYTE + 1))
    assert response.status_code == 413
    assert response.headers["Content-Type"] == "application/problem+json"
    assert "MAX_UPLOAD" in response.json()["detail"]
    assert member.post(path, content=iter([b"0"])).status_code == 411
    assert member.get("/api/health").status_code == 200


def test_a_wrong_content_length_is_refused(server: Server) -> None:
    address = urlsplit(server.address)
    for length in ("-1", "1e3", "9" * 5000):
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            head = (
                f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
            )
            connection.sendall(head.encode())
            answer = connection.recv(1000)
        assert answer.split()[1] in {b"400", b"413"}


@pytest.mark.parametrize("path", ["/", "/api/health", "/api/image/0", "/page/main.js", "/docs"])
def test_every_response_has_the_security_headers(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    for name, value in HEADERS.items():
        assert headers[name] == value
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert ("unsafe" in policy) == (path == "/docs")
    assert "server" not in headers


@pytest.mark.parametrize(
    "path",
    [
        "/api/image/../../etc/passwd", "/api/image/..%2f..%2fetc%2fpasswd", "/api/image/0%00.jpg",
        "/api/image//etc/passwd", "/api/image/-1", "/api/image/263", "/page/..%2fapi.py",
        "/page/../api.py", "/page/%2e%2e/api.py", "/page/..%5capi.py", "/page//etc/passwd",
        "/page/%00", "/page/", "/config.py", "//etc/passwd", "/img/x.jpg", "/docs/..%2fweb.py",
    ],
)  # fmt: skip
def test_no_path_leads_out(server: Server, path: str) -> None:
    """Sent as it is, since a client would tidy it up."""
    address = urlsplit(server.address)
    with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
        head = f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    head, _, body = answer.partition(b"\r\n\r\n")
    assert int(answer.split()[1]) in {404, 405, 422}
    assert b"application/problem+json" in head
    assert json.loads(body)["status"] == int(answer.split()[1])
    assert b"root:" not in body


def test_a_slow_client_does_not_hold_the_server(
    guarded: ASGIApp, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a search, and of JSON: both are answered before the body is there."""
    monkeypatch.setattr(guard, "BODY_SECONDS", 0.1)
    headers = {"Authorization": f"Bearer {TOKEN}", "Content-Length": "99"}

    async def body() -> AsyncIterator[bytes]:
        yield b"-"
        await asyncio.Event().wait()

    async def send(path: str, kind: str) -> httpx.Response:
        transport = httpx.ASGITransport(guarded)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            kinds = {"Content-Type": kind}
            return await client.post(path, content=body(), headers=headers | kinds)

    for path, kind in (
        ("/api/search", "multipart/form-data; boundary=x"),
        ("/api/explain", "application/json"),
    ):
        response = asyncio.run(send(path, kind))
        assert response.status_code == 408
        assert "not sent within" in response.json()["detail"]


def test_a_bug_is_a_problem_with_the_security_headers(
    member: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    def evenly_spaced(*_: object) -> None:
        raise ZeroDivisionError("of the program")

    monkeypatch.setattr(ranking, "evenly_spaced", evenly_spaced)
    response = post(member)
    assert response.status_code == 500
    assert response.headers["content-type"] == "application/problem+json"
    assert response.headers["x-content-type-options"] == "nosniff"
    assert "of the program" not in response.text
