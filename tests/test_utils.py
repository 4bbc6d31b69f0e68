"""utils.py: files that are whole or not there, exit statuses, times."""

import hashlib
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT
from utils import Stopwatch, atomic_write, sha256_of

RED, BLUE, WHITE = (255, 0, 0), (0, 0, 255), (255, 255, 255)
NOISE = np.random.default_rng(0).integers(0, 256, (60, 80, 3), dtype=np.uint8)


def test_atomic_write_shows_the_old_file_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "new folder" / "file"
    with atomic_write(path) as part:
        part.write_text("old")
        assert not path.exists()

    def fail_halfway() -> None:
        with atomic_write(path) as part:
            part.write_text("half")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail_halfway()
    assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("file", "old")]
    with atomic_write(path) as part:
        part.write_text("new")
        assert path.read_text() == "old"
    assert [(p.name, p.read_text()) for p in path.parent.iterdir()] == [("file", "new")]


def test_what_a_killed_writer_left_is_removed_and_nothing_else(tmp_path: Path) -> None:
    """Guards `_is_abandoned`: numbers of processes say nothing of those of another machine."""
    with subprocess.Popen(["/bin/true"]) as ended:
        pass
    with atomic_write(tmp_path / "a.npy") as part:
        part.touch()
        here = part.name.split(".")[-3]
    dead, alive = f"{here}.{ended.pid}", f"{here}.{os.getppid()}"
    elsewhere, long_ago = f"00000000.{ended.pid}", f"11111111.{ended.pid}"
    kept = {f".a.npy.{alive}.part", f".a.npy.{elsewhere}.part", f".b.npy.{dead}.part",
            f".a.npy.{here}.x.part", "a.npy.part"}  # fmt: skip
    for name in [*kept, f".a.npy.{dead}.part", f".a.codes.npy.{dead}.part"]:
        (tmp_path / name).touch()
    (tmp_path / f".a.npy.{long_ago}.part").touch()
    os.utime(tmp_path / f".a.npy.{long_ago}.part", (1, 1))
    with atomic_write(tmp_path / "a.npy") as part:
        part.touch()
    assert {path.name for path in tmp_path.iterdir()} == {*kept, "a.npy"}


def test_the_rename_is_on_the_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards `sync_folder`, after the rename: a power cut would take back what only looks done."""
    synced, sync = [], os.fsync

    def noted(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append((is_folder, (tmp_path / "file").exists()))
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    with atomic_write(tmp_path / "file") as part:
        part.touch()
    assert synced == [(False, False), (True, True)]


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (3 << 20) + 5])
def test_sha256_is_that_of_the_whole_file(tmp_path: Path, size: int) -> None:
    data = np.random.default_rng(size).bytes(size)
    (tmp_path / "file").write_bytes(data)
    assert sha256_of(tmp_path / "file") == hashlib.sha256(data).hexdigest()


def test_stopwatch_keeps_order_and_adds_up() -> None:
    watch = Stopwatch()
    for name in ("read", "rank", "read"):
        before = watch.seconds.get(name, 0.0)
        with watch.step(name):
            sum(range(1000))
        assert watch.seconds[name] > before
    assert list(watch.seconds) == ["read", "rank"]


HEAD = f"import os, signal, sys\nsys.path.insert(0, {str(ROOT)!r})\nfrom utils import *\n"


@pytest.mark.parametrize(
    ("body", "status", "error"),
    [
        ("return None", 0, ""),
        ("return 3", 3, ""),
        ("raise UserError('x.txt:3: wrong')", 2, "script.py: x.txt:3: wrong\n"),
        (r"raise UserError('größe\n\x1b[31m\udcff: wrong')", 2,
         "script.py: größe\\n\\x1b[31m\\udcff: wrong\n"),
        ("raise OSError(28, 'No space left on device', 'a.npy')", 2,
         "script.py: a.npy: No space left on device\n"),
        ("raise OSError(27, 'File too large')", 2, "script.py: output: File too large\n"),
        ("open('none')", 1, None),  # a fault of the program keeps its traceback
        ("1 / 0", 1, None),
    ],
)  # fmt: skip
def test_exit_status_of_a_script(tmp_path: Path, body: str, status: int, error: str | None) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"{HEAD}def main():\n    print('out')\n    {body}\nrun_script(main)\n")
    result = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (status, "out\n")
    assert result.stderr == error if error is not None else "Traceback" in result.stderr


DEAD = "DataLoader worker (pid 7) is killed by signal: Killed"
FULL = "unable to resize file </torch_1> to the right size: No space left on device (28)"
TRACEBACK = "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most"


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (f"{DEAD}. ", f"{DEAD}; if memory is short, set NUM_WORKERS lower"),
        (f"{TRACEBACK}\nRuntimeError: {FULL}\n", "no shared memory is left (/dev/shm); make it"),
        (f"{TRACEBACK}\nRuntimeError: of the program", None),
    ],
)
def test_a_lost_worker_is_one_line(tmp_path: Path, error: str, said: str | None) -> None:
    """Guards `_of_workers`: a fault of the program keeps its traceback, in a worker, too."""
    script = tmp_path / "script.py"
    script.write_text(f"{HEAD}def main():\n    raise RuntimeError({error!r})\nrun_script(main)\n")
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert done.returncode == (2 if said else 1)
    if said:
        assert done.stderr.startswith(f"script.py: {said}")
        assert done.stderr.endswith(". Run it again: it goes on where it was\n")
        assert done.stderr.count("\n") == 1
    else:
        assert "Traceback" in done.stderr


def test_workers_that_are_lost_one_after_the_other_are_one_line(tmp_path: Path) -> None:
    """torch raises for each, wherever the script is: here while the first one's end is told."""
    script = tmp_path / "script.py"
    script.write_text(
        f"{HEAD}def ended(*_):\n"
        f"    raise RuntimeError({DEAD!r})\n"
        "class First(RuntimeError):\n"
        "    def __str__(self):\n"
        "        signal.raise_signal(signal.SIGCHLD)\n"
        "        return super().__str__()\n"
        "def main():\n"
        "    signal.signal(signal.SIGCHLD, ended)\n"
        f"    raise First({DEAD!r})\n"
        "run_script(main)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
    assert DEAD in done.stderr


def test_reader_that_stops_early_is_no_error_and_a_full_disk_is_one_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(f"{HEAD}def main():\n    print('line\\n' * 100_000)\nrun_script(main)\n")
    with subprocess.Popen(
        [sys.executable, script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "line\n"
        process.stdout.close()
        assert process.stderr.read() == ""
    assert process.returncode == 0

    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with open("/dev/full", "w") as full:
        result = subprocess.run(
            [sys.executable, script], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "No space left on device" in result.stderr
