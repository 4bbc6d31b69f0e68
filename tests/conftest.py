"""What the tests share: the real photos, and a small data set in DeepFashion's layout."""

import json
import multiprocessing
import os
import runpy
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from filelock import FileLock

import feature_extractor
import kmeans
import train
from pictures.collection import read_collection
from pictures.deepfashion import has_items
from tests.fake_cuda import fake_cuda_device
from tools.soak import processes_below
from tools.synthetic.draw import make_collection
from tools.synthetic.tiny_clip import main as tiny_clip_of
from utils import sha256_of

ROOT = Path(__file__).parent.parent

pytest.register_assert_rewrite("tests.server.web_base", "tests.server.web_browser")


# Files that take long come first, so that two processes end at about the same time.
# Not both of words' first: the second would wait for the model that the first trains.
SLOW = ("words", "faults", "train", "soak", "benchmark", "milvus", "page_words", "pipeline",
        "distributed", "ablation")  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first."""
    slow = [f"test_{name}.py" for name in SLOW]
    items.sort(key=lambda item: slow.index(item.path.name) if item.path.name in slow else 99)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real photos and weights; tests that need it skip where it is absent."""
    folder = Path(os.environ.get("FASHION_TEST_DATA", ROOT.parent / "shared")).resolve()
    if not (folder / "photos").is_dir():
        pytest.skip(f"no real photos at {folder}; set FASHION_TEST_DATA")
    return folder


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """No setting of the developer's own shell or .env reaches a test."""
    for name in list(os.environ):
        if name.startswith("FASHION_") and name != "FASHION_TEST_DATA":
            monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


@pytest.fixture(autouse=True)
def ctrl_c_stops_the_tests() -> Iterator[None]:
    """With what they have begun; `run_script` changes what it does."""
    before = signal.getsignal(signal.SIGINT)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture
def rng() -> np.random.Generator:
    """A source of randomness, the same in every run."""
    return np.random.default_rng(0)


@pytest.fixture
def fake_cuda() -> Iterator[torch.device]:
    """A CUDA device for tests of devices, see `tests.fake_cuda`."""
    with fake_cuda_device() as device:
        yield device


class Killed(BaseException):
    """Instead of a kill, which would end the test, too."""


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """How many calls that change a folder are `left`, until each raises `Killed`."""
    calls = {"left": 99_999}

    def cut(function: Callable) -> Callable:
        def called(*arguments: object, **named: object) -> object:
            if not calls["left"]:
                raise Killed
            calls["left"] -= 1
            return function(*arguments, **named)

        return called

    monkeypatch.setattr(os, "fsync", cut(lambda descriptor: None))  # a real one takes ms
    monkeypatch.setattr(os, "replace", cut(os.replace))
    monkeypatch.setattr(Path, "unlink", cut(Path.unlink))
    return calls


def first(code: str) -> list[str]:
    """The begin of a command whose process runs some Python first.

    Not by `preexec_fn`: it takes a real fork, in which the threads of gRPC, where a test before has
    used Milvus, print errors.
    """
    return [sys.executable, "-c", f"import os, sys; {code}; os.execvp(sys.argv[1], sys.argv[1:])"]


# Of one that a SIGINT ends, though whoever runs the tests may ignore it.
BY_CTRL_C = first("import signal; signal.signal(signal.SIGINT, signal.SIG_DFL)")


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


