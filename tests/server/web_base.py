"""What the tests of the page share: a small collection, and a real server of it.

A test module names it in `pytest_plugins`, so that all of them share one server.
"""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest
from PIL import Image

import feature_extractor
import kmeans
import train
from config import Config
from server.live import Collection
from tests.conftest import BY_CTRL_C, ROOT

MACHINE = ("--amp", "off", "--device", "cpu", "--num-workers", "0")
RECALL = ("--target-recall", "0.9")  # so that k-means does not search all clusters
START_SECONDS = 120.0


def own_config(served: Path, folder: Path) -> Config:
    """The settings of a copy of the collection, whose files may be replaced."""
    base = folder / "own"
    shutil.copytree(served, base, copy_function=os.link)
    return Config(DATASET_BASE=base, DEVICE="cpu", _env_file=None)


@dataclass(frozen=True)
class Server:
    """A running web.py.

    Attributes
    ----------
    process : its process
    address : as it prints it
    folder : has its output, `out` and `err`, and `tmp`, its folder for temporary files
    """

    process: subprocess.Popen[str]
    address: str
    folder: Path

    @property
    def errors(self) -> str:
        """Its standard error."""
        return (self.folder / "err").read_text()


@contextmanager
def serving(base: Path, folder: Path, *flags: str) -> Iterator[Server]:
    """Run web.py on a free port until the block ends."""
    (folder / "tmp").mkdir(parents=True)
    command = [*BY_CTRL_C, sys.executable, str(ROOT / "web.py"), "--dataset-base", str(base)]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("FASHION_")}
    environment["TMPDIR"] = str(folder / "tmp")
    with open(folder / "out", "w") as out, open(folder / "err", "w") as err:
        process = subprocess.Popen(
            [*command, "--port", "0", "--device", "cpu", *flags],
            stdout=out, stderr=err, cwd=folder, env=environment, text=True,
            start_new_session=True,
        )  # fmt: skip
    try:
        end = time.monotonic() + START_SECONDS
        while not (line := (folder / "out").read_text()).endswith("\n"):
            assert process.poll() is None, (folder / "err").read_text()
            assert time.monotonic() < end, "the server does not start"
            time.sleep(0.02)
        yield Server(process, line.split()[-1], folder)
    finally:
        process.send_signal(signal.SIGINT)
        process.wait(timeout=30)
    assert "Traceback" not in (folder / "err").read_text()


@pytest.fixture(scope="session")
def served(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drawn collection with the features and clusters of an untrained ResNet18."""
    base = tmp_path_factory.mktemp("served") / "drawn"
    shutil.copytree(drawn, base, copy_function=os.link)
    data = ("--dataset-base", str(base))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(base)  # no .env of the developer
        train.main([*data, "--epoch", "0", "--backbone", "resnet18", "--pretrained", "none",
                    "--img-size", "104", "--crop-size", "96", "--inter-dim", "32"])  # fmt: skip
        flags = ("--color-top-n", "3", "--enable-inshop-dataset")
        assert feature_extractor.main([*data, *MACHINE, *flags]) == 0
        kmeans.main([*data, "--n-clusters", "6"])
    return base


@pytest.fixture(scope="session")
def collection(served: Path) -> Collection:
    """The collection as the server opens it, in this process."""
    return Collection(Config(DATASET_BASE=served, DEVICE="cpu", _env_file=None))


@pytest.fixture(scope="session")
def ids(served: Path) -> list[str]:
    """The id of each picture: the hash of its path, the last byte first."""
    paths = (served / "all_feat.list").read_text().splitlines()
    digests = [hashlib.blake2b(path.encode(), digest_size=8).digest() for path in paths]
    return [digest[::-1].hex() for digest in digests]


@pytest.fixture(scope="session")
def server(served: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A real server of the collection, for all tests."""
    with serving(served, tmp_path_factory.mktemp("server") / "run", *RECALL) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[httpx.Client]:
    """A client of the server."""
    with httpx.Client(base_url=server.address, timeout=60, trust_env=False) as client:
        yield client


@pytest.fixture
def search(client: httpx.Client, ids: list[str]) -> Callable[..., dict[str, Any]]:
    """Search by files and options; the answer as JSON, whose status must be `status`.

    Pictures of the collection may be named by their rows; each answer gets its `row`.
    """

    def run(*files: Path | bytes, status: int = 200, **options: Any) -> dict[str, Any]:
        for name in {"pictures", "like", "unlike"} & options.keys():
            options[name] = [ids[one] if one in range(len(ids)) else one for one in options[name]]
        response = post(client, *files, **options)
        assert response.status_code == status, response.text
        found = response.json()
        for one in found.get("answers", []):
            one["row"] = ids.index(one["id"])
        return found

    return run


def post(client: httpx.Client, *files: Path | bytes, **options: object) -> httpx.Response:
    """A search, as a form."""
    contents = [file if isinstance(file, bytes) else file.read_bytes() for file in files]
    form = [("file", ("picture", content)) for content in contents]
    form.append(("options", (None, json.dumps(options))))
    return client.post("/api/search", files=form)


def paths_of(answer: dict[str, Any]) -> list[str]:
    """The paths of the answers, in their order."""
    return [one["path"] for one in answer["answers"]]


def query_file(base: Path) -> Path:
    """A picture of the collection that has no box of its own in a copy elsewhere."""
    return min((base / "img").glob("*/img_00000002.jpg"))


def png_of(color: str | tuple[int, int, int], side: int = 120) -> bytes:
    """A picture of one colour."""
    data = io.BytesIO()
    Image.new("RGB", (side, side), color).save(data, "PNG")
    return data.getvalue()
