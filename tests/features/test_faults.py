"""What a fault costs: kills, full disks, folders without the right to write, two runs at once."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import pytest
from PIL import Image

from features.database import open_database
from tests.conftest import ROOT, run
from tests.pictures.test_odd_pictures import LESS_THAN_ROOT
from tools.soak import NETWORK, Soak, Tally, processes_below
from utils import sha256_of

SMALL = (*NETWORK, "--train-batch-size=8")
KILLS = 4  # of each stage; `make soak` injects more


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


@pytest.fixture(scope="module")
def extracted(prepared: Soak, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trained, extracted and clustered collection, to be read only."""
    base = tmp_path_factory.mktemp("extracted") / "data"
    shutil.copytree(prepared.collection, base)
    for stage in ("train", "extract", "cluster"):
        shutil.copytree(prepared.kept / stage, base, dirs_exist_ok=True)
    return base


@pytest.fixture
def base(extracted: Path, tmp_path: Path) -> Path:
    """A copy for one test."""
    return Path(shutil.copytree(extracted, tmp_path / "data"))


def files_of(base: Path) -> dict[str, str]:
    """The SHA-256 of each file but for locks, stamps and what is unfinished."""
    found = (path for path in base.rglob("*") if path.is_file())
    names = {path.relative_to(base).as_posix(): path for path in found}
    return {n: sha256_of(path) for n, path in names.items() if "/." not in f"/{n}"}


@pytest.mark.parametrize("name", ["train", "extract", "cluster", "update", "grow"])
@pytest.mark.parametrize("kind", ["kill", "ctrl-c"])
def test_a_stage_that_was_ended_at_random_moments_ends_as_if_it_had_not(
    soak: Soak, name: str, kind: str
) -> None:
    """Guards atomic_write, the resume point and its generators, Shard, write_database.

    Also that an update is seen as the old database or the new one by who reads all the while.
    """
    (stage,) = (stage for stage in soak.stages if stage.name == name)
    soak.set_back(stage)
    for _ in range(KILLS):
        if soak.inject(stage, kind):
            soak.compare(stage)
            soak.set_back(stage)
    soak.finish(stage)
    assert soak.tally.differences == []


@pytest.mark.parametrize("name", ["train", "extract", "cluster", "update"])
def test_two_at_once_are_one_after_the_other_or_one_is_refused(soak: Soak, name: str) -> None:
    """Guards `locked` in train.py and feature_extractor.py; clusters need none to be whole."""
    (stage,) = (stage for stage in soak.stages if stage.name == name)
    soak.set_back(stage)
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
    subprocess.run(["umount", place], capture_output=True)


def refused(base: Path, script: str, *flags: object, reason: str, begin: Sequence[str] = ()) -> str:
    """Run a script that cannot write: it must say so in one line, which is returned."""
    command = [*begin, sys.executable, ROOT / script, "--dataset-base", base, *flags]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=300)
    assert done.returncode == 2, done.stdout + done.stderr
    last = done.stderr.strip().split("\n")[-1]
    assert last.startswith(f"{script}: "), done.stderr
    assert last.endswith(reason), done.stderr
    assert "Traceback" not in done.stderr
    return last


WRITERS = [
    ("train.py", (*SMALL, "--epoch=2", "--num-workers=0"), 60),
    ("train.py", (*SMALL, "--epoch=2", "--num-workers=0"), 9000),
    ("train.py", (*SMALL, "--epoch=0"), 60),
    ("feature_extractor.py", ("--amp=off", "--color-top-n=3", "--num-workers=0"), 20),
    ("feature_extractor.py", ("--amp=off", "--color-top-n=3", "--num-workers=0"), 700),
    ("kmeans.py", ("--n-clusters=7",), 0),
]


@pytest.mark.parametrize(("script", "flags", "room"), WRITERS)
def test_a_full_disk_is_one_line_and_the_old_files_stay(
    base: Path, small_disk: Callable, script: str, flags: tuple, room: int
) -> None:
    """Guards `writing`, `_sync`, that nothing is mapped for writing, and ENOSPC in `run_script`.

    The disk has room for some kB: it is full sooner, or later.
    """
    # Less would not be seen to be whole; pictures lie elsewhere.
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
    refused(on_disk, script, *flags, reason="No space left on device")
    after = files_of(on_disk)
    assert {name: after.get(name) for name in before} == before
    for name in after.keys() - before.keys():  # what a run that goes on takes up
        assert name.startswith(("models/tensorboard", "models/checkpoint"))
    assert not list(on_disk.rglob("*.part"))
    assert len(open_database(on_disk).paths)