@contextmanager
def serving(folder: Path, port: int) -> Iterator[subprocess.Popen[bytes]]:
    """Run Milvus Lite's server in a process of its own until the block ends."""
    command = [sys.executable, "-m", "milvus_lite", "server", "--data-dir", str(folder / "data"),
               "--host", "127.0.0.1", "--port", str(port)]  # fmt: skip
    with open(folder / "out", "a") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out)
    try:
        end = time.monotonic() + 120
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert process.poll() is None, (folder / "out").read_text()
                assert time.monotonic() < end
                time.sleep(0.1)
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="session")
def uri(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a Milvus Lite server."""
    port = free_port()
    with serving(tmp_path_factory.mktemp("server"), port):
        yield f"http://127.0.0.1:{port}"


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn collection, to be read only: 60 items in 2 views and 20 in-shop items."""
    base = tmp_path_factory.mktemp("drawn")
    make_collection(base, items=60, views=2, inshop_items=20, seed=0)
    return base


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """A folder of this run of the tests, which `make` fills, once for all of its processes."""
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    with FileLock(folder / f"{name}.lock"):
        if not (folder / name).exists():
            make(folder / f"{name}.part")
            (folder / f"{name}.part").rename(folder / name)
    return folder / name


@pytest.fixture(scope="session")
def tiny_clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image-text model that knows the words of drawn garments, in the layout of the hub."""
    pytest.importorskip("open_clip")
    return made_once(tmp_path_factory, "tiny_clip", lambda folder: tiny_clip_of([str(folder)]))


@pytest.fixture(scope="session")
def worded(tiny_clip: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """400 drawn garments that the image-text model has not seen, with its features.

    Their folders are named by pattern, colour, category and number.
    """

    def make(base: Path) -> None:
        make_collection(base, items=400, views=1, inshop_items=0, seed=0)
        data = ("--dataset-base", str(base), "--device", "cpu", "--num-workers", "0")
        model = ("--backbone", f"open_clip/local-dir:{tiny_clip}", "--inter-dim", "0")
        with pytest.MonkeyPatch.context() as patch:
            patch.chdir(tiny_clip)  # no .env of the developer
            # Boxes are not what these tests are of, and their head takes long.
            train.main([*data, *model, "--epoch", "0", "--crop-to-bbox=false"])
            assert feature_extractor.main([*data, "--amp", "off", "--color-top-n", "3"]) == 0
            kmeans.main([*data[:2], "--n-clusters", "6"])

    return made_once(tmp_path_factory, "worded", make)


@pytest.fixture(scope="session")
def few_photos(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """24 real photos of three categories, and an untrained ResNet18 for 64 px."""
    base = tmp_path_factory.mktemp("few_photos")
    for name in ("dress", "hat", "shoes"):
        (base / name).mkdir()
        for path in sorted((shared / "photos" / "train" / name).iterdir())[:8]:
            shutil.copyfile(path, base / name / path.name)
    sizes = ("--img-size", "72", "--crop-size", "64", "--inter-dim", "32")
    train.main(["--dataset-base", str(base), "--epoch", "0", "--backbone", "resnet18",
                "--pretrained", "none", "--recipe", "original", *sizes])  # fmt: skip
    return base


def describe(
    base: Path,
    count: int,
    category_names: list[str],
    trained: list[str] | None = None,
    models: tuple[str, ...] = ("a.pth",),
    **settings: object,
) -> None:
    """Write all_feat.json for the files that lie there, as the design says."""
    files = [path for path in base.glob("all_*") if path.name.count(".") == 1]
    hashes = {path.name: sha256_of(path) for path in files if path.suffix != ".json"}
    others = {name for name in hashes if not ("feat" in name and name.endswith(".npy"))}
    network = {"backbone": "resnet18", "inter_dim": 6, "img_size": 64, "crop_size": 64}
    network["categories"] = category_names if trained is None else trained
    usual = {"AMP": "float32", "COLOR_TOP_N": 1, "CROP_TO_BBOX": True, "FLIP": False}
    info = {
        "pictures": count,
        "category_names": category_names,
        "models": [{"file": file, "sha256": "0" * 64, "network": network} for file in models],
        "settings": {**usual, "PALETTE": False, **settings},
        "sha256": {name: hashes[name] for name in hashes.keys() - others},
        "sha256_others": {name: hashes[name] for name in others},
    }
    (base / "all_feat.json").write_text(json.dumps(info))


def rehash(base: Path, *names: str) -> None:
    """Have all_feat.json name the SHA-256 of files as they are now."""
    info = json.loads((base / "all_feat.json").read_text())
    for name in names:
        table = "sha256_others" if name in info["sha256_others"] else "sha256"
        info[table][name] = sha256_of(base / name)
    (base / "all_feat.json").write_text(json.dumps(info))


def stored_features(base: Path, rng: np.random.Generator, dim: int = 6) -> None:
    """A feature database of random features of a data set's pictures, those of items included."""
    pictures = read_collection(base, 50, has_items(base), 0.1)
    count = len(pictures)
    deep = rng.normal(size=(count, dim)).astype(np.float32)
    arrays = {
        "all_feat": deep,
        "all_color_feat": rng.normal(size=(count, 3)).astype(np.float32),
        "all_palette_feat": rng.random((count, 4), np.float32),
        "all_category": pictures.categories,
        "all_item": pictures.items.astype(str),
    }
    for name, array in arrays.items():
        np.save(base / f"{name}.npy", array)
    names = pictures.category_names[:20]
    np.savez(base / "all_classifier.npz", weight=rng.normal(size=(len(names), dim)),
             bias=rng.normal(size=len(names)))  # fmt: skip
    (base / "all_feat.list").write_text("".join(path + "\n" for path in pictures.paths))
    describe(base, count, pictures.category_names, names, PALETTE=True)


def replace_features(base: Path, name: str, features: np.ndarray) -> None:
    """Put other features into a feature database, as an extraction would have written them."""
    np.save(base / name, features)
    rehash(base, name)


@pytest.fixture
def measured(drawn: Path, tmp_path: Path, rng: np.random.Generator) -> Path:
    """The drawn collection with random features; every third item is made a lower-body one."""
    base = tmp_path / "measured"
    shutil.copytree(drawn, base, copy_function=os.link)
    boxes = base / "in_shop" / "list_bbox_inshop.txt"
    head, names, *rows = boxes.read_text().splitlines()
    boxes.unlink()  # it is a link to the drawn one
    for i, row in enumerate(rows):
        path, _, *rest = row.split()
        kind = 2 if int(path.split("id_")[1][:8]) % 3 == 0 else 1
        rows[i] = " ".join([path, str(kind), *rest])
    boxes.write_text("\n".join([head, names, *rows, ""]))
    stored_features(base, rng)
    return base


def first_picture(shared: Path) -> Path:
    """One of the real photos."""
    return min((shared / "photos" / "train").glob("dress/*.jpg"))


def command_of(script: str) -> list[str]:
    """The begin of a command that runs a script at the top, or a module of tools/."""
    if script.endswith(".py"):
        return [sys.executable, str(ROOT / script)]
    path = f"import runpy, sys; sys.path.insert(0, {str(ROOT)!r})"
    return [sys.executable, "-c", f"{path}; runpy.run_module({script!r}, None, '__main__', True)"]


@cache
def forks() -> ForkServerContext:
    """Its processes are forked from one with everything imported, and so start at once."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.preloaded"])
    with mock.patch.dict(os.environ, PYTHONPATH=str(ROOT)):
        forkserver.ensure_running()
    return context


class Run:
    """A script in a process of its own, as a user starts it; what it prints goes to files."""

    def __init__(
        self, folder: Path, script: object, *arguments: object, **environment: str
    ) -> None:
        folder.mkdir(exist_ok=True)
        self.output, self.errors = folder / "out", folder / "err"
        argv = [str(script), *map(str, arguments)]
        environment = {**os.environ, **environment}
        self.process = forks().Process(
            target=_in_process, args=(argv, os.getcwd(), environment, self.output, self.errors)
        )
        self.process.start()

    def kill(self) -> None:
        """With the processes that it has started."""
        for pid in [self.process.pid, *processes_below(self.process.pid)]:
            os.kill(pid, signal.SIGKILL)
        self.process.join()

    def wait(self) -> subprocess.CompletedProcess[str]:
        """Its end."""
        self.process.join(600)
        said = (path.read_text(errors="backslashreplace") for path in (self.output, self.errors))
        return subprocess.CompletedProcess([], self.process.exitcode or 0, *said)


def _in_process(
    argv: list[str], folder: str, environment: dict[str, str], output: Path, errors: Path
) -> None:
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, path in enumerate((Path(os.devnull), output, errors)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644), number)
    sys.path.insert(0, str(ROOT))
    sys.argv = [str(ROOT / argv[0]) if argv[0].endswith(".py") else argv[0], *argv[1:]]
    if argv[0].endswith(".py"):
        runpy.run_path(sys.argv[0], run_name="__main__")
    else:
        runpy.run_module(argv[0], run_name="__main__", alter_sys=True)


def run_ranks(script: str | Path, *arguments: object) -> list[subprocess.CompletedProcess[str]]:
    """Run two processes as torchrun would start them, in less time; what each rank printed."""
    where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    with tempfile.TemporaryDirectory() as folder:
        ranks = [Run(Path(folder, rank), script, *arguments, **where, RANK=rank) for rank in "01"]
        return [rank.wait() for rank in ranks]


def run(script: str, *arguments: object, check: int | None = 0) -> subprocess.CompletedProcess[str]:
    """Run a script as a user does; its exit status must be `check`, None for any."""
    with tempfile.TemporaryDirectory() as folder:
        done = Run(Path(folder), script, *arguments).wait()
    assert check is None or done.returncode == check, done.stdout + done.stderr
    return done
