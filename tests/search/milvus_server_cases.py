"""What `test_milvus_server.py` runs beside a real Milvus server, in order."""

import fcntl
import importlib
import os
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from features.database import open_database
from search.engine import ExactEngine
from search.recall import recall_of
from tests.conftest import ROOT, replace_features
from tests.search.test_milvus import K, assert_same, opened, push, settings
from tests.search.test_milvus_server import SERVER
from tools.benchmark.inputs import make_database
from utils import AwayError

URI, TOKEN, COUNT = "http://127.0.0.1:19530", "root:Milvus", 3000
# A collection of this version has one field of vectors: deep.
FLAGS = ("--milvus-uri", URI, "--milvus-token", TOKEN, "--color-weight", "0")
COMMAND = (sys.executable, str(ROOT / "milvus_push.py"), *FLAGS, "--milvus-timeout", "60")
# Stops the process after the first request.
KILLED = """
import os, signal
from search.milvus_client import Client
call = Client.call
def cut_off(client, method, *args, **options):
    call(client, method, *args, **options)
    if method == "upsert":
        os.kill(os.getpid(), signal.SIGKILL)
    return call(client, method, *args, **options)
"""


class Server:
    """A Milvus server with a fresh folder.

    The package's own launcher does not notice that its server has died.
    """

    def __init__(self, folder: Path) -> None:
        package = os.environ[SERVER]
        sys.path.insert(0, package)
        milvus = importlib.import_module("milvus")

        with socket.socket() as one:  # the namespace's own lo is down
            fcntl.ioctl(one, 0x8914, struct.pack("16sH14x", b"lo", 0x41))  # SIOCSIFFLAGS: up
        self.folder, self.binaries = folder, Path(package, "bin")
        milvus._initialize_data_files(package)  # unpacks what is not yet
        config = milvus.MilvusServerConfig(data_dir=str(folder))
        config.set("authorization_enabled", True)
        config.resolve()

    def start(self) -> None:
        own = {"DEPLOY_MODE": "STANDALONE", "LD_LIBRARY_PATH": str(self.binaries)}
        with open(self.folder / "out", "a") as out:
            self.process = subprocess.Popen(
                [self.binaries / "milvus", "run", "standalone"],
                cwd=self.folder, env={**os.environ, **own}, stdout=out, stderr=out,
            )  # fmt: skip
        end = time.monotonic() + 120
        while True:
            assert self.process.poll() is None, (self.folder / "out").read_text()[-2000:]
            assert time.monotonic() < end
            with suppress(OSError), urllib.request.urlopen("http://127.0.0.1:9091/healthz") as one:
                if one.read() == b"OK":
                    return
            time.sleep(0.1)

    def kill(self) -> None:
        self.process.kill()  # SIGTERM can take minutes
        self.process.wait()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    server = Server(tmp_path_factory.mktemp("server"))
    server.start()
    yield server
    server.kill()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    base = tmp_path_factory.mktemp("base") / "many"
    make_database(base, COUNT)
    return base


def config_of(base: Path):
    return settings(base, URI, MILVUS_TOKEN=TOKEN, COLOR_WEIGHT=0.0)


def measured(base: Path) -> float:
    """Recall@10 of the engine for other pictures than the push measured it with."""
    _, signals, engine = opened(config_of(base))
    queries = [signal.features[7::23] for signal in signals]
    truth = [answer.rows for answer in ExactEngine(signals).search(queries, K)]
    return recall_of([answer.rows for answer in engine.search(queries, K)], truth)


def test_refusals_are_one_line_and_status_2(
    server: Server, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a wrong token, of none, and of what this version cannot do."""
    for flags, said in (
        (("--milvus-token", "root:wrong"), "set MILVUS_TOKEN=USER:PASSWORD"),
        (("--milvus-token", ""), "set MILVUS_TOKEN=USER:PASSWORD"),
        (("--color-weight", "1"), "create collection: refused for good"),
    ):
        push(base, *FLAGS, *flags, status=2)
        line = capsys.readouterr().err
        assert line.count("\n") == 1
        assert said in line


def test_a_push_that_is_killed_goes_on(
    server: Server, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What arrived is seen, and not sent again; the recall is that of the built index."""
    code = f"{KILLED}\nClient.call = cut_off\nimport milvus_push\nmilvus_push.main()"
    command = [sys.executable, "-c", code, *COMMAND[2:], "--dataset-base", str(base)]
    killed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert killed.returncode == -signal.SIGKILL, killed.stderr
    push(base, *FLAGS)
    out = capsys.readouterr().out
    sent = int(out.split(" of them sent")[0].split()[-1].replace(",", ""))
    assert 0 < sent < COUNT
    recall = float(out.split("recall@10 ")[1].split()[0])
    assert recall > 0.99
    assert measured(base) == pytest.approx(recall, abs=0.01)


def test_a_server_that_is_killed_and_comes_back(server: Server, base: Path) -> None:
    """Searches are refused, as of a server that is away, then answered as before."""
    _, signals, engine = opened(config_of(base))
    queries = [signal.features[:20] for signal in signals]
    before = engine.search(queries, K)
    server.kill()
    engine.client.timeout, patient = 1.0, engine.client.timeout
    with pytest.raises(AwayError, match="no answer to 'search' in time"):
        engine.search(queries, K)
    server.start()
    engine.client.timeout = patient
    assert_same(engine.search(queries, K), before)


def test_two_pushes_of_an_update(server: Server, base: Path, rng: np.random.Generator) -> None:
    """At once: both end well, every picture is there once, the older collection is gone."""
    deep = open_database(base).deep[0] + rng.normal(size=(COUNT, 512)).astype(np.float32)
    replace_features(base, "all_feat.npy", deep)
    two = [subprocess.Popen([*COMMAND, "--dataset-base", str(base)]) for _ in range(2)]
    assert [one.wait() for one in two] == [0, 0]
    _, _, engine = opened(config_of(base))
    names = engine.client.call("list_collections")
    assert names == [engine.name]
    fields = {"filter": "", "output_fields": ["count(*)"], "consistency_level": "Strong"}
    assert engine.client.call("query", engine.name, **fields)[0]["count(*)"] == COUNT
    assert measured(base) > 0.99
