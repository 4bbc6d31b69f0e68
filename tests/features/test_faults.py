"""What a fault costs: kills, full disks, folders without the right to write, two runs at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

import feature_extractor
import kmeans
from features.database import open_database
from tests.conftest import ROOT, Run, run
from tests.pictures.test_odd_pictures import LESS_THAN_ROOT
from tools.soak import NETWORK, Soak, Tally, processes_below
from utils import run_script, sha256_of

TRAIN = (*NETWORK, "--train-batch-size=8")
EXTRACT = ("--amp=off", "--color-top-n=3", "--num-workers=0")
CLUSTER = ("--n-clusters=7",)


@pytest.fixture(scope="module")
def prepared(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Soak:
    """The drawn collection, and what undisturbed runs make of it."""
    made = Soak(drawn, tmp_path_factory.mktemp("soak"), batch=8, seed=0)
    made.prepare()
    return made


@pytest.fixture
def soak(prepared: Soak) -> Soak:
    """The same, with nothing found yet."""
    prepared.tally = Tally()
    return prepared


@pytest.fixture
def base(prepared: Soak, tmp_path: Path) -> Path:
    """A trained, extracted and clustered collection."""
    base = Path(shutil.copytree(prepared.collection, tmp_path / "data"))
    for stage in ("train", "extract", "cluster"):
        shutil.copytree(prepared.undisturbed / stage, base, dirs_exist_ok=True)
    return base


def files_of(base: Path) -> dict[str, str]:
    """The SHA-256 of each file but for locks, stamps and what is unfinished."""
    found = (path for path in base.rglob("*") if path.is_file())
    names = {path.relative_to(base).as_posix(): path for path in found}
    return {n: sha256_of(path) for n, path in names.items() if "/." not in f"/{n}"}


@pytest.mark.parametrize("name", ["train", "extract", "cluster", "update", "grow"])
def test_a_stage_that_is_ended_at_random_moments_gives_the_same_bytes(
    soak: Soak, name: str
) -> None:
    """Also, a reader meanwhile sees the old database or the new one. `make soak` has more."""
    (stage,) = (stage for stage in soak.stages if stage.name == name)
    soak.restore(stage)
    for kind in ("kill", "ctrl-c"):
        if soak.inject(stage, kind):
            soak.compare(stage)
            soak.restore(stage)
    soak.finish(stage)
    assert soak.tally.differences == []


@pytest.mark.parametrize("name", ["train", "update"])
def test_two_at_once_are_one_after_the_other_or_one_is_refused(soak: Soak, name: str) -> None:
    """Guards `locked` in train.py and feature_extractor.py."""
    (stage,) = (stage for stage in soak.stages if stage.name == name)
    soak.restore(stage)
    soak.inject(stage, "two at once")
    soak.finish(stage)
    assert soak.tally.differences == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Makes a disk of some kB, which ends with the test."""
    place = tmp_path / "disk"
    place.mkdir()

    def make(size: int) -> Path:
        command = ["mount", "-t", "tmpfs", "-o", f"size={size}k", "none", str(place)]
        try:
            done = subprocess.run(command, capture_output=True, text=True)
        except OSError as error:
            pytest.skip(f"no disk can be mounted here: {error}")
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.strip()}")
        return place

    yield make
    subprocess.run(["umount", "-l", place], capture_output=True)  # whatever is still open


def run_train(flags: list[str]) -> None:
    """In a process of its own: its threads that write curves outlive a full disk."""
    done = run("train.py", *flags, check=None)
    print(done.stderr, file=sys.stderr)
    sys.exit(done.returncode)


WRITERS: list[tuple[Callable, tuple[str, ...], int]] = [
    (run_train, (*TRAIN, "--epoch=2", "--num-workers=0"), 9000),
    (feature_extractor.main, EXTRACT, 20),
    (feature_extractor.main, EXTRACT, 700),
    (kmeans.main, CLUSTER, 0),
]