@pytest.mark.parametrize(("script", "flags"), [
    ("train.py", SMALL), ("train.py", (*SMALL, "--epoch=0")), ("kmeans.py", ("--n-clusters=7",)),
    ("feature_extractor.py", ("--color-top-n=3",)),
])  # fmt: skip
def test_a_base_that_may_not_be_written_to_is_one_line(
    base: Path, script: str, flags: tuple
) -> None:
    """Guards `writing` in `locked` and `atomic_write`; nothing is touched, not even the lock."""
    before = files_of(base)
    closed(base)
    try:
        said = refused(
            base, script, *flags, "--num-workers=0", reason="Permission denied",
            begin=LESS_THAN_ROOT,
        )  # fmt: skip
    finally:
        opened(base)
    assert str(base) in said
    assert files_of(base) == before


def test_a_query_needs_no_right_to_write(base: Path) -> None:
    """Guards `suppress` in stamps.py and the `except` in `open_codes`."""
    picture = min((base / "img").rglob("*.jpg"))
    command = [*LESS_THAN_ROOT, sys.executable, ROOT / "retrieval.py", picture, "--json"]
    closed(base)
    try:
        done = subprocess.run([*map(str, command), "--dataset-base", str(base)],
                              capture_output=True, text=True, timeout=300)  # fmt: skip
    finally:
        opened(base)
    assert done.returncode == 0, done.stderr
    first = json.loads(done.stdout)[0]["results"][0]
    assert first["path"] == picture.relative_to(base).as_posix()


def closed(base: Path) -> None:
    """Nobody may write there any more; a test that cannot be kept from it is skipped."""
    for folder in [base, base / "models"]:
        folder.chmod(0o555)
    command = [*LESS_THAN_ROOT, sys.executable, "-c", f"open({str(base / 'x')!r}, 'w')"]
    if not subprocess.run(command, capture_output=True).returncode:
        opened(base)
        pytest.skip("this process may write everywhere, and cannot be kept from it")


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


@pytest.mark.parametrize(("script", "flags"), [
    ("train.py", (*SMALL, "--resume")), ("feature_extractor.py", ("--color-top-n=3",)),
])  # fmt: skip
def test_a_worker_that_dies_is_named(base: Path, script: str, flags: tuple, tmp_path: Path) -> None:
    """Guards the `except RuntimeError` in `run_script`, and that nothing waits for the dead."""
    large = base.parent / "large.png"  # slow to read, so that it dies at work
    Image.effect_noise((1500, 1500), 99).save(large)
    for picture in [*base.glob("img/*/*.jpg"), *base.glob("in_shop/img/*/*/*/*.jpg")]:
        picture.unlink()
        picture.hardlink_to(large)
    command = [sys.executable, str(ROOT / script), "--dataset-base", str(base), *flags]
    with open(tmp_path / "err", "w") as err:
        process = subprocess.Popen(
            [*command, "--num-workers=1"], stdout=subprocess.DEVNULL, stderr=err
        )
        workers: set[int] = set()
        before: set[int] = set()
        while not workers and process.poll() is None:
            seen = {pid for pid in processes_below(process.pid) if is_fork_of(process.pid, pid)}
            workers, before = seen & before, seen  # what torch asks of the system ends sooner
            time.sleep(0.05)
        for worker in workers:  # the end of one is enough, that of all is one line, too
            with suppress(ProcessLookupError):
                os.kill(worker, signal.SIGKILL)
        assert process.wait(timeout=120) == 2
    said = (tmp_path / "err").read_text().strip().split("\n")
    assert said[-1].startswith(f"{script}: DataLoader worker (pid")
    assert any(str(worker) in said[-1] for worker in workers)
    assert "set NUM_WORKERS lower" in said[-1]
    assert not any("Traceback" in line for line in said)


def test_the_same_seed_gives_the_same_bytes(soak: Soak, base: Path) -> None:
    """Guards the seeds, the order of the batches in `in_order`, and files without times in them."""
    for stage in soak.stages:
        soak.set_back(stage)
        soak.finish(stage)
    assert soak.tally.differences == []
    picture = min((base / "img").rglob("*.jpg"))
    answers = []
    for _ in range(2):
        done = run("retrieval.py", picture, "--dataset-base", base, "--json")
        answers.append([[a["engine"], a["results"]] for a in json.loads(done.stdout)])
    assert answers[0] == answers[1]
