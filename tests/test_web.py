"""web.py as a script: its output, its errors, its end by Ctrl-C."""

import re
import signal
import socket
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from unittest import mock
from urllib.parse import urlsplit

import httpx
import pytest

import web
from tests.server.web_base import Server, serving
from utils import run_script

pytest_plugins = ("tests.server.web_base",)
MAX_SECONDS = web.GRACE_SECONDS + 2.0


def test_it_prints_one_line_with_its_address(server: Server, client: httpx.Client) -> None:
    line = (server.folder / "out").read_text()
    assert re.fullmatch(r"263 pictures: http://127\.0\.0\.1:\d+\n", line)
    assert client.get("/").status_code == 200
    assert "everybody" not in server.errors


def test_ctrl_c_ends_it_soon(served: Path, tmp_path: Path) -> None:
    """With an idle connection, and one that has sent half of its picture; nothing is printed.

    For all networks without a token, it has printed a warning.
    """
    with serving(served, tmp_path / "run", "--host", "0.0.0.0") as running:  # noqa: S104
        errors = running.errors
        assert "everybody who can reach 0.0.0.0" in errors
        assert "--token" in errors
        place = ("127.0.0.1", urlsplit(running.address).port)
        with ExitStack() as stack:
            idle, half = (
                stack.enter_context(socket.create_connection(place, timeout=30)) for _ in range(2)
            )
            for connection in (idle, half):
                connection.sendall(b"GET /api/health HTTP/1.1\r\nHost: localhost\r\n\r\n")
                assert connection.recv(12) == b"HTTP/1.1 200"
            half.sendall(
                b"POST /api/search HTTP/1.1\r\nHost: localhost\r\nContent-Length: 99\r\n\r\n-"
            )
            start = time.monotonic()
            running.process.send_signal(signal.SIGINT)
            assert running.process.wait(timeout=30) == -signal.SIGINT
            assert time.monotonic() - start < MAX_SECONDS
        assert (running.folder / "out").read_text().count("\n") == 1


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]):
    """Run the script as from the command line; it must end with one line and status 2."""

    def run(*argv: object) -> str:
        with pytest.raises(SystemExit) as left:
            run_script(lambda: web.main([str(value) for value in argv]))
        out, err = capsys.readouterr()
        assert (left.value.code, out) == (2, "")
        assert err.count("\n") == 1
        return err

    return run


def test_a_port_in_use_is_one_line(refused, server: Server, served: Path) -> None:
    port = urlsplit(server.address).port
    said = refused("--dataset-base", served, "--port", port)
    assert f"PORT {port}: Address already in use" in said
    assert "--port" in said


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (("--port", "65536"), "65535"),
        (("--port", "http"), "PORT"),
        (("--max-upload", "0"), "MAX_UPLOAD"),
        (("--user", "ann"), "USER and PASSWORD go together"),
        (("--password", "x"), "USER and PASSWORD go together"),
        (("--host", "no.such.host.invalid"), "HOST no.such.host.invalid"),
        (("--host", "192.0.2.1"), "HOST 192.0.2.1"),
        (("--dataset-base", "nowhere"), "feature_extractor.py"),
        (("--device", "toaster"), "DEVICE"),
    ],
)
def test_a_wrong_setting_is_one_line(refused, served: Path, flags, said: str) -> None:
    assert said in refused("--dataset-base", served, "--port", "0", *flags)


@pytest.mark.parametrize("name", ["uvicorn", "fastapi", "fastapi_offline", "prometheus_client",
                                  "python_multipart", "cachetools"])  # fmt: skip
def test_missing_packages_are_named(refused, served: Path, name: str) -> None:
    """Whatever was imported before: all of `server` is imported again, then all is put back."""
    with mock.patch.dict(sys.modules, {name: None}):
        for module in [m for m in sys.modules if m.partition(".")[0] == "server"]:
            del sys.modules[module]
        said = refused("--dataset-base", served, "--port", "0")
    assert name in said
    assert "run: pip install -r requirements-web.txt" in said
