"""web_guard.py, in front of a real server: who may ask, how much, how many at once."""

import asyncio
import base64
import json
import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import httpx
import pytest
from starlette.exceptions import HTTPException
from starlette.types import Message, Receive, Scope, Send

from server import guard as web_guard
from server.guard import AT_ONCE, HEADERS, Guard
from tests.server.web_base import Server, post, serving

pytest_plugins = ("tests.server.web_base",)
TOKEN, USER, PASSWORD = "a token", "ann", "pass:wörd"
MEGABYTE = 1_000_000


@pytest.fixture(scope="module")
def guarded(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server with both kinds of authentication that takes 1 MB; every network may ask it."""
    flags = ("--token", TOKEN, "--user", USER, "--password", PASSWORD, "--max-upload", "1")
    folder = tmp_path_factory.mktemp("guarded") / "run"
    with serving(served, folder, "--host", "0.0.0.0", *flags) as running:  # noqa: S104
        yield running


def basic(user: str, password: str) -> str:
    """The header of a name and a password."""
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


@pytest.fixture
def stranger(guarded: Server) -> Iterator[httpx.Client]:
    """Asks the guarded server and shows nothing."""
    address = f"http://127.0.0.1:{urlsplit(guarded.address).port}"
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as asking:
        yield asking


@pytest.fixture
def known(stranger: httpx.Client) -> httpx.Client:
    """Asks the guarded server with its token."""
    stranger.headers["Authorization"] = f"Bearer {TOKEN}"
    return stranger


def test_with_a_token_for_every_network_no_warning(guarded: Server) -> None:
    assert guarded.said == ""
    assert guarded.address.startswith("http://0.0.0.0:")


@pytest.mark.parametrize(
    "shown", [f"Bearer {TOKEN}", f"bearer {TOKEN}", basic("", TOKEN), basic("any", TOKEN),
              basic(USER, PASSWORD)]
)  # fmt: skip
def test_who_shows_what_is_wanted_may_ask(stranger: httpx.Client, shown: str) -> None:
    assert stranger.get("/api/health", headers={"Authorization": shown}).status_code == 200


@pytest.mark.parametrize(
    "shown", ["", "Bearer", "Bearer a", f"Bearer {TOKEN}s", f"Bearer {PASSWORD.encode()!r}",
              basic(USER, "wrong"), basic("bob", PASSWORD), basic("", ""), basic(USER, ""),
              "Basic !!", "Basic ü", f"Digest {TOKEN}", TOKEN]
)  # fmt: skip
@pytest.mark.parametrize("path", ["/", "/api/health", "/api/image/0", "/page/main.js", "/docs"])
def test_who_does_not_is_told_how(stranger: httpx.Client, shown: str, path: str) -> None:
    """Of every path, the page's own too; nothing of it is told."""
    headers = {"Authorization": shown.encode()} if shown else {}
    response = stranger.get(path, headers=headers)
    assert response.status_code == 401
    schemes = response.headers["WWW-Authenticate"]
    assert schemes.startswith("Basic realm=")
    assert schemes.endswith(", Bearer")
    assert response.json()["title"] == "Unauthorized"


def test_without_a_token_nobody_is_asked_for_one(client: httpx.Client) -> None:
    assert client.get("/api/health").status_code == 200
    assert client.get("/api/health", headers={"Authorization": "Bearer x"}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example", "", "localhost.evil"])
def test_another_server_s_name_is_refused(client: httpx.Client, host: str) -> None:
    """Guards against a page elsewhere whose name is made to lead here (DNS rebinding)."""
    assert client.get("/api/health", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:8000", "LOCALHOST:80"])
def test_this_machine_s_names_are_known(client: httpx.Client, host: str) -> None:
    assert client.get("/api/health", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "origin", ["http://evil.example", "https://127.0.0.1.evil.example", "null"]
)
def test_a_page_of_another_host_may_not_ask(client: httpx.Client, origin: str) -> None:
    response = client.post("/api/search", headers={"Origin": origin})
    assert response.status_code == 403
    assert client.get("/api/health", headers={"Origin": origin}).status_code == 403


def test_the_page_s_own_origin_may_ask(client: httpx.Client, server: Server) -> None:
    assert client.get("/api/health", headers={"Origin": server.address}).status_code == 200


@pytest.mark.parametrize("path", ["/api/search", "/api/explain"])
@pytest.mark.parametrize("known_length", [True, False])
def test_too_long_a_body_is_refused(known: httpx.Client, path: str, known_length: bool) -> None:
    """With Content-Length before anything is read, else as soon as it is too much."""
    form = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    body = form + b"0" * MEGABYTE
    pieces = (body[i : i + 50_000] for i in range(0, len(body), 50_000))
    kind = "multipart/form-data; boundary=x" if path == "/api/search" else "application/json"
    headers = {"Content-Type": kind}
    response = known.post(path, content=body if known_length else pieces, headers=headers)
    assert response.status_code == 413
    assert response.headers["Content-Type"] == "application/problem+json"
    assert "MAX_UPLOAD" in response.json()["detail"]
    assert known.get("/api/health").status_code == 200


def test_a_body_of_a_wrong_length_is_no_reason_to_fail(server: Server) -> None:
    address = urlsplit(server.address)
    for length in ("-1", "1e3", "9" * 5000):
        with socket.create_connection((address.hostname, address.port), timeout=30) as connection:
            head = (
                f"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
            )
            connection.sendall(head.encode())
            answer = connection.recv(1000)
        assert answer.split()[1] in {b"400", b"413"}


@pytest.mark.parametrize("path", ["/", "/api/health", "/api/items/99999", "/page/main.js", "/docs"])
def test_every_answer_has_the_headers_that_protect(client: httpx.Client, path: str) -> None:
    headers = client.get(path).headers
    for name, value in HEADERS.items():
        assert headers[name] == value
    policy = headers["Content-Security-Policy"]
    assert "default-src 'self'" in policy
    assert "frame-ancestors 'none'" in policy
    assert ("unsafe" in policy) == (path == "/docs")
    assert "server" not in headers


def test_refusals_have_them_too(stranger: httpx.Client) -> None:
    assert stranger.get("/").headers["X-Content-Type-Options"] == "nosniff"


def test_too_many_searches_at_once_are_told_to_wait(server: Server, client: httpx.Client) -> None:
    """As many as AT_ONCE are held half sent; the next waits, and asks again when they are over."""
    address = urlsplit(server.address)
    head = (
        "POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n"
        "Content-Type: multipart/form-data; boundary=x\r\n\r\n--x"
    )
    with ExitStack() as held:
        for _ in range(AT_ONCE):
            connection = socket.create_connection((address.hostname, address.port), timeout=30)
            held.enter_context(connection).sendall(head.encode())
        response = wait_for(client, 503)
        assert int(response.headers["Retry-After"]) >= 1
        assert response.json()["title"] == "Service Unavailable"
        assert client.get("/api/health").status_code == 200  # only searches wait
    assert wait_for(client, 200).json()["answers"]


def wait_for(client: httpx.Client, status: int) -> httpx.Response:
    """Search until the answer is as wanted."""
    for _ in range(500):
        response = post(client, pictures=[0], count=1)
        if response.status_code == status:
            return response
    raise AssertionError(response.text)


@pytest.mark.parametrize(
    "path",
    [
        "/api/image/../../etc/passwd", "/api/image/..%2f..%2fetc%2fpasswd", "/api/image/%2e%2e/0",
        "/api/image//etc/passwd", "/api/image/0%00.jpg", "/api/image/-1", "/api/image/263",
        "/api/items/../image/0/../../../etc/passwd", "/page/..%2fconfig.py", "/page/../config.py",
        "/page/%2e%2e/web.py", "/page/..%5cweb.py", "/page//etc/passwd", "/page/%00", "/page/",
        "/page/.", "/page/..%2f..%2f..%2f..%2f..%2fetc%2fpasswd", "/config.py", "//etc/passwd",
        "/img/x.jpg", "/docs/..%2fweb.py",
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


def test_who_does_not_send_gives_way(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards the time limit of `Guard`: 48 such clients would keep everybody from searching."""
    monkeypatch.setattr(web_guard, "BODY_SECONDS", 0.1)

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        assert guard.searches == 1
        await receive()

    async def receive() -> Message:
        return await asyncio.Event().wait()

    async def send(message: Message) -> None:
        pass  # outside an application, whose handler tells of the 408, it is a bug's answer

    guard = Guard(app, "localhost", "", "", "", 1000, lambda *_: None)
    scope = {"type": "http", "method": "POST", "path": "/api/search",
             "headers": [(b"host", b"localhost")]}  # fmt: skip
    with pytest.raises(HTTPException) as error:
        asyncio.run(guard(scope, receive, send))
    assert error.value.status_code == 408
    assert guard.searches == 0


def test_a_bug_is_a_problem_with_the_headers_that_protect() -> None:
    """Guards `except Exception` in `Guard`: Starlette's own answer would come from outside it."""

    async def app(*_: object) -> None:
        raise ZeroDivisionError("of the program")

    seen = []
    guard = Guard(app, "localhost", "", "", "", 1000, lambda *what: seen.append(what[2]))
    transport = httpx.ASGITransport(guard, raise_app_exceptions=False)

    async def ask() -> httpx.Response:
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.get("/api/health")

    answer = asyncio.run(ask())
    assert (answer.status_code, seen) == (500, [500])
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "of the program" not in answer.text