@pytest.mark.parametrize(("script", "flags", "room"), WRITERS)
def test_a_full_disk_is_one_line_and_the_old_files_stay(
    base: Path, small_disk: Callable, capsys, script: Callable, flags: tuple, room: int
) -> None:
    """Guards `writing`, each fsync, that nothing is mapped for writing, and ENOSPC in `run_script`.

    The disk has room for some kB: it is full sooner, or later.
    """
    # The pictures lie elsewhere.
    (base / "models" / "checkpoint.pth.tar").unlink(missing_ok=True)
    pictures = base.parent / "pictures"
    pictures.mkdir()
    for part in ("img", "in_shop"):
        shutil.move(base / part, pictures / part)
    used = sum(-(-p.stat().st_size // 4096) * 4 + 4 for p in base.rglob("*"))
    disk = small_disk(used + room + 40)
    shutil.copytree(base, disk / "data")
    for part in ("img", "in_shop"):
        (disk / "data" / part).symlink_to(pictures / part)
    on_disk = disk / "data"
    if not room:
        with suppress(OSError), open(disk / "filler", "wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
    before = files_of(on_disk)
    with pytest.raises(SystemExit) as left:
        run_script(lambda: script(["--dataset-base", str(on_disk), *flags]))
    err = capsys.readouterr().err
    assert left.value.code == 2, err
    assert err.strip().split("\n")[-1].endswith("No space left on device")
    assert "Traceback" not in err
    after = files_of(on_disk)
    assert {name: after.get(name) for name in before} == before
    for name in after.keys() - before.keys():  # what a run that goes on takes up
        assert name.startswith(("models/tensorboard", "models/checkpoint"))
    assert not list(on_disk.rglob("*.part"))
    assert len(open_database(on_disk).paths)


# All scripts in one process, which may not write where the permissions forbid it.
READ_ONLY = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
import feature_extractor, kmeans, retrieval, train
from utils import run_script
base, picture = sys.argv[1:]
for script, flags in (
    (train, {TRAIN!r}), (train, {(*TRAIN, "--epoch=0")!r}), (kmeans, {CLUSTER!r}),
    (feature_extractor, {EXTRACT!r}), (retrieval, (picture, "--with-own", "--json")),
):
    try:
        run_script(lambda: script.main([*flags, "--dataset-base", base]))
    except SystemExit as left:
        print(script.__name__, left.code, file=sys.stderr)
"""


def test_where_nothing_may_be_written_a_query_works_and_a_writer_is_one_line(base: Path) -> None:
    """Guards `writing` in `locked` and `atomic_write`, and that a query ignores it."""
    before = files_of(base)
    picture = min((base / "img").rglob("*.jpg"))
    command = [*LESS_THAN_ROOT, sys.executable, "-c", READ_ONLY, base, picture]
    closed(base)
    try:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, timeout=300
        )
    finally:
        opened(base)
    lines = done.stderr.splitlines()
    ends = [line for line in lines if line.split()[0] in ("train", "kmeans", "feature_extractor")]
    assert ends == ["train 2", "train 2", "kmeans 2", "feature_extractor 2"], done.stderr
    for end in ends:
        message = lines[lines.index(end) - 1]
        assert str(base) in message
        assert message.endswith(": cannot be written: Permission denied")
    assert lines[-1] == "retrieval 0"
    assert "Traceback" not in done.stderr
    first = json.loads(done.stdout[done.stdout.index("[\n") :])[0]["results"][0]
    assert first["path"] == picture.relative_to(base).as_posix()
    assert files_of(base) == before


def closed(base: Path) -> None:
    """Nobody may write there any more; where root still may, the test is skipped."""
    for folder in [base, base / "models"]:
        folder.chmod(0o555)
    command = [*LESS_THAN_ROOT, sys.executable, "-c", f"open({str(base / 'x')!r}, 'w')"]
    if not subprocess.run(command, capture_output=True).returncode:
        opened(base)
        pytest.skip("this process may write everywhere, whatever the permissions")


def opened(base: Path) -> None:
    for folder in [base, base / "models"]:
        folder.chmod(0o755)


def is_fork_of(script: int, pid: int) -> bool:
    """Whether a process is a worker of the script: its fork, with the same command line."""
    try:
        commands = {Path(f"/proc/{one}/cmdline").read_bytes() for one in (script, pid)}
    except OSError:
        return False
    return len(commands) == 1


def test_a_worker_that_dies_is_named(base: Path, tmp_path: Path) -> None:
    """Guards the `except RuntimeError` in `run_script`, and that nothing waits for the dead."""
    large = base.parent / "large.png"  # slow to read, so that it dies at work
    Image.effect_noise((1500, 1500), 99).save(large)
    for picture in [*base.glob("img/*/*.jpg"), *base.glob("in_shop/img/*/*/*/*.jpg")]:
        picture.unlink()
        picture.hardlink_to(large)
    flags = ("--color-top-n=3", "--num-workers=1")
    script = Run(tmp_path / "log", "feature_extractor.py", "--dataset-base", base, *flags)
    workers: set[int] = set()
    before: set[int] = set()
    while not workers and script.process.is_alive():
        pid = script.process.pid
        seen = {below for below in processes_below(pid) if is_fork_of(pid, below)}
        workers, before = seen & before, seen  # torch's own end sooner
        time.sleep(0.05)
    for worker in workers:  # the end of one is enough, that of all is one line, too
        with suppress(ProcessLookupError):
            os.kill(worker, signal.SIGKILL)
    done = script.wait()
    assert done.returncode == 2
    said = done.stderr.strip().split("\n")
    assert said[-1].startswith("feature_extractor.py: DataLoader worker (pid")
    assert any(str(worker) in said[-1] for worker in workers)
    assert "set NUM_WORKERS lower" in said[-1]
    assert not any("Traceback" in line for line in said)
